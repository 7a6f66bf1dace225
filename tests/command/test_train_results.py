"""The next command: which model it names, and why."""

from pathlib import Path
from typing import Any

import pytest

from cifar_tl.command.train_results import next_step, say_spreads
from cifar_tl.experiment.stages import Place
from tests.experiment.conftest import make_result

SECONDS = {"transfer": 20.0, "finetune": 30.0, "scratch": 110.0}
PLACE = Place(Path("runs/mine"))
START = "cifar-tl predict photo.jpg --model runs/mine"


def results(*accuracies: float, images: int = 1200) -> dict[str, Any]:
    """Of transfer, finetune and scratch."""
    return {
        stage: make_result(stage, accuracy, seconds) | {"images_validation": images}
        for (stage, seconds), accuracy in zip(SECONDS.items(), accuracies, strict=True)
    }


@pytest.mark.parametrize(
    ("accuracies", "images", "equals", "stage"),
    [
        ((0.60, 0.80, 0.95), 1200, 1, "scratch"),
        ((0.80, 0.90, 0.89), 1200, 2, "finetune"),
        ((0.60, 0.89, 0.90), 1200, 2, "finetune"),
        ((0.80, 0.90, 0.89), 24, 3, "transfer"),
        ((0.89, 0.80, 0.90), 1200, 2, "transfer"),
    ],
)
def test_of_models_that_cannot_be_told_apart_it_names_the_cheapest(
    accuracies: tuple[float, ...], images: int, equals: int, stage: str
) -> None:
    found = next_step([(PLACE, results(*accuracies, images=images))])
    why = f" (of {equals} models without a clear difference, the fastest to train)"
    assert found == f"Try it{why if equals > 1 else ''}: {START}/{stage}/model.pt"


def test_the_fastest_is_doubtful_if_something_disturbed_the_epochs() -> None:
    found = results(0.80, 0.90, 0.89)
    ends = {"seconds_epoch_fastest": 1.0, "seconds_epoch_slowest": 62.0}
    found["scratch"] |= {**ends, "seconds_epoch_median": 9.0}
    assert next_step([(PLACE, found)]).startswith(
        "Try it (of 2 models without a clear difference, the fastest to train, which is doubtful: "
        "something disturbed the epochs): "
    )


def test_of_several_seeds_the_paired_test_decides_and_the_first_one_is_named() -> None:
    def seeds(*of_seeds: tuple[float, ...]) -> str:
        return next_step(
            [
                (PLACE._replace(seed=seed), results(*accuracies, images=24))
                for seed, accuracies in enumerate(of_seeds)
            ]
        )

    # So few images could not tell them apart. But finetune is ahead by much in every seed.
    ahead = seeds((0.70, 0.75, 0.60), (0.80, 0.90, 0.70), (0.60, 0.66, 0.50))
    assert ahead == f"Try it: {START}/finetune/seed-0/model.pt"
    mixed = seeds((0.70, 0.75, 0.60), (0.80, 0.70, 0.55), (0.60, 0.75, 0.55))
    assert mixed.startswith("Try it (of 2 models without")
    assert mixed.endswith(f"{START}/transfer/seed-0/model.pt")
    level = seeds((22 / 24, 23 / 24, 0.60), (21 / 24, 22 / 24, 0.60))  # one image in each seed
    assert level.startswith("Try it (of 2 models without")


def test_models_of_all_bases_compete_and_scratch_counts_once() -> None:
    other = PLACE._replace(backbone="timm/net")
    both = [(PLACE, results(0.80, 0.90, 0.85)), (other, results(0.91, 0.90, 0.85))]
    found = next_step(both)
    assert found.startswith("Try it (of 3 models without")
    assert found.endswith(f"{START}/timm-net/transfer/model.pt")
    equal = [(place, results(0.9, 0.9, 0.9)) for place in (PLACE, other)]
    assert next_step(equal).startswith("Try it (of 5 models without")


def test_models_of_fewer_images_are_not_named() -> None:
    few = (PLACE._replace(train_fraction=0.1), results(0.70, 0.99, 0.70))
    found = next_step([few, (PLACE, results(0.60, 0.80, 0.95))])
    assert found == f"Try it: {START}/scratch/model.pt"


def test_one_stage_alone_is_named() -> None:
    alone = {"finetune": results(0.8, 0.9, 0.8)["finetune"]}
    assert next_step([(PLACE, alone)]) == f"Try it: {START}/finetune/model.pt"


def test_where_classes_are_unequal_the_mean_over_classes_decides() -> None:
    found = results(0.90, 0.93, 0.97)
    for stage, mean, width in (
        ("transfer", 0.6, 0.01),
        ("finetune", 0.8, 0.01),
        ("scratch", 0.5, 1),
    ):
        found[stage]["val_balanced_accuracy"] = mean
        found[stage]["val_balanced_interval"] = [max(0.0, mean - width), min(1.0, mean + width)]
    two = {stage: found[stage] for stage in ("transfer", "finetune")}
    assert next_step([(PLACE, two)]) == f"Try it: {START}/finetune/model.pt"
    said = next_step([(PLACE, found)])  # scratch is judged by too few images of a class
    assert said.startswith("Try it (of 2 models without")
    assert said.endswith(f"{START}/finetune/model.pt")


def test_seeds_that_are_not_compared_have_all_figures_of_unequal_classes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def spreads(**figures: float) -> str:
        found = [results(accuracy, 0.5, 0.5)["transfer"] for accuracy in (0.96, 0.98)]
        say_spreads([(PLACE, {"transfer": {**each, **figures}}) for each in found])  # type: ignore[typeddict-item]
        return capsys.readouterr().out

    plain = "transfer: validation accuracy 97.00 +- 1.41 %, "
    assert spreads() == f"{plain}of 2 seeds\n"
    assert spreads(val_balanced_accuracy=0.5, val_majority=30 / 31) == (
        f"{plain}mean over classes 50.00 +- 0.00 %, always the most frequent class 96.77 %, "
        "of 2 seeds\n"
    )
