"""Files on a disk: read with a limit, written whole, sealed; and folders locked by one process."""

import contextlib
import errno
import functools
import hashlib
import os
import stat
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from cifar_tl.errors import CheckpointError, LockedError, RunWarning, may_be_whole

TEMPORARY = ".tmp"  # ends the name of a file that is being written

# The most bytes that are read of a file. Every message of `read_file` says the limit.
LARGEST_CHECKPOINT = 10 * 10**9
LARGEST_DATA = 10**11  # of an archive with all images
LARGEST_PICTURE = 10**9
LARGEST_TABLE = 10**9  # of the labels of images
LARGEST_TEXT = 50 * 10**6  # of JSON and CSV: a confusion matrix of `MOST_CLASSES` is smaller

# torch.load does not notice a flipped bit. So a SHA-256 follows what torch.save writes. torch.load
# ignores it.
_MARK = b"cifar_tl sha256:"
SEAL_SIZE = len(_MARK) + hashlib.sha256().digest_size
_ZIP = b"PK"  # how torch.save begins a file


def read_file(path: str | Path, most: int) -> bytes:
    """Reads a file. See `open_file`."""
    with open_file(path, most) as file:
        return file.read(_size(file))  # not `most`: so much memory would be reserved


def read_beginning(path: Path, size: int) -> bytes:
    """Reads the first bytes of a file, to see whose it is. See `open_file`."""
    with open_file(path, LARGEST_DATA) as file:
        return file.read(size)


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


