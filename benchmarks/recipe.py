"""Measures what each ingredient of the tuned recipe is worth.

    python benchmarks/recipe.py cifar10.npz           # the tuned recipe, and variants of it
    python benchmarks/recipe.py cifar10.npz --only tuned --seeds 0 1 2

It prints validation accuracies: mean and standard deviation over the seeds. The test images choose
nothing, and are not shown. Every run stays in the output folder. So the same command goes on where
it stopped, and trains nothing twice. Several processes can divide the seeds, or the variants by
``--only``. A last call then prints the whole table. For several seeds of one recipe, and for few
images, use ``cifar-tl train --seeds 5 --train-fraction 0.01,0.05,0.1,0.25,1``.
"""

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from cifar_tl import ORIGINAL, STAGES, TUNED, Data, Recipe, keep_freed_memory, load_data, run_stage
from cifar_tl.experiment.findings.comparison import percent, points
from cifar_tl.experiment.findings.uncertainty import difference, spread

# With batches of 100, which are better for SGD.
SMALLER = dataclasses.replace(TUNED, batch_size=100, transfer_batch_size=100)
SGD = dataclasses.replace(SMALLER, optimizer="sgd", lr=0.03, transfer_lr=0.1, weight_decay=1e-3)

VARIANTS = {
    "tuned": TUNED,
    "float32": dataclasses.replace(TUNED, precision="float32"),
    "dropout of 0.42": dataclasses.replace(TUNED, dropout=0.42, transfer_dropout=0.42),
    "no shifts": dataclasses.replace(TUNED, shift=0),
    "shifts by two": dataclasses.replace(TUNED, shift=2),
    "SGD instead of Muon": SGD,
    "no whitening": dataclasses.replace(TUNED, first_layer="random"),
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
    "original": ORIGINAL,
}
ALL_STAGES = ("tuned", "float32", "original")  # the others run base and transfer only


def main() -> None:
    """Runs the missing trainings, and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("data", help="a .npz file or a folder with CIFAR-10")
    add("--only", nargs="+", choices=VARIANTS, metavar="NAME", help=", ".join(VARIANTS))
    add("--seeds", nargs="+", type=int, default=range(5), metavar="N", help="(default: 0 to 4)")
    add("--output-dir", type=Path, default=Path("runs/recipe"), metavar="DIR")
    add("--threads", type=int, metavar="N")
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    keep_freed_memory()
    data = load_data(options.data)
    variants = {name: VARIANTS[name] for name in options.only or VARIANTS}
    print(variants_table(data, variants, options.seeds, options.output_dir))


def variants_table(
    data: Data, variants: Mapping[str, Recipe], seeds: Sequence[int], output_dir: Path
) -> str:
    """Writes means with standard deviations, and differences from tuned with standard errors."""
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
                folder = output_dir / name.replace(" ", "-")
                result = run_stage(
                    stage, data, recipe, output_dir=folder, seed=seed, seed_folder=True
                )
                found[stage].append(result["val_accuracy"])
                num_images = result["images_validation"]
                said = f"{name}, seed {seed}, {stage}: {result['val_accuracy']:.2%}"
                print(said, file=sys.stderr, flush=True)
        if name == "tuned":
            tuned = found
        cells = [
            percent(spread(found[stage])._asdict()) if stage in found else "" for stage in STAGES
        ]
        cells += [
            points(difference(found[stage], tuned[stage], num_images)._asdict())
            if tuned not in ({}, found)
            else ""
            for stage in judged
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
