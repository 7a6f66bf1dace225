"""Grey images of more than 8 bits: finds the value that is white, one for a whole data set."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cifar_tl.errors import ImageError
from cifar_tl.frame import Frame, scale
from cifar_tl.names import count

INTEGERS, FLOATS = KINDS = ("integers", "floats")
FULL = {INTEGERS: 65535.0, FLOATS: 1.0}  # white by default
_DEPTHS = (255.0, 1023.0, 4095.0, 16383.0, 65535.0)  # 8 to 16 bits
# For each white of floats, the range of the largest value. Resampling goes a little beyond white.
_FLOATS = {1.0: (0.0, 1.1), 255.0: (32.0, 280.0), 65535.0: (4096.0, 72000.0)}
_FEW = 16  # an image with no value above a sixteenth of white may have fewer bits


class DeepImage(NamedTuple):
    """A grey image whose values are not yet scaled to 8 bits."""

    path: str
    kind: str  # one of `KINDS`
    values: NDArray[np.float32]  # (height, width), as scaled
    largest: float  # the largest value in the file
    white: float  # the largest value that the bits of the file allow


def deep_image(path: str, image: Image.Image, bits: int, frame: Frame) -> DeepImage:
    """Makes a `DeepImage` from an open image. ``bits`` is the number of bits of grey in its file.

    Raises:
        ImageError: If values are negative, too large, or not numbers.
    """
    kind = FLOATS if image.mode == "F" else INTEGERS
    values = np.asarray(image, dtype=np.float32)
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= (_DEPTHS[-1] if kind == INTEGERS else 72000):  # nor is NaN
        raise ImageError(
            f"{path} has values from {low:g} to {high:g}, of which nobody can tell which are black "
            "and white: convert it to 8 bits"
        )
    scaled = np.array(scale(Image.fromarray(values), frame))
    white = float(2 ** min(bits, 16) - 1) if kind == INTEGERS else FULL[FLOATS]
    return DeepImage(path, kind, scaled, high, white)


def white_levels(
    images: Sequence[DeepImage], white: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Finds the value that is white, one for all images of a kind.

    Args:
        images: All images of a data set, or the one image that a model is asked about.
        white: For a model: what it takes for white, by kind; may be empty. None for a new data set:
            then white is the smallest of some usual values that is not below any value.

    Returns:
        White by kind, of the kinds that these images have.

    Raises:
        ImageError: If white cannot be known, or an image goes beyond a model's white.
    """
    levels = {}
    for kind in KINDS:
        of_kind = [image for image in images if image.kind == kind]
        if not of_kind:
            continue
        brightest = max(of_kind, key=lambda image: image.largest)
        if white is not None and kind in white:
            levels[kind] = white[kind]
            _check(brightest, white[kind])
        elif kind == FLOATS:
            levels[kind] = _white_of_floats(brightest)
            if white is not None:
                _check(brightest, FULL[FLOATS])
        elif white is None:
            levels[kind] = next(level for level in _DEPTHS if level >= brightest.largest)
        else:
            levels[kind] = max(image.white for image in of_kind)
            _check_depth(brightest, levels[kind])
    return levels


def notes(images: Sequence[DeepImage], levels: Mapping[str, float]) -> list[str]:
    """Returns lines that say what is taken for white in a data set, and what makes it doubtful."""
    lines = [
        f"grey images of more than 8 bits: in all that hold {kind}, {level:g} is taken for white, "
        "and the model remembers it"
        for kind, level in levels.items()
        if level != FULL[kind]
    ]
    for kind, level in levels.items():
        of_kind = [image for image in images if image.kind == kind]
        dark = [image for image in of_kind if image.largest * _FEW <= level]
        if dark:
            lines.append(
                f"{count(len(dark), 'image')} of {len(of_kind):,} that hold {kind}, such as "
                f"{dark[0].path}, have no value above {level / _FEW:.0f}, where {level:g} is "
                "white: if they have fewer bits than the others, convert all to 8 bits"
            )
    return lines


def to_grey(image: DeepImage, level: float) -> NDArray[Any]:
    """Scales an image to 8 bits: ``(height, width)`` uint8, 255 for ``level``."""
    grey: NDArray[Any] = (image.values.clip(0, level) * (255 / level)).round().astype(np.uint8)
    return grey


def _white_of_floats(brightest: DeepImage) -> float:
    for level, (least, most) in _FLOATS.items():
        if least <= brightest.largest <= most:
            return level
    raise ImageError(
        f"the largest floating-point value is {brightest.largest:g}, in {brightest.path}, and "
        "nobody can tell whether 1, 255 or 65535 is white: convert these images to 8 bits"
    )


def _check(brightest: DeepImage, level: float) -> None:
    if brightest.largest > 1.1 * level:
        raise ImageError(
            f"{brightest.path} has values up to {brightest.largest:g}, where {level:g} is white in "
            "what the model was trained on: convert it in the same way, or to 8 bits"
        )


def _check_depth(brightest: DeepImage, level: float) -> None:
    if brightest.largest * _FEW <= level:
        raise ImageError(
            f"{brightest.path} has no value above {brightest.largest:g}, where {level:g} would be "
            "white: whether it is dark or has fewer bits nobody can tell, so convert it to 8 bits"
        )
