"""Where classes are unequal: the mean over classes, and always saying the most frequent class."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cifar_tl.balance import balanced_accuracy
from cifar_tl.experiment.findings.uncertainty import balanced_interval
from cifar_tl.names import printable
from cifar_tl.outputs import outputs_of

NOTED = 3  # a line names the counts if the largest class has so many times the smallest one
MOST_NAMED = 10  # classes in that line


def counts_line(counts: Mapping[str, int], *, evenly: bool) -> str | None:
    """Says how many training images the classes have. None: they are not unequal enough.

    Args:
        counts: By the name of a class, its number of training images.
        evenly: Training aims at the mean over classes.
    """
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    if ranked[0][1] < NOTED * ranked[-1][1]:
        return None
    words = [f"{printable(name)} {number:,}" for name, number in ranked]
    if len(words) > MOST_NAMED:
        half = MOST_NAMED // 2
        words = [*words[:half], f"{len(words) - MOST_NAMED} more", *words[-half:]]
    aim = "the mean over classes" if evenly else "the plain accuracy"
    return f"unequal classes: {', '.join(words)} training images; training aims at {aim}"


def unequal_figures(
    train_labels: Tensor, confusions: Mapping[str, Tensor | None]
) -> dict[str, Any]:
    """Lists what ``result.json`` says where classes are unequal.

    Args:
        train_labels: ``(N,)`` numbers of outputs.
        confusions: For ``"val"`` and ``"test"`` the counts ``(outputs, outputs)``. None: there are
            no images.
    """
    frequent = int(train_labels.bincount().argmax())
    figures: dict[str, Any] = {}
    for part, confusion in confusions.items():
        accuracy = interval = majority = None
        if confusion is not None:
            images = confusion.sum(1)
            accuracy = balanced_accuracy(confusion)
            interval = list(balanced_interval(confusion.diagonal().tolist(), images.tolist()))
            majority = float(images[frequent] / images.sum())
        figures[f"{part}_balanced_accuracy"] = accuracy
        figures[f"{part}_balanced_interval"] = interval
        figures[f"{part}_majority"] = majority
    return figures


def deciding_accuracy(result: Mapping[str, Any]) -> float:
    """Returns the validation accuracy that decides which of several models is the best.

    It is the mean over classes where classes are unequal, and the plain accuracy elsewhere.
    """
    return float(result.get("val_balanced_accuracy", result["val_accuracy"]))


def beside(result: Mapping[str, Any], part: str) -> str:
    """Says what stands beside an accuracy where classes are unequal. Elsewhere it is empty.

    Args:
        result: The content of a ``result.json``.
        part: ``"val"`` or ``"test"``.
    """
    accuracy = result.get(f"{part}_balanced_accuracy")
    if accuracy is None:
        return ""
    low, high = result[f"{part}_balanced_interval"]
    return (
        f", mean over classes {accuracy:.2%} ({low:.0%} to {high:.0%}), "
        f"always the most frequent class {result[f'{part}_majority']:.2%}"
    )


def never_predicted(result: Mapping[str, Any]) -> list[str]:
    """Names the classes that no validation image was taken for, where classes are unequal."""
    outputs = outputs_of(result, result["num_classes"])
    if "val_balanced_accuracy" not in result or outputs is None:
        return []
    rows = result["val_confusion"]
    return [
        printable(name)
        for name, column, row in zip(outputs.names, outputs.columns, rows, strict=True)
        if any(row) and not any(other[column] for other in rows)
    ]
