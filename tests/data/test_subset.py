from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, random_split
from torchvision.datasets import CIFAR10, FakeData

from cifar_tl.data.cifar10 import download_cifar10
from cifar_tl.data.classes import NEW_CLASSES
from cifar_tl.data.subset import class_subset


class Undecodable(Dataset[tuple[int, int]]):
    """Counts how many examples are loaded."""

    def __init__(self, targets: Any) -> None:
        self.targets = targets
        self.loaded = 0

    def __getitem__(self, index: int) -> tuple[int, int]:
        self.loaded += 1
        return index, int(self.targets[index])


@pytest.mark.parametrize("container", [list, torch.tensor, np.array])
def test_class_subset_selects_without_loading(container: Any) -> None:
    dataset = Undecodable(container([4, 9, 5, 9, 0]))
    subset = class_subset(dataset, [9, 5])
    assert isinstance(subset, Dataset)
    assert dataset.loaded == 0
    assert len(subset) == 3
    assert [subset[index] for index in range(3)] == [(1, 9), (2, 5), (3, 9)]
    assert subset.targets == [9, 5, 9]
    assert class_subset(subset, [5])[0] == (2, 5)
    assert class_subset(dataset, torch.tensor([9, 5])).targets == [9, 5, 9]
    with pytest.raises(ValueError, match="no example has the label 7: labels are 0 to 9"):
        class_subset(dataset, [9, 7])


def test_class_subset_feeds_a_data_loader(tmp_path: Path, archive: bytes) -> None:
    (tmp_path / CIFAR10.filename).write_bytes(archive)
    download_cifar10(tmp_path)
    dataset = CIFAR10(tmp_path, transform=lambda image: torch.from_numpy(np.array(image)))
    batches = list(DataLoader(class_subset(dataset, NEW_CLASSES), batch_size=32))
    labels = torch.cat([labels for _, labels in batches])
    assert len(labels) == 100
    assert set(labels.tolist()) == set(range(5, 10))
    assert batches[0][0].shape == (32, 32, 32, 3)


def test_class_subset_of_a_dataset_without_targets_is_refused() -> None:
    with pytest.raises(TypeError, match=r"FakeData has no \.targets"):
        class_subset(FakeData(10), [1])


class Labelled(Dataset[int]):
    def __init__(self, labels: list[int]) -> None:
        self.labels = labels

    def __getitem__(self, index: int) -> int:
        return self.labels[index]

    def __len__(self) -> int:
        return len(self.labels)


def test_labels_are_found_through_subsets_and_joined_datasets() -> None:
    one, other = Labelled([0, 1, 2, 1]), Labelled([2, 2, 0])
    assert class_subset(one, [1]).indices == [1, 3]
    first, _ = random_split(one, [3, 1], torch.Generator().manual_seed(0))
    part = class_subset(first, [1])
    assert [part[index] for index in range(len(part))] == part.targets == [1] * len(part)
    both: Dataset[int] = ConcatDataset([Subset(one, [3, 0]), other])
    assert class_subset(both, [0, 1]).targets == [1, 0, 0]
    again = class_subset(class_subset(both, [0, 2]), [2])
    assert [again[index] for index in range(2)] == [2, 2]


def test_labels_are_those_that_the_dataset_returns() -> None:
    dataset = Undecodable([4, 9, 5, 9, 0])
    dataset.target_transform = lambda target: 9 - target  # type: ignore[attr-defined]
    subset = class_subset(dataset, [0, 4])
    assert subset.targets == [0, 4, 0]
    assert [subset[place][0] for place in range(3)] == [1, 2, 3]
    assert class_subset(subset, [4]).targets == [4]  # not changed twice


@pytest.mark.parametrize(
    "label", [0.7, float("nan"), "3", np.timedelta64(3, "D"), torch.tensor([1, 2]), None]
)
def test_labels_that_are_no_whole_numbers_are_refused(label: Any) -> None:
    with pytest.raises(TypeError, match="labels must be whole numbers, not "):
        class_subset(Undecodable([1, label]), [1])
    wrong: list[Any] = [[label], "01"]
    for classes in wrong:
        with pytest.raises(TypeError, match="labels must be whole numbers, not "):
            class_subset(Undecodable([0, 1]), classes)
    whole: list[Any] = [1, 1.0, np.int64(2), torch.tensor(2), True]
    assert class_subset(Undecodable(whole), [1]).targets == [1, 1, 1]
