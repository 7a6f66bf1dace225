"""Run one stage: from images to a trained model, with its files and its result."""

import contextlib
import dataclasses
import functools
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from cifar_tl.backbone import Backbone, Network
from cifar_tl.calibration import fit_temperature
from cifar_tl.data.classes import listed
from cifar_tl.data.examples import (
    Data,
    LabeledImages,
    channel_statistics,
    prefix_rows,
    select_classes,
)
from cifar_tl.data.views import make_views, shift_randomly
from cifar_tl.evaluation import confusion_matrix, evaluate, extract_features
from cifar_tl.experiment.features import Cache, Cost, features_of_pictures
from cifar_tl.experiment.findings.layers import layers
from cifar_tl.experiment.findings.probabilities import probability_figures
from cifar_tl.experiment.findings.results import (
    StageResult,
    confusion_figures,
    epoch_line,
    is_shown,
    results_text,
)
from cifar_tl.experiment.findings.unequal import counts_line, majority_accuracy, unequal_figures
from cifar_tl.experiment.folder import History, RunFolder
from cifar_tl.experiment.frozen import Frozen
from cifar_tl.experiment.settings import plan_values, run_settings
from cifar_tl.experiment.sharing import held
from cifar_tl.experiment.stages import FEATURES, HEAD, Place, takes_base
from cifar_tl.experiment.task import Task, decide
from cifar_tl.first_layer import separate_first_layer, whiten_first_layer
from cifar_tl.freezing import count_parameters, freeze, transfer_model, unfreeze
from cifar_tl.machine import (
    autocast,
    environment,
    surroundings,
    to_device_if_it_fits,
)
from cifar_tl.names import count, printable
from cifar_tl.network import CifarNet
from cifar_tl.outputs import Outputs
from cifar_tl.recipe import ClassBalance, Plan, Recipe
from cifar_tl.tail import Tail, find_tail, unfreeze_tail
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
    base: str | Path | Backbone | None = None,
    train_fraction: float = 1.0,
    class_balance: ClassBalance = "even",
    seed_folder: bool = False,
    keep_features: bool = True,
    keep_pictures: bool = True,
    keep_maps: bool = False,
    seconds_reading: float = 0.0,
    command: str | None = None,
    log: Callable[[str], object] = lambda _: None,
    progress: bool = False,
    group: "ProcessGroup | None" = None,
) -> StageResult:
    """Runs one stage, goes on with an unfinished one, or reads the result of a finished one.

    - base: the documented network learns the base classes, 0-4, or all classes of your own.
    - transfer: a new classifier on the base model's frozen features learns the new classes, 5-9,
      or all classes of your own, from a base model of other data.
    - finetune: the transfer model goes on for a few epochs, with nothing frozen. Of a pretrained
      network, only the last layers learn.
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
            package, or a `Backbone`. None: the model of the stage base, or ``"cifar10"`` for
            classes of your own. For finetune: the `Backbone` of the transfer that it goes on from.
            For scratch: None, or a `Backbone` whose ``source`` says that its weights are fresh,
            ``{"weights": "fresh"}``. It then trains instead of the documented network.
        train_fraction: The part of the training images of the new classes, the first of each
            class. Base always has all of its images.
        class_balance: ``"even"``: if the training classes are unequal, training aims at the mean
            over classes (`logit_offsets`). ``"off"``: at the plain accuracy. All training images
            decide, also about a fraction.
        seed_folder: Keep the files one folder below, in ``seed-N``.
        keep_features: Keep the frozen features of a `Backbone` in files, for other seeds and for a
            run that goes on: ``output_dir / data.name / features``. Files know the weights and the
            layers of a module of your own, but not its code: False while you change that.
        keep_pictures: Keep in that folder what the picture files become in the size of the
            `Backbone`. The next pass reads that.
        keep_maps: For transfer: compute and keep, with the features, what the last layers will
            learn from. Finetune then needs no pass of its own.
        seconds_reading: How long reading the data took. It counts for the stage's total time. So
            does ``data.seconds_before``, which decoding kept pictures took. 0: both do not count.
        command: What was typed, for ``result.json``.
        log: Called with lines that say what happens.
        progress: Show bars on standard error.
        group: Processes that share the work. All call this with the same arguments, but for the
            device. One process on each machine writes the files. If the machines share a folder,
            only one process writes. None: this process alone.

    Returns:
        The content of ``result.json``, without its checksum.

    Raises:
        ValueError: If there is no such stage, or not for these data, or the fraction is not above
            0 and at most 1, or not 1 for base, or there is no such class balance.
        RunError: If the stage that it starts from is missing or damaged, or the folder holds
            another run or a damaged one.
        LockedError: If another process is at work in the folder.
        TrainingError: If the training diverges.
        OSError: If a file cannot be written.
    """
    start, on = time.perf_counter() - seconds_reading, torch.device(device)

    def say(line: str) -> None:
        log(f"{stage}: {line}")

    place = Place(
        folder=Path(output_dir) / data.name,
        train_fraction=float(train_fraction),
        seed=int(seed) if seed_folder else None,
        backbone=base.name if isinstance(base, Backbone) else None,
        control_is_backbone=True,
    )
    task = decide(
        stage,
        data,
        recipe,
        place,
        base,
        seed=int(seed),
        class_balance=class_balance,
        device=on,
    )
    folder = RunFolder(place.of(stage), run_settings(task))
    with held(folder, group) as (writes, finished):
        if finished is not None:
            say(f"finished before, in {printable(str(folder.path))}")
            return cast(StageResult, finished)
        images = _examples(task)
        model = _starting_model(task, images.train).to(on)
        part = _learning_part(task, model)
        optimizer = make_optimizer(part, task.plan)
        saved = model if task.backbone is None else part  # the rest is large, and elsewhere
        folder.check_model(model)
        processes = 1 if group is None else group.size()
        now = {**surroundings(device, processes), **data.software}
        history = folder.resume(saved, optimizer, now, start)
        if seconds_reading:  # the caller counts it
            seconds_reading += history.count_before(data.seconds_before)
        for line in _announcement(task, images, history):
            say(line)

        kept = place.folder / FEATURES
        frozen = Frozen(model, task.plan.precision, task.tail, nothing=part is model)
        cache = Cache(
            features=kept if keep_features and (keep_pictures or not frozen.nothing) else None,
            pictures=kept if keep_pictures else None,
            find_later=_later(task, frozen) if keep_maps else None,
        )
        bar = f"{stage} features" if progress else None
        seen = _inputs(task, frozen, part, images, cache, bar, group)
        before = history.count_before(seen.cost.seconds_before)
        history.seconds_features += seen.cost.seconds + before
        for line in _about_inputs(task, frozen, part, seen, history):
            say(line)

        def on_epoch(record: EpochRecord) -> None:
            history.add(record)
            if writes:
                folder.save_epoch(saved, optimizer, history)
            if is_shown(record.epoch, task.plan.epochs):
                say(epoch_line(record, task.plan.epochs))

        with _dropout(model, task.plan.dropout):
            fit(
                part,
                seen.views,
                images.train.labels,
                seen.validation,
                images.validation.labels,
                task.plan,
                seed=derive_seed(task.seed, stage),
                optimizer=optimizer,
                transform=_augmentation(task.plan),
                balanced=task.evenly,
                by_class=task.is_unequal,
                records=history.rows,
                on_epoch=on_epoch,
                progress=stage if progress else None,
                group=group,
            )
        judged = _judge(task, part, seen, images, group)
        known = _of_trained(judged.validation, task.outputs)  # untrained outputs mean nothing
        model.temperature = fit_temperature(*known, by_class=task.evenly)
        result = {
            **plan_values(task.plan),
            **folder.settings,
            **_description(task, images, model),
            **_figures(task, judged, model.temperature),
            **history.figures(),
            "seconds_reading": seconds_reading,  # of this call alone
            **({"command": command} if command else {}),
            "environment": {**environment(device, processes), **data.software},
            "surroundings": history.surroundings,
        }
        if writes:
            table = layers(model, task.plan.dropout)
            text = results_text(result, history.rows, table, task.outputs)
            folder.save_finished(model, result, text)
    return cast(StageResult, result)


