import copy
import dataclasses
import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from cifar_tl.data.shapes import draw_shapes
from cifar_tl.errors import TrainingError
from cifar_tl.evaluation import Metrics, confusion_matrix, evaluate, extract_features
from cifar_tl.freezing import freeze, transfer_model
from cifar_tl.network import CifarNet
from cifar_tl.recipe import ORIGINAL, TUNED, Precision, Recipe, rate_factor
from cifar_tl.training import EpochRecord, derive_seed, fit, make_optimizer
from tests.conftest import noted_precisions

SMALL = dataclasses.replace(TUNED, precision="float32", epochs=3, batch_size=32, by_size=False)
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


def check_metrics(found: Metrics, expected: Metrics, examples: int) -> None:
    """Compares what was computed in other batches, so with other last bits.

    Losses differ by rounding, and an example with two equal logits may be decided otherwise.
    """
    assert found.loss == pytest.approx(expected.loss, rel=1e-4)
    assert found.accuracy == pytest.approx(expected.accuracy, abs=1.5 / examples)


def test_one_batch_can_be_learned_by_heart(model: CifarNet, arrays: Arrays) -> None:
    views, labels = arrays[0][:1, :10], arrays[1][:10]
    recipe = dataclasses.replace(ORIGINAL, epochs=100, batch_size=10)
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
    check_metrics(Metrics(record.train_loss, record.train_accuracy), expected, 250)


def test_evaluate_is_the_mean_over_examples_and_restores_the_mode(
    model: CifarNet, arrays: Arrays
) -> None:
    images, labels = arrays[2:]
    logits = model.eval()(images)
    loss = functional.cross_entropy(logits, labels).item()
    expected = Metrics(loss, (logits.argmax(1) == labels).float().mean().item())
    for training in (True, False):
        model.train(training)
        metrics = evaluate(model, images, labels, batch_size=32)  # 70 = 32 + 32 + 6
        check_metrics(metrics, expected, 70)
        assert all(module.training is training for module in model.modules())
    model.train().features.eval()
    evaluate(model, images, labels)
    assert model.training
    assert not model.features.training


def test_confusion_matrix_counts_every_example_once() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(70, 10), torch.randint(10, (70,))
    module = nn.Identity().train()
    matrix = confusion_matrix(module, logits, labels, batch_size=32)
    assert module.training
    expected = torch.zeros(10, 10, dtype=matrix.dtype)
    for label, prediction in zip(labels.tolist(), logits.argmax(1).tolist(), strict=True):
        expected[label, prediction] += 1
    assert torch.equal(matrix, expected)


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


def test_a_recipe_is_made_for_the_examples_that_it_is_given(
    model: CifarNet, arrays: Arrays
) -> None:
    """Whoever makes the optimizer has to say how many there are."""
    recipe = dataclasses.replace(SMALL, by_size=True, batch_size=200)
    made, twin = recipe.for_images(250), copy.deepcopy(model)
    assert made.batch_size == 50
    records = fit(model, *arrays, recipe, optimizer=make_optimizer(model, made))
    assert without_times(records) == without_times(fit(twin, *arrays, made))
    assert same_weights(model, twin)
    with pytest.raises(ValueError, match="rates depend on the number of images: give recipe"):
        make_optimizer(model, recipe)


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
    for name in ("train_loss", "val_loss"):
        found, wanted = ([getattr(r, name) for r in rows] for rows in (records, expected))
        assert found == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_precision_is_that_of_all_layers_and_of_no_weight(precision: Precision) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    inputs, labels = torch.randn(30, 8), torch.arange(30) % 3
    recipe = dataclasses.replace(ORIGINAL, lr=0.02, epochs=100, batch_size=30, precision=precision)
    with noted_precisions() as found:  # in training and in validation
        fit(module, inputs[None], labels, inputs, labels, recipe)
    assert found == {{"float32": torch.float32, "bf16": torch.bfloat16}[precision]}
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    assert evaluate(module, inputs, labels).accuracy == 1.0  # it has learned


