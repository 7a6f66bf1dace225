"""The model that a stage starts from: found, checked, or refused with what to do."""

import hashlib
from pathlib import Path
from typing import Any

from cifar_tl.checkpoint import load_model_and_settings
from cifar_tl.data.classes import CIFAR10_CLASS_NAMES
from cifar_tl.data.examples import Data
from cifar_tl.errors import CheckpointError, RunError
from cifar_tl.experiment import run
from cifar_tl.model import CifarNet


def load_parent(
    stage: str,
    folder: Path,
    data: Data,
    base: str | Path | None = None,
    train_fraction: float = 1.0,
) -> tuple[CifarNet | None, str | None]:
    """Loads the model that a stage starts from: ``base``, or that of the stage before it.

    Returns:
        The model and the SHA-256 of its file, or None and None if the stage starts afresh.

    Raises:
        ValueError: If a base model is given to another stage, or missing for classes of one's own.
        RunError: If there is no such model, or it is damaged, or was made by another stage, or, for
            finetuning and from CIFAR-10 to CIFAR-10, from other images than these.
    """
    if base is not None and not run.takes_base(stage):
        raise ValueError(f"only a transfer takes another base model, not {stage}")
    if run.STAGES[stage].parent is None:
        return None, None
    if run.takes_base(stage) and data.needs_other_base and base is None:
        raise ValueError(
            f"name the base model whose features to use for the classes of {data.name}"
        )
    path, content, remedy = run.read_parent(stage, folder, base, own_classes=data.needs_other_base)
    try:
        model, settings = load_model_and_settings(path, content)
    except CheckpointError as error:
        raise RunError(f"{error}; or make it anew", **remedy) from error
    _check(path, settings, stage, data, train_fraction, remedy)
    return model, hashlib.sha256(content).hexdigest()


def _check(
    path: Path,
    settings: dict[str, Any],
    stage: str,
    data: Data,
    train_fraction: float,
    remedy: dict[str, Any],
) -> None:
    """Refuses a model of another stage, of other classes, or whose images may be among these."""
    parent = run.STAGES[stage].parent
    assert parent is not None
    wanted: dict[str, Any] = {"stage": parent}
    if not (run.takes_base(stage) and data.needs_other_base):
        wanted["classes"] = list(run.stage_classes(parent, data))
    if not run.takes_base(stage):
        wanted["train_fraction"] = train_fraction
    names = settings.get("class_names")
    is_cifar10 = isinstance(names, list) and all(name in CIFAR10_CLASS_NAMES for name in names)
    both_cifar10 = is_cifar10 and data.class_names == CIFAR10_CLASS_NAMES
    if run.takes_base(stage) and both_cifar10 and data.needs_other_base:
        raise RunError(
            f"{path} was trained on CIFAR-10, whose classes {data.name} has, too, and maybe its "
            "images: leave out the folders of the first five classes"
        )
    is_same_data = settings.get("fingerprint") == data.fingerprint
    if data.needs_other_base and run.takes_base(stage) and is_same_data:
        raise RunError(f"{path} was trained on these very images: name a base of other data")
    if not run.takes_base(stage) or both_cifar10:  # of another base, the images may be among these
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
