"""Finds the image files in folders, and the class of each. Importing it imports no torch."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from cifar_tl.errors import DataError
from cifar_tl.names import count

TRAIN, VALIDATION, TEST = PARTS = ("train", "val", "test")  # folders with a folder for each class
# The words for them in the names that people give. Of each word, the longest form comes first.
_WORDS = {
    TRAIN: ("trainset", "training", TRAIN),
    VALIDATION: ("validation", "valid", "valset", VALIDATION, "eval"),
    TEST: ("testset", "testing", TEST, "pred"),
}
_VALIDATION = (VALIDATION, "valid", "validation")  # these folders are read as they are

# The formats that are read, by Pillow's names, with every suffix that Pillow registers for them.
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

# Systems and their tools put these into folders of their users. Names with a dot are skipped, too.
SERVICE_FOLDERS = (
    *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),  # network storage
    *("__macosx", "$recycle.bin", "system volume information", "lost+found", "__pycache__"),
)
SERVICE_FILES = ("thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r")

# Folders with both files of a pair hold results of this program, and its pictures of them.
_RESULTS = (
    {"result.json", "results.txt"},
    {"comparison.json", "comparison.txt"},
    {"bases.json", "bases.txt"},
)


class Found(NamedTuple):
    """What is in a folder and in the folders below it."""

    images: list[str]  # paths of image files, in order
    others: list[str]  # paths of files that are left out
    folders: dict[tuple[int, int], str]  # device and inode of each real folder: its path


class Classes(NamedTuple):
    """The image files of all classes, and what their owner should know about them."""

    images: dict[str, dict[str, list[str]]]  # part, such as ``train``: class: paths
    notes: list[str]


def suffixes() -> tuple[str, ...]:
    """Lists the suffixes of files that can be read on this machine."""
    listed = [suffix for of_format in FORMATS.values() for suffix in of_format]
    return (*listed, *(HEIF_SUFFIXES if find_spec(HEIF_PACKAGE) else ()))


def list_image_files(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Replaces each folder by the image files in it and below it; keeps each file.

    Returns:
        The files, and a note for each folder in which files are left out.
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

    Hidden files and files of the system are skipped. Links are followed, and each real folder is
    entered once. A link to nowhere is listed as an image: then reading it gives the error.

    Raises:
        DataError: If a folder cannot be read.
    """
    found, known = Found([], [], {}), suffixes()
    for root, names in sorted(_walk(str(folder), found.folders)):
        for name in sorted(names):
            if name.startswith(".") or name.lower() in SERVICE_FILES:
                continue
            path = os.path.join(root, name)  # noqa: PTH118  # there may be many files: no Path
            if not os.path.exists(path):  # noqa: PTH110  # a link to nowhere
                found.images.append(path)
                continue
            is_image = os.path.splitext(name)[1].lower() in known and os.path.isfile(path)  # noqa: PTH122, PTH113
            (found.images if is_image else found.others).append(path)
    return found


def _walk(top: str, entered: dict[tuple[int, int], str]) -> Iterator[tuple[str, list[str]]]:
    """Yields the path of each real folder and the names of its files."""

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from error

    for root, folders, names in os.walk(top, followlinks=True, onerror=fail):
        status = os.stat(root)  # noqa: PTH116
        if (status.st_dev, status.st_ino) in entered or _has_results(names):
            folders.clear()
            continue
        entered[status.st_dev, status.st_ino] = root
        folders[:] = sorted(name for name in folders if not _is_service(name))
        yield root, names


def _is_service(name: str) -> bool:
    return name.startswith(".") or name.lower() in SERVICE_FOLDERS


def _has_results(names: Sequence[str]) -> bool:
    return any(pair <= {*names} for pair in _RESULTS)


