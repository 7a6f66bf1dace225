"""Reads pictures: the square that a network sees, as a person would see the picture.

Files are read in several threads, and also in programs of other people. So nothing here changes
Pillow's settings or the filters of warnings: both belong to the whole process.
"""

import atexit
import contextlib
import functools
import hashlib
import importlib.metadata
import io
import statistics
import struct
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Any, NamedTuple, TypeVar

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, JpegImagePlugin
from torch import Tensor

from cifar_tl.cores import cores
from cifar_tl.data.pictures import deep as deep_images
from cifar_tl.data.pictures.deep import DeepImage
from cifar_tl.data.pictures.find import FORMATS, HEIF_PACKAGE, INSTALL_HEIF
from cifar_tl.data.pictures.kept import Decoded, keeping, state_of
from cifar_tl.data.pictures.libtiff import damage_found
from cifar_tl.disk import LARGEST_PICTURE, read_file
from cifar_tl.errors import ImageError, first_line, may_be_whole
from cifar_tl.frame import CIFAR_FRAME, Frame, as_frame, fill, scale
from cifar_tl.names import count
from cifar_tl.progress import with_bar

Result = TypeVar("Result")
READING_RULES = 2  # counted up when the same file becomes other pixels
THREADS = min(32, cores() + 4)  # that read at a time

_AHEAD = 64  # images that `read_each` has ready
_NO_NAME = "the picture"  # what errors call one without a name
_UNREADABLE = (
    "it is damaged, cut off, or of a kind that is not read: save it as PNG, or download it again"
)
# How errors begin that help nobody: those of Pillow, then those of libheif.
_UNHELPFUL = (
    *("decoder error", "unknown pixel mode", "cannot load this", "not identified by"),
    *("could not create decoder", "invalid literal"),
    *("Unsupported f", "Invalid input:", "Memory allocation error:", "Decoder plugin"),
)
# How Pillow stumbles over values that it did not check.
_STUMBLED = (LookupError, ArithmeticError, TypeError, AttributeError, UnicodeError, struct.error)
_ROW = 16  # pixels, see `_check_size`
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs")


class ReadImages(NamedTuple):
    """The images of N files."""

    images: Tensor  # (N, 3, size, size) uint8
    digests: list[str]  # SHA-256 of each file
    white: dict[str, float]  # see `white_levels`
    notes: list[str]  # what the owner of the files should know
    software: dict[str, str]  # what decoded them: names and versions
    shorter_side: int  # in pixels, the median over the files; 0: not known
    seconds_before: float  # of earlier calls, to decode the pictures that were kept


class _Colours(NamedTuple):
    """An image with 8 bits a colour."""

    path: str
    pixels: NDArray[np.uint8]  # (height, width, 3), as scaled
    halved: bool  # the file has 16 bits a colour; these are the upper 8
    shorter_side: int  # of the file, in pixels


def read_images(
    paths: Sequence[str | Path],
    frame: Frame | int = CIFAR_FRAME,
    *,
    white: Mapping[str, float] | None = None,
    kept: str | Path | None = None,
    progress: bool = False,
) -> ReadImages:
    """Reads N images as `read_image` does, but with one white for all of them.

    Args:
        paths: The files.
        frame: The square that the network sees, or the size of it.
        white: What a trained model takes for white. Default: the images tell, see `white_levels`.
        kept: A file that keeps what was read. Files that did not change since then are not read
            again. Images of more than 8 bits always are. None: nothing is kept.
        progress: Show a bar on standard error.

    Raises:
        ImageError: If some images cannot be read. The message names all of them.

    Warns:
        RunWarning: If nothing can be kept.
    """
    frame = as_frame(frame)
    images = np.empty((len(paths), 3, frame.size, frame.size), np.uint8)
    digests, ordinary = [""] * len(paths), dict[int, Decoded]()

    def read(number: int) -> tuple[int, _Colours | DeepImage] | str | None:
        path = str(Path(paths[number]).absolute())
        state = state_of(path) if kept is not None else None
        found = before.get(path)
        if found is None or found.state != state:
            now_read[path] = None
            try:
                content = _read_file(paths[number])
                digests[number] = hashlib.sha256(content).hexdigest()
                picture = _decode(str(paths[number]), content, frame)
            except ImageError as error:
                if error.__cause__ is not None and may_be_whole(error.__cause__):
                    raise error.__cause__ from None  # the system failed: the others may fail, too
                return str(error)
            if isinstance(picture, DeepImage) or picture.halved:
                return number, picture
            images[number], side = _to_pixels(picture, {}, frame), picture.shorter_side
            found = Decoded(state, digests[number], side, _is_heif(content), images[number])
            now_read[path] = found
        images[number], digests[number] = found.pixels, found.digest
        ordinary[number] = found
        return None

    total = len(paths)
    with (
        keeping(kept, frame.size, _what_decides(frame) if kept else {}) as (before, now_read),
        contextlib.closing(_in_threads(read, total, total)) as read_all,
    ):
        in_order = with_bar(read_all, "images" if progress else None, total)
        special = [found for found in in_order if found is not None]
        if damaged := [found for found in special if isinstance(found, str)]:
            raise ImageError(
                f"{len(damaged)} of {count(total, 'image')} cannot be read, repair, replace or "
                f"delete them: {'; '.join(damaged)}"
            )
    pictures = dict(found for found in special if not isinstance(found, str))
    deep = [picture for picture in pictures.values() if isinstance(picture, DeepImage)]
    levels = _levels(list(pictures.values()), white)
    for number, picture in pictures.items():
        images[number] = _to_pixels(picture, levels, frame)
    software = {"pillow": PIL.__version__}  # of whatever distribution: there are several
    if any(found.is_heif for found in ordinary.values()):
        software[HEIF_PACKAGE] = import_module(HEIF_PACKAGE).__version__
    notes = deep_images.notes(deep, levels)
    side = int(statistics.median([found.shorter_side for found in ordinary.values()] or [0]))
    seconds = sum(found.seconds for found in ordinary.values())
    return ReadImages(torch.from_numpy(images), digests, levels, notes, software, side, seconds)


