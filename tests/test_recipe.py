import dataclasses
from typing import Any, get_args

import pytest

from cifar_tl.experiment.stages import STAGES
from cifar_tl.recipe import ORIGINAL, RECIPES, TUNED, FirstLayer, Plan, Recipe, rate_factor


def test_original_is_the_documented_recipe() -> None:
    values = dataclasses.asdict(ORIGINAL)
    documented = {"optimizer": "adam", "lr": 1e-3, "schedule": "constant", "epochs": 10}
    documented |= {"batch_size": 100, "weight_decay": 0.0, "normalize": False}
    documented |= {"momentum": 0.9, "precision": "float32"}
    documented |= {"first_layer": "random", "mirror": False, "dropout": None, "shift": 0}
    assert {key: values[key] for key in documented} == documented


def test_names_lead_to_the_recipes() -> None:
    assert RECIPES == {"original": ORIGINAL, "tuned": TUNED}


def test_constant_schedule_is_constant() -> None:
    assert {rate_factor(ORIGINAL, step, 10) for step in range(10)} == {1.0}


@pytest.mark.parametrize("total", [1, 2, 3, 7, 1000])
def test_one_cycle_is_positive_and_at_most_the_peak(total: int) -> None:
    rates = [TUNED.lr * rate_factor(TUNED, step, total) for step in range(total)]
    assert all(0 < rate <= TUNED.lr for rate in rates)


def test_one_cycle_rises_linearly_to_the_peak_and_falls_linearly_to_zero() -> None:
    rates = [TUNED.lr * rate_factor(TUNED, step, 1000) for step in range(1000)]
    assert rates.index(max(rates)) in (199, 200)
    assert max(rates) == pytest.approx(TUNED.lr, rel=0.01)
    assert rates[99] == pytest.approx(TUNED.lr / 2, rel=0.01)
    assert rates[599] == pytest.approx(TUNED.lr / 2, rel=0.01)
    assert rates[0] < 0.005 * TUNED.lr
    assert rates[-1] < 0.005 * TUNED.lr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "adamw"}, "optimizer must be"),
        ({"schedule": "cosine"}, "schedule must be"),
        ({"first_layer": "frozen"}, "first_layer must be"),
        ({"precision": "fp16"}, "precision must be"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"finetune_epochs": 0}, "finetune_epochs must be at least 1"),
        ({"transfer_batch_size": 0}, "transfer_batch_size must be at least 1"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"finetune_lr": float("nan")}, "finetune_lr must be above 0"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"weight_decay": None}, "weight_decay must be at least 0, not None"),
        ({"warmup": None}, "warmup must be between 0 and 1, not None"),
        ({"momentum": 1.0}, "momentum must be from 0 to below 1"),
        ({"warmup": 0.0}, "warmup must be between 0 and 1"),
        ({"dropout": 1.0}, "dropout must be from 0 to below 1"),
        ({"transfer_dropout": -0.1}, "transfer_dropout must be from 0"),
        ({"shift": 17}, "shift must be from 0 to 16 pixels"),
        ({"transfer_shift": -1}, "transfer_shift must be from 0 to 16 pixels"),
    ],
)
def test_impossible_values_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TUNED, **change)


def test_stages_change_only_what_is_their_own() -> None:
    recipe = dataclasses.replace(TUNED, epochs=10, finetune_lr=0.03, by_size=False)
    base = recipe.for_stage("base", 80)
    assert base == recipe.for_stage("scratch", 80) == recipe.for_images(80)
    kept: dict[str, Any] = {"normalize": None, "first_layer": None}
    finetune = recipe.for_stage("finetune", 80)
    assert finetune == dataclasses.replace(base, epochs=4, lr=0.03, **kept)
    transfer = dataclasses.replace(recipe, transfer_shift=3).for_stage("transfer", 80)
    assert transfer == dataclasses.replace(
        base,
        lr=recipe.transfer_lr,
        batch_size=recipe.transfer_batch_size,
        dropout=recipe.transfer_dropout,
        shift=0,
        view_shift=3,
        **kept,
    )
    with pytest.raises(
        ValueError, match="no values for a stage 'probe': choose among base, scratc"
    ):
        recipe.for_stage("probe", 80)


def test_a_plan_has_every_value_of_a_recipe_that_is_not_of_one_stage() -> None:
    prefixes = ("by_size", "transfer_", "finetune_")
    names = [f.name for f in dataclasses.fields(Recipe) if not f.name.startswith(prefixes)]
    assert [f.name for f in dataclasses.fields(Plan)] == [*names, "view_shift"]


def test_a_plan_leaves_nothing_open() -> None:
    for stage in STAGES:
        for recipe in (TUNED, ORIGINAL):
            plan = recipe.for_stage(stage, 1_000)
            kept = [] if stage in ("base", "scratch") else ["normalize", "first_layer"]
            kept += ["dropout"] if recipe is ORIGINAL else []  # the network's own
            assert [name for name, value in vars(plan).items() if value is None] == kept
        assert TUNED.for_stage(stage, 1_000, mirror=True).mirror
        assert not dataclasses.replace(TUNED, mirror=False).for_stage(stage, 9, mirror=True).mirror