def test_features_of_no_images_are_refused(model: CifarNet) -> None:
    with pytest.raises(ValueError, match="no images"):
        extract_features(model.forward_features, torch.empty(0, 3, 32, 32))


@pytest.mark.parametrize("recipe", [ORIGINAL, TUNED, dataclasses.replace(TUNED, optimizer="sgd")])
def test_optimizer_holds_exactly_the_trainable_parameters(model: CifarNet, recipe: Recipe) -> None:
    freeze(model.features)
    groups = make_optimizer(model, recipe.for_images(20_000)).param_groups
    held = {id(parameter) for group in groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in model.classifier.parameters()}


def test_optimizers_have_the_settings_of_their_recipe(model: CifarNet) -> None:
    (adam,) = make_optimizer(model, ORIGINAL).param_groups
    assert (adam["lr"], adam["betas"], adam["eps"]) == (1e-3, (0.9, 0.999), 1e-7)
    recipe = dataclasses.replace(SMALL, optimizer="sgd", weight_decay=5e-4)
    (sgd,) = make_optimizer(model, recipe).param_groups
    assert (sgd["momentum"], sgd["nesterov"], sgd["weight_decay"]) == (0.9, True, 5e-4)
    (muon,) = make_optimizer(model, TUNED.for_images(20_000)).param_groups
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


@pytest.mark.parametrize(
    ("lr", "weight_decay", "too_high"),
    [(1000.0, 1.2, "lr"), (0.05, 1e6, "weight_decay"), (1e30, 0.0, "lr")],
)
def test_the_value_that_was_too_high_is_blamed(
    model: CifarNet, arrays: Arrays, lr: float, weight_decay: float, too_high: str
) -> None:
    recipe = dataclasses.replace(SMALL, lr=lr, weight_decay=weight_decay, epochs=20)
    with pytest.raises(TrainingError) as caught:
        fit(model, *arrays, recipe)
    assert caught.value.too_high == too_high


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
    with pytest.raises(ValueError, match="must have the same length, at least 1"):
        fit(model, views, labels, val_images, val_labels[1:], SMALL)
    with pytest.raises(ValueError, match="must have the same length, at least 1"):
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


# A given optimizer keeps its own learning rates


def rates_of(optimizer: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


def test_a_given_optimizer_keeps_its_own_learning_rates(model: CifarNet, arrays: Arrays) -> None:
    groups = [
        {"params": model.features.parameters(), "lr": 1e-5},
        {"params": model.classifier.parameters(), "lr": 1e-1},
    ]
    optimizer = torch.optim.SGD(groups)
    seen: list[list[float]] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(rates_of(optimizer)))
    constant = dataclasses.replace(ORIGINAL, epochs=1, batch_size=125)
    fit(model, *arrays, constant, optimizer=optimizer)
    assert seen == [[1e-5, 1e-1]] * 2
    seen.clear()
    one_cycle = dataclasses.replace(constant, schedule="one-cycle")
    for _ in range(2):  # a second time it starts from the peaks, too
        fit(model, *arrays, one_cycle, optimizer=optimizer)
    factors = [rate_factor(one_cycle, step, 2) for step in range(2)]
    assert seen == [[1e-5 * factor, 1e-1 * factor] for factor in factors] * 2


def test_peaks_survive_epochs_and_the_state_of_an_optimizer(
    model: CifarNet, arrays: Arrays
) -> None:
    recipe = dataclasses.replace(SMALL, epochs=2)
    optimizer = make_optimizer(model, recipe)
    seen: list[list[float]] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(rates_of(optimizer)))
    states: list[dict[str, Any]] = []
    fit(
        model,
        *arrays,
        recipe,
        optimizer=optimizer,
        on_epoch=lambda _: states.append(copy.deepcopy(optimizer.state_dict())),
    )
    assert seen[0] != seen[5]
    again = make_optimizer(model, dataclasses.replace(recipe, lr=7))
    for state in states:
        assert [group["initial_lr"] for group in state["param_groups"]] == [recipe.lr]
        again.load_state_dict(state)
        assert rates_of(again) == [recipe.lr]


