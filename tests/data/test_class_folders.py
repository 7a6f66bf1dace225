import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image, ImageOps

from cifar_tl.data.examples import LabeledImages
from cifar_tl.data.pictures.read import READING_RULES, read_image
from cifar_tl.data.source import load_data
from cifar_tl.errors import DataError, DataWarning

COLOURS = {"Birch": "red", "ash": "green", "cedar tree": "blue"}


def own_paths(folder: Path, part: str = "train") -> dict[str, list[Path]]:
    return {path.name: sorted(path.iterdir()) for path in sorted((folder / part).iterdir())}


def add_image(path: Path, colour: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 30), colour).save(path)


def images_of(examples: LabeledImages, label: int) -> torch.Tensor:
    return examples.images[examples.labels == label]


def test_own_classes_are_split_class_by_class_in_file_order(own_classes: Path) -> None:
    data = load_data(own_classes)
    assert (data.name, data.class_names) == ("own", ("Birch", "ash", "cedar tree"))
    assert (data.base_classes, data.new_classes) == ((0, 1, 2), (0, 1, 2))
    train, validation = data.train_and_validation(range(3))
    for label, paths in enumerate(own_paths(own_classes).values()):
        boundary = len(paths) * 4 // 5
        for examples, expected in ((train, paths[:boundary]), (validation, paths[boundary:])):
            # Prepared as predict prepares them.
            images = torch.stack([read_image(path) for path in expected])
            assert torch.equal(images_of(examples, label), images)
    assert len(data.test.labels) == 0
    # The classes take turns: the first images show all of them.
    assert train.labels[:9].tolist() == [0, 1, 2] * 3


def test_own_validation_and_test_images_are_numbered_as_train_numbers_them(folder: Path) -> None:
    for name, colour in COLOURS.items():
        add_image(folder / "val" / name / "a.png", colour)
    add_image(folder / "test" / "cedar tree" / "a.jpg", "white")  # the only class there
    with pytest.warns(DataWarning, match="there are no test images of Birch, ash: the test acc"):
        data = load_data(folder)
    train, validation = data.train_and_validation(range(3))
    assert torch.bincount(train.labels).tolist() == [10, 25, 5]
    assert [images_of(validation, label)[0, label].min() for label in (0, 2)] == [255, 255]
    assert images_of(validation, 1)[0, 1].min() == 128
    assert data.test.labels.tolist() == [2]
    assert data.test.images.min() == 255


def test_the_file_of_each_row_is_known(own_classes: Path, folder: Path) -> None:
    for name, colour, other in zip(COLOURS, "ace", "bdf", strict=True):
        add_image(folder / "val" / name / "a.png", f"#{colour * 6}")
        add_image(folder / "test" / name / "a.png", f"#{other * 6}")
    for source in (own_classes, folder):
        data = load_data(source)
        assert data.files.keys() == {"train", "validation", "test"}
        for part, paths in data.files.items():
            images, labels = getattr(data, part)
            assert len(paths) == len(images) == len(labels)
            assert [Path(path).parent.name for path in paths] == [
                data.class_names[label] for label in labels
            ]
            assert all(map(torch.equal, map(read_image, paths), images))


def test_fingerprint_of_own_classes_tells_of_every_change(
    own_classes: Path, tmp_path: Path
) -> None:
    def fingerprint(change: Callable[[Path], object] = lambda _: None) -> str:
        folder = tmp_path / "own"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(own_classes, folder)
        change(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)  # not all classes have test images
            return load_data(folder).fingerprint

    def hold_out(folder: Path) -> None:
        for name in own_paths(folder):
            add_image(folder / "val" / name / "a.png", COLOURS[name])

    changes: list[Callable[[Path], object]] = [
        lambda folder: (folder / "train/ash/00.png").unlink(),
        lambda folder: (folder / "train/ash").rename(folder / "train/aspen"),
        lambda folder: add_image(folder / "train/ash/00.png", "red"),
        lambda folder: add_image(folder / "test/ash/a.png", "red"),
        hold_out,
    ]
    assert fingerprint() == load_data(own_classes).fingerprint
    changes.append(lambda folder: (folder / "train/ash/00.png").rename(folder / "train/ash/0.png"))
    assert len({fingerprint(), *map(fingerprint, changes)}) == 7


