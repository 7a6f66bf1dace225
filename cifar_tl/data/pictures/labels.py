"""The classes of image files from a table: a CSV file with a column of files and one of labels.

Importing it imports no torch.
"""

import csv
import io
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path, PurePath, PurePosixPath
from typing import NamedTuple

from cifar_tl.data.pictures.find import (
    PARTS,
    TEST,
    TRAIN,
    VALIDATION,
    Classes,
    alike,
    check_images,
    find_images,
    find_tables,
    folders,
    is_part,
    left_out,
    listed_names,
    part_of,
    unused_tables,
)
from cifar_tl.disk import LARGEST_TABLE, read_file
from cifar_tl.errors import DataError, first_line, may_be_whole
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
# With the part of each image: a word for it, or yes and no for this part.
PART_COLUMNS = {
    **dict.fromkeys(("split", "set", "subset"), ""),
    "is_test": TEST,
    "is_valid": VALIDATION,
    "is_val": VALIDATION,
}
_YES, _NO = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no", "")


class Row(NamedTuple):
    """A line of a table."""

    file: str
    label: str
    part: str | None  # None: the folder of the file tells


class Table(NamedTuple):
    """A table, and which columns were taken."""

    path: Path
    rows: list[Row]
    columns: tuple[str, str]  # of the files and of the labels
    notes: list[str]


