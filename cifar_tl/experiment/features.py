"""Frozen features of pictures, kept in files: each picture goes through the network once.

Pictures come a batch at a time, and only features stay. So memory does not grow with their number.
A file holds the features of 256 images. It is sealed, so an interrupted pass goes on after the last
file. Other seeds, fractions and stages read the same files.
"""

import contextlib
import hashlib
import importlib.metadata
import itertools
import json
import math
import time
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor

from cifar_tl.backbone import Network, digest_of
from cifar_tl.checkpoint import load_checkpoint, save_checkpoint
from cifar_tl.data.examples import Data, LabeledImages, class_rows
from cifar_tl.data.pictures.read import stream_images
from cifar_tl.data.views import Version, change, versions_of
from cifar_tl.disk import locked, write_atomically
from cifar_tl.distributed import gather_objects
from cifar_tl.errors import CheckpointError, RunWarning
from cifar_tl.evaluation import evaluating, extract_features
from cifar_tl.frame import Frame, fill, scale
from cifar_tl.machine import autocast
from cifar_tl.names import printable
from cifar_tl.progress import with_bar
from cifar_tl.recipe import Plan, Precision

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

CHUNK = 256  # images in a file
BATCH = 32  # a part of CHUNK: so the batches are the same after an interruption
ABOUT = "about.json"


class Pictures(NamedTuple):
    """N images of a part of the data. A network sees them in its own size."""

    data: Data
    name: str  # train, validation or test
    part: str  # where they are in the data: maybe images of train are for validation
    rows: Tensor  # (N,) int64, of that part

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
        images = getattr(self.data, self.part).images
        for batch in rows.split(BATCH):
            yield torch.stack([_scaled(images[row], frame) for row in batch.tolist()])


def pictures_of(data: Data, classes: Iterable[int]) -> tuple[Pictures, Pictures, Pictures]:
    """Selects the training, validation and test images of some classes."""
    classes = list(classes)
    train, validation = data.train_and_validation_rows(classes)
    held_out = "train" if data.validation is None else "validation"
    test = class_rows(data.test.labels, classes)
    return (
        Pictures(data, "train", "train", train),
        Pictures(data, "validation", held_out, validation),
        Pictures(data, "test", "test", test),
    )


class PictureFeatures(NamedTuple):
    """The features of what a stage learns from and is judged by, each picture in its own size."""

    tensors: tuple[Tensor, Tensor, Tensor]  # (V, N, F), (M, F) and (K, F): train, validation, test
    seconds: float  # of this call
    seconds_before: float  # in which those were computed that were only read
    note: str


def features_of_pictures(
    model: Network,
    data: Data,
    classes: Sequence[int],
    places: Tensor,
    plan: Plan,
    folder: Path | None,
    bar: str | None = None,
    group: "ProcessGroup | None" = None,
) -> PictureFeatures:
    """Computes or reads the features of a stage's images.

    Args:
        model: Its ``forward_features`` is frozen. It computes on its device.
        data: The images.
        classes: Those of the stage.
        places: ``(N,)`` int64: the training images, as places among all of these classes.
        plan: Its views and its precision are used.
        folder: Where features are kept. None: nowhere.
        bar: Text before progress bars on standard error. None: no bars.
        group: Processes that share the work. None: this process alone.

    Raises:
        ImageError: If an image cannot be read any more.
        OSError: If a file cannot be written. The files before it stay.
    """
    begin = time.perf_counter()
    parts = pictures_of(data, classes)
    wanted = [places, *(torch.arange(len(part.rows)) for part in parts[1:])]
    plain = versions_of(mirror=False)
    versions = [versions_of(mirror=plan.mirror, shift=plan.view_shift), plain, plain]
    kept = Kept(folder, _depends_on(model, data, classes, plan.precision))
    found = [
        frozen_features(model, *each, kept, precision=plan.precision, bar=bar, group=group)
        for each in zip(parts, versions, wanted, strict=True)
    ]
    views, val_features, test_features = (each.features for each in found)
    seconds = time.perf_counter() - begin
    before = sum(each.seconds_before for each in found)
    note = f"in {seconds:.2f} s" + _kept_note(kept, before)
    return PictureFeatures((views, val_features[0], test_features[0]), seconds, before, note)


