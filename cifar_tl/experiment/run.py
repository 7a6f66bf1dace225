"""Run one stage: from images to a trained model, with its files and its result."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from cifar_tl.data.classes import listed
from cifar_tl.data.examples import (
    Data,
    LabeledImages,
    channel_statistics,
    prefix_rows,
    select_classes,
    stratified_prefix,
)
from cifar_tl.data.views import make_views, shift_randomly
from cifar_tl.evaluation import confusion_matrix, evaluate, extract_features
from cifar_tl.experiment.findings.layers import layers
from cifar_tl.experiment.findings.results import (
    StageResult,
    confusion_figures,
    epoch_line,
    is_shown,
    results_text,
)
from cifar_tl.experiment.folder import History, RunFolder
from cifar_tl.experiment.parents import Parent, load_parent
from cifar_tl.experiment.settings import plan_values, run_settings
from cifar_tl.experiment.sharing import held
from cifar_tl.experiment.stages import HEAD, STAGES, Place, stage_classes, takes_base
from cifar_tl.first_layer import separate_first_layer, whiten_first_layer
from cifar_tl.freezing import count_parameters, freeze, transfer_model, unfreeze
from cifar_tl.machine import (
    autocast,
    choose_precision,
    environment,
    surroundings,
    to_device_if_it_fits,
)
from cifar_tl.names import count, printable
from cifar_tl.network import CifarNet
from cifar_tl.outputs import Outputs
from cifar_tl.recipe import Plan, Recipe
from cifar_tl.training import EpochRecord, Transform, derive_seed, fit, make_optimizer, seeded

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


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
    seed_folder: bool = False,
    seconds_reading: float = 0.0,
    log: Callable[[str], object] = lambda _: None,
    progress: bool = False,
    group: "ProcessGroup | None" = None,
) -> StageResult:
    """Runs one stage, goes on with an unfinished one, or reads the result of a finished one.

    - base: the documented network learns the base classes, 0-4, or all classes of your own.
    - transfer: a new classifier on the base model's frozen features learns the new classes, 5-9,
      or all classes of your own, from a base model of other data.
    - finetune: the transfer model goes on for a few epochs, with nothing frozen.
    - scratch: the network of transfer learns the new classes from fresh weights, as in base. It is
      the control: without it nobody can say what transfer saves or costs.

    Args:
        stage: One of `STAGES`.
        data: From `load_data`.
        recipe: How to train. The stage takes its own values from it: `Recipe.for_stage`.
        output_dir: The files are in ``output_dir / data.name / stage``, those of a fraction below
            it in ``fraction-X``. The stage that it starts from is in the same ``output_dir``.
        seed: Decides the fresh weights and all other randomness.
        device: Where to compute, as torch names it.
        base: Another base model for transfer: a file, or the name of one that comes with the
            package. None: the model of the stage base, or ``"cifar10"`` for classes of your own.
        train_fraction: The part of the training images of the new classes, the first of each
            class. Base always has all of its images.
        seed_folder: Keep the files one folder below, in ``seed-N``.
        seconds_reading: How long reading the data took. It counts for the stage's total time.
        log: Called with lines that say what happens.
        progress: Show bars on standard error.
        group: Processes that share the work. All call this with the same arguments, but for the
            device. One process on each machine writes the files. If the machines share a folder,
            only one process writes. None: this process alone.

    Returns:
        The content of ``result.json``, without its checksum.

    Raises:
        ValueError: If there is no such stage, or not for these data, or the fraction is not above
            0 and at most 1, or not 1 for base.
        RunError: If the stage that it starts from is missing or damaged, or the folder holds
            another run or a damaged one.
        LockedError: If another process is at work in the folder.
        TrainingError: If the training diverges.
        OSError: If a file cannot be written.
    """
    start, on = time.perf_counter() - seconds_reading, torch.device(device)
    _check(stage, data, train_fraction)
    plan = _plan(stage, data, recipe, train_fraction, on)
    outputs = _outputs(stage, data)
    seed_of_folder = int(seed) if seed_folder else None
    place = Place(Path(output_dir) / data.name, float(train_fraction), seed_of_folder)
    parent = load_parent(stage, place, data, base)
    digest = parent.digest if parent else None
    settings = run_settings(stage, data, outputs, plan, int(seed), train_fraction, digest)
    folder = RunFolder(place.of(stage), settings)
    with held(folder, group) as (writes, finished):
        if finished is not None:
            log(f"{stage}: finished before, in {printable(str(folder.path))}")
            return cast(StageResult, finished)
        images = _examples(data, outputs, train_fraction)
        views = make_views(images.train.images, mirror=plan.mirror, shift=plan.view_shift)
        model = _starting_model(stage, plan, parent, outputs, images.train, int(seed)).to(on)
        part = model.classifier if STAGES[stage].trains == HEAD else model
        optimizer = make_optimizer(part, plan)
        processes = 1 if group is None else group.size()
        now = {**surroundings(device, processes), **data.software}
        history = folder.resume(model, optimizer, now, start)
        log(f"{stage}: {_announcement(plan, parent, images, outputs, history)}")

        inputs = to_device_if_it_fits(views, on)
        val_inputs = to_device_if_it_fits(images.validation.images, on)
        if part is not model:  # frozen layers have no randomness: one pass serves all epochs
            begin, bar = time.perf_counter(), f"{stage} features" if progress else None
            with autocast(plan.precision, on):
                inputs, val_inputs = _features(model, inputs, val_inputs, bar, group)
            history.seconds_features += (seconds := time.perf_counter() - begin)
            log(f"{stage}: frozen features of all these images in {seconds:.2f} s")

        def on_epoch(record: EpochRecord) -> None:
            history.add(record)
            if writes:
                folder.save_epoch(model, optimizer, history)
            if is_shown(record.epoch, plan.epochs):
                log(f"{stage}: {epoch_line(record, plan.epochs)}")

        with _dropout(model, plan.dropout):
            fit(
                part,
                inputs,
                images.train.labels,
                val_inputs,
                images.validation.labels,
                plan,
                seed=derive_seed(settings["seed"], stage),
                optimizer=optimizer,
                transform=_augmentation(plan),
                records=history.rows,
                on_epoch=on_epoch,
                progress=stage if progress else None,
                group=group,
            )
        with autocast(plan.precision, on):
            confusion = confusion_matrix(part, val_inputs, images.validation.labels, group=group)
            tested = _test_figures(model, images.test, group)
        result = {
            **plan_values(plan),
            **settings,
            **_description(data, parent, images, model),
            **confusion_figures(confusion, outputs),
            **tested,
            **history.figures(),
            "seconds_reading": seconds_reading,  # of this call alone
            "environment": {**environment(device, processes), **data.software},
            "surroundings": history.surroundings,
        }
        if writes:
            text = results_text(result, history.rows, layers(model), outputs)
            folder.save_finished(model, result, text)
    return cast(StageResult, result)


class _Examples(NamedTuple):
    """What a stage learns from and is judged by. Labels are numbers of outputs."""

    train: LabeledImages
    validation: LabeledImages
    test: LabeledImages


def _check(stage: str, data: Data, train_fraction: float) -> None:
    if stage not in STAGES:
        raise ValueError(f"there is no stage {stage!r}: choose among {', '.join(STAGES)}")
    learns = STAGES[stage].learns
    if not stage_classes(stage, data):
        raise ValueError(f"there is no stage {stage} on {data.name}: it has no {learns} classes")
    if set(data.base_classes) & set(data.new_classes) and not data.own_classes:
        raise ValueError(
            f"{data.name}: a class is a base class and a new class: leave it out of one"
        )
    if learns == "base" and train_fraction != 1:
        raise ValueError(f"{stage} trains on all images of its classes: train_fraction must be 1")


def _plan(
    stage: str, data: Data, recipe: Recipe, train_fraction: float, device: torch.device
) -> Plan:
    if isinstance(recipe, Plan):
        raise TypeError("a stage makes its plan itself: give the recipe, such as TUNED")
    num_images = num_training_images(stage, data, train_fraction)
    plan = recipe.for_stage(STAGES[stage].recipe, num_images, mirror=data.mirror)
    return dataclasses.replace(plan, precision=choose_precision(plan.precision, device))


def num_training_images(stage: str, data: Data, train_fraction: float) -> int:
    """Counts the images that a stage trains on."""
    rows, _ = data.train_and_validation_rows(stage_classes(stage, data))
    return len(prefix_rows(data.train.labels[rows], train_fraction))


def _outputs(stage: str, data: Data) -> Outputs:
    """Says which outputs a stage's model has: base has its classes, the others all classes."""
    classes = stage_classes(stage, data)
    size = len(classes) if STAGES[stage].learns == "base" else len(data.class_names)
    return Outputs(classes, tuple(data.class_names[label] for label in classes), size)


