import json
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10

import cifar_tl.data
from cifar_tl.command import evaluate, predict, train
from cifar_tl.command.arguments import check_source
from cifar_tl.command.console import UsageError
from cifar_tl.data.cifar10 import download_cifar10
from cifar_tl.data.source import KINDS, SHAPES, Kind, kind_of, load_data
from cifar_tl.errors import DataError, MissingDataError
from tests.data.test_npz import save_npz


def test_each_source_is_read_by_its_reader(
    tmp_path: Path, small_npz: Path, own_classes: Path, archive: bytes
) -> None:
    (tmp_path / CIFAR10.filename).write_bytes(archive)
    download_cifar10(tmp_path)
    for source, name, images in (
        (small_npz, "small.npz", 200),
        (own_classes, "own", 32),
        (tmp_path, "cifar10", 200),
    ):
        for spelling in (source, str(source)):
            data = load_data(spelling)
            assert (data.name, len(data.train.labels)) == (name, images)


def test_what_is_no_source_is_named(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(DataError, match=r"file\.txt is no source of images: name a folder"):
        load_data(tmp_path / "file.txt")
    with pytest.raises(
        MissingDataError, match=r"none: there is no such file or folder; check the name$"
    ):
        load_data(tmp_path / "none")


@pytest.mark.skipif(os.name != "posix", reason="needs pipes")
@pytest.mark.parametrize("labels", [None, "coarse"])
def test_pipes_and_devices_are_no_source(tmp_path: Path, labels: str | None) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(DataError, match=r"is a pipe or a device|is no folder"):
            load_data(path, labels=labels)


def test_a_folder_train_makes_own_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine/train", "other/test", f"{SHAPES}/train"):
        Path(name).mkdir(parents=True)
    for source in ("mine", Path("mine"), f"./{SHAPES}"):
        assert kind_of(source).own_classes
    for source in ("other", "none", SHAPES):
        assert not kind_of(source).own_classes


MANY = """
import numpy as np

from cifar_tl.data.examples import Data, fingerprint_of, labeled_images


def read_many(path, **_):
    with np.load(path) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    return Data(
        description="images of many classes",
        class_names=tuple(f"class {number}" for number in range(labels.max() + 1)),
        train=labeled_images(images, labels),
        test=labeled_images(images[-100:], labels[-100:]),
        fingerprint=fingerprint_of(images, labels),
    )
"""


@pytest.fixture
def hundred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A source of 100 classes that is added as CONTRIBUTING.md says: a file, and its row."""
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "many.py").write_text(MANY)
    monkeypatch.setattr(cifar_tl.data, "__path__", [*cifar_tl.data.__path__, f"{tmp_path}/more"])
    row = Kind(
        "many", "a .many file", lambda source: str(source).endswith(".many"), lambda p: p.stem
    )
    monkeypatch.setattr("cifar_tl.data.source.KINDS", (row, *KINDS))
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(256, size=(1000, 3, 32, 32), dtype=np.uint8)
    with Path("hundred.many").open("wb") as file:
        np.savez(file, images=images, labels=np.arange(1000) % 100)
    yield "hundred.many"
    sys.modules.pop("cifar_tl.data.many", None)


def test_a_source_may_be_a_name_without_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Kind("many", "noise", lambda source: source == "noise", lambda _: "noise", is_path=False)
    monkeypatch.setattr("cifar_tl.data.source.KINDS", (row, *KINDS))
    check_source("noise")
    with pytest.raises(UsageError, match="--data nois: there is no such file or folder"):
        check_source("nois")


def test_a_source_of_100_classes_uses_all_of_them(
    hundred: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--data", hundred, "--epochs", "1", "--batch-size", "50", "--threads", "1"]
    found = {}
    for stage in ("base", "transfer"):
        assert train.main([*command, "--stage", stage]) == 0
        output, errors = capsys.readouterr()
        assert "has 100 classes: base learns 0-49, the other stages learn 50-99" in errors
        found[stage] = json.loads(Path(f"runs/hundred/{stage}/result.json").read_text())
        assert f"images of classes {'0-49' if stage == 'base' else '50-99'}" in output
    base, new = found["base"]["classes"], found["transfer"]["classes"]
    assert sorted(base + new) == list(range(100))
    assert found["base"]["class_names"] == [f"class {number}" for number in base]
    assert [found[stage]["num_classes"] for stage in found] == [50, 100]
    assert [found[stage]["images_train"] for stage in found] == [400, 400]
    model = "runs/hundred/transfer/model.pt"
    assert evaluate.main([model, "--data", hundred, "--split", "validation"]) == 0
    lines = capsys.readouterr().out.splitlines()
    accuracy = f"accuracy {found['transfer']['val_accuracy']:.2%}"
    assert f"on 100 validation images of hundred: {accuracy}" in lines[0]
    assert sum(line.startswith("class ") for line in lines) == 51  # and the head of the table
    Image.new("RGB", (40, 40), "red").save("photo.png")
    assert predict.main(["photo.png", "--model", model, "--top", "100", "--json"]) == 0
    (answer,) = capsys.readouterr().out.splitlines()
    labels = [found["label"] for found in json.loads(answer)["classes"]]
    assert sorted(labels) == list(range(50, 100))


def test_other_classes_of_100_have_folders_that_say_which(hundred: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # who has chosen needs no word about the default
        some = load_data(hundred, base_classes="1,23", new_classes="class 98,class 99")
        others = load_data(hundred, base_classes="1,2,3", new_classes="98,99")
    assert (some.name, others.name) == ("hundred-1_23-98_99", "hundred-1to3-98_99")
    assert (some.base_classes, others.base_classes) == ((1, 23), (1, 2, 3))


def test_a_source_whose_images_lack_a_class_is_refused(hundred: str) -> None:
    with np.load(hundred) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    with Path(hundred).open("wb") as file:
        np.savez(file, images=images, labels=np.sort(labels))
    with pytest.raises(
        DataError, match=r"hundred\.many: no training image of class 40: every class"
    ):
        load_data(hundred)


@pytest.mark.parametrize("divided", [True, False])
def test_images_in_which_there_is_nothing_to_see_are_refused(
    tmp_path: Path, small_arrays: tuple[Any, ...], divided: bool
) -> None:
    def change(images: Any) -> Any:
        return (images // 128).astype(np.uint8) if divided else np.full_like(images, 77)

    path = save_npz(tmp_path / "mine.npz", small_arrays, x_train=change)
    message = "are 0 or 1, as after dividing by 255" if divided else "images are the same: check"
    with pytest.raises(DataError, match=rf"mine\.npz: all .*{message}"):
        load_data(path)
    path = save_npz(tmp_path / "test.npz", small_arrays, x_test=change)
    with pytest.raises(DataError, match=r"test\.npz: all .*test images .*(0 or 1|the same)"):
        load_data(path)
    folder = tmp_path / "own"
    for number in range(4):
        for name in "ab":
            image = Image.new("L", (32, 32), 0 if divided else 9)
            if divided:
                image.paste(1, (number, 0, 20, 20))
            path = folder / "train" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    with pytest.raises(DataError, match=rf"own: all .*{message}"):
        load_data(folder)


def test_an_archive_that_is_named_itself_says_what_to_name(tmp_path: Path) -> None:
    for name in ("cifar-10-python.tar.gz", "CIFAR10.tgz"):
        (tmp_path / name).touch()
        with pytest.raises(DataError, match=rf"{name} is CIFAR-10: name its folder, {tmp_path}$"):
            load_data(tmp_path / name)