def left_out(folder: str | Path, others: Sequence[str]) -> list[str]:
    """Returns a note about files that are left out, and what to do; an empty list if none are."""
    counts = Counter(os.path.splitext(path)[1].lower() for path in others)  # noqa: PTH122
    if not counts:
        return []
    listed = ", ".join(f"{n} {suffix or 'without suffix'}" for suffix, n in counts.most_common())
    can = f" {INSTALL_HEIF} reads {HEIF_SUFFIXES[0]};" if counts.keys() & {*HEIF_SUFFIXES} else ""
    return [
        f"{folder}: not used: {count(len(others), 'file')} ({listed});{can} convert pictures of "
        "other formats to PNG or JPEG"
    ]


def find_classes(folder: Path, *, judged: bool = False) -> Classes:
    """Finds the image files of classes of your own. `load_data` describes the folder.

    Args:
        folder: The folder.
        judged: It has no folder ``train``, and all its images are test images of a trained model.

    Returns:
        The files. ``val`` is empty if there is no folder ``val``, ``valid`` or ``validation``; part
        of ``train`` validates then.

    Raises:
        DataError: If a class lacks training or validation images, if ``train`` does not have a
            class of ``val`` or ``test``, if a folder belongs to two classes, or if images would be
            ignored.
    """
    check_parts(folder)
    bare = not (folder / TRAIN).is_dir()  # without parts: its folders are the classes
    where = {TRAIN: folder} if bare else _places(folder)
    if bare:
        _check_alone(folder)
    _check_layout(folder, where)
    of_part = {part: folders(place) for part, place in where.items()}
    if bare:
        of_part[TRAIN] = image_folders(folder)
    _check_names(where, of_part)
    classes = of_part[TRAIN]
    images: dict[str, dict[str, list[str]]] = {
        part: {name: [] for name in classes} for part in PARTS
    }
    others: list[str] = []
    for part, names in of_part.items():
        entered: dict[tuple[int, int], str] = {}
        for name in names:
            found = find_images(where[part] / name)
            _check_shared(found.folders, entered)
            entered |= found.folders
            images[part][name] = found.images
            others += found.others
    not_used = left_out(folder, others)
    held_out = not bare and where[VALIDATION].is_dir()
    if not judged:
        check_images(where[TRAIN], images, held_out=held_out, notes=not_used)
    notes = [
        *not_used,
        *(_bare(folder, classes, judged) if bare else _unused(folder, where)),
        *unused_tables(folder),
        *_untested(images[TEST]),
        *_nested(where[TRAIN], images[TRAIN]),
        *alike(classes),
    ]
    return Classes(images, notes)


def check_parts(folder: Path) -> None:
    """Refuses a file, or a link to nowhere, in the place of a part such as ``train``."""
    for path in (folder / part for part in PARTS):
        if os.path.lexists(path) and not path.is_dir():
            raise DataError(f"{path} is no folder, or a link to nowhere: repair or delete it")


def check_images(
    source: Path,
    images: Mapping[str, Mapping[str, Sequence[str]]],
    *,
    held_out: bool,
    notes: Sequence[str],
) -> None:
    """Refuses fewer than two classes, and a class that lacks images to train or to validate.

    Args:
        source: Where the classes are from: a folder, or a table.
        images: By part and class, the paths.
        held_out: There are validation images of their own.
        notes: About files that are not used. They may be the images that a class lacks.
    """
    classes = images[TRAIN]
    if len(classes) < 2:
        raise DataError(
            f"{source} holds {'only one class' if classes else 'no classes'}: there must be two or "
            "more"
        )
    least, why = (1, "one") if held_out else (2, "one to train and another to validate")
    for part in (TRAIN, VALIDATION) if held_out else (TRAIN,):
        for name, paths in images[part].items():
            if len(paths) < least:
                raise DataError(
                    f"{source}: the class {name} has {count(len(paths), 'image')} for {part}, and "
                    f"needs {why}: add some, or delete that class"
                    + "".join(f" ({note})" for note in notes)
                )


