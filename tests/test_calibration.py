import math

import pytest
import torch
from torch import Tensor

from cifar_tl.calibration import BINS, fit_temperature, reliability


def drawn(
    number: int, *, seed: int = 0, prior: tuple[float, ...] = (1, 1, 1)
) -> tuple[Tensor, Tensor]:
    """Draws logits whose softmax is right, for classes of this prior, and their labels.

    The logits are those for equal classes.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor(prior).float().multinomial(number, True, generator=generator)
    middles = torch.tensor([[4.0, 0, 0], [0, 1.5, 0], [0, 0, 1.5]], dtype=torch.float64)
    seen = middles[labels] + torch.randn(number, 3, generator=generator, dtype=torch.float64)
    return seen @ middles.T - middles.square().sum(1) / 2, labels  # log densities of normals


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_a_known_temperature_is_found(temperature: float) -> None:
    logits, labels = drawn(20_000)
    found = fit_temperature((temperature * logits).float(), labels)
    assert found == pytest.approx(temperature, rel=0.03)
    assert found == fit_temperature((temperature * logits).float(), labels) == round(found, 3)
    before, after = (reliability(temperature * logits, labels, value) for value in (1, found))
    assert after.error < 0.01
    assert after.error < before.error / 3 or temperature == 1


def test_it_is_the_minimum_of_the_likelihood() -> None:
    logits, labels = drawn(5000, seed=1)
    values = torch.linspace(0.5, 2, 301, dtype=torch.float64)
    losses = [float(torch.nn.functional.cross_entropy(logits / value, labels)) for value in values]
    best = float(values[losses.index(min(losses))])
    assert fit_temperature(logits, labels) == pytest.approx(best, abs=0.01)


def test_few_images_change_little() -> None:
    """Of 6 images the temperature is nearer to 1 than of 60, and of 60 than of all."""
    logits, labels = drawn(6000, seed=2)
    found = []
    for number in (6, 60, 6000):
        parts = zip((4 * logits).split(number), labels.split(number), strict=True)
        logs = [math.log(fit_temperature(*part)) for part in parts]
        found.append(sum(logs) / len(logs))
    assert 0 < found[0] < 0.75 * found[1]
    assert found[1] < found[2] == pytest.approx(math.log(4), abs=0.1)


@pytest.mark.parametrize("right", [True, False])
def test_images_that_are_all_right_or_all_wrong_give_no_extreme(right: bool) -> None:
    logits = torch.tensor([[5.0, 0.0, 0.0]]).repeat(10, 1)
    found = fit_temperature(logits, torch.full((10,), 0 if right else 1))
    assert 0.7 < found < 1 if right else 1 < found <= 16
    assert fit_temperature(logits[:, :1], torch.zeros(10, dtype=torch.int64)) == 1  # one class


def test_by_class_a_rare_class_counts_as_if_it_had_as_many_images() -> None:
    logits, labels = drawn(20_000, prior=(20, 1, 0))
    logits[labels == 1] *= 3  # the model is too sure of the rare class alone
    rare, others = (labels == 1).nonzero().flatten(), (labels == 0).nonzero().flatten()
    times = len(others) // len(rare)
    equal = torch.cat([others[: times * len(rare)], rare.repeat(times)])
    each = equal.unique()
    found = fit_temperature(logits[each], labels[each], by_class=True)
    assert found == pytest.approx(fit_temperature(logits[equal], labels[equal]), rel=0.02)
    assert abs(found - fit_temperature(logits[each], labels[each])) > 0.1
    error = reliability(logits[each], labels[each], by_class=True).error
    assert error == pytest.approx(reliability(logits[equal], labels[equal]).error)
    assert abs(error - reliability(logits[each], labels[each]).error) > 0.005


def test_unequal_classes_are_worth_fewer_images() -> None:
    logits, labels = torch.tensor([[3.0, 0.0], [0.0, 3.0]]), torch.tensor([1, 0])  # both are wrong
    many = torch.cat([torch.zeros(999, dtype=torch.int64), torch.ones(1, dtype=torch.int64)])
    found = fit_temperature(logits[many], labels[many], by_class=True)
    # 4 / (1 / 999 + 1) images, not 1,000
    assert found == pytest.approx(fit_temperature(logits.repeat(2, 1), labels.repeat(2)), abs=0.01)


def test_reliability_by_hand() -> None:
    tops = torch.tensor([0.55, 0.58, 0.9, 0.95, 1.0], dtype=torch.float64)
    logits = torch.stack([tops.log(), (1 - tops).clamp_min(1e-300).log()], 1)
    found = reliability(logits, torch.tensor([0, 1, 0, 0, 1]))
    # Bins of a fifteenth: 0.533 to 0.6, 0.867 to 0.933, 0.933 to 1
    assert found.shares.nonzero().flatten().tolist() == [8, 13, 14]
    assert found.shares[found.shares > 0].tolist() == pytest.approx([0.4, 0.2, 0.4])
    assert found.confidences[[8, 13, 14]].tolist() == pytest.approx([0.565, 0.9, 0.975])
    assert found.accuracies[[8, 13, 14]].tolist() == [0.5, 1, 0.5]
    assert found.error == pytest.approx(0.4 * 0.065 + 0.2 * 0.1 + 0.4 * 0.475)
    assert len(found.shares) == BINS == 15


def test_chance_is_the_error_of_right_probabilities_on_so_few_images() -> None:
    found = [reliability(*drawn(100, seed=seed)) for seed in range(200)]
    error, chance = (sum(getattr(each, name) for each in found) for name in ("error", "chance"))
    assert chance == pytest.approx(error, rel=0.1)


def test_labels_must_fit() -> None:
    with pytest.raises(ValueError, match="labels go up to 3, but there are only 3 logits"):
        fit_temperature(torch.zeros(2, 3), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="must have the same length, at least 1"):
        reliability(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
