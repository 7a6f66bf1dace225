import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cifar_tl.data.shapes import draw_shapes
from cifar_tl.errors import TrainingError
from cifar_tl.model import CifarNet, freeze, transfer_model
from cifar_tl.recipe import ORIGINAL, TUNED, Recipe
from cifar_tl.training import (
    EpochRecord,
    confusion_matrix,
    derive_seed,
    evaluate,
    extract_features,
    fit,
    make_optimizer,
)

SMALL = dataclasses.replace(TUNED, epochs=3, batch_size=32)
Arrays = tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    """250 training images as two views, and 70 validation images, with labels."""
    x_train, y_train, x_val, y_val = map(torch.from_numpy, draw_shapes(250, 70))
    return torch.stack([x_train, x_train.flip(-1)]), y_train, x_val, y_val


@pytest.fixture
def model() -> CifarNet:
    torch.manual_seed(0)
    return CifarNet(10)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    others = other.state_dict()
    return all(torch.equal(value, others[key]) for key, value in one.state_dict().items())


def without_times(records: list[EpochRecord]) -> list[EpochRecord]:
    return [dataclasses.replace(r, seconds_train=0, seconds_validation=0) for r in records]


def test_one_batch_can_be_learned_by_heart(model: CifarNet, arrays: Arrays) -> None:
    views, labels = arrays[0][:1, :30], arrays[1][:30]
    recipe = dataclasses.replace(ORIGINAL, epochs=120, batch_size=30)
    fit(model, views, labels, views[0], labels, recipe)
    assert evaluate(model, views[0], labels).accuracy == 1.0


def test_a_record_says_what_happened_in_its_epoch(model: CifarNet, arrays: Arrays) -> None:
    seen: list[EpochRecord] = []
    records = fit(model, *arrays, SMALL, on_epoch=seen.append)
    assert records == seen
    assert [record.epoch for record in records] == [1, 2, 3]
    assert not model.training
    last = records[-1]
    assert (last.val_loss, last.val_accuracy) == evaluate(model, *arrays[2:])
    assert last.seconds_train > 0
    assert last.seconds_validation > 0
    # Without dropout and with a step too small to matter, training figures are evaluation's.
    model.classifier[0] = nn.Identity()
    still = dataclasses.replace(ORIGINAL, lr=1e-12, epochs=1, batch_size=32)
    record = fit(model, arrays[0][:1], *arrays[1:], still)[0]
    expected = evaluate(model, arrays[0][0], arrays[1])
    assert record.train_accuracy == expected.accuracy
    assert record.train_loss == pytest.approx(expected.loss, rel=1e-5)


def test_evaluate_is_the_mean_over_examples_and_restores_the_mode(
    model: CifarNet, arrays: Arrays
) -> None:
    images, labels = arrays[2:]
    logits = model.eval()(images)
    loss = functional.cross_entropy(logits, labels).item()
    accuracy = (logits.argmax(1) == labels).float().mean().item()
    for training in (True, False):
        model.train(training)
        metrics = evaluate(model, images, labels, batch_size=32)  # 70 = 32 + 32 + 6
        assert metrics.loss == pytest.approx(loss, rel=1e-5)
        assert metrics.accuracy == pytest.approx(accuracy)
        assert all(module.training is training for module in model.modules())
    model.train().features.eval()
    evaluate(model, images, labels)
    assert model.training
    assert not model.features.training


def test_confusion_matrix_counts_every_example_once(model: CifarNet, arrays: Arrays) -> None:
    images, labels = arrays[2:]
    predicted = model.eval()(images).argmax(1)
    model.train()
    matrix = confusion_matrix(model, images, labels, batch_size=32)
    assert model.training
    expected = torch.zeros_like(matrix)
    for label, prediction in zip(labels.tolist(), predicted.tolist(), strict=True):
        expected[label, prediction] += 1
    assert torch.equal(matrix, expected)
    assert matrix.shape == (model.num_classes, model.num_classes)


