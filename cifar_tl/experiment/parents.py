"""The model that a stage starts from: found, checked, or refused with what to do."""

import hashlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cifar_tl.data.classes import CIFAR10_CLASS_NAMES
from cifar_tl.errors import CheckpointError, RunError, RunWarning
from cifar_tl.experiment.stages import MODEL, STAGES, Place, stage_classes, takes_base
from cifar_tl.names import printable, shown
from cifar_tl.pretrained import DEFAULT_MODEL, is_pretrained, read_model_file

if TYPE_CHECKING:  # the command looks for the file before it imports torch
    from cifar_tl.backbone import Backbone, Network
    from cifar_tl.data.examples import Data


class Parent(NamedTuple):
    """A model that a stage starts from."""

    model: "Network"
    path: str  # of its file, or its name
    digest: str  # SHA-256 of the file, or `digest_of`


def load_parent(
    stage: str, place: Place, data: "Data", base: "str | Path | Backbone | None" = None
) -> Parent | None:
    """Loads the model that a stage starts from: ``base``, or that of the stage before it.

    A `Backbone` is taken as it is: its classes are not compared with those of the data. Finetune
    checks that the transfer model was made from this network. The control trains all of a
    `Backbone`, whose ``source`` must say that its weights are fresh.

    Returns:
        The model. None: the stage starts from fresh weights.

    Raises:
        ValueError: If a base model is given to a stage that takes none, or is not float32, or the
            control gets one that is not fresh.
        TypeError: If the base is a model of another type.
        RunError: If there is no such model, it is damaged, or it comes from another stage or from
            other images; or if ``base`` may have been trained on these images.
    """
    from cifar_tl.backbone import Backbone, digest_of
    from cifar_tl.checkpoint import read_model

    backbone = base if isinstance(base, Backbone) else None
    file = None if isinstance(base, Backbone) else base
    if backbone is not None:
        _check_backbone(stage, backbone)
        if takes_base(stage) or STAGES[stage].control:
            return Parent(backbone, backbone.name, digest_of(backbone))
    if STAGES[stage].parent is None or (file is not None and not takes_base(stage)):
        if base is None:
            return None
        raise ValueError(f"only a transfer takes another base model, not {stage}")
    if file is not None and not isinstance(file, str | Path):
        raise TypeError("base is a file, a name or a Backbone: save_model makes a file")
    path, content, remedy = read_parent(stage, place, file, own_classes=data.own_classes)
    module = None if backbone is None else backbone.features
    try:
        model, settings, _ = read_model(path, content, module)
    except CheckpointError as error:
        raise RunError(f"{error}; or make it anew", **remedy) from error
    _check(path, settings, stage, data, place.train_fraction, remedy, named=file is not None)
    if backbone is not None and settings.get("parent") != digest_of(backbone):
        raise RunError(f"{path} was made from another {backbone.name}: make it anew", **remedy)
    return Parent(model, str(path), hashlib.sha256(content).hexdigest())


def _check_backbone(stage: str, base: "Backbone") -> None:
    """Refuses a network of another type, or one that is trained where it must be fresh."""
    import torch

    from cifar_tl.backbone import FRESH

    if base.mean.dtype != torch.float32:
        raise ValueError(f"the base {base.name} must be float32: base.float() makes it so")
    if STAGES[stage].control and base.source.get("weights") != FRESH:
        raise ValueError(
            f"{stage} starts from fresh weights, and those of {base.name} may not be: take "
            f'load_backbone(name, "{FRESH}"), or for a module of your own with fresh weights '
            f'Backbone(..., source={{"weights": "{FRESH}"}})'
        )


def read_parent(
    stage: str, place: Place, base: str | Path | None = None, *, own_classes: bool
) -> tuple[Path, bytes, dict[str, Any]]:
    """Reads the file that a stage starts from. It needs no torch.

    Args:
        stage: A stage that has a parent.
        place: Where the stages have their folders.
        base: The base model, a file or a name. None: that of the stage before. For classes of
            one's own it is `DEFAULT_MODEL`: their own base would know their images.
        own_classes: The data have classes of the user's own.

    Returns:
        Its path, its content, and the options of ``train`` that make it anew: none for classes of
        one's own, whose base model comes from elsewhere.

    Raises:
        RunError: If there is no such file, or it is damaged.
    """
    parent = STAGES[stage].parent
    if own_classes and takes_base(stage) and base is None:
        base = DEFAULT_MODEL
    path = Path(base) if base is not None else place.of(str(parent)) / MODEL
    remedy: dict[str, Any] = {"stage": parent, "restart": base is None and path.exists()}
    if takes_base(stage):
        remedy = {} if own_classes else {**remedy, "base": None}
    if not is_pretrained(path) and not path.exists():
        raise RunError(f"there is no {parent} model {path}: make it first", **remedy)
    try:
        return path, read_model_file(path), remedy
    except CheckpointError as error:
        raise RunError(f"{error}; or make it anew", **remedy) from error


def _check(
    path: Path,
    settings: dict[str, Any],
    stage: str,
    data: "Data",
    train_fraction: float,
    remedy: dict[str, Any],
    *,
    named: bool,
) -> None:
    """Refuses a model of another stage or of other classes, or one that may know these images."""
    parent = STAGES[stage].parent
    assert parent is not None
    wanted: dict[str, Any] = {"stage": parent}
    if not takes_base(stage):
        wanted["train_fraction"] = train_fraction
    if takes_base(stage) and data.own_classes:
        _check_images(path, settings, data)
    else:
        wanted["classes"] = list(stage_classes(parent, data))
        if not named:  # a base that is named may be of other images, if they are of other classes
            wanted["fingerprint"] = data.fingerprint
    if differences := [key for key in wanted if settings.get(key) != wanted[key]]:
        words = {"fingerprint": "data with the fingerprint"}
        sides = (
            ", ".join(f"{words.get(key, key)} {shown(repr(side.get(key)))}" for key in differences)
            for side in (settings, wanted)
        )
        raise RunError(
            f"{path} was made for {' and not for '.join(sides)}: use another or make one", **remedy
        )
    if named and "classes" in wanted:
        _check_names(path, settings, data)


def _check_names(path: Path, settings: dict[str, Any], data: "Data") -> None:
    """Refuses a base that knows a new class, under whatever number."""
    new = [data.class_names[label] for label in data.new_classes]
    if both := [name for name in new if name in _known_names(settings)]:
        raise RunError(
            f"{path} knows {printable(both[0])}, a new class of {data.name}, and maybe its images: "
            "use another base"
        )


def _known_names(settings: dict[str, Any]) -> set[str]:
    names = settings.get("class_names")
    return {str(name) for name in names} if isinstance(names, list) else set()


def _check_images(path: Path, settings: dict[str, Any], data: "Data") -> None:
    """Refuses a base that was trained on these images, or warns of one that may have been."""
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
