"""How people lay out their pictures: which layouts are read, and what to type for the others.

Importing it imports no torch.
"""

import re
import shlex
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from cifar_tl.data.pictures.find import (
    TRAIN,
    check_parts,
    find_images,
    folders,
    image_folders,
    left_out,
    listed_names,
    part_of,
    suffixes,
)
from cifar_tl.data.pictures.labels import table_of
from cifar_tl.errors import DataError
from cifar_tl.names import count

# By the suffix of an archive, the module of Python that unpacks it, if one does.
_UNPACKERS = {
    **dict.fromkeys((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz"), "tarfile"),
    ".zip": "zipfile",
    **dict.fromkeys((".7z", ".rar"), ""),
}
# Folders with images of all classes: images, images_001, ham_part_1, fold2.
_MIXED = re.compile(r"(images?|imgs?)[ _-]?\d*|.*(part|fold|split)[ _-]?\d+", re.IGNORECASE)


def has_classes(folder: Path) -> bool:
    """Returns whether a folder holds classes: in ``train``, or else two or more in itself."""
    if (folder / TRAIN).is_dir():
        return _inner(folder / TRAIN) == folder / TRAIN
    names = image_folders(folder)
    odd = any(part_of(name) or _MIXED.fullmatch(name) or _is_set(folder / name) for name in names)
    return len(names) > 1 and not odd and not _are_alike(folder, names)


def _is_set(folder: Path) -> bool:
    """Returns whether a folder is a whole set of images, and not a class."""
    of_train = [name for name in folders(folder) if part_of(name) == TRAIN]
    return any(folders(folder / name) for name in of_train)


def _are_alike(folder: Path, names: Sequence[str]) -> bool:
    """Returns whether two of several folders have the same folders in them, two or more."""
    inside = [tuple(folders(folder / name)) for name in names]
    several = [found for found in inside if len(found) > 1]
    return len({*several}) < len(several)


def _inner(folder: Path) -> Path:
    """Goes into a folder as long as it holds one folder alone, with folders of images in it."""
    for _ in range(3):  # a link may lead back
        names = image_folders(folder, 2)  # there may be thousands
        if len(names) != 1 or not image_folders(folder / names[0], 1):
            break
        folder /= names[0]
    return folder


def explain_missing(path: Path) -> DataError:
    """Makes the error for a path that does not exist. It names what may be meant."""
    others = {other.name.lower(): other for other in sorted(path.parent.glob("*"))}
    if close := get_close_matches(path.name.lower(), others, 1, 0.8):
        meant = others[close[0]]
        return DataError(
            f"{path}: there is no such file or folder, but there is {meant}: name that",
            data=str(meant),
        )
    return DataError(f"{path}: there is no such file or folder; check the name")


def explain_file(path: Path) -> DataError | None:
    """Makes the error for a file that is no source. None: there is no more to say of it."""
    if _archive_suffix(path):
        return _explain_archive(path)
    if path.suffix.lower() in suffixes():
        source = _data_of(path.parent)
        return DataError(
            f"{path} is one image: name the folder with the folders of the classes",
            **({"data": str(source)} if source else {}),
        )
    if path.suffix.lower() == ".csv":
        return DataError(
            f"{path} is a table: name the folder with the images, and the table as --labels",
            data=str(_above(path)),
            labels=str(path),
        )
    return None


def _above(path: Path) -> Path:
    """Returns the folder that holds a path, or holds it in ``train``."""
    return path.parent.parent if path.parent.name == TRAIN else path.parent


def _data_of(of_class: Path) -> Path | None:
    """Finds the folder of the data of which a folder may be a class."""
    folder = _above(of_class)
    return folder if folder.name and has_classes(folder) else None


def _archive_suffix(path: Path) -> str:
    """Returns the suffix of an archive, such as ``.tar.gz``. Of another file it is empty."""
    return next((suffix for suffix in _UNPACKERS if path.name.lower().endswith(suffix)), "")


def _explain_archive(path: Path, above: Path | None = None, more: int = 0) -> DataError:
    """Makes the error for an archive, with the command that unpacks it.

    Args:
        path: The file.
        above: The folder that was named instead of the archive.
        more: The number of other archives in that folder.
    """
    suffix = _archive_suffix(path)
    target = path.with_name(path.name[: -len(suffix)])
    command = ["python", "-m", _UNPACKERS[suffix], "-e", str(path), str(target)]
    how = f" with `{shlex.join(command)}`" if _UNPACKERS[suffix] else ""
    likewise = f", and likewise the {more} beside it" if more else ""
    source = str(above or target)
    return DataError(
        f"{path} is an archive, which is not read: unpack it{how}{likewise}, and name {source}",
        data=source,
    )


def explain_folder(folder: Path) -> DataError:
    """Makes the error for a folder that is laid out as no source is. It names what is there."""
    check_parts(folder)
    names = image_folders(folder)
    parts = [name for name in names if part_of(name)]
    classes = [name for name in names if not part_of(name)]
    moves = _moves(folder, parts)
    if moves and (not classes or (folder / TRAIN).is_dir()):
        return _explain_moves(folder, moves)
    if len(names) == 1 and not parts and image_folders(inner := folder / names[0]):
        if not (has_classes(inner) or _is_set(inner)):
            return explain_folder(inner)
        return DataError(
            f"{folder} has its classes one folder deeper: name {inner}", data=str(inner)
        )
    if table := table_of(folder):
        return DataError(
            f"{folder} holds {listed_names(names) if names else 'images'}: if the labels of the "
            f"images are in {table}, add --labels {table}",
            data=str(folder),
            labels=str(table),
        )
    return _explain_names(folder, parts, classes) if names else _explain_loose(folder)


def _moves(folder: Path, parts: Sequence[str]) -> list[tuple[Path, Path]]:
    """Lists the folders of parts that hold classes of the training images, and their right places.

    They may be called otherwise, and lie deeper: ``training_set/training_set``. The list is empty
    if two of them are the same part.
    """
    inner = {name: _inner(folder / name) for name in parts}
    of_train = {
        name
        for part, path in inner.items()
        if part_of(part) == TRAIN
        for name in image_folders(path)
    }
    moves = [
        (path, folder / str(part_of(name)))
        for name, path in inner.items()
        if of_train.intersection(image_folders(path))
    ]
    return moves if len({new for _, new in moves}) == len(moves) else []


def _explain_moves(folder: Path, moves: Sequence[tuple[Path, Path]]) -> DataError:
    """Makes the error for parts that are called otherwise or lie deeper: how to move them."""
    wrong = [(old, new) for old, new in moves if old != new]
    names = listed_names([str(old.relative_to(folder)) for old, _ in wrong])
    commands = []
    for old, new in wrong:
        if new in old.parents:  # first out of the way
            aside = new.with_name(f"{new.name}_")
            commands.append(shlex.join(["mv", str(new), str(aside)]))
            old = aside / old.relative_to(new)
        commands.append(shlex.join(["mv", str(old), str(new)]))
    return DataError(
        f"{folder} holds {names} instead of {listed_names([new.name for _, new in wrong])}: move "
        f"{'it' if len(wrong) == 1 else 'them'} with `{' && '.join(commands)}`, and name {folder}",
        data=str(folder),
    )


def _explain_names(folder: Path, parts: Sequence[str], classes: Sequence[str]) -> DataError:
    """Makes the error for folders of images that may be parts, classes, or neither."""
    train, these, those = folder / TRAIN, listed_names(parts), listed_names(classes)
    if parts and classes:
        return DataError(
            f"{folder} holds {those}, and beside this {these}: parts of the data or classes? If "
            f"parts, move {those} out of {folder}, and give each class a folder in {train}; if "
            f"classes, move all of these folders into {train}"
        )
    if parts:
        return DataError(
            f"{folder} holds {these}, but no {TRAIN} with classes: put the training images into "
            f"{train}, a folder for each class"
        )
    if len(classes) == 1:
        return DataError(
            f"{folder} holds only one class, {those}: there must be two or more, each a folder "
            "with its images"
        )
    return DataError(
        f"{folder} holds {those}: are these classes? If so, move them into {train}; if each is a "
        f"whole set of images, name one, such as {folder / classes[0]}; if neither, make a folder "
        "for each class and sort the images into them"
    )


def _explain_loose(folder: Path) -> DataError:
    """Makes the error for a folder without folders of images."""
    found = find_images(folder)
    if found.images:
        source = _data_of(folder)
        hint = f"if it is one class of {source}, name that; else " if source else ""
        return DataError(
            f"{folder} holds {count(len(found.images), 'image')} and no folders for classes: {hint}"
            f"move them into {folder / 'CLASS'}, a folder for each class, and name {folder}",
            data=str(source or folder),
        )
    if archives := [path for path in map(Path, found.others) if _archive_suffix(path)]:
        return _explain_archive(archives[0], folder, len(archives) - 1)
    if files := [path for path in found.others if path.lower().endswith(".npz")]:
        return DataError(f"{folder} holds {files[0]}: name that file", data=files[0])
    others = "".join(f" ({note})" for note in left_out(folder, found.others))
    return DataError(
        f"{folder} holds no images that are read, and no CIFAR-10{others}: your own images belong "
        f"into {folder / 'CLASS'}, a folder for each class"
    )
