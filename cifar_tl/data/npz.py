"""CIFAR-10, or what looks like it, in a .npz file in the Keras layout."""

import contextlib
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cifar_tl.data.cifar10 import CIFAR10_CLASS_NAMES
from cifar_tl.data.examples import (
    BASE_CLASSES,
    SIZE,
    TRANSFER_CLASSES,
    Data,
    LabeledImages,
    fingerprint_of,
    labeled_images,
    select_classes,
    split_validation,
)
from cifar_tl.data.source import results_name
from cifar_tl.errors import DataError, first_line


def read_npz(path: Path, *, progress: bool = False) -> Data:  # noqa: ARG001  # all readers have it
    """Reads an archive in the Keras layout, all but the test images, which are only checked.

    Raises:
        DataError: If it is damaged or holds something else.
    """
    with _open_npz(path) as archive:
        members = {name.removesuffix(".npy") for name in archive.namelist()}
        if absent := [
            key for key in ("x_train", "y_train", "x_test", "y_test") if key not in members
        ]:
            raise DataError(f"{path} has no array {', '.join(absent)}: add it to the archive")
        _check_images(path, "train", *_read_header(archive, "x_train"))
        test_shape, test_dtype = _read_header(archive, "x_test")
        _check_images(path, "test", test_shape, test_dtype)
        x_train, y_train, y_test = (_read(archive, key) for key in ("x_train", "y_train", "y_test"))
        image_checksums = [archive.getinfo(f"{key}.npy").CRC for key in ("x_train", "x_test")]
    _check_labels(path, "train", y_train, len(x_train))
    _check_labels(path, "test", y_test, test_shape[0])
    y_train, y_test = (labels.reshape(-1).astype(np.int64) for labels in (y_train, y_test))
    _check_classes(path, y_train, y_test)

    def read_test() -> LabeledImages:
        with _open_npz(path) as archive:
            checksum = archive.getinfo("x_test.npy").CRC
            if checksum != image_checksums[1]:
                raise DataError(
                    f"{path} has changed since the training images were read: put it back as it was"
                )
            return labeled_images(_read(archive, "x_test").transpose(0, 3, 1, 2), y_test)

    return Data(
        name=results_name(path),
        description="a .npz file in the Keras layout",
        class_names=CIFAR10_CLASS_NAMES,
        train=labeled_images(x_train.transpose(0, 3, 1, 2), y_train),
        read_test=read_test,
        fingerprint=fingerprint_of(*image_checksums, y_train, y_test),
    )


@contextlib.contextmanager
def _open_npz(path: Path) -> Iterator[zipfile.ZipFile]:
    """Opens an archive; whatever is wrong with it while it is open becomes a `DataError`."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except FileNotFoundError:
        raise DataError(f"there is no file {path}: check the path") from None
    except (DataError, MemoryError):
        raise
    except Exception as error:  # damage surfaces as whatever the reader trips over first
        reason = first_line(error).partition(". ")[0]
        raise DataError(
            f"{path} is no readable .npz archive of plain arrays ({reason}): make or copy it anew"
        ) from error


def _read(archive: zipfile.ZipFile, key: str) -> NDArray[Any]:
    shape, dtype = _read_header(archive, key)
    if math.prod(shape) * dtype.itemsize > archive.getinfo(f"{key}.npy").file_size:
        raise ValueError(f"{key} is shorter than it says")  # before memory is taken for it
    with archive.open(f"{key}.npy") as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def _read_header(archive: zipfile.ZipFile, key: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Reads an array's shape and type without its content."""
    with archive.open(f"{key}.npy") as member:
        first = np.lib.format.read_magic(member) == (1, 0)
        read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(member)
        return shape, dtype


def _check_images(path: Path, split: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    name = f"{path}: x_{split}"
    if dtype != np.uint8:
        raise DataError(f"{name} must hold uint8 pixels from 0 to 255, not {dtype}")
    if len(shape) != 4 or shape[1:] != (SIZE, SIZE, 3):
        raise DataError(f"{name} must have the shape (N, {SIZE}, {SIZE}, 3), not {shape}")


def _check_labels(path: Path, split: str, labels: NDArray[Any], num_images: int) -> None:
    name = f"{path}: y_{split}"
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{name} must hold integers from 0 to 9, not {labels.dtype}")
    if labels.shape not in ((num_images,), (num_images, 1)):
        raise DataError(
            f"{name} must have the shape ({num_images},) to fit x_{split}, not {labels.shape}"
        )
    if len(labels) and (labels.min() < 0 or labels.max() > 9):
        raise DataError(
            f"{name} must hold labels from 0 to 9, not from {labels.min()} to {labels.max()}"
        )


def _check_classes(path: Path, y_train: NDArray[np.int64], y_test: NDArray[np.int64]) -> None:
    labels = torch.from_numpy(y_train)
    for classes in (BASE_CLASSES, TRANSFER_CLASSES):
        # Which images train and validate is decided by labels alone: they stand in for the images.
        half = select_classes(LabeledImages(labels, labels), classes)
        train, validation = split_validation(half)
        for part, found in (
            ("training", train.labels.tolist()),
            ("validation", validation.labels.tolist()),
            ("test", y_test.tolist()),
        ):
            if absent := sorted(set(classes).difference(found)):
                raise DataError(
                    f"{path}: no {part} image of class {absent[0]}: every class must be in the "
                    "first 80 % (training) and the last 20 % (validation) of the training images "
                    "of its half, and in the test images; shuffle the file if it is sorted"
                )
