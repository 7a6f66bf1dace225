import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR100

from cifar_tl.command import evaluate, train
from cifar_tl.data.source import check_early, kind_of, load_data
from cifar_tl.errors import DataError, DataWarning
from tests.conftest import Malicious, md5, pickle_as_python2

FOLDER = "cifar-100-python"
NAMES = [f"thing {number:02}" for number in range(100)]
COARSE_NAMES = [f"things {number:02}" for number in range(20)]


@pytest.fixture(scope="module")
def batches() -> dict[str, dict[str, object]]:
    """Ten training images and one test image of each fine class."""
    random = np.random.default_rng(0)
    return {
        name: {
            "data": random.integers(256, size=(rows, 3072), dtype=np.uint8),
            "fine_labels": [row * 7 % 100 for row in range(rows)],
            "coarse_labels": [row % 20 for row in range(rows)],
        }
        for name, rows in (("train", 1000), ("test", 100))
    }


@pytest.fixture
def files(
    batches: dict[str, dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> dict[str, bytes]:
    """The official files in miniature; their checksums take the place of the official ones."""
    meta = {"fine_label_names": NAMES, "coarse_label_names": COARSE_NAMES}
    contents = {name: pickle_as_python2(content) for name, content in batches.items()}
    contents["meta"] = pickle_as_python2(meta)
    monkeypatch.setattr(CIFAR100, "train_list", [["train", md5(contents["train"])]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", md5(contents["test"])]])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": md5(contents["meta"])})
    return contents


def save_folder(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def save_archive(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{FOLDER}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.filterwarnings("ignore::cifar_tl.errors.DataWarning")
def test_the_folder_and_the_archive_are_the_same_data(
    tmp_path: Path, files: dict[str, bytes], batches: dict[str, dict[str, object]]
) -> None:
    folder = save_folder(tmp_path / "a" / FOLDER, files)
    archive = save_archive(tmp_path / "b" / f"{FOLDER}.tar.gz", files)
    found = [load_data(source) for source in (folder, folder.parent, archive, archive.parent)]
    assert len({data.fingerprint for data in found}) == 1
    for data in found:
        assert (data.name, data.class_names) == ("cifar100", tuple(NAMES))
        for part, examples in (("train", data.train), ("test", data.test)):
            pixels = np.asarray(batches[part]["data"]).reshape(-1, 3, 32, 32)
            assert torch.equal(examples.images, torch.from_numpy(pixels))
            assert examples.labels.tolist() == batches[part]["fine_labels"]
    assert sorted(path.name for path in archive.parent.iterdir()) == [archive.name]


def test_the_first_half_is_for_base_and_a_line_says_so(
    tmp_path: Path, files: dict[str, bytes]
) -> None:
    folder = save_folder(tmp_path / FOLDER, files)
    with pytest.warns(DataWarning, match="has 100 classes: base learns 0-49, the other stages"):
        data = load_data(folder)
    assert (data.base_classes, data.new_classes) == (tuple(range(50)), tuple(range(50, 100)))


@pytest.mark.filterwarnings("ignore::cifar_tl.errors.DataWarning")
def test_coarse_labels_are_the_20_superclasses(
    tmp_path: Path, files: dict[str, bytes], batches: dict[str, dict[str, object]]
) -> None:
    folder = save_folder(tmp_path / FOLDER, files)
    check_early(folder, "coarse")
    fine, coarse = load_data(folder), load_data(folder, labels="coarse")
    assert (coarse.name, coarse.class_names) == ("cifar100-coarse", tuple(COARSE_NAMES))
    assert coarse.train.labels.tolist() == batches["train"]["coarse_labels"]
    assert coarse.test.labels.tolist() == batches["test"]["coarse_labels"]
    assert coarse.new_classes == tuple(range(10, 20))
    assert torch.equal(coarse.train.images, fine.train.images)
    assert coarse.fingerprint != fine.fingerprint
    with pytest.raises(DataError, match=r"there is no file coarse\.csv, here or in"):
        load_data(tmp_path, labels="coarse.csv")
    arguments = ["--data", str(folder), "--labels", "coarse"]
    assert train.main([*arguments, "--stage", "base", "--epochs", "1", "--quiet"]) == 0
    assert evaluate.main(["runs/cifar100-coarse/base/model.pt", *arguments]) == 0


@pytest.mark.parametrize("name", ["train", "test", "meta"])
@pytest.mark.parametrize("packed", [True, False])
def test_damage_is_noticed_and_nothing_is_unpickled(
    tmp_path: Path, files: dict[str, bytes], name: str, packed: bool
) -> None:
    malicious = pickle_as_python2(Malicious(tmp_path / "hacked"))
    damaged = files | {name: malicious}
    if packed:
        source = save_archive(tmp_path / "cifar-100-python (1).tar.gz", damaged)
    else:
        source = save_folder(tmp_path / FOLDER, damaged)
    with pytest.raises(DataError, match=f"the file {name} of CIFAR-100 is damaged .wrong checks"):
        load_data(source)
    assert not (tmp_path / "hacked").exists()


def test_what_is_missing_or_cut_off_is_named(tmp_path: Path, files: dict[str, bytes]) -> None:
    folder = save_folder(tmp_path / FOLDER, files)
    (folder / "meta").unlink()
    with pytest.raises(DataError, match=r"a file of CIFAR-100 is missing or damaged .*meta"):
        load_data(tmp_path)
    shutil.rmtree(folder)
    archive = save_archive(tmp_path / f"{FOLDER}.tar.gz", files)
    archive.write_bytes(archive.read_bytes()[:5000])
    with pytest.raises(DataError, match="a file of CIFAR-100 is missing or damaged"):
        load_data(archive)


def test_a_folder_with_cifar10_too_is_cifar10s(tmp_path: Path, files: dict[str, bytes]) -> None:
    save_folder(tmp_path / FOLDER, files)
    assert kind_of(tmp_path).module == "cifar100"
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert kind_of(tmp_path).module == "cifar10"
    assert kind_of(tmp_path / FOLDER).module == "cifar100"


def test_what_lies_beside_cifar100_is_named(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_folder(Path("data", FOLDER), files)
    Path("data/a").mkdir()
    Image.new("RGB", (9, 9)).save("data/a/0.png")
    with pytest.warns(DataWarning):
        notes = load_data("data").notes
    assert notes[-2:] == (
        "data holds CIFAR-100, which is taken: for CIFAR-10, name another folder",
        "images in data/a are not used: data holds CIFAR-100, which is taken",
    )
