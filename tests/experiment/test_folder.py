import contextlib
import copy
import dataclasses
import itertools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn

from cifar_tl import disk
from cifar_tl.checkpoint import load_checkpoint
from cifar_tl.contents import MOST_CLASSES
from cifar_tl.data.examples import Data
from cifar_tl.disk import locked
from cifar_tl.errors import DataError, LockedError, RunError, RunWarning
from cifar_tl.experiment import folder
from cifar_tl.experiment.folder import History, RunFolder, discard, read_result
from cifar_tl.experiment.run import run_stage
from cifar_tl.network import CifarNet
from cifar_tl.training import EpochRecord
from tests.experiment.conftest import SMALL, contents, copy_run, damage_checkpoint


def test_finished_stage_is_read_and_not_touched(finished: Path, small_data: Data) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished / "transfer").iterdir()}
    lines: list[str] = []
    result = run_stage("transfer", small_data, SMALL, output_dir=finished.parent, log=lines.append)
    written = json.loads((finished / "transfer" / "result.json").read_text())
    del written["sha256"], written["files"]
    assert result == written
    assert lines == [f"transfer: finished before, in {finished / 'transfer'}"]
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("result.json", lambda _: b"{"),
        ("result.json", lambda _: b"[]"),
        ("result.json", lambda content: content.replace(b'val_accuracy": 0', b'val_accuracy": 4')),
        ("result.json", lambda content: content.replace(b'"seconds_train"', b'"seconds_trbin"')),
        ("model.pt", lambda content: content[:-1]),
        ("model.pt", lambda _: b""),
    ],
)
def test_a_damaged_result_is_named_and_made_anew(
    finished: Path,
    small_data: Data,
    tmp_path: Path,
    name: str,
    damage: Callable[[bytes], bytes],
) -> None:
    folder = tmp_path / "small.npz" / "base"
    copy_run(finished / "base", folder)
    before = contents(folder)
    expected = run_stage("base", small_data, SMALL, output_dir=tmp_path)
    (folder / name).write_bytes(damage(before[name]))
    assert contents(folder) != before
    with pytest.warns(RunWarning, match=rf"{name} is damaged.* is made anew"):
        result = run_stage("base", small_data, SMALL, output_dir=tmp_path)
    assert contents(folder)["model.pt"] == before["model.pt"]
    for key in ("val_accuracy", "test_accuracy", "seconds_train", "val_confusion"):
        assert result[key] == expected[key]
    assert run_stage("base", small_data, SMALL, output_dir=tmp_path) == result


class Stop(BaseException):
    """What a signal raises."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # files left open
@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_a_signal_at_any_line_of_a_save_leaves_what_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One signal a save: at its first line, at its second, and so on."""

    def stop(*_: object) -> None:
        raise Stop

    monkeypatch.setattr(os, "fsync", lambda _: None)
    before = signal.signal(signal.SIGALRM, stop)
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters())
    run = RunFolder(tmp_path, {"stage": "base"})
    now = {"threads": 1}
    epochs = []
    for line in itertools.count(1):
        history = History([{"from_epoch": 1, **now}], 0.0)
        for epoch in (1, 2):
            history.add(EpochRecord(epoch, *[0.0] * 6))
            if epoch == 1:
                run.save_epoch(model, optimizer, history)
        stopped = True
        with contextlib.suppress(Stop), signal_at_line(line):
            run.save_epoch(model, optimizer, history)
            stopped = False
        epochs.append(len(run.resume(model, optimizer, now, 0.0).rows))
        assert not list(tmp_path.glob("*.tmp"))
        if not stopped:  # it has no more lines
            break
    signal.signal(signal.SIGALRM, before)
    assert epochs == sorted(epochs)  # the epoch before, then this one
    assert min(epochs.count(1), epochs.count(2)) > 5


