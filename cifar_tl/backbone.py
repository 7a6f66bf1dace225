"""Any pretrained network as a base: its features, its preprocessing, a new classifier."""

import copy
import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from cifar_tl.errors import first_line
from cifar_tl.evaluation import evaluating
from cifar_tl.frame import Frame
from cifar_tl.freezing import last_layer
from cifar_tl.network import DROPOUT, CifarNet, make_classifier, prepare

FRESH = "fresh"  # instead of weights, in `Backbone.source`: random ones


class Backbone(nn.Module):
    """A network of somebody else's, with the interface of `CifarNet`.

    ``features`` is the network without its last layer. ``classifier`` is that of `CifarNet`, layers
    6-8. There is none at first: with 0 classes the outputs are the features. The model takes images
    as they are: it does the normalisation.

    Args:
        module: A classifier that takes normalised images ``(N, 3, image_size, image_size)``. It is
            copied, and does not change.
        image_size: The height and width of its images, in pixels.
        mean: The mean of each colour channel in its training, for pixels from 0 to 1.
        std: The standard deviation of each.
        classifier: The name of its last layer, such as ``"fc"``. None: `last_layer` finds it.
        frame: How a picture becomes such an image, for `read_images`. None: its middle square,
            scaled.
        name: What results call it, such as ``"resnet50"``.
        source: Plain values that say where its weights are from. They go into its file.

    Attributes:
        class_names: The names of the trained outputs, by number. `save_model` saves them.
        white: The value of white in images of more than 8 bits, for `read_image`.
        temperature: `predict` divides the logits by it, before they become probabilities. See
            `fit_temperature`.

    Raises:
        ValueError: If the module has no such layer, changes its outputs, is not float32, gives no
            finite numbers, or takes no images of this size; or if another value makes no sense.
    """

    name: str
    source: dict[str, Any]
    frame: Frame
    taken_off: str  # the name of the last layer of the module
    features: nn.Module
    num_features: int
    num_classes: int
    mean: Tensor
    std: Tensor
    classifier: nn.Sequential
    class_names: dict[int, str]
    white: dict[str, float]
    temperature: float

    def __init__(
        self,
        module: nn.Module,
        *,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        classifier: str | None = None,
        frame: Frame | None = None,
        name: str | None = None,
        source: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        module = getattr(module, "_orig_mod", module)  # torch.compile wraps it
        self.name = type(module).__name__ if name is None else name
        if not self.name.isprintable() or not self.name.strip("./\\"):
            raise ValueError(f"the name {self.name!r} cannot be that of a folder: give another")
        self.source = {} if source is None else source
        self.frame = Frame(image_size) if frame is None else frame
        if self.frame.size != image_size:
            raise ValueError(f"a frame of {self.frame.size} pixels is not image_size {image_size}")
        if len(mean) != 3 or len(std) != 3 or not all(value > 0 for value in std):
            raise ValueError("mean and std are three numbers each, and those of std are above 0")
        if not all(0 <= value <= 1 for value in mean):
            raise ValueError("mean and std are for pixels from 0 to 1: divide those of 255 by 255")
        if any(
            tensor.is_floating_point() and tensor.dtype != torch.float32
            for tensor in module.state_dict().values()
        ):
            raise ValueError(
                f"the weights of {self.name} must be float32: module.float() makes them so"
            )
        if isinstance(_classifier_of(module), tuple | list):
            raise ValueError(f"{self.name} has several last layers: give a module with one")
        device = next((parameter.device for parameter in module.parameters()), None)
        for of_colours, values in (("mean", mean), ("std", std)):
            tensor = torch.tensor([float(value) for value in values], device=device)
            self.register_buffer(of_colours, tensor.float().view(3, 1, 1))
        self.features = copy.deepcopy(module).to(memory_format=torch.channels_last)
        self.taken_off = last_layer(module) if classifier is None else classifier
        self.num_features = _take_off(self.features, self.taken_off)
        _check_features(self.features, self.taken_off, image_size, device)
        self.reset_classifier(0)

    @property
    def image_size(self) -> int:
        """The height and width of its images, in pixels."""
        return self.frame.size

    def reset_classifier(self, num_classes: int, dropout: float = DROPOUT) -> None:
        """Replaces the classifier by a new one, with fresh weights for ``num_classes`` outputs.

        With 0 there is none: the outputs are then the features.

        Raises:
            ValueError: If ``num_classes`` is negative.
        """
        if num_classes < 0:
            raise ValueError(f"num_classes must be at least 0, not {num_classes}")
        self.num_classes, self.class_names, self.white = num_classes, {}, {}
        self.temperature = 1.0
        if num_classes:
            self.classifier = make_classifier(self.num_features, num_classes, dropout)
        else:
            self.classifier = nn.Sequential(
                OrderedDict(dropout=nn.Dropout(0.0), linear2=nn.Identity())
            )
        self.classifier.to(self.mean.device, self.mean.dtype).train(self.training)

    def get_classifier(self) -> nn.Module:
        """Returns the last layer."""
        return self.classifier[-1]

    def preprocess(self, images: Tensor) -> Tensor:
        """Turns images into the input of the network.

        Args:
            images: ``(N, 3, image_size, image_size)``, either uint8 from 0 to 255 or floating point
                from 0 to 1. `read_images` with `frame` reads files as such.

        Returns:
            The same shape in the type of the weights, normalised by ``mean`` and ``std``.

        Raises:
            ValueError: If the images have another shape or another range.
        """
        return prepare(images, self.mean, self.std, self.image_size)

    def forward_features(self, images: Tensor) -> Tensor:
        """Computes the features ``(N, num_features)`` of images (see `preprocess`)."""
        features: Tensor = self.features(self.preprocess(images))
        return features

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Computes the logits ``(N, num_classes)`` of features ``(N, num_features)``.

        With ``pre_logits`` it leaves out the last layer and returns ``(N, 128)``.
        """
        outputs: Tensor = (self.classifier[:-1] if pre_logits else self.classifier)(features)
        return outputs

    def forward(self, images: Tensor) -> Tensor:
        """Computes the logits ``(N, num_classes)`` of images (see `preprocess`)."""
        return self.forward_head(self.forward_features(images))

    def describe(self) -> dict[str, Any]:
        """Lists, as plain values, what a file must say to make this model again."""
        dropout = self.classifier.get_submodule("dropout").p
        return {
            "network": self.name,
            "num_classes": self.num_classes,
            "taken_off": self.taken_off,
            "frame": {**asdict(self.frame), "padding": list(self.frame.padding)},
            "source": self.source,
            **({"dropout": dropout} if dropout != DROPOUT else {}),
            **({"temperature": self.temperature} if self.temperature != 1 else {}),
        }


Network: TypeAlias = CifarNet | Backbone  # what stages train, and files hold


def digest_of(model: Network) -> str:
    """Computes the SHA-256 of all that decides the features: layers, weights and preprocessing.

    Of layers it knows what they print, not their code nor their other attributes.
    """
    layers = re.sub(" at 0x[0-9a-f]+", "", str(model.features))  # where a function is in memory
    frame = json.dumps(asdict(model.frame))
    digest = hashlib.sha256(f"{frame}\n{layers}".encode())
    state = {**dict(model.named_buffers()), **model.state_dict()}  # some buffers are not saved
    for name in sorted(name for name in state if not name.startswith("classifier.")):
        digest.update(f"{name} ".encode())
        digest.update(state[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _classifier_of(module: nn.Module) -> Any:
    """Returns what a module of timm calls its last layer. Some have two. None: it does not say."""
    get: Any = getattr(module, "get_classifier", None)
    return get() if callable(get) else None


def _take_off(module: nn.Module, name: str) -> int:
    """Replaces the last layer of a module by nothing; returns the size of its input."""
    layer = dict(module.named_modules()).get(name) if name else None  # "" is the module itself
    if isinstance(layer, _TakenOff):
        return layer.size
    if isinstance(layer, nn.Linear):
        size = layer.in_features
    elif isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1):
        size = layer.in_channels  # what follows takes the mean over the places
    else:
        what = "is missing" if layer is None else f"is a {type(layer).__name__}"
        raise ValueError(f"the last layer {name!r} {what}: name a Linear, or a Conv2d of 1x1")
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, _TakenOff(size))
    return size


class _TakenOff(nn.Identity):
    """Stands where the last layer was, and remembers the size of its input."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size


def _check_features(
    module: nn.Module, last: str, image_size: int, device: torch.device | None
) -> None:
    """Runs one image through the features: a wrong size or layer is found here, not in training."""
    name = type(module).__name__
    seen: list[Tensor] = []
    taken_off: Any = module.get_submodule(last)
    handle = taken_off.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    try:
        with evaluating(module), torch.no_grad():
            found = module(torch.zeros(1, 3, image_size, image_size, device=device))
    except Exception as error:  # somebody else's module can raise anything
        raise ValueError(
            f"{name} takes no images of {image_size}x{image_size}: {first_line(error)}"
        ) from error
    finally:
        handle.remove()
    if not isinstance(found, Tensor) or found.shape != (1, taken_off.size):
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"without its last layer {last!r}, {name} gives {shape} and not "
            f"(1, {taken_off.size}): name its last layer"
        )
    if not found.is_meta and not found.isfinite().all():
        raise ValueError(
            f"{name} gives outputs that are no finite numbers: its weights are damaged"
        )
    if found.is_meta or not seen or seen[-1].shape != found.shape:  # a mean follows a Conv2d
        return
    if not torch.allclose(seen[-1], found, rtol=0, atol=0, equal_nan=True):
        raise ValueError(
            f"after its last layer {last!r}, {name} changes the outputs, as by a softmax: take "
            "that out of the module"
        )
