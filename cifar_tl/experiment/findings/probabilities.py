"""How far to believe the probabilities of a model: what results say of them."""

import math
from collections.abc import Mapping
from typing import Any, TypedDict

from torch import Tensor

from cifar_tl.calibration import reliability
from cifar_tl.experiment.findings.uncertainty import wilson_interval

UNANSWERED = (0.1, 0.25)  # shares of the images that `unsure_points` leaves without an answer


class UnsurePoint(TypedDict):
    """What happens to validation images if the first class is believed from a probability on."""

    probability: float
    share: float  # of the images that have less: they get no answer
    accuracy: float  # of the others; the mean over classes, if training aimed at it


def probability_figures(
    judged: Mapping[str, tuple[Tensor, Tensor] | None], temperature: float, *, by_class: bool
) -> dict[str, Any]:
    """Lists what ``result.json`` says of probabilities.

    Args:
        judged: For ``"val"`` and ``"test"`` the logits ``(N, K)`` of the trained outputs, and the
            labels ``(N,)``, their columns. None: there are no images.
        temperature: Of the model.
        by_class: Training aimed at the mean over classes: each class then counts the same.
    """
    figures: dict[str, Any] = {"temperature": temperature}
    for part, examples in judged.items():
        before = after = None
        if examples is not None:
            before = reliability(*examples, by_class=by_class)
            after = reliability(*examples, temperature, by_class=by_class)
        figures[f"{part}_calibration_error"] = after and after.error
        figures[f"{part}_calibration_error_before"] = before and before.error
        figures[f"{part}_calibration_error_by_chance"] = after and after.chance
        if part == "val" and examples is not None:
            figures["val_unsure"] = unsure_points(*examples, temperature, by_class=by_class)
    return figures


def unsure_points(
    logits: Tensor, labels: Tensor, temperature: float, *, by_class: bool = False
) -> list[UnsurePoint]:
    """Finds limits of the probability. Below a limit, the model gives no answer.

    Returns:
        For each share of `UNANSWERED` a limit that leaves out no more images than that share, and
        what it does. A share has no limit if it would leave out no image, or no more images than
        the limit before.
    """
    tops, first = (logits.double() / temperature).softmax(1).max(1)
    ranked, right = tops.sort().values, first == labels
    points: list[UnsurePoint] = []
    for share in UNANSWERED:
        limit = ranked[int(share * len(ranked))]
        below = ranked[ranked < limit]
        if not len(below):
            continue
        probability = _between(float(below[-1]), float(limit))
        kept = tops >= probability
        of_kept = right[kept].double()
        if by_class:
            counts = labels[kept].bincount()
            of_kept = labels[kept].bincount(of_kept)[counts > 0] / counts[counts > 0]
        accuracy = float(of_kept.mean())
        left_out = 1 - float(kept.double().mean())
        if left_out > max((point["share"] for point in points), default=0.0):
            points.append({"probability": probability, "share": left_out, "accuracy": accuracy})
    return points


def _between(low: float, high: float) -> float:
    """Finds a number of few digits above ``low``, and at most ``high``."""
    for digits in range(3, 16):
        scale = 10.0**digits
        rounded = math.floor(scale * high) / scale
        if low < rounded <= high:
            return rounded
    return high


def probability_lines(result: Mapping[str, Any]) -> list[str]:
    """Says in three lines how far the probabilities can be believed. Of runs of before: in none.

    Args:
        result: The content of ``result.json``.
    """
    if "temperature" not in result:
        return []
    errors, points = [], []
    for name, part in (("validation", "val"), ("test", "test")):
        of_part = f"{part}_calibration_error"
        if result[of_part] is not None:
            before, by_chance = result[f"{of_part}_before"], result[f"{of_part}_by_chance"]
            errors.append(
                f"{name} {before:.1%} and {result[of_part]:.1%} (by chance {by_chance:.1%})"
            )
    for point in result["val_unsure"]:
        answered = round((1 - point["share"]) * result["images_validation"])
        low, high = wilson_interval(point["accuracy"], answered)
        by_class = result.get("class_balance") == "even"
        points.append(
            f"{point['share']:.0%} are below {point['probability']:.12g}, of the others "
            f"{point['accuracy']:.1%} are right "
            + ("in the mean over classes" if by_class else f"({low:.0%} to {high:.0%})")
        )
    return [
        f"Probabilities: temperature {result['temperature']:g}; calibration error (**) without and "
        f"with it: {', '.join(errors)}",
        f"Unsure: of the validation images {'; '.join(points) or 'none is less sure than others'}",
        "(**) how far probability and accuracy are apart, in 15 bins: Guo et al. (2017)",
    ]
