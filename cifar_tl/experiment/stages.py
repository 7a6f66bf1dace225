"""The experiments, made of the other modules: base, transfer, finetune and scratch."""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cifar_tl import report, run
from cifar_tl.checkpoint import CheckpointError, load_model_and_settings
from cifar_tl.data import (
    CIFAR10_CLASS_NAMES,
    Data,
    channel_statistics,
    make_views,
    select_classes,
    stratified_prefix,
)
from cifar_tl.lock import locked
from cifar_tl.model import (
    CifarNet,
    count_parameters,
    layers,
    transfer_model,
    whiten_first_layer,
)
from cifar_tl.recipe import Recipe
from cifar_tl.training import (
    EpochRecord,
    autocast,
    confusion_matrix,
    derive_seed,
    evaluate,
    extract_features,
    fit,
    make_optimizer,
    seeded,
)
from cifar_tl.version import __version__

STAGES = ("base", "transfer", "finetune", "scratch")  # in an order in which they can run
PARENTS = {"transfer": "base", "finetune": "transfer"}
WHITENING_IMAGES = 2000  # hold more than a million patches


def run_stage(
    stage: str,
    data: Data,
    recipe: Recipe,
    *,
    output_dir: str | Path,
    seed: int = 0,
    device: str = "cpu",
    base: str | Path | None = None,
    train_fraction: float = 1.0,
    seconds_reading: float = 0.0,
    log: Callable[[str], object] = lambda _: None,
    progress: bool = False,
) -> dict[str, Any]:
    """Runs one stage, goes on with an unfinished one, or reads the result of a finished one.

    - base: the documented network on classes 0-4.
    - transfer: the base model's features, frozen, under a new classifier, on the new classes: 5-9,
      or all classes of a folder of your own, for which there is no base stage.
    - finetune: the transfer model with nothing frozen, a few epochs on, on the new classes.
    - scratch: the transfer model's network with fresh weights and nothing frozen, on the new
      classes: the control without which nobody can say what transfer saves or costs.

    Args:
        stage: One of `STAGES`.
        data: From `load_data`.
        recipe: How to train; the stage takes from it what it has of its own: `Recipe.for_stage`.
        output_dir: The stage's files are in ``output_dir / data.name / stage``, and so are those
            of the stage that it starts from.
        seed: Decides the fresh weights and all other randomness.
        device: Where to compute, as torch names it.
        base: Another base model for transfer.
        train_fraction: The part of the training images of the new classes to train on, the first
            of each class: new classes often come with few. Base always has all of its own.
        seconds_reading: How long reading the data took: a part of the stage's total time.
        log: Called with lines that say what happens.
        progress: Show bars on standard error.

    Returns:
        The content of ``result.json``, but for its checksum.

    Raises:
        ValueError: If there is no such stage, or not for this data, or the fraction is out of range
            or not 1 for base.
        RunError: If the stage that it starts from is missing or damaged, or the folder holds
            another run or a damaged one.
        LockedError: If another process is at work in the folder.
        DataError: If the test images are damaged; the epochs are kept, and the same call goes on.
        TrainingError: If the training diverges.
        OSError: If a file cannot be written.
    """
    if stage not in STAGES:
        raise ValueError(f"there is no stage {stage!r}: choose among {', '.join(STAGES)}")
    if stage == "base" and data.base_classes is None:
        raise ValueError(f"there is no base stage on {data.name}: its classes are all new ones")
    if stage == "base" and train_fraction != 1:
        raise ValueError("base trains on all images of its classes: train_fraction must be 1")
    start = time.perf_counter() - seconds_reading
    folder = Path(output_dir) / data.name / stage
    recipe = recipe.for_stage(stage)
    parent, parent_digest = load_parent(stage, folder.parent, data, base, train_fraction)
    settings = _settings(stage, data, recipe, int(seed), train_fraction, parent_digest)
    result = run.finished_result(folder, settings)
    if result is not None:
        log(f"{stage}: finished before, in {folder}")
        return result
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        return _run_unfinished(
            folder,
            settings,
            parent,
            data,
            recipe,
            device=device,
            start=start,
            seconds_reading=seconds_reading,
            log=log,
            progress=progress,
        )


