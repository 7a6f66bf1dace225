"""The experiments: base, transfer, finetune and scratch, each in the same steps."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from cifar_tl import evaluation, training
from cifar_tl.checkpoint import outputs_of
from cifar_tl.data.classes import listed
from cifar_tl.data.examples import (
    Data,
    LabeledImages,
    channel_statistics,
    prefix_rows,
    renumber,
    select_classes,
    stratified_prefix,
)
from cifar_tl.data.views import make_views, shift_randomly
from cifar_tl.disk import locked
from cifar_tl.experiment import folder as files
from cifar_tl.experiment.findings import results
from cifar_tl.experiment.findings.layers import layers
from cifar_tl.experiment.parents import Parent, load_parent
from cifar_tl.experiment.sharing import shared
from cifar_tl.experiment.stages import (
    STAGES,
    Place,
    num_outputs,
    recipe_values,
    run_settings,
    stage_classes,
    takes_base,
)
from cifar_tl.first_layer import separate_first_layer, whiten_first_layer
from cifar_tl.freezing import count_parameters, freeze, transfer_model, unfreeze
from cifar_tl.machine import (
    autocast,
    choose_precision,
    environment,
    surroundings,
    to_device_if_it_fits,
)
from cifar_tl.names import printable
from cifar_tl.network import CifarNet
from cifar_tl.recipe import Recipe

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
) -> results.StageResult:
    """Runs one stage, goes on with an unfinished one, or reads the result of a finished one.

    - base: the documented network on the base classes, 0-4, or on all of a folder of your own.
    - transfer: the base model's features, frozen, under a new classifier, on the new classes: 5-9,
      or all of a folder of your own, from a base model of other data.
    - finetune: the transfer model with nothing frozen, a few epochs on, on the new classes.
    - scratch: the transfer model's network with fresh weights, trained as in base, on the new
      classes: the control without which nobody can say what transfer saves or costs.

    Args:
        stage: One of `STAGES`.
        data: From `load_data`.
        recipe: How to train; the stage takes from it what it has of its own: `Recipe.for_stage`.
        output_dir: The files of this stage, and of the one that it starts from, are in
            ``output_dir / data.name / stage``; those of a fraction below it in ``fraction-X``.
        seed: Decides the fresh weights and all other randomness.
        device: Where to compute, as torch names it.
        base: Another base model for transfer, a file or the name of one that comes with the
            package; by default that of the stage base, and ``"cifar10"`` for classes of your own.
        train_fraction: The part of the training images of the new classes to train on, the first
            of each class. Base always has all of its own.
        seed_folder: Keep the files still one folder below, in ``seed-N``, one of several seeds.
        seconds_reading: How long reading the data took: a part of the stage's total time.
        log: Called with lines that say what happens.
        progress: Show bars on standard error.
        group: Processes that share the work: all call this with the same arguments, but for the
            device, and one on each machine, or for all of a shared folder, writes the files. None:
            this process alone.

    Returns:
        The content of ``result.json``, but for its checksum.

    Raises:
        ValueError: If there is no such stage, or not for this data, or the fraction is out of range
            or not 1 for base.
        RunError: If the stage that it starts from is missing or damaged, or the folder holds
            another run or a damaged one.
        LockedError: If another process is at work in the folder.
        TrainingError: If the training diverges.
        OSError: If a file cannot be written.
    """
    _check(stage, data, train_fraction)
    start = time.perf_counter() - seconds_reading
    recipe = recipe.for_stage(stage, num_training_images(stage, data, train_fraction))
    recipe = dataclasses.replace(
        recipe,
        mirror=data.mirror if recipe.mirror is None else recipe.mirror,
        precision=choose_precision(recipe.precision, torch.device(device)),
    )
    place = Place(
        Path(output_dir) / data.name, float(train_fraction), int(seed) if seed_folder else None
    )
    folder = place.of(stage)
    parent = load_parent(stage, place, data, base)
    digest = parent.digest if parent else None
    settings = run_settings(stage, data, recipe, int(seed), train_fraction, digest)
    with contextlib.ExitStack() as stack:
        writes = group is None or stack.enter_context(shared(folder, settings, group))
        result = files.finished_result(folder, settings)
        if result is not None:
            log(f"{stage}: finished before, in {printable(str(folder))}")
            return cast(results.StageResult, result)
        if group is None:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder))
        run = _Run(
            *(stage, data, recipe, parent, folder, settings),
            *(device, start, seconds_reading, log, progress),
            group=group,
            writes=writes,
        )
        return cast(results.StageResult, _train(run))


@dataclasses.dataclass(frozen=True)
class _Run:
    """What a call of `run_stage` is about to do, and how it tells of it."""

    stage: str
    data: Data
    recipe: Recipe  # the stage's
    parent: Parent | None
    folder: Path
    settings: dict[str, Any]
    device: str
    start: float  # in seconds, reading the data included
    seconds_reading: float
    log: Callable[[str], object]
    progress: bool
    group: "ProcessGroup | None"
    writes: bool  # this process, and not another of its group

    @property
    def classifier_only(self) -> bool:
        """Whether it trains the classifier alone, on frozen features."""
        return STAGES[self.stage].trains == "the classifier"

    @property
    def outputs(self) -> list[int]:
        """Which outputs of the model are for the stage's classes."""
        return outputs_of(self.settings["classes"], num_outputs(self.stage, self.data))

    def to_outputs(self, labels: Tensor) -> Tensor:
        """Turns classes into outputs of the model: others only for a base of other classes."""
        return renumber(labels, self.settings["classes"], self.outputs)


