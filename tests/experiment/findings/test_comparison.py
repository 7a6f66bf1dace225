import copy
import json
from typing import Any

import pytest

from cifar_tl.experiment.findings.comparison import compare, comparison_text
from tests.experiment.conftest import make_result


@pytest.fixture
def results() -> dict[str, dict[str, Any]]:
    return {
        "base": make_result("base", 0.75, 100.0),
        "transfer": make_result("transfer", 0.80, 20.0),
        "finetune": make_result("finetune", 0.87, 30.0),
        "scratch": make_result("scratch", 0.86, 110.0),
    }


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
    above = (
        "It is 1.00 points above in validation accuracy, no clear difference by 1,200 images, and"
    )
    assert above in text
    assert "| stage    | validation |" in text
    for cell in ("103,818", "16,408", "79.00%", "9.00"):
        assert cell in text
    slow = copy.deepcopy(results)
    slow["transfer"]["seconds_total"] = 120.0
    text = comparison_text(compare(slow))
    assert "costs 6.00 points of validation accuracy and takes 10.0 s longer" in text
    assert "never faster than scratch" in text
    assert "its first layer" not in text
    short = copy.deepcopy(results)
    short["scratch"]["parameters_trainable"] -= 2_432
    assert "scratch keeps its first layer as computed from its images" in comparison_text(
        compare(short)
    )