def _places(folder: Path) -> dict[str, Path]:
    """Finds the folder of each part. That of ``val`` may be called ``valid`` or ``validation``."""
    given = [folder / name for name in folders(folder) if name in _VALIDATION]
    if len(given) > 1:
        raise DataError(
            f"{listed_names([str(path) for path in given])} both hold validation images: keep one"
        )
    held_out = given[0] if given else folder / VALIDATION
    return {TRAIN: folder / TRAIN, VALIDATION: held_out, TEST: folder / TEST}


def _check_alone(folder: Path) -> None:
    """Refuses a part of the data, such as ``train``, if other parts are beside it."""
    whole = folder.resolve()
    if not is_part(whole.name):
        return
    names = [name for name in image_folders(whole.parent) if is_part(name)]
    if beside := [name for name in names if name != whole.name]:
        source = folder.parent if len(folder.parts) > 1 else whole.parent
        raise DataError(
            f"{folder} is one part of the data, beside {listed_names(beside)}: name {source}",
            data=str(source),
        )


def _check_names(where: Mapping[str, Path], of_part: Mapping[str, Sequence[str]]) -> None:
    """Refuses a class in ``val`` or ``test`` that ``train`` does not have."""
    classes = of_part[TRAIN]
    for part, names in of_part.items():
        if unknown := sorted({*names}.difference(classes)):
            meant = [name for name in classes if _spoken(name) == _spoken(unknown[0])]
            what = f", which has {meant[0]!r}, spelled otherwise: rename one" if meant else ""
            raise DataError(
                f"{where[part] / unknown[0]} is a class that {TRAIN} does not have{what}"
            )


def _check_layout(folder: Path, where: Mapping[str, Path]) -> None:
    """Refuses images that would be ignored, and links to nowhere.

    Args:
        folder: The folder of the data.
        where: The folder of each part, in which the folders of the classes are.
    """
    known = suffixes()
    for path in sorted(path for place in where.values() for path in place.glob("[!.]*")):
        if path.suffix.lower() in known and not path.is_dir():
            tables = [*find_tables(path.parent), *find_tables(folder)]
            hint = f"; if the labels are in {tables[0]}, add --labels {tables[0]}" if tables else ""
            raise DataError(
                f"{path} has no class: move it into the folder of its class, or out of {folder}, "
                f"and have predict name what is in it{hint}"
            )
        if path.is_symlink() and not path.exists():
            raise DataError(f"{path} is a link to nowhere: repair or delete it")


def part_of(name: str) -> str | None:
    """Finds the part of the data that the name of a folder has a word for, as ``test_images``."""
    words = re.split(r"[\W\d_]+", re.sub("([a-z])([A-Z])", r"\1 \2", name).lower())
    return next((part for part, of_part in _WORDS.items() if {*words} & {*of_part}), None)


def is_part(name: str) -> bool:
    """Returns whether the name of a folder is such a word alone."""
    return name.lower() in {word for of in _WORDS.values() for word in of}


def listed_names(names: Sequence[str], most: int = 5) -> str:
    """Lists names for people: ``a, b and c``, or ``a, b, c and 7 more``."""
    if len(names) > most:
        return f"{', '.join(names[: most - 1])} and {len(names) - most + 1} more"
    return " and ".join([*([", ".join(names[:-1])] if names[1:] else []), *names[-1:]])


