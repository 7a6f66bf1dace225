import csv
import dataclasses
import importlib.metadata
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from cifar_tl.calibration import fit_temperature, reliability
from cifar_tl.checkpoint import load_checkpoint, load_model
from cifar_tl.data.classes import NEW_CLASSES
from cifar_tl.data.examples import Data, channel_statistics, select_classes, split_validation
from cifar_tl.data.source import load_data
from cifar_tl.data.views import make_views
from cifar_tl.errors import RunError, RunWarning, TrainingError
from cifar_tl.evaluation import evaluate, extract_features
from cifar_tl.experiment.findings.comparison import compare, comparison_text
from cifar_tl.experiment.findings.report import report_text
from cifar_tl.experiment.run import run_stage
from cifar_tl.experiment.stages import EVERYTHING, HEAD, STAGES, Stage
from cifar_tl.first_layer import separate_first_layer
from cifar_tl.freezing import transfer_model
from cifar_tl.network import CifarNet
from cifar_tl.recipe import ORIGINAL, TUNED, Precision, Recipe
from cifar_tl.training import derive_seed, fit, seeded
from tests.conftest import noted_precisions
from tests.experiment.conftest import (
    SMALL,
    StopError,
    contents,
    copy_run,
    damage_checkpoint,
    stop_at,
)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [ORIGINAL, TUNED], ids=lambda recipe: recipe.name)
def test_shapes_show_what_real_images_show(recipe: Recipe, tmp_path: Path) -> None:
    """With wide margins around the figures of docs/data.md."""
    shapes = load_data("shapes")
    results = {stage: run_stage(stage, shapes, recipe, output_dir=tmp_path) for stage in STAGES}
    accuracies = {stage: result["val_accuracy"] for stage, result in results.items()}
    assert 0.65 < accuracies["base"] < 0.92
    assert accuracies["transfer"] < accuracies["scratch"] - 0.01
    assert abs(accuracies["finetune"] - accuracies["scratch"]) < 0.05
    assert results["transfer"]["seconds_total"] < 0.3 * results["scratch"]["seconds_total"]
    few = {
        stage: run_stage(stage, shapes, recipe, output_dir=tmp_path, train_fraction=0.02)
        for stage in ("transfer", "scratch")
    }
    assert few["transfer"]["val_accuracy"] > few["scratch"]["val_accuracy"] + 0.1


def test_a_stage_leaves_the_promised_files(finished: Path) -> None:
    for stage in STAGES:
        assert set(contents(finished / stage)) == {
            *("model.pt", "last.pt", "history.csv", "result.json", "results.txt")
        }


@pytest.mark.parametrize(
    ("stage", "epochs", "total", "trainable", "classes"),
    [
        ("base", 2, 119_581, 119_581, [0, 1, 2, 3, 4]),
        ("transfer", 2, 120_226, 103_818, [5, 6, 7, 8, 9]),
        ("finetune", 2, 120_226, 120_226, [5, 6, 7, 8, 9]),
        ("scratch", 2, 120_226, 120_226, [5, 6, 7, 8, 9]),
    ],
)
def test_result_and_history_hold_the_promised_figures(
    finished: Path, stage: str, epochs: int, total: int, trainable: int, classes: list[int]
) -> None:
    result = json.loads((finished / stage / "result.json").read_text())
    for key, value in {
        "stage": stage,
        "data": "small.npz",
        "recipe": "tuned",
        "epochs": epochs,
        "seed": 0,
        "classes": classes,
        "parameters_total": total,
        "parameters_trainable": trainable,
    }.items():
        assert result[key] == value, key
    with (finished / stage / "history.csv").open() as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert [row["epoch"] for row in rows] == list(range(1, epochs + 1))
    assert rows[-1]["val_accuracy"] == result["val_accuracy"]
    assert 0 <= result["test_accuracy"] <= 1
    parts = [result[f"seconds_{part}"] for part in ("train", "validation", "features")]
    assert parts[0] == pytest.approx(sum(row["seconds_train"] for row in rows))
    assert result["seconds_total"] > sum(parts)
    assert (result["seconds_features"] > 0) is (stage == "transfer")
    assert result["environment"]["torch"] == importlib.metadata.version("torch")
    assert result["environment"]["threads"] == torch.get_num_threads()
    correct = [row[label] for row, label in zip(result["val_confusion"], classes, strict=True)]
    assert sum(map(sum, result["val_confusion"])) == result["images_validation"]
    sizes = map(sum, result["val_confusion"])
    accuracies = [count / size for count, size in zip(correct, sizes, strict=True)]
    assert result["val_class_accuracies"] == accuracies
    name, _, share = result["val_most_confused"][0]
    number = result["class_names"].index(name)
    row = result["val_confusion"][number]
    assert share == max(row[: classes[number]] + row[classes[number] + 1 :]) / sum(row)
    assert sum(correct) / result["images_validation"] == pytest.approx(result["val_accuracy"])
    text = (finished / stage / "results.txt").read_text()
    assert f"Stage {stage} on small.npz" in text
    assert f"{total:,} parameters: {trainable:,} trained" in text
    assert text.count("validation: loss") == epochs