def test_damaged_images_are_all_listed(folder: Path) -> None:
    add_image(folder / "test/ash/good.png", "red")
    names = ("train/ash/03.png", "train/Birch/00.png", "test/ash/x.jpg")
    for name in names:
        (folder / name).write_bytes(b"damaged")
    (folder / "train" / ".ipynb_checkpoints").mkdir()
    for ignored in ("train/ash/notes.txt", "train/ash/._01.jpg", "train/readme"):
        (folder / ignored).write_bytes(b"no image")
    with pytest.raises(DataError, match=r"^3 of 42 images cannot be read") as error:
        load_data(folder)
    for name in names:
        assert str(folder / name) in str(error.value)


@pytest.mark.parametrize(
    ("added", "message"),
    [
        (
            "train/dust/readme.txt",
            r"dust has 0 images .* delete that class \(.*not used: 1 file \(1 .txt\)",
        ),
        (
            "train/one/a.png",
            "the class one has 1 image for train, and needs one to train and another to validate",
        ),
        (
            "val/ash/a.png",
            "the class Birch has 0 images for val, and needs one: add some, or delete that class",
        ),
        ("test/oak/a.png", "oak is a class that train does not have"),
    ],
)
def test_folders_with_other_classes_are_explained(folder: Path, added: str, message: str) -> None:
    add_image((folder / added).with_suffix(".png"), "red")
    (folder / added).with_suffix(".png").rename(folder / added)
    with pytest.raises(DataError, match=message) as error:
        load_data(folder)
    assert "\n" not in str(error.value)


def test_folders_of_other_kinds_are_explained(own_classes: Path, tmp_path: Path) -> None:
    (tmp_path / "empty" / "train").mkdir(parents=True)
    add_image(tmp_path / "one" / "train" / "oak" / "a.png", "red")
    for name in ("cifar10", "held-out", "loose"):
        shutil.copytree(own_classes, tmp_path / name)
    add_image(tmp_path / "held-out" / "validation" / "ash" / "a.png", "red")
    add_image(tmp_path / "loose" / "test" / "a.png", "red")
    for name, message in {
        "empty": "holds no classes: there must be two or more",
        "one": "holds only one class",
        "held-out": "the class Birch has 0 images for val",
        "loose": "test/a.png has no class: move it into the folder of its class",
        "cifar10": "a folder cifar10 are of other data: rename it",
    }.items():
        with pytest.raises(DataError, match=message):
            load_data(tmp_path / name)


def test_another_decoder_makes_no_other_data(
    own_classes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_data(own_classes)
    resize = ImageOps.fit

    def brighter(*arguments: Any) -> Image.Image:  # as another Pillow may decode a JPEG
        return resize(*arguments).point(lambda level: min(level + 1, 255))

    monkeypatch.setattr(ImageOps, "fit", brighter)
    after = load_data(own_classes)
    assert not torch.equal(before.train.images, after.train.images)
    assert before.fingerprint == after.fingerprint
    assert before.software == {"pillow": PIL.__version__}


def test_white_of_deep_images_goes_with_the_data(own_classes: Path, folder: Path) -> None:
    levels = np.linspace(0, 4000, 40 * 40).reshape(40, 40).astype(np.uint16)
    Image.fromarray(levels).save(folder / "train/ash/deep.png")
    line = "grey images of more than 8 bits: in all that hold integers, 4095 is taken for white"
    with pytest.warns(DataWarning, match=line):
        data = load_data(folder)
    assert data.reading == {"reading_rules": READING_RULES, "white": {"integers": 4095.0}}
    assert load_data(own_classes).reading == {"reading_rules": READING_RULES}
