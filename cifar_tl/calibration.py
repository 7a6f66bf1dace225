"""Probabilities that can be believed: one temperature, fitted on validation images.

Logits are divided by the temperature before they become probabilities. This changes no order: the
first class stays the first. Guo et al. 2017, "On calibration of modern neural networks".
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from cifar_tl.checks import check_examples, check_logits

BINS = 15  # of the top probability: as many as Guo et al. have
LOWEST, HIGHEST = 1 / 16, 16.0  # temperatures that are tried
SPREAD = 0.5  # of the logarithms of temperatures that are likely before any image is seen
_POINTS, _ROUNDS = 13, 5  # each round narrows the search to a sixth: in the end to 0.04 %


def fit_temperature(logits: Tensor, labels: Tensor, *, by_class: bool = False) -> float:
    """Fits the temperature of a model on images that it was not trained on.

    It minimises the negative log likelihood of ``logits / temperature``. A few images say little.
    So the logarithm of the temperature has a normal prior around 0, with the deviation `SPREAD`:
    of few images the temperature is close to 1.

    Args:
        logits: ``(N, K)`` finite numbers, N > 0, of the trained outputs alone.
        labels: ``(N,)`` integers, columns of the logits.
        by_class: All classes count the same, as for a model that was trained to be right in the
            mean over classes. Otherwise all images count the same.

    Returns:
        The temperature, from 1/16 to 16, rounded to three decimals. It is 1 if nothing is to be
        changed. ``model.temperature`` takes it.

    Raises:
        ValueError: If the labels do not fit the logits, or these are no finite numbers.
        TypeError: If something is not a tensor, or labels are not integers.
    """
    logits, labels = _checked(logits, labels)
    weights = _weights(labels, by_class)

    def cost(log: float) -> float:
        losses = functional.cross_entropy(logits / math.exp(log), labels, reduction="none")
        return float(weights @ losses) + (log / SPREAD) ** 2 / 2

    # A grid finds the right valley, also where the likelihood is flat. Finer grids follow.
    low, high = math.log(LOWEST), math.log(HIGHEST)
    for _ in range(_ROUNDS):
        step = (high - low) / (_POINTS - 1)
        best = min((low + step * point for point in range(_POINTS)), key=cost)
        low, high = best - step, best + step
    return round(min(max(math.exp(best), LOWEST), HIGHEST), 3)


class Reliability(NamedTuple):
    """How right a model is where it says how sure it is: a reliability diagram in numbers.

    Attributes:
        shares: ``(BINS,)`` float64: the share of the examples in each bin of the top probability.
        confidences: ``(BINS,)`` float64: the mean of their top probability, 0 in an empty bin.
        accuracies: ``(BINS,)`` float64: the share of them whose first class is right.
        error: The expected calibration error: the mean over examples of how far confidence and
            accuracy of their bin are apart. Guo et al. 2017, equation 3.
        chance: What the error would be on so few examples, in the mean, if all probabilities were
            right.
    """

    shares: Tensor
    confidences: Tensor
    accuracies: Tensor
    error: float
    chance: float


def reliability(
    logits: Tensor, labels: Tensor, temperature: float = 1.0, *, by_class: bool = False
) -> Reliability:
    """Compares how sure a model is with how often it is right, in bins of the top probability.

    Arguments and errors are those of `fit_temperature`. The bins have equal widths.
    """
    logits, labels = _checked(logits, labels)
    weights = _weights(labels, by_class)
    weights /= weights.sum()
    tops, first = (logits / temperature).softmax(1).max(1)
    bins = (tops * BINS).ceil().long().sub(1).clamp(0, BINS - 1)

    def per_bin(values: Tensor) -> Tensor:
        return torch.zeros(BINS, dtype=torch.float64).index_add(0, bins, values)

    shares = per_bin(weights)
    right, said = per_bin(weights * (first == labels)), per_bin(weights * tops)
    # In a bin, the number of right answers varies with the sum of p (1 - p). A normal variable is
    # sqrt(2 / pi) of its deviation away from its mean, in the mean.
    by_chance = per_bin(weights**2 * tops * (1 - tops)).sqrt().sum() * math.sqrt(2 / math.pi)
    divisor = shares.clamp_min(1e-300)
    error = float((right - said).abs().sum())
    return Reliability(shares, said / divisor, right / divisor, error, float(by_chance))


def _checked(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    labels = check_examples(logits, labels, None, "logits").cpu()
    check_logits(logits, int(labels.max()))
    if not logits.isfinite().all():
        raise ValueError("the logits must be finite numbers")
    return logits.detach().cpu().double(), labels


def _weights(labels: Tensor, by_class: bool) -> Tensor:
    """Weighs examples: ``(N,)`` float64. The sum is how many equal examples they are worth.

    Kish 1965, "Survey sampling".
    """
    counts = labels.bincount().double()
    weights = 1 / counts[labels] if by_class else torch.ones(len(labels), dtype=torch.float64)
    return weights * (weights.sum() / (weights**2).sum())
