"""Measures training beside other programs: what the threads of OpenMP should do while they wait.

    python benchmarks/neighbours.py

Each workload runs alone, beside one busy loop, and beside two. Each setting of OpenMP takes its
turn. Beside loops, a fair share of the cores is what the system would give to threads that never
wait for each other. For Linux.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

ALONE = "GOMP_SPINCOUNT=300000"  # what libgomp does if nothing is set
SETTINGS: dict[str, dict[str, str]] = {
    ALONE: {"GOMP_SPINCOUNT": "300000"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
}
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
SHAPES = ["--data", "shapes", "--epochs", "1", "--quiet"]
WORKLOADS = {
    "base": [*SHAPES, "--stage", "base"],
    "transfer": [*SHAPES, "--stage", "transfer"],
    "finetune": [*SHAPES, "--stage", "finetune"],
    "scratch": [*SHAPES, "--stage", "scratch"],
    "features": [*SHAPES, "--stage", "transfer", "--base", "mobilenet_v3_small"],
}
BUSY = "while True: pass"


def main() -> None:
    """Prints seconds and their ratios to a fair share."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=WORKLOADS, nargs="+", default=["base"])
    parser.add_argument("--weights", help="a file with weights of mobilenet_v3_small")
    parser.add_argument("--workers", type=int, default=1, help="processes, started by torchrun")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder, "before")  # what the stages start from
        for stage in ("base", "transfer"):
            run([*SHAPES, "--stage", stage, "--output-dir", str(before)], {}, 1)
        for name in options.only:
            weights = ["--weights", options.weights] if name == "features" else []
            words = [*WORKLOADS[name], *weights]
            times: dict[tuple[int, str], list[float]] = {}
            for _ in range(options.rounds):
                for loops in range(3):
                    for setting, variables in SETTINGS.items():
                        with busy(loops), copied(before) as output:
                            seconds = measure(words, output, variables, options.workers)
                        times.setdefault((loops, setting), []).append(seconds)
            alone = statistics.median(times[0, ALONE])
            for (loops, setting), values in times.items():
                # `cores` threads compute, and `loops` more want a core each.
                fair = alone * max(1, (cores + loops) / cores)
                middle = statistics.median(values)
                print(
                    f"{name}, {loops} loops, {setting}: {middle:.2f} s "
                    f"({min(values):.2f}-{max(values):.2f}), {middle / fair:.2f} of a fair share",
                    flush=True,
                )


@contextlib.contextmanager
def busy(loops: int) -> Iterator[None]:
    """Keeps so many processes busy."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(loops)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextlib.contextmanager
def copied(before: Path) -> Iterator[Path]:
    """Makes an output folder in which the stages before have run."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "runs")
        subprocess.run(["cp", "-r", str(before), str(output)], check=True)
        yield output


def measure(words: list[str], output: Path, variables: dict[str, str], workers: int) -> float:
    """Runs a stage. Returns its seconds, without the start of Python and the imports."""
    run([*words, "--output-dir", str(output), "--restart"], variables, workers)
    results = [json.loads(path.read_text()) for path in output.rglob("result.json")]
    stage = words[words.index("--stage") + 1]
    newest = [found for found in results if found["stage"] == stage]
    parts = ("seconds_train", "seconds_validation", "seconds_features")
    return float(max(sum(found[part] for part in parts) for found in newest))


def run(words: list[str], variables: dict[str, str], workers: int) -> None:
    """Runs the command in a process, or in several."""
    environment = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    torchrun = ["-m", "torch.distributed.run", f"--nproc-per-node={workers}"]
    subprocess.run(
        [sys.executable, *(torchrun if workers > 1 else []), str(ROOT / "train.py"), *words],
        env=environment | variables,
        stdout=subprocess.DEVNULL,
        check=True,
    )


if __name__ == "__main__":
    main()
