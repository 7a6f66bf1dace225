"""Labelled images, and how they are divided: by class, by part, by fraction.

Labels alone decide this: functions that end in ``rows`` take labels and return rows of images.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cifar_tl.errors import DataError
from cifar_tl.frame import CIFAR_FRAME, Frame

SIZE = 32  # height and width of CIFAR-10's images, for which the network is made


class LabeledImages(NamedTuple):
    """Images and their labels, in file order."""

    images: Tensor  # (N, 3, 32, 32) uint8
    labels: Tensor  # (N,) int64


@dataclass(frozen=True)
class Data:
    """All images of a source, and what is known about them."""

    description: str  # for people
    class_names: tuple[str, ...]  # a label is a place in it
    train: LabeledImages
    test: LabeledImages  # may be empty
    fingerprint: str  # SHA-256 that identifies all images and labels
    validation: LabeledImages | None = None  # None: the last 20 % of the training images validate
    notes: tuple[str, ...] = ()  # what their owner should know, a line each
    mirror: bool = False  # a mirror image of a class is a picture of the same class
    reading: Mapping[str, Any] = field(default_factory=dict)  # how files became pixels
    software: Mapping[str, str] = field(default_factory=dict)  # whose versions decide some pixels
    frame: Frame = CIFAR_FRAME  # how pictures became these images
    # Of picture folders: the file of each row of "train", "validation" and "test".
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # Of a .npz file with images of another size: those of each part, (N, H, W[, C]).
    originals: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    shorter_side: int = 0  # of the pictures, in pixels: the median; 0: not known
    seconds_before: float = 0.0  # of earlier calls, to decode the pictures that were kept
    # The rest is from `load_data`.
    name: str = ""  # the folder of its results
    base_classes: tuple[int, ...] = ()
    new_classes: tuple[int, ...] = ()

    @property
    def own_classes(self) -> bool:
        """All classes are base classes and new classes: transfer needs a base of other data."""
        return len(self.base_classes) > 0 and set(self.base_classes) == set(self.new_classes)

    def train_and_validation(self, classes: Iterable[int]) -> tuple[LabeledImages, LabeledImages]:
        """Selects the training and the validation images of some classes.

        If the source has no validation images, the last 20 % of these classes' images validate.
        Pass all of ``base_classes`` or all of ``new_classes``. Of fewer classes, other images
        validate.
        """
        train, validation = self.train_and_validation_rows(classes)
        held_out = self.train if self.validation is None else self.validation
        return _take(self.train, train), _take(held_out, validation)

    def train_and_validation_rows(self, classes: Iterable[int]) -> tuple[Tensor, Tensor]:
        """Finds the rows of `train_and_validation`.

        Returns:
            ``(M,)`` and ``(K,)`` int64. The first are rows of ``train``. The second are rows of
            ``validation``, or of ``train`` if that is None.
        """
        classes = list(classes)
        rows = class_rows(self.train.labels, classes)
        if self.validation is None:
            return split_rows(rows)
        return rows, class_rows(self.validation.labels, classes)


def check_classes(source: str, data: Data) -> None:
    """Checks that every chosen class has training, validation and test images.

    A source may have no test images at all.

    Raises:
        DataError: If a class lacks images.
    """
    validation = data.train if data.validation is None else data.validation
    for classes in (data.base_classes, data.new_classes):
        train_rows, validation_rows = data.train_and_validation_rows(classes)
        parts = {
            "training": data.train.labels[train_rows],
            "validation": validation.labels[validation_rows],
            "test": data.test.labels,
        }
        for part, labels in parts.items():
            absent = sorted(set(classes).difference(labels.tolist()))
            if absent and (len(labels) or part != "test"):
                raise DataError(
                    f"{source}: no {part} image of class {absent[0]}: every class must be in the "
                    "first 80 % (training) and the last 20 % (validation) of the training images "
                    "of its half, or in validation images of their own, and in the test images; "
                    "shuffle the file if it is sorted"
                )


def check_pixels(data: Data) -> None:
    """Checks that there is something to see in the images of each part.

    Raises:
        DataError: If all images of a part are the same, or have no pixel above 1.
    """
    parts = {"training": data.train, "validation": data.validation, "test": data.test}
    for part, examples in parts.items():
        if examples is None or len(examples.labels) < 2:
            continue
        chunks = examples.images.split(1000)  # compared at once, they would take more memory
        if all(bool((chunk == examples.images[0]).all()) for chunk in chunks):
            raise DataError(
                f"{data.name}: all {part} images are the same: check how they were made"
            )
        if all(chunk.max() <= 1 for chunk in chunks):
            raise DataError(
                f"{data.name}: all pixels of the {part} images are 0 or 1, as after dividing by "
                "255: multiply by 255 before making whole numbers of them"
            )


def class_rows(labels: Tensor, classes: Iterable[int]) -> Tensor:
    """Finds the rows of some classes among labels ``(N,)``: ``(M,)`` int64, ascending."""
    return torch.isin(labels, torch.tensor(list(classes))).nonzero().flatten()


def split_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Splits rows ``(N,)`` as documented: the first 80 % train, the last 20 % validate."""
    boundary = num_training(len(rows))
    return rows[:boundary], rows[boundary:]


