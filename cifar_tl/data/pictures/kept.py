"""Decoded pictures, kept in a file: a picture that did not change is not decoded again.

A picture is taken for the same if its path, its size and its times of change are the same. Its
content is not read.
"""

import contextlib
import json
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cifar_tl.disk import make_folder, read_sealed, write_sealed
from cifar_tl.errors import CheckpointError, RunWarning

SETTLED = 2.0  # seconds: a file system may write two changes in so short a time as one

State = tuple[int, int, int]  # of a file: bytes; nanoseconds of its last changes


class Decoded(NamedTuple):
    """A picture with 8 bits a colour, and what is known of its file."""

    state: State | None  # before it was read; None: it may still be changing
    digest: str  # SHA-256 of the file
    shorter_side: int  # of the picture in the file, in pixels
    is_heif: bool
    pixels: NDArray[np.uint8]  # (3, size, size)


def state_of(path: str) -> State | None:
    """Returns the state of a file. None: it changed just now, or cannot be found."""
    try:
        about = Path(path).stat()
    except (OSError, ValueError):  # reading it will say what is wrong
        return None
    # A camera with a wrong clock writes in the future: that is no change. Windows has no st_ctime.
    changed = about.st_mtime if sys.platform == "win32" else about.st_ctime
    if time.time() - changed < SETTLED:
        return None
    return about.st_size, about.st_mtime_ns, about.st_ctime_ns


@contextlib.contextmanager
def keeping(
    file: str | Path | None, depends_on: Mapping[str, Any]
) -> Iterator[tuple[Mapping[str, Decoded], dict[str, Decoded]]]:
    """Gives the pictures that a file keeps, and a dictionary for those that it shall keep.

    Both go by absolute paths. The second is written at the end, also after an error or an
    interruption.

    Args:
        file: The file. None: nothing is kept.
        depends_on: What decides the pixels, as plain values. Pictures that were decoded otherwise
            are not given.

    Warns:
        RunWarning: If the file cannot be written.
    """
    before = {} if file is None else _read(Path(file), depends_on)
    after: dict[str, Decoded] = {}
    try:
        yield before, after
    finally:
        settled = {path: after[path] for path in sorted(after) if after[path].state is not None}
        states = [{path: each.state for path, each in of.items()} for of in (before, settled)]
        if file is not None and states[0] != states[1]:
            try:
                _write(Path(file), depends_on, settled)
            except OSError as error:
                message = f"decoded pictures are not kept in {file}: {error.strerror}"
                warnings.warn(message, RunWarning, stacklevel=4)


def _read(file: Path, depends_on: Mapping[str, Any]) -> dict[str, Decoded]:
    """Reads the pictures of a file. There is none if it is missing or damaged."""
    try:
        sealed = read_sealed(file)
        head = sealed.index(b"\n")
        content = json.loads(sealed[:head])
        if content["depends_on"] != json.loads(json.dumps(depends_on)):
            return {}
        rows, size = content["pictures"], int(content["size"])
        images = np.frombuffer(sealed, np.uint8, len(rows) * 3 * size**2, head + 1)
        images = images.reshape(-1, 3, size, size)
        return {
            str(path): Decoded((int(a), int(b), int(c)), str(digest), int(side), bool(heif), image)
            for (path, (a, b, c), digest, side, heif), image in zip(rows, images, strict=True)
        }
    except (CheckpointError, OSError, KeyError, TypeError, ValueError, RecursionError):
        return {}


def _write(file: Path, depends_on: Mapping[str, Any], pictures: Mapping[str, Decoded]) -> None:
    if not pictures:
        return
    rows = [
        (path, found.state, found.digest, found.shorter_side, found.is_heif)
        for path, found in pictures.items()
    ]
    size = next(iter(pictures.values())).pixels.shape[-1]
    head = json.dumps({"depends_on": depends_on, "size": size, "pictures": rows})
    pixels = (np.ascontiguousarray(found.pixels).data for found in pictures.values())
    make_folder(file.parent)
    write_sealed(file, b"".join([head.encode("ascii"), b"\n", *pixels]))
