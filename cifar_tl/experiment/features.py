"""What a stage sees of pictures: frozen features, each computed once; and the logits of pictures.

If the last layers learn, too, it sees the maps that those layers take. If all layers learn, it sees
the images themselves, in the size of the network.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from cifar_tl.backbone import Backbone, Network
from cifar_tl.data.examples import Data
from cifar_tl.data.views import versions_of
from cifar_tl.disk import megabytes_in
from cifar_tl.evaluation import evaluating, extract_features
from cifar_tl.experiment.frozen import Frozen, Pictures, pictures_of
from cifar_tl.experiment.passes import Pass, frozen_features
from cifar_tl.machine import autocast
from cifar_tl.names import printable
from cifar_tl.prediction import MirrorAverage
from cifar_tl.recipe import Plan, Precision

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Cache(NamedTuple):
    """What is kept, in which folders. None: it is not kept."""

    features: Path | None = None  # features and maps
    pictures: Path | None = None  # decoded picture files, in the size of a network
    find_later: Callable[[], Frozen | None] | None = None  # see `Pass`


class Cost(NamedTuple):
    """How long features took."""

    seconds: float  # of this call
    seconds_before: float = 0.0  # of earlier calls, for what this call only read
    note: str = ""


class PictureFeatures(NamedTuple):
    """The features of what a stage learns from and is judged by, each picture in its own size."""

    tensors: tuple[Tensor, Tensor, Tensor]  # (V, N, ...), (M, ...), (K, ...): train, val, test
    cost: Cost


def features_of_pictures(
    frozen: Frozen,
    data: Data,
    classes: Sequence[int],
    places: Tensor,
    plan: Plan,
    cache: Cache,
    bar: str | None = None,
    group: "ProcessGroup | None" = None,
) -> PictureFeatures:
    """Computes or reads the features of a stage's images.

    Args:
        frozen: What computes them.
        data: The images.
        classes: Those of the stage.
        places: ``(N,)`` int64: the training images, as places among all of these classes.
        plan: Its views are used.
        cache: What is kept, and where.
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
    passes = [
        Pass(frozen, part, of_part, *cache, bar, group)
        for part, of_part in zip(parts, versions, strict=True)
    ]
    found = [frozen_features(work, rows) for work, rows in zip(passes, wanted, strict=True)]
    views, val_features, test_features = (each.features for each in found)
    seconds = time.perf_counter() - begin
    before = sum(each.seconds_before for each in found)
    cost = Cost(seconds, before, f"in {seconds:.2f} s" + _kept_note(passes[0], before))
    return PictureFeatures((views, val_features[0], test_features[0]), cost)


def logits_of(
    model: Network,
    pictures: Pictures,
    precision: Precision,
    *,
    mirror_average: bool = False,
    progress: bool = False,
    cache: Cache | None = None,
) -> Tensor:
    """Computes the logits ``(N, num_classes)`` of pictures.

    Args:
        model: The model. It computes on its device.
        pictures: N pictures.
        precision: Of the computation.
        mirror_average: Average them with those of the mirror images: see `MirrorAverage`.
        progress: Show a bar.
        cache: What is kept, and where. None: nothing.
    """
    device = model.mean.device
    if not isinstance(model, Backbone):  # it sees the images that are in memory
        module = MirrorAverage(model) if mirror_average else model
        with autocast(precision, device):
            logits: Tensor = extract_features(module, pictures.examples().images)
        return logits.float()
    frozen = Frozen(model, precision)
    versions, bar = versions_of(mirror=mirror_average), "images" if progress else None
    work = Pass(frozen, pictures, versions, *(cache or Cache()), bar)
    found = frozen_features(work, torch.arange(len(pictures.rows)))
    with evaluating(model), torch.no_grad(), autocast(precision, device):
        views = [model.forward_head(view.to(device)).float() for view in found.features]
    return torch.stack(views).mean(0)


def _kept_note(work: Pass, seconds_before: float) -> str:
    """Says how large the kept files are, and how long those took that were only read."""
    folder = work.kept_in or work.decoded.kept_in
    if folder is None or not folder.is_dir():
        return ""
    what, doing = ("kept", "computing") if work.kept_in else ("decoded pictures kept", "decoding")
    before = f"; {doing} what was there before took {seconds_before:.1f} s"
    return f", {what} in {printable(str(folder))} ({megabytes_in(folder)} in all)" + (
        before if seconds_before else ""
    )
