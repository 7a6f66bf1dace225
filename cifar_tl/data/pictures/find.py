"""Find the image files in folders, and of which class each is; nothing here needs torch."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from cifar_tl.data.source import PARTS, TEST, TRAIN, VALIDATION
from cifar_tl.errors import DataError
from cifar_tl.names import count

# What is read, by Pillow's names, with every suffix that Pillow registers for it.
FORMATS: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),  # .mpo: with more than one image
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "AVIF": (".avif", ".avifs"),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
}
HEIF_SUFFIXES = (".heic", ".heics", ".heif", ".heifs", ".hif")
HEIF_PACKAGE = "pillow_heif"  # reads them, if it is installed
INSTALL_HEIF = "pip install pillow-heif"

# Of systems and their tools, in folders that they share with their users; those with a dot besides.
SERVICE_FOLDERS = (
    *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),  # network storage
    *("__macosx", "$recycle.bin", "system volume information", "lost+found", "__pycache__"),
)
SERVICE_FILES = ("thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r")


class Found(NamedTuple):
    """The image files in and below a folder, in order, and the files that are left out."""

    images: list[str]
    others: list[str]
    folders: dict[tuple[int, int], str]  # by device and number, under which each is known once


class Classes(NamedTuple):
    """The image files of classes of one's own, and what their owner should know about them."""

    images: dict[str, dict[str, list[str]]]  # of each part, such as ``train``, by class
    notes: list[str]


def suffixes() -> tuple[str, ...]:
    """Lists the suffixes of the files that can be read here."""
    listed = [suffix for of_format in FORMATS.values() for suffix in of_format]
    return (*listed, *(HEIF_SUFFIXES if find_spec(HEIF_PACKAGE) else ()))


