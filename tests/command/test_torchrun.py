"""``train`` under torchrun: real processes, one of them killed, two machines on loopback."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cifar_tl.checkpoint import load_checkpoint
from cifar_tl.command.train import main
from tests.forked import ROOT, Command

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="finds the processes in /proc"
)
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
SHORT = ("--data", "small.npz", "--epochs", "2", "--device", "cpu")


@contextlib.contextmanager
def started(*words: str, cwd: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """Starts torchrun with some words, in a session of its own, and ends all of it at last."""
    process = subprocess.Popen(
        [*TORCHRUN, *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        end_all(process)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def workers(launcher: subprocess.Popen[str]) -> dict[int, int]:
    """Finds the processes that a torchrun has started: their numbers by rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, KeyError):
            _, parent, *_ = folder.joinpath("stat").read_text().rpartition(")")[2].split()
            if int(parent) == launcher.pid:
                environ = folder.joinpath("environ").read_bytes().split(b"\0")
                variables = dict(word.partition(b"=")[::2] for word in environ)
                found[int(variables[b"RANK"])] = int(folder.name)
    return found


def end_all(launcher: subprocess.Popen[str]) -> None:
    """Kills a torchrun and its processes, as a machine that loses its power would."""
    for pid in (launcher.pid, *workers(launcher).values()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def run(*words: str, code: int = 0) -> str:
    """Runs torchrun to its end; returns what the processes printed, not torchrun."""
    with started(*words) as process:
        output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    return "".join(
        line for line in output.splitlines(keepends=True) if "torch/distributed" not in line
    )


def wait_for(path: Path, text: str = "") -> None:
    for _ in range(6000):
        if path.exists() and text in path.read_text():
            return
        time.sleep(0.01)
    pytest.fail(f"{path} does not come to hold {text!r}")


def epochs_in(folder: Path) -> int:
    return len((folder / "history.csv").read_text().splitlines()) - 1


@pytest.fixture(autouse=True)
def _data(small_npz: Path) -> None:
    Path("small.npz").symlink_to(small_npz)


def test_all_stages_leave_their_files_and_the_same_again() -> None:
    train = ("--nproc-per-node", "2", str(ROOT / "train.py"), *SHORT)
    printed = run(*train, "--output-dir", "a")
    assert printed.count("base on small.npz: validation accuracy") == 1
    assert "2 processes of 1 thread on cpu" in printed
    folders = {path.parent.name for path in Path("a").glob("**/result.json")}
    assert folders == {"base", "transfer", "finetune", "scratch"}
    assert Path("a/small.npz/comparison.txt").exists()
    again = ("-m", "cifar_tl", "train", *SHORT, "--stage", "scratch", "--restart")
    before = {path: path.read_bytes() for path in Path("a").glob("**/scratch/*.pt")}
    assert len(before) == 2
    run("--nproc-per-node", "2", *again, "--output-dir", "a")
    assert {path: path.read_bytes() for path in before} == before
    assert not list(Path("a").glob("**/.*"))


def test_seeds_are_divided_among_processes_and_have_the_bytes_of_one(
    own_classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of one's own pictures, three seeds for two processes."""
    train = ["-m", "cifar_tl", "train", "--data", str(own_classes), "--epochs", "2"]
    train += ["--stage", "transfer", "--seeds", "3", "--threads", "1", "--output-dir"]
    printed = run("--nproc-per-node", "2", *train, "two")
    assert "of 3 seeds" in printed
    assert main([*train[3:], "one"]) == 0
    alone = capsys.readouterr().out
    both = [re.findall("of 3 seeds|validation accuracy .* of", text) for text in (printed, alone)]
    assert both[0] == both[1]
    for seed in range(3):
        for name in ("model.pt", "last.pt"):
            files = [Path(root, "own/transfer", f"seed-{seed}", name) for root in ("one", "two")]
            assert files[0].read_bytes() == files[1].read_bytes()


def test_a_killed_process_is_started_again_and_goes_on_and_restart_deletes_once(
    zygote: subprocess.Popen[str],
) -> None:
    folder = Path("runs/small.npz/base")
    folder.mkdir(parents=True)
    (folder / "result.json").touch()
    train = [str(ROOT / "train.py"), "--data", "small.npz", "--stage", "base", "--restart"]
    train += ["--epochs", "200", "--batch-size", "20"]
    with started("--nproc-per-node", "2", "--max-restarts", "1", *train) as launcher:
        wait_for(folder / "history.csv", "\n5,")
        assert not (folder / "result.json").exists()
        first = workers(launcher)
        os.kill(first[1], signal.SIGKILL)
        for _ in range(3000):
            time.sleep(0.01)
            if len(second := workers(launcher)) == 2 and set(second.values()).isdisjoint(
                first.values()
            ):
                break
        kept = epochs_in(folder)
        assert kept >= 5
        wait_for(folder / "history.csv", f"\n{kept + 3},")
        surroundings = load_checkpoint(folder / "last.pt")["surroundings"]
        assert surroundings == [{**surroundings[0], "processes": 2, "from_epoch": 1}]
        os.kill(workers(launcher)[0], signal.SIGKILL)  # once too often
        output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode != 0
    assert "going on after epoch" in output
    # One process goes on from there, and says what is another.
    alone = Command(zygote, ["train", *train[1:-5], *train[-4:]])
    wait_for(Path("errors.txt"), "going on in other surroundings (processes 2 before, None now)")
    alone.send(signal.SIGKILL)
    assert alone.exit_code() == -signal.SIGKILL


@pytest.mark.slow
def test_two_machines_with_folders_of_their_own_one_dies_and_comes_back(
    small_npz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without it, torchrun 2.14 itself waits for a word that nobody says again.
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    words = ["--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3", "--rdzv-id", "test"]
    words += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}"]
    words += [str(ROOT / "train.py"), "--data", "small.npz", "--stage", "base"]
    words += ["--epochs", "60", "--batch-size", "20", "--restart"]
    machines = [Path("one"), Path("two")]
    for machine in machines:
        machine.mkdir()
        (machine / "small.npz").symlink_to(small_npz)
    folders = [machine / "runs/small.npz/base" for machine in machines]
    with started(*words, cwd=machines[0]) as one:
        time.sleep(0.5)  # it is to have the meeting point
        with started(*words, cwd=machines[1]) as two:
            wait_for(folders[0] / "history.csv", "\n5,")
            wait_for(folders[1] / "history.csv", "\n5,")
            end_all(two)
        for path in folders[1].iterdir():  # it comes back without its disk
            path.unlink()
        with started(*words, cwd=machines[1]) as two:
            outputs = [process.communicate(timeout=120)[0] for process in (one, two)]
        assert [one.returncode, two.returncode] == [0, 0], outputs
    assert re.search(r"going on after epoch [1-9]", "".join(outputs))
    for name in ("model.pt", "last.pt"):
        assert folders[0].joinpath(name).read_bytes() == folders[1].joinpath(name).read_bytes()
    assert torch.load(folders[0] / "last.pt", weights_only=True)["epoch"] == 60


def test_an_error_in_one_process_ends_all_with_its_message() -> None:
    Path("runs/small.npz/base/history.csv").mkdir(parents=True)  # which only one of them writes
    with started("--nproc-per-node", "2", str(ROOT / "train.py"), *SHORT) as process:
        output, _ = process.communicate(timeout=100)
    assert process.returncode != 0
    (line,) = [line for line in output.splitlines() if line.startswith("torchrun")]
    assert "history.csv: Is a directory" in line
    assert f"To go on: torchrun --nproc-per-node 2 {ROOT / 'train.py'} --data small.npz" in line
    assert "cifar_tl/" not in output.replace(str(ROOT), "")  # no traceback, but torchrun's own
