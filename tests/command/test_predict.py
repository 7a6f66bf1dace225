import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cifar_tl.checkpoint import save_model
from cifar_tl.command.predict import main, newest_own_model
from cifar_tl.network import CifarNet
from tests.experiment.conftest import make_result
from tests.forked import one_line
from tests.hostile import write_result

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


def test_files_and_folders_are_named_a_line_each(
    model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(pictures), str(pictures / "b.png"), "--model", str(model), "--top", "2"]
    assert main(arguments) == 0
    output, errors = capsys.readouterr()
    names = [line.partition(": ")[0] for line in output.splitlines()]
    assert names == [str(pictures / name) for name in ("a.JPG", "b.png", "more/c.png", "b.png")]
    assert all(line.count("%") == 2 for line in output.splitlines())
    assert one_line(errors) == (
        f"cifar-tl predict: warning: {pictures}: not used: 1 file (1 .txt); convert pictures of "
        "other formats to PNG or JPEG\n"
    )


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
    assert len(errors.splitlines()) == 4
    assert all(line.startswith("cifar-tl predict: ") for line in errors.splitlines())
    for name in ("b.png", "notes.txt", "none.png"):
        assert sum(name in line for line in errors.splitlines()) == 1


def test_a_missing_model_and_empty_folders_are_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, code, message in (
        (["--model", "none.pt"], 2, "there is no model none.pt: name another, or make one with"),
        (["--model", str(model)], 1, "there are no images"),
        (["--model", str(model), "--top", "0"], 2, "--top: must be a whole number from 1"),
    ):
        assert main([str(tmp_path / "empty"), *arguments]) == code
        output, errors = capsys.readouterr()
        assert output == ""
        assert errors.startswith("cifar-tl predict: ")
        assert message in errors
        assert len(errors.splitlines()) == 1


@pytest.mark.filterwarnings("always::UserWarning")
def test_names_that_break_lines_do_not(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a\nb\x1b[31m.png"
    Image.new("RGB", (50, 40), "red").save(path)
    assert main([str(path), "--model", str(model)]) == 0
    assert f"{tmp_path}/a\\nb\\x1b[31m.png: " in one_line(capsys.readouterr().out)


def test_an_address_is_no_file(
    model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = "https://example.org/cat.jpg"
    for arguments in (
        [address, "--model", str(model)],
        [str(pictures), address, "--model", str(model)],
        [str(pictures), "--model", address],
    ):
        assert main(arguments) == 2
        assert f": {address} is an address: download it first" in one_line(capsys.readouterr().err)


def finish(path: Path, accuracy: float, outputs: int = 2, **figures: Any) -> None:
    """Writes a model and its result, of a stage with two classes."""
    path.mkdir(parents=True)
    save_model(path / "model.pt", CifarNet(2), {})
    result = make_result("base", accuracy, 1.0) | {"precision": "float32", "stage": path.name}
    result |= {"classes": [0, 1], "class_names": ["ash", "oak"], "num_classes": outputs}
    result |= {"val_confusion": [[10] + [0] * (outputs - 1)] * 2, "images_validation": 20}
    write_result(path / "result.json", result | figures)


def test_the_hint_goes_by_the_mean_over_unequal_classes(tmp_path: Path) -> None:
    for stage, accuracy, mean in (("transfer", 0.9, 0.8), ("scratch", 0.97, 0.5)):
        figures: dict[str, Any] = {}
        for part in ("val", "test"):
            figures |= {f"{part}_balanced_accuracy": mean, f"{part}_majority": 0.5}
            figures |= {f"{part}_balanced_interval": [0.1, 0.9]}
        finish(tmp_path / "runs/parts" / stage, accuracy, **figures)
    assert newest_own_model(tmp_path / "runs") == tmp_path / "runs/parts/transfer/model.pt"


def test_the_hint_names_models_that_know_all_classes_and_no_base(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    finish(runs / "divided.npz/base", 0.99, reading_rules=1)  # it knows two of four classes
    finish(runs / "divided.npz/transfer", 0.98, outputs=4, reading_rules=1)
    finish(runs / "mine-all/base", 0.97)
    assert newest_own_model(runs) is None
    finish(runs / "two.npz/transfer", 0.6)  # as of a .npz file of 32x32 pixels: it has no rules
    assert newest_own_model(runs) == runs / "two.npz/transfer/model.pt"
