"""The classes of image files from a table: a CSV file with a column of files and one of labels.

Importing it imports no torch.
"""

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from cifar_tl.data.pictures.find import (
    LIKE_PARTS,
    PARTS,
    TRAIN,
    VALIDATION,
    Classes,
    alike,
    find_images,
    left_out,
    listed_names,
    unused_tables,
)
from cifar_tl.errors import DataError, first_line, what_helps
from cifar_tl.names import count

# The usual names of the columns, the surest first. Capital letters and spaces do not count.
FILE_COLUMNS = (
    *("file_name", "filename", "filenames", "file", "file_path", "filepath", "path"),
    *("image_path", "image_name", "image_file", "image", "image_id", "img", "id", "name"),
)
LABEL_COLUMNS = (
    *("label", "labels", "class", "class_name", "category", "target"),
    *("breed", "species", "variety"),
)


class Row(NamedTuple):
    """A line of a table."""

    file: str
    label: str


class Table(NamedTuple):
    """A table, and which columns were taken."""

    path: Path
    rows: list[Row]
    columns: tuple[str, str]  # of the files and of the labels
    guessed: bool  # by their names


def find_labelled(folder: Path, labels: str) -> Classes:
    """Finds the image files in and below a folder, with the classes that a table gives them.

    Files below ``val`` and ``test``, also ``valid``, ``Test`` and so on, belong to these parts, all
    others to ``train``.

    Args:
        folder: The folder with the images.
        labels: The table, such as ``train.csv`` or ``train.csv:image,breed`` with the names of
            its columns. It may be named as it lies in the folder.

    Returns:
        The files, in the order of `find_images`.

    Raises:
        DataError: If the table cannot be read, if a file of it is missing or has two labels, or
            if a class lacks images.
    """
    first, columns = _split(folder, labels)
    tables = [read_table(first, columns)]
    for other in _siblings(folder, first):  # a note says that it is used
        tables.append(read_table(other, tables[0].columns)._replace(guessed=True))
    found = find_images(folder)
    known: dict[str, str] = {}
    for table in tables:
        _match(folder, table, found.images, known)
    unlabelled = [path for path in found.images if not known.get(path)]
    classes = sorted({label for label in known.values() if label})
    images: dict[str, dict[str, list[str]]] = {
        part: {name: [] for name in classes} for part in PARTS
    }
    for path in found.images:
        if label := known.get(path):
            images[_part(folder, path)][label].append(path)
    _check_classes(first, images)
    notes = [
        f"{path}: the files are in the column {file!r}, the labels in {label!r}"
        for path, _, (file, label), guessed in tables
        if guessed
    ]
    notes += left_out(folder, [path for path in found.others if not path.lower().endswith(".csv")])
    notes += [*unused_tables(folder, [table.path for table in tables]), *alike(classes)]
    if unlabelled:
        where = listed_names([str(table.path) for table in tables])
        notes.append(
            f"{where}: no label for {count(len(unlabelled), 'image')}, such as "
            f"{', '.join(unlabelled[:2])}: not used"
        )
    return Classes(images, notes)


def _siblings(folder: Path, table: Path) -> list[Path]:
    """Lists the tables of the same name in the other parts, as Hugging Face has them."""
    places = [folder / part for part in PARTS if (folder / part).is_dir()]
    if not any(place.samefile(table.parent) for place in places):
        return []
    others = [place / table.name for place in places if not place.samefile(table.parent)]
    return [other for other in others if other.is_file()]