def prefix_rows(labels: Tensor, fraction: float) -> Tensor:
    """Finds the rows of `stratified_prefix` among labels ``(N,)``: ``(M,)`` int64, ascending."""
    if not 0 < fraction <= 1:
        raise ValueError(f"a fraction of the images is above 0 and at most 1, not {fraction}")
    kept = torch.zeros_like(labels, dtype=torch.bool)
    for label in labels.unique():
        of_class = (labels == label).nonzero().flatten()
        kept[of_class[: max(1, round(fraction * len(of_class)))]] = True
    return kept.nonzero().flatten()


def _take(examples: LabeledImages, rows: Tensor) -> LabeledImages:
    # index_select returns contiguous images whatever it is given: batches are gathered faster so.
    return LabeledImages(examples.images.index_select(0, rows), examples.labels[rows])


def num_training(num_images: int) -> int:
    """Computes how many of ``num_images`` train: the first 80 %, as documented."""
    return num_images * 4 // 5


def select_classes(examples: LabeledImages, classes: Iterable[int]) -> LabeledImages:
    """Selects the images of some classes: M of N images. Their order and labels stay."""
    return _take(examples, class_rows(examples.labels, classes))


def split_validation(examples: LabeledImages) -> tuple[LabeledImages, LabeledImages]:
    """Splits images in file order: the first 80 % train, the last 20 % validate, as documented."""
    train, validation = split_rows(torch.arange(len(examples.labels)))
    return _take(examples, train), _take(examples, validation)


def stratified_prefix(examples: LabeledImages, fraction: float) -> LabeledImages:
    """Keeps the first images of each class, in file order.

    Every image that is kept at a smaller fraction is kept at a larger one, too. So results at
    several fractions can be compared.

    Args:
        examples: N images.
        fraction: Above 0, at most 1. The number of images of each class is rounded, but is at
            least 1.

    Raises:
        ValueError: If the fraction is out of range.
    """
    return _take(examples, prefix_rows(examples.labels, fraction))


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Computes the mean and the standard deviation of each colour channel.

    Args:
        images: ``(N, 3, H, W)`` uint8.

    Returns:
        Two tensors ``(3, 1, 1)`` float32, of pixels divided by 255. A standard deviation is at
        least 1/255, so that one can divide by it.
    """
    total, squares = torch.zeros(2, 3, dtype=torch.float64)
    for batch in images.split(100):  # exact: squares below 2**24, sums of whole numbers below 2**53
        pixels = batch.float().transpose(0, 1).flatten(1)
        total += pixels.sum(1, dtype=torch.float64)
        squares += pixels.square().sum(1, dtype=torch.float64)
    count = images.numel() / 3
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(1).sqrt()
    return (mean / 255).float().view(3, 1, 1), (std / 255).float().view(3, 1, 1)


def labeled_images(images: NDArray[np.uint8], labels: NDArray[Any]) -> LabeledImages:
    """Makes `LabeledImages` from arrays: images ``(N, 3, 32, 32)`` uint8, labels ``(N,)``."""
    return LabeledImages(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)))


def fingerprint_of(*parts: NDArray[Any] | int | str) -> str:
    """Computes a SHA-256 of arrays and plain values, for `Data.fingerprint`."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype} {part.shape} ".encode())
            digest.update(np.ascontiguousarray(part).data)
        else:
            digest.update(f"{part} ".encode())
    return digest.hexdigest()