def load_parent(
    stage: str,
    folder: Path,
    data: Data,
    base: str | Path | None = None,
    train_fraction: float = 1.0,
) -> tuple[CifarNet | None, str | None]:
    """Loads the model that a stage starts from.

    Args:
        stage: One of `STAGES`.
        folder: Holds the stages' folders.
        data: What the stage will train on.
        base: Another base model for transfer.
        train_fraction: The part of the images to train on; finetuning goes on with the same part.

    Returns:
        The model and the SHA-256 of its file, or None and None if the stage starts afresh.

    Raises:
        ValueError: If a base model is given to another stage, or missing for classes of one's own.
        RunError: If there is no such model, or it is damaged, or was made by another stage, or, for
            finetuning and from CIFAR-10 to CIFAR-10, from other images than these.
    """
    if base is not None and stage != "transfer":
        raise ValueError(f"only transfer takes another base model, not {stage}")
    if stage not in PARENTS:
        return None, None
    parent_stage = PARENTS[stage]
    if stage == "transfer" and data.base_classes is None and base is None:
        raise ValueError(
            f"name the base model whose features to use for the classes of {data.name}"
        )
    path = Path(base) if base is not None else folder / parent_stage / run.MODEL
    remedy: dict[str, Any] = {"stage": parent_stage, "base": None, "restart": False}
    if data.base_classes is None:
        remedy = {}  # the command that made it has named a base model, which is not known here
    if not path.exists():
        raise run.RunError(f"there is no {parent_stage} model {path}: make it first", **remedy)
    digest = _file_digest(path)
    try:
        model, settings = load_model_and_settings(path)
    except CheckpointError as error:
        raise run.RunError(f"{error}; or make it anew", **remedy) from error
    if _file_digest(path) != digest:
        raise run.RunError(f"{path} was written while it was read: try again")
    wanted: dict[str, Any] = {"stage": parent_stage}
    if classes := _classes(parent_stage, data):
        wanted["classes"] = list(classes)
    if stage == "finetune":
        wanted["train_fraction"] = train_fraction
    names = settings.get("class_names")
    is_cifar10 = isinstance(names, list) and all(name in CIFAR10_CLASS_NAMES for name in names)
    both_cifar10 = is_cifar10 and data.class_names == CIFAR10_CLASS_NAMES
    if stage == "transfer" and both_cifar10 and data.base_classes is None:
        raise run.RunError(
            f"{path} was trained on CIFAR-10, whose classes {data.name} has, too, and maybe its "
            "images: leave out the folders of the first five classes"
        )
    if stage == "finetune" or both_cifar10:  # of another base, the images may be among these
        wanted["fingerprint"] = data.fingerprint
    if differences := [key for key in wanted if settings.get(key) != wanted[key]]:
        words = {"fingerprint": "data with the fingerprint"}
        sides = (
            ", ".join(f"{words.get(key, key)} {side.get(key)!r}" for key in differences)
            for side in (settings, wanted)
        )
        if remedy:
            remedy["restart"] = base is None
        raise run.RunError(
            f"{path} was made for {' and not for '.join(sides)}: use another or make one", **remedy
        )
    return model, digest


