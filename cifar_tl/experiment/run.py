"""Run one stage: from images to a trained model, with its files and its result."""

import contextlib
import dataclasses
import functools
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn

from cifar_tl.backbone import Backbone, Network
from cifar_tl.balance import are_unequal
from cifar_tl.calibration import fit_temperature
from cifar_tl.contents import MOST_CLASSES
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
from cifar_tl.errors import DataError, TailError
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
from cifar_tl.experiment.parents import Parent, load_parent
from cifar_tl.experiment.settings import plan_values, run_settings
from cifar_tl.experiment.sharing import held
from cifar_tl.experiment.stages import (
    FEATURES,
    HEAD,
    PICTURE_CACHE,
    STAGES,
    Place,
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
        seconds_reading: How long reading the data took. It counts for the stage's total time.
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
    backbone = base.name if isinstance(base, Backbone) else None
    _check(stage, data, train_fraction, class_balance, backbone)
    outputs = _outputs(stage, data)
    seed_of_folder = int(seed) if seed_folder else None
    place = Place(
        Path(output_dir) / data.name,
        float(train_fraction),
        seed_of_folder,
        backbone,
        control_is_backbone=True,
    )
    parent = load_parent(stage, place, data, base)
    digest = parent.digest if parent else None
    plan = _plan(stage, data, recipe, train_fraction, on, parent)
    tail = _tail(stage, parent)
    every_label = outputs.of(_training_labels(stage, data, 1.0))
    is_unequal = are_unequal(every_label)  # the same for all fractions, so that they compare
    evenly = is_unequal and class_balance == "even"
    others = _backbone_settings(parent, tail) | ({"class_balance": "even"} if evenly else {})
    settings = run_settings(stage, data, outputs, plan, int(seed), train_fraction, digest, others)
    folder = RunFolder(place.of(stage), settings)
    with held(folder, group) as (writes, finished):
        if finished is not None:
            log(f"{stage}: finished before, in {printable(str(folder.path))}")
            return cast(StageResult, finished)
        images = _examples(data, outputs, train_fraction)
        model = _starting_model(
            stage, plan, parent, tail, outputs, data, images.train, int(seed)
        ).to(on)
        part = _learning_part(stage, model, tail)
        optimizer = make_optimizer(part, plan)
        processes = 1 if group is None else group.size()
        now = {**surroundings(device, processes), **data.software}
        saved = part if isinstance(model, Backbone) else model  # it is large, and elsewhere
        folder.check_model(model)
        history = folder.resume(saved, optimizer, now, start)
        log(f"{stage}: {_announcement(stage, plan, parent, images, outputs, history)}")
        if is_unequal:
            of_validation = images.validation.labels.bincount(minlength=outputs.size)
            most = majority_accuracy(every_label, of_validation)
            counts = _class_counts(images.train.labels, outputs)
            log(f"{stage}: {counts_line(counts, most, evenly=evenly)}")

        bar = f"{stage} features" if progress else None
        frozen = Frozen(model, plan.precision, tail, nothing=part is model)
        kept = place.folder / FEATURES
        cache = Cache(
            features=kept if keep_features and (keep_pictures or not frozen.nothing) else None,
            pictures=kept if keep_pictures else None,
        )
        seen = _inputs(frozen, part, data, images, outputs, plan, cache, bar, group)
        if seen.cost.note:
            # Features that were kept cost their time once, and count in every run that uses them.
            before = 0.0 if history.rows else seen.cost.seconds_before
            history.seconds_features += seen.cost.seconds + before
            history.start -= before
            what = "all these images" if frozen.nothing else "frozen features of all these images"
            log(f"{stage}: {what} {seen.cost.note}")
        if isinstance(model, Backbone) and STAGES[stage].trains != HEAD and not history.rows:
            log(f"{stage}: {_outlook(part, seen.views, plan, tail)}")

        def on_epoch(record: EpochRecord) -> None:
            history.add(record)
            if writes:
                folder.save_epoch(saved, optimizer, history)
            if is_shown(record.epoch, plan.epochs):
                log(f"{stage}: {epoch_line(record, plan.epochs)}")

        with _dropout(model, plan.dropout):
            fit(
                part,
                seen.views,
                images.train.labels,
                seen.validation,
                images.validation.labels,
                plan,
                seed=derive_seed(settings["seed"], stage),
                optimizer=optimizer,
                transform=_augmentation(plan),
                balanced=evenly,
                by_class=is_unequal,
                records=history.rows,
                on_epoch=on_epoch,
                progress=stage if progress else None,
                group=group,
            )
        with autocast(plan.precision, on):
            val = _judge(part, seen.validation, images.validation.labels, group)
            is_tested = len(images.test.labels) > 0
            test = _judge(seen.tested, seen.test, images.test.labels, group) if is_tested else None
            confusion = confusion_matrix(nn.Identity(), *val)
            tested = _test_figures(test)
        if is_unequal:
            test_confusion = None if test is None else confusion_matrix(nn.Identity(), *test)
            tested |= unequal_figures(every_label, {"val": confusion, "test": test_confusion})
        known = _of_trained(val, outputs)  # what was never trained has no probability
        model.temperature = fit_temperature(*known, by_class=evenly)
        of_parts = {"val": known, "test": None if test is None else _of_trained(test, outputs)}
        probabilities = probability_figures(of_parts, model.temperature, by_class=evenly)
        result = {
            **plan_values(plan),
            **settings,
            **_description(data, parent, images, model),
            **confusion_figures(confusion, outputs),
            **tested,
            **probabilities,
            **history.figures(),
            "seconds_reading": seconds_reading,  # of this call alone
            **({"command": command} if command else {}),
            "environment": {**environment(device, processes), **data.software},
            "surroundings": history.surroundings,
        }
        if writes:
            table = layers(model, plan.dropout)
            text = results_text(result, history.rows, table, outputs)
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


def _check(
    stage: str, data: Data, train_fraction: float, class_balance: str, backbone: str | None
) -> None:
    if class_balance not in get_args(ClassBalance):
        known = " or ".join(get_args(ClassBalance))
        raise ValueError(f"class_balance must be {known}, not {class_balance!r}")
    if len(data.class_names) > MOST_CLASSES:
        raise DataError(
            f"{data.name} has {len(data.class_names):,} classes, and results hold {MOST_CLASSES:,} "
            "at most: leave some out"
        )
    if stage not in STAGES:
        raise ValueError(f"there is no stage {stage!r}: choose among {', '.join(STAGES)}")
    learns = STAGES[stage].learns
    if not stage_classes(stage, data):
        raise ValueError(f"there is no stage {stage} on {data.name}: it has no {learns} classes")
    if backbone is not None and backbone.replace("/", "-") in (*STAGES, FEATURES, PICTURE_CACHE):
        raise ValueError(f"{backbone} is a folder of results: give the Backbone another name")
    if set(data.base_classes) & set(data.new_classes) and not data.own_classes:
        raise ValueError(
            f"{data.name}: a class is a base class and a new class: leave it out of one"
        )
    if learns == "base" and train_fraction != 1:
        raise ValueError(f"{stage} trains on all images of its classes: train_fraction must be 1")


def _plan(
    stage: str,
    data: Data,
    recipe: Recipe,
    train_fraction: float,
    device: torch.device,
    parent: Parent | None,
) -> Plan:
    if isinstance(recipe, Plan):
        raise TypeError("a stage makes its plan itself: give the recipe, such as TUNED")
    num_images = num_training_images(stage, data, train_fraction)
    of_backbone = parent is not None and isinstance(parent.model, Backbone)
    if of_backbone and not STAGES[stage].control:
        recipe = recipe.for_backbone()
    plan = recipe.for_stage(STAGES[stage].recipe, num_images, mirror=data.mirror)
    if of_backbone:  # its preprocessing and its first layer are its own
        plan = dataclasses.replace(plan, normalize=None, first_layer=None)
        # Its batch norms learn, too, and one image alone has no deviation.
        if STAGES[stage].control and num_images % plan.batch_size == 1:
            plan = dataclasses.replace(plan, batch_size=plan.batch_size + 1)
    return dataclasses.replace(plan, precision=choose_precision(plan.precision, device))


def _backbone_settings(parent: Parent | None, tail: Tail | None) -> dict[str, Any]:
    """Names a pretrained network, for the settings of a run."""
    if parent is None or not isinstance(parent.model, Backbone):
        return {}
    learning = {} if tail is None else {"learns_from": tail.first}
    return {"backbone": parent.model.name, "fit": parent.model.frame.fit, **learning}


def _tail(stage: str, parent: Parent | None) -> Tail | None:
    """Finds the last layers of a pretrained network, for a stage that trains more than a head."""
    if parent is None or not isinstance(parent.model, Backbone):
        return None
    if STAGES[stage].trains == HEAD or STAGES[stage].control:
        return None
    if (tail := find_tail(parent.model.features, parent.model.image_size)) is not None:
        return tail
    raise TailError(
        f"{parent.model.name} has no last layers that could learn apart from its first ones: "
        f"{STAGES[stage].parent} is all that can be done with it"
    )


def _learning_part(stage: str, model: Network, tail: Tail | None) -> nn.Module:
    """Returns the module that learns, in one piece."""
    if tail is not None:
        return nn.Sequential(OrderedDict(tail=tail, classifier=model.classifier))
    return model.classifier if STAGES[stage].trains == HEAD else model


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


def _backbone_description(model: Network) -> dict[str, Any]:
    """Says where the weights of a pretrained network are from, and what it sees."""
    if not isinstance(model, Backbone):
        return {}
    statistics = {name: getattr(model, name).flatten().tolist() for name in ("mean", "std")}
    seen = {**model.describe()["frame"], **statistics}
    return {"backbone_source": model.source, "backbone_preprocessing": seen}


def num_training_images(stage: str, data: Data, train_fraction: float) -> int:
    """Counts the images that a stage trains on."""
    return len(_training_labels(stage, data, train_fraction))


def _training_labels(stage: str, data: Data, train_fraction: float) -> Tensor:
    """Lists the labels of the images that a stage trains on: ``(N,)`` int64."""
    rows, _ = data.train_and_validation_rows(stage_classes(stage, data))
    labels = data.train.labels[rows]
    return labels[prefix_rows(labels, train_fraction)]


def _class_counts(labels: Tensor, outputs: Outputs) -> dict[str, int]:
    """Counts the examples of each class by its name. ``labels`` are numbers of outputs."""
    counts = labels.bincount(minlength=outputs.size).tolist()
    return {name: counts[column] for column, name in outputs.named.items()}


def _outputs(stage: str, data: Data) -> Outputs:
    """Says which outputs a stage's model has: base has its classes, the others all classes."""
    classes = stage_classes(stage, data)
    size = len(classes) if STAGES[stage].learns == "base" else len(data.class_names)
    return Outputs(classes, tuple(data.class_names[label] for label in classes), size)


def _examples(data: Data, outputs: Outputs, train_fraction: float) -> _Examples:
    """Selects the images of a stage's classes."""
    train, validation = data.train_and_validation(outputs.classes)
    places = prefix_rows(train.labels, train_fraction)
    if train_fraction != 1:
        train = stratified_prefix(train, train_fraction)
    parts = (train, validation, select_classes(data.test, outputs.classes))
    train, validation, test = (p._replace(labels=outputs.of(p.labels)) for p in parts)
    return _Examples(train, validation, test, places)


def _starting_model(
    stage: str,
    plan: Plan,
    parent: Parent | None,
    tail: Tail | None,
    outputs: Outputs,
    data: Data,
    train: LabeledImages,
    seed: int,
) -> Network:
    """Makes the model that training starts from, with everything frozen that stays as it is."""
    with seeded(derive_seed(seed, stage, "weights"), torch.device("cpu")):
        if parent is None:
            model = CifarNet(outputs.size)
            model.frame = data.frame
            if plan.normalize:
                model.mean, model.std = channel_statistics(train.images)
            if plan.first_layer == "separated":
                separate_first_layer(model, train.images)
            elif plan.first_layer == "whitened":
                whiten_first_layer(model, train.images)
            return model
        started = parent.model
        if takes_base(stage) or STAGES[stage].control:
            started = transfer_model(started, outputs.size)
            if not isinstance(started, Backbone):
                started.frame = data.frame  # these pictures' fit: the base saw others
    if STAGES[stage].trains == HEAD or tail is not None:
        freeze(started.features)
    else:
        unfreeze(started.features)
    if tail is not None:
        unfreeze_tail(tail)
    return started


def _inputs(
    frozen: Frozen,
    part: nn.Module,
    data: Data,
    images: _Examples,
    outputs: Outputs,
    plan: Plan,
    cache: Cache,
    bar: str | None,
    group: "ProcessGroup | None",
) -> _Inputs:
    """Makes the views. Frozen layers have no randomness: their features serve all epochs."""
    model, device = frozen.network, frozen.network.mean.device
    if isinstance(model, Backbone):  # other images than those in memory
        found = features_of_pictures(
            frozen, data, outputs.classes, images.places, plan, cache, bar, group
        )
        views, val, test = (to_device_if_it_fits(tensor, device) for tensor in found.tensors)
        return _Inputs(views, val, test, part, found.cost)
    views = make_views(images.train.images, mirror=plan.mirror, shift=plan.view_shift)
    views = to_device_if_it_fits(views, device)
    val_images = to_device_if_it_fits(images.validation.images, device)
    if count_parameters(model.features, trainable_only=True):
        return _Inputs(views, val_images, images.test.images, model)
    begin = time.perf_counter()
    extract = functools.partial(extract_features, model.forward_features, progress=bar, group=group)
    with autocast(plan.precision, device):
        val_features = extract(val_images)
        features = extract(views.flatten(0, 1)).unflatten(0, views.shape[:2])
    seconds = time.perf_counter() - begin
    cost = Cost(seconds, note=f"in {seconds:.2f} s")
    return _Inputs(features, val_features, images.test.images, model, cost)


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


def _announcement(
    stage: str,
    plan: Plan,
    parent: Parent | None,
    images: _Examples,
    outputs: Outputs,
    history: History,
) -> str:
    done = len(history.rows)
    start = ", from" if STAGES[stage].parent else ", network"
    return (
        f"{len(images.train.labels):,} training and {len(images.validation.labels):,} validation "
        f"images of classes {listed(outputs.classes)}"
        + (f"{start} {printable(parent.path)}" if parent else "")
        + f", {count(plan.epochs, 'epoch')}"
        + (f", going on after epoch {done}" if done else "")
    )


def _judge(
    module: nn.Module, inputs: Tensor, labels: Tensor, group: "ProcessGroup | None"
) -> tuple[Tensor, Tensor]:
    """Computes the logits ``(N, outputs)`` of N > 0 examples, once. Their labels are beside them.

    All processes get all of them.
    """
    logits: Tensor = extract_features(module, inputs, group=group)
    return logits, labels.to(logits.device)


def _of_trained(judged: tuple[Tensor, Tensor], outputs: Outputs) -> tuple[Tensor, Tensor]:
    """Leaves out untrained outputs: logits ``(N, K)`` of the classes, labels from 0 to K - 1."""
    logits, labels = (tensor.cpu() for tensor in judged)
    columns = list(outputs.columns)
    places = torch.zeros(outputs.size, dtype=torch.int64)
    places[columns] = torch.arange(len(columns))
    return logits[:, columns], places[labels]


def _test_figures(test: tuple[Tensor, Tensor] | None) -> dict[str, Any]:
    """Lists what ``result.json`` says of the test images. Without images the figures are None."""
    found = None if test is None else evaluate(nn.Identity(), *test)
    return {
        "test_accuracy": found.accuracy if found else None,
        "test_loss": found.loss if found else None,
    }


def _description(
    data: Data, parent: Parent | None, images: _Examples, model: Network
) -> dict[str, Any]:
    """Says for ``result.json`` what was trained on what."""
    return {
        "data_description": data.description,
        "data_notes": list(data.notes),
        "parent_path": parent.path if parent else None,
        **_backbone_description(model),
        "num_classes": model.num_classes,
        "images_train": len(images.train.labels),
        "parameters_total": count_parameters(model),
        "parameters_trainable": count_parameters(model, trainable_only=True),
        "images_validation": len(images.validation.labels),
        "images_test": len(images.test.labels),
    }
