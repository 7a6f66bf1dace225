"""Classes of one's own: a folder of image files for each, laid out as for ImageFolder."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from cifar_tl.data.classes import Chosen
from cifar_tl.data.examples import Data, LabeledImages, fingerprint_of, num_training
from cifar_tl.data.pictures.duplicates import find_duplicates
from cifar_tl.data.pictures.find import find_classes
from cifar_tl.data.pictures.read import READING_RULES, read_images
from cifar_tl.data.source import OFFICIAL, PARTS, SHAPES, TEST, TRAIN, VALIDATION, results_name
from cifar_tl.errors import DataError, ImageError
from cifar_tl.names import portable

Sample = tuple[str, str, int]  # its part, path and label


def read_class_folders(
    folder: Path,
    *,
    white: Mapping[str, float] | None = None,
    progress: bool = False,
    base_classes: Chosen = None,
    new_classes: Chosen = None,
) -> Data:
    """Reads classes of image files, as `load_data` describes them, numbered by name.

    All of them are new classes for a base model of other data, and may make one for other data.

    Raises:
        DataError: If `find_classes` finds something wrong, or images are damaged, all of which the
            message names.
    """
    if base_classes is not None or new_classes is not None:
        raise DataError(
            f"{folder}: its classes are not divided into base and new ones, all are either: move "
            "folders out of it, and leave the choice of classes out"
        )
    name = results_name(folder)
    if name in (SHAPES, OFFICIAL):
        raise DataError(f"{folder}: results in a folder {name} are of other data: rename it")
    found = find_classes(folder)
    classes = [portable(name) for name in found.images[TRAIN]]
    samples = _samples({part: list(of.values()) for part, of in found.images.items()})
    try:
        read = read_images([path for _, path, _ in samples], white=white, progress=progress)
    except ImageError as error:
        raise DataError(str(error)) from error
    parts = _parts(samples, read.images)
    return Data(
        name=name,
        description=f"{len(classes)} classes of image files",
        class_names=tuple(classes),
        train=parts[TRAIN],
        read_test=lambda: parts[TEST],
        fingerprint=_fingerprint(folder, classes, samples, read.digests),
        validation=parts[VALIDATION],
        base_classes=tuple(range(len(classes))),
        new_classes=tuple(range(len(classes))),
        notes=(*found.notes, *read.notes, *find_duplicates(read.images, samples)),
        reading={"reading_rules": READING_RULES, **({"white": read.white} if read.white else {})},
        software=read.software,
    )


def _samples(paths: dict[str, list[list[str]]]) -> list[Sample]:
    """Splits the images; the classes take turns, in case only the first are used."""
    if not any(paths[VALIDATION]):
        of_both = paths[TRAIN]
        paths[VALIDATION] = [of_class[num_training(len(of_class)) :] for of_class in of_both]
        paths[TRAIN] = [of_class[: num_training(len(of_class))] for of_class in of_both]
    return [
        (part, path, label)
        for part in PARTS
        for row in itertools.zip_longest(*paths[part])
        for label, path in enumerate(row)
        if path is not None
    ]


def _parts(samples: Sequence[Sample], images: torch.Tensor) -> dict[str, LabeledImages]:
    labels = torch.tensor([label for _, _, label in samples], dtype=torch.int64)
    rows = {part: torch.tensor([sample[0] == part for sample in samples]) for part in PARTS}
    return {part: LabeledImages(images[of_part], labels[of_part]) for part, of_part in rows.items()}


def _fingerprint(
    folder: Path, classes: Sequence[str], samples: Sequence[Sample], digests: Sequence[str]
) -> str:
    """Identifies files and split, not what a version of the decoder has made of them."""
    files = [
        (part, label, portable(Path(path).relative_to(folder).as_posix()), digest)
        for (part, path, label), digest in zip(samples, digests, strict=True)
    ]
    return fingerprint_of(json.dumps([READING_RULES, classes, files]))
