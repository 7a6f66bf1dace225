"""An image file becomes what the network sees: 32x32 pixels, as a person would see the picture.

Nothing here changes what belongs to the whole process, Pillow's settings and the filters of
warnings: files are read in threads, and in programs of others.
"""

import hashlib
import io
import re
import struct
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, JpegImagePlugin
from torch import Tensor

from cifar_tl.data.examples import SIZE
from cifar_tl.data.find_images import FORMATS, HEIF_PACKAGE, INSTALL_HEIF
from cifar_tl.errors import ImageError, first_line
from cifar_tl.progress import with_bar

READING_RULES = 2  # counted up when the same file becomes other pixels

# Grey images of more than 8 bits do not say which value is white: as many bits as the file has, or
# 1, unless all images of a data set together tell (`white_levels`).
WHITE: dict[str, float] = {"integers": 65535.0, "floats": 1.0}
_POSSIBLE_WHITE: dict[str, tuple[float, ...]] = {
    "integers": (255.0, 1023.0, 4095.0, 16383.0, 65535.0),  # 8 to 16 bits
    "floats": (1.0, 255.0, 65535.0),
}

_ORIENTATION = 274  # the EXIF tag that says how to turn the image, with a number of these
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ReadImages(NamedTuple):
    """The images of N files."""

    images: Tensor  # (N, 3, 32, 32) uint8
    digests: list[str]  # SHA-256 of each file
    white: dict[str, float]  # what was taken for white; empty if nothing was in question


class _Picture(NamedTuple):
    """A decoded file of 32x32 pixels: colours, or deep greys that are not yet scaled."""

    pixels: NDArray[Any]  # (32, 32, 3) uint8, or (32, 32) float32
    deep: str | None = None
    largest: float = 255.0  # value in the whole file
    halved: bool = False  # colours with 16 bits, of which the upper 8 are here


def read_images(paths: Sequence[str | Path], *, progress: bool = False) -> ReadImages:
    """Reads N images as `read_image` does, several at a time, all with the same white.

    Raises:
        ImageError: If some cannot be read; the message names all of these.
    """
    images = torch.empty(len(paths), 3, SIZE, SIZE, dtype=torch.uint8)
    digests = [""] * len(paths)

    def read(number: int) -> tuple[int, _Picture] | str | None:
        try:
            content = _read_file(paths[number])
            digests[number] = hashlib.sha256(content).hexdigest()
            picture = _decode(paths[number], content)
        except ImageError as error:
            return str(error)
        if picture.deep or picture.halved:
            return number, picture
        images[number] = torch.from_numpy(picture.pixels).permute(2, 0, 1)
        return None

    with ThreadPoolExecutor() as executor:
        try:
            results = executor.map(read, range(len(paths)))
            bar = "images" if progress else None
            special = [found for found in with_bar(results, bar, len(paths)) if found is not None]
        except BaseException:  # Ctrl-C must not wait for all of them
            executor.shutdown(cancel_futures=True)
            raise
    if damaged := [found for found in special if isinstance(found, str)]:
        raise ImageError(
            f"{len(damaged)} of {len(paths):,} images cannot be read, repair, replace or delete "
            f"them: {'; '.join(damaged)}"
        )
    pictures = dict(found for found in special if not isinstance(found, str))
    white = _white_levels(paths, pictures)
    for number, picture in pictures.items():
        images[number] = _to_tensor(paths[number], picture, {**WHITE, **white})
    return ReadImages(images, digests, white)


def read_image(path: str | Path, white: Mapping[str, float] = WHITE) -> Tensor:
    """Reads an image file of any size and mode, in one of the documented formats.

    It is turned as its EXIF data says, put on white where it is transparent, scaled so that its
    shape is kept and its shorter side has 32 pixels, and cropped to its middle.

    Args:
        path: The file.
        white: Which value is white in a grey image of more than 8 bits of ``"integers"`` or of
            ``"floats"``: what the model was trained with.

    Returns:
        ``(3, 32, 32)`` uint8.

    Raises:
        ImageError: If the file is missing, damaged, no image, too large to decode, or has values
            that are not between black and white.
    """
    return _to_tensor(path, _decode(path, _read_file(path)), {**WHITE, **white})


