"""Frozen layers of a network, and the pictures that go through them, each in the network's size."""

import contextlib
import functools
import importlib.metadata
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import PIL
import torch
from torch import Tensor

from cifar_tl.backbone import Network, digest_of
from cifar_tl.data.examples import Data, LabeledImages, class_rows
from cifar_tl.data.npz import to_square
from cifar_tl.data.pictures.read import stream_images
from cifar_tl.folding import folded
from cifar_tl.frame import Frame
from cifar_tl.pretrained import TIMM
from cifar_tl.recipe import Precision
from cifar_tl.tail import Tail, maps_of, outputs_and_maps

BATCH = 32  # pictures that go through at a time


class Pictures(NamedTuple):
    """N images of a part of the data. A network sees them in its own size."""

    data: Data
    name: str  # train, validation or test
    part: str  # where they are in the data: maybe images of train are for validation
    rows: Tensor  # (N,) int64, of that part
    classes: tuple[int, ...]  # these are all images of these classes

    def examples(self) -> LabeledImages:
        """Returns the N images as they are in memory."""
        examples: LabeledImages = getattr(self.data, self.part)
        return LabeledImages(examples.images[self.rows], examples.labels[self.rows])

    def stream(self, places: Sequence[int], frame: Frame) -> Generator[Tensor, None, None]:
        """Yields the images at some places, ``(n, 3, size, size)`` uint8, n is at most `BATCH`."""
        rows = self.rows[list(places)]
        if files := self.data.files.get(self.part):
            paths = [files[row] for row in rows.tolist()]
            white = self.data.reading.get("white", {})
            with contextlib.closing(
                stream_images(paths, frame, white=white, batch_size=BATCH)
            ) as batches:
                yield from batches
            return
        images = self.data.originals.get(self.part)
        if images is None:  # they have 32 pixels
            images = getattr(self.data, self.part).images.permute(0, 2, 3, 1).numpy()
        for batch in rows.split(BATCH):
            pixels = np.stack([to_square(images[row], frame) for row in batch.tolist()])
            yield torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())


def pictures_of(data: Data, classes: Iterable[int]) -> tuple[Pictures, Pictures, Pictures]:
    """Selects the training, validation and test images of some classes."""
    classes = tuple(classes)
    train, validation = data.train_and_validation_rows(classes)
    held_out = "train" if data.validation is None else "validation"
    test = class_rows(data.test.labels, classes)
    return (
        Pictures(data, "train", "train", train, classes),
        Pictures(data, "validation", held_out, validation, classes),
        Pictures(data, "test", "test", test, classes),
    )


@dataclass(frozen=True)
class Frozen:
    """Layers of a network that stay as they are, and how they compute."""

    network: Network  # it computes on its device
    precision: Precision
    tail: Tail | None = None  # the last layers, if they learn. None: features, else maps
    nothing: bool = False  # all layers learn: it computes nothing of the images

    @functools.cached_property
    def digest(self) -> str:
        """The digest of the network, computed once: large weights take seconds."""
        return digest_of(self.network)

    def function(self, later: Tail | None = None) -> Callable[[Tensor], tuple[Tensor, ...]]:
        """Makes the function that computes the features or the maps ``(N, ...)`` of images.

        Args:
            later: A tail that will learn after this. The function computes its maps, too.
        """
        network, tail = self.network, self.tail
        if self.nothing:
            return lambda images: (images,)
        features = folded(network.features, network.image_size)
        if tail is not None:
            return lambda images: (maps_of(features, tail, network.preprocess(images)),)
        if later is not None:
            return lambda images: outputs_and_maps(features, later, network.preprocess(images))
        return lambda images: (features(network.preprocess(images)),)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of what it computes of one image."""
        if self.nothing:
            return (3, self.network.image_size, self.network.image_size)
        return (self.network.num_features,) if self.tail is None else self.tail.shape

    @property
    def dtype(self) -> torch.dtype:
        """The type of what it computes."""
        return torch.uint8 if self.nothing else torch.float32

    def depends_on(self, pictures: Pictures) -> dict[str, Any]:
        """Lists all that decides what it computes of some pictures, as plain values."""
        data = pictures.data
        images = {"fingerprint": data.fingerprint, "classes": list(pictures.classes)}
        reading = {"pillow": PIL.__version__, **data.reading, **data.software}
        reading |= {"scaled_from": "the file"} if data.originals else {}
        if self.nothing:
            return {**images, "frame": asdict(self.network.frame), **reading}
        name = str(self.network.describe()["network"])
        return {
            **images,
            "network": name,
            "weights_and_preprocessing": self.digest,
            "precision": self.precision,
            "batch": BATCH,
            "batch_norms": "folded",
            "device": self.network.mean.device.type,
            "torch": str(torch.__version__),
            "torchvision": importlib.metadata.version("torchvision"),
            **reading,
            **({"timm": importlib.metadata.version("timm")} if name.startswith(TIMM) else {}),
            **({} if self.tail is None else {"maps_before": self.tail.first}),
        }
