import copy
import json
import os
import random
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from cifar_tl.checkpoint import load_checkpoint
from cifar_tl.data.examples import Data
from cifar_tl.disk import locked
from cifar_tl.errors import LockedError, RunError, RunWarning
from cifar_tl.experiment.folder import RunFolder, discard
from cifar_tl.experiment.run import run_stage
from cifar_tl.training import EpochRecord
from tests.experiment.conftest import SMALL, contents, copy_run, damage_checkpoint


def test_finished_stage_is_read_and_not_touched(finished: Path, small_data: Data) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished / "transfer").iterdir()}
    lines: list[str] = []
    result = run_stage("transfer", small_data, SMALL, output_dir=finished.parent, log=lines.append)
    written = json.loads((finished / "transfer" / "result.json").read_text())
    del written["sha256"]
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


# A signal may come between the opening of a file and its name.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("no_garbage_collection")
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs an alarm")
def test_a_signal_at_any_moment_of_a_save_leaves_what_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise Stop

    monkeypatch.setattr(os, "fsync", lambda _: time.sleep(0.0005))
    before = signal.signal(signal.SIGALRM, stop)
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters())
    folder = RunFolder(tmp_path, {"stage": "base"})
    generator = random.Random(0)
    done, stopped = 0, 0
    for _ in range(300):
        with warnings.catch_warnings(action="error"):
            history = folder.resume(model, optimizer, {"threads": 1}, 0.0)
        assert len(history.rows) >= done  # no epoch that was saved is lost
        done = len(history.rows)
        history.add(EpochRecord(done + 1, *[0.0] * 6))
        try:
            signal.setitimer(signal.ITIMER_REAL, generator.uniform(1e-5, 5e-3))
            folder.save_epoch(model, optimizer, history)
            signal.setitimer(signal.ITIMER_REAL, 0)
            done += 1
        except Stop:
            stopped += 1
    signal.signal(signal.SIGALRM, before)
    assert done > 0
    assert stopped > 0


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
        discard(tmp_path, [tmp_path / "base", tmp_path / "transfer"])
    assert contents(tmp_path / "base") == before


def test_checkpoint_to_go_on_from_holds_no_times(finished: Path) -> None:
    content = copy.deepcopy(load_checkpoint(finished / "base" / "last.pt"))
    assert set(content) == {"settings", "epoch", "model", "optimizer", "surroundings"}
    assert not any("seconds" in key for key in content["settings"])
