"""Some classes of a torchvision-style dataset, as a dataset."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from torch.utils.data import ConcatDataset, Dataset, Subset

Example = TypeVar("Example", covariant=True)


class ClassSubset(Subset[Example]):
    """The examples of some classes; see `class_subset`."""

    def __init__(
        self, dataset: Dataset[Example], indices: Sequence[int], targets: list[int]
    ) -> None:
        super().__init__(dataset, indices)
        self.targets = targets


def class_subset(dataset: Dataset[Example], classes: Iterable[int]) -> ClassSubset[Example]:
    """Selects the examples of some classes from a torchvision-style dataset.

    Only the labels are read, from ``targets`` or ``labels``; no example is loaded. If the dataset
    has a ``target_transform``, it is applied: labels are what the dataset returns. The dataset may
    be a ``Subset`` (also one of ``random_split``) or a ``ConcatDataset``.

    Returns:
        A dataset of these examples. Their order and labels stay, and it has ``targets``, too.

    Raises:
        TypeError: If the dataset has no list of its labels, or labels are not whole numbers.
        ValueError: If a class has no example.
    """
    labels = _targets(dataset)
    wanted = {_whole(label) for label in classes}
    if absent := wanted.difference(labels):
        raise ValueError(
            f"no example has the label {min(absent)}: labels are {min(labels)} to {max(labels)}"
        )
    indices = [index for index, label in enumerate(labels) if label in wanted]
    return ClassSubset(dataset, indices, [labels[index] for index in indices])


def _targets(dataset: Any) -> list[int]:
    for name in ("targets", "labels"):
        if (targets := getattr(dataset, name, None)) is not None:
            change = getattr(dataset, "target_transform", None) or (lambda target: target)
            return [_whole(change(target)) for target in targets]
    if isinstance(dataset, Subset):
        targets = _targets(dataset.dataset)
        return [targets[index] for index in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        return [target for part in dataset.datasets for target in _targets(part)]
    raise TypeError(f"{type(dataset).__name__} has no .targets: give it a list of the labels")


def _whole(label: Any) -> int:
    """Reads a label: an integer, also one of numpy or torch, or a number such as 3.0."""
    if type(label).__name__ in ("timedelta64", "datetime64"):  # numpy calls them integers
        raise TypeError(f"labels must be whole numbers, not {label!r}")
    try:
        if int(label) == label:
            return int(label)
    except (TypeError, ValueError, RuntimeError):
        pass
    raise TypeError(f"labels must be whole numbers, not {label!r}")
