"""An image file becomes what the network sees: 32x32 pixels, as a person would see the picture.

Nothing here changes Pillow's settings or the filters of warnings, which belong to the whole
process: files are read in threads, and in programs of others.
"""

import contextlib
import functools
import hashlib
import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, JpegImagePlugin
from torch import Tensor

from cifar_tl.data.examples import SIZE
from cifar_tl.data.metadata import turn, without_metadata
from cifar_tl.data.pictures import deep as deep_images
from cifar_tl.data.pictures.deep import DeepImage
from cifar_tl.data.pictures.find import FORMATS, HEIF_PACKAGE, INSTALL_HEIF
from cifar_tl.errors import ImageError, first_line
from cifar_tl.progress import with_bar

READING_RULES = 2  # counted up when the same file becomes other pixels

_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs")


class ReadImages(NamedTuple):
    """The images of N files."""

    images: Tensor  # (N, 3, 32, 32) uint8
    digests: list[str]  # SHA-256 of each file
    white: dict[str, float]  # what was taken for white; empty if nothing was in question
    notes: list[str]  # what the owner of the files should know
    software: dict[str, str]  # what decoded them, with versions


class _Colours(NamedTuple):
    """An image of 8 bits a colour, or of the upper 8 of 16."""

    path: str
    pixels: NDArray[np.uint8]  # (32, 32, 3)
    halved: bool  # it has 16
    heif: bool


def read_images(
    paths: Sequence[str | Path],
    *,
    white: Mapping[str, float] | None = None,
    progress: bool = False,
) -> ReadImages:
    """Reads N images as `read_image` does, several at a time, all with the same white.

    Args:
        paths: The files.
        white: What a trained model takes for white; by default the images tell, see `white_levels`.
        progress: Show a bar on standard error.

    Raises:
        ImageError: If some cannot be read; the message names all of these.
    """
    images = torch.empty(len(paths), 3, SIZE, SIZE, dtype=torch.uint8)
    digests = [""] * len(paths)
    heif = False

    def read(number: int) -> tuple[int, _Colours | DeepImage] | str | None:
        nonlocal heif
        try:
            content = _read_file(paths[number])
            digests[number] = hashlib.sha256(content).hexdigest()
            picture = _decode(str(paths[number]), content)
        except ImageError as error:
            return str(error)
        if isinstance(picture, DeepImage) or picture.halved:
            return number, picture
        heif = heif or picture.heif
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
    deep = [picture for picture in pictures.values() if isinstance(picture, DeepImage)]
    levels = _levels(list(pictures.values()), white)
    for number, picture in pictures.items():
        images[number] = _to_tensor(picture, levels)
    software = {"pillow": PIL.__version__}  # of whatever distribution: there are several
    if heif:
        software[HEIF_PACKAGE] = import_module(HEIF_PACKAGE).__version__
    return ReadImages(images, digests, levels, deep_images.notes(deep, levels), software)


def read_image(path: str | Path, white: Mapping[str, float] | None = None) -> Tensor:
    """Reads an image file of any size and mode, in one of the documented formats.

    It is turned as its EXIF data says, put on white where it is transparent, scaled so that its
    shape is kept and its shorter side has 32 pixels, and cropped to its middle.

    Args:
        path: The file.
        white: Which value is white in a grey image of more than 8 bits of ``"integers"`` or of
            ``"floats"``: what the model takes for white that is asked about the image. By default
            the largest that the bits of the file allow, or 1.

    Returns:
        ``(3, 32, 32)`` uint8.

    Raises:
        ImageError: If the file is missing, damaged, no image, too large to decode, or has values
            of which nobody can tell which are black and white.
    """
    picture = _decode(str(path), _read_file(path))
    return _to_tensor(picture, _levels([picture], white or {}))


