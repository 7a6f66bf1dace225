"""How people lay out their pictures: which layouts are read, and what to type for the others.

Importing it imports no torch.
"""

import itertools
import lzma
import os
import shlex
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path, PurePosixPath

from cifar_tl.data.pictures.find import (
    LIKE_PARTS,
    TRAIN,
    ambiguous,
    find_images,
    find_tables,
    folders,
    image_folders,
    is_part,
    left_out,
    listed_names,
    suffixes,
)
from cifar_tl.errors import DataError
from cifar_tl.names import count

# By the suffix of an archive, the module of Python that unpacks it.
ARCHIVES: dict[str, str] = {
    suffix: "zipfile" if name == "zip" else "tarfile"
    for name, suffixes_of_format, _ in shutil.get_unpack_formats()
    for suffix in suffixes_of_format
} | dict.fromkeys((".7z", ".rar"), "")


def has_classes(folder: Path) -> bool:
    """Returns whether a folder holds classes: in ``train``, or else two or more in itself."""
    if (folder / TRAIN).is_dir():
        return True
    names = image_folders(folder)
    return len(names) > 1 and not any(is_part(name) or _is_set(folder / name) for name in names)


def _is_set(folder: Path) -> bool:
    """Returns whether a folder is a whole set of images, and not a class."""
    of_train = [name for name in folders(folder) if LIKE_PARTS.get(name.lower()) == TRAIN]
    return any(folders(folder / name) for name in of_train)


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
    parts = [name for name in names if is_part(name)]
    classes = [name for name in names if not is_part(name)]
    if parts:
        return _explain_parts(folder, parts, classes)
    if sets := [name for name in classes if _is_set(folder / name)]:
        source = folder / sets[0]
        what = (
            f"holds {listed_names(sets)}, which are sets of images of their own: name one of them"
            if len(sets) > 1
            else f"has its classes one folder deeper: name {source}"
        )
        return DataError(f"{folder} {what}", data=str(source))
    if not classes:
        return _explain_loose(folder)
    inner = folder / classes[0]
    if has_classes(inner):
        return DataError(
            f"{folder} has its classes one folder deeper: name {inner}", data=str(inner)
        )
    if image_folders(inner):
        return explain_folder(inner)
    return DataError(
        f"{folder} holds only one class, {classes[0]}: there must be two or more, each a folder "
        "with its images"
    )


def _explain_parts(folder: Path, parts: list[str], classes: list[str]) -> DataError:
    """Makes the error for a folder with parts that are called otherwise."""
    like_train = [name for name in parts if LIKE_PARTS[name.lower()] == TRAIN]
    if classes:
        return ambiguous(folder, parts, classes)
    if not like_train:
        return DataError(
            f"{folder} holds {listed_names(parts)}, but no {TRAIN}: put the training images into "
            f"{folder / TRAIN}, a folder for each class"
        )
    wrong = {name: LIKE_PARTS[name.lower()] for name in parts if name != LIKE_PARTS[name.lower()]}
    if len({LIKE_PARTS[name.lower()] for name in parts}) < len(parts):
        return DataError(
            f"{folder} holds {listed_names(parts)}, and two of these are the same part: keep one "
            f"of them, and call it {LIKE_PARTS[parts[0].lower()]}"
        )
    moves = [shlex.join(["mv", str(folder / old), str(folder / new)]) for old, new in wrong.items()]
    return DataError(
        f"{folder} holds {listed_names(list(wrong))}, which must be called "
        f"{listed_names(list(wrong.values()))}: rename with `{' && '.join(moves)}`, and name "
        f"{folder}",
        data=str(folder),
    )


def _explain_loose(folder: Path) -> DataError:
    """Makes the error for a folder without folders of images."""
    found = find_images(folder)
    tables = find_tables(folder)
    if found.images and tables:
        return DataError(
            f"{folder} holds {count(len(found.images), 'image')} and no folders for classes: if "
            f"the labels are in {tables[0]}, add --labels {tables[0]}",
            data=str(folder),
            labels=str(tables[0]),
        )
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
    others = "".join(f" ({note})" for note in left_out(folder, found.others))
    return DataError(
        f"{folder} holds no images that are read, and no CIFAR-10{others}: your own images belong "
        f"into {folder / 'CLASS'}, a folder for each class"
    )
