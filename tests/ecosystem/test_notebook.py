"""The commands in a real Jupyter kernel: stopped at any moment, it lives and keeps variables."""

import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cifar_tl.experiment.stages import LAST, MODEL, STAGES
from tests.forked import PATIENCE, ROOT

pytest.importorskip("ipykernel")
pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals"),
    pytest.mark.filterwarnings("default"),  # of Jupyter itself
]

MAIN = "from cifar_tl.__main__ import main\nmain({words})"
RUN = f"%run {ROOT}/train.py {{line}}"
SETTINGS = ["--epochs", "4", "--batch-size", "20", "--threads", "1"]


class Notebook:
    """A kernel, in the present folder."""

    def __init__(self, manager: Any, client: Any) -> None:
        self.manager, self.client = manager, client

    def run(self, cell: str, *stops: float) -> tuple[str, str | None]:
        """Runs a cell, and presses "stop" after some seconds.

        Returns:
            What it printed, and the name of the exception that it raised.
        """
        start, printed, raised = time.monotonic(), "", None
        to_come = [start + seconds for seconds in stops]
        asked = self.client.execute(cell)
        while True:
            assert self.manager.is_alive(), printed
            assert time.monotonic() < start + PATIENCE, printed
            if to_come and time.monotonic() >= to_come[0]:
                to_come.pop(0)
                os.kill(self.manager.provisioner.pid, signal.SIGINT)  # as Jupyter does
            try:
                message = self.client.get_iopub_msg(timeout=0.005)
            except Exception as error:
                assert type(error).__name__ == "Empty"  # noqa: PT017
                continue
            if message["parent_header"].get("msg_id") != asked:
                continue
            content = message["content"]
            printed += content.get("text", "")
            raised = content.get("ename", raised)
            if content.get("execution_state") == "idle":
                return printed, raised


@contextlib.contextmanager
def started() -> Iterator[Notebook]:
    from jupyter_client.manager import KernelManager

    environment = {**os.environ, "PYTHONPATH": str(ROOT), "IPYTHONDIR": str(Path.cwd() / "ipython")}
    manager: Any = KernelManager()
    manager.connection_file = str(Path.cwd() / "kernel.json")
    manager.start_kernel(env=environment)
    client = manager.client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=PATIENCE)
        notebook = Notebook(manager, client)
        notebook.run("import signal\nkept, handler = 41, signal.getsignal(signal.SIGINT)")
        yield notebook
        same = notebook.run("print(kept, signal.getsignal(signal.SIGINT) is handler)")
        assert same == ("41 True\n", None)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def write_cell(template: str, *arguments: str) -> str:
    return template.format(words=["train", *arguments], line=" ".join(arguments))


# Stops the kernel twice within 50 ms as soon as torch is being imported.
STOP_AT_TORCH = """
import os, sys, threading, time
def stop():
    while "torch" not in sys.modules:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.03)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=stop).start()
"""


@pytest.mark.parametrize("template", [MAIN, RUN])
def test_a_stop_while_torch_is_imported_is_an_exception_and_torch_works(
    tiny_npz: Path, template: str
) -> None:
    train = write_cell(template, "--data", str(tiny_npz), "--stage", "base", *SETTINGS)
    with started() as notebook:
        notebook.run(STOP_AT_TORCH)
        printed, raised = notebook.run(train)
        assert raised == "KeyboardInterrupt", printed
        assert printed.count("interrupted; what was finished is saved. To go on: cifar-tl ") == 1
        printed, raised = notebook.run(train)
        assert raised is None
        assert "files in runs/tiny.npz/base" in printed


@pytest.mark.parametrize("stops", [6, pytest.param(100, marks=pytest.mark.slow)])
def test_stopped_at_any_moment_it_goes_on_to_the_same_bytes(tiny_npz: Path, stops: int) -> None:
    generator = random.Random(stops)
    stopped = finished = 0
    with started() as notebook:
        train = ["--data", str(tiny_npz), *SETTINGS, "--finetune-epochs", "3", "--output-dir"]
        notebook.run(write_cell(MAIN, *train, "first"))  # imports take longer than all the rest
        start = time.monotonic()
        assert notebook.run(write_cell(MAIN, *train, "whole"))[1] is None
        duration = time.monotonic() - start
        while stopped < stops or not finished:
            cell = write_cell(generator.choice([MAIN, RUN]), *train, f"stopped{finished}")
            moment = generator.uniform(0, duration / 2)
            twice = [moment, moment + generator.uniform(0, 0.05)]
            pressed = twice[: generator.randint(1, 2)] if stopped < stops else []
            printed, raised = notebook.run(cell, *pressed)
            assert raised in (None, "KeyboardInterrupt"), printed
            # Python ignores what is raised while it frees an object.
            assert "Traceback" not in printed or "Exception ignored in" in printed
            # After a second stop IPython itself only prints the name of the exception.
            if raised or "KeyboardInterrupt" in printed:
                stopped += 1
                continue
            for path in (f"tiny.npz/{stage}/{name}" for stage in STAGES for name in (MODEL, LAST)):
                found = Path(f"stopped{finished}", path).read_bytes()
                assert found == Path("whole", path).read_bytes()
            finished += 1
    assert not list(Path().rglob("*.tmp"))
    print(f"{stopped} stops, {finished} runs finished")


def test_without_ipywidgets_a_bar_is_text_and_nobody_is_warned() -> None:
    with started() as notebook:
        cell = "import sys\nsys.modules['ipywidgets'] = None\n"
        cell += "from cifar_tl.progress import with_bar\nprint(list(with_bar(range(3), 'images')))"
        printed, raised = notebook.run(cell)
    assert raised is None
    assert "images: " in printed
    assert "[0, 1, 2]" in printed
    assert "IProgress" not in printed