@pytest.mark.parametrize("stage", STAGES)
def test_probabilities_are_calibrated_on_validation_images(
    finished: Path, small_data: Data, stage: str
) -> None:
    result = json.loads((finished / stage / "result.json").read_text())
    model = load_model(finished / stage / "model.pt")
    columns = list(model.class_names)  # of 10 outputs, 5 are known to transfer
    _, validation = small_data.train_and_validation(columns)
    for part, images in (("val", validation), ("test", select_classes(small_data.test, columns))):
        logits = extract_features(model, images.images)[:, columns]
        labels = images.labels - columns[0]
        if part == "val":
            assert result["temperature"] == model.temperature == fit_temperature(logits, labels)
        after = reliability(logits, labels, model.temperature)
        before = reliability(logits, labels)
        for ending, value in (("", after.error), ("_before", before.error)):
            assert result[f"{part}_calibration_error{ending}"] == pytest.approx(value, abs=1e-4)
        chance = result[f"{part}_calibration_error_by_chance"]
        assert chance == pytest.approx(after.chance, abs=1e-4)
    assert len(result["val_unsure"]) == 2
    text = (finished / stage / "results.txt").read_text()
    assert f"Probabilities: temperature {model.temperature:g}; calibration error" in text
    # What goes on is the same as before: a run that is not finished knows no temperature.
    assert "temperature" not in load_checkpoint(finished / stage / "last.pt")


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_precision_reaches_every_forward_pass_of_a_stage(
    tiny_npz: Path, tmp_path: Path, precision: Precision
) -> None:
    recipe = dataclasses.replace(SMALL, epochs=1, precision=precision, shift=0)
    with noted_precisions() as found:
        for stage in ("base", "transfer"):
            run_stage(stage, load_data(tiny_npz), recipe, output_dir=tmp_path)
    assert found == {{"float32": torch.float32, "bf16": torch.bfloat16}[precision]}


def test_a_stage_shifts_images_and_drops_features_at_the_recipes_rate(
    small_data: Data, tmp_path: Path
) -> None:
    """And the model keeps its documented dropout."""
    rates: list[float] = []

    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if isinstance(module, nn.Dropout) and module.training:
            rates.append(round(float((output[inputs[0] != 0] == 0).float().mean()), 1))

    recipe = dataclasses.replace(SMALL, epochs=1, dropout=0.0, transfer_dropout=0.9, batch_size=80)
    results = {}
    handle = register_module_forward_hook(note)
    try:
        for stage in ("base", "transfer"):
            rates.clear()
            results[stage] = run_stage(stage, small_data, recipe, output_dir=tmp_path)
            assert set(rates) == ({0.0} if stage == "base" else {0.9})
    finally:
        handle.remove()
    assert [result["shift"] for result in results.values()] == [2, 2]
    plain = dataclasses.replace(recipe, shift=0)
    unshifted = run_stage("base", small_data, plain, output_dir=tmp_path / "plain")
    assert unshifted["val_loss"] != results["base"]["val_loss"]
    for stage in ("base", "transfer"):
        assert "dropout" not in load_checkpoint(tmp_path / "small.npz" / stage / "model.pt")