def test_each_epoch_takes_every_example_once_in_new_order_and_views() -> None:
    views = torch.arange(100.0).repeat(2, 1) + torch.tensor([[0.0], [0.5]])
    epochs: list[list[float]] = []

    class Recorder(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            if self.training:
                epochs[-1].extend(inputs.flatten().tolist())
            return super().forward(inputs)

    recipe = dataclasses.replace(ORIGINAL, epochs=2, batch_size=32)
    epochs.append([])
    labels = torch.zeros(100, dtype=torch.int64)
    fit(
        Recorder(1, 2).eval(),  # fit itself sees to the mode
        views[:, :, None],
        labels,
        views[0, :, None],
        labels,
        recipe,
        on_epoch=lambda _: epochs.append([]),
    )
    orders = [[int(value) for value in epoch] for epoch in epochs[:2]]
    mirrored = [{int(value) for value in epoch if value % 1} for epoch in epochs[:2]]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(100))
    assert len({tuple(orders[0]), tuple(orders[1]), tuple(range(100))}) == 3
    assert mirrored[0] != mirrored[1]
    assert all(25 < len(examples) < 75 for examples in mirrored)


def test_same_seed_same_bytes_and_the_generator_of_the_caller_is_left_alone(
    model: CifarNet, arrays: Arrays
) -> None:
    twin, other = copy.deepcopy(model), copy.deepcopy(model)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    records = fit(model, *arrays, SMALL, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert without_times(fit(twin, *arrays, SMALL, seed=1)) == without_times(records)
    assert same_weights(model, twin)
    fit(other, *arrays, SMALL, seed=2)
    assert not same_weights(model, other)


@pytest.mark.parametrize("recipe", [SMALL, dataclasses.replace(SMALL, optimizer="adam", lr=1e-3)])
def test_going_on_after_an_epoch_equals_never_having_stopped(
    model: CifarNet, arrays: Arrays, recipe: Recipe
) -> None:
    twin = copy.deepcopy(model)
    expected = fit(model, *arrays, recipe)

    class StopError(Exception):
        pass

    def stop(record: EpochRecord) -> None:
        records.append(record)
        raise StopError

    records: list[EpochRecord] = []
    optimizer = make_optimizer(twin, recipe)
    with pytest.raises(StopError):
        fit(twin, *arrays, recipe, optimizer=optimizer, on_epoch=stop)
    resumed = make_optimizer(twin, recipe)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    records = fit(twin, *arrays, recipe, optimizer=resumed, records=records)
    assert without_times(records) == without_times(expected)
    assert same_weights(model, twin)


def test_cached_features_train_the_same_head_as_running_the_frozen_layers(
    model: CifarNet, arrays: Arrays
) -> None:
    views, labels, val_images, val_labels = arrays
    whole = transfer_model(model)
    start, cached = copy.deepcopy(whole), copy.deepcopy(whole)
    expected = fit(whole, views, labels, val_images, val_labels, SMALL, seed=3)
    features = [extract_features(cached.forward_features, view) for view in views]
    val_features = extract_features(cached.forward_features, val_images)
    records = fit(
        cached.classifier, torch.stack(features), labels, val_features, val_labels, SMALL, seed=3
    )
    for parameter, twin in zip(whole.parameters(), cached.parameters(), strict=True):
        torch.testing.assert_close(parameter, twin, rtol=1e-4, atol=1e-5)
    assert not same_weights(whole.classifier, start.classifier)
    assert [r.train_loss for r in records] == pytest.approx([r.train_loss for r in expected])
    assert [r.val_loss for r in records] == pytest.approx([r.val_loss for r in expected])


def test_bf16_computes_in_bfloat16_and_keeps_weights_in_float32(
    model: CifarNet, arrays: Arrays
) -> None:
    outputs: list[torch.dtype] = []
    handle = model.features.register_forward_hook(lambda *seen: outputs.append(seen[2].dtype))
    views, labels = arrays[0][:1, :30], arrays[1][:30]
    recipe = dataclasses.replace(ORIGINAL, epochs=120, batch_size=30, precision="bf16")
    fit(model, views, labels, views[0], labels, recipe)
    assert set(outputs) == {torch.bfloat16}  # in training and in validation
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert evaluate(model, views[0], labels).accuracy == 1.0
    outputs.clear()
    fit(
        model,
        views,
        labels,
        views[0],
        labels,
        dataclasses.replace(recipe, precision="float32", epochs=1),
    )
    assert set(outputs) == {torch.float32}
    handle.remove()


def test_features_of_no_images_are_refused(model: CifarNet) -> None:
    with pytest.raises(ValueError, match="no images"):
        extract_features(model.forward_features, torch.empty(0, 3, 32, 32))


@pytest.mark.parametrize("recipe", [ORIGINAL, TUNED, dataclasses.replace(TUNED, optimizer="sgd")])
def test_optimizer_holds_exactly_the_trainable_parameters(model: CifarNet, recipe: Recipe) -> None:
    freeze(model.features)
    groups = make_optimizer(model, recipe).param_groups
    held = {id(parameter) for group in groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in model.classifier.parameters()}


def test_optimizers_have_the_settings_of_their_recipe(model: CifarNet) -> None:
    (adam,) = make_optimizer(model, ORIGINAL).param_groups
    assert (adam["lr"], adam["betas"], adam["eps"]) == (1e-3, (0.9, 0.999), 1e-7)
    recipe = dataclasses.replace(TUNED, optimizer="sgd", weight_decay=5e-4)
    (sgd,) = make_optimizer(model, recipe).param_groups
    assert (sgd["momentum"], sgd["nesterov"], sgd["weight_decay"]) == (0.9, True, 5e-4)
    (muon,) = make_optimizer(model, TUNED).param_groups
    assert (muon["momentum"], muon["lr"]) == (0.9, TUNED.lr)
    assert muon["weight_decay"] == TUNED.weight_decay
    assert adam["fused"]
    assert sgd["fused"]  # one pass over the weights instead of several


def test_frozen_parts_stay_bit_identical_while_the_rest_moves(arrays: Arrays) -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 5, stride=4), nn.BatchNorm2d(4), nn.Flatten())
    model = nn.Sequential(body, nn.Linear(4 * 7 * 7, 10))
    freeze(body)
    before = copy.deepcopy(model.state_dict())
    views, labels, val_images, val_labels = arrays
    fit(model, views / 255, labels, val_images / 255, val_labels, SMALL)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) is key.startswith("0.")


