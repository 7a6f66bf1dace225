"""Unequal classes: when classes are unequal, an accuracy and a training that are fair then."""

from typing import Any, TypeAlias

import torch
from numpy.typing import NDArray
from torch import Tensor

Labels: TypeAlias = Tensor | NDArray[Any]
UNEQUAL = 1.5  # the largest class has more than so many times the images of the smallest


def are_unequal(labels: Labels) -> bool:
    """Returns whether the classes that occur among labels ``(N,)`` are unequal.

    They are if the largest one has more than 1.5 times as many examples as the smallest one.

    Raises:
        TypeError: If the labels are not integers.
    """
    if not len(labels):
        return False
    counts = _integers(labels).unique(return_counts=True)[1]
    return int(counts.max()) > UNEQUAL * int(counts.min())


def balanced_accuracy(confusion: Tensor) -> float:
    """Computes the mean of the accuracies of the classes: balanced accuracy.

    It is that of scikit-learn: classes without examples do not count.

    Args:
        confusion: ``(K, K)`` counts from `confusion_matrix`: a row for each true class.
    """
    images = confusion.sum(1)
    occurs = images > 0
    return float((confusion.diagonal()[occurs].double() / images[occurs]).mean())


def logit_offsets(labels: Labels, num_classes: int | None = None) -> Tensor:
    """Computes what balanced training adds to the logits: ``log(n / n of the largest class)``.

    Without them, a network lowers its loss if it names a large class more often. With them, this
    gains nothing. So the loss aims at the mean over classes. Menon et al. 2020, "Long-tail learning
    via logit adjustment". Predictions are made without the offsets.

    Args:
        labels: ``(N,)`` integers from 0.
        num_classes: The number of logits K. None: the largest label + 1.

    Returns:
        ``(K,)`` float32 on the device of the labels. Classes without examples have 0: training then
        learns never to say them.

    Raises:
        ValueError: If a label is ``num_classes`` or more.
        TypeError: If the labels are not integers.
    """
    labels = _integers(labels)
    counts = labels.cpu().bincount(minlength=num_classes or 0)
    if num_classes is not None and len(counts) > num_classes:
        raise ValueError(
            f"a label is {len(counts) - 1}, but num_classes is {num_classes}: raise it"
        )
    return (counts / counts.max()).where(counts > 0, 1.0).log().to(labels.device)


def _integers(labels: Labels) -> Tensor:
    """Makes an int64 tensor ``(N,)`` of labels."""
    tensor = torch.as_tensor(labels)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.ndim != 1:
        raise TypeError(f"labels must be integers (N,), not {tensor.dtype} {tuple(tensor.shape)}")
    return tensor.long()
