"""Classes of one's own: a folder of image files for each, laid out as for ImageFolder."""

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from cifar_tl.data.examples import Data, LabeledImages, fingerprint_of, num_training
from cifar_tl.data.image_files import is_image_file, read_images
from cifar_tl.data.source import OFFICIAL, PARTS, SHAPES, TEST, TRAIN, VALIDATION
from cifar_tl.errors import DataError, ImageError


def read_class_folders(folder: Path, *, progress: bool = False) -> Data:
    """Reads classes of image files, as `load_data` describes them, numbered by name; all are new.

    Raises:
        DataError: If a class has no image to train or to validate with, another class than those
            of ``train`` turns up, or images are damaged, all of which the message names.
    """
    name = folder.resolve().name
    if name in (SHAPES, OFFICIAL):
        raise DataError(f"{folder}: results in a folder {name} are of other data: rename it")
    _check_layout(folder)
    classes, paths = _find(folder)
    parts = _read_parts(paths, progress=progress)
    return Data(
        name=name,
        description=f"{len(classes)} classes of image files",
        class_names=tuple(classes),
        train=parts[TRAIN],
        read_test=lambda: parts[TEST],
        fingerprint=fingerprint_of(
            json.dumps(classes), *(array.numpy() for part in parts.values() for array in part)
        ),
        validation=parts[VALIDATION],
        base_classes=None,
        new_classes=range(len(classes)),
    )


def _check_layout(folder: Path) -> None:
    """Refuses folders and images that would be ignored."""
    for wrong in ("valid", "validation"):
        if (folder / wrong).is_dir():
            raise DataError(f"{folder / wrong} would be ignored: rename it to {VALIDATION}")
    for path in folder.glob("*/*"):
        if path.parent.name in PARTS and is_image_file(path):
            raise DataError(f"{path} has no class: move it into the folder of its class")


def _find(folder: Path) -> tuple[list[str], dict[str, list[list[str]]]]:
    """Finds the classes, and for each part the paths of each class's images."""
    classes = _folders(folder / TRAIN)
    paths = {part: [_images_below(folder / part / name) for name in classes] for part in PARTS}
    empty = [name for name, found in zip(classes, paths[TRAIN], strict=True) if not found]
    if empty or not classes:
        where = ", ".join(str(folder / TRAIN / name) for name in empty or [""])
        raise DataError(f"every class needs a folder with its images: there are none in {where}")
    if len(classes) < 2:
        raise DataError(f"{folder / TRAIN} holds only one class: there must be two or more")
    for part in (VALIDATION, TEST):
        if unknown := sorted({*_folders(folder / part)}.difference(classes)):
            raise DataError(f"{folder / part / unknown[0]} is a class that {TRAIN} does not have")
    if not (folder / VALIDATION).is_dir():
        of_both = paths[TRAIN]
        paths[VALIDATION] = [of_class[num_training(len(of_class)) :] for of_class in of_both]
        paths[TRAIN] = [of_class[: num_training(len(of_class))] for of_class in of_both]
    for part, use in ((TRAIN, "training"), (VALIDATION, "validation")):
        for name, found in zip(classes, paths[part], strict=True):
            if not found:
                raise DataError(f"{folder}: class {name} has no {use} image: add some")
    return classes, paths


def _folders(folder: Path) -> list[str]:
    """Lists the folders in a folder, which may be missing; Jupyter's hidden ones are no classes."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted(path.name for path in paths if path.is_dir() and not path.name.startswith("."))


def _images_below(folder: Path) -> list[str]:
    """Lists the images of a class in the order in which torchvision's ImageFolder finds them."""
    found = (
        os.path.join(root, name)  # noqa: PTH118  # as often as there are images
        for root, _, names in sorted(os.walk(folder, followlinks=True))
        for name in sorted(names)
    )
    return [path for path in found if is_image_file(path)]


def _read_parts(
    paths: Mapping[str, Sequence[Sequence[str]]], *, progress: bool
) -> dict[str, LabeledImages]:
    """Reads the images of each part; the classes take turns, in case only the first are used."""
    samples = [
        (part, path, label)
        for part, by_class in paths.items()
        for row in itertools.zip_longest(*by_class)
        for label, path in enumerate(row)
        if path is not None
    ]
    try:
        images = read_images([path for _, path, _ in samples], progress=progress)
    except ImageError as error:
        raise DataError(str(error)) from error
    labels = torch.tensor([label for _, _, label in samples], dtype=torch.int64)
    parts = {}
    for part in PARTS:
        rows = torch.tensor([sample[0] == part for sample in samples])
        parts[part] = LabeledImages(images[rows], labels[rows])
    return parts
