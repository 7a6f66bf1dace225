"""Classes of one's own: a folder of image files for each, laid out as for ImageFolder."""

import itertools
import json
from pathlib import Path

import torch

from cifar_tl.data.examples import Data, LabeledImages, fingerprint_of, num_training
from cifar_tl.data.find_images import find_classes
from cifar_tl.data.image_files import read_images
from cifar_tl.data.source import OFFICIAL, PARTS, SHAPES, TEST, TRAIN, VALIDATION, results_name
from cifar_tl.errors import DataError, ImageError


def read_class_folders(folder: Path, *, progress: bool = False) -> Data:
    """Reads classes of image files, as `load_data` describes them, numbered by name; all are new.

    Raises:
        DataError: If `find_classes` finds something wrong, or images are damaged, all of which the
            message names.
    """
    name = results_name(folder)
    if name in (SHAPES, OFFICIAL):
        raise DataError(f"{folder}: results in a folder {name} are of other data: rename it")
    found = find_classes(folder)
    classes = list(found[TRAIN])
    paths = {part: list(by_class.values()) for part, by_class in found.items()}
    if not any(paths[VALIDATION]):
        of_both = paths[TRAIN]
        paths[VALIDATION] = [of_class[num_training(len(of_class)) :] for of_class in of_both]
        paths[TRAIN] = [of_class[: num_training(len(of_class))] for of_class in of_both]
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


def _read_parts(paths: dict[str, list[list[str]]], *, progress: bool) -> dict[str, LabeledImages]:
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
