"""What goes wrong outside: killed processes, signals, full disks, closed pipes, too little memory.

Real processes, real signals, real write errors. The long versions: ``python -m pytest -m slow``.
"""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torchvision.datasets import CIFAR10

from cifar_tl.checkpoint import load_checkpoint
from cifar_tl.command.train import main
from cifar_tl.data.cifar10 import download_cifar10
from cifar_tl.disk import locked
from cifar_tl.experiment import stages
from cifar_tl.experiment.stages import STAGES
from tests.command.conftest import start_and_hold
from tests.forked import PATIENCE, Command, one_line

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX processes")

SHORT = ["--epochs", "3", "--batch-size", "20", "--threads", "1"]


@pytest.fixture
def arguments(tiny_npz: Path) -> list[str]:
    return ["--data", str(tiny_npz), "--quiet", *SHORT]


@pytest.mark.parametrize("kills", [3, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(
    zygote: subprocess.Popen[str], arguments: list[str], kills: int
) -> None:
    generator = random.Random(kills)
    arguments += ["--finetune-epochs", "3"]
    started = time.perf_counter()
    assert Command(zygote, ["train", *arguments, "--output-dir", "whole"]).exit_code() == 0
    duration = time.perf_counter() - started
    killed, finished = 0, 0
    while killed < kills or not finished:
        output_dir = Path(f"killed{finished}")
        # Half of the time of a whole run, so that most runs are killed more than once.
        killed_after = generator.uniform(1e-3, duration / 2) if killed < kills else PATIENCE
        command = [*arguments, "--output-dir", str(output_dir)]
        code = Command(zygote, ["train", *command], killed_after=killed_after).exit_code()
        if code == -signal.SIGALRM:
            killed += 1
            continue
        assert code == 0
        finished += 1
        for stage in STAGES:
            folder = output_dir / "tiny.npz" / stage
            whole = Path("whole/tiny.npz") / stage
            for name in (stages.MODEL, stages.LAST):
                assert (folder / name).read_bytes() == (whole / name).read_bytes()
            rows = (folder / stages.HISTORY).read_text().splitlines()[1:]
            assert [row.split(",")[0] for row in rows] == ["1", "2", "3"]
            names = {path.name for path in folder.iterdir()}
            assert names == {path.name for path in whole.iterdir()}
    print(f"{killed} kills, {finished} runs finished")


@pytest.mark.parametrize(
    ("number", "code", "saving", "epochs"),
    [  # Each file is synced, then its folder: history and last.pt of three epochs, then the model.
        (signal.SIGINT, 130, 1, 0),
        (signal.SIGTERM, 143, 3, 0),
        (signal.SIGINT, 130, 7, 1),
        (signal.SIGTERM, 143, 13, 3),
        (signal.SIGINT, 130, 17, 3),
    ],
)
def test_a_signal_during_a_save_leaves_what_was_saved_and_says_how_to_go_on(
    zygote: subprocess.Popen[str],
    arguments: list[str],
    number: signal.Signals,
    code: int,
    saving: int,
    epochs: int,
) -> None:
    process = start_and_hold(zygote, [*arguments, "--stage", "base"], saving)
    process.send(number)
    errors = process.end(code)
    Path("go").touch()
    assert "what was finished is saved. To go on: cifar-tl train --data /" in errors
    folder = Path("runs/tiny.npz/base")
    names = {path.name for path in folder.iterdir()}
    assert stages.RESULT not in names
    assert not [name for name in names if name.endswith(".tmp")]
    if epochs:
        assert load_checkpoint(folder / stages.LAST)["epoch"] == epochs
    assert Command(zygote, ["train", *arguments, "--stage", "base"]).exit_code() == 0
    assert (folder / stages.RESULT).exists()


def test_a_second_signal_ends_it_at_once(
    zygote: subprocess.Popen[str], arguments: list[str]
) -> None:
    # Two syncs for each file, its own and its folder's: the fifth is in the second epoch.
    process = start_and_hold(zygote, [*arguments, "--stage", "base"], 5)
    process.send(signal.SIGINT)
    process.send(signal.SIGTERM)  # another one: two equal signals in one moment are one
    assert process.exit_code() in (130, 143)  # of the first one, or of the second
    Path("go").touch()
    assert load_checkpoint(Path("runs/tiny.npz/base/last.pt"))["epoch"] == 1


def test_a_write_error_keeps_what_was_there(
    zygote: subprocess.Popen[str], arguments: list[str]
) -> None:
    arguments += ["--stage", "base"]
    stop_after_an_epoch(zygote, arguments)
    folder = Path("runs/tiny.npz/base")
    before = (folder / stages.LAST).read_bytes()
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    errors = Command(zygote, ["train", *arguments], before=limit).end(1)
    assert (
        f"{folder / stages.LAST}: {os.strerror(errno.EFBIG)}; what was finished is saved" in errors
    )
    assert (folder / stages.LAST).read_bytes() == before
    assert {path.name for path in folder.iterdir()} == {stages.LAST, stages.HISTORY}
    assert main(arguments) == 0


def stop_after_an_epoch(zygote: subprocess.Popen[str], arguments: list[str]) -> None:
    process = start_and_hold(zygote, arguments, 5)  # in the second epoch
    process.send(signal.SIGTERM)
    process.end(143)


def test_two_processes_never_share_a_folder(
    zygote: subprocess.Popen[str], arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments += ["--stage", "base"]
    process = start_and_hold(zygote, arguments, 2)
    for extra in ([], ["--restart"]):
        assert main([*arguments, *extra]) == 1
        errors = capsys.readouterr().err
        assert "another process is at work in runs/tiny.npz/base: wait until" in one_line(errors)
    process.send(signal.SIGKILL)
    assert process.exit_code() == -signal.SIGKILL
    assert main([*arguments, "--restart"]) == 0  # a killed process blocks nobody


def test_a_file_in_place_of_a_folder_is_refused_before_any_work(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path("runs/tiny.npz")
    folder.mkdir(parents=True)
    (folder / "scratch").write_text("")
    assert main(arguments) == 2
    assert "runs/tiny.npz/scratch: nothing can be written there" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["scratch"]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_too_little_memory_is_one_line(zygote: subprocess.Popen[str], arguments: list[str]) -> None:
    """A batch of all shapes takes half a gigabyte at once. Small pieces might crash oneDNN."""
    limit = """
import resource
from pathlib import Path
# Threads, which need memory of their own, are there before.
torch.ones(500, 500, requires_grad=True).square().sum().backward()
pages = int(Path("/proc/self/statm").read_text().split()[0])
size = pages * resource.getpagesize() + 200_000_000
resource.setrlimit(resource.RLIMIT_AS, (size, size))
"""
    arguments += ["--data", "shapes", "--stage", "base", "--recipe", "original"]
    arguments += ["--batch-size", "4800"]
    errors = Command(zygote, ["train", *arguments], before=limit).end(1)
    assert "out of memory: raise the limit of memory (ulimit -v unlimited), or try" in errors


def test_restart_of_all_stages_deletes_nothing_while_one_is_at_work(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--epochs", "1"]) == 0
    before = {path: path.read_bytes() for path in Path("runs").rglob("*.*") if path.is_file()}
    with locked(Path("runs/tiny.npz/scratch")):  # flock holds between two openings, too
        assert main([*arguments, "--epochs", "1", "--restart"]) == 1
    assert "another process is at work in runs/tiny.npz/scratch" in capsys.readouterr().err
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_killed_download_leaves_nothing_behind(tmp_path: Path, archive: bytes) -> None:
    partial = tmp_path / f"{CIFAR10.filename}.0123456789abcdef.partial"  # as torch.hub names it
    partial.write_bytes(archive[:1000])
    (tmp_path / CIFAR10.filename).write_bytes(archive)
    download_cifar10(tmp_path)
    assert not partial.exists()


@pytest.mark.filterwarnings("default:going on")
def test_going_on_with_other_threads_warns_and_is_recorded(
    zygote: subprocess.Popen[str], arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments += ["--stage", "base"]
    stop_after_an_epoch(zygote, arguments)
    assert main([*arguments, "--threads", "2"]) == 0
    errors = capsys.readouterr().err
    assert "warning: going on in other surroundings (threads 1 before, 2 now)" in one_line(errors)
    folder = Path("runs/tiny.npz/base")
    result = json.loads((folder / "result.json").read_text())
    version = str(torch.__version__)
    assert result["surroundings"] == [
        {"from_epoch": 1, "torch": version, "threads": 1, "device": "cpu"},
        {"from_epoch": 2, "torch": version, "threads": 2, "device": "cpu"},
    ]
    assert "from epoch 2 on: torch" in (folder / "results.txt").read_text()
