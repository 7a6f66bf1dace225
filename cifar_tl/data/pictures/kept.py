"""Decoded pictures, kept in a file: a picture that did not change is not decoded again.

A picture is the same if its path, its number on the disk, its size in bytes and its times of change
are the same. Its content is not read.
"""

import contextlib
import errno
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cifar_tl.disk import LARGEST_CHECKPOINT, locked, make_folder, read_sealed, write_sealed
from cifar_tl.errors import CheckpointError, RunWarning

SETTLED = 2.0  # seconds: a file system may write two changes in so short a time as one

# A file is missing, damaged, or not what this program writes: even lists in lists in lists ...
_NOT_OURS = (
    *(CheckpointError, OSError, LookupError, ArithmeticError),
    *(TypeError, ValueError, RecursionError),
)

State = tuple[int, int, int, int]  # of a file: its number, bytes, nanoseconds of its last changes


class Decoded(NamedTuple):
    """A picture with 8 bits a colour, and what is known of its file."""

    state: State | None  # before it was read; None: it may still be changing
    digest: str  # SHA-256 of the file
    shorter_side: int  # of the picture in the file, in pixels
    is_heif: bool
    pixels: NDArray[np.uint8]  # (3, size, size)
    seconds: float = 0.0  # its part of the time of decoding


def state_of(path: str) -> State | None:
    """Returns the state of a file. None: it changed just now, or cannot be found."""
    try:
        return _state(Path(path).stat())
    except (OSError, ValueError):  # reading it will say what is wrong
        return None


def _state(about: os.stat_result) -> State | None:
    # A camera with a wrong clock writes in the future: that is no change. On Windows, st_ctime is
    # the time of creation.
    changed = about.st_mtime if sys.platform == "win32" else about.st_ctime
    if time.time() - changed < SETTLED:
        return None
    return about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns


@contextlib.contextmanager
def keeping(
    file: str | Path | None, size: int, depends_on: Mapping[str, Any]
) -> Iterator[tuple[Mapping[str, Decoded], dict[str, Decoded | None]]]:
    """Gives the pictures that a file keeps, and a dictionary for those that are read now.

    Both go by absolute paths. At the end the file keeps both, also after an error or an
    interruption. If all went well, it drops the pictures whose file changed or is gone.

    Args:
        file: The file. None: nothing is kept.
        size: The height and width of the pictures in pixels.
        depends_on: What decides the pixels, as plain values. Pictures that were decoded otherwise
            are not given, and not kept.

    Yields:
        What the file keeps. Then an empty dictionary, to be filled. None stands for a picture that
        is read and cannot be kept.

    Warns:
        RunWarning: If the file cannot be written.
    """
    if file is None:
        yield {}, {}
        return
    start, all_went_well = time.perf_counter(), False
    before, after = _read(Path(file), size, depends_on), dict[str, Decoded | None]()
    try:
        yield before, after
        all_went_well = True
    finally:
        seconds = (time.perf_counter() - start) / max(1, len(after))
        new = {
            path: found._replace(seconds=seconds)
            for path, found in after.items()
            if found is not None and found.state is not None
        }
        if new:
            _try_to_add(Path(file), size, depends_on, new, clean=all_went_well)


def _read(file: Path, size: int, depends_on: Mapping[str, Any]) -> dict[str, Decoded]:
    """Reads the pictures of a file. There is none if it is missing or damaged."""
    try:
        sealed = read_sealed(file)
        head = sealed.index(b"\n")
        content = json.loads(sealed[:head])
        if content["depends_on"] != json.loads(json.dumps(depends_on)):
            return {}
        rows = content["pictures"]
        images = np.frombuffer(sealed, np.uint8, len(rows) * 3 * size**2, head + 1)
        return {
            str(path): Decoded(
                (int(state[0]), int(state[1]), int(state[2]), int(state[3])),
                str(digest),
                int(side),
                bool(heif),
                image,
                float(seconds),
            )
            for (path, state, digest, side, heif, seconds), image in zip(
                rows, images.reshape(-1, 3, size, size), strict=True
            )
        }
    except _NOT_OURS:
        return {}


def _try_to_add(
    file: Path, size: int, depends_on: Mapping[str, Any], new: dict[str, Decoded], *, clean: bool
) -> None:
    """Adds pictures to a file. They only save time: without them the program goes on."""
    try:
        make_folder(file.parent)
        with locked(file.parent, wait=True):
            there = _read(file, size, depends_on)  # again: another process may have added some
            if clean:
                there = {path: found for path, found in there.items() if not _is_old(path, found)}
            _write(file, depends_on, there | new)
    except (OSError, MemoryError) as error:
        warnings.warn(not_kept(file, error), RunWarning, stacklevel=5)


def _is_old(path: str, found: Decoded) -> bool:
    """Returns whether a file changed, or is gone. A file that cannot be reached is not old."""
    try:
        return _state(Path(path).stat()) != found.state
    except (OSError, ValueError) as error:  # ValueError: it can be no path
        return isinstance(error, FileNotFoundError | NotADirectoryError | ValueError)


def not_kept(where: Path, error: OSError | MemoryError) -> str:
    """Writes the warning about decoded pictures that could not be written."""
    reason = getattr(error, "strerror", None) or "not enough memory"
    return (
        f"decoded pictures are not kept in {where} ({reason}): the next command decodes them again"
    )


def _write(file: Path, depends_on: Mapping[str, Any], pictures: Mapping[str, Decoded]) -> None:
    if sum(found.pixels.nbytes for found in pictures.values()) > LARGEST_CHECKPOINT:
        raise OSError(errno.EFBIG, "it would be too large to be read")
    in_order = [(path, pictures[path]) for path in sorted(pictures)]
    rows = [
        (path, found.state, found.digest, found.shorter_side, found.is_heif, found.seconds)
        for path, found in in_order
    ]
    head = json.dumps({"depends_on": depends_on, "pictures": rows})
    pixels = (np.ascontiguousarray(found.pixels).data for _, found in in_order)
    write_sealed(file, b"".join([head.encode("ascii"), b"\n", *pixels]))