def logits_of(
    model: Network,
    pictures: Pictures,
    precision: Precision,
    *,
    progress: bool = False,
    folder: Path | None = None,
) -> Tensor:
    """Computes the logits ``(N, num_classes)`` of pictures.

    Args:
        model: The model. It computes on its device.
        pictures: N pictures.
        precision: Of the computation.
        progress: Show a bar.
        folder: Where features are kept, if they are.
    """
    data, device = pictures.data, model.mean.device
    if model.frame == data.frame:
        with autocast(precision, device):
            logits: Tensor = extract_features(model, pictures.examples().images)
        return logits.float()
    classes = pictures.examples().labels.unique().tolist()
    kept = Kept(folder, _depends_on(model, data, classes, precision))
    places, plain = torch.arange(len(pictures.rows)), versions_of(mirror=False)
    bar = "images" if progress else None
    found = frozen_features(model, pictures, plain, places, kept, precision=precision, bar=bar)
    with evaluating(model), torch.no_grad(), autocast(precision, device):
        return model.forward_head(found.features[0].to(device)).float()


def _depends_on(
    model: Network, data: Data, classes: Sequence[int], precision: Precision
) -> dict[str, Any]:
    """Lists all that decides the features of an image, as plain values."""
    return {
        "fingerprint": data.fingerprint,
        "classes": list(classes),
        "network": model.describe()["network"],
        "weights_and_preprocessing": digest_of(model),
        "precision": precision,
        "batch": BATCH,
        "device": model.mean.device.type,
        "torch": str(torch.__version__),
        "torchvision": importlib.metadata.version("torchvision"),
        "pillow": PIL.__version__,
        **data.reading,
        **data.software,
    }


def _kept_note(kept: "Kept", seconds_before: float) -> str:
    """Says how large the kept files are, and how long those took that were only read."""
    if kept.folder is None:
        return ""
    size = sum(path.stat().st_size for path in kept.folder.glob("*/*.pt")) / 1e6
    before = f"; computing what was there before took {seconds_before:.1f} s"
    return f", kept in {printable(str(kept.folder))} ({size:.1f} MB)" + (
        before if seconds_before else ""
    )