def test_accuracies_are_those_of_the_saved_model(finished: Path, small_data: Data) -> None:
    for stage in ("transfer", "finetune", "scratch"):
        model = load_model(finished / stage / "model.pt")
        result = json.loads((finished / stage / "result.json").read_text())
        _, validation = split_validation(select_classes(small_data.train, NEW_CLASSES))
        test = select_classes(small_data.test, NEW_CLASSES)
        for part, images in (("test", test), ("val", validation)):
            found = evaluate(model, *images)
            assert found.loss == pytest.approx(result[f"{part}_loss"], rel=1e-4)
            # Of features, computed apart: an image with two equal logits may be decided otherwise.
            one_image = 1.5 / len(images.labels)
            assert found.accuracy == pytest.approx(result[f"{part}_accuracy"], abs=one_image)


def test_frozen_layers_are_the_base_models_bit_for_bit_and_the_rest_moved(finished: Path) -> None:
    base, transfer, finetune, scratch = (
        load_model(finished / stage / "model.pt").state_dict() for stage in STAGES
    )
    for key, value in base.items():
        if not key.startswith("classifier."):
            assert torch.equal(value, transfer[key]), key
        if key.startswith("features."):
            assert not torch.equal(finetune[key], transfer[key]), key
            assert not torch.equal(scratch[key], transfer[key]), key
    # The first epochs of a head that never moved would leave its biases at zero.
    assert all(transfer[f"classifier.linear{n}.bias"].any() for n in (1, 2))