def test_rates_that_somebody_changes_between_epochs_count(model: CifarNet, arrays: Arrays) -> None:
    recipe = dataclasses.replace(ORIGINAL, epochs=3, batch_size=250)
    optimizer = torch.optim.SGD(model.classifier.parameters(), 0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    seen: list[list[float]] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(rates_of(optimizer)))

    def on_epoch(record: EpochRecord) -> None:
        scheduler.step()
        if record.epoch == 2:  # gradual unfreezing
            optimizer.add_param_group({"params": list(model.features.parameters()), "lr": 7e-3})

    fit(model, *arrays, recipe, optimizer=optimizer, on_epoch=on_epoch)
    assert seen == [[0.1], [0.05], [0.025, 7e-3]]


def test_an_optimizer_of_something_else_is_refused(model: CifarNet, arrays: Arrays) -> None:
    other = torch.optim.SGD(CifarNet(10).parameters(), 0.1)
    with pytest.raises(ValueError, match="holds no trainable parameter of the module"):
        fit(model, *arrays, SMALL, optimizer=other)
    freeze(model)
    for module in (model, nn.Flatten()):
        with pytest.raises(ValueError, match="the module has no trainable parameter: unfreeze"):
            fit(module, *arrays, SMALL)


# Losses and transforms of one's own


def test_a_loss_of_ones_own_trains_and_validates(model: CifarNet, arrays: Arrays) -> None:
    views, labels, val_images, val_labels = arrays
    recipe = dataclasses.replace(SMALL, epochs=1)
    twin = copy.deepcopy(model)
    plain = fit(model, *arrays, recipe)
    loss = nn.CrossEntropyLoss(reduction="none")
    same = fit(twin, *arrays, recipe, loss=loss)
    assert same[0].val_loss == pytest.approx(plain[0].val_loss, rel=1e-4)
    smooth = nn.CrossEntropyLoss(label_smoothing=0.3, reduction="none")
    expected = functional.cross_entropy(twin(val_images), val_labels, label_smoothing=0.3)
    measured = evaluate(twin, val_images, val_labels, loss=smooth)
    assert measured.loss == pytest.approx(expected.item(), rel=1e-5)
    soft = functional.one_hot(labels, 10).float(), functional.one_hot(val_labels, 10).float()
    twin = copy.deepcopy(model)
    records = fit(twin, views, soft[0], val_images, soft[1], recipe, loss=loss)
    hard = evaluate(twin, val_images, val_labels)
    assert (records[0].val_accuracy, records[0].val_loss) == pytest.approx(
        (hard.accuracy, hard.loss), rel=1e-5
    )
    with pytest.raises(ValueError, match="a loss gives one value per example"):
        fit(model, *arrays, recipe, loss=functional.cross_entropy)


