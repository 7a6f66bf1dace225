"""Classes of your own: image files in a folder for each class, or with their labels in a file."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from cifar_tl.data.examples import Data, LabeledImages, fingerprint_of, num_training
from cifar_tl.data.pictures.duplicates import find_duplicates
from cifar_tl.data.pictures.find import PARTS, TEST, TRAIN, VALIDATION, find_classes
from cifar_tl.data.pictures.labels import find_labelled
from cifar_tl.data.pictures.read import READING_RULES, ReadImages, read_images
from cifar_tl.data.source import OFFICIAL, SHAPES, results_name
from cifar_tl.errors import DataError, ImageError
from cifar_tl.frame import Fit, Frame, cifar_frame
from cifar_tl.names import numbered, portable, printable

Sample = tuple[str, str, int]  # part, path, label


def read_class_folders(
    folder: Path,
    *,
    labels: str | None = None,
    white: Mapping[str, float] | None = None,
    fit: Fit = "crop",
    picture_cache: str | Path | None = None,
    progress: bool = False,
) -> Data:
    """Reads classes of image files as `load_data` describes it. They are numbered by name.

    Raises:
        DataError: If `find_classes` or `find_labelled` refuses the folder, or images are
            damaged. The message names all damaged images.
    """
    name = results_name(folder, labels)
    if name in (SHAPES, OFFICIAL):
        raise DataError(f"{folder}: results in a folder {name} are of other data: rename it")
    found = find_classes(folder) if labels is None else find_labelled(folder, labels)
    names = list(found.images[TRAIN])
    classes = [portable(name) for name in names] if labels is None else names
    samples = _samples(found.images)
    frame = cifar_frame(fit)
    kept = None if picture_cache is None else Path(picture_cache) / f"{frame.size}-{fit}.pictures"
    read = _read(samples, frame, white, progress, kept)
    numbers = torch.tensor([label for _, _, label in samples], dtype=torch.int64)
    rows = {part: torch.tensor([sample[0] == part for sample in samples]) for part in PARTS}
    train, validation, test = (
        LabeledImages(read.images[rows[part]], numbers[rows[part]]) for part in PARTS
    )
    return Data(
        description=f"{len(classes)} classes of image files",
        class_names=tuple(classes),
        train=train,
        test=test,
        fingerprint=_fingerprint(folder, classes, samples, read.digests),
        validation=validation,
        notes=(*found.notes, *read.notes, *find_duplicates(read.images, samples)),
        reading={
            "reading_rules": READING_RULES,
            **({"white": read.white} if read.white else {}),
            **({} if fit == "crop" else {"fit": fit}),
        },
        software=read.software,
        frame=frame,
        shorter_side=read.shorter_side,
        seconds_before=read.seconds_before,
        files={
            name: tuple(path for where, path, _ in samples if where == part)
            for name, part in zip(("train", "validation", "test"), PARTS, strict=True)
        },
    )


def read_test_folders(
    folder: Path,
    classes: Mapping[int, str],
    *,
    white: Mapping[str, float] | None = None,
    fit: Fit = "crop",
    progress: bool = False,
) -> Data:
    """Reads images ``CLASS/*``, all of them as test images for a trained model.

    Args:
        folder: It has no folder ``train``.
        classes: The classes of the model, names by number. The folder may lack some.
        white: As for `load_data`.
        fit: As for `load_data`.
        progress: As for `load_data`.

    Returns:
        The test images, with the labels of the model. The fingerprint is the one that the same
        images have when `load_data` divides them.

    Raises:
        DataError: If the folder has another class, or images are damaged.
    """
    found = find_classes(folder, judged=True)
    names = [portable(name) for name in found.images[TRAIN]]
    numbers = {name: number for number, name in classes.items()}
    if unknown := [name for name in names if name not in numbers]:
        raise DataError(
            f"{printable(str(folder / unknown[0]))} is no class of the model, which knows "
            f"{numbered(classes, 10)}: rename that folder, or move it away"
        )
    samples = _samples(found.images)
    frame = cifar_frame(fit)
    read = _read(samples, frame, white, progress)
    labels = torch.tensor([numbers[names[place]] for _, _, place in samples])
    test = LabeledImages(read.images, labels)
    judged = [(TEST, path, label) for _, path, label in samples]
    return Data(
        description=f"{len(names)} classes of image files",
        class_names=tuple(classes.get(number, "") for number in range(max(classes) + 1)),
        train=LabeledImages(read.images[:0], labels[:0]),
        test=test,
        fingerprint=_fingerprint(folder, names, samples, read.digests),
        notes=(*found.notes, *read.notes, *find_duplicates(read.images, judged)),
        reading={"white": read.white} if read.white else {},
        frame=frame,
        files={"test": tuple(path for _, path, _ in samples)},
        name=folder.resolve().name,
    )


def _read(
    samples: Sequence[Sample],
    frame: Frame,
    white: Mapping[str, float] | None,
    progress: bool,
    kept: Path | None = None,
) -> ReadImages:
    """Reads the images. Damaged ones become a `DataError`."""
    paths = [path for _, path, _ in samples]
    try:
        return read_images(paths, frame, white=white, kept=kept, progress=progress)
    except ImageError as error:
        raise DataError(str(error)) from error


def _samples(images: Mapping[str, Mapping[str, list[str]]]) -> list[Sample]:
    """Splits the images. The classes take turns, so that the first images show all classes.

    Args:
        images: The files of each part, class by class. If no file is for validation, the last 20 %
            of each class in ``train`` are taken for it.
    """
    paths = {part: list(of.values()) for part, of in images.items()}
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


def _fingerprint(
    folder: Path, classes: Sequence[str], samples: Sequence[Sample], digests: Sequence[str]
) -> str:
    """Identifies the files and the split. The same file is the same, whatever decodes it."""
    files = [
        (part, label, portable(Path(path).relative_to(folder).as_posix()), digest)
        for (part, path, label), digest in zip(samples, digests, strict=True)
    ]
    return fingerprint_of(json.dumps([READING_RULES, classes, files]))
