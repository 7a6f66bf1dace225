"""Each call that brings something to the disk fails in turn: one line, and nothing is lost."""

import contextlib
import errno
import itertools
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cifar_tl.checkpoint import load_checkpoint
from cifar_tl.command.train import main
from tests.command.conftest import start_and_hold
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


ROOM = 4 * 4096  # bytes: enough for history.csv, not for last.pt
BASE = Path("runs/tiny.npz/base")


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Lets ``runs`` be a disk of its own, of 10 MB, if we may mount one."""
    Path("runs").mkdir()
    command = ["sh", "-c", "mount -t tmpfs -o size=10m tmpfs runs"]
    is_mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    yield
    if is_mounted:
        subprocess.run(["umount", "-l", Path("runs").absolute()], check=True)


@contextlib.contextmanager
def full(pid: int) -> Iterator[str]:
    """The disk is full in the middle of a file. If it is not ours to fill, the limit is another."""
    filler = Path("runs/filler")
    if os.path.ismount("runs"):
        with filler.open("wb", buffering=0) as file:
            with contextlib.suppress(OSError):
                while file.write(bytes(4096)):
                    pass
            file.truncate(file.tell() - ROOM)
        yield f"{BASE}/last.pt: {os.strerror(errno.ENOSPC)}"
        filler.unlink()
    else:
        limit(pid, "RLIMIT_FSIZE", ROOM)
        yield f"{BASE}/last.pt: {os.strerror(errno.EFBIG)}"


@contextlib.contextmanager
def no_more_descriptors(pid: int) -> Iterator[str]:
    """No file can be opened."""
    limit(pid, "RLIMIT_NOFILE", 3)
    yield f"{BASE}/history.csv: {os.strerror(errno.EMFILE)}"


def limit(pid: int, name: str, value: int) -> None:
    import resource

    resource.prlimit(pid, getattr(resource, name), (value, value))


@contextlib.contextmanager
def folder_in_the_way(_: int) -> Iterator[str]:
    """A file can be written, but not renamed."""
    (BASE / "model.pt").mkdir()
    yield f"{BASE}/model.pt: {os.strerror(errno.EISDIR)}"
    (BASE / "model.pt").rmdir()


@contextlib.contextmanager
def file_in_the_way(_: int) -> Iterator[str]:
    """A folder cannot be made: that of the next stage."""
    folder = BASE.with_name("transfer")
    folder.touch()
    yield f"{folder}: {os.strerror(errno.EEXIST)}"
    folder.unlink()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs limits of Linux")
@pytest.mark.usefixtures("small_disk")
@pytest.mark.parametrize(
    ("failing", "stage", "epochs"),  # epochs: of the base, that are saved
    [
        (full, "base", 1),
        (no_more_descriptors, "base", 1),
        (folder_in_the_way, "base", 2),
        (file_in_the_way, "all", 2),
    ],
)
def test_the_system_refuses_a_call_and_nothing_is_lost(
    zygote: subprocess.Popen[str],
    arguments: list[str],
    failing: Callable[[int], contextlib.AbstractContextManager[str]],
    stage: str,
    epochs: int,
) -> None:
    arguments += ["--stage", stage]
    assert main([*arguments, "--output-dir", "whole"]) == 0
    process = start_and_hold(zygote, arguments, 4)  # an epoch is saved
    with failing(process.pid) as said:
        Path("go").touch()
        errors = process.end(1)
        assert f"train: {said}; what was finished is saved. To go on: cifar-tl train" in errors
        assert load_checkpoint(BASE / "last.pt")["epoch"] == epochs
        assert len((BASE / "history.csv").read_text().splitlines()) >= 1 + epochs
        assert not list(BASE.glob("*.tmp"))
    assert main(arguments) == 0
    whole = sorted(Path("whole").rglob("*.pt"))
    assert len(whole) >= 2
    for path in whole:
        assert (Path("runs") / path.relative_to("whole")).read_bytes() == path.read_bytes()
