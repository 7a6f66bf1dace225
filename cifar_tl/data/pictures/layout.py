"""How people lay out their pictures: which layouts are read, and what to type for the others.

Importing it imports no torch.
"""

import itertools
import lzma
import os
import re
import shlex
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path, PurePosixPath

from cifar_tl.data.pictures.find import (
    TRAIN,
    ambiguous,
    find_images,
    folders,
    image_folders,
    is_part,
    left_out,
    listed_names,
    part_of,
    suffixes,
)
from cifar_tl.data.pictures.labels import table_of
from cifar_tl.errors import DataError
from cifar_tl.names import count

# By the suffix of an archive, the module of Python that unpacks it.
ARCHIVES: dict[str, str] = {
    suffix: "zipfile" if name == "zip" else "tarfile"
    for name, suffixes_of_format, _ in shutil.get_unpack_formats()
    for suffix in suffixes_of_format
} | dict.fromkeys((".7z", ".rar"), "")
# Folders with images of all classes: images, images_001, ham_part_1, fold2.
_MIXED = re.compile(r"(images?|imgs?)[ _-]?\d*|.*(part|fold|split)[ _-]?\d+", re.IGNORECASE)


def has_classes(folder: Path) -> bool:
    """Returns whether a folder holds classes: in ``train``, or else two or more in itself."""
    if (folder / TRAIN).is_dir():
        return _inner(folder / TRAIN) == folder / TRAIN
    names = image_folders(folder)
    odd = any(part_of(name) or _MIXED.fullmatch(name) or _is_set(folder / name) for name in names)
    return len(names) > 1 and not odd and not _same_folders(folder, names)


def _is_set(folder: Path) -> bool:
    """Returns whether a folder is a whole set of images, and not a class."""
    of_train = [name for name in folders(folder) if part_of(name) == TRAIN]
    return any(folders(folder / name) for name in of_train)


def _same_folders(folder: Path, names: Sequence[str]) -> list[str]:
    """Lists the folders that two of several folders both have, if there are two or more."""
    seen = set()
    for name in names:
        inside = tuple(folders(folder / name))
        if len(inside) > 1 and inside in seen:
            return [*inside]
        seen.add(inside)
    return []


def _inner(folder: Path) -> Path:
    """Goes into a folder as long as it holds one folder alone, with folders of images in it."""
    for _ in range(3):  # a link may lead back
        names = image_folders(folder, 2)  # there may be thousands
        if len(names) != 1 or not image_folders(folder / names[0], 1):
            break
        folder /= names[0]
    return folder


def other_case(path: Path) -> Path | None:
    """Finds what has the same name as a missing file, in small or capital letters."""
    others = sorted(path.parent.glob("*"))
    return next((other for other in others if other.name.lower() == path.name.lower()), None)


def explain_missing(path: Path) -> DataError:
    """Makes the error for a path that does not exist. It names what may be meant."""
    names = sorted(other.name for other in path.parent.glob("*"))
    close = get_close_matches(path.name, names, 1, 0.8)
    if meant := other_case(path) or (path.with_name(close[0]) if close else None):
        return DataError(
            f"{path}: there is no such file or folder, but there is {meant}: name that",
            data=str(meant),
        )
    return DataError(f"{path}: there is no such file or folder; check the name")


def explain_file(path: Path) -> DataError | None:
    """Makes the error for a file that is no source. None: there is no more to say of it."""
    suffix = path.suffix.lower()
    if _archive_suffix(path):
        return _explain_archives([path])
    above = [*path.parents][:4]  # CLASS, maybe train, and the folder of the data
    folder = next((parent for parent in above if (parent / TRAIN).is_dir()), path.parent)
    if suffix in suffixes():
        bare = above[1] if len(path.parts) > 2 and has_classes(above[1]) else folder
        source = folder if has_classes(folder) else bare
        return DataError(
            f"{path} is one image: name the folder with the folders of the classes",
            **({"data": str(source)} if has_classes(source) else {}),
        )
    if suffix == ".csv":
        return DataError(
            f"{path} is a table: name the folder with the images, and the table as --labels",
            data=str(folder),
            labels=str(path),
        )
    return None


def _archive_suffix(path: Path) -> str | None:
    """Returns the suffix of an archive, such as ``.tar.gz``. None: it is none."""
    return next((suffix for suffix in ARCHIVES if path.name.lower().endswith(suffix)), None)


def _explain_archives(paths: Sequence[Path]) -> DataError:
    """Makes the error for archives, with the command that unpacks the first one."""
    path, suffix = paths[0], _archive_suffix(paths[0])
    assert suffix is not None
    target = path.with_name(path.name[: -len(suffix)])
    how, source = "unpack it", target.joinpath(*_top_folders(path))
    if module := ARCHIVES[suffix]:
        command = shlex.join(["python", "-m", module, "-e", str(path), str(target)])
        how = f"unpack it with `{command}`"
    if len(paths) > 1:
        how, source = f"{how}, and likewise the {len(paths) - 1} beside it", path.parent
    return DataError(
        f"{path} is an archive, which is not read: {how}, and name {source}", data=str(source)
    )


