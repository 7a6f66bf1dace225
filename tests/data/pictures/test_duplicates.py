import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from cifar_tl.data.pictures.duplicates import find_duplicates
from cifar_tl.data.source import load_data
from cifar_tl.errors import DataWarning
from cifar_tl.experiment.run import run_stage
from cifar_tl.recipe import TUNED


def lines(*samples: tuple[str, int, int]) -> list[str]:
    """What is found among images of so many colours: part, label and colour of each."""
    images = torch.stack([torch.full((3, 32, 32), colour) for _, _, colour in samples]).byte()
    named = [(part, f"{number}.png", label) for number, (part, label, _) in enumerate(samples)]
    return find_duplicates(images, named)


def test_nothing_twice_says_nothing() -> None:
    assert lines(("train", 0, 1), ("train", 1, 2), ("val", 0, 3), ("test", 1, 4)) == []
    assert lines(("train", 0, 1), ("train", 0, 1), ("val", 0, 3)) == []  # harmless


def test_the_same_image_on_both_sides_is_counted_with_two_names() -> None:
    assert lines(
        ("train", 0, 1),
        ("train", 1, 2),
        ("val", 0, 1),
        ("val", 0, 1),
        ("val", 1, 5),
        ("test", 1, 5),
    ) == [
        "2 of 3 validation images are also among the training images, such as 2.png and 0.png: "
        "the validation accuracy says too much",
        "1 of 1 test images is also among the validation images, such as 5.png and 4.png: "
        "the test accuracy says too much",
    ]


def test_the_same_image_in_two_classes() -> None:
    assert lines(("train", 0, 1), ("train", 1, 1), ("train", 0, 3)) == [
        "1 image is in two classes, such as 0.png and 1.png: delete the wrong copy"
    ]
    assert lines(("train", 0, 1), ("train", 1, 1), ("train", 0, 3), ("train", 2, 3)) == [
        "2 images are in two classes, such as 0.png and 1.png: delete the wrong copy"
    ]


def test_copies_in_folders_are_found_and_the_result_says_so(
    own_classes: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(own_classes, tmp_path / "own"))
    train = folder / "train/Birch"
    (train / "02.webp").unlink()
    shutil.copy(train / "00.png", train / "zz copy of 000.png")
    with Image.open(train / "03.png") as image:
        image.save(train / "zy the same pixels.bmp")
    shutil.copy(train / "01.jpg", folder / "train/ash/copy.jpg")
    with pytest.warns(DataWarning) as warned:
        data = load_data(folder)
    split, classes = data.notes
    assert [str(warning.message) for warning in warned] == [split, classes]
    # The last files of a class validate: both copies in Birch, and the one in ash.
    assert split.startswith("3 of 10 validation images are also among the training images, such as")
    assert classes.startswith("1 image is in two classes, such as ")
    assert {str(folder / "train/ash/copy.jpg"), str(train / "01.jpg")} < {
        *classes[: -len(": delete the wrong copy")].split()
    }
    recipe = replace(TUNED, epochs=1)
    result = run_stage("scratch", data, recipe, output_dir=tmp_path)
    assert result["data_notes"] == [split, classes]
    text = (tmp_path / "own/scratch/results.txt").read_text()
    assert f"NOTE: {split}\nNOTE: {classes}\n" in text
