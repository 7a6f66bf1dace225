import copy
import dataclasses
import json
import statistics
from typing import Any

import pytest

from cifar_tl.experiment.findings.bases import bases_text, compare_bases
from cifar_tl.experiment.findings.comparison import compare, comparison_text
from cifar_tl.experiment.stages import STAGES
from tests.experiment.conftest import make_result

Results = dict[str, dict[str, Any]]


@pytest.fixture
def results() -> Results:
    return {
        "base": make_result("base", 0.75, 100.0),
        "transfer": make_result("transfer", 0.80, 20.0),
        "finetune": make_result("finetune", 0.87, 30.0),
        "scratch": make_result("scratch", 0.86, 110.0),
    }


def of_seed(seed: int, scratch: float, *, tested: bool = True) -> Results:
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
    return results


def keys(value: Any) -> Any:
    """The shape of a comparison: its keys, and those of the first entry of each list."""
    if isinstance(value, dict):
        return {key: keys(entry) for key, entry in value.items()}
    return [keys(value[0])] if isinstance(value, list) and value else None


def test_one_run_and_several_have_one_shape(results: Results) -> None:
    one = compare({1.0: [results]})
    several = compare({part: [of_seed(s, 0.7) for s in range(3)] for part in (0.1, 1.0)})
    assert keys(one) == keys(several)
    assert one["version"] == 2
    assert [len(size["seeds"]) for size in one["sizes"]] == [1]
    assert [len(size["seeds"]) for size in several["sizes"]] == [3, 3]
    json.dumps([one, several])


def test_comparison_counts_every_cost(results: Results) -> None:
    (size,) = compare({1.0: [results]})["sizes"]
    transfer = size["ways"]["transfer"]
    assert transfer["seconds"]["mean"] == 20.0
    assert transfer["seconds_saved"] == 90.0
    # 100 + 1 * 20 > 1 * 110, but 100 + 2 * 20 < 2 * 110
    assert transfer["pays_from"] == 2
    both = size["ways"]["transfer+finetune"]
    assert both["seconds"]["mean"] == 48.0  # reading, 2 s, is in each of both
    # 100 + 1 * 48 > 110, and 100 + 2 * 48 < 220
    assert both["pays_from"] == 2
    assert transfer["seconds_base"] == 100.0
    (seed,) = size["seeds"]
    assert seed["stages"]["transfer"]["parameters_frozen"] == 16_408
    assert seed["stages"]["base"]["seconds_per_epoch"] == pytest.approx(9.0)
    differences = {(found["way"], found["other"]): found for found in size["differences"]}
    found = differences["transfer", "scratch"]["val_accuracy"]
    assert (found["mean"], found["is_clear"]) == (pytest.approx(-0.06), True)


@pytest.mark.parametrize(("base", "pays_from"), [(89.0, 1), (90.0, 2), (179.0, 2), (180.0, 3)])
def test_transfer_pays_from_the_first_number_that_is_really_cheaper(
    results: Results, base: float, pays_from: int
) -> None:
    results["base"]["seconds_total"] = base
    (size,) = compare({1.0: [results]})["sizes"]
    assert size["ways"]["transfer"]["pays_from"] == pays_from
    n = pays_from
    assert base + n * 20 < n * 110
    assert base + (n - 1) * 20 >= (n - 1) * 110


