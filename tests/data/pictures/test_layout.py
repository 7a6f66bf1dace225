import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from cifar_tl.command import evaluate, train
from cifar_tl.data.cifar10 import download_cifar10
from cifar_tl.data.pictures.find import find_classes
from cifar_tl.data.source import kind_of, load_data
from cifar_tl.errors import DataError, DataWarning, MissingDataError
from tests.data.test_class_folders import add_image

COLOURS = {"daisy": "white", "rose": "red", "tulip": "yellow"}


def add_classes(folder: Path, names: tuple[str, ...] = tuple(COLOURS), images: int = 5) -> None:
    """Writes images of classes, all of them different."""
    for row, name in enumerate(names):
        for number in range(images):
            add_image(folder / name / f"{number}.png", f"#{row + 1:x}{number:x}7f{row}{number}")


def refusal(source: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Types ``train`` with a source that is no source, and returns the line that refuses it."""
    before = sorted(Path().rglob("*"))
    assert train.main(["--data", source]) in (1, 2)
    output, errors = capsys.readouterr()
    assert output == ""
    (line,) = errors.splitlines()
    assert "download" not in line
    new = set(Path().rglob("*")).difference(before)
    assert new <= {Path("runs")}
    return line


def suggested(line: str) -> str:
    """Returns the source in the command at the end of a line."""
    words = shlex.split(line[line.rindex("cifar-tl train") :])
    return words[words.index("--data") + 1]


def test_folders_of_classes_alone_are_split_as_those_in_train_are() -> None:
    add_classes(Path("bare"))
    add_classes(Path("parted/train"))
    Path("bare/empty").mkdir()
    with pytest.warns(DataWarning) as warned:
        bare = load_data("bare")
    parted = load_data("parted")
    (note,) = (str(warning.message) for warning in warned)
    assert note == (
        "bare has no folder train: its 3 folders with images are the classes, and the last 20 % "
        "of each validate; without images, so no class: empty"
    )
    assert bare.notes == (note,)
    assert (bare.name, bare.class_names, parted.notes) == ("bare", tuple(COLOURS), ())
    for part, files in bare.files.items():
        names = [Path(file).relative_to("bare") for file in files]
        assert names == [Path(file).relative_to("parted/train") for file in parted.files[part]]
    assert bare.own_classes
    assert (len(bare.train.labels), len(bare.test.labels)) == (12, 0)


@pytest.mark.parametrize("part", ["Train", "test", "VALID"])
def test_a_class_that_is_called_as_a_part_is_asked_about(
    part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    add_classes(Path("things"), ("cars", part, "ship"))
    line = refusal("things", capsys)
    assert f"things holds cars and ship, and beside this {part}: parts of the data or class" in line
    Path("things/train").mkdir()
    for name in ("cars", part, "ship"):
        Path("things", name).rename(Path("things/train", name))
    assert len(find_classes(Path("things")).images["train"]) == 3


@pytest.mark.filterwarnings("ignore::cifar_tl.errors.DataWarning")
def test_results_in_the_folder_of_the_data_are_no_class(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in `cd flowers; cifar-tl train --data .`, typed again."""
    add_classes(Path("flowers"), ("daisy", "rose"))
    monkeypatch.chdir("flowers")
    arguments = ["--data", ".", "--stage", "transfer", "--epochs", "1"]
    assert train.main(arguments) == 0
    assert ". has no folder train: its 2 folders with images" in capsys.readouterr().err
    for name in ("images.png", "confusion.png"):  # as matplotlib would draw them
        add_image(Path("runs/flowers/transfer", name), "red")
    assert train.main(arguments) == 0
    assert "transfer: finished before" in capsys.readouterr().out
    assert list(find_classes(Path()).images["train"]) == ["daisy", "rose"]
    Path("runs/flowers/transfer/result.json").unlink()  # no results of this program
    assert list(find_classes(Path()).images["train"]) == ["daisy", "rose", "runs"]


@pytest.mark.parametrize(
    ("classes", "typed", "meant"),
    [
        ("flowers/flowers/train", "flowers", "flowers/flowers"),
        ("flowers/flower_photos", "flowers", "flowers/flower_photos"),
        ("flowers/a/b", "flowers", "flowers/a/b"),
        ("Flowers", "flowers", "Flowers"),
        ("Flowers/train", "flowers", "Flowers"),
        ("flowers/train", "flowrs", "flowers"),
        ("flowers/train", "flowers/train/daisy", "flowers"),
        ("flowers/train", "flowers/train/daisy/0.png", "flowers"),
        ("flowers", "flowers/daisy", "flowers"),
        ("flowers", "flowers/daisy/0.png", "flowers"),
    ],
)
def test_a_source_beside_the_right_one_names_it(
    classes: str, typed: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    add_classes(Path(classes))
    line = refusal(typed, capsys)
    assert meant in line.partition("cifar-tl train --data")[0]
    assert suggested(line) == meant
    assert kind_of(meant).own_classes


def test_a_part_is_not_taken_for_the_whole(capsys: pytest.CaptureFixture[str]) -> None:
    add_classes(Path("flowers/train"))
    assert kind_of("flowers/train").own_classes
    find_classes(Path("flowers/train"))
    add_classes(Path("flowers/val"))
    line = refusal("flowers/train", capsys)
    assert "flowers/train is one part of the data, beside val: name flowers" in line
    assert suggested(line) == "flowers"


MIX = ("cats/0.png", "cats/1.png", "dogs/0.png", "dogs/1.png")


def draw(*images: str) -> None:
    """Writes images, all of them different."""
    for number, image in enumerate(images):
        add_image(Path("d", image), f"#{20 * (number % 12):02x}{10 * (number // 12):02x}80")


NO_CLASSES = "are these classes? If so, move them into d/train; if each is a whole set"


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (["a/0.png", "a/1.png"], "d holds only one class, a: there must be two or more"),
        (["0.png", "1.png"], "d holds 2 images and no folders for classes: move them into d/CLASS"),
        (["a/train/x/0.png", "b/train/x/0.png"], f"d holds a and b: {NO_CLASSES}"),
        ([f"fold{n}/{i}" for n in (1, 2) for i in MIX], f"d holds fold1 and fold2: {NO_CLASSES}"),
        ([f"{n}/{i}" for n in "ab" for i in MIX], f"d holds a and b: {NO_CLASSES}"),
        (["images/0.png", "masks/0.png"], f"d holds images and masks: {NO_CLASSES}"),
        (["x_part_1/0.png", "x_part_2/1.png"], f"d holds x_part_1 and x_part_2: {NO_CLASSES}"),
        (["images_001/0.png", "images_002/1.png"], f"images_001 and images_002: {NO_CLASSES}"),
        (
            ["val/x/0.png", "val/y/0.png"],
            "d holds val, but no train with classes: put the training",
        ),
        (["train_images/0.png", "test_images/1.png"], "but no train with classes: put the train"),
        (["Train/x/0.png", "training/x/0.png"], "d holds Train and training, but no train with"),
        (["train/x/0.png", "training/x/0.png"], "d/train holds only one class"),
        (["test_tube/0.png", "flask/1.png"], "d holds flask, and beside this test_tube: parts of"),
    ],
)
def test_what_is_no_layout_of_classes_is_named(
    images: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(*images)
    assert message in refusal("d", capsys)
    with pytest.raises(DataError, match=re.escape(message)):
        load_data("d")


@pytest.mark.parametrize(
    "places",
    [
        {"training_set/training_set": "train", "test_set/test_set": "test"},
        {"seg_train/seg_train": "train", "seg_test/seg_test": "test", "seg_pred/seg_pred": ""},
        {"training_set": "train", "test_set": "test"},
        {"train_set": "train", "val_set": "val"},
        {"Dataset Train": "train", "evalImages": "val", "TESTSET": "test"},
        {"train/train": "train", "test": "test"},
        {"train/train": "train", "test/test": "test"},
        {"train/images": "train"},
    ],
)
def test_parts_of_any_name_and_depth_are_moved_by_the_command(
    places: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    for place, part in places.items():
        draw(*(f"{place}/{image}" if part else f"{place}/{image[5:]}" for image in MIX))
    line = refusal("d", capsys)
    (command,) = re.findall("`(.*)`", line)
    subprocess.run(["sh", "-c", command], check=True)
    assert suggested(line) == "d"
    found = find_classes(Path("d"))
    for part in ("train", "val", "test"):
        number = 2 if part in places.values() else 0
        assert {name: len(of) for name, of in found.images[part].items()} == {
            "cats": number,
            "dogs": number,
        }
    assert [note for note in found.notes if "seg_pred" in note] == (
        ["images in d/seg_pred are not used: only train, val, test are"]
        if "" in places.values()
        else []
    )


@pytest.mark.parametrize(
    ("images", "table"),
    [
        (["train_images/0.png", "train_images/1.png", "test_images/2.png"], "train.csv"),
        (["ham_part_1/0.png", "ham_part_2/1.png"], "ham_metadata.csv"),
        (["images/0.png", "images/1.png"], "labels.csv"),
        (["images/0.png", "masks/0.png"], "labels.csv"),
        (["0.png", "1.png"], "labels.csv"),
    ],
)
def test_a_table_beside_such_folders_is_suggested(
    images: list[str], table: str, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(*images)
    Path("d", table).write_text("id,dx\n0,a\n1,b\n")
    Path("d/other.csv").write_text("name,size\nx,1\ny,2\n")
    Path("d/sample_submission.csv").write_text("id,dx\n2,a\n")
    Path("d/test.csv").write_text("id\n2\n")
    line = refusal("d", capsys)
    assert line.endswith(f"cifar-tl train --data d --labels d/{table}")


@pytest.mark.parametrize("name", ["valid", "validation"])
def test_validation_images_of_another_name_are_taken(name: str) -> None:
    draw(*(f"{part}/{image}" for part in ("train", name, "test") for image in MIX))
    with pytest.warns(DataWarning, match=f"d has no val: {name} validates"):
        data = load_data("d")
    assert {Path(file).parts[1] for file in data.files["validation"]} == {name}
    assert len(data.validation.labels if data.validation else ()) == 4
    draw(*(f"val/{image}" for image in MIX))
    with pytest.raises(DataError, match=f"d/val and d/{name} both hold validation images"):
        find_classes(Path("d"))


def test_a_folder_with_an_npz_file_names_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("d").mkdir()
    Path("d/digits.npz").touch()
    line = refusal("d", capsys)
    assert "d holds d/digits.npz: name that file" in line
    assert suggested(line) == "d/digits.npz"


def test_a_file_in_the_place_of_a_folder_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("d").mkdir()
    Path("d/train").touch()
    assert "d/train is no folder, or a link to nowhere: repair" in refusal("d", capsys)


@pytest.mark.parametrize("kind", ["zip", "gztar"])
def test_an_archive_names_the_command_that_unpacks_it_and_the_next(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    add_classes(Path("all/train"))
    archive = Path(shutil.make_archive("flowers", kind, "all")).name
    line = refusal(archive, capsys)
    (command,) = re.findall("`(.*)`", line)
    assert suggested(line) == "flowers"
    subprocess.run(["sh", "-c", command.replace("python", "python3", 1)], check=True)
    assert len(find_classes(Path("flowers")).images["train"]) == 3


@pytest.mark.parametrize(
    ("suffix", "how"),
    [
        (".ZIP", " with `python -m zipfile -e d/flowers.ZIP d/flowers`"),
        (".tgz", " with `python -m tarfile -e d/flowers.tgz d/flowers`"),
        (".tar.bz2", " with `python -m tarfile -e d/flowers.tar.bz2 d/flowers`"),
        (".rar", ""),
    ],
)
def test_a_damaged_archive_and_one_in_a_folder_are_named_too(
    suffix: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("d").mkdir()
    Path("d", f"flowers{suffix}").write_bytes(b"no archive")
    for source in ("d", f"d/flowers{suffix}"):
        named = "d" if source == "d" else "d/flowers"
        line = refusal(source, capsys)
        assert f"unpack it{how}, and name {named}: " in line
        assert suggested(line) == named


def test_an_archive_for_each_class_is_named_with_the_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As Teachable Machine exports them."""
    Path("pets").mkdir()
    for name in ("cat", "dog", "horse"):
        Path(f"pets/{name}.zip").write_bytes(b"no archive")
    line = refusal("pets", capsys)
    assert "`python -m zipfile -e pets/cat.zip pets/cat`, and likewise the 2 beside it" in line
    assert suggested(line) == "pets"


@pytest.mark.parametrize(
    "name", ["cifar_notes.txt", "cifar.tgz", "my-cifar10.jpg", "cifar10 b.tgz"]
)
def test_a_name_with_cifar_in_it_starts_no_download(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    add_classes(Path("d"), ("only",))
    Path("d", name).touch()
    assert "d holds only one class, only" in refusal("d", capsys)
    with pytest.raises(DataError, match="d holds only one class") as error:
        load_data("d")
    assert not isinstance(error.value, MissingDataError)
    with pytest.raises(DataError, match=r"d holds other things, .*nothing is downloaded into it"):
        download_cifar10("d")
    assert evaluate.main(["cifar10", "--data", "d"]) == 2
    assert "--data d holds only one class" in capsys.readouterr().err
