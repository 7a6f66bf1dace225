"""The documented network."""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from cifar_tl.frame import Frame

IMAGE_SIZE = 32
DROPOUT = 0.42
HIDDEN = 128  # values of layer 7


class Dropout(nn.Dropout):
    """torch's dropout, with a mask that costs a CPU an eighth of the time.

    A CPU draws random numbers one after the other. Here one number of 64 bits serves four elements.
    So the probability is rounded to a multiple of 1/65536.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Drops elements in training mode. The input has any shape and floating-point type."""
        return _drop(input, self.p, self.training, self.inplace)


@fx.wrap  # torch.fx cannot trace a function that asks what a tensor is
def _drop(input: Tensor, probability: float, training: bool, inplace: bool) -> Tensor:
    threshold = round(probability * 2**16) - 2**15
    draws_nothing = not training or probability == 0 or threshold == 2**15
    if draws_nothing or inplace or input.device.type != "cpu" or torch.compiler.is_compiling():
        return functional.dropout(input, probability, training, inplace)
    try:
        draws = torch.empty((input.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    except RuntimeError:  # vmap forbids it: it has its own rules for randomness
        return functional.dropout(input, probability, training, inplace)
    kept = draws.view(torch.int16)[: input.numel()].view(input.shape) >= threshold
    return input * kept.to(input.dtype).div_(1 - probability)


class CifarNet(nn.Module):
    """The documented eight-layer network for 32x32 colour images.

    ``features`` is layers 1-5: convolutions, pooling and flattening. ``classifier`` is layers 6-8:
    dropout and two linear layers. The methods have timm's names. Weights start Glorot-uniform,
    drawn from torch's global generator, and biases at zero. There are 119,581 parameters with 5
    classes, 120,226 with 10.

    The model takes images as they are: it does the preprocessing. ``mean`` and ``std``, buffers of
    shape ``(3, 1, 1)``, are saved with the weights. With the defaults, 0 and 1, it divides the
    pixels by 255 and does nothing more.

    Args:
        num_classes: Number of outputs. With 0 the outputs are the 128 values of layer 7.
        dropout: The probability with which layer 6 drops a feature in training.

    Attributes:
        class_names: The names of the trained outputs, by number. `save_model` saves them.
        white: The value of white in images of more than 8 bits, for `read_image`. `load_model`
            sets it.
        frame: How a picture becomes such an image, for `read_image`.
        temperature: `predict` divides the logits by it, before they become probabilities. See
            `fit_temperature`.
    """

    image_size = IMAGE_SIZE
    num_features = 800
    head_hidden_size = HIDDEN
    mean: Tensor
    std: Tensor
    num_classes: int
    features: nn.Sequential
    classifier: nn.Sequential
    class_names: dict[int, str]
    white: dict[str, float]
    temperature: float
    frame: Frame

    def __init__(self, num_classes: int, dropout: float = DROPOUT) -> None:
        super().__init__()
        self.class_names, self.white = {}, {}
        self.frame = Frame()
        self.dropout = dropout
        self.register_buffer("mean", torch.zeros(3, 1, 1))
        self.register_buffer("std", torch.ones(3, 1, 1))
        self.features = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(3, 32, kernel_size=5),
                # Not in place: this would save 1 % of a step, but change what a hook has seen.
                relu1=nn.ReLU(),
                conv2=nn.Conv2d(32, 16, kernel_size=5),
                # Documented is ReLU, then pooling. The result is the same: the maximum of ReLUs
                # is the ReLU of the maximum. This order is a quarter of the work.
                pool=nn.MaxPool2d(2),
                relu2=nn.ReLU(),
                conv3=nn.Conv2d(16, 8, kernel_size=3),
                relu3=nn.ReLU(),
                flatten=nn.Flatten(),
            )
        )
        _glorot_uniform(self.features)
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the classifier by a new one with fresh weights.

        With 0 it only removes the last layer: the outputs are then those of layer 7, ``(N, 128)``.

        Raises:
            ValueError: If ``num_classes`` is negative.
        """
        if num_classes < 0:
            raise ValueError(f"num_classes must be at least 0, not {num_classes}")
        self.num_classes, self.class_names, self.temperature = num_classes, {}, 1.0
        if num_classes == 0 and hasattr(self, "classifier"):
            self.classifier.linear2 = nn.Identity()
            return
        self.classifier = make_classifier(self.num_features, num_classes, self.dropout)
        if self.mean.device.type != "cpu" or self.mean.dtype != torch.float32:
            self.classifier.to(self.mean.device, self.mean.dtype)
        self.classifier.train(self.training)

    def describe(self) -> dict[str, Any]:
        """Lists, as plain values, what a file must say to make this model again."""
        dropout = self.classifier.get_submodule("dropout").p
        return {
            "network": type(self).__name__,
            "num_classes": self.num_classes,
            **({"fit": self.frame.fit} if self.frame.fit != "crop" else {}),
            **({"dropout": dropout} if dropout != DROPOUT else {}),
            **({"temperature": self.temperature} if self.temperature != 1 else {}),
        }

    def get_classifier(self) -> nn.Module:
        """Returns the last layer."""
        return self.classifier[-1]

    def preprocess(self, images: Tensor) -> Tensor:
        """Turns images into the input of the first layer.

        Args:
            images: ``(N, 3, 32, 32)``, either uint8 from 0 to 255 or floating point from 0 to 1.

        Returns:
            ``(N, 3, 32, 32)`` in the type of the weights, normalised by ``mean`` and ``std``.

        Raises:
            ValueError: If the images have another shape or another range. The range is checked only
                on the CPU: on other devices this would cost time.
        """
        return prepare(images, self.mean, self.std, self.image_size)

    def forward_features(self, images: Tensor) -> Tensor:
        """Computes the features ``(N, 800)`` of images (see `preprocess`)."""
        features: Tensor = self.features(self.preprocess(images))
        return features

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Computes the logits ``(N, num_classes)`` of features ``(N, 800)``.

        With ``pre_logits`` it leaves out the last layer and returns ``(N, 128)``.
        """
        outputs: Tensor = (self.classifier[:-1] if pre_logits else self.classifier)(features)
        return outputs

    def forward(self, images: Tensor) -> Tensor:
        """Computes the logits ``(N, num_classes)`` of images (see `preprocess`)."""
        return self.forward_head(self.forward_features(images))