def test_learning_rate_follows_the_schedule(model: CifarNet, arrays: Arrays) -> None:
    optimizer = make_optimizer(model, SMALL)
    rates = []
    optimizer.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
    fit(model, *arrays, SMALL, optimizer=optimizer)
    assert len(rates) == 3 * 8  # 250 images in batches of 32
    assert 0.8 * SMALL.lr < max(rates) <= SMALL.lr
    assert rates[-1] == min(rates)


def test_diverging_training_stops_with_the_epoch_and_a_remedy(
    model: CifarNet, arrays: Arrays
) -> None:
    seen: list[EpochRecord] = []
    with pytest.raises(
        TrainingError, match=r"in epoch 1 with lr 1e\+30 .*: try a lower learning rate"
    ):
        fit(model, *arrays, dataclasses.replace(SMALL, lr=1e30), on_epoch=seen.append)
    assert not seen


def test_weights_that_overflow_in_the_last_step_stop_the_training(
    model: CifarNet, arrays: Arrays
) -> None:
    views, labels, val_images, val_labels = arrays
    seen: list[EpochRecord] = []
    one_step = dataclasses.replace(SMALL, epochs=1, batch_size=len(labels), lr=1e38)
    with pytest.raises(TrainingError, match=r"(validation loss|weights) became (nan|inf|-inf) in"):
        fit(model, views, labels, val_images, val_labels, one_step, on_epoch=seen.append)
    assert not seen


def test_shapes_that_do_not_fit_are_refused(model: CifarNet, arrays: Arrays) -> None:
    views, labels, val_images, val_labels = arrays
    with pytest.raises(ValueError, match=r"images\[None\]"):
        fit(model, views[0], labels, val_images, val_labels, SMALL)
    with pytest.raises(ValueError, match="need as many labels, at least one"):
        fit(model, views, labels, val_images, val_labels[1:], SMALL)
    with pytest.raises(ValueError, match="need as many labels, at least one"):
        fit(model, views, labels, val_images[:0], val_labels[:0], SMALL)


def test_bar_only_when_asked_for(
    model: CifarNet, arrays: Arrays, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(model, *arrays, SMALL)
    assert capsys.readouterr() == ("", "")
    fit(model, *arrays, SMALL, progress="base")
    assert "base 3/3" in capsys.readouterr().err


def test_derived_seeds_differ_and_stay() -> None:
    seeds = {derive_seed(seed, name) for seed in range(10) for name in ("base", "transfer")}
    assert len(seeds) == 20
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, "base") == derive_seed(0, "base")
