"""Name the classes of an image."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cifar_tl.backbone import Network
from cifar_tl.checks import check_tensors
from cifar_tl.errors import CheckpointError
from cifar_tl.evaluation import evaluating


class Prediction(NamedTuple):
    """A class and its probability."""

    label: int
    name: str
    probability: float


def predict(
    model: Network | nn.Module,
    image: Tensor,
    top: int = 3,
    *,
    classes: Mapping[int, str] | None = None,
) -> list[Prediction]:
    """Names the most probable classes of one image, in evaluation mode.

    Args:
        model: For example from `load_model`. It may be any module that returns logits.
        image: As the model takes it. Of a model of this package: ``(3, S, S)`` uint8, S is
            ``image_size``. `read_image` gives it: ``read_image(path, model.white, model.frame)``.
        top: The largest number of classes to return.
        classes: The names of the trained outputs, by number. None: the names that the model has.

    Returns:
        The classes, the most probable first. Untrained outputs are left out: the probabilities of
        all trained ones sum to 1. They are the softmax of the logits, divided by the temperature of
        a model of this package (`fit_temperature`).

    Raises:
        TypeError: If the image is no tensor.
        ValueError: If the outputs have no names.
        CheckpointError: If the outputs are no finite numbers.
    """
    check_tensors(image=image)
    classes = classes or getattr(model, "class_names", None)
    if not classes:
        raise ValueError("the model does not name its outputs: give classes, names by number")
    labels = list(classes)
    with evaluating(model), torch.inference_mode():
        (logits,) = model(image[None])
    if not set(labels) <= set(range(len(logits))):
        raise ValueError(f"classes must be names by number, below {len(logits)}")
    if not logits[labels].isfinite().all():
        raise CheckpointError("the outputs of the model are no finite numbers: use another model")
    temperature = model.temperature if isinstance(model, Network) else 1.0
    probabilities = (logits[labels] / temperature).softmax(0)
    values, places = probabilities.sort(descending=True, stable=True)
    return [
        Prediction(labels[place], classes[labels[place]], value)
        for value, place in zip(values[:top].tolist(), places[:top].tolist(), strict=True)
    ]
