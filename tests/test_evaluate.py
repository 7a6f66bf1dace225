"""The command, never imported: as a module it would hide the function of the same name."""

import dataclasses
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import cifar_tl
from cifar_tl import training
from cifar_tl.data import load_data
from cifar_tl.recipe import TUNED
from cifar_tl.report import class_lines
from cifar_tl.stages import run_stage

main = runpy.run_module("cifar_tl.evaluate")["main"]


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
    assert "on 50 test images of small.npz: " in output
    assert f"accuracy {result['test_accuracy']:.2%}" in output
    assert main([*arguments, "--split", "validation"]) == 0
    output = capsys.readouterr().out
    assert f"accuracy {result['val_accuracy']:.2%}" in output
    classes = (result["val_confusion"], result["classes"], result["class_names"])
    assert output.endswith("\n".join(class_lines(*classes)) + "\n")
    assert main([*arguments, "--split", "training"]) == 0
    assert "on 160 training images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ("none.pt", "small.npz", "cannot read checkpoint"),
        ("model.pt", "none.npz", "there is no file"),
        ("model.pt", "shapes", "knows the classes 5 dog,"),
    ],
)
def test_what_does_not_fit_is_one_line(
    folder: Path,
    small_npz: Path,
    capsys: pytest.CaptureFixture[str],
    model: str,
    data: str,
    message: str,
) -> None:
    source = data if data == "shapes" else str(small_npz.with_name(data))
    assert main([str(folder / model), "--data", source]) == 1
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("evaluate: ")
    assert message in errors
    assert len(errors.splitlines()) == 1


def test_it_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "cifar_tl.evaluate", "none.pt"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 1
    assert process.stderr.startswith("evaluate: cannot read checkpoint none.pt")
    assert cifar_tl.evaluate is training.evaluate  # no import of the module has hidden it


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
