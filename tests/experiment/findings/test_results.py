import pytest
import torch

from cifar_tl.experiment.findings.layers import dropout_rate, layers
from cifar_tl.experiment.findings.results import (
    class_lines,
    epoch_line,
    results_text,
    summary,
    training_words,
)
from cifar_tl.freezing import transfer_model
from cifar_tl.network import CifarNet
from cifar_tl.outputs import Outputs
from cifar_tl.training import EpochRecord
from tests.experiment.conftest import make_result

RECORD = EpochRecord(1, 1.5, 0.3, 1.25, 0.45678, 9.0, 1.0)


def test_classes_and_confusions_are_named() -> None:
    confusion = [[0, 6, 3, 1], [0, 0, 4, 0], [0, 0, 0, 0]]
    assert class_lines(confusion, Outputs((1, 2, 3), ("cat", "dog", "owl"), 4)) == [
        "class  images  accuracy",
        "cat        10    60.00%",
        "dog         4   100.00%",
        "owl         0         -",
        "30.0% of cat are taken for dog",
        "10.0% of cat are taken for owl",
    ]
    lines = class_lines([[5, 1]], Outputs((0,), ("cat",), 2))
    assert lines[-1] == "16.7% of cat are taken for output 1"


def test_results_show_layers_epochs_times_and_what_the_model_knows() -> None:
    torch.manual_seed(0)
    model = transfer_model(CifarNet(5))
    outputs = Outputs((5, 6), ("flower", "crescent"), 10)
    text = results_text(make_result("transfer", 0.8, 20.0), [RECORD], layers(model), outputs)
    assert text.isascii()
    assert "Stage transfer on shapes (built-in drawn shapes)" in text
    assert "Conv 5x5 + ReLU  32 x 28 x 28       2,432  no, frozen" in text
    assert "Linear + ReLU    128              102,528  yes" in text
    assert epoch_line(RECORD, 10) in text
    assert "120,226 parameters: 103,818 trained, 16,408 frozen" in text
    assert "Total time 20.0 s" in text
    assert "has 10 outputs, but knows only the 2 classes above" in text
    assert "torch: 2.15.0" in text


@pytest.mark.parametrize(
    ("dropout", "shift", "layer", "words"),
    [
        (0.0, 0, "Dropout 0.0", "while weights move"),
        (0.0, 2, "Dropout 0.0", "with shifts, while weights move"),
        (0.2, 0, "Dropout 0.2", "with dropout 0.2, while weights move"),
        (None, 1, "Dropout 0.42", "with dropout 0.42 and shifts, while weights move"),
    ],
)
def test_results_say_what_the_run_trained_with(
    dropout: float | None, shift: int, layer: str, words: str
) -> None:
    result = make_result("transfer", 0.8, 20.0) | {"dropout": dropout, "shift": shift}
    model = transfer_model(CifarNet(5))
    text = results_text(result, [RECORD], layers(model, dropout), Outputs((5, 6), ("a", "b"), 10))
    assert f" {layer} " in text
    assert text.count("Dropout") == 1
    assert f"figures are those seen in training, {words})" in text
    assert training_words(result, dropout_rate(model, dropout)) == words


def test_lines_hold_the_figures() -> None:
    line = epoch_line(RECORD, 10)
    assert line.startswith("epoch  1/10")
    for figure in ("1.5000", "30.00%", "1.2500", "45.68%, 1.00 s", "9.00 s"):
        assert figure in line
    assert "\n" not in line
    assert summary(make_result("base", 0.75, 100.0)) == (
        "base on shapes: validation accuracy 75.00%, test accuracy 74.00%, 100.0 s in all"
    )
