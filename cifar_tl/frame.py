"""How a picture becomes the square that a network sees.

Importing it imports neither torch nor Pillow.
"""

from dataclasses import dataclass
from operator import index
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Fit = Literal["crop", "squash", "pad"]

_DECODED = 256  # a JPEG is never decoded smaller: eight times what `CifarNet` sees
LONGEST = 64  # a picture that is longer, compared to its shorter side, is cut before it is scaled


@dataclass(frozen=True)
class Frame:
    """The square that a network sees of a picture. The default is that of `CifarNet`.

    ``Frame(**dataclasses.asdict(frame))`` makes the same frame, also by way of JSON.

    Attributes:
        size: Height and width of the square in pixels.
        resize: For ``fit="crop"``: the shorter side in pixels before the middle is cropped, as
            torchvision and timm publish it for their networks. If it is smaller than ``size``, the
            borders are black. None: the largest square in the middle is cropped and scaled in one
            step.
        interpolation: How new pixels follow from those of the picture.
        fit: What happens to a picture that is no square. ``"crop"``: its middle is seen.
            ``"squash"``: all of it is seen, and it loses its shape. ``"pad"``: all of it is seen,
            in its shape, with borders.
        padding: The colour of the borders of ``"pad"``: red, green and blue from 0 to 255.

    Raises:
        ValueError: If a value is none of these.
        TypeError: If a number of pixels is no integer.
    """

    size: int = 32
    resize: int | None = None
    interpolation: Interpolation = "bicubic"
    fit: Fit = "crop"
    padding: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "padding", tuple(self.padding))  # of JSON it is a list
        object.__setattr__(self, "size", index(self.size))  # also numpy's integers
        if self.size < 1:
            raise ValueError(f"size is a number of pixels from 1, not {self.size}")
        if self.resize is not None and index(self.resize) < 1:
            raise ValueError(f"resize is None or a number of pixels from 1, not {self.resize}")
        if self.interpolation not in get_args(Interpolation):
            names = ", ".join(get_args(Interpolation))
            raise ValueError(f"interpolation is one of {names}, not {self.interpolation!r}")
        if self.fit not in get_args(Fit):
            raise ValueError(f"fit is one of {', '.join(get_args(Fit))}, not {self.fit!r}")
        if self.resize is not None and self.fit != "crop":
            raise ValueError(f"resize is for fit='crop' alone: set it to None for {self.fit!r}")
        if len(self.padding) != 3 or not all(value in range(256) for value in self.padding):
            raise ValueError(f"padding is three numbers from 0 to 255, not {self.padding}")

    @property
    def decoded(self) -> int:
        """How many pixels each side of a JPEG has at least, once decoded.

        It is twice what is needed or more: then scaling leaves little trace of how it was decoded.
        """
        return max(_DECODED, 2 * max(self.size, self.resize or 0))


CIFAR_FRAME = Frame()  # of `CifarNet`
CIFAR_MEAN = (125, 123, 114)  # the mean colour of CIFAR-10's training images


def cifar_frame(fit: Fit) -> Frame:
    """Makes the frame of `CifarNet` with another fit. Borders have the mean colour of CIFAR-10."""
    return Frame(fit=fit, padding=CIFAR_MEAN) if fit == "pad" else Frame(fit=fit)


def as_frame(frame: Frame | int) -> Frame:
    """Makes ``Frame(size)`` of a number of pixels. A frame stays as it is."""
    return Frame(frame) if isinstance(frame, int) else frame


def in_words(frame: Frame) -> str:
    """Says what is scaled to which size, and how, for people who write it themselves."""
    square = f"{frame.size}x{frame.size}"
    if frame.fit == "squash":
        what = f"all of it to {square}, whatever its shape"
    elif frame.fit == "pad":
        what = f"the longer side to {frame.size}, with borders of {frame.padding} to {square}"
    elif frame.resize is not None:
        borders = " with black borders" if frame.resize < frame.size else ""
        what = f"the shorter side to {frame.resize}, then the middle {square} is cut out{borders}"
    else:
        what = f"the largest square in the middle to {square}"
    if frame.interpolation == "nearest":
        return f"{what}, with nearest neighbours"
    keys = " (a = -0.5)" if frame.interpolation == "bicubic" else ""  # others have -0.75
    return f"{what}, with Pillow's {frame.interpolation} filter{keys} and antialiasing"


def scale(image: "Image.Image", frame: Frame) -> "Image.Image":
    """Scales a picture, and crops it if the frame says so.

    With ``resize``, this is torchvision's ``Resize(resize)`` and ``CenterCrop(size)``, byte for
    byte, up to the borders. Only of pictures that are 64 times as long as wide, or more, a part at
    both ends is cut before.

    Args:
        image: Of mode ``RGB`` or ``F``.
        frame: What the network sees.

    Returns:
        The picture, whose sides have at most ``size`` pixels. `fill` adds the borders.
    """
    from PIL import Image, ImageOps

    size, method = frame.size, Image.Resampling[frame.interpolation.upper()]
    if frame.fit == "squash":
        return image.resize((size, size), method)
    if frame.fit == "pad":
        longer = max(image.size)
        width, height = (max(1, round(size * side / longer)) for side in image.size)
        return image.resize((width, height), method)
    if frame.resize is None:
        return ImageOps.fit(image, (size, size), method)
    image = _cut_ends(image)
    shorter = min(image.size)
    width, height = (int(frame.resize * side / shorter) for side in image.size)
    left, top = (max(0, round((side - size) / 2)) for side in (width, height))
    right, bottom = min(left + size, width), min(top + size, height)
    return image.resize((width, height), method).crop((left, top, right, bottom))


def _cut_ends(image: "Image.Image") -> "Image.Image":
    """Cuts the same from both ends of a very long picture: whole, it could fill the memory."""
    width, height = image.size
    cut = max(0, max(image.size) - LONGEST * min(image.size)) // 2
    across, along = (cut, 0) if width > height else (0, cut)
    return image.crop((across, along, width - across, height - along)) if cut else image


def fill(pixels: "NDArray[np.uint8]", frame: Frame) -> "NDArray[np.uint8]":
    """Adds borders to a scaled picture, the same on both sides.

    They have the colour ``padding`` for ``fit="pad"``. Those of a crop that is larger than the
    picture are black, as torchvision makes them.

    Args:
        pixels: ``(height, width, 3)``, of at most ``size`` pixels a side.
        frame: What the network sees.

    Returns:
        ``(size, size, 3)``. Without borders, it is ``pixels``.
    """
    import numpy as np

    size = frame.size
    height, width, _ = pixels.shape
    if (height, width) == (size, size):
        return pixels
    colour = frame.padding if frame.fit == "pad" else (0, 0, 0)
    filled = np.full((size, size, 3), colour, np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    filled[top : top + height, left : left + width] = pixels
    return filled
