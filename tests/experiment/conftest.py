"""What tests of the experiments share: a run of all stages; how to copy, stop and damage one."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cifar_tl.checkpoint import load_checkpoint, save_checkpoint
from cifar_tl.data.examples import Data
from cifar_tl.data.shapes import draw_shapes
from cifar_tl.data.source import load_data
from cifar_tl.experiment.run import run_stage
from cifar_tl.experiment.stages import STAGES
from cifar_tl.recipe import TUNED

SMALL = dataclasses.replace(
    TUNED,
    epochs=2,
    batch_size=20,
    precision="float32",  # the same on every machine
    first_layer="whitened",  # in two epochs it would be separated, and stay
    transfer_batch_size=20,
    finetune_epochs=2,
)


@pytest.fixture(scope="session")
def small_data(small_npz: Path) -> Data:
    return load_data(small_npz)


def run_all_stages(data: Data, output_dir: Path) -> Path:
    """Runs all stages; returns the folder of the data."""
    for stage in STAGES:
        run_stage(stage, data, SMALL, output_dir=output_dir)
    return output_dir / data.name


@pytest.fixture(scope="session")
def finished(small_data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder in which all stages have run."""
    return run_all_stages(small_data, tmp_path_factory.mktemp("runs"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def copy_run(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for name, content in contents(source).items():
        (target / name).write_bytes(content)


class StopError(Exception):
    """Stops a stage where a test wants it."""


def stop_at(text: str) -> Callable[[str], None]:
    def stop(line: str) -> None:
        if text in line:
            raise StopError

    return stop


def damage_checkpoint(folder: Path, **changes: object) -> None:
    content = load_checkpoint(folder / "last.pt")
    save_checkpoint(folder / "last.pt", content | changes)


def make_result(stage: str, val_accuracy: float, seconds: float) -> dict[str, Any]:
    is_base = stage == "base"
    return {
        "stage": stage,
        "data": "shapes",
        "data_description": "built-in drawn shapes",
        "recipe": "tuned",
        "seed": 0,
        "epochs": 10,
        "num_classes": 5 if is_base else 10,
        "classes": [0, 1] if is_base else [5, 6],
        "class_names": ["disc", "square"] if is_base else ["flower", "crescent"],
        "train_fraction": 1.0,
        "images_train": 4800,
        "images_validation": 1200,
        "images_test": 1000,
        "val_accuracy": val_accuracy,
        "val_loss": 0.5,
        "val_confusion": [[8, 2] + [0] * 8, [3, 0, *[1] * 7, 0]],
        "test_accuracy": val_accuracy - 0.01,
        "test_loss": 0.6,
        "seconds_train": seconds * 0.8,
        "seconds_validation": seconds * 0.1,
        "seconds_features": 0.0,
        "seconds_reading": 2.0,
        "seconds_total": seconds,
        "parameters_total": 119_581 if is_base else 120_226,
        "parameters_trainable": 103_818 if stage == "transfer" else 120_226,
        "environment": {"torch": "2.15.0"},
        "surroundings": [{"from_epoch": 1, "torch": "2.15.0", "threads": 2, "device": "cpu"}],
    }


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    x_train, y_train, x_test, y_test = draw_shapes(1400, 60)
    path = tmp_path_factory.mktemp("data") / "drawn.npz"
    train, test = (images.transpose(0, 2, 3, 1) for images in (x_train, x_test))
    np.savez(path, x_train=train, y_train=y_train, x_test=test, y_test=y_test)
    return path


@pytest.fixture(scope="session")
def drawn_data(drawn: Path) -> Data:
    return load_data(drawn)