def _examples(data: Data, outputs: Outputs, train_fraction: float) -> _Examples:
    """Selects the images of a stage's classes."""
    train, validation = data.train_and_validation(outputs.classes)
    if train_fraction != 1:
        train = stratified_prefix(train, train_fraction)
    parts = (train, validation, select_classes(data.test, outputs.classes))
    return _Examples(*(part._replace(labels=outputs.of(part.labels)) for part in parts))


def _starting_model(
    stage: str,
    plan: Plan,
    parent: Parent | None,
    outputs: Outputs,
    train: LabeledImages,
    seed: int,
) -> CifarNet:
    """Makes the model that training starts from, with everything frozen that stays as it is."""
    with seeded(derive_seed(seed, stage, "weights"), torch.device("cpu")):
        if parent is None:
            model = CifarNet(outputs.size)
            if plan.normalize:
                model.mean, model.std = channel_statistics(train.images)
            if plan.first_layer == "separated":
                separate_first_layer(model, train.images)
            elif plan.first_layer == "whitened":
                whiten_first_layer(model, train.images)
            return model
        model = parent.model
        if takes_base(stage):
            model = transfer_model(model, outputs.size)
    if STAGES[stage].trains == HEAD:
        freeze(model.features)
    else:
        unfreeze(model.features)
    return model


