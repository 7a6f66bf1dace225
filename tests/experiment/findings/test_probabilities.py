import math

import pytest
import torch

from cifar_tl.experiment.findings.probabilities import (
    probability_figures,
    probability_lines,
    unsure_points,
)

TOPS = torch.linspace(0.505, 0.995, 40, dtype=torch.float64)
LOGITS = torch.stack([TOPS.log(), (1 - TOPS).log()], 1)
LABELS = (torch.arange(40) % 4 == 0).long()  # every fourth is wrong, the first one first
LABELS[20:] = 0  # but those of the upper half are right


def test_a_probability_leaves_out_a_tenth_and_a_quarter() -> None:
    tenth, quarter = unsure_points(LOGITS, LABELS, 1.0)
    assert (tenth["share"], quarter["share"]) == pytest.approx((0.1, 0.25))
    assert tenth["probability"] == math.floor(1000 * float(TOPS[4])) / 1000
    assert float(TOPS[9]) < quarter["probability"] <= float(TOPS[10])
    assert tenth["accuracy"] == pytest.approx(32 / 36)  # 4, 8, 12 and 16 are wrong
    assert quarter["accuracy"] == pytest.approx(28 / 30)
    warmer, _ = unsure_points(LOGITS, LABELS, 2.0)
    assert warmer["probability"] < tenth["probability"]
    assert warmer["accuracy"] == tenth["accuracy"]


def test_equal_probabilities_leave_out_no_more_than_was_said() -> None:
    assert unsure_points(torch.zeros(8, 2), torch.zeros(8, dtype=torch.int64), 1.0) == []
    lines = probability_lines(
        probability_figures(
            {"val": (torch.zeros(8, 2), LABELS[:8]), "test": None}, 1.0, by_class=False
        )
    )
    assert lines[1] == "Unsure: of the validation images none is less sure than others"


@pytest.mark.parametrize("scale", [1e-3, 1.0, 40.0])
def test_very_sure_and_very_unsure_models_are_divided_as_well(scale: float) -> None:
    logits = torch.linspace(0.1, 1, 40)[:, None] * torch.eye(200)[:1] * scale
    tenth, quarter = unsure_points(logits, torch.zeros(40, dtype=torch.int64), 1.0)
    assert 0.05 < tenth["share"] <= 0.1 < quarter["share"] <= 0.25


def test_the_mean_over_classes_counts_where_training_aimed_at_it() -> None:
    labels = torch.zeros(40, dtype=torch.int64)
    labels[-4:] = 1  # all wrong
    for by_class, accuracy in ((False, 26 / 30), (True, 0.5)):
        point = unsure_points(LOGITS, labels, 1.0, by_class=by_class)[1]
        assert point["accuracy"] == pytest.approx(accuracy)


def test_lines_say_figures_in_words() -> None:
    judged = {"val": (LOGITS, LABELS), "test": None}
    figures = probability_figures(judged, 1.25, by_class=False)
    assert figures["test_calibration_error"] is None
    lines = probability_lines({**figures, "images_validation": 40})
    assert "temperature 1.25" in lines[0]
    assert f"{figures['val_calibration_error_before']:.1%} and " in lines[0]
    assert f" {figures['val_calibration_error']:.1%} (by chance" in lines[0]
    assert "test" not in lines[0]
    assert "10% are below 0.5" in lines[1]
    assert "of the others 88.9% are right (75% to 96%)" in lines[1]
    assert probability_lines({"images_validation": 40}) == []