@contextlib.contextmanager
def open_file(path: str | Path, most: int) -> Iterator[BinaryIO]:
    """Opens a file to read. Anything else is refused: a pipe may wait for ever, a device never end.

    Args:
        path: The file, or a link to it.
        most: The most bytes that it may have.

    Raises:
        OSError: If it cannot be opened or read, is no regular file, or is larger. ``strerror`` has
            the reason. If the file may be whole, it also says what to do.
    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as file:
            about, reason = os.fstat(file.fileno()), None
            if not stat.S_ISREG(about.st_mode):
                reason = "it is a pipe or a device, and only files are read"
            elif about.st_size > most:
                reason = f"it is larger than {most // 10**6:,} MB, and no such file is read"
            if reason is not None:
                raise OSError(errno.EINVAL, reason, str(path))
            yield file
    except OSError as error:
        if not may_be_whole(error):
            raise
        too_many = error.errno in (errno.EMFILE, errno.ENFILE)
        how = "close some, or raise the limit (ulimit -n)" if too_many else "check its permissions"
        raise OSError(error.errno, f"{error.strerror}: {how}", str(path)) from error


def write_sealed(path: Path, content: bytes) -> None:
    """Writes bytes and their checksum, as `write_atomically` does."""
    write_atomically(path, content + _MARK + hashlib.sha256(content).digest())


def read_sealed(path: Path) -> bytes:
    """Reads what `write_sealed` wrote, checksum included.

    Raises:
        CheckpointError: If the file is missing or damaged, or another program wrote it.
        OSError: If it cannot be read, and may be whole.
    """
    try:
        with open_file(path, LARGEST_CHECKPOINT) as file:
            size = _size(file)
            file.seek(max(0, size - SEAL_SIZE))
            seal = file.read(SEAL_SIZE)
            is_sealed = seal.startswith(_MARK)
            # Else its size is no reason to take memory.
            is_whole = is_sealed and seal == _MARK + digest(file, size - SEAL_SIZE)
            file.seek(0)
            sealed = file.read(size if is_whole else len(_ZIP))
    except OSError as error:
        if may_be_whole(error):
            raise
        raise CheckpointError(
            f"cannot read checkpoint {path}: {error.strerror}: check the path"
        ) from error
    if is_whole:
        return sealed
    message = f"{path} is damaged, or no checkpoint of this program: use another"
    if not is_sealed and sealed == _ZIP:
        message += "; for a state_dict of torch.save, call load_state_dict, then save_model"
    raise CheckpointError(message)


def checksum(sealed: bytes) -> str:
    """Returns the SHA-256 with which a sealed file ends."""
    return sealed[-hashlib.sha256().digest_size :].hex()


def digest(file: BinaryIO, size: int) -> bytes:
    """Computes the SHA-256 of the first bytes of a file, or of all if it has no more."""
    found, left = hashlib.sha256(), size
    file.seek(0)
    while part := file.read(min(left, 2**20)):
        found.update(part)
        left -= len(part)
    return found.digest()


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file. At any moment it is either the old one or the new one, whole.

    All files of this package are written here. What somebody has put under the temporary name,
    maybe a link to another file, is deleted and never written through.

    Raises:
        OSError: If the file cannot be written. An old file is then still there. Only if the folder
            cannot be synced, it is the new file that is there.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    if temporary.is_dir() and not temporary.is_symlink():
        raise OSError(errno.EISDIR, "there is a folder of this name: move it away", str(temporary))
    try:
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as file:  # x: a new file, so it follows no link
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
    sync_folder(path.parent)  # the new name must survive a power cut, too


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it, as far as they are missing. They survive a power cut."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def megabytes_in(folder: Path) -> str:
    """Writes how large the files in a folder and below it are, such as ``1,234.5 MB``."""
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # another process may delete it meanwhile
            size += path.stat().st_size if path.is_file() else 0
    return f"{size / 1e6:,.1f} MB"


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk. If it may not be read, it warns."""
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # write and execute permission are enough for new files
        warn_once(
            f"{folder} may not be read, so it cannot be synced: a power cut may cost what was "
            "written last"
        )
        return
    try:
        _sync(descriptor)
    except OSError as error:  # it does not name the folder
        raise OSError(error.errno, error.strerror, str(folder)) from error
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    """Waits until a file or folder is on the disk. If the file system cannot say so, it warns."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
        warn_once(
            "this file system cannot confirm that a file is on the disk: a power cut may cost what "
            "was written last"
        )


@functools.cache  # one warning is enough
def warn_once(message: str) -> None:
    """Warns of a file system or a disk, once in a process."""
    warnings.warn(message, RunWarning, stacklevel=2)


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Locks a folder for this process.

    The system unlocks it when the process ends, even if it is killed. Windows has no locks of
    folders, NFS none of folders that are only read, and some folders may not be read. There the
    file ``.lock`` in the folder is locked, and stays. If that fails, too, there is a warning, and
    nothing keeps other processes away.

    Args:
        folder: The folder.
        wait: Wait for a process that has locked it, instead of raising.

    Raises:
        LockedError: If another process has locked it.
    """
    attempts = [(folder / ".lock", os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0))]
    if sys.platform != "win32":
        attempts.insert(0, (folder, os.O_RDONLY))
    reason: str | None = ""
    with contextlib.ExitStack() as stack:
        for path, flags in attempts:
            try:
                descriptor = os.open(path, flags, 0o666)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                    raise
                reason = error.strerror
                continue
            stack.callback(os.close, descriptor)
            try:
                _lock(descriptor, wait)
                break
            except (BlockingIOError, PermissionError) as error:
                raise LockedError(
                    f"another process is at work in {folder}: "
                    "wait until it has ended, or choose another output folder"
                ) from error
            except OSError as error:
                reason = error.strerror
        else:
            warn_once(
                f"this file system gives no lock ({reason}): do not run two commands in one folder"
            )
        yield


def _lock(descriptor: int, wait: bool) -> None:
    """Locks an open file or folder.

    Raises:
        BlockingIOError: If another process has locked it.
        PermissionError: The same, on Windows.
        OSError: If the file system has no lock for it.
    """
    if sys.platform == "win32":
        import msvcrt

        while True:
            try:
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
                return
            except PermissionError:  # LK_LOCK would wait for ten seconds at most
                if not wait:
                    raise
                time.sleep(0.1)
    import fcntl

    fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