def _read_file(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        link = Path(path).is_symlink()
        what = f"{path} is a link to nowhere" if link else f"there is no file {path}"
        raise ImageError(f"{what}: check the path") from error
    except OSError as error:
        raise ImageError(f"{path} is no readable image ({error.strerror})") from error


def _decode(path: str | Path, content: bytes) -> _Picture:
    try:
        opened = _open(content)
        opened.draft(None, (8 * SIZE, 8 * SIZE))  # decodes a large JPEG smaller, so faster
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and opened.width * opened.height > 2 * limit:  # as Pillow does, before
            raise ImageError(
                f"{path} is too large ({opened.width:,} x {opened.height:,} pixels): scale it down"
            )
        halved = any(";16" in str(tile[3]) for tile in getattr(opened, "tile", ()))
        image = _turn(opened)
        if image.mode == "F" or image.mode.startswith("I"):  # more than 8 bits of grey
            return _deep_picture(path, image)
        image = ImageOps.fit(_to_rgb(image), (SIZE, SIZE), Image.Resampling.BICUBIC)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # damage surfaces as whatever the decoder trips over first
        raise ImageError(f"{path} is no readable image ({first_line(error)})") from error
    pixels = np.array(image)
    return _Picture(pixels, largest=float(pixels.max()), halved=halved)


class _Jpeg(JpegImagePlugin.JpegImageFile):
    """A JPEG, or the first image of a file with several, in silence."""

    def _read_dpi_from_exif(self) -> None:
        """Does not look for what nobody asks for, and warns of no damage found there."""


def _open(content: bytes) -> Image.Image:
    """Opens an image as ``Image.open`` does, which tries more formats and refuses what is large.

    A PostScript file would start another program; a large JPEG is not too large to decode small.
    """
    if content[4:8] == b"ftyp" and any(brand in content[8:40] for brand in (b"heic", b"heix")):
        if find_spec(HEIF_PACKAGE) is None:
            raise ValueError(f"HEIC: {INSTALL_HEIF}")
        heif: Image.Image = import_module(HEIF_PACKAGE).open_heif(io.BytesIO(content)).to_pillow()
        return heif
    Image.init()
    for name in FORMATS:
        factory, accept = Image.OPEN.get(name, (None, None))
        accepted = accept(content[:16]) if accept is not None else False
        if isinstance(accepted, str):  # Pillow was built without it
            raise ValueError(accepted)
        if factory is not None and accepted:
            return (_Jpeg if name == "JPEG" else factory)(io.BytesIO(content), "")
    raise ValueError(f"none of {', '.join(name for name in FORMATS if name in Image.OPEN)}")


def _turn(image: Image.Image) -> Image.Image:
    """Turns an image as its metadata say; Pillow's function warns of what is damaged in them."""
    if image.format == "TIFF":
        return ImageOps.exif_transpose(image)
    image.load()  # a PNG may say it at its end
    orientation = 1
    if exif := image.info.get("exif"):
        orientation = _orientation(exif)
    elif profile := image.info.get("Raw profile type exif"):  # as ImageMagick writes it
        orientation = _orientation(bytes.fromhex("".join(profile.split("\n")[3:])))
    elif found := re.search(rb'tiff:Orientation(?:="|>)([1-8])', image.info.get("xmp", b"")):
        orientation = int(found[1])
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _orientation(exif: bytes) -> int:
    """Reads the orientation in EXIF data, 1 where it is not to be found."""
    data = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(data[:2], "<")
    try:
        (start,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, start)
        for place in range(start + 2, start + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", data, place)
            if tag == _ORIENTATION:
                return int(value)
    except struct.error:
        pass
    return 1


def _deep_picture(path: str | Path, image: Image.Image) -> _Picture:
    """Makes a picture of an image with more than 8 bits of grey."""
    deep: str = "floats" if image.mode == "F" else "integers"
    values = np.asarray(image, dtype=np.float32)
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= _POSSIBLE_WHITE[deep][-1]:  # NaN is not, either
        raise ImageError(
            f"{path} has values from {low:g} to {high:g}, of which nobody can tell which are black "
            "and white: convert it to 8 bits"
        )
    fitted = ImageOps.fit(Image.fromarray(values), (SIZE, SIZE), Image.Resampling.BICUBIC)
    return _Picture(np.array(fitted), deep, high)


def _white_levels(
    paths: Sequence[str | Path], pictures: Mapping[int, _Picture]
) -> dict[str, float]:
    """Finds which value is white, by the largest of all images: one rule for a data set.

    Raises:
        ImageError: If images with 16 bits a colour do not use the upper ones, which alone are read.
    """
    halved = [number for number, picture in pictures.items() if picture.halved]
    if halved and max(pictures[number].largest for number in halved) < 64:
        raise ImageError(
            f"{len(halved)} images such as {paths[halved[0]]} have 16 bits a colour and use at "
            "most 14 of them, so that few levels would be left: convert them to 8 bits"
        )
    white: dict[str, float] = {}
    for deep, possible in _POSSIBLE_WHITE.items():
        if largest := [picture.largest for picture in pictures.values() if picture.deep == deep]:
            white[deep] = next(level for level in possible if level >= max(largest))
    return white


def _to_tensor(path: str | Path, picture: _Picture, white: Mapping[str, float]) -> Tensor:
    """Makes ``(3, 32, 32)`` uint8 of a picture."""
    if picture.deep is None:
        return torch.from_numpy(picture.pixels).permute(2, 0, 1).contiguous()
    level = white[picture.deep]
    if picture.largest > level:
        raise ImageError(
            f"{path} has values up to {picture.largest:g}, where {level:g} is white in what the "
            "model was trained on: convert it in the same way, or to 8 bits"
        )
    grey = (picture.pixels.clip(0, level) * (255 / level)).round().astype(np.uint8)
    return torch.from_numpy(grey).expand(3, SIZE, SIZE).contiguous()


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