def _file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _run_unfinished(
    folder: Path,
    settings: dict[str, Any],
    parent: CifarNet | None,
    data: Data,
    recipe: Recipe,
    *,
    device: str,
    start: float,
    seconds_reading: float,
    log: Callable[[str], object],
    progress: bool,
) -> dict[str, Any]:
    """Does what `run_stage` has decided to do, from where it stopped before to the result."""
    stage, classes = settings["stage"], settings["classes"]
    train, validation = data.train_and_validation(classes)
    if settings["train_fraction"] != 1:
        train = stratified_prefix(train, settings["train_fraction"])
    with seeded(derive_seed(settings["seed"], stage, "weights"), torch.device("cpu")):
        model = _initial_model(stage, parent, recipe, data, train.images).to(device)
    optimized = model.classifier if stage == "transfer" else model
    optimizer = make_optimizer(optimized, recipe)
    rows, surroundings = run.resume(folder, settings, model, optimizer, run.surroundings(device))
    seconds_before = rows[-1].seconds_total_so_far if rows else 0.0
    seconds_features = rows[-1].seconds_features_so_far if rows else 0.0

    log(
        f"{stage}: {len(train.labels):,} training and {len(validation.labels):,} validation "
        f"images of classes {classes[0]}-{classes[-1]}"
        + (f", going on after epoch {len(rows)}" if rows else "")
    )
    labels = train.labels
    views = make_views(train.images, mirror=recipe.mirror).to(device)
    val_inputs = validation.images.to(device)
    del train  # the views are what is trained on: no need for two of them in memory
    if stage == "transfer":
        # The frozen layers have no randomness: one pass through them serves all epochs.
        started = time.perf_counter()
        with autocast(recipe, views.device):
            bar = f"{stage} features" if progress else None
            extract = functools.partial(extract_features, model.forward_features, progress=bar)
            val_inputs = extract(val_inputs)
            views = extract(views.flatten(0, 1)).unflatten(0, views.shape[:2])
        seconds = time.perf_counter() - started
        seconds_features += seconds
        log(f"{stage}: frozen features of all these images in {seconds:.2f} s")

    def on_epoch(record: EpochRecord) -> None:
        seconds_total = seconds_before + time.perf_counter() - start
        rows.append(
            run.HistoryRow(
                **dataclasses.asdict(record),
                seconds_features_so_far=seconds_features,
                seconds_total_so_far=seconds_total,
            )
        )
        run.save_epoch(folder, settings, model, optimizer, rows, surroundings)
        log(f"{stage}: {report.epoch_line(record, recipe.epochs)}")

    fit(
        optimized,
        views,
        labels,
        val_inputs,
        validation.labels,
        recipe,
        seed=derive_seed(settings["seed"], stage),
        optimizer=optimizer,
        records=rows,
        on_epoch=on_epoch,
        progress=stage if progress else None,
    )
    test = select_classes(data.test, classes)
    with autocast(recipe, torch.device(device)):
        confusion = confusion_matrix(optimized, val_inputs, validation.labels)[classes].tolist()
        tested = evaluate(model, test.images, test.labels) if len(test.labels) else None
    parameters_total = count_parameters(model)
    parameters_trainable = count_parameters(model, trainable_only=True)
    result: dict[str, Any] = {
        **settings,
        "data_description": data.description,
        "num_classes": model.num_classes,
        "images_train": len(labels),
        "images_validation": len(validation.labels),
        "images_test": len(test.labels),
        "val_accuracy": rows[-1].val_accuracy,
        "val_loss": rows[-1].val_loss,
        "val_confusion": confusion,  # rows: the classes; columns: all outputs
        "val_class_accuracies": report.class_accuracies(confusion, classes),
        "val_most_confused": [
            list(pair) for pair in report.most_confused(confusion, classes, settings["class_names"])
        ],
        "test_accuracy": tested.accuracy if tested else None,  # None: there are no test images
        "test_loss": tested.loss if tested else None,
        "seconds_train": sum(row.seconds_train for row in rows),
        "seconds_validation": sum(row.seconds_validation for row in rows),
        "seconds_features": seconds_features,
        "seconds_reading": seconds_reading,  # of this run alone
        "seconds_total": seconds_before + time.perf_counter() - start,
        "parameters_total": parameters_total,
        "parameters_trainable": parameters_trainable,
        "environment": _environment(device),
        "surroundings": surroundings,
    }
    text = report.results_text(result, rows, layers(model))
    run.save_finished(folder, settings, model, result, text)
    return result


def _classes(stage: str, data: Data) -> range:
    return (data.base_classes or range(0)) if stage == "base" else data.new_classes


def _settings(
    stage: str,
    data: Data,
    recipe: Recipe,
    seed: int,
    train_fraction: float,
    parent_digest: str | None,
) -> dict[str, Any]:
    """Everything that decides the outcome of a stage, and so identifies a run: plain values."""
    classes = list(_classes(stage, data))
    unused = {"name"}
    if stage in PARENTS:
        unused |= {"normalize", "whiten"}  # they belong to the model that it starts from
    values = dataclasses.asdict(recipe)
    settings = {
        "stage": stage,
        "data": data.name,
        "classes": classes,
        "class_names": [data.class_names[label] for label in classes],
        "fingerprint": data.fingerprint,
        "parent_stage": PARENTS.get(stage),
        "parent": parent_digest,
        "recipe": recipe.name,
        **{
            key: value
            for key, value in values.items()
            if key not in unused and not key.startswith(tuple(f"{other}_" for other in STAGES))
        },
        "seed": seed,
        "train_fraction": train_fraction,
    }
    plain: dict[str, Any] = json.loads(json.dumps(settings))  # a numpy.float64 becomes a float
    return plain


def _initial_model(
    stage: str, parent: CifarNet | None, recipe: Recipe, data: Data, images: torch.Tensor
) -> CifarNet:
    num_classes = len(data.class_names)  # as documented: the old classes have outputs, too
    if parent is not None:
        return transfer_model(parent, num_classes) if stage == "transfer" else parent
    model = CifarNet(len(_classes(stage, data)) if stage == "base" else num_classes)
    if recipe.normalize:
        model.mean, model.std = channel_statistics(images)
    if recipe.whiten:
        whiten_first_layer(model, images[:WHITENING_IMAGES])
    return model


def _environment(device: str) -> dict[str, Any]:
    """What the figures depend on, apart from the settings."""
    versions = {
        package: importlib.metadata.version(package)
        for package in ("torch", "torchvision", "numpy")
    }
    return {
        "cifar_tl": __version__,
        "python": platform.python_version(),
        **versions,
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
    }


def _processor() -> str:
    with contextlib.suppress(OSError):  # Linux; elsewhere platform knows
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
