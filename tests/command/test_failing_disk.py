"""Each call that brings something to the disk fails in turn: one line, and nothing is lost."""

import errno
import itertools
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cifar_tl.command.train import main
from tests.forked import one_line

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX")

FSYNC = os.fsync
FOLDERS = 3  # runs, runs/tiny.npz and runs/tiny.npz/base
FILES = 8  # history and last.pt of two epochs, model, results, result, runs.csv


@pytest.fixture
def arguments(tiny_npz: Path) -> list[str]:
    return [
        *("--data", str(tiny_npz), "--stage", "base", "--epochs", "2", "--batch-size", "20"),
        *("--threads", "1", "--quiet", "--precision", "float32"),
    ]


def failing(number: int, place: int, made: list[str]) -> Callable[[int], None]:
    """Makes an ``fsync`` that fails once, the first time, the second time, and so on."""
    count = itertools.count(1)

    def fsync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        made.append("folder" if is_folder else "file")
        if next(count) == place:
            raise OSError(number, os.strerror(number))
        FSYNC(descriptor)

    return fsync


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_a_disk_that_fails_is_one_line_and_the_same_command_goes_on(
    arguments: list[str],
    every: int,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", failing(number, 0, synced))
    assert main([*arguments, "--output-dir", "whole"]) == 0
    assert synced == ["folder"] * FOLDERS + ["file", "folder"] * FILES
    whole = Path("whole/tiny.npz/base")
    for place in range(1, len(synced) + 1, every):
        folder = Path(f"failed{place}/tiny.npz/base")
        here = [*arguments, "--output-dir", f"failed{place}"]
        capsys.readouterr()
        monkeypatch.setattr(os, "fsync", failing(number, place, []))
        assert main(here) == (2 if place == 1 else 1)  # before anything was begun
        errors = one_line(capsys.readouterr().err)
        assert os.strerror(number) in errors
        assert place == 1 or f"cifar-tl train: failed{place}" in errors
        monkeypatch.setattr(os, "fsync", FSYNC)
        assert main(here) == 0
        for name in ("model.pt", "last.pt"):
            assert (folder / name).read_bytes() == (whole / name).read_bytes()
        assert not list(folder.glob("*.tmp"))


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOLCK, errno.ENOTSUP])
@pytest.mark.filterwarnings("default::cifar_tl.errors.CifarTLWarning")
def test_a_disk_without_locks_is_one_warning(
    arguments: list[str],
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from fcntl import LOCK_EX, LOCK_NB

    from cifar_tl.disk import warn_once

    tried = []

    def refuse(_: int, operation: int) -> None:
        tried.append(operation)
        raise OSError(number, os.strerror(number))

    warn_once.cache_clear()
    monkeypatch.setattr("fcntl.flock", refuse)
    for _ in range(2):  # the second one reads what is finished, and locks nothing
        assert main([*arguments, "--restart"]) == 0
    assert tried.count(LOCK_EX | LOCK_NB) > 2
    errors = one_line(capsys.readouterr().err)
    assert f"this file system gives no lock ({os.strerror(number)}): do not run two" in errors