def _what_decides(frame: Frame) -> dict[str, Any]:
    """Lists what decides the pixels of a file, apart from the file."""
    heif = None
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        heif = importlib.metadata.version(HEIF_PACKAGE)
    return {
        "reading_rules": READING_RULES,
        "frame": asdict(frame),
        "pillow": PIL.__version__,
        HEIF_PACKAGE: heif,
    }


def stream_images(
    paths: Sequence[str | Path],
    frame: Frame | int,
    *,
    white: Mapping[str, float],
    batch_size: int = 32,
) -> Generator[Tensor, None, None]:
    """Reads images that `read_images` has read before, a batch at a time, in their order.

    Threads read two batches ahead, and another image each. So memory does not depend on the number
    of files. Closing the generator ends the threads: `contextlib.closing` does it whatever happens.

    Args:
        paths: N files.
        frame: The square that the network sees, or the size of it.
        white: What `read_images` took for white, or a trained model takes for it.
        batch_size: The number of images in a batch. The last may have fewer.

    Yields:
        ``(batch_size, 3, size, size)`` uint8.

    Raises:
        ImageError: If an image cannot be read. The message names it. The batches before it come
            first.
    """
    frame = as_frame(frame)

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
        for picture in pictures:
            if isinstance(picture, ImageError):
                raise picture
            batch.append(picture)
            if len(batch) == batch_size:
                yield torch.from_numpy(np.stack(batch))
                batch = []
    if batch:
        yield torch.from_numpy(np.stack(batch))


def read_each(
    paths: Sequence[str | Path],
    white: Mapping[str, float] | None = None,
    frame: Frame | int = CIFAR_FRAME,
) -> Generator[Tensor | ImageError, None, None]:
    """Reads each file as `read_image` does, in threads, in their order.

    Threads read some images ahead. So memory does not depend on the number of files. Closing the
    generator ends the threads: `contextlib.closing` does it whatever happens.

    Args:
        paths: N files.
        white: As for `read_image`.
        frame: The square that the network sees, or the size of it.

    Yields:
        ``(3, size, size)`` uint8. For a file that cannot be read: the error, which names it.
    """
    if isinstance(paths, (str, bytes, Path)):
        raise TypeError("paths must be a list of paths, not one")
    frame = as_frame(frame)

    def read(number: int) -> NDArray[np.uint8] | ImageError:
        path = str(paths[number])
        try:
            picture = _decode(path, _read_file(path), frame)
            return _to_pixels(picture, _levels([picture], white or {}), frame)
        except ImageError as error:
            return error

    with contextlib.closing(_in_threads(read, len(paths), _AHEAD + THREADS)) as pictures:
        for picture in pictures:
            yield picture if isinstance(picture, ImageError) else torch.from_numpy(picture)


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
    source: str | Path | bytes | bytearray | IO[bytes] | Image.Image,
    white: Mapping[str, float] | None = None,
    frame: Frame | int = CIFAR_FRAME,
) -> Tensor:
    """Reads a picture of any size. docs/data.md lists the formats.

    The picture is turned as its EXIF data says. White shows where it is transparent. It is scaled
    to the frame: by default it keeps its shape, its shorter side has 32 pixels, and its middle is
    seen.

    Args:
        source: The path of an image file, or its content: bytes, or a file that is open in binary
            mode and is read from where it stands. Or an image of Pillow, which stays as it is.
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
        TypeError: If the source is none of these.
    """
    frame = as_frame(frame)
    name, content = _content(source)
    picture = _decode(name, content, frame)
    return torch.from_numpy(_to_pixels(picture, _levels([picture], white or {}), frame))


