"""The classes of a half as a torch dataset, for any torchvision-style dataset."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from torch.utils.data import Dataset, Subset

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

    No example is loaded to select: only ``dataset.targets``, the label of every example, is read.

    Returns:
        A dataset of these examples in their order, labels unchanged, with ``targets`` of its own.

    Raises:
        TypeError: If the dataset has no ``targets``.
        ValueError: If a class has no example.
    """
    targets = getattr(dataset, "targets", None)
    if targets is None:
        raise TypeError(f"{type(dataset).__name__} has no .targets: give it a list of the labels")
    labels = [int(target) for target in targets]
    wanted = {int(label) for label in classes}
    if absent := wanted.difference(labels):
        raise ValueError(
            f"no example has the label {min(absent)}: labels are {min(labels)} to {max(labels)}"
        )
    indices = [index for index, label in enumerate(labels) if label in wanted]
    return ClassSubset(dataset, indices, [labels[index] for index in indices])
