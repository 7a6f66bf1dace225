import copy
import json
from typing import Any

import pytest
import torch

from cifar_tl.model import CifarNet, layers, transfer_model
from cifar_tl.report import class_lines, compare, comparison_text, epoch_line, results_text, summary
from cifar_tl.training import EpochRecord

RECORD = EpochRecord(1, 1.5, 0.3, 1.25, 0.45678, 9.0, 1.0)


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


@pytest.fixture
def results() -> dict[str, dict[str, Any]]:
    return {
        "base": make_result("base", 0.75, 100.0),
        "transfer": make_result("transfer", 0.80, 20.0),
        "finetune": make_result("finetune", 0.87, 30.0),
        "scratch": make_result("scratch", 0.86, 110.0),
    }


def test_classes_and_confusions_are_named() -> None:
    confusion = [[0, 6, 3, 1], [0, 0, 4, 0], [0, 0, 0, 0]]
    assert class_lines(confusion, [1, 2, 3], ["cat", "dog", "owl"]) == [
        "class  images  accuracy",
        "cat        10    60.00%",
        "dog         4   100.00%",
        "owl         0         -",
        "30.0% of cat are taken for dog",
        "10.0% of cat are taken for owl",
    ]
    lines = class_lines([[5, 1]], [0], ["cat"])
    assert lines[-1] == "16.7% of cat are taken for output 1"


def test_comparison_counts_every_cost(results: dict[str, dict[str, Any]]) -> None:
    comparison = compare(results)
    transfer = comparison["ways"]["transfer"]
    assert transfer["seconds"] == 20.0
    assert transfer["seconds_saved"] == 90.0
    assert transfer["val_accuracy_above_scratch"] == pytest.approx(-0.06)
    # 100 + 1 * 20 > 1 * 110, but 100 + 2 * 20 < 2 * 110
    assert transfer["pays_from"] == 2
    both = comparison["ways"]["transfer+finetune"]
    assert both["seconds"] == 48.0  # reading, 2 s, is in each of both
    assert both["val_accuracy_above_scratch"] == pytest.approx(0.01)
    # 100 + 1 * 48 > 110, and 100 + 2 * 48 < 220
    assert both["pays_from"] == 2
    assert comparison["seconds_base"] == 100.0
    assert comparison["stages"]["transfer"]["parameters_frozen"] == 16_408
    assert comparison["stages"]["base"]["seconds_per_epoch"] == pytest.approx(9.0)
    json.dumps(comparison)


@pytest.mark.parametrize(("base", "pays_from"), [(89.0, 1), (90.0, 2), (179.0, 2), (180.0, 3)])
def test_transfer_pays_from_the_first_number_that_is_really_cheaper(
    results: dict[str, dict[str, Any]], base: float, pays_from: int
) -> None:
    results["base"]["seconds_total"] = base
    assert compare(results)["ways"]["transfer"]["pays_from"] == pays_from
    n = pays_from
    assert base + n * 20 < n * 110
    assert base + (n - 1) * 20 >= (n - 1) * 110


def test_comparison_says_plainly_what_transfer_costs(results: dict[str, dict[str, Any]]) -> None:
    text = comparison_text(compare(results))
    assert text.isascii()
    assert "transfer: 80.00% in 20.0 s; scratch: 86.00% in 110.0 s." in text
    assert "costs 6.00 points of validation accuracy and saves 90.0 s" in text
    assert (
        "base model's 100.0 s, it is faster than scratch once 2 transfers share that base" in text
    )
    assert "gains 1.00 points" in text
    for cell in ("103,818", "16,408", "79.00%", "9.00"):
        assert cell in text
    slow = copy.deepcopy(results)
    slow["transfer"]["seconds_total"] = 120.0
    text = comparison_text(compare(slow))
    assert "costs 6.00 points of validation accuracy and takes 10.0 s longer" in text
    assert "never faster than scratch" in text


def test_results_show_layers_epochs_times_and_what_the_model_knows() -> None:
    torch.manual_seed(0)
    model = transfer_model(CifarNet(5))
    text = results_text(make_result("transfer", 0.8, 20.0), [RECORD], layers(model))
    assert text.isascii()
    assert "Stage transfer on shapes (built-in drawn shapes)" in text
    assert "Conv 5x5 + ReLU  32 x 28 x 28       2,432  no, frozen" in text
    assert "Linear + ReLU    128              102,528  yes" in text
    assert epoch_line(RECORD, 10) in text
    assert "120,226 parameters: 103,818 trained, 16,408 frozen" in text
    assert "Total time 20.0 s" in text
    assert "has 10 outputs, but knows only the 2 classes above" in text
    assert "torch: 2.15.0" in text


def test_lines_hold_the_figures() -> None:
    line = epoch_line(RECORD, 10)
    assert line.startswith("epoch  1/10")
    for figure in ("1.5000", "30.00%", "1.2500", "45.68%", "9.00 s + 1.00 s"):
        assert figure in line
    assert "\n" not in line
    assert summary(make_result("base", 0.75, 100.0)) == (
        "base on shapes: validation accuracy 75.00%, test accuracy 74.00%, 100.0 s in all"
    )
