"""Processes that are told what torchrun would tell them: forked, so that they start at once."""

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.forked import run_forked

# Forks two processes on each machine; the folder of a machine stands for its disk.
MACHINES = """
import json, os, signal, socket, sys, time, traceback
from pathlib import Path
import torch
from torch import distributed
from cifar_tl import *
from cifar_tl.processes import launch
from cifar_tl.command.train import main

launch.TIME_TO_BE_ENDED = 0.1  # by whom? Here is no torchrun
results = []

def in_all(work, machines=2, keeps_store=False):
    with socket.socket() as listener:  # a port that no store before has had
        listener.bind(("127.0.0.1", 0))
        address = listener.getsockname()
    # torchrun may keep the store of its processes itself, so that it outlives them. Here it has a
    # process of its own: a fork beside the store's thread could inherit a lock that is held.
    keeper = os.fork() if keeps_store else None
    if keeper == 0:
        store = distributed.TCPStore(*address, is_master=True, wait_for_workers=False)
        signal.alarm(300)
        signal.pause()
    pids = []
    for rank in range(2 * machines):
        pids.append(os.fork())
        if pids[-1] == 0:
            code = 1
            try:
                machine = Path(f"machine{rank // 2}").absolute()
                machine.mkdir(exist_ok=True)
                os.chdir(machine)
                os.environ.update(
                    RANK=str(rank), WORLD_SIZE=str(2 * machines), LOCAL_RANK=str(rank % 2),
                    LOCAL_WORLD_SIZE="2", GROUP_WORLD_SIZE=str(machines),
                    TORCHELASTIC_RUN_ID="test", TORCHELASTIC_RESTART_COUNT="0",
                    TORCHELASTIC_USE_AGENT_STORE=str(keeps_store),
                    TORCHELASTIC_ERROR_FILE=f"{machine}/logs/attempt_0/{rank % 2}/error.json",
                    MASTER_ADDR=address[0], MASTER_PORT=str(address[1]),
                )
                Path("logs").mkdir(exist_ok=True)
                Path(f"../{rank}.json").write_text(json.dumps(work()))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
    ended = [os.waitpid(pid, 0)[1] for pid in pids]
    if keeper is not None:
        os.kill(keeper, signal.SIGKILL)
        os.waitpid(keeper, 0)
    assert not any(ended)
    results.append([json.loads(Path(f"{rank}.json").read_text()) for rank in range(2 * machines)])
    Path("results.json").write_text(json.dumps(results))
"""


def in_all(zygote: subprocess.Popen[str], program: str) -> tuple[list[list[Any]], str]:
    """Runs a program that calls ``in_all``; returns what each call found by rank, and errors."""
    errors = run_forked(zygote, MACHINES + program)
    return json.loads(Path("results.json").read_text()), errors