@pytest.mark.parametrize(
    ("images", "epochs", "batch_size", "lr", "weight_decay", "shift"),
    [
        (20_000, 10, 200, 0.04, 0.2, 1),  # what the values are meant for
        (40_000, 10, 200, 0.04, 0.2, 1),
        (20_000, 5, 100, 0.04 / 2**0.5, 0.2, 1),
        (20_000, 1, 100, 0.04 / 2**0.5, 0.2, 1),
        (20_000, 20, 200, 0.04, 0.2, 2),
        (1_250, 10, 50, 0.02, 0.4, 2),
        (1_250, 40, 50, 0.02, 0.4, 2),
    ],
)
def test_tuned_follows_the_number_of_images(
    images: int, epochs: int, batch_size: int, lr: float, weight_decay: float, shift: int
) -> None:
    recipe = dataclasses.replace(TUNED, epochs=epochs).for_images(images)
    assert (recipe.batch_size, recipe.shift) == (batch_size, shift)
    assert (recipe.lr, recipe.weight_decay) == pytest.approx((lr, weight_decay))
    for stage in ("base", "scratch"):
        assert ORIGINAL.for_stage(stage, images) == ORIGINAL.for_images(images)


@pytest.mark.parametrize(
    ("images", "batch_size"), [(200, 50), (10_000, 50), (15_000, 75), (20_000, 100), (40_000, 100)]
)
def test_the_smallest_batch_grows_with_the_images(images: int, batch_size: int) -> None:
    assert dataclasses.replace(TUNED, epochs=1).for_images(images).batch_size == batch_size


@pytest.mark.parametrize(
    ("images", "epochs", "is_short"),
    [
        *((20_000, 1, True), (20_000, 5, True), (20_000, 6, False), (20_000, None, False)),
        *((200, None, True), (1_000, None, True), (2_000, None, False)),
    ],
)
def test_the_first_layer_is_separated_in_short_trainings(
    images: int, epochs: int | None, is_short: bool
) -> None:
    recipe = dataclasses.replace(TUNED, epochs=epochs)
    assert recipe.for_images(images).first_layer == ("separated" if is_short else "whitened")
    for said in get_args(FirstLayer):
        chosen = dataclasses.replace(recipe, first_layer=said)
        assert chosen.for_images(images).first_layer == said


def test_few_images_are_shifted_to_be_more_features() -> None:
    plans = [TUNED.for_stage("transfer", images) for images in (200, 2_222, 2_223, 20_000)]
    assert [(plan.view_shift, plan.shift) for plan in plans] == [(2, 0), (2, 0), (0, 0), (0, 0)]
    chosen = dataclasses.replace(TUNED, transfer_shift=1, shift=3)
    assert [chosen.for_stage(stage, 20_000).shift for stage in STAGES] == [3, 0, 3, 3]
    assert [chosen.for_stage(stage, 20_000).view_shift for stage in STAGES] == [0, 1, 0, 0]


def test_finetuning_goes_more_slowly_with_few_images() -> None:
    usual, few, fewest = (TUNED.for_stage("finetune", images) for images in (20_000, 5_000, 200))
    assert [recipe.batch_size for recipe in (usual, few, fewest)] == [200, 100, 50]
    rates = [recipe.lr for recipe in (usual, few, fewest)]
    assert rates == pytest.approx([0.04, 0.04 / 2**0.5, 0.02 * 0.2])


@pytest.mark.parametrize(
    ("images", "epochs", "finetuning"),
    [(25_000, 10, 4), (20_000, 10, 4), (5_000, 20, 8), (200, 100, 40), (96, 144, 58), (3, 150, 60)],
)
def test_epochs_follow_from_the_number_of_images(images: int, epochs: int, finetuning: int) -> None:
    assert TUNED.for_stage("scratch", images).epochs == epochs
    assert TUNED.for_stage("finetune", images).epochs == finetuning
    chosen = dataclasses.replace(TUNED, epochs=5)  # unless somebody says it
    assert [chosen.for_stage(stage, images).epochs for stage in STAGES] == [5, 5, 2, 5]
    assert dataclasses.replace(chosen, finetune_epochs=7).for_stage("finetune", images).epochs == 7
    assert [ORIGINAL.for_stage(stage, images).epochs for stage in STAGES] == [10, 10, 3, 10]


def test_no_images_are_refused() -> None:
    for stage in STAGES:
        with pytest.raises(ValueError, match="num_images must be at least 1, not 0"):
            TUNED.for_stage(stage, 0)


def test_original_transfer_is_as_documented() -> None:
    plan = dataclasses.replace(ORIGINAL.for_images(80), normalize=None, first_layer=None)
    assert ORIGINAL.for_stage("transfer", 80) == plan
