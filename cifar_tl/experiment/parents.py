"""The model that a stage starts from: found, checked, or refused with what to do."""

import hashlib
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from cifar_tl.checkpoint import load_model_and_settings
from cifar_tl.data.classes import CIFAR10_CLASS_NAMES
from cifar_tl.data.examples import Data
from cifar_tl.errors import CheckpointError, RunError, RunWarning
from cifar_tl.experiment import stages
from cifar_tl.names import printable
from cifar_tl.network import CifarNet


class Parent(NamedTuple):
    """A model that a stage starts from."""

    model: CifarNet
    path: str  # of its file, or its name
    digest: str  # SHA-256 of the file


def load_parent(
    stage: str,
    place: stages.Place,
    data: Data,
    base: str | Path | None = None,
) -> Parent | None:
    """Loads the model that a stage starts from: ``base``, or that of the stage before it.

    Returns:
        The model, or None if the stage starts afresh.

    Raises:
        ValueError: If a base model is given to another stage.
        RunError: If there is no such model, or it is damaged, or was made by another stage, or from
            other images than these, or a base that is named maybe from these.
    """
    if base is not None and not stages.takes_base(stage):
        raise ValueError(f"only a transfer takes another base model, not {stage}")
    if stages.STAGES[stage].parent is None:
        return None
    path, content, remedy = stages.read_parent(stage, place, base, own_classes=data.own_classes)
    try:
        model, settings = load_model_and_settings(path, content)
    except CheckpointError as error:
        raise RunError(f"{error}; or make it anew", **remedy) from error
    _check(path, settings, stage, data, place.train_fraction, remedy, named=base is not None)
    return Parent(model, str(path), hashlib.sha256(content).hexdigest())


def _check(
    path: Path,
    settings: dict[str, Any],
    stage: str,
    data: Data,
    train_fraction: float,
    remedy: dict[str, Any],
    *,
    named: bool,
) -> None:
    """Refuses a model of another stage, of other classes, or whose images may be among these."""
    parent = stages.STAGES[stage].parent
    assert parent is not None
    wanted: dict[str, Any] = {"stage": parent}
    if not stages.takes_base(stage):
        wanted["train_fraction"] = train_fraction
    if stages.takes_base(stage) and data.own_classes:
        _check_images(path, settings, data)
    else:
        wanted["classes"] = list(stages.stage_classes(parent, data))
        if not named:  # a base that is named may be of other images, if they are of other classes
            wanted["fingerprint"] = data.fingerprint
    if differences := [key for key in wanted if settings.get(key) != wanted[key]]:
        words = {"fingerprint": "data with the fingerprint"}
        sides = (
            ", ".join(f"{words.get(key, key)} {side.get(key)!r}" for key in differences)
            for side in (settings, wanted)
        )
        raise RunError(
            f"{path} was made for {' and not for '.join(sides)}: use another or make one", **remedy
        )
    if named and "classes" in wanted:
        _check_names(path, settings, data)


def _check_names(path: Path, settings: dict[str, Any], data: Data) -> None:
    """Refuses a base of which a class is a new one now, under whatever number it knows it."""
    new = [data.class_names[label] for label in data.new_classes]
    if both := [name for name in new if name in _known_names(settings)]:
        raise RunError(
            f"{path} knows {printable(both[0])}, a new class of {data.name}, and maybe its images: "
            "use another base"
        )


def _known_names(settings: dict[str, Any]) -> set[str]:
    names = settings.get("class_names")
    return {str(name) for name in names} if isinstance(names, list) else set()


def _check_images(path: Path, settings: dict[str, Any], data: Data) -> None:
    """Refuses a base of the same images, as far as anybody can tell, or warns of one."""
    if settings.get("fingerprint") == data.fingerprint:
        raise RunError(f"{path} was trained on these very images: name a base of other data")
    known = _known_names(settings)
    if known <= set(CIFAR10_CLASS_NAMES) == set(data.class_names):
        raise RunError(
            f"{path} was trained on CIFAR-10, whose classes {data.name} has, too, and maybe its "
            "images: take the base cifar5, and leave out the folders of the first five classes"
        )
    if known >= set(data.class_names):
        warnings.warn(
            f"{path} knows all classes of {data.name} by name: if it has been trained on these "
            "images, accuracies mislead, and another base is needed, such as cifar5",
            RunWarning,
            stacklevel=2,
        )
