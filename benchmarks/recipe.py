"""Measures what each ingredient of the tuned recipe is worth, and where transfer pays most.

    python benchmarks/recipe.py cifar10.npz           # the tuned recipe and its ablations
    python benchmarks/recipe.py cifar10.npz --fractions         # the tuned one with few images
    python benchmarks/recipe.py cifar10.npz --only tuned --seeds 0 1 2

Validation accuracies, mean and standard deviation over the seeds; the test images choose nothing
and are not shown. Every run is kept in the output folder, so the script goes on where it stopped,
and what is there is not trained again. Several processes can share the work by seeds or by
``--only``; a last call prints the whole table.
"""

import argparse
import dataclasses
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from cifar_tl import (
    ORIGINAL,
    STAGES,
    TUNED,
    Data,
    Recipe,
    StageResult,
    keep_freed_memory,
    load_data,
    run_stage,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# With batches of 100, as SGD likes them.
SMALLER = dataclasses.replace(TUNED, batch_size=100, transfer_batch_size=100)
SGD = dataclasses.replace(SMALLER, optimizer="sgd", lr=0.03, transfer_lr=0.1, weight_decay=1e-3)

VARIANTS = {
    "tuned": TUNED,
    "SGD instead of Muon": SGD,
    "no whitening": dataclasses.replace(TUNED, whiten=False),
    "no mirror images": dataclasses.replace(TUNED, mirror=False),
    "no weight decay": dataclasses.replace(TUNED, weight_decay=0.0),
    "constant learning rate": dataclasses.replace(
        TUNED, schedule="constant", lr=TUNED.lr / 4, transfer_lr=TUNED.transfer_lr / 4
    ),
    "batches of 100": dataclasses.replace(TUNED, batch_size=100, lr=TUNED.lr * 0.75),
    "batches of 400": dataclasses.replace(TUNED, batch_size=400, lr=TUNED.lr * 1.5),
    "twice the learning rate": dataclasses.replace(TUNED, lr=TUNED.lr * 2),
    "half the learning rate": dataclasses.replace(TUNED, lr=TUNED.lr / 2),
    "twice the weight decay": dataclasses.replace(TUNED, weight_decay=TUNED.weight_decay * 2),
    "half the weight decay": dataclasses.replace(TUNED, weight_decay=TUNED.weight_decay / 2),
    "two epochs": dataclasses.replace(TUNED, epochs=2),
    "two epochs, no whitening": dataclasses.replace(TUNED, epochs=2, whiten=False),
    "three epochs": dataclasses.replace(TUNED, epochs=3),
    "original": ORIGINAL,
}
ALL_STAGES = ("tuned", "original")  # the others are judged by base and transfer

FRACTIONS = (0.01, 0.05, 0.1, 0.25, 1.0)


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("data", help="a .npz file or a folder with CIFAR-10")
    add("--only", nargs="+", choices=VARIANTS, metavar="NAME", help=", ".join(VARIANTS))
    add("--seeds", nargs="+", type=int, default=range(5), metavar="N", help="(default: 0 to 4)")
    add("--fractions", action="store_true", help="the tuned recipe with few labelled images")
    add("--picture", type=Path, metavar="FILE", help="draw the table of --fractions, too")
    add("--output-dir", type=Path, default=Path("runs/recipe"), metavar="DIR")
    add("--threads", type=int, metavar="N")
    options = parser.parse_args()
    if options.only and options.fractions:
        parser.error("--only chooses among the variants, and --fractions has none: leave one out")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    keep_freed_memory()
    data = load_data(options.data)
    if options.fractions:
        print(fractions_table(data, options.seeds, options.output_dir, options.picture))
    else:
        variants = {name: VARIANTS[name] for name in options.only or VARIANTS}
        print(variants_table(data, variants, options.seeds, options.output_dir))


def variants_table(
    data: Data, variants: Mapping[str, Recipe], seeds: Sequence[int], output_dir: Path
) -> str:
    """Means and standard deviations; differences from tuned with their standard errors."""
    judged = ("base", "transfer")
    lines = [
        f"| recipe | {' | '.join([*STAGES, *(f'{stage} - tuned' for stage in judged)])} |",
        "|---|---|---|---|---|---|---|",
    ]
    tuned: dict[str, list[float]] = {}
    for name, recipe in variants.items():
        stages = list(STAGES) if name in ALL_STAGES else judged
        found: dict[str, list[float]] = {stage: [] for stage in stages}
        for seed in seeds:
            for stage in stages:
                folder = output_dir / name.replace(" ", "-") / str(seed)
                found[stage].append(run(stage, data, recipe, folder, seed)["val_accuracy"])
        if name == "tuned":
            tuned = found
        cells = [accuracies(found[stage]) if stage in found else "" for stage in STAGES]
        cells += [
            difference(found[stage], tuned[stage]) if tuned not in ({}, found) else ""
            for stage in judged
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def fractions_table(
    data: Data, seeds: Sequence[int], output_dir: Path, picture: Path | None
) -> str:
    """With few images there are more epochs: as many steps of training as with all of them."""
    ways = {"transfer": "transfer", "transfer+finetune": "finetune", "scratch": "scratch"}
    lines = [f"| images | epochs (finetuning) | {' | '.join(ways)} |", "|---|---|---|---|---|"]
    found: dict[str, dict[int, list[float]]] = {way: {} for way in ways}
    for fraction in FRACTIONS:
        recipe = TUNED
        results: dict[str, list[StageResult]] = {way: [] for way in ways}
        for seed in seeds:
            tuned = output_dir / "tuned" / str(seed)
            run("base", data, TUNED, tuned, seed)
            base = tuned / data.name / "base" / "model.pt"
            folder = tuned if fraction == 1 else output_dir / f"{fraction:g}" / str(seed)
            for way, stage in ways.items():
                extra: dict[str, Any] = {"train_fraction": fraction}
                if stage == "transfer" and fraction != 1:
                    extra["base"] = base
                results[way].append(run(stage, data, recipe, folder, seed, **extra))
        images = results["scratch"][0]["images_train"]
        for way in ways:
            found[way][images] = [result["val_accuracy"] for result in results[way]]
        cells = " | ".join(accuracies(by_images[images]) for by_images in found.values())
        epochs = f"{recipe.epochs} ({recipe.finetune_epochs})"
        lines.append(f"| {images:,} ({fraction:.0%}) | {epochs} | {cells} |")
    if picture is not None:
        from cifar_tl.experiment.plots import save  # needs matplotlib

        save(few_images(found, "Where transfer pays: validation accuracy by images"), picture)
    return "\n".join(lines)


def few_images(accuracies: Mapping[str, Mapping[int, Sequence[float]]], title: str) -> "Figure":
    """Draws validation accuracy against the number of labelled training images.

    ``accuracies`` has for each way, for each number of images, one accuracy a seed; drawn are means
    and standard deviations.
    """
    from matplotlib import ticker
    from matplotlib.figure import Figure

    from cifar_tl.experiment import plots

    figure = Figure(figsize=(7, 4.3), layout="constrained")
    ax = figure.subplots()
    for way, by_images in accuracies.items():
        spreads = [
            statistics.stdev(values) if len(values) > 1 else 0 for values in by_images.values()
        ]
        means = [statistics.mean(values) for values in by_images.values()]
        ax.errorbar(list(by_images), means, spreads, label=way, capsize=3, **plots.STYLES[way])
    ax.set_xscale("log")
    images = sorted({number for by_images in accuracies.values() for number in by_images})
    ax.set_xticks(images, [f"{number:,}" for number in images])
    ax.xaxis.set_minor_locator(ticker.NullLocator())
    ax.set_xlabel("labelled training images of the new classes (logarithmic)")
    plots.label_accuracy(ax, "validation accuracy")
    ax.set_title(title)
    ax.legend(frameon=False, loc="lower right")
    plots.plain(ax)
    return figure


def run(
    stage: str, data: Data, recipe: Recipe, folder: Path, seed: int, **extra: Any
) -> StageResult:
    result = run_stage(stage, data, recipe, output_dir=folder, seed=seed, **extra)
    print(f"{folder} {stage}: {result['val_accuracy']:.2%}", file=sys.stderr, flush=True)
    return result


def accuracies(values: Sequence[float]) -> str:
    spread = f" +- {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.2f}{spread}"


def difference(values: Sequence[float], others: Sequence[float]) -> str:
    """The mean difference with the same seed."""
    differences = [100 * (value - other) for value, other in zip(values, others, strict=True)]
    if len(differences) < 2:
        return f"{differences[0]:+.1f}"
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return f"{statistics.mean(differences):+.1f} +- {error:.1f}"


if __name__ == "__main__":
    main()