def test_a_transform_changes_each_training_batch(arrays: Arrays) -> None:
    views, labels, val_images, val_labels = arrays
    recipe = dataclasses.replace(SMALL, epochs=1)

    def mixup(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        part, order = torch.rand(()), torch.randperm(len(inputs))
        soft = functional.one_hot(targets, 10).float()
        mixed = part * inputs + (1 - part) * inputs[order]
        return mixed / 255, part * soft + (1 - part) * soft[order]

    def train() -> tuple[CifarNet, list[EpochRecord]]:
        torch.manual_seed(0)
        model = CifarNet(10)
        loss = nn.CrossEntropyLoss(reduction="none")
        soft = functional.one_hot(val_labels, 10).float()
        return model, fit(
            model, views, labels, val_images, soft, recipe, loss=loss, transform=mixup
        )

    (one, records), (other, again) = train(), train()  # of the epoch's own random numbers
    assert same_weights(one, other)
    assert without_times(records) == without_times(again)


# Ending early


def test_on_epoch_may_end_the_training(model: CifarNet, arrays: Arrays) -> None:
    records = fit(model, *arrays, SMALL, on_epoch=lambda record: record.epoch == 2)
    assert [record.epoch for record in records] == [1, 2]
    assert not model.training


def test_the_best_weights_are_kept_however_it_ends(model: CifarNet, arrays: Arrays) -> None:
    states: list[dict[str, Tensor]] = []

    def note(record: EpochRecord) -> None:
        seen.append(record)
        states.append(copy.deepcopy(model.state_dict()))
        if record.epoch == 3:
            raise StopIteration
        if record.epoch == 2:  # spoil what follows
            with torch.no_grad():
                model.get_parameter("classifier.linear2.weight").zero_()

    recipe = dataclasses.replace(ORIGINAL, epochs=4)
    seen: list[EpochRecord] = []
    with pytest.raises(StopIteration):
        fit(model, *arrays, recipe, keep_best=True, on_epoch=note)
    assert not model.training
    best = max(range(3), key=lambda number: seen[number].val_accuracy)
    assert all(torch.equal(value, states[best][key]) for key, value in model.state_dict().items())


def test_without_validation_data(model: CifarNet, arrays: Arrays) -> None:
    views, labels, val_images, _ = arrays
    twin = copy.deepcopy(model)
    recipe = dataclasses.replace(SMALL, epochs=2)
    records = fit(model, views, labels, None, None, recipe)
    assert all(
        math.isnan(record.val_loss) and math.isnan(record.val_accuracy) for record in records
    )
    fit(twin, *arrays, recipe)
    assert same_weights(model, twin)
    with pytest.raises(ValueError, match="keep_best needs validation"):
        fit(model, views, labels, None, None, recipe, keep_best=True)
    with pytest.raises(ValueError, match="validation needs inputs and labels"):
        fit(model, views, labels, val_images, None, recipe)


# Batches, functions, modes


def test_batches_of_a_loader_give_the_same(model: CifarNet, arrays: Arrays) -> None:
    _, _, images, labels = arrays
    loader = DataLoader(TensorDataset(images, labels), batch_size=32)
    check_metrics(evaluate(model, loader), evaluate(model, images, labels), 70)
    same = confusion_matrix(model, images, labels, batch_size=32)
    assert torch.equal(confusion_matrix(model, loader), same)
    features = extract_features(model.eval().forward_features, images)
    numbered = TensorDataset(images, torch.arange(70))
    shuffled = DataLoader(numbered, batch_size=32, shuffle=True)
    found, order = extract_features(model.forward_features, shuffled)
    assert sorted(order.tolist()) == list(range(70)) != order.tolist()
    torch.testing.assert_close(found, features[order], rtol=1e-4, atol=1e-5)
    fit(model.classifier, found[None], labels[order], None, None, SMALL)  # no inference tensors


def test_what_is_no_module_can_be_judged(model: CifarNet, arrays: Arrays) -> None:
    _, _, images, labels = arrays
    expected = evaluate(model, images, labels)
    exported = torch.export.export(model.eval(), (images[:2],), dynamic_shapes=({0: Dim("n")},))
    for judged in (lambda batch: model(batch), exported.module()):
        check_metrics(evaluate(judged, images, labels), expected, 70)
    assert confusion_matrix(exported.module(), images, labels).sum() == len(labels)


@pytest.mark.parametrize("method", [False, True])
def test_features_are_computed_in_evaluation_mode_and_back(method: bool) -> None:
    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
            self.body[2].eval()

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.body(x)
            return output

    backbone = Backbone()
    before = copy.deepcopy(backbone.state_dict())
    modes = [module.training for module in backbone.modules()]
    x = torch.randn(10, 4)
    found = extract_features(backbone.forward if method else backbone, x)
    assert [module.training for module in backbone.modules()] == modes
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())
    assert torch.equal(found, backbone.eval()(x).detach())


