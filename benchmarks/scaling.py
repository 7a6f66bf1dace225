"""Times a base epoch: several processes of one thread, and one process of several threads.

``python benchmarks/scaling.py cifar10.npz`` measures both in turn, ``--rounds`` times.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch import Tensor, distributed

from cifar_tl import (
    TUNED,
    CifarNet,
    fit,
    keep_freed_memory,
    load_data,
    make_views,
    whiten_first_layer,
)
from cifar_tl.data.examples import channel_statistics

all_reduce: Any = distributed.all_reduce
communication = 0.0  # seconds so far


def timed_all_reduce(tensor: Tensor, *arguments: Any, **others: Any) -> None:
    global communication
    start = time.perf_counter()
    all_reduce(tensor, *arguments, **others)
    communication += time.perf_counter() - start


def measure(path: str) -> None:
    """Trains two epochs in a group of processes. Rank 0 prints the times of the second epoch."""
    keep_freed_memory()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    group = None
    if int(os.environ["WORLD_SIZE"]) > 1:
        distributed.init_process_group("gloo")
        group = distributed.group.WORLD
        distributed.all_reduce = timed_all_reduce  # type: ignore[assignment]
    data = load_data(path)
    train, validation = data.train_and_validation(data.base_classes)
    views = make_views(train.images, mirror=True)
    torch.manual_seed(0)
    model = CifarNet(5)
    model.mean, model.std = channel_statistics(train.images)
    whiten_first_layer(model, train.images)
    recipe = replace(TUNED, epochs=2, precision="float32")
    before = [0.0]
    records = fit(
        model,
        views,
        train.labels,
        validation.images,
        validation.labels,
        recipe,
        group=group,
        on_epoch=lambda _: before.append(communication),
    )
    gradients = torch.zeros(sum(p.numel() for p in model.parameters()))
    start = time.perf_counter()
    if group is not None:
        for _ in range(100):
            all_reduce(gradients)
    found = {
        "epoch": records[1].seconds_train + records[1].seconds_validation,
        "communication": before[2] - before[1],
        "all_reduce": (time.perf_counter() - start) / 100,
        "steps": -(-len(train.labels) // recipe.batch_size),
    }
    if group is None or group.rank() == 0:
        print(json.dumps(found))
    if group is not None:
        distributed.destroy_process_group()


def run(path: str, processes: int, threads: int) -> dict[str, float]:
    """Starts processes that measure. Returns the figures that rank 0 prints."""
    launcher = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes))
    done = subprocess.run(
        [*launcher, __file__, path, "--measure"],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="CIFAR-10 in the Keras layout")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--measure", action="store_true", help="in torchrun: measure once")
    options = parser.parse_args()
    if options.measure:
        measure(options.data)
        return
    counts = [1]
    while counts[-1] * 2 <= (os.cpu_count() or 1):
        counts.append(counts[-1] * 2)
    shapes = [(1, count) for count in counts] + [(count, 1) for count in counts[1:]]
    found: dict[tuple[int, int], list[dict[str, float]]] = {shape: [] for shape in shapes}
    for _ in range(options.rounds):
        for shape in shapes:
            found[shape].append(run(options.data, *shape))
    one = statistics.median(each["epoch"] for each in found[1, 1])
    print("| processes x threads | s/epoch | range | efficiency | communication | one all_reduce |")
    print("|---|---|---|---|---|---|")
    for (processes, threads), figures in found.items():
        epochs = sorted(each["epoch"] for each in figures)
        median = statistics.median(epochs)
        shared = statistics.median(each["communication"] / each["epoch"] for each in figures)
        alone = statistics.median(each["all_reduce"] for each in figures)
        print(
            f"| {processes} x {threads} | {median:.2f} | {epochs[0]:.2f}-{epochs[-1]:.2f} "
            f"| {one / median / (processes * threads):.0%} | {shared:.1%} | {1000 * alone:.2f} ms |"
        )
    print(f"{figures[0]['steps']:.0f} steps an epoch")


if __name__ == "__main__":
    main()
