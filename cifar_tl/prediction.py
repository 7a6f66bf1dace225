"""Name the classes of an image."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from cifar_tl.backbone import Network
from cifar_tl.evaluation import evaluating


class Prediction(NamedTuple):
    """A class and its probability."""

    label: int
    name: str
    probability: float


def predict(
    model: Network, image: Tensor, top: int = 3, *, classes: Mapping[int, str] | None = None
) -> list[Prediction]:
    """Names the most probable classes of one image, in evaluation mode.

    Args:
        model: For example from `load_model`.
        image: ``(3, S, S)`` uint8, S is ``image_size``. `read_image` gives it: ``read_image(path,
            model.white, model.frame)``.
        top: The largest number of classes to return.
        classes: The names of the trained outputs, by number. None: the names that the model has.

    Returns:
        The classes, the most probable first. Untrained outputs are left out: the probabilities of
        all trained ones sum to 1.

    Raises:
        ValueError: If the outputs have no names.
    """
    classes = classes or model.class_names
    if not classes:
        raise ValueError("the model does not name its outputs: give classes, names by number")
    labels = list(classes)
    if not set(labels) <= set(range(model.num_classes)):
        raise ValueError(f"classes must be names by number, below {model.num_classes}")
    with evaluating(model), torch.inference_mode():
        probabilities = model(image[None])[0, labels].softmax(0)
    values, places = probabilities.sort(descending=True, stable=True)
    return [
        Prediction(labels[place], classes[labels[place]], value)
        for value, place in zip(values[:top].tolist(), places[:top].tolist(), strict=True)
    ]
