import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from PIL import Image

from cifar_tl.checkpoint import CheckpointError, load_model_and_classes, save_model
from cifar_tl.images import read_image
from cifar_tl.model import CifarNet
from cifar_tl.predict import main, predict

CLASSES = {"classes": [5, 6, 7], "class_names": ["dog", "frog", "horse"]}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_model(tmp_path / "model.pt", CifarNet(10), CLASSES)
    return tmp_path / "model.pt"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    (folder / "album.png").mkdir()  # a folder all the same
    for name, colour in {"b.png": "red", "a.JPG": "green", "more/c.png": "blue"}.items():
        Image.new("RGB", (50, 40), colour).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_only_known_classes_have_probabilities(model: Path, pictures: Path) -> None:
    network, classes = load_model_and_classes(model)
    image = read_image(pictures / "b.png")
    predictions = predict(network, classes, image)
    expected = network(image[None])[0, 5:8].softmax(0).tolist()
    assert {p.label: p.name for p in predictions} == {5: "dog", 6: "frog", 7: "horse"}
    for prediction in predictions:
        assert prediction.probability == pytest.approx(expected[prediction.label - 5])
    values = [prediction.probability for prediction in predictions]
    assert values == sorted(values, reverse=True)
    assert sum(values) == pytest.approx(1)
    assert predict(network, classes, image, top=1) == predictions[:1]


def test_files_and_folders_are_named_a_line_each(
    model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(pictures), str(pictures / "b.png"), "--model", str(model), "--top", "2"]
    assert main(arguments) == 0
    output, errors = capsys.readouterr()
    names = [line.partition(": ")[0] for line in output.splitlines()]
    assert names == [str(pictures / name) for name in ("a.JPG", "b.png", "more/c.png", "b.png")]
    assert all(line.count("%") == 2 for line in output.splitlines())
    assert errors == ""


def test_json_is_an_object_a_line(
    model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(pictures), "--model", str(model), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(line["file"]).name for line in lines] == ["a.JPG", "b.png", "c.png"]
    for line in lines:
        assert sum(found["probability"] for found in line["classes"]) == pytest.approx(1)
        assert {found["name"] for found in line["classes"]} == {"dog", "frog", "horse"}


def test_what_cannot_be_read_is_reported_and_the_rest_is_done(
    model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "b.png").write_bytes(b"damaged")
    arguments = [str(pictures), str(pictures / "notes.txt"), "none.png", "--model", str(model)]
    assert main(arguments) == 1
    output, errors = capsys.readouterr()
    assert len(output.splitlines()) == 2
    assert [line.split(" ")[0] for line in errors.splitlines()] == ["predict:"] * 3
    for name in ("b.png", "notes.txt", "none.png"):
        assert sum(name in line for line in errors.splitlines()) == 1


def test_a_missing_model_and_empty_folders_are_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ([str(tmp_path), "--model", "none.pt"], "there is no model none.pt"),
        ([str(tmp_path / "empty"), "--model", str(model)], "there are no images"),
    ):
        assert main(arguments) == 1
        errors = capsys.readouterr().err
        assert message in errors
        assert len(errors.splitlines()) == 1
    with pytest.raises(SystemExit) as error:
        main([str(tmp_path), "--top", "0"])
    assert error.value.code == 2


@pytest.mark.parametrize(
    "settings",
    [
        {},
        CLASSES | {"classes": [5, 6]},
        CLASSES | {"classes": [8, 9, 10]},
        CLASSES | {"classes": 5},
    ],
)
def test_a_model_that_does_not_say_what_it_knows_is_refused(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    save_model(tmp_path / "model.pt", CifarNet(10), settings)
    with pytest.raises(CheckpointError, match="does not say which classes it knows"):
        load_model_and_classes(tmp_path / "model.pt")


def test_it_runs_as_a_module(model: Path, pictures: Path) -> None:
    command = [sys.executable, "-m", "cifar_tl.predict", "b.png", "--model", str(model)]
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    process = subprocess.run(
        command, cwd=pictures, env=environment, capture_output=True, text=True, check=True
    )
    assert process.stdout.startswith("b.png: ")
    assert process.stderr == ""