def _train(run: _Run) -> dict[str, Any]:
    """Takes a stage from where it stopped before, or from its start, to its result."""
    views, labels, validation = _examples(run)
    model, trained = _starting_model(run, views[0])
    optimizer = training.make_optimizer(trained, run.recipe)
    processes = 1 if run.group is None else run.group.size()
    now = {**surroundings(run.device, processes), **run.data.software}
    rows, made_in = files.resume(run.folder, run.settings, model, optimizer, now)
    _announce(run, labels, validation, len(rows))
    views, val_inputs, seconds_features = _inputs(run, model, views, validation.images)
    start, epochs = run.start, run.settings["epochs"]
    if rows:
        start -= rows[-1].seconds_total_so_far
        seconds_features += rows[-1].seconds_features_so_far

    def on_epoch(record: training.EpochRecord) -> None:
        row = files.HistoryRow(
            **vars(record),
            seconds_features_so_far=seconds_features,
            seconds_total_so_far=time.perf_counter() - start,
        )
        rows.append(row)
        if run.writes:
            files.save_epoch(run.folder, run.settings, model, optimizer, rows, made_in)
        if results.is_shown(record.epoch, epochs):
            run.log(f"{run.stage}: {results.epoch_line(record, epochs)}")

    with _dropout(model, run.recipe.dropout):
        training.fit(
            trained,
            views,
            labels,
            val_inputs,
            validation.labels,
            run.recipe,
            seed=training.derive_seed(run.settings["seed"], run.stage),
            optimizer=optimizer,
            transform=_augmentation(run),
            records=rows,
            on_epoch=on_epoch,
            progress=run.stage if run.progress else None,
            group=run.group,
        )
    result = {
        **_description(run, model, len(labels)),
        **_judge(run, model, trained, val_inputs, validation.labels),
        "val_accuracy": rows[-1].val_accuracy,
        "val_loss": rows[-1].val_loss,
        "seconds_train": sum(row.seconds_train for row in rows),
        "seconds_validation": sum(row.seconds_validation for row in rows),
        "seconds_features": seconds_features,
        "seconds_reading": run.seconds_reading,  # of this run alone
        "seconds_total": time.perf_counter() - start,
        "environment": {**environment(run.device, processes), **run.data.software},
        "surroundings": made_in,
    }
    if run.writes:
        text = results.results_text(result, rows, layers(model))
        files.save_finished(run.folder, run.settings, model, result, text)
    return result


def _check(stage: str, data: Data, train_fraction: float) -> None:
    if stage not in STAGES:
        raise ValueError(f"there is no stage {stage!r}: choose among {', '.join(STAGES)}")
    if not stage_classes(stage, data):
        raise ValueError(f"there is no stage {stage} on {data.name}: no class of it is a new one")
    if STAGES[stage].classes == "old" and train_fraction != 1:
        raise ValueError(f"{stage} trains on all images of its classes: train_fraction must be 1")


def num_training_images(stage: str, data: Data, train_fraction: float) -> int:
    """Counts the images that a stage trains on."""
    rows, _ = data.train_and_validation_rows(stage_classes(stage, data))
    return len(prefix_rows(data.train.labels[rows], train_fraction))


def _examples(run: _Run) -> tuple[Tensor, Tensor, LabeledImages]:
    """Selects what the stage learns from: views of images, their labels, and what validates."""
    train, validation = run.data.train_and_validation(run.settings["classes"])
    if run.settings["train_fraction"] != 1:
        train = stratified_prefix(train, run.settings["train_fraction"])
    shift = run.recipe.shift if run.classifier_only else None  # else at random: _augmentation
    views = make_views(train.images, mirror=bool(run.recipe.mirror), shift=shift or 0)
    return (
        views,
        run.to_outputs(train.labels),
        validation._replace(labels=run.to_outputs(validation.labels)),
    )


