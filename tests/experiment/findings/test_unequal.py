import re

import pytest
import torch

from cifar_tl.experiment.findings.bases import bases_text, compare_bases
from cifar_tl.experiment.findings.comparison import compare, comparison_text
from cifar_tl.experiment.findings.results import epoch_line, summary
from cifar_tl.experiment.findings.unequal import (
    always_words,
    counts_line,
    deciding,
    majority_accuracy,
    never_predicted,
)
from cifar_tl.training import EpochRecord
from tests.experiment.conftest import make_result

Results = dict[str, dict[str, object]]


def unequal_result(stage: str, accuracy: float, mean: float, seconds: float) -> dict[str, object]:
    """62 validation images, 60 of `good` and 2 of `defect`; 100 test images of each."""
    result = make_result(stage, accuracy, seconds)
    figures = {
        "num_classes": 2,
        "classes": [0, 1],
        "class_names": ["defect", "good"],
        "images_validation": 62,
        "images_test": 200,
        "val_confusion": [[0, 2], [0, 60]],
        "test_accuracy": mean,
        "val_balanced_accuracy": mean,
        "val_balanced_interval": [mean - 0.15, mean + 0.15],
        "val_majority": 60 / 62,
        "test_balanced_accuracy": mean,
        "test_balanced_interval": [mean - 0.05, mean + 0.05],
        "test_majority": 0.5,
    }
    return {**result, **figures}


@pytest.fixture
def results() -> Results:
    """The best accuracy says always the same; the best mean over classes is that of finetune."""
    return {
        "transfer": unequal_result("transfer", 0.90, 0.75, 20.0),
        "finetune": unequal_result("finetune", 0.89, 0.95, 30.0),
        "scratch": unequal_result("scratch", 60 / 62, 0.50, 110.0),
    }


def test_the_line_of_a_stage_says_what_the_accuracy_hides(results: Results) -> None:
    assert summary(results["scratch"]) == (
        "scratch on shapes: validation accuracy 96.77% (89% to 99%: 62 images), "
        "mean over classes 50.00% (35% to 65%), always the most frequent class 96.77%, "
        "test accuracy 50.00%, "
        "mean over classes 50.00% (45% to 55%), always the most frequent class 50.00%, "
        "110.0 s in all; never predicted: defect"
    )
    del results["scratch"]["val_balanced_accuracy"]
    assert never_predicted(results["scratch"]) == []


def test_a_class_without_images_is_not_called_never_predicted(results: Results) -> None:
    results["scratch"]["val_confusion"] = [[0, 0], [0, 60]]
    assert never_predicted(results["scratch"]) == []
    results["scratch"]["val_confusion"] = [[0, 2], [1, 59]]
    assert never_predicted(results["scratch"]) == []


def test_lines_of_epochs_have_the_mean_where_classes_are_unequal() -> None:
    values = (1, 1.5, 0.3, 1.25, 0.9677, 9.0, 1.0)
    line = epoch_line(EpochRecord(*values, val_balanced_accuracy=0.5), 10)
    assert "accuracy  30.00%, 9.00 s  validation: " in line
    assert line.endswith("accuracy  96.77%, mean over classes  50.00%, 1.00 s")
    assert "mean" not in epoch_line(EpochRecord(*values), 10)


def test_the_counts_are_in_one_line_however_many_classes_there_are() -> None:
    always = "always saying the most frequent class is right for 97.40% of the validation images; "
    assert counts_line({"defect": 8, "good": 300}, 300 / 308, evenly=True) == (
        "unequal classes: good 300, defect 8 training images; "
        f"{always}training aims at the mean over classes"
    )
    assert counts_line({"a": 8, "b": 23}, 0.974, evenly=True) == (
        f"unequal classes: {always}training aims at the mean over classes"
    )
    line = counts_line({f"kind{n}": n for n in range(1, 31)}, 0.974, evenly=False)
    assert line == (
        "unequal classes: kind30 30, kind29 29, kind28 28, kind27 27, kind26 26, 20 more, "
        "kind5 5, kind4 4, kind3 3, kind2 2, kind1 1 training images; "
        f"{always}training aims at the plain accuracy"
    )