def test_each_way_counts_its_own_base_and_the_control_may_be_any_stage(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {
        "wide": dataclasses.replace(STAGES["base"]),
        "narrow": dataclasses.replace(STAGES["transfer"], parent="wide"),
        "scratch": dataclasses.replace(STAGES["scratch"], control=False),
        "finetune": dataclasses.replace(STAGES["finetune"], control=True),
    }
    for name, row in rows.items():
        monkeypatch.setitem(STAGES, name, row)
    results |= {
        "wide": make_result("wide", 0.75, 500.0),
        "narrow": make_result("transfer", 0.81, 21.0),
    }
    comparison = compare({1.0: [results]})
    (size,) = comparison["sizes"]
    assert comparison["control"] == list(size["ways"])[-1] == "transfer+finetune"
    assert {way: found["seconds_base"] for way, found in size["ways"].items()} == {
        "transfer": 100.0,
        "narrow": 500.0,
        "scratch": None,
        "transfer+finetune": 100.0,
    }
    assert "base, wide: the base classes. All others: the new classes." in comparison_text(
        comparison
    )


def test_comparison_says_plainly_what_transfer_costs(results: Results) -> None:
    text = comparison_text(compare({1.0: [results]}))
    assert text.isascii()
    worse = "transfer is worse than scratch: -6.00 points of validation accuracy, -6.00 points of "
    assert f"{worse}test accuracy." in text
    assert "It takes 20.0 s, 90.0 s less than scratch." in text
    assert "base model's 100.0 s, it is faster than scratch once 2 transfers share" in text
    above = "transfer+finetune and scratch: +1.00 points of validation accuracy, +1.00 "
    assert f"{above}points of test accuracy: 1,200 images show no clear difference." in text
    assert "| stage    | validation |" in text
    for cell in ("103,818", "16,408", "79.00 %", "9.00"):
        assert cell in text
    slow = copy.deepcopy(results)
    slow["transfer"]["seconds_total"] = 120.0
    text = comparison_text(compare({1.0: [slow]}))
    assert "It takes 120.0 s, 10.0 s more than scratch" in text
    assert "never faster than scratch" in text
    assert "its first layer" not in text
    short = copy.deepcopy(results)
    short["scratch"]["parameters_trainable"] -= 2_432
    text = comparison_text(compare({1.0: [short]}))
    assert "scratch keeps its first layer as computed from its images" in text


def test_epochs_that_something_disturbed_count_as_the_median_and_are_named(
    results: Results,
) -> None:
    scratch = results["scratch"]  # nine epochs of 9 s, and one of 18: the first may be slower
    ends = {"seconds_epoch_fastest": 9.0, "seconds_epoch_median": 9.0}
    calm = {**scratch, **ends, "seconds_epoch_slowest": 18.0}
    text = comparison_text(compare({1.0: [{**results, "scratch": calm}]}))
    assert "20.0 s, 81.0 s less than scratch" in text  # 110 - 99 + 10 * 9
    assert "doubtful" not in text
    busy = calm | {"seconds_epoch_slowest": 62.0, "seconds_total": 163.0, "seconds_train": 141.0}
    comparison = compare({1.0: [{**results, "scratch": busy}]})
    assert comparison["sizes"][0]["seeds"][0]["disturbed"] == {"scratch": [9.0, 62.0]}
    text = comparison_text(comparison)
    assert "20.0 s, 81.0 s less than scratch" in text
    assert text.count("doubtful: something disturbed the epochs (scratch 9.0 to 62.0 s)") == 2


@pytest.mark.parametrize("slow", [1, 5, 9])
def test_however_many_epochs_something_disturbed_the_stage_is_named(
    results: Results, slow: int
) -> None:
    epochs = [3.0] * (10 - slow) + [62.0] * slow
    results["scratch"] |= {
        "seconds_epoch_fastest": 3.0,
        "seconds_epoch_median": statistics.median(epochs),
        "seconds_epoch_slowest": 62.0,
        "seconds_train": sum(epochs),
        "seconds_validation": 0.0,
        "seconds_total": sum(epochs) + 20.0,
    }
    (seed,) = compare({1.0: [results]})["sizes"][0]["seeds"]
    assert seed["disturbed"] == {"scratch": [3.0, 62.0]}


def test_a_base_that_something_disturbed_counts_as_the_median(results: Results) -> None:
    results["base"] |= {  # nine epochs of 9 s, and one of 380
        "seconds_epoch_fastest": 9.0,
        "seconds_epoch_median": 9.0,
        "seconds_epoch_slowest": 380.0,
        "seconds_train": 461.0,
        "seconds_validation": 0.0,
        "seconds_total": 471.0,
    }
    comparison = compare({1.0: [results]})
    transfer = comparison["sizes"][0]["ways"]["transfer"]
    assert (transfer["seconds_base"], transfer["pays_from"]) == (100.0, 2)
    assert "doubtful: something disturbed the epochs (base 9.0 to 380.0 s)" in comparison_text(
        comparison
    )


def test_of_several_seeds_the_fastest_and_the_slowest_epoch_are_named() -> None:
    seeds = [of_seed(seed, 0.9) for seed in range(2)]
    for seed, results in enumerate(seeds):
        ends = {"seconds_epoch_fastest": 3.0 + seed, "seconds_epoch_slowest": 20.0 + seed}
        results["scratch"] |= {**ends, "seconds_epoch_median": 9.0}
    comparison = compare({1.0: seeds})
    assert "(scratch 3.0 to 21.0 s)" in comparison_text(comparison)
    text = bases_text(compare_bases({"one": comparison, "two": compare({1.0: seeds})}))
    assert "The seconds of one are doubtful: something disturbed the epochs (scratch 3" in text
    assert "Each epoch counts as the median of its stage." in text


def test_means_spreads_and_every_value() -> None:
    comparison = compare({0.1: [of_seed(s, 0.7) for s in range(3)]})
    (size,) = comparison["sizes"]
    assert [seed["seed"] for seed in size["seeds"]] == [0, 1, 2]
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
    text = comparison_text(compare({1.0: [of_seed(s, 0.9) for s in range(3)]}))
    assert text.isascii()
    assert "transfer is worse than scratch: -10.00 +- 0.00 points of validation" in text
    assert "transfer+finetune is worse than scratch: -4.00 +- 0.58 points" in text
    assert "| transfer | 81.00 +- 1.00 % | 80.00 +- 1.00 % |" in text
    assert " 21.0 +- 1.0 |" in text
    assert "|                  2 | 77.00% |   82.00% |   87.00% |  92.00% |" in text
    unclear = comparison_text(compare({1.0: [of_seed(s, 0.86) for s in range(3)]}))
    assert "transfer+finetune and scratch: +0.00 +- 0.58 points of validation" in unclear
    assert "3 seeds on 1,200 images show no clear difference." in unclear


def test_without_test_images_nothing_is_said_of_them() -> None:
    text = comparison_text(compare({1.0: [of_seed(s, 0.9, tested=False) for s in range(2)]}))
    assert "test accuracy" not in text
    assert "|    - |" in text
