"""What the processes of a launch do once: for all of it, or for a machine."""

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from cifar_tl.processes.launch import divided_threads, once_a_launch
from tests.processes.launched import in_all

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")


def test_a_result_is_made_once_a_machine_and_all_wait_for_the_slowest(
    zygote: subprocess.Popen[str],
) -> None:
    program = """
def read():
    time.sleep(float(Path.cwd().name == "machine1"))
    Path("read").open("a").write("x")
    return torch.full((1000,), os.getpid())

def work():
    with launch.process_group("cpu", separate=False) as group:
        found = launch.once_a_machine(read, group)
        distributed.barrier()  # the first has the store
        there = [Path(f"../machine{number}/read").exists() for number in range(2)]
        return [int(found[0]), os.getpid(), there]

in_all(work)
"""
    (found,), _ = in_all(zygote, program)
    makers, pids, there = zip(*found, strict=True)
    assert list(makers) == [pids[0], pids[0], pids[2], pids[2]]
    assert [Path(f"machine{number}/read").read_text() for number in range(2)] == ["x", "x"]
    assert list(there) == [[True, True]] * 4


def test_what_is_done_once_a_launch_is_not_done_again_by_a_machine_that_comes_back(
    zygote: subprocess.Popen[str],
) -> None:
    """Also when torchrun does not count its starts; but again if not all had come to its end."""
    program = """
def fail():
    if launch.launch().rank == 3:
        os._exit(0)

def stop():
    Path("../3.json").write_text("0")
    try:
        with launch.process_group("cpu", separate=False) as group:
            launch.once_a_launch("restart", fail, group)
    except RuntimeError:
        return 0

def work():
    calls = []
    with launch.process_group("cpu", separate=False) as group:
        return [launch.once_a_launch("restart", lambda: calls.append(1), group), len(calls)]

in_all(stop)
in_all(work)
in_all(work)
for path in Path("machine1/logs").iterdir():  # it comes back without its disk
    path.unlink()
in_all(work)
"""
    found, _ = in_all(zygote, program)
    assert found == [[0] * 4, [[True, 1]] * 4, [[False, 0]] * 4, [[False, 0]] * 4]


def test_machines_with_other_images_or_other_options_end_with_one_line(
    zygote: subprocess.Popen[str], small_npz: Path
) -> None:
    with np.load(small_npz) as arrays:
        other = {name: arrays[name].copy() for name in arrays}
    other["x_train"][0, 0, 0] ^= 1
    for machine, arrays in (("machine0", np.load(small_npz)), ("machine1", other)):
        Path(machine).mkdir()
        np.savez(f"{machine}/small.npz", **arrays)
    program = f"""
def train(*words):
    return main(["--epochs", "1", *words])

def on_second(*words):
    others = words if Path.cwd().name == "machine1" else ()
    return train("--data", {str(small_npz)!r}, *others)

in_all(lambda: train("--data", "small.npz"), keeps_store=True)
in_all(lambda: on_second("--seeds", "2"), keeps_store=True)
in_all(lambda: on_second("--restart"), keeps_store=True)
in_all(lambda: on_second("--stage", "base"), keeps_store=True)
"""
    found, errors = in_all(zygote, program)
    assert found == [[2] * 4] * 4
    said = re.findall(r"the processes must have the same (\S+): process 0 .*: give all", errors)
    assert said == ["fingerprint", "seeds", "restart", "stage"]
    assert len(errors.splitlines()) == 4
    assert not list(Path().glob("machine?/runs/*"))


def test_one_process_that_is_started_again_does_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    assert once_a_launch("restart", lambda: calls.append("alone"), None)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    for log in (str(tmp_path / "attempt_0" / "0" / "error.json"), ""):  # none: --log-dir /dev/null
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", log)
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
        assert once_a_launch("restart", lambda: calls.append("first"), None)
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
        assert not once_a_launch("restart", lambda: calls.append("again"), None)
    assert calls == ["alone", "first", "first"]


def test_a_machine_that_fails_while_it_reads_ends_all_with_its_line(
    zygote: subprocess.Popen[str], small_npz: Path
) -> None:
    """Also those that wait for it, who would not notice it otherwise."""
    Path("machine1").mkdir()
    Path("machine1/small.npz").write_bytes(small_npz.read_bytes()[:-1000])
    Path("machine0").mkdir()
    Path("machine0/small.npz").write_bytes(small_npz.read_bytes())
    found, errors = in_all(zygote, 'in_all(lambda: main(["--data", "small.npz", "--epochs", "1"]))')
    assert 0 not in found[0]
    lines = [line for line in errors.splitlines() if "another process is gone" not in line]
    assert len(lines) == 1, errors
    assert "small.npz" in lines[0]


def test_processes_that_do_not_come_are_not_waited_for_for_ever(
    zygote: subprocess.Popen[str],
) -> None:
    program = """
from cifar_tl.command.console import LOST

launch.TIME_TO_MEET = 1

def work():
    if launch.launch().rank == 2:
        return "failed before"
    try:
        with launch.process_group("cpu", separate=False):
            return "met"
    except RuntimeError as error:
        assert LOST.search(str(error))
        return "lost"

in_all(work)
"""
    found, _ = in_all(zygote, program)
    assert found == [["lost", "lost", "failed before", "lost"]]


@pytest.mark.parametrize(
    ("cores", "processes", "threads"), [(8, 2, 4), (8, 3, 2), (2, 4, 1), (8, 1, None)]
)
def test_the_processes_of_a_machine_divide_its_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, processes: int, threads: int | None
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores), raising=False)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, str(processes))
    monkeypatch.setenv("GROUP_WORLD_SIZE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as torchrun sets it
    assert divided_threads() == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # as the user has set it
    assert divided_threads() is None