class _Examples(NamedTuple):
    """What a stage learns from and is judged by. Labels are numbers of outputs."""

    train: LabeledImages
    validation: LabeledImages
    test: LabeledImages
    places: Tensor  # (N,) int64: of the training images, among all of these classes


class _Inputs(NamedTuple):
    """What a stage computes with: images, or frozen features of them."""

    views: Tensor  # (V, N, ...)
    validation: Tensor  # (M, ...)
    test: Tensor  # (K, ...)
    tested: nn.Module  # what takes the test inputs: all of the model, or what learns
    cost: Cost = Cost(0.0)  # of features


class _Judged(NamedTuple):
    """The logits ``(N, outputs)`` and the labels ``(N,)`` of N > 0 images, float32 and int64.

    All processes have all of them.
    """

    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor] | None  # None: there are no test images


def _examples(task: Task) -> _Examples:
    """Selects the images of a stage's classes."""
    data, outputs = task.data, task.outputs
    train, validation = data.train_and_validation(outputs.classes)
    places = prefix_rows(train.labels, task.train_fraction)
    if task.train_fraction != 1:
        train = LabeledImages(train.images[places], train.labels[places])
    parts = (train, validation, select_classes(data.test, outputs.classes))
    train, validation, test = (p._replace(labels=outputs.of(p.labels)) for p in parts)
    return _Examples(train, validation, test, places)


