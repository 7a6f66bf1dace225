import math

import pytest
import torch

from cifar_tl.experiment.findings.uncertainty import (
    difference,
    spread,
    student_quantile,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("accuracy", "images", "low", "high"),
    [  # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I
        (81 / 263, 263, 0.2553, 0.3662),
        (15 / 148, 148, 0.0624, 0.1605),
        (0 / 20, 20, 0.0, 0.1611),
        (1 / 29, 29, 0.0061, 0.1718),
    ],
)
def test_the_interval_is_the_published_one(
    accuracy: float, images: int, low: float, high: float
) -> None:
    assert wilson_interval(accuracy, images) == pytest.approx((low, high), abs=6e-5)


def test_the_interval_holds_what_it_should_in_most_cases() -> None:
    generator = torch.Generator().manual_seed(0)
    found = (torch.rand(2000, 24, generator=generator) < 0.8).double().mean(1).tolist()
    held = sum(low <= 0.8 <= high for low, high in (wilson_interval(a, 24) for a in found))
    assert 0.93 < held / 2000 < 0.98


def test_few_images_cannot_tell_accuracies_apart() -> None:
    def is_clear(accuracy: float, other: float, images: int) -> bool:
        return difference([accuracy], [other], images).is_clear

    assert not is_clear(20 / 24, 16 / 24, 24)
    assert is_clear(0.86, 0.80, 5000)
    assert is_clear(0.80, 0.86, 5000)
    assert not is_clear(0.8, 0.8, 5000)
    # Newcombe 1998, "Interval estimation for the difference", table II, (a): 0.0524 to 0.3339,
    # of 56/70 and 48/80; here with as many images on both sides.
    assert is_clear(56 / 70, 42 / 70, 70)
    assert not is_clear(56 / 70, 48 / 70, 70)


def test_where_the_seeds_agree_the_images_judge() -> None:
    """One image of 33 in each of two seeds has no spread, and says little."""
    found = difference([31 / 33, 30 / 33], [30 / 33, 29 / 33], 33)
    assert found.standard_error == pytest.approx(0, abs=1e-9)
    assert not found.is_clear
    assert difference([31 / 33, 30 / 33], [15 / 33, 14 / 33], 33).is_clear
    assert not difference([1, 20 / 33], [27 / 33, 14 / 33], 33).is_clear  # in one seed alone
    # Of means over classes their own intervals judge, here of a class with few images.
    wide = [((0.5, 1.0), (0.4, 0.9))] * 2
    assert not difference([0.9, 0.9], [0.7, 0.7], 1000, wide).is_clear
    assert difference([0.9, 0.9], [0.7, 0.7], 1000).is_clear


def test_spread_of_one_value_is_unknown() -> None:
    assert spread([0.5]) == (0.5, None, [0.5])
    assert spread([0.4, 0.6])[:2] == pytest.approx((0.5, 0.1 * math.sqrt(2)))


def test_differences_are_taken_seed_by_seed() -> None:
    found = difference([0.5, 0.7, 0.9], [0.4, 0.6, 0.8], 1000)  # far apart, and always by 0.1
    assert found.mean == pytest.approx(0.1)
    assert found.is_clear
    assert found.standard_error == pytest.approx(0, abs=1e-9)
    mixed = difference([0.5, 0.7, 0.9], [0.4, 0.75, 0.8], 10_000)
    assert mixed.mean == pytest.approx(0.05)
    assert mixed.standard_error == pytest.approx(0.05)  # of 0.1, -0.05, 0.1
    assert not mixed.is_clear
    for images, is_clear in ((5, False), (5000, True)):  # one seed has no spread: images judge
        alone = difference([0.9], [0.6], images)
        assert alone.mean == pytest.approx(0.3)
        assert (alone.standard_error, alone.is_clear) == (None, is_clear)
    # Two seeds would have to agree very well: Student's quantile is 12.7.
    assert not difference([0.55, 0.57], [0.5, 0.5], 10_000).is_clear
    assert difference([0.55, 0.551], [0.5, 0.5], 10_000).is_clear


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.71), (2, 4.30), (9, 2.26), (10, 2.228), (12, 2.179), (20, 2.086), (120, 1.980)],
)
def test_student_quantiles_are_those_of_the_tables(degrees: int, quantile: float) -> None:
    assert student_quantile(degrees) == pytest.approx(quantile, abs=5e-4)


def test_many_seeds_find_what_ten_could_not() -> None:
    noise = [0.01, -0.01] * 10 + [0.0]  # its standard error is 0.0022
    clear, unclear = (
        difference([0.5 + shift + value for value in noise], [0.5] * 21, 100).is_clear
        for shift in (0.0047, 0.0044)  # 2.15 and 2.02 of these
    )
    assert clear
    assert not unclear