def folders(folder: Path) -> list[str]:
    """Lists the folders in a folder, without hidden ones. If it is missing, the list is empty."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:  # asks the disk less often than Path does
        return sorted(
            entry.name for entry in entries if not _is_service(entry.name) and entry.is_dir()
        )


def image_folders(folder: Path, most: int | None = None) -> list[str]:
    """Lists the folders in a folder that hold images, in them or below them, or the first ones."""
    return [*islice((name for name in folders(folder) if _holds_images(folder / name)), most)]


def _check_shared(
    folders: Mapping[tuple[int, int], str], of_others: Mapping[tuple[int, int], str]
) -> None:
    """Refuses a real folder of a class that belongs to another class, too, by a link."""
    for key, path in folders.items():
        if key in of_others:
            raise DataError(
                f"{of_others[key]} and {path} are one folder in two classes: unlink one"
            )


def _bare(folder: Path, classes: Sequence[str], judged: bool) -> list[str]:
    """Returns a note about what is assumed of a folder without ``train``."""
    empty = [name for name in folders(folder) if name not in classes]
    others = f"without images, so no class: {listed_names(empty)}" if empty else ""
    if judged:
        return [f"{folder}: {others}"] if empty else []
    return [
        f"{folder} has no folder {TRAIN}: its {len(classes)} folders with images are the classes, "
        f"and the last 20 % of each validate{others and f'; {others}'}"
    ]


def _unused(folder: Path, where: Mapping[str, Path]) -> list[str]:
    """Returns notes about a folder ``valid``, and about folders with images that are not used."""
    parts = [path for path in where.values() if path.exists()]
    others = [folder / name for name in image_folders(folder)]
    # Where case does not count, Train is train.
    unused = [str(path) for path in others if not any(path.samefile(part) for part in parts)]
    used = ", ".join(path.name for path in where.values())
    name = where[VALIDATION].name
    return [
        *([f"{folder} has no {VALIDATION}: {name} validates"] if name != VALIDATION else []),
        *([f"images in {', '.join(unused)} are not used: only {used} are"] if unused else []),
    ]


def unused_tables(folder: Path, used: Sequence[Path] = ()) -> list[str]:
    """Returns a note about CSV files beside the images that may hold labels, but are not used."""
    places = (folder, *(folder / name for name in folders(folder) if is_part(name)))
    tables = [path for place in places for path in find_tables(place)]
    names = [str(path) for path in tables if not any(map(path.samefile, used))]
    if not names:
        return []
    what = "the labels are in another file" if used else "the folders are the classes"
    return [
        f"{listed_names(names)} {'is' if len(names) == 1 else 'are'} not used: {what}; "
        f"--labels {names[0]} takes the labels from there"
    ]


def find_tables(folder: Path) -> list[Path]:
    """Lists the CSV files in a folder."""
    files = (path for path in folder.glob("[!.]*") if path.suffix.lower() == ".csv")
    return sorted(path for path in files if path.is_file())


def _holds_images(folder: Path) -> bool:
    """Looks for one image. Links are not followed, and unreadable folders are skipped."""
    known = suffixes()
    for _, names, files in os.walk(folder):
        if _has_results(files):
            names.clear()
            continue
        if any(name.lower().endswith(known) and not name.startswith(".") for name in files):
            return True
        names[:] = [name for name in names if not _is_service(name)]
    return False


def _untested(images: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns a note about classes without test images, if other classes have some."""
    names = [name for name, paths in images.items() if not paths]
    note = f"there are no test images of {', '.join(names)}: the test accuracy says nothing about"
    return [f"{note} them"] if 0 < len(names) < len(images) else []


def _nested(train: Path, images: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns a note about each class that has its images in several folders of its own."""
    notes = []
    for name, paths in images.items():
        of_class = train / name
        below = {Path(path).relative_to(of_class).parts[0] for path in paths}
        if len(below) > 1 and not any((of_class / part).is_file() for part in below):
            notes.append(
                f"{of_class}: images in {', '.join(sorted(below))} are all of the class {name}; "
                f"if these folders are classes, move them into {train}"
            )
    return notes


def alike(classes: Sequence[str]) -> list[str]:
    """Returns a note about classes that a person would call the same."""
    spoken: dict[str, list[str]] = {}
    for name in classes:
        spoken.setdefault(_spoken(name), []).append(name)
    return [
        f"the classes {' and '.join(map(repr, names))} differ only in their spelling: if they are "
        "one, move their images together"
        for names in spoken.values()
        if len(names) > 1
    ]


def _spoken(name: str) -> str:
    """Removes what one does not hear: case, spaces, and the two ways to write an accent."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().replace("_", " ").split())