class Kept(NamedTuple):
    """Where features are kept, and what they depend on."""

    folder: Path | None  # None: nowhere
    depends_on: dict[str, Any]  # plain values

    def path(self, name: str, chunk: int, versions: Sequence[Version]) -> Path:
        """Returns the file of some views of 256 images."""
        views = f"{len(versions)}-views-{max(version.right for version in versions)}"
        return self._own() / f"{name}-{views}-{chunk:05}.pt"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps the files to this process. It waits for others that make them."""
        if self.folder is None:
            yield
            return
        self._own().mkdir(parents=True, exist_ok=True)
        with locked(self._own(), wait=True):
            yield

    def _own(self) -> Path:
        assert self.folder is not None
        return self.folder / hashlib.sha256(json.dumps(self.depends_on).encode()).hexdigest()[:16]


class Chunk(NamedTuple):
    """The features ``(V, n, F)`` of up to 256 images, and the seconds in which they were made."""

    features: Tensor
    seconds: float


class Found(NamedTuple):
    """Features ``(V, N, F)``, and how long those took that were only read."""

    features: Tensor
    seconds_before: float


def frozen_features(
    model: Network,
    pictures: Pictures,
    versions: Sequence[Version],
    wanted: Tensor,
    kept: Kept,
    *,
    precision: Precision,
    bar: str | None = None,
    group: "ProcessGroup | None" = None,
) -> Found:
    """Computes the features of pictures, or reads those that were kept.

    Args:
        model: Its ``forward_features`` is frozen. It computes on its device.
        pictures: All images that any fraction may want.
        versions: The V views of each image: `versions_of`.
        wanted: ``(N,)`` int64, places among the pictures, ascending.
        kept: Where features are kept.
        precision: Of the computation.
        bar: Text before a progress bar. None: no bar.
        group: Processes that share the work. None: this process alone.
    """
    numbers = wanted // CHUNK
    chunks: list[int] = numbers.unique().tolist()
    # Who works alone waits for others that make the same features, and reads those. Processes of a
    # group divide the files, so only the writing of each is locked.
    with kept.locked() if group is None else contextlib.nullcontext():
        found = {
            chunk: content
            for chunk in chunks
            if (content := _read(kept, pictures, chunk, versions, model.num_features)) is not None
        }
        there = gather_objects(list(found), group)  # before a process makes the first one
        missing = [chunk for chunk in chunks if not any(chunk in of for of in there)]
        rank, size = (0, 1) if group is None else (group.rank(), group.size())
        made = _make(model, pictures, versions, missing[rank::size], kept, precision, bar, group)
    # Machines have files of their own: what one has, the others get.
    lent = {
        chunk: found[chunk]
        for chunk in found
        if not all(chunk in of for of in there) and not any(chunk in of for of in there[:rank])
    }
    for of_process in gather_objects({**made, **lent}, group):
        found = {**of_process, **found}
    shape = (len(versions), len(wanted), model.num_features)
    features = torch.empty(shape)
    for chunk in chunks:
        features[:, numbers == chunk] = found[chunk].features[:, wanted[numbers == chunk] % CHUNK]
    return Found(features, sum(found[chunk].seconds for chunk in chunks if chunk not in missing))


def _make(
    model: Network,
    pictures: Pictures,
    versions: Sequence[Version],
    chunks: Sequence[int],
    kept: Kept,
    precision: Precision,
    bar: str | None,
    group: "ProcessGroup | None",
) -> dict[int, Chunk]:
    """Computes the features of some chunks. Threads read pictures while the network computes."""
    device, total = model.mean.device, len(pictures.rows)
    spans = [range(chunk * CHUNK, min((chunk + 1) * CHUNK, total)) for chunk in chunks]
    stream = pictures.stream([place for span in spans for place in span], model.frame)
    batches = with_bar(stream, bar, sum(math.ceil(len(span) / BATCH) for span in spans))
    made: dict[int, Chunk] = {}
    with (
        contextlib.closing(stream),
        evaluating(model),
        torch.no_grad(),
        autocast(precision, device),
    ):
        in_turn = iter(batches)
        for chunk, span in zip(chunks, spans, strict=True):
            start = time.perf_counter()
            parts = []
            for images in itertools.islice(in_turn, math.ceil(len(span) / BATCH)):
                images = images.to(device)
                outputs = [model.forward_features(change(images, v)) for v in versions]
                parts.append(torch.stack(outputs).float().cpu())
            made[chunk] = Chunk(torch.cat(parts, 1), time.perf_counter() - start)
            with contextlib.nullcontext() if group is None else kept.locked():
                _write(kept, pictures.name, chunk, versions, made[chunk])
    return made


def _scaled(image: Tensor, frame: Frame) -> Tensor:
    """Scales an image ``(3, H, W)`` as if it came from a file."""
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    pixels = fill(np.asarray(scale(picture, frame)), frame)
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def _read(
    kept: Kept, pictures: Pictures, chunk: int, versions: Sequence[Version], size: int
) -> Chunk | None:
    """Reads the features of a chunk. None: they are not there, or damaged."""
    if kept.folder is None:
        return None
    path = kept.path(pictures.name, chunk, versions)
    if not path.exists():
        return None
    shape = (len(versions), min(CHUNK, len(pictures.rows) - chunk * CHUNK), size)
    try:
        content = load_checkpoint(path)
        features, seconds = content["features"], float(content["seconds"])
        if features.shape != shape or features.dtype != torch.float32:
            raise TypeError
        if content["place"] != _place(path):
            raise ValueError
    except (CheckpointError, KeyError, TypeError, ValueError, AttributeError):
        warnings.warn(f"{path} is damaged or foreign: it is made anew", RunWarning, stacklevel=2)
        return None
    return Chunk(features, seconds)


def _write(kept: Kept, name: str, chunk: int, versions: Sequence[Version], content: Chunk) -> None:
    if kept.folder is None:
        return
    path = kept.path(name, chunk, versions)
    if not (about := path.parent / ABOUT).exists():  # for people
        write_atomically(about, (json.dumps(kept.depends_on, indent=2) + "\n").encode("ascii"))
    save_checkpoint(path, {**content._asdict(), "place": _place(path)})


def _place(path: Path) -> str:
    """Says what a file holds: a copy of it elsewhere holds something else."""
    return f"{path.parent.name}/{path.name}"
