"""Reads image files: the square that a network sees, as a person would see the picture.

Files are read in several threads, and also in programs of other people. So nothing here changes
Pillow's settings or the filters of warnings: both belong to the whole process.
"""

import atexit
import contextlib
import functools
import hashlib
import io
import os
import statistics
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, JpegImagePlugin
from torch import Tensor

from cifar_tl.data.pictures import deep as deep_images
from cifar_tl.data.pictures.deep import DeepImage
from cifar_tl.data.pictures.find import FORMATS, HEIF_PACKAGE, INSTALL_HEIF
from cifar_tl.errors import ImageError, first_line
from cifar_tl.frame import CIFAR_FRAME, Frame, as_frame, fill, scale
from cifar_tl.progress import with_bar

Result = TypeVar("Result")
READING_RULES = 2  # counted up when the same file becomes other pixels
THREADS = min(32, (os.cpu_count() or 1) + 4)  # that read at a time

_BIG_TIFF = b"MM\0+"  # the beginning of a BigTIFF of the other byte order
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs")


class ReadImages(NamedTuple):
    """The images of N files."""

    images: Tensor  # (N, 3, size, size) uint8
    digests: list[str]  # SHA-256 of each file
    white: dict[str, float]  # see `white_levels`
    notes: list[str]  # what the owner of the files should know
    software: dict[str, str]  # what decoded them: names and versions
    shorter_side: int  # in pixels, the median over the files; 0: not known


class _Colours(NamedTuple):
    """An image with 8 bits a colour."""

    path: str
    pixels: NDArray[np.uint8]  # (height, width, 3), as scaled
    halved: bool  # the file has 16 bits a colour; these are the upper 8
    heif: bool
    shorter_side: int  # of the file, in pixels


def read_images(
    paths: Sequence[str | Path],
    frame: Frame | int = CIFAR_FRAME,
    *,
    white: Mapping[str, float] | None = None,
    progress: bool = False,
) -> ReadImages:
    """Reads N images as `read_image` does, but with one white for all of them.

    Args:
        paths: The files.
        frame: The square that the network sees, or the size of it.
        white: What a trained model takes for white. Default: the images tell, see `white_levels`.
        progress: Show a bar on standard error.

    Raises:
        ImageError: If some images cannot be read. The message names all of them.
    """
    frame = as_frame(frame)
    images = np.empty((len(paths), 3, frame.size, frame.size), np.uint8)
    digests, sides = [""] * len(paths), [0]
    heif = False

    def read(number: int) -> tuple[int, _Colours | DeepImage] | str | None:
        nonlocal heif
        try:
            content = _read_file(paths[number])
            digests[number] = hashlib.sha256(content).hexdigest()
            picture = _decode(str(paths[number]), content, frame)
        except ImageError as error:
            return str(error)
        if isinstance(picture, DeepImage) or picture.halved:
            return number, picture
        heif = heif or picture.heif
        sides.append(picture.shorter_side)
        images[number] = _to_pixels(picture, {}, frame)
        return None

    total = len(paths)
    with contextlib.closing(_in_threads(read, total, total)) as read_all:
        in_order = with_bar(read_all, "images" if progress else None, total)
        special = [found for found in in_order if found is not None]
    if damaged := [found for found in special if isinstance(found, str)]:
        raise ImageError(
            f"{len(damaged)} of {total:,} images cannot be read, repair, replace or delete "
            f"them: {'; '.join(damaged)}"
        )
    pictures = dict(found for found in special if not isinstance(found, str))
    deep = [picture for picture in pictures.values() if isinstance(picture, DeepImage)]
    levels = _levels(list(pictures.values()), white)
    for number, picture in pictures.items():
        images[number] = _to_pixels(picture, levels, frame)
    software = {"pillow": PIL.__version__}  # of whatever distribution: there are several
    if heif:
        software[HEIF_PACKAGE] = import_module(HEIF_PACKAGE).__version__
    notes = deep_images.notes(deep, levels)
    side = int(statistics.median(sides[1:] or sides))
    return ReadImages(torch.from_numpy(images), digests, levels, notes, software, side)