def _top_folders(archive: Path) -> list[str]:
    """Finds the folders around everything that an archive holds, down to the data."""
    try:
        names = [PurePosixPath(name).parts for name in _members(archive)]
    except (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError):
        return []
    known = suffixes()
    names = [name for name in names if name and name[-1].lower().endswith(known)]
    names = [name for name in names if not name[0].startswith((".", "__MACOSX"))]
    top: list[str] = []
    # A folder with images is a class, and a folder with folders of classes is the data.
    while names and all(len(name) > 2 and name[0] == names[0][0] for name in names):
        if is_part(names[0][0]):
            break
        top.append(names[0][0])
        names = [name[1:] for name in names]
    return top


def _members(archive: Path) -> list[str]:
    """Lists the names in an archive. Of a TAR archive the first ones: all would take long."""
    if archive.suffix.lower() == ".zip":
        with zipfile.ZipFile(archive) as opened:
            return opened.namelist()
    with tarfile.open(archive) as tar:
        return [member.name for member in itertools.islice(tar, 1000)]


def explain_folder(folder: Path) -> DataError:
    """Makes the error for a folder that is laid out as no source is. It names what is there."""
    if os.path.lexists(folder / TRAIN) and not (folder / TRAIN).is_dir():
        return DataError(
            f"{folder / TRAIN} is a file, not a folder: {TRAIN} must hold a folder with images "
            "for each class"
        )
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
    if parts and classes:
        return ambiguous(folder, parts, classes)
    if parts:
        return DataError(
            f"{folder} holds {listed_names(parts)}, but no {TRAIN} with classes: put the training "
            f"images into {folder / TRAIN}, a folder for each class"
        )
    return _explain_sets(folder, names) if names else _explain_loose(folder)


def _moves(folder: Path, parts: Sequence[str]) -> list[tuple[Path, Path]]:
    """Lists the folders of parts that hold classes of the training images, and their right places.

    They may be called otherwise, and lie deeper: ``training_set/training_set``.
    """
    inner = {name: _inner(folder / name) for name in parts}
    of_train = {
        name
        for part, path in inner.items()
        if part_of(part) == TRAIN
        for name in image_folders(path)
    }
    return [
        (path, folder / str(part_of(name)))
        for name, path in inner.items()
        if of_train.intersection(image_folders(path))
    ]


def _explain_moves(folder: Path, moves: Sequence[tuple[Path, Path]]) -> DataError:
    """Makes the error for parts that are called otherwise or lie deeper: how to move them."""
    wrong = [(old, new) for old, new in moves if old != new]
    names = listed_names([str(old.relative_to(folder)) for old, _ in wrong])
    if len({new for _, new in moves}) < len(moves):
        twice = listed_names([str(old.relative_to(folder)) for old, _ in moves])
        return DataError(
            f"{folder} holds {twice}, and two of these are the same part: keep one of each part"
        )
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


def _explain_sets(folder: Path, names: Sequence[str]) -> DataError:
    """Makes the error for folders that are no classes, or one alone."""
    listed = listed_names(names)
    if len(names) == 1:
        return DataError(
            f"{folder} holds only one class, {listed}: there must be two or more, each a folder "
            "with its images"
        )
    if sets := [name for name in names if _is_set(folder / name)]:
        what = f"with a folder {TRAIN} in {'each' if len(sets) > 1 else sets[0]}"
        return DataError(
            f"{folder} holds {listed}, {what}: name one, such as {folder / sets[0]}",
            data=str(folder / sets[0]),
        )
    if same := listed_names(_same_folders(folder, names)):
        return DataError(
            f"{folder} holds {listed}, with the folders {same} in more than one of them: if these "
            f"are the classes, name one folder, such as {folder / names[0]}, or merge them; if "
            f"{listed} are the classes, move them into {folder / TRAIN}",
            data=str(folder / names[0]),
        )
    mixed = listed_names([name for name in names if _MIXED.fullmatch(name)])
    return DataError(
        f"{folder} holds {listed}: is {mixed} a class? If so, move all of these folders into "
        f"{folder / TRAIN}; if not, make a folder for each class and sort the images into them"
    )


def _explain_loose(folder: Path) -> DataError:
    """Makes the error for a folder without folders of images."""
    found = find_images(folder)
    above = folder.resolve().parent
    if found.images and above.name == TRAIN:
        source = folder.parent.parent if len(folder.parts) > 1 else above.parent
        return DataError(
            f"{folder} is one class alone: name the folder with {TRAIN}, {source}",
            data=str(source),
        )
    if found.images:
        is_class = len(folder.parts) > 1 and has_classes(folder.parent)
        hint = f"if it is one class of {folder.parent}, name that; else " if is_class else ""
        return DataError(
            f"{folder} holds {count(len(found.images), 'image')} and no folders for classes: {hint}"
            f"move them into {folder / 'CLASS'}, a folder for each class, and name {folder}",
            data=str(folder),
        )
    if archives := [path for path in sorted(folder.glob("[!.]*")) if _archive_suffix(path)]:
        return _explain_archives(archives)
    if files := [path for path in found.others if path.lower().endswith(".npz")]:
        return DataError(f"{folder} holds {files[0]}: name that file", data=files[0])
    others = "".join(f" ({note})" for note in left_out(folder, found.others))
    return DataError(
        f"{folder} holds no images that are read, and no CIFAR-10{others}: your own images belong "
        f"into {folder / 'CLASS'}, a folder for each class"
    )