def find_labelled(folder: Path, labels: str) -> Classes:
    """Finds the image files in and below a folder, with the classes that a table gives them.

    A column such as ``split`` says to which part a file belongs. Without it, files below ``val``
    and ``test``, also ``valid``, ``test_images`` and so on, belong to these parts, all others to
    ``train``.

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
    tables += [read_table(other, tables[0].columns) for other in _siblings(folder, first)]
    found = find_images(folder)
    known: dict[str, Row] = {}
    notes = [note for table in tables for note in _match(folder, table, found.images, known)]
    labels_of = _without_zeros({path: row.label for path, row in known.items()})
    unlabelled = [path for path in found.images if not labels_of.get(path)]
    classes = sorted({label for label in labels_of.values() if label})
    images: dict[str, dict[str, list[str]]] = {
        part: {name: [] for name in classes} for part in PARTS
    }
    taken: dict[str, str] = {}  # folders that are not called as the part that they are taken for
    for path in found.images:
        if label := labels_of.get(path):
            top = next(iter(Path(path).relative_to(folder).parts[:-1]), "")  # no folder: nothing
            part = known[path].part or part_of(top) or TRAIN
            images[part][label].append(path)
            if known[path].part is None and part not in (TRAIN, top):
                taken[top] = part
    not_used = left_out(
        folder, [path for path in found.others if not path.lower().endswith(".csv")]
    )
    held_out = any(images[VALIDATION].values())
    check_images(first, images, held_out=held_out, notes=not_used)
    notes = [*(note for table in tables for note in table.notes), *notes]
    notes += [f"{table.path} is read, too" for table in tables[1:]]
    notes += [f"{folder / top} is taken for {part}" for top, part in sorted(taken.items())]
    notes += [*not_used, *unused_tables(folder, [table.path for table in tables]), *alike(classes)]
    if unlabelled:
        where = listed_names([str(table.path) for table in tables])
        notes.append(
            f"{where}: no label for {count(len(unlabelled), 'image')}, such as "
            f"{', '.join(unlabelled[:2])}: not used"
        )
    return Classes(images, notes)


def _siblings(folder: Path, table: Path) -> list[Path]:
    """Lists the tables of the same name in the other parts, as Hugging Face has them."""
    places = [folder / name for name in folders(folder) if is_part(name)]
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
    (_, names), *rows = _lines(path)
    columns = given or _guess(path, names)
    of_part = _part_columns(names, columns)
    used = (*columns, *of_part)
    for column in used:
        if names.count(column) != 1:
            what = "no column" if column not in names else "more than one column"
            raise DataError(
                f"{path} has {what} {column!r}: its columns are {', '.join(map(repr, names))}"
            )
    found = []
    for number, row in rows:
        cells = dict(zip(names, row, strict=False))
        if not cells.keys() >= {*used}:
            raise DataError(f"{path}: line {number} has only {count(len(row), 'value')}: repair it")
        file, label = (cells[column].strip() for column in columns)
        part = _part_in(f"{path}: line {number}", cells, of_part) if label else None
        found.append(Row(file, label, part))
    notes = []
    if given is None:
        file, label = columns
        notes = [f"{path}: the files are in the column {file!r}, the labels in {label!r}"]
    if of_part:
        listed = listed_names([repr(name) for name in of_part])
        notes.append(f"{path}: {listed} says which images are for {', '.join(PARTS)}")
    if unused := [repr(name) for name in names if name and name not in used]:
        notes.append(f"{path}: other columns are not used: {listed_names(unused)}")
    return Table(path, found, columns, notes)


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """Reads the lines of a table that are not empty, with their numbers."""
    try:
        file = io.StringIO(read_file(path, LARGEST_TABLE).decode("utf-8-sig"), newline="")
        head = file.readline()
        file.seek(0)
        reader = csv.reader(file, delimiter=max(",;\t", key=head.count))
        lines = [(reader.line_num, line) for line in reader if any(line)]
    except OSError as error:
        if may_be_whole(error):
            raise
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path} is no readable CSV file ({first_line(error)}): save it anew as CSV in UTF-8"
        ) from error
    return lines or [(1, [])]


def table_of(folder: Path) -> Path | None:
    """Finds the CSV file in a folder that has the labels of images below it, by the names in it."""
    tables = find_tables(folder)
    images = find_images(folder).images if tables else []
    known = {name for image in map(Path, images) for name in (image.name, image.stem)}

    def rank(table: Path) -> tuple[bool, bool, int]:
        rows = [row for _, row in islice(_lines(table), 1000) if len(row) > 1]
        named = sum(any(PurePosixPath(cell).name in known for cell in row) for row in rows)
        return named > 0, part_of(table.stem) == TRAIN, named  # Kaggle has the labels in train.csv

    best = max(tables, key=rank, default=None)
    return best if best and rank(best)[0] else None


def _part_columns(names: Sequence[str], taken: Sequence[str]) -> dict[str, str]:
    """Finds the columns with the part of each image, among those of `PART_COLUMNS`."""
    others = [name for name in names if name not in taken]
    found = {name: PART_COLUMNS[_spoken(name)] for name in others if _spoken(name) in PART_COLUMNS}
    words = [name for name, part in found.items() if not part]
    return {words[0]: ""} if words else found


def _part_in(where: str, cells: Mapping[str, str], columns: Mapping[str, str]) -> str | None:
    """Reads the part of an image. None: no column has it."""
    part = TRAIN if columns else None
    for column, if_yes in columns.items():
        value = cells[column].strip().lower()
        if value not in (*_YES, *_NO) if if_yes else part_of(value) is None:
            wanted = "true or false" if if_yes else "train, val or test"
            raise DataError(
                f"{where} has {cells[column]!r} in the column {column!r}: write {wanted}, or "
                "rename the column if it means something else"
            )
        if not if_yes or value in _YES:
            part = if_yes or part_of(value)
    return part


def _without_zeros(labels: Mapping[str, str]) -> dict[str, str]:
    """Writes the label ``1.0`` as ``1``, if there are both. Some programs write numbers so."""
    whole = {label: re.sub(r"(?<=\d)\.0+$", "", label) for label in {*labels.values()}}
    return {path: whole[of] if whole[of] in whole else of for path, of in labels.items()}


def _spoken(name: str) -> str:
    return "_".join(name.strip().lower().replace("-", " ").split())


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


def _guess(path: Path, names: Sequence[str]) -> tuple[str, str]:
    """Finds the columns of the files and of the labels by their usual names."""
    spoken = {_spoken(name): name for name in names}
    files, labels = (
        [spoken[name] for name in usual if name in spoken]
        for usual in (FILE_COLUMNS, LABEL_COLUMNS)
    )
    if not files or len(labels) != 1:
        raise DataError(
            f"{path}: it is not clear which columns have the files and the labels; its first line "
            f"is {', '.join(map(repr, names))}: if these are names of columns, give two of them, "
            f"{path}:FILES,LABELS; else add the line file,label above"
        )
    return files[0], labels[0]


def _match(folder: Path, table: Table, images: Sequence[str], found: dict[str, Row]) -> list[str]:
    """Gives each file of a table its label.

    The path of a row starts at the table or at the folder. If no image is there, the image with the
    longest common end of the path is taken. The suffix may be missing.

    Before the common ends, all rows must have the same folders, such as those of another computer.
    Otherwise an image that is missing could be taken for another one of its name.

    Args:
        folder: The folder with the images.
        table: The table.
        images: The paths of all images.
        found: Gets the path of each image that the table names, and its row.

    Returns:
        A note if paths begin with such folders.
    """
    there, by_name = defaultdict(list), defaultdict(list)
    for path in images:
        whole = Path(os.path.abspath(path))  # noqa: PTH100  # resolve would follow links
        for named in {whole, whole.with_suffix("")}:
            there[named].append(path)
            folded = _folded(named)
            by_name[folded[-1:]].append((path, folded))
    # The file and image of each row, by what is before their common end. None: no such image.
    before: dict[tuple[str, ...] | None, list[tuple[str, ...]]] = defaultdict(list)
    for row in table.rows:
        file = PurePosixPath(row.file.replace("\\", "/"))
        near = (Path(os.path.abspath(place / file)) for place in (table.path.parent, folder))  # noqa: PTH100
        start: tuple[str, ...] = ()
        paths = next((there[path] for path in near if path in there), [])
        if not paths:
            paths, start = _closest(by_name.get(_folded(file)[-1:], []), file)
        before[start if paths else None].append((row.file, *paths))
        if len(paths) > 1:
            raise DataError(
                f"{table.path}: {row.file} can be {' or '.join(paths[:2])}: name it with its "
                "folders"
            )
        for path in paths:
            other = found.setdefault(path, row)
            for what, one, another in zip(("labels", "parts"), other[1:], row[1:], strict=True):
                if one != another:
                    raise DataError(
                        f"{table.path}: {row.file} has two {what}, {one!r} and {another!r}: delete "
                        "what is wrong"
                    )
    missing = [file for file, *_ in before.pop(None, [])]
    usual = max(before, key=lambda start: len(before[start]), default=())
    missing += [file for start, of in before.items() if start != usual for file, *_ in of]
    if missing:
        raise DataError(
            f"{table.path} names {count(len(missing), 'file')} that {folder} does not have as an "
            f"image, such as {', '.join(missing[:3])}: name the folder with all images of the "
            "table, add what is missing, or delete these lines"
        )
    if not usual:
        return []
    first, image = before[usual][0]
    return [f"{table.path}: {first} is taken for {image}, and the other files likewise"]


def _closest(
    images: Sequence[tuple[str, tuple[str, ...]]], file: PurePosixPath
) -> tuple[list[str], tuple[str, ...]]:
    """Finds the images with the longest end in common with a file, and what is before that end.

    Case and the two ways to write an accent do not count.
    """
    ends = [_common_end(folded, _folded(file)) for _, folded in images]
    most = max(ends, default=0)
    paths = [path for (path, _), end in zip(images, ends, strict=True) if end == most]
    return paths, file.parts[: len(file.parts) - most]


def _common_end(one: Sequence[str], other: Sequence[str]) -> int:
    number = 0
    while number < min(len(one), len(other)) and one[-1 - number] == other[-1 - number]:
        number += 1
    return number


def _folded(path: PurePath) -> tuple[str, ...]:
    return tuple(unicodedata.normalize("NFC", part).casefold() for part in path.parts)
