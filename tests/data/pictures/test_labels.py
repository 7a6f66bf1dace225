import csv
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from cifar_tl.command import evaluate, train
from cifar_tl.data.pictures.find import find_classes
from cifar_tl.data.pictures.labels import find_labelled
from cifar_tl.data.source import load_data
from cifar_tl.errors import DataError, DataWarning
from tests.data.pictures.test_layout import add_classes
from tests.data.test_class_folders import add_image

BREEDS = ("beagle", "collie", "pug")


def write(path: str, rows: list[tuple[str, ...]]) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with Path(path).open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def add_loose(folder: str, images: int = 15) -> list[str]:
    """Writes different images into one folder; returns their names."""
    names = [f"{number:02}.png" for number in range(images)]
    for number, name in enumerate(names):
        add_image(Path(folder, name), f"#{17 * (number % 15):02x}{10 * number:02x}80")
    return names


def labelled(names: list[str]) -> list[tuple[str, str]]:
    return [(name, BREEDS[row % 3]) for row, name in enumerate(names)]


def of_class(images: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: [Path(path).name for path in paths] for name, paths in images.items()}


@pytest.mark.parametrize(
    "columns", [("file", "label"), ("image_id", "breed"), ("ID", "Class Name")]
)
@pytest.mark.parametrize("form", ["below", "in part", "stem"])
def test_a_table_gives_the_classes(columns: tuple[str, str], form: str) -> None:
    names = add_loose("dogs/train")
    shown = {"below": "train/{}", "in part": "{}", "stem": "{}"}[form]
    rows = labelled(names)
    cells = [(shown.format(Path(n).stem if form == "stem" else n), breed) for n, breed in rows]
    write("dogs/train.csv", [columns, *cells])
    images, notes = find_labelled(Path("dogs"), "dogs/train.csv")
    assert of_class(images["train"]) == {
        breed: [name for name, label in rows if label == breed] for breed in BREEDS
    }
    file, label = columns
    assert notes == [
        f"dogs/train.csv: the files are in the column {file!r}, the labels in {label!r}"
    ]


def test_the_name_of_a_file_is_no_part() -> None:
    """Only a folder is one: `test_0.png` beside the others trains as they do."""
    names = add_loose("dogs")
    for name in names[:6]:
        Path("dogs", name).rename(Path("dogs", f"test_{name}"))
    rows = labelled([f"test_{name}" for name in names[:6]] + names[6:])
    write("dogs/labels.csv", [("file", "label"), *rows])
    images, notes = find_labelled(Path("dogs"), "labels.csv")
    assert of_class(images["train"]) == {
        breed: sorted(name for name, label in rows if label == breed) for breed in BREEDS
    }
    assert not any(images["test"].values())
    assert len(notes) == 1  # the columns


def test_files_below_a_part_belong_to_it_however_it_is_called() -> None:
    rows = [
        (f"{place}/{name}", breed)
        for place in ("images", "Valid", "test_images")
        for name, breed in labelled(add_loose(f"dogs/{place}", 6))
    ]
    write("labels.csv", [("path", "species"), *rows])
    images, notes = find_labelled(Path("dogs"), "labels.csv")
    assert notes[1:] == ["dogs/Valid is taken for val", "dogs/test_images is taken for test"]
    for part, place in (("train", "images"), ("val", "Valid"), ("test", "test_images")):
        paths = [path for of in images[part].values() for path in of]
        assert {Path(path).parent for path in paths} == {Path("dogs", place)}
        assert len(paths) == 6


def test_columns_can_be_named_and_the_table_found_in_the_folder() -> None:
    rows = [(name, "x", breed) for name, breed in labelled(add_loose("dogs"))]
    write("dogs/all.csv", [("picture", "label", "kind"), *rows])
    with pytest.raises(
        DataError, match=r"not clear which columns .* 'picture', 'label', 'kind': if"
    ):
        find_labelled(Path("dogs"), "all.csv")
    found = find_labelled(Path("dogs"), "all.csv:picture,kind")
    assert list(found.images["train"]) == list(BREEDS)
    assert found.notes == ["dogs/all.csv: other columns are not used: 'label'"]


