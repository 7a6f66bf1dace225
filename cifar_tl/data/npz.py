"""CIFAR-10, or what looks like it, in a .npz file in the Keras layout."""

import contextlib
import math
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cifar_tl.data.classes import CIFAR10_CLASS_NAMES, Chosen, choose_classes, split_suffix
from cifar_tl.data.examples import (
    SIZE,
    Data,
    LabeledImages,
    fingerprint_of,
    labeled_images,
    select_classes,
    split_validation,
)
from cifar_tl.data.source import results_name
from cifar_tl.errors import DataError, first_line

REQUIRED = ("x_train", "y_train", "x_test", "y_test")
OPTIONAL = ("x_val", "y_val", "class_names")


def read_npz(
    path: Path, *, base_classes: Chosen = None, new_classes: Chosen = None, **_: object
) -> Data:
    """Reads an archive in the Keras layout, all but the test images, which are only checked.

    Raises:
        DataError: If it is damaged or holds something else.
    """
    with _open_npz(path) as archive:
        members = {name.removesuffix(".npy") for name in archive.namelist()}
        splits = ("train", "val", "test") if members & {"x_val", "y_val"} else ("train", "test")
        arrays = [f"{kind}_{split}" for split in splits for kind in "xy"]
        if absent := [key for key in arrays if key not in members]:
            raise DataError(f"{path} has no array {', '.join(absent)}: add it to the archive")
        sizes = {split: _check_headers(path, archive, split) for split in splits}
        labels = {split: _read_labels(path, archive, split, sizes[split]) for split in splits}
        names = _read_names(path, archive) if "class_names" in members else CIFAR10_CLASS_NAMES
        halves = base, new = choose_classes(names, base_classes, new_classes)
        _check_classes(path, names, labels, halves)
        images = {split: _read(archive, f"x_{split}") for split in splits if split != "test"}
        checksums = {split: archive.getinfo(f"x_{split}.npy").CRC for split in splits}

    def read_test() -> LabeledImages:
        with _open_npz(path) as archive:
            if checksums["test"] != archive.getinfo("x_test.npy").CRC:
                raise DataError(
                    f"{path} has changed since the training images were read: put it back as it was"
                )
            return _examples(_read(archive, "x_test"), labels["test"])

    held_out = (checksums["val"], labels["val"]) if "val" in splits else ()
    unused = sorted(members.difference(REQUIRED, OPTIONAL))
    return Data(
        name=results_name(path) + split_suffix(base, new),
        description="a .npz file in the Keras layout",
        class_names=names,
        train=_examples(images["train"], labels["train"]),
        read_test=read_test,
        fingerprint=fingerprint_of(
            *(checksums["train"], checksums["test"], labels["train"], labels["test"]), *held_out
        ),
        base_classes=base,
        new_classes=new,
        validation=_examples(images["val"], labels["val"]) if held_out else None,
        notes=(f"{path}: arrays that are not used: {', '.join(unused)}",) if unused else (),
        mirror=names == CIFAR10_CLASS_NAMES,
    )


def _examples(images: NDArray[Any], labels: NDArray[np.int64]) -> LabeledImages:
    return labeled_images(images.transpose(0, 3, 1, 2), labels)


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


def _check_headers(path: Path, archive: zipfile.ZipFile, split: str) -> int:
    """Checks shapes and types of a split's arrays; returns how many images it has."""
    shape, dtype = _read_header(archive, f"x_{split}")
    name = f"{path}: x_{split}"
    if dtype != np.uint8:
        raise DataError(f"{name} must hold uint8 pixels from 0 to 255, not {_type_name(dtype)}")
    if len(shape) != 4 or shape[1:] != (SIZE, SIZE, 3):
        raise DataError(f"{name} must have the shape (N, {SIZE}, {SIZE}, 3), not {shape}")
    found, dtype = _read_header(archive, f"y_{split}")
    name = f"{path}: y_{split}"
    if not np.issubdtype(dtype, np.integer):
        raise DataError(f"{name} must hold integers from 0 to 9, not {_type_name(dtype)}")
    if found not in (shape[:1], (shape[0], 1)):
        raise DataError(f"{name} must have the shape ({shape[0]},) to fit x_{split}, not {found}")
    return shape[0]


def _type_name(dtype: np.dtype[Any]) -> str:
    return "Python objects" if dtype.hasobject else str(dtype)


def _read_labels(
    path: Path, archive: zipfile.ZipFile, split: str, num_images: int
) -> NDArray[np.int64]:
    labels = _read(archive, f"y_{split}").reshape(num_images)
    if len(labels) and (labels.min() < 0 or labels.max() > 9):
        raise DataError(
            f"{path}: y_{split} must hold labels from 0 to 9, not from {labels.min()} to "
            f"{labels.max()}"
        )
    return labels.astype(np.int64)


def _read_names(path: Path, archive: zipfile.ZipFile) -> tuple[str, ...]:
    shape, dtype = _read_header(archive, "class_names")
    if dtype.kind not in "US" or shape != (10,):
        raise DataError(
            f"{path}: class_names must be ten strings, not {_type_name(dtype)} of shape {shape}: "
            "np.array([...], dtype=str) makes them"
        )
    names = _read(archive, "class_names")
    texts = names if dtype.kind == "U" else np.char.decode(names, "utf-8", "backslashreplace")
    return tuple(map(str, texts))


def _check_classes(
    path: Path,
    names: Sequence[str],
    labels: Mapping[str, NDArray[np.int64]],
    halves: Iterable[Sequence[int]],
) -> None:
    if len(set(names)) < len(names):
        raise DataError(f"{path}: class_names has a name twice: give each class its own")
    of_train = torch.from_numpy(labels["train"])
    for classes in halves:
        # Which images train and validate is decided by labels alone: they stand in for the images.
        half = select_classes(LabeledImages(of_train, of_train), classes)
        train, validation = (part.labels.tolist() for part in split_validation(half))
        if "val" in labels:
            train, validation = half.labels.tolist(), labels["val"].tolist()
        for part, found in (
            ("training", train),
            ("validation", validation),
            ("test", labels["test"].tolist()),
        ):
            if absent := sorted(set(classes).difference(found)):
                raise DataError(
                    f"{path}: no {part} image of class {absent[0]}: every class must be in the "
                    "first 80 % (training) and the last 20 % (validation) of the training images "
                    "of its half, or in x_val, and in the test images; shuffle the file if it is "
                    "sorted"
                )
