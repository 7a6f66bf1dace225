from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10

from cifar_tl.data.cifar10 import download_cifar10
from cifar_tl.data.source import SHAPES, kind_of, load_data
from cifar_tl.errors import DataError, MissingDataError
from tests.data.test_npz import save_npz


def test_each_source_is_read_by_its_reader(
    tmp_path: Path, small_npz: Path, own_classes: Path, archive: bytes
) -> None:
    (tmp_path / CIFAR10.filename).write_bytes(archive)
    download_cifar10(tmp_path)
    for source, name, images in (
        (SHAPES, "shapes", 12_000),
        (small_npz, "small.npz", 400),
        (own_classes, "own", 32),
        (tmp_path, "cifar10", 200),
    ):
        for spelling in {source, str(source)}:
            data = load_data(spelling)
            assert (data.name, len(data.train.labels)) == (name, images)


def test_a_folder_called_shapes_is_reached_by_its_path(
    own_classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shapes").symlink_to(own_classes)
    monkeypatch.chdir(tmp_path)
    assert load_data("shapes").description == "built-in drawn shapes"
    assert load_data("./shapes").name == "own"


def test_what_is_no_source_is_named(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(DataError, match=r"file\.txt is no source of images: name a folder"):
        load_data(tmp_path / "file.txt")
    with pytest.raises(MissingDataError, match=r"CIFAR-10 is not in .*none"):
        load_data(tmp_path / "none")


def test_a_folder_train_makes_own_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine/train", "other/test", f"{SHAPES}/train"):
        Path(name).mkdir(parents=True)
    for source in ("mine", Path("mine"), f"./{SHAPES}"):
        assert kind_of(source).own_classes
    for source in ("other", "none", SHAPES):
        assert not kind_of(source).own_classes


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
        with pytest.raises(DataError, match=f"{name}: unpack it, or if it is CIFAR-10's, "):
            load_data(tmp_path / name)