def test_the_data_is_the_same_as_from_folders() -> None:
    rows = labelled(add_loose("dogs"))
    write("dogs/all.csv", [("file", "label"), *reversed(rows)])
    for name, breed in rows:
        Path("parted/train", breed).mkdir(parents=True, exist_ok=True)
        shutil.copy(Path("dogs", name), Path("parted/train", breed, name))
    with pytest.warns(DataWarning, match="the files are in the column 'file'"):
        data = load_data("dogs", labels="dogs/all.csv")
    parted = load_data("parted")
    assert (data.name, data.class_names, data.own_classes) == ("dogs", BREEDS, True)
    for part, files in data.files.items():
        assert [Path(file).name for file in files] == [Path(f).name for f in parted.files[part]]
    assert (data.train.images == parted.train.images).all()
    write("dogs/all.csv", [("file", "label"), *rows[:-1], (rows[-1][0], BREEDS[0])])
    with pytest.warns(DataWarning):
        assert load_data("dogs", labels="all.csv").fingerprint != data.fingerprint


def test_tables_of_hugging_face_have_a_part_each() -> None:
    for part, number in (("train", 12), ("test", 6)):
        rows = labelled(add_loose(f"dogs/{part}", number))
        write(f"dogs/{part}/metadata.csv", [("file_name", "label"), *rows])
    images, notes = find_labelled(Path("dogs"), "dogs/train/metadata.csv")
    assert [len(paths) for paths in images["train"].values()] == [4, 4, 4]
    assert [len(paths) for paths in images["test"].values()] == [2, 2, 2]
    assert notes == [
        "dogs/train/metadata.csv: the files are in the column 'file_name', the labels in 'label'",
        "dogs/test/metadata.csv is read, too",
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a.png", "pug")], r"names 1 file that dogs does not have as an image, such as a\.png"),
        ([("00.png", "pug")], r"00\.png has two labels, 'beagle' and 'pug'"),
        ([("00", "pug")], r"00 has two labels, 'beagle' and 'pug'"),
        ([("15.png", "boxer")], "boxer has 1 image for train, and needs one to train and another"),
        ([("15.png",)], "line 17 has only 1 value: repair it"),
    ],
)
def test_what_is_wrong_in_a_table_is_named(rows: list[tuple[str, ...]], message: str) -> None:
    names = add_loose("dogs", 16)[:15]
    write("dogs/all.csv", [("file", "label"), *labelled(names), *rows])
    with pytest.raises(DataError, match=message) as error:
        find_labelled(Path("dogs"), "all.csv")
    assert "all.csv" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is not clear which columns have the files and the labels"),
        (b"file,label\n", "holds no classes: there must be two or more"),
        (b"file,label,class\n00.png,a,b\n", "it is not clear which columns"),
        (b"file,other\n00.png,a\n", "it is not clear which columns"),
        (b"00.png,a\n01.png,b\n", "else add the line file,label above"),
        (b"file,label,split\n00.png,a,new\n", "line 2 has 'new' in the column 'split': write tr"),
        (b"file,label,is_test\n00,a,?\n", "line 2 has '?' in the column 'is_test': write true or"),
        (b"file,label,set\n00,a,val\n00.png,a,test\n", "00.png has two parts, 'val' and 'test'"),
        (b"file,label\n\n\n00.png\n", "line 4 has only 1 value: repair it"),
        (b"file,label\n00.png,\xff\n", r"is no readable CSV file \('utf-8' codec"),
        (b"file,label\n00.png,a\n01.png,a\n", "holds only one class: there must be two or more"),
    ],
)
def test_a_table_of_another_kind_is_refused(content: bytes, message: str) -> None:
    add_loose("dogs", 4)
    Path("dogs/all.csv").write_bytes(content)
    with pytest.raises(DataError, match=re.escape(message) if "\\" not in message else message):
        find_labelled(Path("dogs"), "all.csv")


def test_a_table_that_is_missing_or_half_named_is_refused() -> None:
    write("dogs/all.csv", [("file", "label"), *labelled(add_loose("dogs"))])
    with pytest.raises(DataError, match=r"there is no file none\.csv, here or in dogs"):
        find_labelled(Path("dogs"), "none.csv")
    with pytest.raises(DataError, match="after the colon, name two columns"):
        find_labelled(Path("dogs"), "all.csv:file")
    with pytest.raises(DataError, match="has no column 'breed': its columns are 'file', 'label'"):
        find_labelled(Path("dogs"), "all.csv:file,breed")