# Errors


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int16])
def test_labels_of_any_integer_type_will_do(
    model: CifarNet, arrays: Arrays, dtype: torch.dtype
) -> None:
    views, labels, images, val_labels = arrays
    twin = copy.deepcopy(model)
    recipe = dataclasses.replace(SMALL, epochs=1)
    fit(model, *arrays, recipe)
    fit(twin, views, labels.to(dtype), images, val_labels.to(dtype), recipe)
    assert same_weights(model, twin)
    assert evaluate(twin, images, val_labels.to(dtype)) == evaluate(model, images, val_labels)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda y: y + 5, ValueError, "labels go up to 14, but there are only 10 logits: give"),
        (lambda y: torch.full_like(y, -100), ValueError, "labels must be at least 0, not -100"),
        (lambda y: y.float(), TypeError, r"labels must be class numbers \(N,\) .* torch.float32"),
        (lambda y: y[:, None], TypeError, r"class numbers \(N,\) of an integer type, .* \(70, 1"),
        (lambda y: y[:-1], ValueError, "must have the same length, at least 1"),
        (lambda y: y.numpy(), TypeError, "labels must be a torch.Tensor, not ndarray: torch.as_te"),
    ],
)
def test_labels_that_do_not_fit_are_one_line(
    model: CifarNet, arrays: Arrays, change: Any, error: type[Exception], message: str
) -> None:
    views, _, images, labels = arrays
    wrong = change(labels)
    for judge in (
        lambda: evaluate(model, images, wrong),
        lambda: confusion_matrix(model, images, wrong),
        lambda: fit(model, images[None], wrong, None, None, SMALL),
        lambda: fit(model, views, arrays[1], images, wrong, SMALL),
    ):
        with pytest.raises(error) as caught:
            judge()
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(error, match=message):
        evaluate(model, images, wrong)


def test_what_is_no_data_is_one_line(model: CifarNet, arrays: Arrays) -> None:
    _, _, images, labels = arrays
    with pytest.raises(TypeError, match=r"inputs must be a torch\.Tensor, not ndarray"):
        evaluate(model, images.numpy(), labels)
    with pytest.raises(TypeError, match=r"inputs must be a torch\.Tensor, not ndarray"):
        extract_features(model, images.numpy())
    with pytest.raises(TypeError, match=r"labels must be a torch\.Tensor, not NoneType"):
        evaluate(model, images)
    loader: Any = DataLoader(TensorDataset(images, labels), batch_size=7)
    with pytest.raises(TypeError, match=r"not DataLoader: inputs, labels = map\(torch\.cat, zip"):
        fit(model, loader, labels, None, None, ORIGINAL)
    inputs, targets = map(torch.cat, zip(*loader, strict=True))  # as it says
    assert torch.equal(inputs, images)
    assert torch.equal(targets, labels)
    for batches in ([1, 2], [(images, labels, labels)], [(images.numpy(), labels)]):
        with pytest.raises(TypeError, match="a batch must be a tensor, or a pair of tensors"):
            evaluate(model, batches)  # type: ignore[arg-type]
    for judge in (evaluate, confusion_matrix, extract_features):
        with pytest.raises(ValueError, match="there are no"):
            judge(model, [])
    with pytest.raises(ValueError, match=r"logits must be \(N, classes\), not \(70,\)"):
        evaluate(lambda batch: torch.zeros(len(batch)), images, labels, batch_size=100)


