"""Labelled images, and what is done to them: classes, split, views."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cifar_tl.data.classes import BASE_CLASSES, NEW_CLASSES
from cifar_tl.errors import DataError

SIZE = 32  # height and width of CIFAR-10's images, for which the network is made


class LabeledImages(NamedTuple):
    """Images and their labels, in file order."""

    images: Tensor  # (N, 3, 32, 32) uint8
    labels: Tensor  # (N,) int64


@dataclass(frozen=True)
class Data:
    """The images of all classes."""

    name: str  # the folder of its results
    description: str  # for people
    class_names: tuple[str, ...]
    train: LabeledImages  # with the validation images: see `train_and_validation`
    read_test: Callable[[], LabeledImages]  # what `test` calls once
    fingerprint: str  # SHA-256 of what identifies all images and labels
    validation: LabeledImages | None = None  # None: among `train`
    base_classes: tuple[int, ...] = BASE_CLASSES
    new_classes: tuple[int, ...] = NEW_CLASSES
    notes: tuple[str, ...] = ()  # what their owner should know, a line each
    mirror: bool = False  # whether the mirror image of a class is a picture of that class
    reading: Mapping[str, Any] = field(default_factory=dict)  # how files became pixels
    software: Mapping[str, str] = field(default_factory=dict)  # whose versions decide some pixels

    @property
    def needs_other_base(self) -> bool:
        """Whether a transfer needs a base model of other data: all classes are new ones, too."""
        return not set(self.base_classes).isdisjoint(self.new_classes)

    @cached_property
    def test(self) -> LabeledImages:
        """The test images, maybe none; read when first asked for: training can start earlier."""
        test = self.read_test()
        check_pixels(self.name, "test", test.images)
        return test

    def train_and_validation(self, classes: Iterable[int]) -> tuple[LabeledImages, LabeledImages]:
        """Selects the training and the validation images of some classes, as a stage uses them.

        Unless they are apart, the last 20 % of all images of these classes, which should be all of
        ``base_classes`` or of ``new_classes``, are the validation images.
        """
        train = select_classes(self.train, classes)
        if self.validation is None:
            return split_validation(train)
        return train, select_classes(self.validation, classes)


def check_pixels(name: str, what: str, images: Tensor) -> None:
    """Refuses images in which there is nothing to see.

    Raises:
        DataError: If there are several, all the same, or none has a pixel above 1.
    """
    if len(images) < 2:
        return
    if all(bool((chunk == images[0]).all()) for chunk in images.split(1000)):
        raise DataError(f"{name}: all {what} images are the same: check how they were made")
    if all(chunk.max() <= 1 for chunk in images.split(1000)):
        raise DataError(
            f"{name}: all pixels of the {what} images are 0 or 1, as after dividing by 255: "
            "multiply by 255 before making whole numbers of them"
        )


def select_classes(examples: LabeledImages, classes: Iterable[int]) -> LabeledImages:
    """Selects the images of some classes: M of the N images; their order and labels stay."""
    chosen = torch.isin(examples.labels, torch.tensor(list(classes))).nonzero().flatten()
    # index_select returns contiguous images whatever it is given: batches are gathered faster so.
    return LabeledImages(examples.images.index_select(0, chosen), examples.labels[chosen])


def num_training(num_images: int) -> int:
    """Computes how many of some images train: the first 80 %, as documented."""
    return num_images * 4 // 5


def split_validation(examples: LabeledImages) -> tuple[LabeledImages, LabeledImages]:
    """Splits images in file order: the first 80 % train, the last 20 % validate, as documented."""
    boundary = num_training(len(examples.labels))
    return (
        LabeledImages(examples.images[:boundary], examples.labels[:boundary]),
        # A copy, so that it does not keep the training images in memory.
        LabeledImages(examples.images[boundary:].clone(), examples.labels[boundary:].clone()),
    )


def stratified_prefix(examples: LabeledImages, fraction: float) -> LabeledImages:
    """Keeps the first part of the images of each class in file order.

    Each prefix is a part of every larger one, so results at several fractions can be compared.

    Args:
        examples: N images.
        fraction: Above 0, at most 1: of the images of each class, rounded, but at least one.

    Raises:
        ValueError: If the fraction is out of range.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"a fraction of the images is above 0 and at most 1, not {fraction}")
    kept = torch.zeros_like(examples.labels, dtype=torch.bool)
    for label in examples.labels.unique():
        of_class = (examples.labels == label).nonzero().flatten()
        kept[of_class[: max(1, round(fraction * len(of_class)))]] = True
    return LabeledImages(examples.images[kept], examples.labels[kept])


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Computes mean and standard deviation of each colour channel of uint8 images.

    Returns:
        ``(3, 1, 1)`` float32 each, of pixels from 0 to 1.
    """
    total, squares = torch.zeros(2, 3, dtype=torch.float64)
    for batch in images.split(100):  # exact: squares below 2**24, sums of whole numbers below 2**53
        pixels = batch.float().transpose(0, 1).flatten(1)
        total += pixels.sum(1, dtype=torch.float64)
        squares += pixels.square().sum(1, dtype=torch.float64)
    count = images.numel() / 3
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(1).sqrt()  # one grey level at the least
    return (mean / 255).float().view(3, 1, 1), (std / 255).float().view(3, 1, 1)


def labeled_images(images: NDArray[np.uint8], labels: NDArray[Any]) -> LabeledImages:
    """Makes labelled images of arrays ``(N, 3, 32, 32)`` and ``(N,)``, for a source."""
    return LabeledImages(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)))


def fingerprint_of(*parts: NDArray[Any] | int | str) -> str:
    """Computes a SHA-256 of arrays and plain values, for `Data`."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype} {part.shape} ".encode())
            digest.update(np.ascontiguousarray(part).data)
        else:
            digest.update(f"{part} ".encode())
    return digest.hexdigest()
