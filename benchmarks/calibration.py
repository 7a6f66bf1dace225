"""Measures how far probabilities can be believed, before and after the temperature.

    python benchmarks/calibration.py cifar10.npz [FOLDER ...]

Each row is the mean of three seeds, on test images, which choose nothing. Of CIFAR-10's classes 5-9
each seed has other images: 200, 1,000 or 20,000 to train, and a quarter as many to validate. A
folder has classes of its own, and the base ``cifar10``. The intervals are of 1,000 samples of the
test images, with replacement. Then it is counted how often models give a probability of 0.5 or 0.9
to pictures of other sets.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cifar_tl import (
    TUNED,
    Data,
    LabeledImages,
    extract_features,
    fit_temperature,
    keep_freed_memory,
    load_data,
    load_model,
    run_stage,
    select_classes,
)
from cifar_tl.backbone import Network
from cifar_tl.calibration import reliability

SEEDS = (0, 1, 2)
SIZES = (200, 1_000, 20_000)  # training images
STAGES = ("transfer", "finetune", "scratch")
SAMPLES = 1_000
SURE = (0.5, 0.9)
OTHER = "other"
Rows: TypeAlias = NDArray[np.int64]


class Judged(NamedTuple):
    """The trained outputs of a model for test images."""

    logits: Tensor  # (N, K)
    labels: Tensor  # (N,)
    temperature: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="a .npz file with CIFAR-10")
    parser.add_argument("folders", nargs="*", help="folders with classes of your own, and a test")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/calibration"), metavar="DIR")
    options = parser.parse_args()
    keep_freed_memory()
    cifar, folders = load_data(options.data), [load_data(folder) for folder in options.folders]
    others = [with_other(data, cifar) for data in folders]
    found: dict[str, list[Judged]] = {}
    finetuned: dict[str, list[Network]] = {}
    for seed in SEEDS:
        output_dir = options.output_dir / str(seed)
        run_stage("base", cifar, TUNED, output_dir=output_dir, seed=seed)
        base = output_dir / cifar.name / "base" / "model.pt"
        for data in (*(few_of(cifar, size, seed) for size in SIZES), *folders, *others):
            for stage in STAGES:
                start = base if stage == "transfer" and not data.own_classes else None
                run_stage(stage, data, TUNED, output_dir=output_dir, seed=seed, base=start)
                model = load_model(output_dir / data.name / stage / "model.pt")
                test = select_classes(data.test, data.new_classes)
                found.setdefault(f"{data.name}, {stage}", []).append(judge(model, test))
                if stage == "finetune" and data.own_classes:
                    finetuned.setdefault(data.name, []).append(model)
    show(found)
    shown = {data.name: data.test.images for data in (cifar, *folders)}
    for name, models in finetuned.items():
        show_sure(name, models, shown)
    show_shipped(options.data, shown)


def with_other(data: Data, cifar: Data) -> Data:
    """Adds a class `other` of 100 pictures of CIFAR-10: 80 to train, 20 to validate."""
    label, parts = len(data.class_names), data.train_and_validation(data.new_classes)
    more = ((0, 80), (80, 100))
    train, validation = (
        LabeledImages(
            torch.cat([part.images, cifar.train.images[start:end]]),
            torch.cat([part.labels, torch.full((end - start,), label)]),
        )
        for part, (start, end) in zip(parts, more, strict=True)
    )
    return dataclasses.replace(
        data,
        class_names=(*data.class_names, OTHER),
        train=train,
        validation=validation,
        base_classes=(*data.base_classes, label),
        new_classes=(*data.new_classes, label),
        name=f"{data.name} and {OTHER}",
        fingerprint=f"{data.fingerprint} {OTHER}",
    )


def few_of(data: Data, size: int, seed: int) -> Data:
    """Takes ``size`` training images of the new classes, and a quarter as many to validate."""
    each, generator = size // 4, np.random.default_rng(seed)  # of 5 classes, 5 / 4 of the size
    parts: dict[bool, list[Rows]] = {True: [], False: []}
    for label in range(len(data.class_names)):
        all_rows = np.flatnonzero(data.train.labels.numpy() == label)
        chosen = generator.permutation(all_rows) if each < len(all_rows) else all_rows
        is_new = label in data.new_classes
        parts[is_new].append(chosen[: each if is_new else 50])
    rows = torch.from_numpy(np.concatenate([mixed(parts[False]), mixed(parts[True])]))
    few = LabeledImages(*(part[rows] for part in data.train))
    return dataclasses.replace(data, train=few, name=f"{size}-images", fingerprint=f"{size}-{seed}")


def mixed(rows: list[Rows]) -> Rows:
    """Takes rows of each class in turn: the last of them validate."""
    return np.stack(rows, 1).flatten()


def judge(model: Network, test: LabeledImages) -> Judged:
    """Runs a model on test images as ``predict`` does."""
    columns = list(model.class_names)
    logits = extract_features(model, test.images)[:, columns]
    return Judged(logits, test.labels - columns[0], model.temperature)


def show(found: Mapping[str, list[Judged]]) -> None:
    """Prints a row for each list of seeds."""
    print("| | temperatures | before | after | after - before | after / before | by chance |")
    print("|---|---|---|---|---|---|---|")
    for name, seeds in found.items():
        print(f"| {name} | {row(seeds)} |", flush=True)


def row(seeds: list[Judged]) -> str:
    """Compares the mean errors of the seeds before and after; all have the same test images."""
    before, after = errors(seeds, lambda _: 1.0), errors(seeds, lambda judged: judged.temperature)
    generator = torch.Generator().manual_seed(0)
    changes = []
    for _ in range(SAMPLES):
        rows = torch.randint(len(seeds[0].labels), seeds[0].labels.shape, generator=generator)
        drawn = [Judged(each.logits[rows], each.labels[rows], each.temperature) for each in seeds]
        changes.append(
            errors(drawn, lambda judged: judged.temperature) - errors(drawn, lambda _: 1.0)
        )
    low, high = np.quantile(changes, (0.025, 0.975))
    chance = np.mean([reliability(*judged).chance for judged in seeds])
    temperatures = ", ".join(f"{judged.temperature:.2f}" for judged in seeds)
    return (
        f"{temperatures} | {before:.1%} | {after:.1%} | {100 * (after - before):+.1f} "
        f"({100 * low:+.1f} to {100 * high:+.1f}) | {after / before:.2f} | {chance:.1%}"
    )


def errors(seeds: list[Judged], temperature: Callable[[Judged], float]) -> float:
    """Averages the calibration error over seeds."""
    return float(np.mean([reliability(s.logits, s.labels, temperature(s)).error for s in seeds]))


def show_sure(name: str, models: list[Network], shown: Mapping[str, Tensor]) -> None:
    """Prints which share of some pictures gets a known class with at least some probabilities."""
    for what, images in shown.items():
        shares = []
        for model in models:
            logits = extract_features(model, images)[:, list(model.class_names)].double()
            known = [place for place, of in enumerate(model.class_names.values()) if of != OTHER]
            tops = (logits / model.temperature).softmax(1)[:, known].amax(1)
            shares.append([float((tops >= least).double().mean()) for least in SURE])
        means = np.mean(shares, 0).tolist()
        words = ", ".join(f"{mean:.0%} at {least}" for mean, least in zip(means, SURE, strict=True))
        print(f"finetune on {name} sees the test pictures of {what}: {words}", flush=True)


def show_shipped(path: str, shown: Mapping[str, Tensor]) -> None:
    """Fits the temperatures of the models in the package on their validation images."""
    for name, classes in (("cifar5", None), ("cifar10", "all")):
        data, model = load_data(path, base_classes=classes), load_model(name)
        _, validation = data.train_and_validation(data.base_classes)
        temperature = fit_temperature(extract_features(model, validation.images), validation.labels)
        judged = judge(model, select_classes(data.test, data.base_classes))
        print(f"| {name} | {row([judged._replace(temperature=temperature)])} |")
    show_sure("cifar10, as it comes with the package", [load_model("cifar10")], shown)


if __name__ == "__main__":
    main()