def stream_images(
    paths: Sequence[str | Path],
    frame: Frame | int,
    *,
    white: Mapping[str, float],
    batch_size: int = 32,
    progress: str | None = None,
) -> Generator[Tensor, None, None]:
    """Reads images that `read_images` has read before, a batch at a time, in their order.

    Threads read two batches ahead, and another image each. So memory does not depend on the number
    of files. Closing the generator ends the threads: `contextlib.closing` does it whatever happens.

    Args:
        paths: N files.
        frame: The square that the network sees, or the size of it.
        white: What `read_images` took for white, or a trained model takes for it.
        batch_size: The number of images in a batch. The last may have fewer.
        progress: Show a bar with this text on standard error.

    Yields:
        ``(batch_size, 3, size, size)`` uint8.

    Raises:
        ImageError: If an image cannot be read. The message names it. The batches before it come
            first.
    """
    frame = as_frame(frame)
    if batch_size < 1:
        raise ValueError(f"a batch has at least one image, not {batch_size}")

    def read(number: int) -> NDArray[np.uint8] | ImageError:
        path = str(paths[number])
        try:
            picture = _decode(path, _read_file(path), frame)
            deep = [picture] if isinstance(picture, DeepImage) else []
            return _to_pixels(picture, deep_images.white_levels(deep, white), frame)
        except ImageError as error:  # is raised in its place: so it is always the first
            return error

    batch: list[NDArray[np.uint8]] = []
    with contextlib.closing(_in_threads(read, len(paths), 2 * batch_size + THREADS)) as pictures:
        for picture in with_bar(pictures, progress, len(paths)):
            if isinstance(picture, ImageError):
                raise picture
            batch.append(picture)
            if len(batch) == batch_size:
                yield torch.from_numpy(np.stack(batch))
                batch = []
    if batch:
        yield torch.from_numpy(np.stack(batch))


def _in_threads(
    function: Callable[[int], Result], total: int, ahead: int
) -> Generator[Result, None, None]:
    """Calls a function with each number below ``total``, several at a time.

    An executor can hang for ever at Ctrl-C: the interrupt may come while the main thread holds a
    lock of the executor. Here the main thread only waits for a queue that is written in C.

    The function should not use torch: in each thread, torch would start threads of its own.

    Args:
        function: What is called, in threads.
        total: How often.
        ahead: How many results there can be, finished or not, that have not been taken.

    Yields:
        The results, in the order of the numbers.
    """
    numbers: SimpleQueue[int | None] = SimpleQueue()  # None: there are no more
    done: SimpleQueue[tuple[int, Result] | BaseException] = SimpleQueue()

    def work() -> None:
        try:
            while (number := numbers.get()) is not None:
                done.put((number, function(number)))
            numbers.put(None)  # for the other threads
        except BaseException as error:  # is raised in the main thread
            done.put(error)

    def stop() -> None:
        with contextlib.suppress(Empty):
            while True:
                numbers.get_nowait()
        numbers.put(None)
        for thread in threads:
            if thread.is_alive():  # or it was interrupted before it had started
                thread.join()

    results: dict[int, Result] = {}
    threads: list[threading.Thread] = []
    atexit.register(stop)  # at the end of a program that did not close this generator
    try:
        for number in range(min(total, ahead)):
            numbers.put(number)
        for _ in range(min(total, ahead, THREADS)):
            thread = threading.Thread(target=work, daemon=True)
            threads.append(thread)
            thread.start()
        for number in range(total):
            while number not in results:
                found = done.get()
                if isinstance(found, BaseException):
                    raise found
                results[found[0]] = found[1]
            yield results.pop(number)
            if number + ahead < total:
                numbers.put(number + ahead)
    finally:
        stop()
        atexit.unregister(stop)


