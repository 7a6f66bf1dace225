"""Files on a disk: written whole, sealed with a checksum, in a folder locked by one process."""

import contextlib
import errno
import functools
import hashlib
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from cifar_tl.errors import CheckpointError, LockedError, RunWarning

TEMPORARY = ".tmp"  # ends the name of a file that is being written

# torch.load does not notice a flipped bit. So a SHA-256 follows what torch.save writes. torch.load
# ignores it.
_MARK = b"cifar_tl sha256:"
_SEAL_SIZE = len(_MARK) + hashlib.sha256().digest_size


def write_sealed(path: Path, content: bytes) -> None:
    """Writes bytes and their checksum, as `write_atomically` does."""
    write_atomically(path, content + _seal(content))


def read_sealed(path: Path) -> bytes:
    """Reads what `write_sealed` wrote, checksum included.

    Raises:
        CheckpointError: If the file is missing or damaged, or another program wrote it.
    """
    try:
        sealed = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"cannot read checkpoint {path}: {error.strerror}: check the path"
        ) from error
    if sealed[-_SEAL_SIZE:] == _seal(sealed[:-_SEAL_SIZE]):
        return sealed
    message = f"{path} is damaged, or no checkpoint of this program: use another or train again"
    if sealed.startswith(b"PK") and _MARK not in sealed[-_SEAL_SIZE:]:
        message += "; for a state_dict of torch.save, call load_state_dict, then save_model"
    raise CheckpointError(message)


def _seal(content: bytes) -> bytes:
    return _MARK + hashlib.sha256(content).digest()


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file. At any moment it is either the old one or the new one, whole.

    Raises:
        OSError: If the file cannot be written. An old file is then still there.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            _sync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):  # it does not name the file if the disk is full
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    if os.name == "posix":  # the new name must survive a power cut, too
        folder = os.open(path.parent, os.O_RDONLY)
        with contextlib.suppress(OSError):  # some file systems cannot do it
            os.fsync(folder)
        os.close(folder)


def _sync(descriptor: int) -> None:
    """Waits until a file is on the disk. If the file system cannot say so, there is a warning."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
        _warn_of_loss()


@functools.cache  # one warning is enough
def _warn_of_loss() -> None:
    warnings.warn(
        "this file system cannot confirm that a file is on the disk: a power cut may cost what was "
        "written last",
        RunWarning,
        stacklevel=2,
    )


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Locks a folder for this process.

    The system unlocks it when the process ends, even if it is killed. If the file system has no
    locks, this does nothing.

    Args:
        folder: The folder.
        wait: Wait for a process that has locked it, instead of raising.

    Raises:
        LockedError: If another process has locked it.
    """
    if sys.platform == "win32":  # folders have no locks there
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
        except OSError:  # there are no locks
            pass
        yield
    finally:
        os.close(descriptor)
