"""Folders with many pictures of one class and few of another."""

import csv
import dataclasses
import json
from pathlib import Path
from statistics import NormalDist
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from cifar_tl.calibration import fit_temperature, reliability
from cifar_tl.checkpoint import load_model
from cifar_tl.data.classes import SHAPES_CLASS_NAMES
from cifar_tl.data.examples import Data
from cifar_tl.data.shapes import draw_shapes
from cifar_tl.data.source import load_data
from cifar_tl.errors import RunError
from cifar_tl.evaluation import evaluate, extract_features
from cifar_tl.experiment.findings.results import summary
from cifar_tl.experiment.findings.unequal import deciding
from cifar_tl.experiment.run import run_stage
from cifar_tl.recipe import ClassBalance
from tests.experiment.conftest import SMALL, StopError, contents, stop_at

RECIPE = dataclasses.replace(SMALL, epochs=10)


def write_pictures(folder: Path, **counts: int) -> None:
    """Writes so many training images of each class, a quarter more to validate, and 20 to test.

    The images are plain and noisy. Those of the first class are brighter on average, but not all.
    """
    generator = np.random.default_rng(0)
    for (name, count), brightness in zip(counts.items(), (150, 110), strict=True):
        numbers = {"train": count, "val": (count + 3) // 4, "test": 20}
        for part, number in numbers.items():
            (folder / part / name).mkdir(parents=True)
            ranks = (np.arange(number) + 0.5) / number
            for place, rank in enumerate(ranks):
                level = NormalDist(brightness, 20).inv_cdf(rank)
                pixels = generator.normal(level, 5, (32, 32, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{place:03}.png")


@pytest.fixture(scope="module")
def unequal(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """120 training images of `good`, 4 of `defect`."""
    folder = tmp_path_factory.mktemp("data") / "parts"
    write_pictures(folder, defect=4, good=120)
    return load_data(folder)


@pytest.fixture(scope="module")
def both(unequal: Data, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By class balance: the folder and the lines of transfer."""
    found = {}
    for balance in get_args(ClassBalance):
        output_dir = tmp_path_factory.mktemp(balance)
        lines: list[str] = []
        run_stage(
            "transfer",
            unequal,
            RECIPE,
            output_dir=output_dir,
            class_balance=balance,
            log=lines.append,
        )
        found[balance] = (output_dir / "parts" / "transfer", lines)
    return found


def result_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return content


@pytest.mark.parametrize("balance", ["even", "off"])
def test_the_figures_are_those_of_the_model(
    unequal: Data, both: dict[str, Any], balance: str
) -> None:
    folder, _ = both[balance]
    result, model = result_of(folder), load_model(folder / "model.pt")
    assert unequal.validation is not None
    for part, examples in (("val", unequal.validation), ("test", unequal.test)):
        recalls = []
        for label in (0, 1):
            own = examples.labels == label
            recalls.append(evaluate(model, examples.images[own], examples.labels[own]).accuracy)
        assert result[f"{part}_balanced_accuracy"] == pytest.approx(sum(recalls) / 2)
        low, high = result[f"{part}_balanced_interval"]
        assert 0 <= low < result[f"{part}_balanced_accuracy"] < high <= 1
    assert result["val_majority"] == pytest.approx(30 / 31)
    assert result["test_majority"] == 0.5
    assert result.get("class_balance") == ("even" if balance == "even" else None)
    text = (folder / "results.txt").read_text()
    mean, majority = result["val_balanced_accuracy"], result["val_majority"]
    assert f"mean over classes {mean:.2%}" in text
    assert f"always the most frequent class {majority:.2%}" in text
    assert ("Training aimed at the mean over classes" in text) is (balance == "even")
    rows = list(csv.DictReader((folder / "history.csv").read_text().splitlines()))
    assert float(rows[-1]["val_balanced_accuracy"]) == result["val_balanced_accuracy"]


@pytest.mark.parametrize("balance", ["even", "off"])
def test_probabilities_are_for_equal_classes_if_training_aimed_at_them(
    unequal: Data, both: dict[str, Any], balance: str
) -> None:
    folder, _ = both[balance]
    result, model = result_of(folder), load_model(folder / "model.pt")
    assert unequal.validation is not None
    logits, labels = extract_features(model, unequal.validation.images), unequal.validation.labels
    expected, other = (fit_temperature(logits, labels, by_class=each) for each in (True, False))
    assert abs(expected - other) > 0.02
    if balance == "off":
        expected, other = other, expected
    assert result["temperature"] == model.temperature == pytest.approx(expected, abs=0.002)
    found = reliability(logits, labels, model.temperature, by_class=balance == "even")
    assert result["val_calibration_error"] == pytest.approx(found.error, abs=1e-3)


def test_300_of_one_class_and_8_of_another(tmp_path: Path) -> None:
    """Noisy discs and clovers. Always saying `good` is right for 97 % of the images."""
    images, labels, _, _ = draw_shapes(4000, 0)
    for name, shape, count in (("good", "disc", 300), ("defect", "clover", 8)):
        of_class = images[labels == SHAPES_CLASS_NAMES.index(shape)].transpose(0, 2, 3, 1)
        for part, chosen in (("train", of_class[:count]), ("test", of_class[300:400])):
            (tmp_path / "parts" / part / name).mkdir(parents=True)
            for number, pixels in enumerate(chosen):
                Image.fromarray(pixels).save(tmp_path / "parts" / part / name / f"{number:03}.png")
    data = load_data(tmp_path / "parts")
    of_defect = data.test.labels == 0
    said, found = {}, {}
    for balance in get_args(ClassBalance):
        lines: list[str] = []
        place = tmp_path / balance
        result = run_stage(
            "transfer", data, RECIPE, output_dir=place, class_balance=balance, log=lines.append
        )
        model = load_model(place / "parts" / "transfer" / "model.pt")
        defects = evaluate(model, data.test.images[of_defect], data.test.labels[of_defect])
        found[balance] = (defects.accuracy, result["test_balanced_accuracy"] or 0)
        said[balance] = summary(result)
        assert "unequal classes: good 240, defect 6 training images" in lines[1]
        assert "validation accuracy" in said[balance]
        assert "always the most frequent class 96.77%" in said[balance]
        assert f"mean over classes {result['val_balanced_accuracy']:.2%}" in said[balance]
    assert found["off"] == (0.0, 0.5)
    assert "validation accuracy 96.77%" in said["off"]
    assert said["off"].endswith("never predicted: defect")
    assert found["even"][1] > 0.58
    assert found["even"][0] > 0.2
    assert "never predicted" not in said["even"]


def test_a_line_has_the_counts_from_three_times_on(both: dict[str, Any], tmp_path: Path) -> None:
    counts = (
        "transfer: unequal classes: good 120, defect 4 training images; always saying the most "
        "frequent class is right for 96.77% of the validation images; training aims at the "
    )
    for balance, how in (("even", "mean over classes"), ("off", "plain accuracy")):
        _, lines = both[balance]
        assert lines.count(counts + how) == 1
    for defects, said in ((10, True), (11, False)):
        write_pictures(tmp_path / f"of-{defects}", defect=defects, good=30)
        data = load_data(tmp_path / f"of-{defects}")
        seen: list[str] = []

        def note(line: str, seen: list[str] = seen) -> None:
            seen.append(line)
            stop_at("epoch  1/")(line)

        with pytest.raises(StopError):
            run_stage("transfer", data, RECIPE, output_dir=tmp_path, log=note)
        assert any("unequal classes: good 30" in line for line in seen) is said
        assert any("unequal classes: " in line for line in seen)


def test_equal_classes_have_the_files_of_before(tmp_path: Path) -> None:
    write_pictures(tmp_path / "equal", defect=20, good=30)  # exactly 1.5 times as many
    equal = load_data(tmp_path / "equal")
    recipe = dataclasses.replace(RECIPE, epochs=2)
    files = {}
    for balance in get_args(ClassBalance):
        output_dir = tmp_path / balance
        result = run_stage(
            "transfer",
            equal,
            recipe,
            output_dir=output_dir,
            class_balance=balance,
        )
        words = ("balance", "majority")
        assert not [key for key in result if any(word in key for word in words)]
        files[balance] = contents(output_dir / "equal" / "transfer")
        assert b"balanced" not in files[balance]["history.csv"]
        assert b"mean over classes" not in files[balance]["results.txt"]
    for name in ("model.pt", "last.pt"):
        assert files["even"][name] == files["off"][name]


def test_a_run_with_another_balance_is_refused_and_off_goes_on(
    unequal: Data, tmp_path: Path
) -> None:
    """A run of before knows nothing of it, as one with "off"."""
    arguments: dict[str, Any] = {"output_dir": tmp_path}
    recipe = dataclasses.replace(RECIPE, epochs=2)
    with pytest.raises(StopError):
        run_stage(
            "transfer", unequal, recipe, class_balance="off", log=stop_at("epoch 1/2"), **arguments
        )
    with pytest.raises(RunError, match=r"settings \(class_balance off there, even now\)"):
        run_stage("transfer", unequal, recipe, **arguments)
    lines: list[str] = []
    run_stage("transfer", unequal, recipe, class_balance="off", log=lines.append, **arguments)
    assert "going on after epoch 1" in lines[0]


def test_an_even_run_goes_on_to_the_same_bytes(unequal: Data, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, epochs=2)
    run_stage("transfer", unequal, recipe, output_dir=tmp_path / "whole")
    with pytest.raises(StopError):
        run_stage(
            "transfer", unequal, recipe, output_dir=tmp_path / "begun", log=stop_at("epoch 1/2")
        )
    run_stage("transfer", unequal, recipe, output_dir=tmp_path / "begun")
    whole, begun = (contents(tmp_path / name / "parts/transfer") for name in ("whole", "begun"))
    for name in ("model.pt", "last.pt"):
        assert whole[name] == begun[name]


@pytest.mark.parametrize("balance", get_args(ClassBalance))
def test_all_images_decide_about_a_fraction(
    unequal: Data, both: dict[str, Any], tmp_path: Path, balance: ClassBalance
) -> None:
    """Else a picture of several fractions would mix two figures in one line."""
    result = run_stage(
        "scratch",
        unequal,
        dataclasses.replace(RECIPE, epochs=1),
        output_dir=tmp_path,
        train_fraction=0.01,  # one image of each class
        class_balance=balance,
    )
    assert result["val_majority"] == result_of(both["even"][0])["val_majority"]
    rows = list(csv.DictReader(next(tmp_path.rglob("history.csv")).read_text().splitlines()))
    assert float(rows[-1]["val_balanced_accuracy"]) == result["val_balanced_accuracy"]
    assert deciding([result, result_of(both["even"][0])]) == "val_balanced_accuracy"


def test_a_fraction_of_equal_classes_is_not_called_unequal(tmp_path: Path) -> None:
    write_pictures(tmp_path / "equal", defect=14, good=16)
    result = run_stage(
        "scratch",
        load_data(tmp_path / "equal"),
        dataclasses.replace(RECIPE, epochs=1),
        output_dir=tmp_path,
        train_fraction=0.1,  # 1 and 2 images
    )
    assert result["images_train"] == 3
    assert not [key for key in result if "balance" in key]


def test_another_balance_is_refused(unequal: Data, tmp_path: Path) -> None:
    balance: Any = "on"
    with pytest.raises(ValueError, match="class_balance must be off or even, not 'on'"):
        run_stage("transfer", unequal, RECIPE, output_dir=tmp_path, class_balance=balance)