def test_preprocessing_belongs_to_the_model(finished: Path, small_data: Data) -> None:
    models = {stage: load_model(finished / stage / "model.pt") for stage in STAGES}
    for stage in ("transfer", "finetune"):
        assert torch.equal(models[stage].mean, models["base"].mean)
        assert torch.equal(models[stage].std, models["base"].std)
    train, _ = split_validation(select_classes(small_data.train, NEW_CLASSES))
    mean, _ = channel_statistics(train.images)
    assert torch.equal(models["scratch"].mean, mean)
    assert not torch.equal(models["base"].mean, mean)
    inputs = models["scratch"].preprocess(train.images)
    torch.testing.assert_close(inputs.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(inputs.std((0, 2, 3)), torch.ones(3), atol=1e-4, rtol=0)


def test_original_recipe_divides_by_255_and_nothing_more(small_data: Data, tmp_path: Path) -> None:
    recipe = dataclasses.replace(ORIGINAL, epochs=1)
    run_stage("base", small_data, recipe, output_dir=tmp_path)
    model = load_model(tmp_path / "small.npz" / "base" / "model.pt")
    assert not model.mean.any()
    assert (model.std == 1).all()


def test_first_layer_starts_with_the_components_of_its_own_images(
    small_data: Data, tmp_path: Path
) -> None:
    recipe = dataclasses.replace(SMALL, epochs=1, lr=1e-12)  # the weights stay where they start
    train, _ = split_validation(select_classes(small_data.train, NEW_CLASSES))
    for first_layer in ("whitened", "random"):
        recipe = dataclasses.replace(recipe, first_layer=first_layer)
        run_stage("scratch", small_data, recipe, output_dir=tmp_path / first_layer)
        model = load_model(tmp_path / first_layer / "small.npz" / "scratch" / "model.pt")
        with torch.no_grad():
            outputs = model.features.get_submodule("conv1")(model.preprocess(train.images))
        moments = outputs.square().mean((0, 2, 3))
        is_whitened = torch.allclose(moments, torch.ones(32), atol=1e-3)
        assert is_whitened is (first_layer == "whitened")


def test_a_frozen_first_layer_stays_as_it_was_separated_and_the_others_start_at_half(
    small_data: Data, tmp_path: Path
) -> None:
    def trained(folder: str, stage: str = "scratch", **changes: Any) -> dict[str, Tensor]:
        recipe = dataclasses.replace(SMALL, **{"epochs": 1, "first_layer": "separated", **changes})
        run_stage(stage, small_data, recipe, output_dir=tmp_path / folder)
        return load_model(tmp_path / folder / "small.npz" / stage / "model.pt").state_dict()

    start = trained("start", lr=1e-12, first_layer="whitened")
    half = trained("half", lr=1e-12)
    for name in [name for name in start if name.endswith("weight") and "conv1" not in name]:
        assert torch.allclose(half[name], start[name] / 2, rtol=1e-4, atol=1e-7), name
    train, _ = split_validation(select_classes(small_data.train, NEW_CLASSES))
    expected = CifarNet(10)
    expected.mean, expected.std = channel_statistics(train.images)
    separate_first_layer(expected, train.images)
    after = trained("after")
    kernels = after["features.conv1.weight"]
    assert torch.equal(kernels, expected.get_parameter("features.conv1.weight"))
    assert not after["features.conv1.bias"].any()
    assert not torch.equal(after["features.conv2.weight"], half["features.conv2.weight"])
    # Finetuning trains all layers, whatever base did.
    base, _, last = [trained("chain", stage) for stage in ("base", "transfer", "finetune")]
    assert not torch.equal(last["features.conv1.weight"], base["features.conv1.weight"])


def test_few_images_and_their_shifts_are_what_transfer_learns_from(
    finished: Path, small_data: Data
) -> None:
    recipe = SMALL.for_stage("transfer", 80)
    train, _ = small_data.train_and_validation(NEW_CLASSES)
    assert (len(train.labels), recipe.view_shift) == (80, 2)
    views = make_views(train.images, mirror=True, shift=2)
    with seeded(derive_seed(0, "transfer", "weights"), torch.device("cpu")):
        model = transfer_model(load_model(finished / "base" / "model.pt"), 10)
    setattr(model.classifier.get_submodule("dropout"), "p", recipe.dropout)  # noqa: B010
    features = extract_features(model.forward_features, views.flatten(0, 1))
    features = features.unflatten(0, views.shape[:2])
    seed = derive_seed(0, "transfer")
    fit(model.classifier, features, train.labels, None, None, recipe, seed=seed)
    found = load_model(finished / "transfer" / "model.pt").state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(found[name], value), name


def test_same_seed_same_bytes_another_seed_others(
    finished: Path, small_data: Data, tmp_path: Path
) -> None:
    for seed in (0, 1):
        run_stage("base", small_data, SMALL, output_dir=tmp_path / str(seed), seed=seed)
    same, other = (contents(tmp_path / str(seed) / "small.npz" / "base") for seed in (0, 1))
    for name in ("model.pt", "last.pt"):
        assert same[name] == (finished / "base" / name).read_bytes()
        assert other[name] != same[name]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("after", [0, 1])
def test_interrupted_stage_goes_on_and_ends_with_the_same_bytes(
    finished: Path, small_data: Data, tmp_path: Path, stage: str, after: int
) -> None:
    for parent in ("base", "transfer"):
        if parent != stage:
            copy_run(finished / parent, tmp_path / "small.npz" / parent)
    expected = contents(finished / stage)

    stop = stop_at("epoch 1/2" if after else "training and")
    with pytest.raises(StopError):
        run_stage(stage, small_data, SMALL, output_dir=tmp_path, log=stop)
    folder = tmp_path / "small.npz" / stage
    assert not (folder / "result.json").exists()
    lines: list[str] = []
    result = run_stage(stage, small_data, SMALL, output_dir=tmp_path, log=lines.append)
    found = contents(folder)
    assert any("going on after epoch 1" in line for line in lines) is (after == 1)
    assert found["model.pt"] == expected["model.pt"]
    assert found["last.pt"] == expected["last.pt"]
    history = [line.split(b",")[:5] for line in found["history.csv"].splitlines()]
    assert history == [line.split(b",")[:5] for line in expected["history.csv"].splitlines()]
    assert result["seconds_total"] > result["seconds_train"]


def test_interrupted_with_a_frozen_first_layer_it_ends_with_the_same_bytes(
    small_data: Data, tmp_path: Path
) -> None:
    recipe = dataclasses.replace(SMALL, first_layer="separated")
    whole = run_stage("base", small_data, recipe, output_dir=tmp_path / "whole")
    assert whole["parameters_trainable"] == whole["parameters_total"] - 2432
    with pytest.raises(StopError):
        run_stage("base", small_data, recipe, output_dir=tmp_path, log=stop_at("epoch 1/2"))
    run_stage("base", small_data, recipe, output_dir=tmp_path)
    found, expected = (contents(root / "small.npz/base") for root in (tmp_path, tmp_path / "whole"))
    for name in ("model.pt", "last.pt"):
        assert found[name] == expected[name]


def test_times_of_all_contributing_runs_count_and_lost_epochs_do_not(
    small_data: Data, tmp_path: Path
) -> None:
    stop = stop_at("epoch 1/2")
    with pytest.raises(StopError):
        run_stage("base", small_data, SMALL, output_dir=tmp_path, seconds_reading=1000.0, log=stop)
    # A lost epoch: its row was written, but the process died before its checkpoint.
    history = tmp_path / "small.npz" / "base" / "history.csv"
    history.write_text(history.read_text() + "2,0,0,0,0,500000,500000,0,9999999\n")
    result = run_stage("base", small_data, SMALL, output_dir=tmp_path, seconds_reading=100.0)
    assert 1100 < result["seconds_total"] < 100_000
    assert result["seconds_train"] < 100_000
    assert len(history.read_text().splitlines()) == 3


def test_pictures_that_were_decoded_before_count_once(small_data: Data, tmp_path: Path) -> None:
    kept = dataclasses.replace(small_data, seconds_before=1000.0)
    whole = run_stage("base", kept, SMALL, output_dir=tmp_path / "whole", seconds_reading=1.0)
    assert whole["seconds_reading"] == 1001.0
    assert 1001 < whole["seconds_total"] < 2000
    stop = stop_at("epoch 1/2")
    with pytest.raises(StopError):
        run_stage("base", kept, SMALL, output_dir=tmp_path, seconds_reading=1.0, log=stop)
    gone_on = run_stage("base", kept, SMALL, output_dir=tmp_path, seconds_reading=1.0)
    assert gone_on["seconds_reading"] == 1.0  # of this call
    assert 1002 < gone_on["seconds_total"] < 2000
    uncounted = run_stage("base", kept, SMALL, output_dir=tmp_path / "uncounted")
    assert uncounted["seconds_total"] < 1000


def test_divergence_keeps_the_last_good_epoch(small_data: Data, tmp_path: Path) -> None:
    with pytest.raises(StopError):
        run_stage("base", small_data, SMALL, output_dir=tmp_path, log=stop_at("epoch 1/2"))
    folder = tmp_path / "small.npz" / "base"
    weights = load_checkpoint(folder / "last.pt")["model"]
    weights["classifier.linear2.weight"].fill_(1e38)
    damage_checkpoint(folder, model=weights)
    before = contents(folder)
    with pytest.raises(TrainingError, match=r"became (nan|inf) in epoch 2 with lr 0\.04"):
        run_stage("base", small_data, SMALL, output_dir=tmp_path)
    assert contents(folder) == before


def test_times_are_not_negative_when_the_clock_is_set_back(
    small_data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(2e9, -1000)
    monkeypatch.setattr("time.time", lambda: next(clock))
    result: dict[str, Any] = {**run_stage("base", small_data, SMALL, output_dir=tmp_path)}
    parts = [value for key, value in result.items() if key.startswith("seconds_")]
    assert len(parts) == 8
    assert all(seconds >= 0 for seconds in parts)


def test_a_fraction_of_the_images_trains_and_all_validate(
    finished: Path, small_data: Data, tmp_path: Path
) -> None:
    copy_run(finished / "base", tmp_path / "small.npz" / "base")
    for stage in ("transfer", "finetune", "scratch"):
        result = run_stage(stage, small_data, SMALL, output_dir=tmp_path, train_fraction=0.25)
        images = [result["images_train"], result["images_validation"], result["images_test"]]
        assert images == [20, 20, 25]
        assert (tmp_path / "small.npz" / stage / "fraction-0.25" / "model.pt").exists()
    with pytest.raises(RunError, match=r"no transfer model .*fraction-0\.5.model\.pt") as error:
        run_stage("finetune", small_data, SMALL, output_dir=tmp_path, train_fraction=0.5)
    assert error.value.remedy["stage"] == "transfer"
    stranger = tmp_path / "small.npz" / "transfer" / "fraction-0.5"
    copy_run(tmp_path / "small.npz" / "transfer" / "fraction-0.25", stranger)
    with pytest.raises(RunError, match=r"for train_fraction 0\.25 and not for .* 0\.5"):
        run_stage("finetune", small_data, SMALL, output_dir=tmp_path, train_fraction=0.5)
    with pytest.raises(RunError, match=r"train_fraction 0\.25 there, 0\.5 now"):
        run_stage("transfer", small_data, SMALL, output_dir=tmp_path, train_fraction=0.5)
    with pytest.raises(ValueError, match="base trains on all images"):
        run_stage("base", small_data, SMALL, output_dir=tmp_path, train_fraction=0.5)
    with pytest.raises(ValueError, match="above 0 and at most 1, not 2"):
        run_stage("scratch", small_data, SMALL, output_dir=tmp_path / "x", train_fraction=2)


def test_finetuning_starts_from_the_transfer_model_and_trains_with_dropout(
    finished: Path, small_data: Data, tmp_path: Path
) -> None:
    copy_run(finished / "transfer", tmp_path / "small.npz" / "transfer")
    still = dataclasses.replace(ORIGINAL, finetune_lr=1e-12, finetune_epochs=1)
    result = run_stage("finetune", small_data, still, output_dir=tmp_path)
    transfer = load_model(tmp_path / "small.npz" / "transfer" / "model.pt").state_dict()
    finetune = load_model(tmp_path / "small.npz" / "finetune" / "model.pt").state_dict()
    for key, value in transfer.items():
        torch.testing.assert_close(finetune[key], value)
    assert result["parent_stage"] == "transfer"


def test_seed_decides_the_fresh_weights_and_stages_draw_their_own(
    small_data: Data, tmp_path: Path
) -> None:
    still = dataclasses.replace(ORIGINAL, lr=1e-12, epochs=1)
    weights = []
    for seed, stage in ((0, "base"), (1, "base"), (0, "scratch")):
        run_stage(stage, small_data, still, output_dir=tmp_path / str(seed), seed=seed)
        model = load_model(tmp_path / str(seed) / "small.npz" / stage / "model.pt")
        weights.append(model.get_parameter("features.conv1.weight"))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (weights[one] - weights[other]).abs().max() > 0.01


def test_generators_of_the_caller_are_left_alone(small_data: Data, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    run_stage("base", small_data, SMALL, output_dir=tmp_path)
    assert torch.equal(torch.get_rng_state(), state)


def test_mirror_images_are_used_if_the_recipe_says_so(
    finished: Path, small_data: Data, tmp_path: Path
) -> None:
    recipe = dataclasses.replace(SMALL, mirror=False)
    run_stage("base", small_data, recipe, output_dir=tmp_path)
    plain = load_model(tmp_path / "small.npz" / "base" / "model.pt").state_dict()
    mirrored = load_model(finished / "base" / "model.pt").state_dict()
    assert not torch.equal(plain["features.conv1.weight"], mirrored["features.conv1.weight"])


@pytest.mark.parametrize("wanted", [None, True, False])
def test_the_data_say_whether_mirror_images_show_the_same_unless_the_recipe_does(
    small_data: Data, own_classes: Path, tmp_path: Path, wanted: bool | None
) -> None:
    recipe = dataclasses.replace(SMALL, epochs=1, mirror=wanted)
    assert ORIGINAL.mirror is False
    for data, of_data in ((small_data, True), (load_data(own_classes), False)):
        result = run_stage("scratch", data, recipe, output_dir=tmp_path)
        used = of_data if wanted is None else wanted
        assert result["mirror"] is used
        text = (tmp_path / data.name / "scratch" / "results.txt").read_text()
        assert f"mirror {used}" in text
        lines: list[str] = []
        settings = load_checkpoint(tmp_path / data.name / "scratch" / "model.pt")["settings"]
        assert settings.get("mirror", False) is used
        run_stage(
            "scratch",
            data,
            dataclasses.replace(recipe, mirror=used),
            output_dir=tmp_path,
            log=lines.append,
        )
        assert "finished before" in lines[0]


def test_signs_that_turn_left_and_right_are_told_apart(tmp_path: Path) -> None:
    for number in range(40):
        for name in ("left", "right"):
            sign = Image.new("L", (32, 32), 40 + number)
            sign.paste(255, (4, 14, 28, 18))
            tip = 4 if name == "left" else 22
            sign.paste(255, (tip, 8, tip + 6, 24))
            path = tmp_path / "signs" / "train" / name / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            sign.save(path)
    signs = load_data(tmp_path / "signs")
    recipe = dataclasses.replace(SMALL, epochs=5)
    result = run_stage("scratch", signs, recipe, output_dir=tmp_path)
    assert result["val_accuracy"] == 1
    mirrored = dataclasses.replace(recipe, mirror=True)
    mirrored_result = run_stage("scratch", signs, mirrored, output_dir=tmp_path / "mirrored")
    assert mirrored_result["val_loss"] > 0.4 > 0.1 > result["val_loss"]


def test_wrong_arguments_are_refused(small_data: Data, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no stage 'Base': choose among base, transfer"):
        run_stage("Base", small_data, SMALL, output_dir=tmp_path)
    with pytest.raises(ValueError, match="only a transfer takes another base model"):
        run_stage("scratch", small_data, SMALL, output_dir=tmp_path, base=tmp_path)
    plan: Any = SMALL.for_stage("base", 80)
    with pytest.raises(TypeError, match="makes its plan itself: give the recipe, such as TUNED"):
        run_stage("base", small_data, plan, output_dir=tmp_path)
    both = dataclasses.replace(small_data, base_classes=(0, 1, 2), new_classes=(2, 3))
    with pytest.raises(ValueError, match="a class is a base class and a new class: leave it out"):
        run_stage("base", both, SMALL, output_dir=tmp_path)
    none = dataclasses.replace(small_data, base_classes=())
    with pytest.raises(ValueError, match=r"no stage base on small\.npz: it has no base"):
        run_stage("base", none, SMALL, output_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_own_classes_have_outputs_of_their_own_and_maybe_no_test_images(
    finished: Path, own_classes: Path, tmp_path: Path
) -> None:
    own = load_data(own_classes)
    base = finished / "base" / "model.pt"
    for stage in list(STAGES)[1:]:
        result = run_stage(
            stage, own, SMALL, output_dir=tmp_path, base=base if stage == "transfer" else None
        )
        assert (result["num_classes"], result["classes"]) == (3, [0, 1, 2])
        assert (result["images_train"], result["images_validation"]) == (32, 8)
        assert (result["test_accuracy"], result["images_test"]) == (None, 0)
        folder = tmp_path / "own" / stage
        assert "Test:" not in (folder / "results.txt").read_text()
        assert load_model(folder / "model.pt").class_names == {
            0: "Birch",
            1: "ash",
            2: "cedar tree",
        }
    features = load_model(base).features.state_dict()
    for key, value in load_model(tmp_path / "own/transfer/model.pt").features.state_dict().items():
        assert torch.equal(value, features[key])


def test_own_classes_make_a_base_for_others_and_never_for_themselves(
    own_classes: Path, tmp_path: Path
) -> None:
    own = load_data(own_classes)
    with pytest.raises(RunError, match="there is no base model") as error:
        run_stage("transfer", own, SMALL, output_dir=tmp_path, base=tmp_path / "none.pt")
    assert error.value.remedy == {}
    result = run_stage("base", own, SMALL, output_dir=tmp_path)
    assert (result["classes"], result["num_classes"]) == ([0, 1, 2], 3)
    base = tmp_path / "own/base/model.pt"
    result = run_stage("transfer", own, SMALL, output_dir=tmp_path)
    assert result["parent_path"] == "cifar10"  # not its own
    with pytest.raises(RunError, match="was trained on these very images"):
        run_stage("transfer", own, SMALL, output_dir=tmp_path, base=base)
    shutil.copytree(own_classes, tmp_path / "others")
    next((tmp_path / "others/train/ash").iterdir()).unlink()
    others = load_data(tmp_path / "others")
    with pytest.warns(RunWarning, match="knows all classes of others by name"):
        result = run_stage("transfer", others, SMALL, output_dir=tmp_path, base=base)
    assert (result["parent_stage"], result["data"]) == ("base", "others")


def test_any_classes_may_be_base_or_new(small_npz: Path, tmp_path: Path) -> None:
    data = load_data(small_npz, base_classes="dog,3,frog", new_classes="ship,2")
    recipe = dataclasses.replace(TUNED, epochs=24, batch_size=20, precision="float32")
    base, transfer = (
        run_stage(stage, data, recipe, output_dir=tmp_path) for stage in ("base", "transfer")
    )
    assert (base["classes"], base["num_classes"]) == ([3, 5, 6], 3)
    assert (transfer["classes"], transfer["num_classes"]) == ([2, 8], 10)
    for result, images in ((base, 12), (transfer, 8)):
        folder = tmp_path / "small.npz-356-28" / result["stage"]
        model = load_model(folder / "model.pt")
        outputs = [0, 1, 2] if result is base else [2, 8]
        assert model.class_names == dict(zip(outputs, result["class_names"], strict=True))
        # The figures, counted by hand (an image with two equal logits may be decided otherwise);
        # and what was learned by heart.
        shares = []
        for part in data.train_and_validation(result["classes"]):
            truth = [outputs[result["classes"].index(label)] for label in part.labels]
            right = int((model(part.images).argmax(1) == torch.tensor(truth)).sum())
            shares.append(right / len(truth))
        assert len(truth) == images
        assert shares[1] == pytest.approx(result["val_accuracy"], abs=1.5 / images)
        assert shares[0] > 0.6  # by chance a third, or a half
        rows = zip(result["val_confusion"], outputs, strict=True)
        assert sum(row[output] for row, output in rows) == round(result["val_accuracy"] * images)
    default = load_data(small_npz)
    path = tmp_path / "small.npz-356-28/base/model.pt"
    with pytest.raises(RunError, match=r"was made for classes \[3, 5, 6\] and not for"):
        run_stage("transfer", default, recipe, output_dir=tmp_path, base=path)


def test_a_base_of_all_classes_leaves_none(small_npz: Path, tmp_path: Path) -> None:
    data = load_data(small_npz, base_classes="all")
    result = run_stage("base", data, SMALL, output_dir=tmp_path)
    assert (result["data"], result["num_classes"], result["images_train"]) == (
        ("small.npz-all", 10, 160)
    )
    for stage in ("transfer", "scratch"):
        with pytest.raises(ValueError, match=f"there is no stage {stage} on small.npz-all"):
            run_stage(stage, data, SMALL, output_dir=tmp_path)


def test_another_stage_is_a_line_in_the_table(
    finished: Path, small_data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it is trained as its row says, with the values of the recipe for such a stage."""
    look: dict[str, Any] = {"words": "One of mine.", "colour": "#009E73", "marker": "v"}
    monkeypatch.setitem(STAGES, "direct", Stage("base", "new", EVERYTHING, **look))
    monkeypatch.setitem(STAGES, "head", Stage("direct", "new", HEAD, **look))
    shutil.copytree(finished, tmp_path / "small.npz")
    recipe = dataclasses.replace(SMALL, transfer_dropout=0.3, transfer_shift=1, finetune_epochs=1)
    results = {s: run_stage(s, small_data, recipe, output_dir=tmp_path) for s in ("direct", "head")}
    for stage, kind in (("direct", "finetune"), ("head", "transfer")):
        plan = recipe.for_stage(kind, 80, mirror=True)
        for name in ("lr", "batch_size", "dropout", "epochs", "weight_decay"):
            assert results[stage][name] == getattr(plan, name), name
        assert results[stage]["shift"] == (plan.view_shift if stage == "head" else plan.shift)
    assert results["direct"]["epochs"] == results["head"]["shift"] == 1
    assert results["direct"]["num_classes"] == 10
    assert results["direct"]["parameters_trainable"] == 120_226
    assert results["head"]["parameters_trainable"] == 103_818
    first, second = (load_model(tmp_path / f"small.npz/{s}/model.pt") for s in ("direct", "head"))
    assert torch.equal(*(m.get_parameter("features.conv3.weight") for m in (first, second)))
    assert not torch.equal(*(m.get_parameter("classifier.linear1.weight") for m in (first, second)))
    others = {s: json.loads((finished / s / "result.json").read_text()) for s in list(STAGES)[:4]}
    comparison = compare({1.0: [others | results]})
    ways = comparison["sizes"][0]["ways"]
    assert list(ways) == ["transfer", "transfer+finetune", "direct", "direct+head", "scratch"]
    text = comparison_text(comparison)
    assert "head goes on from direct" in text
    assert "One of mine." in report_text(comparison, others | results, {}, "command")
