import errno
import os
from pathlib import Path

import pytest

from cifar_tl.disk import (
    make_folder,
    open_file,
    read_file,
    read_sealed,
    warn_once,
    write_atomically,
    write_sealed,
)
from cifar_tl.errors import CheckpointError, RunWarning


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
