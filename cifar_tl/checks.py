"""Checks of tensors, labels and logits. Each error is one line."""

from collections.abc import Callable
from pathlib import PurePath
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

ROUNDING = 1e-3  # of an output: what another order of sums and of memory may change

Loss = Callable[[Tensor, Tensor], Tensor]  # logits and targets to one value per example


def check_views(views: Tensor, labels: Tensor, loss: Loss | None) -> Tensor:
    """Checks training examples. Returns the labels as int64, if they are classes."""
    check_tensors(views=views, labels=labels)
    if views.ndim < 2 or labels.shape[:1] != views.shape[1:2] or len(labels) == 0:
        raise ValueError(
            f"views must be (V, N, ...) and labels (N,) with N > 0, not {tuple(views.shape)} and "
            f"{tuple(labels.shape)}: images[None] makes one view"
        )
    return check_labels(labels, loss)


def check_examples(inputs: Any, labels: Any, loss: Loss | None, what: str) -> Tensor:
    """Checks inputs and labels. Returns the labels as int64, if they are classes."""
    check_tensors(inputs=inputs, labels=labels)
    if labels.shape[:1] != inputs.shape[:1] or len(labels) == 0:
        raise ValueError(
            f"{what} {tuple(inputs.shape)} and labels {tuple(labels.shape)} must have the same "
            "length, at least 1"
        )
    return check_labels(labels, loss)


def check_tensors(**values: object) -> None:
    """Raises a TypeError with the name of the first value that is not a tensor."""
    for name, value in values.items():
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise TypeError(f"{name} must be a torch.Tensor, not {kind}: {_how_to_make(value)}")


def _how_to_make(value: object) -> str:
    """Says how a tensor is made of a value."""
    if isinstance(value, str | bytes | PurePath):
        return "read_image reads a picture"
    if isinstance(value, DataLoader):
        return "inputs, labels = map(torch.cat, zip(*loader)) makes tensors of its batches"
    if isinstance(value, Dataset):
        return "give its images and its labels, each as one tensor"
    return "torch.as_tensor makes one"


def check_labels(labels: Tensor, loss: Loss | None) -> Tensor:
    """Checks class numbers and returns them as int64. With a loss of your own it does nothing."""
    if loss is not None:
        return labels
    if labels.is_floating_point() or labels.is_complex() or labels.ndim != 1:
        raise TypeError(
            f"labels must be class numbers (N,) of an integer type, not {labels.dtype} of shape "
            f"{tuple(labels.shape)}: labels.long() makes them, or give a loss of your own"
        )
    labels = labels.long()
    if int(labels.min()) < 0:
        raise ValueError(
            f"labels must be at least 0, not {int(labels.min())}: leave these examples out"
        )
    return labels


def check_logits(logits: Tensor, top: int | None) -> None:
    """Checks that every label has a logit. ``top`` is the highest label, None if unknown."""
    if logits.ndim != 2:
        raise ValueError(f"logits must be (N, classes), not {tuple(logits.shape)}")
    if top is not None and top >= logits.shape[1]:
        raise ValueError(
            f"labels go up to {top}, but there are only {logits.shape[1]} logits: give the model "
            "more outputs"
        )


def same_outputs(found: Tensor, expected: Tensor, rounding: float = ROUNDING) -> bool:
    """Returns whether two ways to compute the outputs ``(N, ...)`` of a network agree.

    Each output has its own scale: a large one must not hide that a small one is wrong.

    Args:
        found: The outputs of one way.
        expected: Those of the other way, finite numbers.
        rounding: The difference that counts as rounding, as a part of an output.
    """
    if found.shape != expected.shape:
        return False
    sizes = expected.abs()
    near = rounding * (sizes.amax(0) + 0.1 * sizes.max())
    return bool(((found - expected).abs() <= near).all())
