import pytest

from cifar_tl.experiment.findings.bases import bases_text, compare_bases
from cifar_tl.experiment.findings.comparison import compare, comparison_text
from cifar_tl.experiment.findings.results import epoch_line, summary
from cifar_tl.experiment.findings.unequal import counts_line, deciding_accuracy, never_predicted
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
    assert "accuracy  96.77%, mean over classes  50.00%  9.00 s" in line
    assert "mean" not in epoch_line(EpochRecord(*values), 10)


def test_the_counts_are_in_one_line_however_many_classes_there_are() -> None:
    assert counts_line({"defect": 8, "good": 300}, evenly=True) == (
        "unequal classes: good 300, defect 8 training images; "
        "training aims at the mean over classes"
    )
    assert counts_line({"a": 8, "b": 23}, evenly=True) is None
    line = counts_line({f"kind{n}": n for n in range(1, 31)}, evenly=False)
    assert line == (
        "unequal classes: kind30 30, kind29 29, kind28 28, kind27 27, kind26 26, 20 more, "
        "kind5 5, kind4 4, kind3 3, kind2 2, kind1 1 training images; "
        "training aims at the plain accuracy"
    )


def test_the_mean_over_classes_decides_what_is_better(results: Results) -> None:
    comparison = compare({1.0: [results]})
    text = comparison_text(comparison)
    assert text.isascii()
    assert (
        "transfer+finetune is better than scratch: +45.00 points of validation accuracy, "
        "+45.00 points of test accuracy (mean over classes)."
    ) in text
    assert "| stage    | validation |    test | validation by class | test by class |" in text
    assert "|    96.77 % | 50.00 % |             50.00 % |       50.00 % |" in text
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
    assert "| validation by seed, by class | transfer | finetune | scratch |" in text
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
    assert "|    90.00 % | 75.00 % |                   - |             - |" in text


def test_the_best_model_is_that_of_the_best_mean_over_classes(results: Results) -> None:
    assert max(results, key=lambda stage: deciding_accuracy(results[stage])) == "finetune"
    equal = {stage: make_result(stage, accuracy, 1.0) for stage, accuracy in (("a", 0.5), ("b", 1))}
    assert max(equal, key=lambda stage: deciding_accuracy(equal[stage])) == "b"