def make_classifier(num_features: int, num_classes: int, dropout: float) -> nn.Sequential:
    """Makes layers 6-8 with fresh weights, for features ``(N, num_features)``.

    With 0 classes layer 8 is missing.
    """
    last = nn.Linear(HIDDEN, num_classes) if num_classes else nn.Identity()
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        dropout=Dropout(dropout),
        linear1=nn.Linear(num_features, HIDDEN),
        relu4=nn.ReLU(),
        linear2=last,
    )
    classifier = nn.Sequential(layers)
    _glorot_uniform(classifier)
    return classifier


@fx.wrap
def prepare(images: Tensor, mean: Tensor, std: Tensor, size: int) -> Tensor:
    """Normalises images, as the ``preprocess`` of a model does it.

    Args:
        images: ``(N, 3, size, size)``, either uint8 from 0 to 255 or floating point from 0 to 1.
        mean: ``(3, 1, 1)``, of pixels from 0 to 1.
        std: ``(3, 1, 1)``.
        size: The height and width that the model takes.

    Returns:
        ``(N, 3, size, size)`` in the type of ``mean``, with the channels last in memory.

    Raises:
        ValueError: If the images have another shape or another range.
    """
    if images.shape[1:] != (3, size, size):
        raise ValueError(f"images must be (N, 3, {size}, {size}), not {tuple(images.shape)}")
    if images.is_floating_point():
        _check_range(images)
    levels = 1 if images.is_floating_point() else 255
    inputs = ((images - levels * mean) / (levels * std)).to(mean.dtype)
    # Channels are last in memory: so convolutions are faster. vmap does not know memory_format.
    return inputs.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def _check_range(images: Tensor) -> None:
    """Raises if floating-point images are not from 0 to 1, but from 0 to 255 or normalised."""
    if images.device.type != "cpu" or torch.compiler.is_compiling() or not images.numel():
        return
    try:
        low, high = (float(value) for value in images.detach().aminmax())
    except RuntimeError:  # vmap lets nobody look at values
        return
    if low < -1 or high > 2:  # augmented images may go a little beyond
        raise ValueError(
            f"floating-point images go from 0 to 1, these from {low:g} to {high:g}: give uint8, "
            "divide by 255, or leave out your normalisation, since the model normalises"
        )


def _glorot_uniform(module: nn.Module) -> None:
    # Glorot and Bengio 2010, "Understanding the difficulty of training deep feedforward neural
    # networks", equation 16: the initialisation behind the documented figures.
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
