"""How sure a figure is: intervals for accuracies, means and differences of several seeds."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

Z = 1.96  # of the normal distribution, for intervals that hold in 95 % of cases

# Of Student's t distribution, two-sided, 95 %, for 1 to 9 degrees of freedom.
# Student 1908, "The probable error of a mean".
_STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)


class Spread(NamedTuple):
    """The values of several seeds; ``deviation`` is None for a single one."""

    mean: float
    deviation: float | None
    values: list[float]


class Difference(NamedTuple):
    """The differences of two accuracies, seed by seed."""

    mean: float
    standard_error: float | None  # None for a single seed
    values: list[float]
    is_clear: bool  # it is not 0, with 95 % confidence


def spread(values: Sequence[float]) -> Spread:
    """Computes mean and standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.mean(values), deviation, list(values))


def difference(values: Sequence[float], others: Sequence[float], num_images: int) -> Difference:
    """Compares accuracies seed by seed: Student's paired test.

    One seed has no spread. Then `accuracy_difference_is_clear` decides.

    Args:
        values: The accuracy of each seed, a fraction.
        others: Those that they are compared with, of the same seeds.
        num_images: How many images each accuracy was measured on.
    """
    found = [value - other for value, other in zip(values, others, strict=True)]
    mean = statistics.mean(found)
    if len(found) == 1:
        is_clear = accuracy_difference_is_clear(values[0], others[0], num_images)
        return Difference(mean, None, found, is_clear)
    error = statistics.stdev(found) / math.sqrt(len(found))
    return Difference(mean, error, found, abs(mean) > student_quantile(len(found) - 1) * error)


def student_quantile(degrees: int) -> float:
    """Returns the quantile of Student's t distribution, two-sided, 95 %.

    From 10 degrees of freedom on it is a series in the normal quantile, right to 0.001: Abramowitz
    and Stegun 1964, "Handbook of Mathematical Functions", 26.7.5.
    """
    if degrees <= len(_STUDENT):
        return _STUDENT[degrees - 1]
    z = 1.959964  # more digits than `Z`
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3


def wilson_interval(accuracy: float, num_images: int) -> tuple[float, float]:
    """Computes the 95 % interval of an accuracy that was measured on a number of images.

    Wilson 1927, "Probable inference, the law of succession, and statistical inference", Journal of
    the American Statistical Association 22.
    """
    square = Z**2 / num_images
    middle = (accuracy + square / 2) / (1 + square)
    half = math.sqrt(accuracy * (1 - accuracy) * square + square**2 / 4) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)


def accuracy_difference_is_clear(accuracy: float, other: float, num_images: int) -> bool:
    """Returns whether two accuracies differ with 95 % confidence.

    Newcombe 1998, "Interval estimation for the difference between independent proportions",
    Statistics in Medicine 17, method 10. It is rather too careful: both models are judged by the
    same images, and their common answers are not used.
    """
    high, low = max(accuracy, other), min(accuracy, other)
    down = high - wilson_interval(high, num_images)[0]
    up = wilson_interval(low, num_images)[1] - low
    return high - low > math.hypot(down, up)