@contextlib.contextmanager
def signal_at_line(number: int) -> Iterator[None]:
    """Sends this process a signal at the first line, second line, ... that saves something."""
    lines = itertools.count(1)

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename not in (folder.__file__, disk.__file__):
            return None
        if event == "line" and next(lines) == number:
            signal.raise_signal(signal.SIGALRM)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def damage_history(folder: Path, content: str) -> None:
    (folder / "history.csv").write_text(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: damage_history(folder, ""), r"history\.csv is damaged or lacks epochs"),
        (lambda folder: damage_history(folder, "epoch,x\n1,2\n"), r"history\.csv is damaged"),
        (lambda folder: damage_history(folder, "epoch\nx\n"), r"history\.csv is damaged"),
        (lambda folder: (folder / "history.csv").unlink(), r"history\.csv is damaged"),
        (lambda folder: (folder / "last.pt").write_bytes(b""), r"last\.pt is damaged"),
        (lambda folder: damage_checkpoint(folder, model={}), r"last\.pt does not hold"),
        (lambda folder: damage_checkpoint(folder, optimizer={}), r"last\.pt does not hold"),
        (lambda folder: damage_checkpoint(folder, settings=3), r"last\.pt does not hold"),
        (lambda folder: damage_checkpoint(folder, surroundings=[]), r"last\.pt does not hold"),
        (lambda folder: damage_checkpoint(folder, epoch=None), r"last\.pt does not hold"),
    ],
)
def test_what_it_cannot_go_on_from_is_named_with_the_command_that_helps(
    finished: Path,
    small_data: Data,
    tmp_path: Path,
    damage: Callable[[Path], None],
    message: str,
) -> None:
    folder = tmp_path / "small.npz" / "base"
    copy_run(finished / "base", folder)
    (folder / "result.json").unlink()
    damage(folder)
    with pytest.raises(RunError, match=message) as error:
        run_stage("base", small_data, SMALL, output_dir=tmp_path)
    assert error.value.remedy == {"stage": "base", "restart": True}


def test_restart_deletes_nothing_while_another_process_is_at_work(
    finished: Path, tmp_path: Path
) -> None:
    for stage in ("base", "transfer"):
        copy_run(finished / stage, tmp_path / stage)
    before = contents(tmp_path / "base")
    with locked(tmp_path / "transfer"), pytest.raises(LockedError, match=r"at work in .*transfer"):
        discard([tmp_path], [tmp_path / "base", tmp_path / "transfer"])
    assert contents(tmp_path / "base") == before


def test_checkpoint_to_go_on_from_holds_no_times(finished: Path) -> None:
    content = copy.deepcopy(load_checkpoint(finished / "base" / "last.pt"))
    assert set(content) == {"settings", "epoch", "model", "optimizer", "surroundings"}
    assert not any("seconds" in key for key in content["settings"])


def test_what_could_not_be_saved_is_refused_before_training(
    small_data: Data, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="could not be loaded again: a number in settings is too"):
        run_stage("base", small_data, SMALL, output_dir=tmp_path, seed=10**39)
    names = tuple(str(number) for number in range(MOST_CLASSES + 1))
    many = dataclasses.replace(small_data, class_names=names)
    with pytest.raises(DataError, match="has 4,001 classes, and results hold 4,000 at most"):
        run_stage("base", many, SMALL, output_dir=tmp_path)
    assert not list(tmp_path.rglob("last.pt"))


def test_a_result_of_many_classes_has_a_row_in_a_line_and_is_read(
    finished: Path, tmp_path: Path
) -> None:
    copy_run(finished / "base", tmp_path / "base")
    path = tmp_path / "base" / "result.json"
    result, _ = read_result(path)
    classes = 300
    result["class_names"] = ['[ 1,  "2" \n]', *(str(number) for number in range(1, classes))]
    result["classes"], result["num_classes"] = list(range(classes)), classes
    result["val_confusion"] = [[0] * classes for _ in range(classes)]
    result["val_confusion"][0][0] = result["images_validation"]
    RunFolder(path.parent, {}).save_finished(CifarNet(5), dict(result), "text")
    assert read_result(path)[0] == result
    assert path.stat().st_size < 3.5 * classes**2