def list_image_files(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Lists files, whatever their names, and the images in and below each folder, in order.

    Returns:
        The files, and for each folder in which some are left out a line that says so.
    """
    files: list[Path] = []
    notes: list[str] = []
    for path in paths:
        if path.is_dir():
            found = find_images(path)
            files += map(Path, found.images)
            notes += left_out(path, found.others)
        else:
            files.append(path)
    return files, notes


def find_images(folder: str | Path) -> Found:
    """Finds the image files in and below a folder, in the order of torchvision's ImageFolder.

    Links are followed, each real folder is entered once. What is hidden, or of the system, counts
    nowhere. A link to nowhere is listed as an image, so that reading it tells.

    Raises:
        DataError: If a folder cannot be read.
    """
    found, known = Found([], [], {}), suffixes()
    for root, names in sorted(_walk(str(folder), found.folders)):
        for name in sorted(names):
            if name.startswith(".") or name.lower() in SERVICE_FILES:
                continue
            path = os.path.join(root, name)  # noqa: PTH118  # as often as there are files
            if not os.path.exists(path):  # noqa: PTH110  # a link to nowhere, whatever its name
                found.images.append(path)
                continue
            is_image = os.path.splitext(name)[1].lower() in known and os.path.isfile(path)  # noqa: PTH122, PTH113
            (found.images if is_image else found.others).append(path)
    return found


def _walk(top: str, entered: dict[tuple[int, int], str]) -> Iterator[tuple[str, list[str]]]:
    """Yields each real folder once, and the names of its files."""

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from error

    for root, folders, names in os.walk(top, followlinks=True, onerror=fail):
        status = os.stat(root)  # noqa: PTH116
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered[status.st_dev, status.st_ino] = root
        folders[:] = sorted(name for name in folders if not _is_service(name))
        yield root, names


def _is_service(name: str) -> bool:
    return name.startswith(".") or name.lower() in SERVICE_FOLDERS


def left_out(folder: str | Path, others: Sequence[str]) -> list[str]:
    """Says in one line, if there is something to say, which files are left out, and what to do."""
    counts = Counter(os.path.splitext(path)[1].lower() for path in others)  # noqa: PTH122
    if not counts:
        return []
    listed = ", ".join(f"{n} {suffix or 'without suffix'}" for suffix, n in counts.most_common())
    can = f"{INSTALL_HEIF} reads {HEIF_SUFFIXES[0]}; " if counts.keys() & {*HEIF_SUFFIXES} else ""
    return [
        f"{folder}: left out, {count(len(others), 'file')} ({listed}): {can}convert what is an "
        "image to PNG or JPEG"
    ]


def find_classes(folder: Path) -> Classes:
    """Finds the images of classes of one's own, as `load_data` describes the folder.

    ``val`` has none at all if some of those of ``train`` are to validate.

    Raises:
        DataError: If a class has no image to train or to validate with, there is another class
            than those of ``train``, a folder is in two classes, or something would be ignored.
    """
    _check_layout(folder)
    classes = _folders(folder / TRAIN)
    if len(classes) < 2:
        raise DataError(
            f"{folder / TRAIN} holds {'only one class' if classes else 'no classes'}: there must "
            "be two or more, each a folder with its images"
        )
    for part in (VALIDATION, TEST):
        if unknown := sorted({*_folders(folder / part)}.difference(classes)):
            meant = [name for name in classes if _spoken(name) == _spoken(unknown[0])]
            what = f", which has {meant[0]!r}, spelled otherwise: rename one" if meant else ""
            raise DataError(
                f"{folder / part / unknown[0]} is a class that {TRAIN} does not have{what}"
            )
    found = {
        part: {
            name: find_images(folder / part / name)
            for name in classes
            if (folder / part / name).is_dir()
        }
        for part in PARTS
    }
    _check_numbers(folder, found)
    for by_class in found.values():
        _check_shared(by_class)
    others = [path for by_class in found.values() for of in by_class.values() for path in of.others]
    images = {
        part: {name: by_class[name].images if name in by_class else [] for name in classes}
        for part, by_class in found.items()
    }
    notes = [*left_out(folder, others), *_unused(folder), *_untested(found)]
    return Classes(images, [*notes, *_doubtful(folder, images[TRAIN])])


def _check_layout(folder: Path) -> None:
    """Refuses folders and images that would be ignored, and links to nowhere."""
    for path in (folder / part for part in PARTS):
        if os.path.lexists(path) and not path.is_dir():
            raise DataError(f"{path} is no folder, or a link to nowhere: repair or delete it")
    for wrong in ("valid", "validation"):
        if (folder / wrong).is_dir():
            raise DataError(f"{folder / wrong} would be ignored: rename it to {VALIDATION}")
    known = suffixes()
    for path in sorted(path for part in PARTS for path in folder.glob(f"{part}/[!.]*")):
        if path.suffix.lower() in known and not path.is_dir():
            raise DataError(
                f"{path} has no class: move it into the folder of its class, or {path.parent.name} "
                "elsewhere, and have predict name what is in it"
            )
        if path.is_symlink() and not path.exists():
            raise DataError(f"{path} is a link to nowhere: repair or delete it")


def _folders(folder: Path) -> list[str]:
    """Lists the folders in a folder, which may be missing, but for hidden and service folders."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted(path.name for path in paths if not _is_service(path.name) and path.is_dir())


def _check_numbers(folder: Path, found: Mapping[str, Mapping[str, Found]]) -> None:
    """Refuses a class without images to train and to validate with."""
    held_out = (folder / VALIDATION).is_dir()
    for part in (TRAIN, VALIDATION) if held_out else (TRAIN,):
        for name in found[TRAIN]:
            of_class = found[part].get(name, Found([], [], {}))
            if not of_class.images:
                names = [os.path.basename(path) for path in of_class.others[:2]]  # noqa: PTH119
                what = f", only {count(len(of_class.others), 'other file')}: {', '.join(names)}"
                instead = f"{folder / part}, to validate with images of {TRAIN}"
                raise DataError(
                    f"{folder / part / name} has no image{what if names else ''}: add some, or "
                    f"delete {'that class' if part == TRAIN else instead}"
                )
            if len(of_class.images) == 1 and not held_out:
                raise DataError(
                    f"{folder / part / name} has one image: a class needs one to train and another "
                    f"to validate, here or in {VALIDATION}"
                )


def _check_shared(by_class: Mapping[str, Found]) -> None:
    """Refuses a real folder that links make a part of two classes."""
    seen: dict[tuple[int, int], str] = {}
    for found in by_class.values():
        for key, path in found.folders.items():
            if key in seen:
                raise DataError(f"{seen[key]} and {path} are one folder in two classes: unlink one")
        seen |= found.folders


def _unused(folder: Path) -> list[str]:
    """Says in one line, if there are any, which folders beside the parts hold images."""
    parts = [folder / part for part in PARTS if (folder / part).exists()]
    others = [folder / name for name in _folders(folder) if name not in PARTS]
    unused = [
        str(path)
        for path in others
        if not any(path.samefile(part) for part in parts) and _holds_images(path)
    ]
    if not unused:
        return []
    return [f"images in {', '.join(unused)} are not used: what is used is in {', '.join(PARTS)}"]


def _holds_images(folder: Path) -> bool:
    """Looks for one image, not through links, and into what can be read."""
    known = suffixes()
    for _, folders, names in os.walk(folder):
        if any(name.lower().endswith(known) and not name.startswith(".") for name in names):
            return True
        folders[:] = [name for name in folders if not _is_service(name)]
    return False


def _untested(found: Mapping[str, Mapping[str, Found]]) -> list[str]:
    """Says in one line, if there are any, which classes have no test images though others do."""
    tested = [name for name, of_class in found[TEST].items() if of_class.images]
    if not tested or len(tested) == len(found[TRAIN]):
        return []
    names = ", ".join(name for name in found[TRAIN] if name not in tested)
    return [f"there are no test images of {names}: the test accuracy says nothing about them"]


def _doubtful(folder: Path, images: Mapping[str, Sequence[str]]) -> list[str]:
    """Says what is taken for granted about classes, where something else may have been meant."""
    notes = []
    spoken: dict[str, list[str]] = {}
    for name, paths in images.items():
        spoken.setdefault(_spoken(name), []).append(name)
        below = {Path(path).relative_to(folder / TRAIN / name).parts[0] for path in paths}
        if len(below) > 1 and not any((folder / TRAIN / name / part).is_file() for part in below):
            notes.append(
                f"{folder / TRAIN / name}: images in {', '.join(sorted(below))} are all of the "
                f"class {name}; for classes of their own, move these folders up"
            )
    alike = [names for names in spoken.values() if len(names) > 1]
    return [
        *notes,
        *(
            f"the classes {' and '.join(map(repr, names))} differ only in their spelling: if they "
            "are one, move their images together"
            for names in alike
        ),
    ]


def _spoken(name: str) -> str:
    """Leaves out of a name what is not heard: case, spaces, two ways to write an accent."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().replace("_", " ").split())