def _content(
    source: str | Path | bytes | bytearray | IO[bytes] | Image.Image,
) -> tuple[str, bytes | Image.Image]:
    """Returns what errors call a picture, and its content."""
    if isinstance(source, (str, Path)):
        return str(source), _read_file(source)
    if isinstance(source, (bytes, bytearray)):
        return _NO_NAME, bytes(source)
    is_image = isinstance(source, Image.Image)
    name = getattr(source, "filename" if is_image else "name", None)
    name = name if isinstance(name, str) and name else _NO_NAME
    if isinstance(source, Image.Image):
        return name, source
    try:
        content = source.read()
    except AttributeError as error:
        raise TypeError(f"no picture is a {type(source).__name__}: give a path or bytes") from error
    except OSError as error:
        raise ImageError(f"{name} is no readable image ({error.strerror or error})") from error
    if not isinstance(content, bytes):
        raise TypeError(f"{name} is open in text mode: open it in binary mode")
    return name, content


def _read_file(path: str | Path) -> bytes:
    try:
        return read_file(path, LARGEST_PICTURE)
    except FileNotFoundError as error:
        link = Path(path).is_symlink()
        what = f"{path} is a link to nowhere" if link else f"there is no file {path}"
        raise ImageError(f"{what}: check the path") from error
    except OSError as error:
        what = "cannot be read" if may_be_whole(error) else "is no readable image"
        raise ImageError(f"{path} {what} ({error.strerror})") from error
    except ValueError as error:  # a name that no file can have
        raise ImageError(f"{path} is no readable image ({error})") from error


def _decode(name: str, content: bytes | Image.Image, frame: Frame) -> _Colours | DeepImage:
    """Decodes the content of a file, or takes an image that somebody has opened."""
    given = isinstance(content, Image.Image)
    try:
        opened = content if isinstance(content, Image.Image) else _open(content)
        shorter_side = min(opened.size)
        if shorter_side == 0:
            raise ValueError("it has no pixels")
        if not given:
            opened.draft(None, (frame.decoded,) * 2)  # a large JPEG is decoded smaller, so faster
        _check_size(opened.size)
        bits = _bits(name, opened)
        image = _turn(opened, in_place=not given)
        if image.mode == "F" or image.mode.startswith("I"):
            if "transparency" in image.info:
                raise ValueError("grey of more than 8 bits with transparency: convert it to 8 bits")
            return deep_images.deep_image(name, image, bits, frame)
        scaled = np.array(scale(_to_rgb(image), frame))
        return _Colours(name, scaled, bits > 8, shorter_side)
    except (ImageError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name} is too large, with too many pixels: scale it down") from error
    except Exception as error:  # damage can raise anything
        raise ImageError(f"{name} is no readable image ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """Says in words why a file cannot be read. Sometimes Pillow has none."""
    message = first_line(error)
    cause = error.__cause__ if isinstance(error, SyntaxError) and error.__cause__ else error
    is_helpful = not (isinstance(cause, _STUMBLED) or message.startswith(_UNHELPFUL))
    return message if is_helpful else _UNREADABLE


def _check_size(size: tuple[int, int]) -> None:
    """Refuses to decode more pixels than Pillow's limit.

    A row costs time and memory, however short it is: as much as 16 pixels. A turn makes rows of
    columns.
    """
    limit, (shorter, longer) = Image.MAX_IMAGE_PIXELS, sorted(size)
    if limit is not None and max(shorter, _ROW) * longer > limit:
        raise Image.DecompressionBombError


def _open(content: bytes) -> Image.Image:
    """Opens an image without ``Image.open``. Only HEIC is decoded here.

    ``Image.open`` also tries formats such as PostScript, which start other programs. And it refuses
    a JPEG for its size, although it would be decoded small.
    """
    if not content:
        raise ValueError("it is empty")
    if _is_heif(content):
        if find_spec(HEIF_PACKAGE) is None:
            raise ValueError(f"HEIC: {INSTALL_HEIF}")
        file = import_module(HEIF_PACKAGE).open_heif(io.BytesIO(content))
        _check_size(file.size)
        heif: Image.Image = file.to_pillow()
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


def _is_heif(content: bytes) -> bool:
    return content[4:8] == b"ftyp" and any(brand in content[8:40] for brand in _HEIF_BRANDS)


@functools.cache
def _load_plugins() -> None:
    for name in ("Avif", "Bmp", "Gif", "Jpeg", "Png", "Ppm", "Tiff", "WebP"):
        with contextlib.suppress(ImportError):  # of Pillows that lack it
            import_module(f"PIL.{name}ImagePlugin")


def _turn(image: Image.Image, *, in_place: bool) -> Image.Image:
    """Turns an image, or a copy, as its EXIF data says. Damaged EXIF data are ignored."""
    is_tiff = image.format == "TIFF"
    with damage_found() if is_tiff else contextlib.nullcontext() as damage:
        image.load()  # here, damaged pixels are an error
    if damage:
        raise ValueError(f"its pixels are damaged, says {damage[0]} of libtiff")
    try:
        if in_place:
            ImageOps.exif_transpose(image, in_place=True)
        else:
            image = ImageOps.exif_transpose(image)
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
        tiles = getattr(image, "tile", ())  # none, if somebody has loaded the image
        if any(";16" in str(tile[3]) for tile in tiles):
            return 16
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
    if image.mode == "La":  # which Pillow converts to LA only
        image = image.convert("LA")
    if image.mode in ("RGBA", "RGBa", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")  # a copy takes memory