def test_the_mean_over_classes_decides_what_is_better(results: Results) -> None:
    comparison = compare({1.0: [results]})
    text = comparison_text(comparison)
    assert text.isascii()
    assert (
        "transfer+finetune is better than scratch: +45.00 points of validation accuracy, "
        "+45.00 points of test accuracy (mean over classes)."
    ) in text
    assert "| validation |    test | validation, mean over classes | test, mean over cl" in text
    assert re.search(r"\|    96.77 % \| 50.00 % \| +50.00 % \| +50.00 % \|", text)
    assert (
        "Always saying the most frequent class is right for 96.77 % of the validation images, "
        "50.00 % of the test images."
    ) in text
    (size,) = comparison["sizes"]
    pair = size["differences"][2]
    assert pair["val_balanced_accuracy"]["is_clear"] is True
    assert pair["val_accuracy"]["mean"] < 0
    close = {**results, "transfer": {**results["transfer"], "val_balanced_accuracy": 0.85}}
    text = comparison_text(compare({1.0: [close]}))
    assert "62 images show no clear difference" in text


def test_seeds_and_bases_are_compared_by_the_mean_over_classes(results: Results) -> None:
    seeds = [
        {stage: {**result, "seed": seed} for stage, result in results.items()} for seed in (0, 1)
    ]
    comparison = compare({1.0: seeds})
    text = comparison_text(comparison)
    assert "| validation by seed (mean over classes) | transfer | finetune | scratch |" in text
    assert "|   75.00% |   95.00% |  50.00% |" in text
    worse = {**results, "transfer": unequal_result("transfer", 0.95, 0.50, 20.0)}
    found = compare_bases(
        {
            "one": compare({1.0: [results]}),
            "two": compare({1.0: [worse]}),
        }
    )
    text = bases_text(found)
    assert (
        "transfer: one is better than two: +25.00 points of validation accuracy, "
        "+25.00 points of test accuracy (mean over classes)."
    ) in text
    assert "Always saying the most frequent class is right for 96.77 %" in text


def test_an_older_result_among_new_ones_is_compared_by_accuracy(results: Results) -> None:
    names = [key for key in results["transfer"] if "balanced" in key or "majority" in key]
    for name in names:
        del results["transfer"][name]
    text = comparison_text(compare({1.0: [results]}))
    assert "transfer and scratch: -6.77 points of validation accuracy, +25.00 points of" in text
    assert "transfer+finetune and scratch: -7.77 points of validation accuracy" in text
    assert "the plain accuracy decides" in text
    assert re.search(r"\|    90.00 % \| 75.00 % \| +- \| +- \|", text)


def test_one_accuracy_decides_among_all(results: Results) -> None:
    assert deciding(results.values()) == "val_balanced_accuracy"
    older = make_result("base", 0.5, 1.0)
    assert deciding([*results.values(), older]) == "val_accuracy"
    assert deciding([]) == "val_accuracy"
    record = EpochRecord(1, 1.5, 0.3, 1.25, 0.9677, 9.0, 1.0)  # its mean is nan
    assert deciding([vars(record)]) == "val_accuracy"


def test_always_saying_the_most_frequent_class_is_a_plain_fraction(results: Results) -> None:
    labels = torch.tensor([1] * 40 + [0] * 9)
    found = majority_accuracy(labels, torch.tensor([1, 10]))
    assert found == 10 / 11  # and not the float32 next to it, 0.9090909361839294
    assert always_words(results["scratch"]) == (
        0.5,
        "always the most frequent class: 50.0% (plain accuracy 96.8%)",
    )
    assert always_words(make_result("base", 0.5, 1.0)) is None