def test_images_without_a_label_and_other_tables_are_named() -> None:
    names = add_loose("dogs/train", 17)
    rows = [*labelled(names[:15]), (names[15], "")]
    write("dogs/train.csv", [("id", "breed"), *rows])
    write("dogs/sample.csv", [("id", "breed"), ("a", "b")])
    Path("dogs/read.me").touch()
    _, notes = find_labelled(Path("dogs"), "dogs/train.csv:id,breed")
    assert notes == [
        "dogs: not used: 1 file (1 .me); convert pictures of other formats to PNG or JPEG",
        "dogs/sample.csv is not used: the labels are in another file; --labels dogs/sample.csv "
        "takes the labels from there",
        "dogs/train.csv: no label for 2 images, such as dogs/train/15.png, dogs/train/16.png: "
        "not used",
    ]


def test_two_files_that_a_name_can_mean_are_named() -> None:
    names = add_loose("dogs/a")
    add_image(Path("dogs/b/00.png"), "white")
    write("dogs/all.csv", [("file", "label"), *labelled(names)])
    with pytest.raises(DataError, match=r"00\.png can be dogs/a/00\.png or dogs/b/00\.png: name"):
        find_labelled(Path("dogs"), "all.csv")


@pytest.mark.parametrize("place", ["train/metadata.csv", "labels.CSV"])
def test_a_table_beside_folders_of_classes_is_named_as_not_used(place: str) -> None:
    add_classes(Path("flowers/train"))
    write(f"flowers/{place}", [("file_name", "label"), ("daisy/0.png", "rose")])
    assert find_classes(Path("flowers")).notes == [
        f"flowers/{place} is not used: the folders are the classes; --labels flowers/{place} "
        "takes the labels from there"
    ]


def test_images_beside_a_table_name_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    rows = labelled(add_loose("dogs"))
    write("dogs/metadata.csv", [("file_name", "label"), *rows])
    for source in ("dogs", "dogs/metadata.csv"):
        assert train.main(["--data", source]) == 2
        line = capsys.readouterr().err
        assert line.endswith("cifar-tl train --data dogs --labels dogs/metadata.csv\n")
    shutil.move("dogs", "all/train")
    assert train.main(["--data", "all"]) == 1
    line = capsys.readouterr().err
    assert "if the labels are in all/train/metadata.csv, add --labels all/train/meta" in line


def test_the_commands_take_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[Any] = labelled(add_loose("dogs"))
    write("dogs/all.csv", [("image", "breed"), *rows])
    own = ["--data", "dogs", "--labels", "dogs/all.csv"]
    assert train.main([*own, "--stage", "transfer", "--epochs", "1"]) == 0
    assert "the labels in 'breed'" in capsys.readouterr().err
    model = "runs/dogs/transfer/model.pt"
    assert evaluate.main([model, *own, "--split", "validation"]) == 0
    output = capsys.readouterr().out
    assert "on 3 validation images of dogs" in output
    assert all(breed in output for breed in BREEDS)
    assert train.main(["--data", "shapes", "--labels", "dogs/all.csv"]) == 2
    assert "--data shapes: there is no such file or folder" in capsys.readouterr().err


def test_labels_that_sound_alike_are_named() -> None:
    names = add_loose("dogs", 8)
    labels = [("Beagle", "beagle", "Pug ")[row % 3] for row in range(8)]
    write("dogs/all.csv", [("file", "label"), *zip(names, labels, strict=True)])
    images, notes = find_labelled(Path("dogs"), "all.csv")
    assert list(images["train"]) == ["Beagle", "Pug", "beagle"]
    assert notes[-1].startswith("the classes 'Beagle' and 'beagle' differ only in their spelling")


COLUMNS: list[dict[str, tuple[str, str, str]]] = [
    {"split": ("train", "valid", "test")},
    {"Subset": ("Training", "val", "TEST")},
    {"is_valid": ("False", "True", "False"), "is_test": ("0", "0", "1")},
]


