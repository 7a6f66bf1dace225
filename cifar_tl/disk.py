"""Files on a disk: written whole, sealed with a checksum, in a folder that one process has."""

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

# torch.load does not notice a flipped bit, so a SHA-256 follows the archive that torch.save
# writes. Plain torch.load ignores what follows an archive.
_MARK = b"cifar_tl sha256:"
_SEAL_SIZE = len(_MARK) + hashlib.sha256().digest_size


def write_sealed(path: Path, content: bytes) -> None:
    """Writes bytes and their checksum, as `write_atomically` does."""
    write_atomically(path, content + _seal(content))


def read_sealed(path: Path) -> bytes:
    """Reads what `write_sealed` wrote, the seal included.

    Raises:
        CheckpointError: If the file is missing, damaged or not one of ours.
    """
    try:
        sealed = path.read_bytes()
    except OSError as error:
        reason = f"{error.strerror}: check the path"
        raise CheckpointError(f"cannot read checkpoint {path}: {reason}") from error
    if sealed[-_SEAL_SIZE:] != _seal(sealed[:-_SEAL_SIZE]):
        plain = sealed.startswith(b"PK") and _MARK not in sealed[-_SEAL_SIZE:]
        raise CheckpointError(
            f"{path} is damaged, or no checkpoint of this program: use another or train again"
            + ("; a state_dict of torch.save goes through load_state_dict, then save_model" * plain)
        )
    return sealed


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that at any moment it is either the old one or the new one, whole.

    Raises:
        OSError: If it cannot be written; a file that was there before is still there.
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
        if isinstance(error, OSError):  # a full disk does not say which file it was
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    if os.name == "posix":  # make the renaming itself durable, too
        folder = os.open(path.parent, os.O_RDONLY)
        with contextlib.suppress(OSError):  # not every file system can
            os.fsync(folder)
        os.close(folder)


def _sync(descriptor: int) -> None:
    """Has a file's content written to the disk, where the file system can."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
        _warn_of_loss()


@functools.cache  # once is enough
def _warn_of_loss() -> None:
    warnings.warn(
        "this file system cannot confirm that a file is on the disk: a power cut may cost what was "
        "written last",
        RunWarning,
        stacklevel=2,
    )


def _seal(content: bytes) -> bytes:
    return _MARK + hashlib.sha256(content).digest()


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
