import csv
import dataclasses
import io
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cifar_tl.checkpoint import load_model, save_model
from cifar_tl.command.evaluate import main
from cifar_tl.data.examples import select_classes
from cifar_tl.data.source import load_data
from cifar_tl.evaluation import evaluate, extract_features
from cifar_tl.experiment.findings.results import class_lines
from cifar_tl.experiment.run import run_stage
from cifar_tl.outputs import outputs_of
from cifar_tl.recipe import TUNED, Precision
from tests.conftest import noted_precisions
from tests.forked import CLOSED_PIPE, ROOT, Command, one_line


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


def test_mirror_images_are_averaged_where_the_model_knows_them(
    folder: Path, small_npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(folder / "model.pt"), "--data", str(small_npz), "--json"]
    assert main(arguments) == 0
    assert not json.loads(capsys.readouterr().out)["mirror_average"]
    assert main([*arguments, "--mirror-average"]) == 0
    found = json.loads(capsys.readouterr().out)
    data, model = load_data(small_npz), load_model(folder / "model.pt")
    images, labels = select_classes(data.test, data.new_classes)
    logits = extract_features(model, images) + extract_features(model, images.flip(-1))
    expected = evaluate(nn.Identity(), logits / 2, labels)
    assert found["loss"] == pytest.approx(expected.loss, rel=0.02)  # the run may be in bfloat16
    assert main([str(folder / "model.pt"), "--data", str(small_npz), "--mirror-average"]) == 0
    assert ", averaged with mirror images: accuracy" in capsys.readouterr().out
    save_model(tmp_path / "plain.pt", model, class_names=model.class_names)
    arguments[0] = str(tmp_path / "plain.pt")
    assert main([*arguments, "--mirror-average"]) == 1
    message = "plain.pt was not trained on mirror images: leave out --mirror-average"
    assert message in one_line(capsys.readouterr().err)


def rows(text: str) -> list[list[str]]:
    assert text.startswith("\ufeff")
    return list(csv.reader(io.StringIO(text[1:], newline="")))


def test_json_has_the_figures_of_the_run(
    folder: Path, small_npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = json.loads((folder / "result.json").read_text())
    arguments = [str(folder / "model.pt"), "--data", str(small_npz), "--split", "validation"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["confusion"] == result["val_confusion"]
    for key in ("accuracy", "loss"):
        assert found[key] == pytest.approx(result[f"val_{key}"])
    assert [of["name"] for of in found["classes"]] == result["class_names"]
    accuracies = [of["accuracy"] for of in found["classes"]]
    assert accuracies == pytest.approx(result["val_class_accuracies"])
    assert found["balanced_accuracy"] == pytest.approx(np.mean(accuracies))
    assert [of["images"] for of in found["classes"]] == [sum(row) for row in found["confusion"]]
    assert main([*arguments, "--output", "found.json"]) == 0
    output = capsys.readouterr().out
    assert f"mean over classes {found['balanced_accuracy']:.2%}, loss" in output
    assert json.loads(Path("found.json").read_text()) == found


def test_csv_has_the_surest_errors_first(
    folder: Path, small_npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(folder / "model.pt"), "--data", str(small_npz), "--split", "training"]
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert main([*arguments, "--csv"]) == 0
    head, *found = rows(capsys.readouterr().out)
    assert head == ["number", "truth", "answer", "probability"]
    assert len({row[0] for row in found}) == report["images"] == len(found)
    right = [row[1] == row[2] for row in found]
    assert right == sorted(right)
    assert sum(right) / len(right) == pytest.approx(report["accuracy"])
    errors = [float(row[3]) for row in found if row[1] != row[2]]
    others = [float(row[3]) for row in found if row[1] == row[2]]
    assert errors == sorted(errors, reverse=True)
    assert others == sorted(others)
    labels = np.load(small_npz)["y_train"].flatten()
    names = {int(labels[int(row[0])]): row[1] for row in found}
    assert all(names[int(labels[int(row[0])])] == row[1] for row in found)


@pytest.fixture
def plain(own_classes: Path, tmp_path: Path) -> Path:
    """A folder of two classes without ``train``. One of them has one image."""
    for name, number in (("ash", 3), ("cedar tree", 1)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for path in sorted((own_classes / "train" / name).iterdir())[:number]:
            shutil.copy(path, tmp_path / "photos" / name)
    return tmp_path / "photos"


@pytest.fixture
def own_model(own_classes: Path) -> str:
    recipe = dataclasses.replace(TUNED, epochs=1)
    run_stage("scratch", load_data(own_classes), recipe, output_dir="runs")
    return "runs/own/scratch/model.pt"


@pytest.mark.filterwarnings("ignore::cifar_tl.errors.DataWarning")
def test_a_plain_folder_of_classes_is_judged_whole(
    own_model: str, plain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([own_model, "--data", str(plain), "--csv"]) == 0
    output, errors = capsys.readouterr()
    assert f"{plain} has no folder train: all its 4 images are test images; if" in one_line(errors)
    head, *found = rows(output)
    assert head[0] == "file"
    assert {row[0] for row in found} == {str(path) for path in plain.glob("*/*")}
    assert all(Path(row[0]).parent.name == row[1] for row in found)
    assert main([own_model, "--data", str(plain), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [of["images"] for of in report["classes"]] == [0, 3, 1]
    assert report["accuracy"] == sum(row[1] == row[2] for row in found) / 4


def test_a_plain_folder_whose_accuracy_would_mislead_is_refused(
    own_model: str, plain: Path, own_classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, message in (
        ("own", "was trained on images in a folder own, and own holds others now"),
        ("train", "train has the name of training images: name the folder above it"),
    ):
        shutil.copytree(plain, name)
        assert main([own_model, "--data", name]) == 1
        assert message in one_line(capsys.readouterr().err)
    (plain / "elm").mkdir()
    shutil.copy(next((plain / "ash").iterdir()), plain / "elm")
    assert main([own_model, "--data", str(plain)]) == 1
    message = "elm is no class of the model, which knows 0 Birch, 1 ash, 2 cedar tree: rename"
    assert message in one_line(capsys.readouterr().err)
    shutil.copytree(own_classes / "train", "whole")
    recipe = dataclasses.replace(TUNED, epochs=1)
    with pytest.warns(UserWarning, match="has no folder train"):
        run_stage("scratch", load_data("whole"), recipe, output_dir="runs")
    Path("whole").rename("copy")
    for split in ("test", "validation"):
        code = main(["runs/whole/scratch/model.pt", "--data", "copy", "--split", split])
        assert code == int(split == "test")
        assert ("copy has no test images: use --split validation" in capsys.readouterr().err) == (
            split == "test"
        )


@pytest.mark.parametrize("form", ["--csv", "--json"])
def test_a_full_disk_and_a_closed_pipe_are_one_line(
    folder: Path, small_npz: Path, zygote: subprocess.Popen[str], form: str
) -> None:
    arguments = ["evaluate", str(folder / "model.pt"), "--data", str(small_npz), form]
    errors = Command(zygote, arguments, output=CLOSED_PIPE).end(1)
    assert errors == "cifar-tl evaluate: nobody reads the output any more\n"
    if Path("/dev/full").exists():
        errors = Command(zygote, arguments, output="/dev/full").end(1)
        assert errors == "cifar-tl evaluate: No space left on device\n"


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