@pytest.mark.parametrize("columns", COLUMNS)
def test_a_column_says_the_part_of_each_image(columns: dict[str, tuple[str, str, str]]) -> None:
    names = add_loose("dogs/test", 18)
    rows = [
        (name, BREEDS[row % 3], *(cells[row // 6] for cells in columns.values()), str(row % 2))
        for row, name in enumerate(names)
    ]
    write("dogs/all.csv", [("file", "label", *columns, "fold"), *rows])
    images, notes = find_labelled(Path("dogs"), "all.csv")
    for number, part in enumerate(("train", "val", "test")):
        paths = sorted(Path(path).name for of in images[part].values() for path in of)
        assert paths == names[6 * number : 6 * number + 6]
    listed = " and ".join(map(repr, columns))
    assert notes[1:] == [
        f"dogs/all.csv: {listed} says which images are for train, val, test",
        "dogs/all.csv: other columns are not used: 'fold'",
    ]


def test_whole_numbers_are_the_same_label_with_a_point() -> None:
    labels = ["1", "1.0", "2", "2.00", "1.5", "1.5", "v3", "v3.0"]
    names = add_loose("dogs", 12)
    write("dogs/all.csv", [("file", "label"), *zip(names, labels + labels[4:], strict=True)])
    images, _ = find_labelled(Path("dogs"), "all.csv")
    assert list(images["train"]) == ["1", "1.5", "2", "v3"]


@pytest.mark.parametrize(
    "named",
    [
        "images/{}.png",  # from the table's own place, above the data
        "./images/../images/{}.png",
        "{folder}/{}.png",
        "/kaggle/input/dogs/images/{}.png",
        "C:\\Users\\me\\images\\{}.png",
        "e\u0301t\u00e9{}.PNG",
        "IMAGES/{}.Png",
    ],
)
def test_files_are_found_however_they_are_named(named: str) -> None:
    accent = "\u00e9te\u0301" if "PNG" in named else ""
    names = add_loose("dogs/images")
    for name in names if accent else ():
        Path("dogs/images", name).rename(Path("dogs/images", accent + name))
    folder = Path("dogs/images").absolute()
    rows = [
        (named.format(Path(name).stem, folder=folder), breed) for name, breed in labelled(names)
    ]
    write("dogs/all.csv", [("file", "label"), *rows])
    images, notes = find_labelled(Path("dogs/images"), "dogs/all.csv")
    is_far = named.startswith(("/kaggle", "C:"))
    assert [note for note in notes if "is taken for" in note] == (
        [
            f"dogs/all.csv: {rows[0][0]} is taken for dogs/images/00.png, and the other files "
            "likewise"
        ]
        if is_far
        else []
    )
    expected = {
        breed: [accent + name for name, of in labelled(names) if of == breed] for breed in BREEDS
    }
    assert of_class(images["train"]) == expected


def test_a_missing_image_is_not_taken_for_another_of_its_name() -> None:
    rows = [
        (f"{place}/{name}", breed)
        for place in "ab"
        for name, breed in labelled(add_loose(f"dogs/{place}"))
    ]
    Path("dogs/b/03.png").unlink()
    write("dogs/all.csv", [("file", "label"), *rows])
    with pytest.raises(
        DataError, match=r"names 1 file that dogs does not .* as b/03\.png: name the"
    ):
        find_labelled(Path("dogs"), "all.csv")


@pytest.mark.parametrize("suffix", ["", ".png"])
def test_a_table_may_name_the_end_of_a_path(suffix: str) -> None:
    """As in the folder of a table's images: `train.csv` beside `train/`."""
    rows = [
        (f"{place}/{Path(name).stem}{suffix}", breed)
        for place in ("n01", "n02")
        for name, breed in labelled(add_loose(f"dogs/train/{place}", 6))
    ]
    write("dogs/train.csv", [("name", "label"), *rows])
    images, _ = find_labelled(Path("dogs"), "dogs/train.csv")
    for breed in BREEDS:
        expected = [
            f"dogs/train/{Path(name).with_suffix('.png')}" for name, of in rows if of == breed
        ]
        assert images["train"][breed] == expected