def _starting_model(run: _Run, images: Tensor) -> tuple[CifarNet, nn.Module]:
    """Makes the model that training starts from; returns it and the part of it that is trained."""
    num_classes = num_outputs(run.stage, run.data)
    seed = training.derive_seed(run.settings["seed"], run.stage, "weights")
    with training.seeded(seed, torch.device("cpu")):
        if run.parent is None:
            model = CifarNet(num_classes)
            if run.recipe.normalize:
                model.mean, model.std = channel_statistics(images)
            if run.recipe.first_layer == "separated":
                separate_first_layer(model, images)
            elif run.recipe.first_layer == "whitened":
                whiten_first_layer(model, images)
        elif takes_base(run.stage):
            model = transfer_model(run.parent.model, num_classes)
        else:
            model = run.parent.model
    if run.parent is not None:
        (freeze if run.classifier_only else unfreeze)(model.features)
    model.to(run.device)
    return model, model.classifier if run.classifier_only else model


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


def _augmentation(run: _Run) -> training.Transform | None:
    """Makes what changes each batch of images that is trained on."""
    pixels = run.recipe.shift
    if not pixels or run.classifier_only:
        return None
    return lambda images, labels: (shift_randomly(images, pixels), labels)


def _announce(run: _Run, labels: Tensor, validation: LabeledImages, epochs: int) -> None:
    run.log(
        f"{run.stage}: {len(labels):,} training and {len(validation.labels):,} validation images "
        f"of classes {listed(run.settings['classes'])}"
        + (f", from {printable(run.parent.path)}" if run.parent else "")
        + f", {run.recipe.epochs} epochs"
        + (f", going on after epoch {epochs}" if epochs else "")
    )


def _inputs(
    run: _Run, model: CifarNet, views: Tensor, val_images: Tensor
) -> tuple[Tensor, Tensor, float]:
    """Turns images into what is trained on: images, or frozen features, with their seconds."""
    device = torch.device(run.device)
    views, val_images = (to_device_if_it_fits(images, device) for images in (views, val_images))
    if not run.classifier_only:
        return views, val_images, 0.0
    # The frozen layers have no randomness: one pass through them serves all epochs.
    start = time.perf_counter()
    bar = f"{run.stage} features" if run.progress else None
    extract = functools.partial(
        evaluation.extract_features, model.forward_features, progress=bar, group=run.group
    )
    with autocast(run.recipe.precision, device):
        val_features = extract(val_images)
        features = extract(views.flatten(0, 1)).unflatten(0, views.shape[:2])
    seconds = time.perf_counter() - start
    run.log(f"{run.stage}: frozen features of all these images in {seconds:.2f} s")
    return features, val_features, seconds


def _description(run: _Run, model: CifarNet, num_train: int) -> dict[str, Any]:
    """Says what was trained on what: settings, those that change nothing included, and sizes."""
    return {
        **recipe_values(run.stage, run.recipe),
        **run.settings,
        "data_description": run.data.description,
        "data_notes": list(run.data.notes),
        "parent_path": run.parent.path if run.parent else None,
        "num_classes": model.num_classes,
        "images_train": num_train,
        "parameters_total": count_parameters(model),
        "parameters_trainable": count_parameters(model, trainable_only=True),
    }


def _judge(
    run: _Run, model: CifarNet, trained: nn.Module, val_inputs: Tensor, val_labels: Tensor
) -> dict[str, Any]:
    """Finds out what the trained model confuses, and, once, how it does on the test images."""
    outputs, names = run.outputs, run.settings["class_names"]
    test = select_classes(run.data.test, run.settings["classes"])
    test = test._replace(labels=run.to_outputs(test.labels))
    with autocast(run.recipe.precision, torch.device(run.device)):
        confusion = evaluation.confusion_matrix(trained, val_inputs, val_labels, group=run.group)
        confusion_rows = confusion[outputs].tolist()
        tested = None  # without test images
        if len(test.labels):
            tested = evaluation.evaluate(model, test.images, test.labels, group=run.group)
    return {
        "images_validation": len(val_labels),
        "images_test": len(test.labels),
        "val_confusion": confusion_rows,  # rows: the classes; columns: all outputs
        "val_class_accuracies": results.class_accuracies(confusion_rows, outputs),
        "val_most_confused": [
            list(pair) for pair in results.most_confused(confusion_rows, outputs, names)
        ],
        "test_accuracy": tested.accuracy if tested else None,  # None: there are no test images
        "test_loss": tested.loss if tested else None,
    }
