import errno
import os
from pathlib import Path

import pytest

from cifar_tl.disk import read_sealed, warn_once, write_atomically, write_sealed
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