def test_methods_of_a_module_are_judged_in_evaluation_mode(model: CifarNet, arrays: Arrays) -> None:
    _, _, images, labels = arrays
    features = extract_features(model.forward_features, images)
    expected = evaluate(model.classifier, features, labels)
    model.train()
    head = functools.partial(model.forward_head, pre_logits=False)
    for judged in (model.forward_head, head, torch.compile(model.forward_head, backend="eager")):
        check_metrics(evaluate(judged, features, labels), expected, 70)
        assert torch.equal(extract_features(judged, features), extract_features(judged, features))
    assert model.training


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit")
def test_modules_that_have_their_own_way_to_evaluate_hear_of_it(arrays: Arrays) -> None:
    heard: list[bool] = []

    class Merging(CifarNet):
        def train(self, mode: bool = True) -> "Merging":
            heard.append(mode)
            super().train(mode)
            return self

    evaluate(Merging(10), *arrays[2:])
    assert heard == [False]

    class Broken(CifarNet):
        def train(self, _: bool = True) -> "Broken":
            raise AttributeError("a mistake of its own")

    with pytest.raises(AttributeError, match="a mistake of its own"):  # and no figure with dropout
        evaluate(Broken(10), *arrays[2:])
    frozen = torch.jit.freeze(torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()))
    assert evaluate(frozen, torch.randn(3, 4), torch.tensor([0, 1, 1])).loss > 0


def test_accuracy_is_nan_where_targets_are_no_classes(model: CifarNet, arrays: Arrays) -> None:
    _, _, images, labels = arrays
    one_hot = functional.one_hot(labels, 10)
    binary = nn.BCEWithLogitsLoss(reduction="none")

    def multi_label(logits: Tensor, targets: Tensor) -> Tensor:
        values: Tensor = binary(logits, targets.float()).mean(1)
        return values

    expected = evaluate(model, images, labels).accuracy
    assert evaluate(model, images, one_hot, loss=multi_label).accuracy == expected
    one = nn.Sequential(model, nn.Linear(10, 1))
    found = evaluate(one, images, (labels > 4).float()[:, None], loss=multi_label)
    assert 0 < found.loss < 100
    assert math.isnan(found.accuracy)
    regression = evaluate(
        one, images, labels.float(), loss=lambda logits, targets: (logits[:, 0] - targets) ** 2
    )
    assert math.isnan(regression.accuracy)


def test_batches_of_images_alone_give_features_alone(model: CifarNet, arrays: Arrays) -> None:
    images = arrays[2]
    expected = extract_features(model.forward_features, images)
    for loader in (
        DataLoader(TensorDataset(images), 20),
        images.split(20),
        (batch for batch in images.split(20)),
    ):
        found = extract_features(model.forward_features, loader)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="a batch of 70 inputs has 2 labels"):
        extract_features(model, [(images, arrays[3][:2])])
    with pytest.raises(TypeError, match="these have no labels"):
        evaluate(model, images.split(20))


def test_a_transform_that_loses_targets_is_noticed(model: CifarNet, arrays: Arrays) -> None:
    def distance(logits: Tensor, targets: Tensor) -> Tensor:  # takes one target for all examples
        return (logits[:, 0] - targets).square()

    def lose(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return inputs, targets[:1]

    with pytest.raises(ValueError, match="32 logits and 1 targets"):
        fit(model, *arrays, SMALL, transform=lose, loss=distance)
    with pytest.raises(ValueError, match="32"):  # torch's own
        fit(model, *arrays, SMALL, transform=lose)


def test_weights_of_any_module_can_be_kept(arrays: Arrays) -> None:
    class Counting(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"seen": 1}

        def set_extra_state(self, state: dict[str, int]) -> None:
            assert state == {"seen": 1}

    views, labels, images, val_labels = arrays
    module = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3072), Counting(3072, 10))
    fit(
        module,
        views.float() / 255,
        labels,
        images.float() / 255,
        val_labels,
        dataclasses.replace(SMALL, optimizer="sgd", lr=1e-3),
        keep_best=True,
        on_epoch=lambda record: torch.tensor(record.epoch == 2),
    )
