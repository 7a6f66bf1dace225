"""Commands and programs in processes of their own that need not import torch: they are forked."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent

PATIENCE = 300.0  # seconds: far more than anything takes on the slowest and busiest machine

# Imports once, then runs a command, or a program, in a process of its own for each line, so that
# none costs seconds of imports; prints the process's number, then how it ended.
ZYGOTE = """
import json, os, signal, sys, time, traceback
sys.path.insert(0, sys.argv[1])
sys.modules["matplotlib"] = None  # pictures take a second a stage
import torch
from cifar_tl import *
from cifar_tl.__main__ import main
from cifar_tl.command import signals
torch.optim.SGD([torch.zeros(1)])
for line in sys.stdin:
    request = json.loads(line)
    pid = os.fork()
    if pid == 0:
        signal.setitimer(signal.ITIMER_REAL, request["killed_after"])  # nobody handles SIGALRM
        os.chdir(request["folder"])
        os.dup2(os.open("errors.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        if request["output"] == "closed pipe":
            reader, writer = os.pipe()
            os.close(reader)
        else:
            writer = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(writer, 1)
        sys.stdout.reconfigure(encoding=request["encoding"])
        exec(request["before"])
        if request["program"] is None:
            signals.handle_signals()  # as in a process of our own
            os._exit(main(request["arguments"]))
        sys.argv[1:] = request["arguments"]
        try:
            exec(request["program"], {"__name__": "__main__"})
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
os._exit(0)  # tidying up takes a second
"""
CLOSED_PIPE = "closed pipe"  # an output that nobody reads


class Command:
    """A command in a process of its own, in the present folder; one at a time."""

    def __init__(
        self,
        zygote: subprocess.Popen[str],
        arguments: Sequence[str],
        *,
        program: str | None = None,  # Python to run instead, with these arguments
        before: str = "",  # Python that the process runs first
        killed_after: float = PATIENCE,  # seconds; by SIGALRM, as sudden as SIGKILL
        output: str = "out.txt",  # a file, or CLOSED_PIPE
        encoding: str = "utf-8",  # of what it prints
    ) -> None:
        request: dict[str, object] = {"folder": str(Path.cwd()), "arguments": arguments}
        request |= {"program": program, "before": before}
        request |= {"killed_after": killed_after, "output": output, "encoding": encoding}
        assert zygote.stdin is not None
        assert zygote.stdout is not None
        print(json.dumps(request), file=zygote.stdin, flush=True)
        self.answers = zygote.stdout
        self.pid = int(self.answers.readline())

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait_until_printed(self, text: str, times: int = 1) -> None:
        wait_for(Path("out.txt"), text, times)

    def exit_code(self) -> int:
        return int(self.answers.readline())

    def end(self, code: int) -> str:
        """Waits for its end with a code; returns its one line of errors."""
        found = self.exit_code()
        assert found == code, f"{found}: {Path('errors.txt').read_text()}"
        return one_line(Path("errors.txt").read_text())


def wait_for(path: Path, text: str, times: int = 1) -> None:
    """Waits until a file holds a text, so many times."""
    end = time.monotonic() + PATIENCE
    while not (path.exists() and path.read_text().count(text) >= times):
        assert time.monotonic() < end, f"{path} does not come to hold {text!r}"
        time.sleep(0.01)


def run_forked(zygote: subprocess.Popen[str], program: str, *arguments: str) -> str:
    """Runs a Python program to its end in the present folder; returns its errors."""
    code = Command(zygote, arguments, program=program).exit_code()
    errors = Path("errors.txt").read_text()
    assert code == 0, errors
    return errors


def one_line(errors: str) -> str:
    assert len(errors.splitlines()) == 1, errors
    return errors


def start_zygote() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", ZYGOTE, str(ROOT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def run_program(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs Python from a clone, which need not be installed, with some words after it."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
