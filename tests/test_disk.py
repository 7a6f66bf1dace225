import errno
import os
import stat
import sys
from pathlib import Path
from types import ModuleType

import pytest

from cifar_tl.disk import (
    locked,
    make_folder,
    open_file,
    read_file,
    read_sealed,
    warn_once,
    write_atomically,
    write_sealed,
)
from cifar_tl.errors import CheckpointError, LockedError, RunWarning
from tests.forked import run_program


def test_what_was_sealed_is_read_and_damage_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_sealed(path, b"content")
    assert read_sealed(path).startswith(b"content")
    for damaged in (path.read_bytes()[1:], path.read_bytes()[:-1], b"", b"content"):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="is damaged, or no checkpoint of this program"):
            read_sealed(path)
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_share_that_cannot_sync_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    warn_once.cache_clear()
    with pytest.warns(RunWarning, match="a power cut may cost what was written last") as warned:
        write_sealed(tmp_path / "file", b"one")
    write_atomically(tmp_path / "file", b"two")  # here a warning would be an error
    assert len(warned) == 1
    assert (tmp_path / "file").read_bytes() == b"two"


def test_other_errors_of_syncing_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    write_atomically(tmp_path / "file", b"old")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.name != "posix", reason="folders are synced on POSIX")
def test_new_folders_survive_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[int, int]] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_dev, os.fstat(descriptor).st_ino))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    make_folder(tmp_path / "a/b/c")
    parents = (tmp_path, tmp_path / "a", tmp_path / "a/b")
    assert synced == [(path.stat().st_dev, path.stat().st_ino) for path in parents]
    make_folder(tmp_path / "a/b")
    assert len(synced) == 3
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "file")


@pytest.mark.skipif(os.name != "posix", reason="needs pipes and links")
def test_only_files_are_read_and_none_beyond_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    (tmp_path / "link").symlink_to(path)
    assert read_file(tmp_path / "link", 5) == b"12345"
    os.mkfifo(tmp_path / "pipe")
    for wrong, most, message in (
        (path, 4, "it is larger than 0 MB"),
        (tmp_path / "pipe", 5, "it is a pipe or a device"),
        (Path("/dev/zero"), 5, "it is a pipe or a device"),
        (tmp_path, 5, "Is a directory"),
        (tmp_path / "none", 5, "No such file"),
    ):
        with pytest.raises(OSError, match=message) as caught, open_file(wrong, most):
            pass
        assert caught.value.filename == str(wrong)


@pytest.mark.skipif(sys.platform == "win32", reason="needs flock")
def test_a_share_that_locks_no_folders_locks_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    flock = fcntl.flock

    def as_on_nfs(descriptor: int, operation: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", as_on_nfs)
    with (
        locked(tmp_path),
        pytest.raises(LockedError, match="another process is at work"),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path, wait=True):
        assert [found.name for found in tmp_path.iterdir()] == [".lock"]


def test_windows_gives_up_and_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = iter(range(3))

    def locking(*_: object) -> None:
        if next(refusals, None) is not None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    msvcrt = ModuleType("msvcrt")
    vars(msvcrt).update(locking=locking, LK_LOCK=1, LK_NBLCK=2)
    monkeypatch.setitem(sys.modules, "msvcrt", msvcrt)
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(LockedError), locked(tmp_path):
        pass
    with locked(tmp_path, wait=True):
        assert next(refusals, None) is None


# The folder may be changed and searched, but not listed.
UNREADABLE = """
import os
from pathlib import Path
from cifar_tl.disk import locked, make_folder, read_file, write_atomically
from cifar_tl.errors import LockedError
os.mkdir("own")
if os.geteuid() == 0:  # root may read whatever the permissions say
    os.chown("own", 65534, 65534)
    os.chdir("own")
    os.setuid(65534)
folder = Path("drop")
folder.mkdir()
folder.chmod(0o300)
make_folder(folder / "a/b")
write_atomically(folder / "file", b"content")
with locked(folder):
    try:
        with locked(folder):
            raise AssertionError
    except LockedError:
        pass
assert read_file(folder / "file", 7) == b"content"
folder.chmod(0o700)
assert {path.name for path in folder.iterdir()} == {"a", "file", ".lock"}
"""


@pytest.mark.skipif(os.name != "posix", reason="needs permissions of POSIX")
def test_a_folder_that_may_not_be_read_is_one_warning(tmp_path: Path) -> None:
    process = run_program("-c", UNREADABLE, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    said = "RunWarning: drop may not be read, so it cannot be synced: a power cut may cost"
    assert said in process.stderr
    assert process.stderr.count("Warning: ") == 1
