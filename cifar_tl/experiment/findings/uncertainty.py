"""How sure a figure is: intervals for accuracies, means and differences of several seeds."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

Z = 1.96  # of the normal distribution, for intervals that hold in 95 % of cases

# Of Student's t distribution, two-sided, 95 %, for 1 to 9 degrees of freedom.
# Student 1908, "The probable error of a mean".
_STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)

Interval: TypeAlias = tuple[float, float]  # its lower and its upper end


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


def difference(
    values: Sequence[float],
    others: Sequence[float],
    num_images: int,
    intervals: Sequence[tuple[Interval, Interval]] | None = None,
) -> Difference:
    """Compares accuracies seed by seed: Student's paired test.

    One seed has no spread. Seeds whose differences are the same, to the image, have none either:
    an accuracy is a count, and the test is one of continuous values. Then the images judge, as
    Newcombe (1998) does: the difference must be clear in every seed. See `difference_is_clear`.

    Args:
        values: The accuracy of each seed, a fraction.
        others: Those that they are compared with, of the same seeds.
        num_images: How many images each accuracy was measured on.
        intervals: Of the two accuracies of each seed, if they are means over classes. None: those
            of Wilson.
    """
    found = [value - other for value, other in zip(values, others, strict=True)]
    mean = statistics.mean(found)
    error = statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else None
    if error is not None and max(found) - min(found) > 0.5 / num_images:
        return Difference(mean, error, found, abs(mean) > student_quantile(len(found) - 1) * error)
    pairs = intervals or [
        (wilson_interval(value, num_images), wilson_interval(other, num_images))
        for value, other in zip(values, others, strict=True)
    ]
    each = zip(values, others, pairs, strict=True)
    is_clear = all(difference_is_clear(value, other, *pair) for value, other, pair in each)
    return Difference(mean, error, found, is_clear)


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


def wilson_interval(accuracy: float, num_images: int) -> Interval:
    """Computes the 95 % interval of an accuracy that was measured on a number of images.

    Wilson 1927, "Probable inference, the law of succession, and statistical inference", Journal of
    the American Statistical Association 22.
    """
    square = Z**2 / num_images
    middle = (accuracy + square / 2) / (1 + square)
    half = math.sqrt(accuracy * (1 - accuracy) * square + square**2 / 4) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)


def balanced_interval(correct: Sequence[int], images: Sequence[int]) -> Interval:
    """Computes the 95 % interval of a balanced accuracy from the intervals of the classes.

    Zou and Donner 2008, "Construction of confidence limits about effect measures: A general
    approach", Statistics in Medicine 27.

    Args:
        correct: The number of correct predictions in each class.
        images: The number of images of each class. Classes without images do not count.
    """
    classes = [(right / of, of) for right, of in zip(correct, images, strict=True) if of]
    mean = statistics.mean(accuracy for accuracy, _ in classes)
    found = [(accuracy, *wilson_interval(accuracy, of)) for accuracy, of in classes]
    down = math.hypot(*(accuracy - low for accuracy, low, _ in found)) / len(found)
    up = math.hypot(*(high - accuracy for accuracy, _, high in found)) / len(found)
    return max(0.0, mean - down), min(1.0, mean + up)


def difference_is_clear(
    accuracy: float, other: float, interval: Interval, other_interval: Interval
) -> bool:
    """Returns whether two accuracies differ with 95 % confidence, from their intervals.

    Newcombe 1998, "Interval estimation for the difference between independent proportions",
    Statistics in Medicine 17, method 10. It is rather too careful: both models are judged by the
    same images, and their common answers are not used.
    """
    (low, its), (high, those) = sorted([(accuracy, interval), (other, other_interval)])
    return high - low > math.hypot(high - those[0], its[1] - low)