def _starting_model(task: Task, train: LabeledImages) -> Network:
    """Makes the model that training starts from, with everything frozen that stays as it is."""
    with seeded(derive_seed(task.seed, task.stage, "weights"), torch.device("cpu")):
        if task.parent is None:
            return _fresh_model(task, train.images)
        started = task.parent.model
        if takes_base(task.stage) or task.row.control:
            started = transfer_model(started, task.outputs.size)
            if not isinstance(started, Backbone):
                started.frame = task.data.frame  # these pictures' fit: the base saw others
    if task.row.trains == HEAD or task.tail is not None:
        freeze(started.features)
    else:
        unfreeze(started.features)
    if task.tail is not None:
        unfreeze_tail(task.tail)
    return started


def _fresh_model(task: Task, images: Tensor) -> CifarNet:
    """Makes the documented network with fresh weights, by torch's generator."""
    model = CifarNet(task.outputs.size)
    model.frame = task.data.frame
    if task.plan.normalize:
        model.mean, model.std = channel_statistics(images)
    if task.plan.first_layer == "separated":
        separate_first_layer(model, images)
    elif task.plan.first_layer == "whitened":
        whiten_first_layer(model, images)
    return model


def _learning_part(task: Task, model: Network) -> nn.Module:
    """Returns the module that learns, in one piece."""
    if task.tail is not None:
        return nn.Sequential(OrderedDict(tail=task.tail, classifier=model.classifier))
    return model.classifier if task.row.trains == HEAD else model


def _announcement(task: Task, images: _Examples, history: History) -> Iterator[str]:
    """Says what the stage learns from, and what is unequal."""
    outputs, epochs, done = task.outputs, task.plan.epochs, len(history.rows)
    start = ", from" if task.row.parent else ", network"
    yield (
        f"{len(images.train.labels):,} training and {len(images.validation.labels):,} validation "
        f"images of classes {listed(outputs.classes)}"
        + (f"{start} {printable(task.parent.path)}" if task.parent else "")
        + f", {count(epochs, 'epoch')}"
        + (f", going on after epoch {done}" if done else "")
    )
    if task.is_unequal:
        of_validation = images.validation.labels.bincount(minlength=outputs.size)
        of_train = images.train.labels.bincount(minlength=outputs.size).tolist()
        counts = {name: of_train[column] for column, name in outputs.named.items()}
        most = majority_accuracy(task.labels, of_validation)
        yield counts_line(counts, most, evenly=task.evenly)


def _inputs(
    task: Task,
    frozen: Frozen,
    part: nn.Module,
    images: _Examples,
    cache: Cache,
    bar: str | None,
    group: "ProcessGroup | None",
) -> _Inputs:
    """Makes the views. Frozen layers have no randomness: their features serve all epochs."""
    model, device, plan = frozen.network, frozen.network.mean.device, task.plan
    if isinstance(model, Backbone):  # other images than those in memory
        classes = task.outputs.classes
        found = features_of_pictures(
            frozen, task.data, classes, images.places, plan, cache, bar, group
        )
        views, val, test = (to_device_if_it_fits(tensor, device) for tensor in found.tensors)
        return _Inputs(views, val, test, part, found.cost)
    views = make_views(images.train.images, mirror=plan.mirror, shift=plan.view_shift)
    views = to_device_if_it_fits(views, device)
    val_images = to_device_if_it_fits(images.validation.images, device)
    if part is model:
        return _Inputs(views, val_images, images.test.images, model)
    begin = time.perf_counter()
    extract = functools.partial(extract_features, model.forward_features, progress=bar, group=group)
    with autocast(plan.precision, device):
        val_features = extract(val_images)
        features = extract(views.flatten(0, 1)).unflatten(0, views.shape[:2])
    seconds = time.perf_counter() - begin
    cost = Cost(seconds, note=f"in {seconds:.2f} s")
    return _Inputs(features, val_features, images.test.images, model, cost)


def _later(task: Task, frozen: Frozen) -> Callable[[], Frozen | None] | None:
    """Makes a function that finds the layers that stay frozen in finetune.

    Finding takes a second. So it waits until features are computed. Finetune sees no shifted
    images: if transfer sees them, there is nothing to find.
    """
    backbone = task.backbone
    if backbone is None or task.row.trains != HEAD or task.plan.view_shift:
        return None

    @functools.cache
    def find() -> Frozen | None:
        try:
            tail = find_tail(backbone.features, backbone.image_size)  # on the CPU, as in finetune
        except Exception:  # code of somebody's network; finetune says what is wrong
            return None
        return None if tail is None else dataclasses.replace(frozen, tail=tail)

    return find