def _read_file(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        link = Path(path).is_symlink()
        what = f"{path} is a link to nowhere" if link else f"there is no file {path}"
        raise ImageError(f"{what}: check the path") from error
    except OSError as error:
        raise ImageError(f"{path} is no readable image ({error.strerror})") from error
    except ValueError as error:  # a name that no file can have
        raise ImageError(f"{path} is no readable image ({error})") from error


def _decode(path: str, content: bytes) -> _Colours | DeepImage:
    try:
        opened = _open(without_metadata(content))
        opened.draft(None, (8 * SIZE, 8 * SIZE))  # decodes a large JPEG smaller, so faster
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and opened.width * opened.height > limit:
            raise Image.DecompressionBombError
        bits = _bits(path, opened)
        image = turn(opened)
        if image.mode == "F" or image.mode.startswith("I"):
            if "transparency" in image.info:
                raise ValueError("grey of more than 8 bits with transparency: convert it to 8 bits")
            return deep_images.deep_image(path, image, bits)
        image = ImageOps.fit(_to_rgb(image), (SIZE, SIZE), Image.Resampling.BICUBIC)
        return _Colours(path, np.array(image), bits > 8, type(opened) is Image.Image)
    except (ImageError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{path} is too large, with too many pixels: scale it down") from error
    except Exception as error:  # damage surfaces as whatever the decoder trips over first
        raise ImageError(f"{path} is no readable image ({first_line(error)})") from error


def _open(content: bytes) -> Image.Image:
    """Opens an image as ``Image.open`` does, which tries more formats and refuses what is large.

    A PostScript file would start another program; a large JPEG is not too large to decode small.
    """
    if content[4:8] == b"ftyp" and any(brand in content[8:40] for brand in _HEIF_BRANDS):
        if find_spec(HEIF_PACKAGE) is None:
            raise ValueError(f"HEIC: {INSTALL_HEIF}")
        heif: Image.Image = import_module(HEIF_PACKAGE).open_heif(io.BytesIO(content)).to_pillow()
        return heif
    _load_plugins()
    for name in FORMATS:
        factory, accept = Image.OPEN.get(name, (None, None))
        accepted = accept(content[:16]) if accept is not None else False
        if isinstance(accepted, str):  # Pillow was built without it
            raise ValueError(accepted)
        if factory is not None and accepted:
            return (_Jpeg if name == "JPEG" else factory)(io.BytesIO(content), "")
    if content[4:8] == b"ftyp" and b"avif" in content[8:40]:
        raise ValueError("AVIF: a newer Pillow reads it")
    raise ValueError(f"none of {', '.join(FORMATS)}")


@functools.cache
def _load_plugins() -> None:
    for name in ("Avif", "Bmp", "Gif", "Jpeg", "Png", "Ppm", "Tiff", "WebP"):
        with contextlib.suppress(ImportError):  # of Pillows that lack it
            import_module(f"PIL.{name}ImagePlugin")


class _Jpeg(JpegImagePlugin.JpegImageFile):
    """A JPEG, or the first image of a file with several, in silence."""

    def _read_dpi_from_exif(self) -> None:
        """Does not look for what nobody asks for, and warns of no damage found there."""


def _bits(path: str, image: Image.Image) -> int:
    """Finds how many bits a colour has by the file, and refuses what Pillow reads wrongly."""
    if image.format == "TIFF":
        tags: Mapping[int, Any] = image.tag_v2  # type: ignore[attr-defined]
        per_sample, sample_format = tags.get(258, (1,)), tags.get(339, (1,))
        bits = int(max(per_sample))
        wrong = {
            "planes of 16 bits": bits > 8 and len(per_sample) > 1 and tags.get(284, 1) == 2,
            "zero for white": bits > 8 and tags.get(262) == 0,
            "signed numbers of 8 bits": bits == 8 and 2 in sample_format,
            "whole numbers of 32 bits": bits > 16 and 3 not in sample_format,
        }
        if found := [what for what, is_so in wrong.items() if is_so]:
            raise ImageError(f"{path} has {found[0]}, which is not read: convert it to 8 bits")
        return bits
    if image.format == "PNG":
        return 16 if any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())) else 8
    return 16 if image.mode.startswith("I") else 8


def _levels(
    pictures: Sequence[_Colours | DeepImage], white: Mapping[str, float] | None
) -> dict[str, float]:
    """Finds which value is white; and refuses colours of 16 bits that do not use the upper ones."""
    halved = [p for p in pictures if isinstance(p, _Colours) and p.halved]
    if halved and max(int(picture.pixels.max()) for picture in halved) < 64:
        raise ImageError(
            f"{halved[0].path}, and {len(halved) - 1} more, have 16 bits a colour and use at most "
            "14 of them, so that few levels would be left: convert them to 8 bits"
        )
    deep = [picture for picture in pictures if isinstance(picture, DeepImage)]
    return deep_images.white_levels(deep, white)


def _to_tensor(picture: _Colours | DeepImage, levels: Mapping[str, float]) -> Tensor:
    """Makes ``(3, 32, 32)`` uint8 of a picture."""
    if isinstance(picture, _Colours):
        return torch.from_numpy(picture.pixels).permute(2, 0, 1).contiguous()
    grey = deep_images.to_grey(picture, levels[picture.kind])
    return torch.from_numpy(grey).expand(3, SIZE, SIZE).contiguous()


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
