"""Name the classes of images."""

import math
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cifar_tl.backbone import Network
from cifar_tl.checks import check_tensors
from cifar_tl.errors import CheckpointError, ImageError
from cifar_tl.evaluation import evaluating, extract_features
from cifar_tl.network import IMAGE_SIZE

BATCH, BATCH_OF_LARGE = 32, 4  # images; those of a pretrained network are large


class Prediction(NamedTuple):
    """A class and its probability."""

    label: int
    name: str
    probability: float


class MirrorAverage(nn.Module):
    """A model that averages the logits of an image and of its mirror image.

    It takes twice the time. It is for models that were trained on mirror images. The file of a
    model says so, and the commands refuse other files. The model itself does not know. `predict`,
    `predict_each`, `evaluate` and `extract_features` take it as they take the model.

    Attributes:
        module: The model.
    """

    def __init__(self, module: Network) -> None:
        super().__init__()
        self.module = module
        self.class_names: dict[int, str] = module.class_names
        self.image_size: int = module.image_size

    def forward(self, images: Tensor) -> Tensor:
        """Computes the logits ``(N, num_classes)`` of images ``(N, 3, S, S)``."""
        logits: Tensor = (self.module(images) + self.module(images.flip(-1))) / 2
        return logits


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
        ValueError: If the outputs have no names, or ``top`` is below 1.
        CheckpointError: If the outputs are no finite numbers.
    """
    check_tensors(image=image)
    classes = _named(model, classes, top)
    with evaluating(model), torch.inference_mode():
        logits = model(image[None])
    (predictions,) = _most_probable(model, logits, top, classes)
    return predictions


def predict_each(
    model: Network | nn.Module,
    images: Iterable[Tensor | ImageError],
    top: int = 3,
    *,
    classes: Mapping[int, str] | None = None,
) -> Generator[list[Prediction] | ImageError, None, None]:
    """Names the most probable classes of each of many images, as `predict` does for one.

    They are computed in batches, on the device of the model. Each batch is filled up to the same
    size: so an answer does not depend on the other images. It differs from that of `predict` by
    rounding.

    Args:
        model: As for `predict`.
        images: As `predict` takes them, one after the other. Errors may be among them: `read_each`
            gives both.
        top: The largest number of classes for each image.
        classes: As for `predict`.

    Yields:
        The classes of each image, the most probable first. Errors stay in their places.

    Raises:
        ValueError: If the outputs have no names, or ``top`` is below 1.
        CheckpointError: If the outputs are no finite numbers.
    """
    classes = _named(model, classes, top)
    most = BATCH if getattr(model, "image_size", IMAGE_SIZE) <= IMAGE_SIZE else BATCH_OF_LARGE
    batch: list[Tensor | ImageError] = []
    size = 1  # small at first: the first answers come soon
    for image in images:
        if not isinstance(image, ImageError):
            check_tensors(image=image)
        batch.append(image)
        if len(batch) == size:
            yield from _predict_batch(model, batch, most, top, classes)
            size, batch = min(2 * size, most), []
    yield from _predict_batch(model, batch, most, top, classes)


def _predict_batch(
    model: Network | nn.Module,
    found: Sequence[Tensor | ImageError],
    size: int,
    top: int,
    classes: Mapping[int, str],
) -> Iterator[list[Prediction] | ImageError]:
    """Yields the predictions of a batch, filled up to a size. Errors stay in their places."""
    images = [image for image in found if not isinstance(image, ImageError)]
    predictions: Iterator[list[Prediction]] = iter(())
    if images:
        filling = [torch.zeros_like(images[0])] * (size - len(images))
        logits = extract_features(model, torch.stack([*images, *filling]), batch_size=size)
        predictions = iter(_most_probable(model, logits[: len(images)].cpu(), top, classes))
    for image in found:
        yield image if isinstance(image, ImageError) else next(predictions)


def _named(model: object, classes: Mapping[int, str] | None, top: int) -> Mapping[int, str]:
    """Returns the names of the trained outputs."""
    if top < 1:
        raise ValueError(f"top must be at least 1, not {top}")
    classes = classes or getattr(model, "class_names", None)
    if not classes:
        raise ValueError("the model does not name its outputs: give classes, names by number")
    return classes


def _most_probable(
    model: Network | nn.Module, logits: Tensor, top: int, classes: Mapping[int, str]
) -> list[list[Prediction]]:
    """Finds the most probable classes of N images by their logits ``(N, num_classes)``."""
    labels = list(classes)
    probabilities = probabilities_of(logits, labels, _temperature(model))
    values, places = probabilities.sort(descending=True, stable=True)
    return [
        [
            Prediction(labels[place], classes[labels[place]], value)
            for value, place in zip(*of_image, strict=True)
        ]
        for of_image in zip(values[:, :top].tolist(), places[:, :top].tolist(), strict=True)
    ]


def _temperature(model: object) -> float:
    """Returns the temperature of a model of this package, also in a wrapper of torch's."""
    while not isinstance(model, Network):
        model = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if model is None:
            return 1.0
    return model.temperature


def probabilities_of(logits: Tensor, labels: Sequence[int], temperature: float = 1.0) -> Tensor:
    """Computes the probabilities of the trained outputs.

    Args:
        logits: ``(N, num_classes)``.
        labels: The K trained outputs.
        temperature: The logits are divided by it.

    Returns:
        ``(N, K)``. Each row sums to 1.

    Raises:
        ValueError: If there is no such output, or the temperature is not above 0.
        CheckpointError: If the logits are no finite numbers.
    """
    if not set(labels) <= set(range(logits.shape[1])):
        raise ValueError(f"classes must be names by number, below {logits.shape[1]}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"model.temperature must be a number above 0, not {temperature}")
    trained = logits[:, labels]
    if not trained.isfinite().all():
        raise CheckpointError("the outputs of the model are no finite numbers: use another model")
    return (trained / temperature).softmax(1)