def read_table(path: Path, given: tuple[str, str] | None) -> Table:
    """Reads a table.

    Args:
        path: The file.
        given: The columns of the files and of the labels. None: their names tell.

    Raises:
        DataError: If it is missing or damaged, or if it is not clear which columns to take.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            head = file.readline()
            file.seek(0)
            separator = max(",;\t", key=head.count)
            lines = [line for line in csv.reader(file, delimiter=separator) if any(line)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path} is no readable CSV file ({first_line(error)}): "
            + what_helps(error, "check the path, or save it anew as CSV in UTF-8")
        ) from error
    if len(lines) < 2:
        raise DataError(f"{path} has no lines below the names of its columns: add them")
    names, *rows = lines
    columns = given or (_guess(path, names, FILE_COLUMNS), _guess(path, names, LABEL_COLUMNS))
    places = []
    for column in columns:
        if names.count(column) != 1:
            what = "no column" if column not in names else "more than one column"
            raise DataError(
                f"{path} has {what} {column!r}: its columns are {', '.join(map(repr, names))}"
            )
        places.append(names.index(column))
    for number, row in enumerate(rows, 2):
        if len(row) <= max(places):
            raise DataError(f"{path}: row {number} has only {count(len(row), 'value')}: repair it")
    found = [Row(*(row[place].strip() for place in places)) for row in rows]
    return Table(path, found, columns, guessed=given is None)


def _split(folder: Path, labels: str) -> tuple[Path, tuple[str, str] | None]:
    """Splits ``train.csv:image,breed``, and finds the file: as it is named, or in the folder."""

    def find(name: str) -> list[Path]:
        return [place / name for place in (Path(), folder) if (place / name).is_file()]

    path, columns = labels, ""
    if not find(labels) and ":" in labels:
        path, _, columns = labels.rpartition(":")
    places = find(path)
    if not places:
        raise DataError(f"there is no file {path}, here or in {folder}: check the path")
    if not columns:
        return places[0], None
    names = [name.strip() for name in columns.split(",")]
    if len(names) != 2 or not all(names):
        raise DataError(
            f"{labels}: after the colon, name two columns, that of the files and that of the "
            f"labels: {path}:file,label"
        )
    return places[0], (names[0], names[1])


def _guess(path: Path, names: Sequence[str], usual: Sequence[str]) -> str:
    """Finds a column by its usual names. Of labels there may be one candidate alone."""
    spoken = {"_".join(name.strip().lower().replace("-", " ").split()): name for name in names}
    found = [spoken[name] for name in usual if name in spoken]
    what, place = ("labels", "FILE") if usual is LABEL_COLUMNS else ("files", "LABEL")
    if not found or (usual is LABEL_COLUMNS and len(found) > 1):
        listed = ", ".join(map(repr, names))
        state = f"more than one column of {what}" if found else f"no usual column of {what}"
        example = f"{path}:{place},COLUMN" if what == "labels" else f"{path}:COLUMN,{place}"
        raise DataError(
            f"{path} has {state}; its columns are {listed}: name two of them, {example} with the "
            "column of the files first"
        )
    return found[0]


def _match(folder: Path, table: Table, images: Sequence[str], found: dict[str, str]) -> None:
    """Gives each file of a table its label.

    A table names files below the folder or below its own place, with their suffix or without it.
    The end of the path, or the name alone, is enough if there is one such file.

    Args:
        folder: The folder with the images.
        table: The table.
        images: The paths of all images.
        found: Gets the path of each image that the table names, and its label, or nothing.
    """
    by_name = _index(folder, images)
    beside = _inside(folder, table.path.parent)
    missing: list[str] = []
    for file, label in table.rows:
        name = str(PurePosixPath(file.replace("\\", "/")))
        paths = by_name.get(f"{beside}/{name}" if beside else name) or by_name.get(name, [])
        if len(paths) > 1:
            raise DataError(
                f"{table.path}: {file} can be {' or '.join(paths[:2])}: name it with its folders"
            )
        if not paths:
            missing.append(file)
            continue
        other = found.setdefault(paths[0], label)
        if other != label:
            raise DataError(
                f"{table.path}: {file} has two labels, {other!r} and {label!r}: delete what is "
                "wrong"
            )
    if missing:
        raise DataError(
            f"{table.path} names {count(len(missing), 'file')} that {folder} does not have as "
            f"an image, such as {', '.join(missing[:3])}: add the images, or delete these lines"
        )


def _index(folder: Path, images: Sequence[str]) -> dict[str, list[str]]:
    """Lists the images of each name. A whole path or a suffix goes before a part without."""
    by_name: dict[str, list[str]] = {}
    relative = {path: PurePosixPath(Path(path).relative_to(folder).as_posix()) for path in images}

    def ends(path: PurePosixPath) -> list[str]:
        return ["/".join(path.parts[first:]) for first in range(1, len(path.parts))]

    for names_of in (
        lambda path: [str(path)],
        lambda path: [str(path.with_suffix(""))],
        ends,
        lambda path: ends(path.with_suffix("")),
    ):
        more = defaultdict(list)
        for path, inside in relative.items():
            for name in names_of(inside):
                more[name].append(path)
        by_name = dict(more) | by_name
    return by_name


def _inside(folder: Path, place: Path) -> str:
    """Returns a place as it lies in a folder, or nothing if it lies elsewhere."""
    try:
        inside = place.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        return ""
    return "" if inside == "." else inside


def _part(folder: Path, path: str) -> str:
    first = Path(path).relative_to(folder).parts[0]
    return LIKE_PARTS.get(first.lower(), TRAIN)


def _check_classes(table: Path, images: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
    """Refuses a table with fewer than two classes, or a class that lacks images."""
    if len(images[TRAIN]) < 2:
        named = f"only the label {next(iter(images[TRAIN]))}" if images[TRAIN] else "no label"
        raise DataError(f"{table} has {named}: there must be two or more classes")
    held_out = any(images[VALIDATION].values())
    for part in (TRAIN, VALIDATION) if held_out else (TRAIN,):
        if absent := [name for name, paths in images[part].items() if not paths]:
            raise DataError(
                f"{table}: the class {absent[0]} has no image for {part}: add some, or delete "
                f"the lines of that class{' or of ' + VALIDATION if part == VALIDATION else ''}"
            )
    alone = [name for name, paths in images[TRAIN].items() if len(paths) == 1]
    if alone and not held_out:
        raise DataError(
            f"{table}: {listed_names(alone)} has one image: a class needs one to train and "
            "another to validate"
        )
