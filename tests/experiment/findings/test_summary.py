import json
from typing import Any

import pytest

from cifar_tl.experiment.findings.comparison import compare
from cifar_tl.experiment.findings.summary import summarize, summary_text
from tests.experiment.conftest import make_result


def comparison(seed: int, scratch: float, *, tested: bool = True) -> dict[str, Any]:
    results = {
        "base": make_result("base", 0.75 + seed / 100, 100.0),
        "transfer": make_result("transfer", 0.80 + seed / 100, 20.0 + seed),
        "finetune": make_result("finetune", 0.87, 30.0),
        "scratch": make_result("scratch", scratch + seed / 100, 110.0),
    }
    for result in results.values():
        result["seed"] = seed
        if not tested:
            result["test_accuracy"] = None
    return compare(results)


def test_means_spreads_and_every_value() -> None:
    summary = summarize({0.1: [comparison(s, 0.7) for s in range(3)]})
    json.dumps(summary)
    assert summary["seeds"] == [0, 1, 2]
    (size,) = summary["sizes"]
    transfer = size["ways"]["transfer"]
    assert transfer["val_accuracy"]["values"] == pytest.approx([0.80, 0.81, 0.82])
    assert transfer["val_accuracy"]["mean"] == pytest.approx(0.81)
    assert transfer["val_accuracy"]["deviation"] == pytest.approx(0.01)
    assert transfer["seconds"]["mean"] == 21.0
    pairs = [(found["way"], found["other"]) for found in size["differences"]]
    assert pairs == [
        ("transfer", "transfer+finetune"),
        ("transfer", "scratch"),
        ("transfer+finetune", "scratch"),
    ]
    assert size["differences"][1]["val_accuracy"]["mean"] == pytest.approx(0.1)


def test_better_is_said_only_where_it_holds() -> None:
    text = summary_text(summarize({1.0: [comparison(s, 0.9) for s in range(3)]}))
    assert text.isascii()
    assert "transfer is worse than scratch: -10.00 +- 0.00 points of validation accuracy" in text
    assert "transfer+finetune is worse than scratch: -4.00 +- 0.58 points" in text
    assert "| transfer          | 81.00 +- 1.00 % | 80.00 +- 1.00 % |  21.0 +- 1.0 |" in text
    assert "|                  2 | 77.00% |   82.00% |            87.00% |  92.00% |" in text
    unclear = summary_text(summarize({1.0: [comparison(s, 0.86) for s in range(3)]}))
    assert "transfer+finetune and scratch: +0.00 +- 0.58 points of validation accuracy" in unclear
    assert "no clear difference." in unclear
    one = summary_text(summarize({f: [comparison(0, 0.9)] for f in (0.1, 1.0)}))
    assert "better" not in one
    assert "worse" not in one
    assert "transfer compared to scratch: -10.00 points" in one


def test_without_test_images_nothing_is_said_of_them() -> None:
    comparisons = [comparison(s, 0.9, tested=False) for s in range(2)]
    text = summary_text(summarize({1.0: comparisons}))
    assert "test accuracy" not in text
    assert "|    - |" in text
