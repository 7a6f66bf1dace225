"""Measures how long the command takes to start, and its peak memory.

    python benchmarks/command.py cifar10.npz

The argument is a source of data, as for ``--data``. Each command is compared with a process that
only imports torch. All take turns. The shapes are drawn before the first step: that takes time of
its own. For Linux and macOS.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cifar_tl.experiment.stages import STAGES

ROUNDS = 7

IMPORT_TORCH = "import os, torch; os._exit(0)"  # a usual end takes time
MAKE_OPTIMIZER = "import os, torch; torch.optim.SGD([torch.zeros(1)]); os._exit(0)"
DRAW_SHAPES = "import os; from cifar_tl.data.shapes import draw_shapes; draw_shapes(); os._exit(0)"
FIRST_STEP = """
import os, sys
from torch.optim.optimizer import register_optimizer_step_post_hook
register_optimizer_step_post_hook(lambda *_: os._exit(0))
sys.path.insert(0, sys.argv.pop(1))
from cifar_tl.__main__ import main
sys.exit(main(["train", *sys.argv[1:]]) or "there was no training step")
"""


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="a .npz file or a folder with CIFAR-10")
    data = parser.parse_args().data
    data = str(Path(data).resolve()) if Path(data).exists() else data

    train = str(ROOT / "train.py")
    with tempfile.TemporaryDirectory() as folder:
        base = ["--output-dir", f"{folder}/first", "--stage", "base", "--restart"]
        picture = str(ROOT / "tests/cifar10.png")
        first_step = ["-c", FIRST_STEP, str(ROOT), *base]
        commands = {
            "import torch": ["-c", IMPORT_TORCH],
            "import torch, make one optimizer": ["-c", MAKE_OPTIMIZER],
            "--help": [train, "--help"],
            "a wrong argument": [train, "--epochs", "none"],
            "import torch, draw the shapes": ["-c", DRAW_SHAPES],
            "launch to the end of the first step, shapes": [*first_step, "--data", "shapes"],
            "launch to the end of the first step, the data": [*first_step, "--data", data],
            "predict of one picture": ["-m", "cifar_tl", "predict", picture],
            "one epoch of base, from start to end": [train, *base, "--data", data, "--epochs", "1"],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(ROUNDS):
            for name, arguments in commands.items():
                times[name].append(run(arguments, 2 if name == "a wrong argument" else 0)[0])
        imports = statistics.median(times["import torch"])
        for name, values in times.items():
            low, high, median = min(values), max(values), statistics.median(values)
            ratio = f"{median / imports:.2f} of import torch"
            print(f"{name}: {median:.2f} s ({low:.2f}-{high:.2f}), {ratio}")

        torch_memory = run(["-c", "import torch"])[1]
        print(f"import torch: {torch_memory:.0f} MB at the peak")
        for stage in STAGES:
            options = ["--data", data, "--output-dir", folder, "--stage", stage, "--epochs", "1"]
            memory = run([train, *options])[1]
            print(f"{stage}: {memory:.0f} MB, {memory - torch_memory:+.0f} MB")


def run(arguments: list[str], expected_code: int = 0) -> tuple[float, float]:
    """Runs Python in a process. Returns its seconds and its peak memory in MB."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stderr is not None
    messages = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != expected_code:
        sys.exit(f"{arguments} failed: {messages}")
    return seconds, usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3 / 1.024)


if __name__ == "__main__":
    main()
