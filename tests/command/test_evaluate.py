import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cifar_tl.command.evaluate import main
from cifar_tl.data.source import load_data
from cifar_tl.experiment.findings.results import class_lines
from cifar_tl.experiment.run import run_stage
from cifar_tl.outputs import outputs_of
from cifar_tl.recipe import TUNED, Precision
from tests.conftest import noted_precisions
from tests.forked import ROOT


@pytest.fixture(scope="module")
def folder(small_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output_dir = tmp_path_factory.mktemp("runs")
    recipe = dataclasses.replace(TUNED, epochs=1, batch_size=20)
    run_stage("scratch", load_data(small_npz), recipe, output_dir=output_dir)
    return output_dir / "small.npz" / "scratch"


def test_it_finds_what_the_run_found(
    folder: Path, small_npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = json.loads((folder / "result.json").read_text())
    arguments = [str(folder / "model.pt"), "--data", str(small_npz)]
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert "on 25 test images of small.npz: " in output
    assert f"accuracy {result['test_accuracy']:.2%}" in output
    assert main([*arguments, "--split", "validation"]) == 0
    output = capsys.readouterr().out
    assert f"accuracy {result['val_accuracy']:.2%}" in output
    outputs = outputs_of(result, result["num_classes"])
    assert outputs is not None
    assert output.endswith("\n".join(class_lines(result["val_confusion"], outputs)) + "\n")
    assert main([*arguments, "--split", "training"]) == 0
    assert "on 80 training images" in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_it_judges_in_the_precision_of_the_run(
    tiny_npz: Path, precision: Precision, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = dataclasses.replace(TUNED, epochs=1, batch_size=20, precision=precision)
    result = run_stage("base", load_data(tiny_npz), recipe, output_dir="runs")
    with noted_precisions() as found:
        assert main(["runs/tiny.npz/base/model.pt", "--data", str(tiny_npz)]) == 0
    assert found == {{"float32": torch.float32, "bf16": torch.bfloat16}[precision]}
    assert f"loss {result['test_loss']:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "data", "code", "message"),
    [
        ("none.pt", "small.npz", 2, "there is no model "),
        ("model.pt", "none.npz", 2, "none.npz: there is no such file or folder"),
        ("model.pt", "", 2, "--data: is empty"),
        ("model.pt", "pyproject.toml", 2, "pyproject.toml is no source of images: name a folder"),
        ("history.csv", "small.npz", 1, "history.csv is damaged, or no checkpoint"),
        ("model.pt", "shapes", 1, "knows the classes 5 dog,"),
        ("model.pt", "cifar10", 2, "CIFAR-10 is not in cifar10: name the model's data"),
    ],
)
def test_what_does_not_fit_is_one_line(
    folder: Path,
    small_npz: Path,
    capsys: pytest.CaptureFixture[str],
    model: str,
    data: str,
    code: int,
    message: str,
) -> None:
    Path("cifar10").mkdir()
    sources = {"small.npz": str(small_npz), "pyproject.toml": str(ROOT / "pyproject.toml")}
    assert main([str(folder / model), "--data", sources.get(data, data)]) == code
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("cifar-tl evaluate: ")
    assert message in errors
    assert len(errors.splitlines()) == 1


def test_own_classes_may_have_no_test_images(
    own_classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = dataclasses.replace(TUNED, epochs=1)
    result = run_stage("scratch", load_data(own_classes), recipe, output_dir=tmp_path)
    arguments = [str(tmp_path / "own/scratch/model.pt"), "--data", str(own_classes)]
    assert main(arguments) == 1
    assert "has no test images: use --split validation" in capsys.readouterr().err
    assert main([*arguments, "--split", "validation"]) == 0
    output = capsys.readouterr().out
    assert f"on 8 validation images of own: accuracy {result['val_accuracy']:.2%}" in output
    assert "cedar tree" in output


def test_unequal_images_have_their_mean_over_classes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    generator = np.random.default_rng(0)
    for name, number in (("defect", 6), ("good", 20)):
        Path("parts/train", name).mkdir(parents=True)
        for place in range(number):
            pixels = generator.integers(256, size=(32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(f"parts/train/{name}/{place:02}.png")
    recipe = dataclasses.replace(TUNED, epochs=1, batch_size=20)
    result = run_stage("scratch", load_data("parts"), recipe, output_dir="runs")
    arguments = ["runs/parts/scratch/model.pt", "--data", "parts", "--split", "validation"]
    assert main(arguments) == 0
    mean, most = result["val_balanced_accuracy"], result["val_majority"]
    assert (
        f"accuracy {result['val_accuracy']:.2%}, mean over classes {mean:.2%}, always the most "
        f"frequent class of these {most:.2%}, loss"
    ) in capsys.readouterr().out
