"""``train`` in several processes: forked ones, and those of torchrun itself.

torchrun's processes import torch, which takes long. One test of them is quick; the others, in which
processes are killed or machines die, run with ``python -m pytest -m slow``.
"""

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
from cifar_tl.experiment.stages import STAGES
from tests.forked import PATIENCE, ROOT, Command, wait_for
from tests.processes.launched import in_all

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
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, output
    return "".join(
        line for line in output.splitlines(keepends=True) if "torch/distributed" not in line
    )


def wait_for_port(port: int) -> None:
    """Waits until somebody listens at a port of this machine."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.01)
    pytest.fail("nobody listens")


def epochs_in(folder: Path) -> int:
    return len((folder / "history.csv").read_text().splitlines()) - 1


@pytest.fixture(autouse=True)
def _data(small_npz: Path) -> None:
    Path("small.npz").symlink_to(small_npz)


def bytes_of(pattern: str) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path().glob(pattern)}


@pytest.mark.filterwarnings("default:going on")
def test_all_stages_leave_their_files_once_and_the_same_again(
    zygote: subprocess.Popen[str], tiny_npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(tiny_npz), "--epochs", "2", "--threads", "1"]
    found, errors = in_all(zygote, f"in_all(lambda: main({words}), machines=1)")
    assert (found, errors) == ([[0, 0]], "")
    printed = Path("out.txt").read_text()
    assert printed.count("base on tiny.npz: validation accuracy") == 1
    assert "2 processes of 1 thread on cpu" in printed
    folder = Path("machine0/runs/tiny.npz")
    assert {path.parent.name for path in folder.glob("*/result.json")} == {*STAGES}
    assert (folder / "comparison.txt").exists()
    before = bytes_of(f"{folder}/scratch/*.pt")
    assert len(before) == 2
    again = [*words, "--stage", "scratch", "--restart"]
    assert in_all(zygote, f"in_all(lambda: main({again}), machines=1)")[0] == [[0, 0]]
    assert bytes_of(f"{folder}/scratch/*.pt") == before
    assert not list(folder.glob("**/.*"))
    # One process goes on from there, and says what is another.
    (folder / "base/result.json").unlink()
    alone = [*words, "--stage", "base", "--output-dir", "machine0/runs"]
    assert main(alone) == 0
    errors = capsys.readouterr().err
    assert "going on in other surroundings (processes 2 before, None now)" in errors


def test_seeds_are_divided_among_processes_and_have_the_bytes_of_one(
    zygote: subprocess.Popen[str], own_classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of one's own pictures, three seeds for two processes."""
    train = ["--data", str(own_classes), "--epochs", "2", "--threads", "1"]
    train += ["--stage", "transfer", "--seeds", "3"]
    assert in_all(zygote, f"in_all(lambda: main({train}), machines=1)") == ([[0, 0]], "")
    check_seeds(train, Path("out.txt").read_text(), Path("machine0/runs"), capsys)


def check_seeds(
    train: list[str], printed: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Compares what several processes have printed and written with what one does."""
    assert "of 3 seeds" in printed
    assert main([*train, "--output-dir", "one"]) == 0
    alone = capsys.readouterr().out
    both = [re.findall("of 3 seeds|validation accuracy .* of", text) for text in (printed, alone)]
    assert both[0] == both[1]
    for seed in range(3):
        for name in ("model.pt", "last.pt"):
            path = Path("own/transfer", f"seed-{seed}", name)
            assert (runs / path).read_bytes() == ("one" / path).read_bytes()


@pytest.mark.slow
def test_torchrun_all_stages_leave_their_files_and_the_same_again() -> None:
    train = ("--nproc-per-node", "2", str(ROOT / "train.py"), *SHORT)
    printed = run(*train, "--output-dir", "a")
    assert printed.count("base on small.npz: validation accuracy") == 1
    assert re.search("2 processes of [1-9][0-9]* threads? on cpu", printed)
    folders = {path.parent.name for path in Path("a").glob("**/result.json")}
    assert folders == {*STAGES}
    assert Path("a/small.npz/comparison.txt").exists()
    again = ("-m", "cifar_tl", "train", *SHORT, "--stage", "scratch", "--restart")
    before = bytes_of("a/**/scratch/*.pt")
    assert len(before) == 2
    run("--nproc-per-node", "2", *again, "--output-dir", "a")
    assert bytes_of("a/**/scratch/*.pt") == before
    assert not list(Path("a").glob("**/.*"))


@pytest.mark.slow
def test_torchrun_divides_seeds_among_processes(
    own_classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["--data", str(own_classes), "--epochs", "2", "--threads", "1"]
    train += ["--stage", "transfer", "--seeds", "3"]
    printed = run("--nproc-per-node", "2", "-m", "cifar_tl", "train", *train)
    check_seeds(train, printed, Path("runs"), capsys)


@pytest.mark.slow
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
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            second = workers(launcher)
            if len(second) == 2 and set(second.values()).isdisjoint(first.values()):
                break
            time.sleep(0.01)
        kept = epochs_in(folder)
        assert kept >= 5
        wait_for(folder / "history.csv", f"\n{kept + 3},")
        surroundings = load_checkpoint(folder / "last.pt")["surroundings"]
        assert surroundings == [{**surroundings[0], "processes": 2, "from_epoch": 1}]
        os.kill(workers(launcher)[0], signal.SIGKILL)  # once too often
        output, _ = launcher.communicate(timeout=PATIENCE)
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
        wait_for_port(port)  # it is to have the meeting point
        with started(*words, cwd=machines[1]) as two:
            wait_for(folders[0] / "history.csv", "\n5,")
            wait_for(folders[1] / "history.csv", "\n5,")
            end_all(two)
        for path in folders[1].iterdir():  # it comes back without its disk
            path.unlink()
        with started(*words, cwd=machines[1]) as two:
            outputs = [process.communicate(timeout=PATIENCE)[0] for process in (one, two)]
        assert [one.returncode, two.returncode] == [0, 0], outputs
    assert re.search(r"going on after epoch [1-9]", "".join(outputs))
    for name in ("model.pt", "last.pt"):
        assert folders[0].joinpath(name).read_bytes() == folders[1].joinpath(name).read_bytes()
    assert torch.load(folders[0] / "last.pt", weights_only=True)["epoch"] == 60


def test_torchrun_an_error_in_one_process_ends_all_with_its_message() -> None:
    Path("runs/small.npz/base/history.csv").mkdir(parents=True)  # which only one of them writes
    with started("--nproc-per-node", "2", str(ROOT / "train.py"), *SHORT) as process:
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    lines = [line for line in output.splitlines() if line.startswith("torchrun")]
    (line,) = [line for line in lines if "another process is gone" not in line]
    assert "history.csv: Is a directory" in line
    assert f"To go on: torchrun --nproc-per-node 2 {ROOT / 'train.py'} --data small.npz" in line
    assert "cifar_tl/" not in output.replace(str(ROOT), "")  # no traceback, but torchrun's own
