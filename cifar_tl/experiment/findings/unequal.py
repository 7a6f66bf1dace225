"""Where classes are unequal: the mean over classes, and always saying the most frequent class."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from cifar_tl.balance import balanced_accuracy
from cifar_tl.experiment.findings.uncertainty import balanced_interval
from cifar_tl.names import printable
from cifar_tl.outputs import outputs_of

MEAN = "mean over classes"  # what balanced accuracy is called in words
NOTED = 3  # a line names the counts if the largest class has so many times the smallest one
MOST_NAMED = 10  # classes in that line


def counts_line(counts: Mapping[str, int], majority: float, *, evenly: bool) -> str:
    """Says how many training images the classes have, and what the most frequent one gives.

    Args:
        counts: By the name of a class, its number of training images.
        majority: The validation accuracy of always saying the most frequent class.
        evenly: Training aims at the mean over classes.
    """
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    words = [f"{printable(name)} {number:,}" for name, number in ranked]
    if len(words) > MOST_NAMED:
        half = MOST_NAMED // 2
        words = [*words[:half], f"{len(words) - MOST_NAMED} more", *words[-half:]]
    is_noted = ranked[0][1] >= NOTED * ranked[-1][1]
    named = f"{', '.join(words)} training images; " if is_noted else ""
    aim = f"the {MEAN}" if evenly else "the plain accuracy"
    return (
        f"unequal classes: {named}always saying the most frequent class is right for "
        f"{majority:.2%} of the validation images; training aims at {aim}"
    )


def majority_accuracy(train_labels: Tensor, images: Tensor) -> float:
    """Computes the accuracy of always saying the most frequent training class.

    Args:
        train_labels: ``(N,)`` numbers of outputs.
        images: ``(outputs,)``, how many images each class has.
    """
    return int(images[train_labels.bincount().argmax()]) / int(images.sum())


def unequal_figures(
    train_labels: Tensor, confusions: Mapping[str, Tensor | None]
) -> dict[str, Any]:
    """Lists what ``result.json`` says where classes are unequal.

    Args:
        train_labels: ``(N,)`` numbers of outputs, of all training images of the classes.
        confusions: For ``"val"`` and ``"test"`` the counts ``(outputs, outputs)``. None: there are
            no images.
    """
    figures: dict[str, Any] = {}
    for part, confusion in confusions.items():
        accuracy = interval = majority = None
        if confusion is not None:
            images = confusion.sum(1)
            accuracy = balanced_accuracy(confusion)
            interval = list(balanced_interval(confusion.diagonal().tolist(), images.tolist()))
            majority = majority_accuracy(train_labels, images)
        figures[f"{part}_balanced_accuracy"] = accuracy
        figures[f"{part}_balanced_interval"] = interval
        figures[f"{part}_majority"] = majority
    return figures


def deciding(figures: Iterable[Mapping[str, Any]]) -> str:
    """Names the validation accuracy that decides among several models: one figure for all of them.

    It is the mean over classes where classes are unequal, and the plain accuracy elsewhere. It is
    the plain accuracy, too, if some of them are of an earlier version, which knew no mean.

    Args:
        figures: Of each model or epoch, by the names that ``result.json`` gives them.

    Returns:
        ``"val_balanced_accuracy"`` or ``"val_accuracy"``.
    """
    means = [each.get("val_balanced_accuracy") for each in figures]
    has_all = means and not any(mean is None or mean != mean for mean in means)  # nan: of an epoch
    return "val_balanced_accuracy" if has_all else "val_accuracy"


def always_words(result: Mapping[str, Any]) -> tuple[float, str] | None:
    """Says in pictures what always saying the most frequent class gives. None: classes are equal.

    Returns:
        Its mean over classes, since pictures show that, and the words beside it.
    """
    if "val_majority" not in result:
        return None
    mean, plain = 1 / sum(map(any, result["val_confusion"])), result["val_majority"]
    return mean, f"always the most frequent class: {mean:.1%} (plain accuracy {plain:.1%})"


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
        f", {MEAN} {accuracy:.2%} ({low:.0%} to {high:.0%}), "
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