def _about_inputs(
    task: Task, frozen: Frozen, part: nn.Module, seen: _Inputs, history: History
) -> Iterator[str]:
    """Says what was computed before training, and what training will take."""
    if seen.cost.note:
        what = "all these images" if frozen.nothing else "frozen features of all these images"
        yield f"{what} {seen.cost.note}"
    if task.backbone is not None and task.row.trains != HEAD and not history.rows:
        yield _outlook(part, seen.views, task.plan, task.tail)


def _outlook(part: nn.Module, views: Tensor, plan: Plan, tail: Tail | None) -> str:
    """Says what learns, and about how long it will take: two steps tell, which change nothing."""
    device = next(part.parameters()).device
    batch, optimizer = views[0, : plan.batch_size].to(device), make_optimizer(part, plan)
    before = [(p, p.detach().clone()) for p in part.parameters() if p.requires_grad]
    for _ in range(2):  # the first one makes room
        begin = time.perf_counter()
        with autocast(plan.precision, device):
            loss = part.eval()(batch).float().logsumexp(1).mean()
        loss.backward()
        optimizer.step()
        seconds = time.perf_counter() - begin
        optimizer.zero_grad()
    with torch.no_grad():
        for parameter, value in before:
            parameter.copy_(value)
    steps = plan.epochs * math.ceil(views.shape[1] / plan.batch_size)
    minutes = seconds * steps / 60
    learning = "all layers learn"
    if tail is not None:
        learning = f"the layers from {tail.first} on learn, {tail.part:.0%} of the network's work"
    about = f"{minutes:.0f} min" if minutes >= 2 else f"{60 * minutes:.0f} s"
    return f"{learning}; the epochs take about {about}"


@contextlib.contextmanager
def _dropout(model: Network, rate: float | None) -> Iterator[None]:
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


def _judge(
    task: Task,
    part: nn.Module,
    seen: _Inputs,
    images: _Examples,
    group: "ProcessGroup | None",
) -> _Judged:
    """Computes the logits of validation and test images, each once."""

    def judged(module: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits: Tensor = extract_features(module, inputs, group=group)
        return logits.float(), labels.to(logits.device)

    with autocast(task.plan.precision, next(part.parameters()).device):
        validation = judged(part, seen.validation, images.validation.labels)
        if not len(images.test.labels):
            return _Judged(validation, None)
        return _Judged(validation, judged(seen.tested, seen.test, images.test.labels))


def _figures(task: Task, judged: _Judged, temperature: float) -> dict[str, Any]:
    """Lists what ``result.json`` says of the validation and test images."""
    val, test, as_they_are = judged.validation, judged.test, nn.Identity()
    of_test = None if test is None else evaluate(as_they_are, *test)
    confusion = confusion_matrix(as_they_are, *val)
    figures = {
        **confusion_figures(confusion, task.outputs),
        "test_accuracy": of_test.accuracy if of_test else None,
        "test_loss": of_test.loss if of_test else None,
    }
    if task.is_unequal:
        of_test_images = None if test is None else confusion_matrix(as_they_are, *test)
        figures |= unequal_figures(task.labels, {"val": confusion, "test": of_test_images})
    parts = {
        "val": _of_trained(val, task.outputs),
        "test": None if test is None else _of_trained(test, task.outputs),
    }
    return figures | probability_figures(parts, temperature, by_class=task.evenly)


def _of_trained(examples: tuple[Tensor, Tensor], outputs: Outputs) -> tuple[Tensor, Tensor]:
    """Leaves out untrained outputs: logits ``(N, K)`` of the classes, labels from 0 to K - 1."""
    logits, labels = (tensor.cpu() for tensor in examples)
    columns = list(outputs.columns)
    places = torch.zeros(outputs.size, dtype=torch.int64)
    places[columns] = torch.arange(len(columns))
    return logits[:, columns], places[labels]


def _description(task: Task, images: _Examples, model: Network) -> dict[str, Any]:
    """Says for ``result.json`` what was trained on what."""
    return {
        "data_description": task.data.description,
        "data_notes": list(task.data.notes),
        "parent_path": task.parent.path if task.parent else None,
        **_backbone_description(model),
        "num_classes": model.num_classes,
        "images_train": len(images.train.labels),
        "parameters_total": count_parameters(model),
        "parameters_trainable": count_parameters(model, trainable_only=True),
        "images_validation": len(images.validation.labels),
        "images_test": len(images.test.labels),
    }


def _backbone_description(model: Network) -> dict[str, Any]:
    """Says where the weights of a pretrained network are from, and what it sees."""
    if not isinstance(model, Backbone):
        return {}
    statistics = {name: getattr(model, name).flatten().tolist() for name in ("mean", "std")}
    seen = {**model.describe()["frame"], **statistics}
    return {"backbone_source": model.source, "backbone_preprocessing": seen}
