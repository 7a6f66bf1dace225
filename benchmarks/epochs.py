"""Draws accuracy against seconds: whole trainings of base, with one to twenty epochs.

    python benchmarks/epochs.py cifar10.npz

Each training has a schedule of its own. The documented recipe has a constant learning rate, so its
shorter trainings are the beginnings of its longest. The seconds go from the start to the end of the
last epoch. They include validation, and not the reading of the data. Let nothing else run. Each
seed runs all trainings before the next seed does, so a slow minute of the machine hits all alike.
The same command goes on where it stopped. It needs matplotlib.
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from matplotlib.figure import Figure

from cifar_tl import (
    ORIGINAL,
    TUNED,
    Data,
    Recipe,
    keep_freed_memory,
    load_data,
    run_stage,
    stratified_prefix,
)
from cifar_tl.experiment.findings.comparison import percent
from cifar_tl.experiment.findings.plots import (
    DOCUMENTED_BASE_SECONDS,
    SMALL,
    label_accuracy,
    plain,
    save,
)
from cifar_tl.experiment.findings.uncertainty import Spread, spread
from cifar_tl.experiment.folder import read_history
from cifar_tl.experiment.stages import BLACK, BLUE, GREY

DOCUMENTED = 0.6903  # of the base stage, after ten epochs


class Line(NamedTuple):
    """A recipe, its numbers of epochs, and its style in the picture."""

    recipe: Recipe
    epochs: tuple[int, ...]
    style: dict[str, Any]
    part: float = 1.0  # of the training images


def variant(**changes: Any) -> Recipe:
    return dataclasses.replace(TUNED, **changes)


LINES = {
    "tuned": Line(TUNED, (1, 2, 3, 5, 10, 20), {"color": BLUE, "marker": "o"}),
    "original": Line(ORIGINAL, (1, 2, 3, 5, 10, 20), {"color": BLACK, "marker": "s"}),
    "tuned, but all layers trained": Line(
        variant(first_layer="whitened"), (1, 2, 3, 5), {"color": GREY, "marker": "^"}
    ),
    "tuned, but the first layer frozen": Line(
        variant(first_layer="separated"), (10,), {"color": GREY, "marker": "v"}
    ),
    "tuned, but batches of 200": Line(
        variant(by_size=False), (1, 2, 3, 5), {"color": GREY, "marker": "x"}
    ),
    "tuned, but batches of 50": Line(
        variant(by_size=False, batch_size=50, lr=TUNED.lr / 2),
        (1, 2, 3),
        {"color": GREY, "marker": "+"},
    ),
    "tuned, but batches of 200 and two thirds of the images": Line(
        variant(by_size=False, shift=1), (1,), {"color": GREY, "marker": "1"}, 2 / 3
    ),
}


def main() -> None:
    """Runs the missing trainings, prints the table, and draws the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("data", help="a .npz file or a folder with CIFAR-10")
    add("--seeds", nargs="+", type=int, default=range(5), metavar="N", help="(default: 0 to 4)")
    add("--output-dir", type=Path, default=Path("runs/epochs"), metavar="DIR")
    options = parser.parse_args()
    keep_freed_memory()
    data = load_data(options.data)
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for seed in options.seeds:
        for name, line in LINES.items():
            for epochs, point in train(data, name, line, seed, options.output_dir).items():
                found.setdefault((name, epochs), []).append(point)
    spreads = {
        key: (spread([seconds for seconds, _ in of_seeds]), spread([last for _, last in of_seeds]))
        for key, of_seeds in found.items()
    }
    print(f"{torch.get_num_threads()} threads, seeds {', '.join(map(str, options.seeds))}")
    print(table(spreads))
    save(picture(spreads), options.output_dir / "seconds.png")


def train(
    data: Data, name: str, line: Line, seed: int, output_dir: Path
) -> dict[int, tuple[float, float]]:
    """Runs the trainings of a line with one seed. Returns seconds and accuracy by epochs."""
    images, validation = data.train_and_validation(data.base_classes)
    data = dataclasses.replace(
        data, train=stratified_prefix(images, line.part), validation=validation
    )
    constant = line.recipe.schedule == "constant"
    points = {}
    for epochs in [max(line.epochs)] if constant else line.epochs:
        recipe = dataclasses.replace(line.recipe, epochs=epochs)
        folder = output_dir / name.replace(", but", "").replace(" ", "-") / f"{epochs}-epochs"
        run_stage("base", data, recipe, output_dir=folder, seed=seed, seed_folder=True)
        rows = read_history(folder / data.name / f"base/seed-{seed}/history.csv", epochs)
        for end in line.epochs if constant else [epochs]:
            points[end] = rows[end - 1].seconds_total_so_far, rows[end - 1].val_accuracy
            text = f"{points[end][0]:.1f} s, {points[end][1]:.2%}"
            print(f"{name}, seed {seed}, {end} epochs: {text}", file=sys.stderr, flush=True)
    return points


def table(spreads: dict[tuple[str, int], tuple[Spread, Spread]]) -> str:
    """Writes means and standard deviations."""
    lines = ["| recipe | epochs | seconds | validation accuracy |", "|---|---|---|---|"]
    for (name, epochs), (seconds, accuracy) in spreads.items():
        of_seconds = f"{seconds.mean:.1f} +- {seconds.deviation or 0:.1f}"
        lines.append(f"| {name} | {epochs} | {of_seconds} | {percent(accuracy._asdict())} |")
    return "\n".join(lines)


def picture(spreads: dict[tuple[str, int], tuple[Spread, Spread]]) -> Figure:
    """Draws the means, and the standard deviations of the accuracies."""
    figure = Figure(figsize=(8, 5.2), layout="constrained")
    ax = figure.subplots()
    for name, line in LINES.items():
        points = {epochs: spreads[name, epochs] for epochs in line.epochs}
        seconds = [of_seconds.mean for of_seconds, _ in points.values()]
        means = [accuracy.mean for _, accuracy in points.values()]
        deviations = [accuracy.deviation or 0 for _, accuracy in points.values()]
        is_named = line.recipe in (TUNED, ORIGINAL)
        linestyle = "-" if is_named else "none"
        ax.errorbar(
            seconds, means, deviations, label=name, capsize=3, linestyle=linestyle, **line.style
        )
        if is_named:
            tops = [mean + deviation for mean, deviation in zip(means, deviations, strict=True)]
            for epochs, at, top in zip(points, seconds, tops, strict=True):
                ax.annotate(f"{epochs}", (at, top), (0, 4), **SMALL, ha="center")
    ax.axhline(DOCUMENTED, color=BLACK, linestyle=":", linewidth=1)
    note = f"documented, ten epochs: {DOCUMENTED:.2%} in {DOCUMENTED_BASE_SECONDS} s"
    at_left: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "xytext": (4, -10)}
    ax.annotate(note, (0, DOCUMENTED), **at_left, **SMALL)
    ax.set_xscale("log")
    ax.set_xticks([2, 5, 10, 20, 50, 100], ["2", "5", "10", "20", "50", "100"])
    ax.set_xlabel("seconds of the whole training (logarithmic); numbers: epochs")
    label_accuracy(ax, "validation accuracy, classes 0-4")
    ax.set_title(f"Accuracy against seconds, {torch.get_num_threads()} threads")
    figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize=8)
    plain(ax)
    return figure


if __name__ == "__main__":
    main()
