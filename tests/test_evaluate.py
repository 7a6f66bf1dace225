"""As a process of its own: imported, the module would hide the function of the same name."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from cifar_tl.data import load_data
from cifar_tl.recipe import TUNED
from cifar_tl.report import class_lines
from cifar_tl.stages import run_stage


def evaluate(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cifar_tl.evaluate", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(small_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output_dir = tmp_path_factory.mktemp("runs")
    recipe = dataclasses.replace(TUNED, epochs=1, batch_size=20)
    run_stage("scratch", load_data(small_npz), recipe, output_dir=output_dir)
    return output_dir / "small.npz" / "scratch"


def test_it_finds_what_the_run_found(folder: Path, small_npz: Path) -> None:
    result = run_stage(
        "scratch",
        load_data(small_npz),
        dataclasses.replace(TUNED, epochs=1, batch_size=20),
        output_dir=folder.parent.parent,
    )
    process = evaluate(folder / "model.pt", "--data", small_npz)
    assert (process.returncode, process.stderr) == (0, "")
    assert "on 50 test images of small.npz: " in process.stdout
    assert f"accuracy {result['test_accuracy']:.2%}" in process.stdout
    process = evaluate(folder / "model.pt", "--data", small_npz, "--split", "validation")
    assert f"accuracy {result['val_accuracy']:.2%}" in process.stdout
    classes = (result["val_confusion"], result["classes"], result["class_names"])
    assert process.stdout.endswith("\n".join(class_lines(*classes)) + "\n")
    process = evaluate(folder / "model.pt", "--data", small_npz, "--split", "training")
    assert "on 160 training images" in process.stdout


def test_what_does_not_fit_is_one_line(folder: Path, small_npz: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ((tmp_path / "none.pt", "--data", small_npz), "cannot read checkpoint"),
        ((folder / "model.pt", "--data", tmp_path / "none.npz"), "there is no file"),
        ((folder / "model.pt", "--data", "shapes"), "knows the classes 5 dog,"),
    ):
        process = evaluate(*arguments)
        assert process.returncode == 1
        assert process.stdout == ""
        assert process.stderr.startswith("evaluate: ")
        assert message in process.stderr
        assert len(process.stderr.splitlines()) == 1