def _features(
    model: CifarNet,
    views: Tensor,
    val_images: Tensor,
    bar: str | None,
    group: "ProcessGroup | None",
) -> tuple[Tensor, Tensor]:
    """Computes the features ``(V, N, 800)`` of all views, and those of validation images."""
    extract = functools.partial(extract_features, model.forward_features, progress=bar, group=group)
    val_features = extract(val_images)
    return extract(views.flatten(0, 1)).unflatten(0, views.shape[:2]), val_features


@contextlib.contextmanager
def _dropout(model: CifarNet, rate: float | None) -> Iterator[None]:
    """Runs layer 6 at another rate; the model stays the documented one."""
    layer = model.classifier.get_submodule("dropout")
    assert isinstance(layer, nn.Dropout)
    documented = layer.p
    layer.p = documented if rate is None else rate
    try:
        yield
    finally:
        layer.p = documented


def _augmentation(plan: Plan) -> Transform | None:
    """Makes what shifts each batch of images at random."""
    if not plan.shift:
        return None
    return lambda images, labels: (shift_randomly(images, plan.shift), labels)


def _announcement(
    plan: Plan, parent: Parent | None, images: _Examples, outputs: Outputs, history: History
) -> str:
    done = len(history.rows)
    return (
        f"{len(images.train.labels):,} training and {len(images.validation.labels):,} validation "
        f"images of classes {listed(outputs.classes)}"
        + (f", from {printable(parent.path)}" if parent else "")
        + f", {count(plan.epochs, 'epoch')}"
        + (f", going on after epoch {done}" if done else "")
    )


def _test_figures(
    model: CifarNet, test: LabeledImages, group: "ProcessGroup | None"
) -> dict[str, float | None]:
    """Measures the model on the test images, once. Without images the figures are None."""
    found = evaluate(model, *test, group=group) if len(test.labels) else None
    return {
        "test_accuracy": found.accuracy if found else None,
        "test_loss": found.loss if found else None,
    }


def _description(
    data: Data, parent: Parent | None, images: _Examples, model: CifarNet
) -> dict[str, Any]:
    """Says for ``result.json`` what was trained on what."""
    return {
        "data_description": data.description,
        "data_notes": list(data.notes),
        "parent_path": parent.path if parent else None,
        "num_classes": model.num_classes,
        "images_train": len(images.train.labels),
        "parameters_total": count_parameters(model),
        "parameters_trainable": count_parameters(model, trainable_only=True),
        "images_validation": len(images.validation.labels),
        "images_test": len(images.test.labels),
    }
