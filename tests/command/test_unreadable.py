"""The system cannot read a file that is whole: the line blames the system, and nothing is lost."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cifar_tl.__main__ import main
from tests.forked import one_line

OPEN = os.open
RUN = Path("runs/tiny.npz/base")
TRAIN = ["train", "--data", "tiny.npz", "--stage", "base", "--epochs", "2", "--quiet"]
TRAIN += ["--batch-size", "20", "--threads", "1", "--precision", "float32"]
PREDICT = ["predict", "cifar10.png", "--model", str(RUN / "model.pt")]
EVALUATE = ["evaluate", str(RUN / "model.pt"), "--data", "tiny.npz", "--split", "validation"]
NAMED = ("damaged", "anew", "again", "missing", "no checkpoint", "save it")  # it is whole
FILES = [
    (TRAIN, "tiny.npz"),
    (TRAIN, "result.json"),
    (TRAIN, "model.pt"),
    (TRAIN, "history.csv"),
    (TRAIN, "last.pt"),
    (PREDICT, "model.pt"),
    (EVALUATE, "model.pt"),
    (EVALUATE, "tiny.npz"),
]


@pytest.fixture(scope="module")
def run(tiny_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run and its images."""
    place = tmp_path_factory.mktemp("run")
    shutil.copy(tiny_npz, place)
    shutil.copy(Path(__file__).parents[1] / "cifar10.png", place)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main(TRAIN) == 0
    return place


def failing(name: str, number: int) -> Callable[..., int]:
    """Makes an ``os.open`` that fails for files of a name, as a disk or a limit makes it fail."""

    def fail(path: str, *arguments: int, **others: int) -> int:
        if Path(path).name == name:
            raise OSError(number, os.strerror(number), path)
        return OPEN(path, *arguments, **others)

    return fail


def contents() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in RUN.iterdir()}


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.EACCES])
@pytest.mark.parametrize(("command", "name"), FILES)
def test_what_cannot_be_read_now_is_neither_blamed_nor_made_anew(
    run: Path,
    command: list[str],
    name: str,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(run, ".", dirs_exist_ok=True)
    before = contents()
    capsys.readouterr()
    monkeypatch.setattr(os, "open", failing(name, number))
    assert main(command) == 1
    line = one_line(capsys.readouterr().err)
    assert f"{name}: {os.strerror(number)}: " in line
    assert not any(word in line.partition(";")[0] for word in NAMED)
    assert contents() == before
    monkeypatch.setattr(os, "open", OPEN)
    assert main(command) == 0
    assert contents() == before


@pytest.mark.parametrize("name", ["last.pt", "history.csv"])
def test_an_unfinished_run_that_cannot_be_read_now_goes_on_later(
    run: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, ".", dirs_exist_ok=True)
    model, last = (RUN / "model.pt").read_bytes(), (RUN / "last.pt").read_bytes()
    for gone in ("result.json", "model.pt"):
        (RUN / gone).unlink()
    capsys.readouterr()
    monkeypatch.setattr(os, "open", failing(name, errno.EIO))
    assert main(TRAIN) == 1
    line = one_line(capsys.readouterr().err)
    assert f"{name}: {os.strerror(errno.EIO)}: " in line
    assert not any(word in line.partition(";")[0] for word in NAMED)
    assert (RUN / "last.pt").read_bytes() == last
    monkeypatch.setattr(os, "open", OPEN)
    assert main(TRAIN) == 0
    assert (RUN / "model.pt").read_bytes() == model


def test_pictures_that_cannot_be_read_now_are_not_to_be_deleted(
    own_classes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = next(own_classes.rglob("*.png")).name
    train = ["train", "--data", str(own_classes), "--stage", "scratch", "--epochs", "1", "--quiet"]
    monkeypatch.setattr(os, "open", failing(name, errno.EMFILE))
    assert main(train) == 1
    line = one_line(capsys.readouterr().err)
    assert f"{name}: {os.strerror(errno.EMFILE)}: close some" in line
    assert not any(word in line.partition(";")[0] for word in (*NAMED, "delete"))


def test_memory_that_is_short_is_no_damage(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, ".", dirs_exist_ok=True)
    (RUN / "result.json").unlink()
    before = contents()
    for command in (TRAIN, PREDICT):
        monkeypatch.setattr(torch, "load", full)
        assert main(command) == 1
        assert "out of memory: " in one_line(capsys.readouterr().err)
    assert contents() == before


def full(*_: object, **__: object) -> None:
    """Fails as torch does."""
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
