"""A folder that one process at a time may work in."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from cifar_tl.errors import LockedError


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Keeps a folder to this process, for as long as it lives and no longer.

    The system lets go of the lock when the process ends, however it ends. On a file system without
    locks nothing is locked.

    Raises:
        LockedError: If another process has it, unless to ``wait`` for its end was asked for.
    """
    if sys.platform == "win32":  # where folders have no locks
        import msvcrt

        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    else:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            if sys.platform == "win32":
                msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except (BlockingIOError, PermissionError) as error:
            raise LockedError(
                f"another process is at work in {folder}: "
                "wait until it has ended, or choose another output folder"
            ) from error
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)
