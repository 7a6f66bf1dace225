"""What a stage does: its classes, its parent and its plan, decided before any training."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from cifar_tl.backbone import Backbone
from cifar_tl.balance import are_unequal
from cifar_tl.contents import MOST_CLASSES
from cifar_tl.data.examples import Data, prefix_rows
from cifar_tl.errors import DataError, TailError
from cifar_tl.experiment.parents import Parent, load_parent
from cifar_tl.experiment.stages import (
    FEATURES,
    HEAD,
    PICTURE_CACHE,
    STAGES,
    Place,
    Stage,
    stage_classes,
)
from cifar_tl.machine import choose_precision
from cifar_tl.outputs import Outputs
from cifar_tl.recipe import ClassBalance, Plan, Recipe
from cifar_tl.tail import Tail, find_tail


@dataclass(frozen=True)
class Task:
    """What a stage does.

    Attributes:
        stage: Its name, one of `STAGES`.
        data: All images. The stage learns some of their classes.
        train_fraction: The part of the training images, above 0 and at most 1.
        seed: Decides the fresh weights and all other randomness.
        parent: The model that it starts from. None: the documented network with fresh weights.
        plan: How it trains.
        tail: The last layers of a pretrained network, if they learn. None: they do not.
        outputs: The outputs of its model.
        labels: ``(N,)`` int64, the output of each training image of its classes. Images that a
            fraction leaves out are here, too. So all fractions agree whether classes are unequal.
        class_balance: What training aims at if these labels are unequal.
    """

    stage: str
    data: Data
    train_fraction: float
    seed: int
    parent: Parent | None
    plan: Plan
    tail: Tail | None
    outputs: Outputs
    labels: Tensor
    class_balance: ClassBalance

    @property
    def row(self) -> Stage:
        """The row of the stage in the table."""
        return STAGES[self.stage]

    @property
    def backbone(self) -> Backbone | None:
        """The pretrained network that it starts from. None: the documented network."""
        return _backbone(self.parent)

    @property
    def is_unequal(self) -> bool:
        """Its classes are unequal."""
        return are_unequal(self.labels)

    @property
    def evenly(self) -> bool:
        """Training aims at the mean over classes."""
        return self.is_unequal and self.class_balance == "even"


def decide(
    stage: str,
    data: Data,
    recipe: Recipe,
    place: Place,
    base: str | Path | Backbone | None,
    *,
    seed: int,
    class_balance: ClassBalance,
    device: torch.device,
) -> Task:
    """Decides what a stage does.

    Args:
        stage: One of `STAGES`.
        data: The images.
        recipe: How to train.
        place: Where the stages have their folders. The model of the stage before is there.
        base: Another base model: see `run_stage`.
        seed: Of the stage.
        class_balance: Of the stage.
        device: Where it will compute.

    Raises:
        ValueError: If there is no such stage, or not for these data, or a value makes no sense.
        DataError: If the data have too many classes.
        RunError: If the model that it starts from is missing, damaged or another one.
        TailError: If a pretrained network has no last layers that can learn.
    """
    _check(stage, data, place, class_balance)
    parent = load_parent(stage, place, data, base)
    backbone, outputs = _backbone(parent), _outputs(stage, data)
    labels = _training_labels(stage, data)
    num_images = len(prefix_rows(labels, place.train_fraction))
    plan = _plan(STAGES[stage], recipe, num_images, data.mirror, of_backbone=backbone is not None)
    return Task(
        stage=stage,
        data=data,
        train_fraction=place.train_fraction,
        seed=seed,
        parent=parent,
        plan=dataclasses.replace(plan, precision=choose_precision(plan.precision, device)),
        tail=None if backbone is None else _tail(stage, backbone),
        outputs=outputs,
        labels=outputs.of(labels),
        class_balance=class_balance,
    )


def num_training_images(stage: str, data: Data, train_fraction: float) -> int:
    """Counts the images that a stage trains on."""
    return len(prefix_rows(_training_labels(stage, data), train_fraction))


def _check(stage: str, data: Data, place: Place, class_balance: str) -> None:
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
    if (place.backbone or "").replace("/", "-") in (*STAGES, FEATURES, PICTURE_CACHE):
        raise ValueError(f"{place.backbone} is a folder of results: give the Backbone another name")
    if set(data.base_classes) & set(data.new_classes) and not data.own_classes:
        raise ValueError(
            f"{data.name}: a class is a base class and a new class: leave it out of one"
        )
    if learns == "base" and place.train_fraction != 1:
        raise ValueError(f"{stage} trains on all images of its classes: train_fraction must be 1")


def _backbone(parent: Parent | None) -> Backbone | None:
    if parent is None or not isinstance(parent.model, Backbone):
        return None
    return parent.model


def _plan(row: Stage, recipe: Recipe, num_images: int, mirror: bool, *, of_backbone: bool) -> Plan:
    if isinstance(recipe, Plan):
        raise TypeError("a stage makes its plan itself: give the recipe, such as TUNED")
    if not of_backbone:
        return recipe.for_stage(row.recipe, num_images, mirror=mirror)
    recipe = recipe if row.control else recipe.for_backbone()
    plan = recipe.for_stage(row.recipe, num_images, mirror=mirror)
    # Its preprocessing and its first layer are its own.
    plan = dataclasses.replace(plan, normalize=None, first_layer=None)
    # If its batch norms learn, too: one image alone has no deviation.
    if row.control and num_images % plan.batch_size == 1:
        plan = dataclasses.replace(plan, batch_size=plan.batch_size + 1)
    return plan


def _tail(stage: str, backbone: Backbone) -> Tail | None:
    """Finds the last layers of a pretrained network, for a stage that trains more than a head."""
    if STAGES[stage].trains == HEAD or STAGES[stage].control:
        return None
    if (tail := find_tail(backbone.features, backbone.image_size)) is not None:
        return tail
    raise TailError(
        f"{backbone.name} has no last layers that could learn apart from its first ones: "
        f"{STAGES[stage].parent} is all that can be done with it"
    )


def _training_labels(stage: str, data: Data) -> Tensor:
    """Lists the labels ``(N,)`` int64 of all training images of a stage's classes."""
    rows, _ = data.train_and_validation_rows(stage_classes(stage, data))
    return data.train.labels[rows]


def _outputs(stage: str, data: Data) -> Outputs:
    """Says which outputs a stage's model has: base has its classes, the others all classes."""
    classes = stage_classes(stage, data)
    size = len(classes) if STAGES[stage].learns == "base" else len(data.class_names)
    return Outputs(classes, tuple(data.class_names[label] for label in classes), size)