def read_image(
    path: str | Path, white: Mapping[str, float] | None = None, frame: Frame | int = CIFAR_FRAME
) -> Tensor:
    """Reads an image file of any size. docs/data.md lists the formats.

    The image is turned as its EXIF data says. White shows where it is transparent. It is scaled to
    the frame: by default it keeps its shape, its shorter side has 32 pixels, and its middle is
    seen.

    Args:
        path: The file.
        white: For grey images with more than 8 bits: the value that is white, by kind of values,
            ``{"integers": 4095}`` or ``{"floats": 1}``. Take that of the model which is asked about
            the image, `CifarNet.white`. Default: the largest value that the bits of the file allow,
            or 1 for floats.
        frame: The square that the network sees, or the size of it.

    Returns:
        ``(3, size, size)`` uint8.

    Raises:
        ImageError: If the file is missing, damaged, no image, or too large to decode, or if nobody
            can tell which of its values are black and white.
    """
    frame = as_frame(frame)
    picture = _decode(str(path), _read_file(path), frame)
    return torch.from_numpy(_to_pixels(picture, _levels([picture], white or {}), frame))


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


def _decode(path: str, content: bytes, frame: Frame) -> _Colours | DeepImage:
    try:
        opened = _open(content)
        shorter_side = min(opened.size)
        opened.draft(None, (frame.decoded,) * 2)  # a large JPEG is decoded smaller, so faster
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and opened.width * opened.height > limit:
            raise Image.DecompressionBombError
        bits = _bits(path, opened)
        image = _turn(opened)
        if image.mode == "F" or image.mode.startswith("I"):
            if "transparency" in image.info:
                raise ValueError("grey of more than 8 bits with transparency: convert it to 8 bits")
            return deep_images.deep_image(path, image, bits, frame)
        scaled = np.array(scale(_to_rgb(image), frame))
        heif = type(opened) is Image.Image
        return _Colours(path, scaled, bits > 8, heif, shorter_side)
    except (ImageError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{path} is too large, with too many pixels: scale it down") from error
    except Exception as error:  # damage can raise anything
        reason = first_line(error)
        if content.startswith(_BIG_TIFF):  # good files, too
            reason = "Pillow reads no BigTIFF of this byte order: save it as TIFF or PNG"
        raise ImageError(f"{path} is no readable image ({reason})") from error


def _open(content: bytes) -> Image.Image:
    """Opens an image without ``Image.open``.

    ``Image.open`` also tries formats such as PostScript, which start other programs. And it refuses
    a JPEG for its size, although it would be decoded small.
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
            if name == "JPEG":  # of a file with several images, the first alone
                factory = JpegImagePlugin.JpegImageFile
            return factory(io.BytesIO(content), "")
    if content[4:8] == b"ftyp" and b"avif" in content[8:40]:
        raise ValueError("AVIF: a newer Pillow reads it")
    raise ValueError(f"none of {', '.join(FORMATS)}")


@functools.cache
def _load_plugins() -> None:
    for name in ("Avif", "Bmp", "Gif", "Jpeg", "Png", "Ppm", "Tiff", "WebP"):
        with contextlib.suppress(ImportError):  # of Pillows that lack it
            import_module(f"PIL.{name}ImagePlugin")


def _turn(image: Image.Image) -> Image.Image:
    """Turns an image in place, as its EXIF data says. Damaged EXIF data are ignored."""
    image.load()  # here, damaged pixels are an error
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:  # damage can raise anything
        pass
    return image


def _bits(path: str, image: Image.Image) -> int:
    """Returns the number of bits of a colour. Refuses TIFF files that Pillow reads wrongly."""
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
    """Finds the values that are white, see `white_levels`. Refuses dark colours of 16 bits."""
    halved = [p for p in pictures if isinstance(p, _Colours) and p.halved]
    if halved and max(int(picture.pixels.max()) for picture in halved) < 64:
        raise ImageError(
            f"{halved[0].path}, and {len(halved) - 1} more, have 16 bits a colour and use at most "
            "14 of them, so that few levels would be left: convert them to 8 bits"
        )
    deep = [picture for picture in pictures if isinstance(picture, DeepImage)]
    return deep_images.white_levels(deep, white)


def _to_pixels(
    picture: _Colours | DeepImage, levels: Mapping[str, float], frame: Frame
) -> NDArray[np.uint8]:
    """Converts a picture to ``(3, size, size)``. Borders come last: their colour has 8 bits."""
    if isinstance(picture, _Colours):
        pixels = picture.pixels
    else:
        pixels = deep_images.to_grey(picture, levels[picture.kind])[..., None].repeat(3, axis=2)
    return np.ascontiguousarray(fill(pixels, frame).transpose(2, 0, 1))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")  # a copy takes memory
