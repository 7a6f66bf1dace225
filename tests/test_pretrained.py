"""The trained models that come with the package."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hubconf
from cifar_tl import pretrained
from cifar_tl.checkpoint import load_model, read_model
from cifar_tl.command import evaluate, export, predict, train
from cifar_tl.data.classes import CIFAR10_CLASS_NAMES
from cifar_tl.errors import CheckpointError
from cifar_tl.evaluation import extract_features
from cifar_tl.pretrained import FOLDER, PRETRAINED
from tests.forked import one_line

# The first two test images of each of CIFAR-10's classes, one beside the other.
IMAGES = Path(__file__).parent / "cifar10.png"


def described() -> dict[str, list[str]]:
    lines = (FOLDER / "README.md").read_text().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| `")]
    return {name.strip("`"): cells for name, *cells in rows}


def test_files_are_what_the_text_beside_them_says() -> None:
    text = (FOLDER / "README.md").read_text()
    assert list(described()) == list(PRETRAINED)
    for name, cells in described().items():
        classes, images, validation, test, size, digest = cells
        content = (FOLDER / f"{name}.pt").read_bytes()
        assert (f"{len(content):,}", hashlib.sha256(content).hexdigest()) == (size, digest)
        assert len(content) < 550_000
        model, settings, _ = read_model(name)
        first, last = map(int, classes.split("-"))
        assert settings["classes"] == list(range(first, last + 1))
        assert int(images.replace(",", "")) == 4000 * model.num_classes
        assert model.class_names == dict(enumerate(CIFAR10_CLASS_NAMES[: last + 1]))
        assert (settings["stage"], settings["seed"]) == ("base", 0)
        recipe = (
            f"recipe {settings['recipe']}, seed\n{settings['seed']}, {settings['epochs']} epochs"
        )
        assert recipe in text
        assert all(0.6 < float(value.strip(" %")) / 100 < 0.95 for value in (validation, test))


@pytest.mark.parametrize(("name", "right"), [("cifar5", 6), ("cifar10", 12)])
def test_they_name_most_of_a_few_images(name: str, right: int) -> None:
    model = load_model(name)
    pixels = torch.from_numpy(np.array(Image.open(IMAGES))).permute(2, 0, 1)
    images = torch.stack(pixels.split(32, dim=2))[: 2 * model.num_classes]
    labels = torch.arange(model.num_classes).repeat_interleave(2)
    assert int((extract_features(model, images).argmax(1) == labels).sum()) >= right


def test_their_temperatures_go_with_their_files(tmp_path: Path) -> None:
    shutil.copy(FOLDER / "cifar10.pt", tmp_path / "model.pt")
    for path in ("cifar10", FOLDER / "cifar10.pt", tmp_path / "model.pt"):
        assert load_model(path).temperature == 0.916
    assert load_model("cifar5").temperature == 1.002


def test_a_name_is_taken_wherever_a_path_is(
    small_npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load_model(Path("cifar5")).num_classes == 5
    assert hubconf.base_net("cifar10").num_classes == 10
    assert predict.main([str(IMAGES), "--model", "cifar5"]) == 0
    assert export.main(["cifar5", "small"]) == 0
    assert "outputs: 0 airplane" in capsys.readouterr().out
    arguments = ["--stage", "transfer", "--data", str(small_npz), "--epochs", "1"]
    assert train.main([*arguments, "--base", "cifar5"]) == 0
    assert "from cifar5" in capsys.readouterr().out
    assert train.main([*arguments, "--base", "cifar10", "--output-dir", "other"]) == 1
    assert "cifar10 was made for classes [0, 1, 2, 3, 4, 5, 6, 7, 8, 9] and not for" in one_line(
        capsys.readouterr().err
    )


def test_own_classes_need_nothing_else(
    own_classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(["--data", str(own_classes), "--epochs", "2"]) == 0
    output = capsys.readouterr().out
    assert "transfer: 32 training and 8 validation images of classes 0-2, from cifar10" in output
    result = json.loads(Path("runs/own/transfer/result.json").read_text())
    assert result["parent"] == hashlib.sha256((FOLDER / "cifar10.pt").read_bytes()).hexdigest()
    assert result["parent_path"] == "cifar10"
    assert "From the base model cifar10\n" in Path("runs/own/transfer/results.txt").read_text()
    features = load_model("cifar10").features.state_dict()
    for key, value in load_model("runs/own/transfer/model.pt").features.state_dict().items():
        assert torch.equal(value, features[key])


def test_without_a_model_cifar10_answers_and_says_so(
    own_classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.open(IMAGES).crop((18 * 32, 0, 19 * 32, 32)).resize((96, 96)).save("photo.jpg")
    assert predict.main(["photo.jpg", "--top", "1"]) == 0
    output, errors = capsys.readouterr()
    assert output.startswith("photo.jpg: truck")
    assert one_line(errors) == (
        "cifar-tl predict: cifar10 answered, which can only know airplane, automobile, bird, cat, "
        "deer, dog, frog, horse, ship and truck\n"
    )
    assert train.main(["--data", str(own_classes), "--stage", "scratch", "--epochs", "1"]) == 0
    Path("runs/own/base").mkdir()
    Path("runs/own/base/result.json").write_text("[]")  # no result of ours
    capsys.readouterr()
    assert predict.main(["photo.jpg"]) == 0
    own = Path("runs/own/scratch/model.pt")
    assert f"for your own classes add --model {own}\n" in capsys.readouterr().err


def test_a_broken_install_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path / "site-packages")
    (tmp_path / "site-packages").mkdir()
    shutil.copy(FOLDER / "cifar5.pt", tmp_path / "site-packages/cifar5.pt")
    with (tmp_path / "site-packages/cifar5.pt").open("r+b") as file:
        file.seek(1000)
        file.write(b"damage")
    for name in PRETRAINED:
        message = f"the model {name}, which comes with cifar_tl, is missing or damaged: install"
        with pytest.raises(CheckpointError, match=message):
            load_model(name)
        assert evaluate.main([name, "--data", "shapes"]) == 1
        assert message in one_line(capsys.readouterr().err)


def test_a_folder_with_classes_of_the_base_is_doubted(
    own_classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for old, new in zip(("ash", "Birch", "cedar tree"), ("dog", "frog", "ship"), strict=True):
        shutil.copytree(own_classes / "train" / old, f"mine/train/{new}")
    arguments = ["--data", "mine", "--stage", "transfer", "--epochs", "1"]
    assert train.main(arguments) == 0
    assert "cifar10 knows all classes of mine by name: if it has been trained on these" in one_line(
        capsys.readouterr().err
    )
    assert train.main([*arguments, "--base", "cifar5", "--restart"]) == 0
    assert capsys.readouterr().err == ""
