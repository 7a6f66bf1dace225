"""Find the image files in folders, and of which class each is; nothing here needs torch."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from cifar_tl.data.source import PARTS, TEST, TRAIN, VALIDATION
from cifar_tl.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


def list_image_files(paths: Sequence[Path]) -> Iterator[Path]:
    """Lists files, whatever their names, and the images in and below each folder, in order."""
    for path in paths:
        if path.is_dir():
            yield from sorted(filter(_is_image_file, path.rglob("*")))
        else:
            yield path


def find_classes(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Finds for each part, such as ``train``, the paths of the images of each of its classes.

    ``val`` has no images at all if some of those of ``train`` are to validate.

    Raises:
        DataError: If a class has no image to train or to validate with, there is another class
            than those of ``train``, or something would be ignored.
    """
    _check_layout(folder)
    classes = _folders(folder / TRAIN)
    found = {
        part: {name: _images_below(folder / part / name) for name in classes} for part in PARTS
    }
    empty = [name for name, paths in found[TRAIN].items() if not paths]
    if empty or not classes:
        where = ", ".join(str(folder / TRAIN / name) for name in empty or [""])
        raise DataError(f"every class needs a folder with its images: there are none in {where}")
    if len(classes) < 2:
        raise DataError(f"{folder / TRAIN} holds only one class: there must be two or more")
    for part in (VALIDATION, TEST):
        if unknown := sorted({*_folders(folder / part)}.difference(classes)):
            raise DataError(f"{folder / part / unknown[0]} is a class that {TRAIN} does not have")
    if (folder / VALIDATION).is_dir():
        if empty := [name for name, paths in found[VALIDATION].items() if not paths]:
            raise DataError(f"{folder}: class {empty[0]} has no validation image: add some")
    elif single := [name for name, paths in found[TRAIN].items() if len(paths) == 1]:
        raise DataError(
            f"{folder / TRAIN / single[0]} has one image: a class needs one to train and another "
            f"to validate, here or in {VALIDATION}"
        )
    return found


def _check_layout(folder: Path) -> None:
    """Refuses folders and images that would be ignored."""
    for wrong in ("valid", "validation"):
        if (folder / wrong).is_dir():
            raise DataError(f"{folder / wrong} would be ignored: rename it to {VALIDATION}")
    for path in folder.glob("*/*"):
        if path.parent.name in PARTS and _is_image_file(path):
            raise DataError(f"{path} has no class: move it into the folder of its class")


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
    return [path for path in found if _is_image_file(path)]


def _is_image_file(path: str | Path) -> bool:
    """Tells by its name whether a file is one of the images of a folder; hidden ones are not."""
    path = Path(path)
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
