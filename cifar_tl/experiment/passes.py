"""A pass of pictures through frozen layers, a file after the other: computed, kept, read.

A file holds what up to 256 pictures became. It is sealed, so an interrupted pass goes on after the
last file. Other seeds, fractions and stages read the same files.
"""

import contextlib
import dataclasses
import errno
import functools
import hashlib
import itertools
import json
import math
import mmap
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from cifar_tl.checkpoint import load_checkpoint, save_checkpoint
from cifar_tl.contents import FeaturesFile
from cifar_tl.data.pictures.kept import not_kept
from cifar_tl.data.views import Version, change, versions_of
from cifar_tl.disk import locked, make_folder, warn_once, write_atomically
from cifar_tl.distributed import gather_objects
from cifar_tl.errors import CheckpointError, RunWarning
from cifar_tl.evaluation import evaluating
from cifar_tl.experiment.frozen import BATCH, Frozen, Pictures
from cifar_tl.machine import autocast
from cifar_tl.progress import with_bar

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

MOST_IN_FILE = 256  # images; a file holds whole batches: the same after an interruption
FILE_SIZE = 32e6  # bytes, if BATCH images are not larger
IN_MEMORY = 500e6  # bytes: more than that is mapped from a file
SPARE = 1e9  # bytes: decoded pictures leave so much space to all else
ABOUT = "about.json"


@dataclass(frozen=True)
class Pass:
    """Pictures that go through frozen layers, a file after the other.

    Attributes:
        frozen: The layers.
        pictures: All images that any fraction may want.
        versions: The V views of each image: `versions_of`.
        kept_in: The folder of all features that are kept. None: these are not kept.
        decoded_in: The folder of all decoded picture files that are kept. None: likewise.
        find_later: Finds the layers that stay frozen in finetune. Their maps are made and kept on
            the way. They then need no pass of their own. None: no maps.
        bar: Text before a progress bar. None: no bar.
        group: Processes that share the work. None: this process alone.
    """

    frozen: Frozen
    pictures: Pictures
    versions: Sequence[Version]
    kept_in: Path | None = None
    decoded_in: Path | None = None
    find_later: Callable[[], Frozen | None] | None = None
    bar: str | None = None
    group: "ProcessGroup | None" = None

    @property
    def decoded(self) -> "Pass":
        """The pass that makes the images for this one. Its files may be kept, too."""
        frozen = dataclasses.replace(self.frozen, tail=None, nothing=True)
        can_be_kept = self.pictures.data.files and not self.frozen.nothing
        kept_in = self.decoded_in if can_be_kept else None
        return Pass(frozen, self.pictures, versions_of(mirror=False), kept_in)

    @functools.cached_property
    def later(self) -> "Pass | None":
        """The pass whose maps this one makes on the way."""
        if self.kept_in is None or self.find_later is None:
            return None
        if (frozen := self.find_later()) is None:
            return None
        later = Pass(frozen, self.pictures, self.versions, self.kept_in)
        return later if later.in_file <= self.in_file else None  # its files fill those of this one

    @functools.cached_property
    def depends_on(self) -> dict[str, Any]:
        """All that decides what the files hold, as plain values."""
        return self.frozen.depends_on(self.pictures)

    @property
    def folder(self) -> Path:
        """The folder of the files. It is named by a digest of all that decides them."""
        assert self.kept_in is not None
        return self.kept_in / hashlib.sha256(json.dumps(self.depends_on).encode()).hexdigest()[:16]

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps the files to this process. It waits for others that make them."""
        if self.kept_in is None:
            yield
            return
        make_folder(self.folder)
        with locked(self.folder, wait=True):
            yield

    @property
    def bytes_of_one(self) -> int:
        """The bytes of one view of one image."""
        return self.frozen.dtype.itemsize * math.prod(self.frozen.shape)

    @property
    def in_file(self) -> int:
        """How many images a file holds: 32, 64, 128 or 256, so that small files fill large ones."""
        number = MOST_IN_FILE
        while number > BATCH and number * self.bytes_of_one > FILE_SIZE:
            number //= 2
        return number

    def span(self, chunk: int) -> range:
        """Returns the places of the images of a file."""
        first = chunk * self.in_file
        return range(first, min(first + self.in_file, len(self.pictures.rows)))

    def path(self, chunk: int) -> Path:
        """Returns a file."""
        views = f"{len(self.versions)}-views-{max(version.right for version in self.versions)}"
        return self.folder / f"{self.pictures.name}-{views}-{chunk:05}.pt"


class Chunk(NamedTuple):
    """The features ``(V, n, ...)`` of a file, and the seconds in which they were made."""

    features: Tensor
    seconds: float


class Found(NamedTuple):
    """Features ``(V, N, ...)``, and how long those took that were only read."""

    features: Tensor
    seconds_before: float


def frozen_features(work: Pass, wanted: Tensor) -> Found:
    """Computes the features of pictures, or reads those that were kept.

    Args:
        work: The pictures, and what computes.
        wanted: ``(N,)`` int64, places among the pictures, ascending.
    """
    numbers, group = wanted // work.in_file, work.group
    chunks: list[int] = numbers.unique().tolist()
    shape = (len(work.versions), len(wanted), *work.frozen.shape)
    features = _room(shape, work.frozen.dtype, work.kept_in)

    def take(chunk: int, content: Chunk) -> None:
        places = wanted[numbers == chunk] % work.in_file
        features[:, numbers == chunk] = content.features[:, places]

    if group is None:
        seconds_before, missing = 0.0, []
        with work.locked():  # another process may make the same: wait, and read those
            for chunk in chunks:
                if (content := _read(work, chunk)) is None:
                    missing.append(chunk)
                else:
                    take(chunk, content)
                    seconds_before += content.seconds
            for chunk, content, before in _make(work, missing):
                take(chunk, content)
                seconds_before += before
        return Found(features, seconds_before)
    # Processes of a group divide the files, so only the writing of each is locked.
    found = {chunk: read for chunk in chunks if (read := _read(work, chunk)) is not None}
    there = gather_objects(list(found), group)  # before a process makes the first one
    missing = [chunk for chunk in chunks if not any(chunk in of for of in there)]
    mine = list(_make(work, missing[group.rank() :: group.size()]))
    made = {chunk: content for chunk, content, _ in mine}
    # Machines have files of their own: what one has, the others get.
    lent = {
        chunk: found[chunk]
        for chunk in found
        if not all(chunk in of for of in there)
        and not any(chunk in of for of in there[: group.rank()])
    }
    for of_process in gather_objects({**made, **lent}, group):
        found = {**of_process, **found}
    for chunk in chunks:
        take(chunk, found[chunk])
    seconds_before = sum(found[chunk].seconds for chunk in chunks if chunk not in missing)
    return Found(features, seconds_before + sum(before for _, _, before in mine))


def _room(shape: Sequence[int], dtype: torch.dtype, folder: Path | None) -> Tensor:
    """Makes a tensor: in memory, or if it is large, in a file that vanishes with it."""
    num_bytes = dtype.itemsize * math.prod(shape)
    if num_bytes <= IN_MEMORY:
        return torch.empty(shape, dtype=dtype)
    if folder is not None:
        make_folder(folder)
    with tempfile.TemporaryFile(dir=folder) as file:
        for start in range(0, num_bytes, 2**20):  # a full disk is found here, not by a crash later
            file.write(bytes(min(2**20, num_bytes - start)))
        file.flush()
        mapped = mmap.mmap(file.fileno(), num_bytes)
    return torch.frombuffer(mapped, dtype=dtype).view(*shape)


def _make(work: Pass, chunks: Sequence[int]) -> Iterator[tuple[int, Chunk, float]]:
    """Computes the features of some files.

    Yields:
        The number of a file, its content, and the seconds that decoding its pictures took in an
        earlier call. The content counts them, too.
    """
    if not chunks:  # no bar, and no folding, for nothing
        return
    frozen, later, spans = work.frozen, work.later, [work.span(chunk) for chunk in chunks]
    model, device = frozen.network, frozen.network.mean.device
    stream = _images(work, [place for span in spans for place in span])
    batches = with_bar(stream, work.bar, sum(math.ceil(len(span) / BATCH) for span in spans))
    in_turn = iter(batches)
    compute = frozen.function(later.frozen.tail if later else None)
    with contextlib.closing(stream), evaluating(model):
        for chunk, span in zip(chunks, spans, strict=True):
            start, before = time.perf_counter(), 0.0
            parts: list[Tensor] = []
            maps: list[Tensor] = []
            with torch.no_grad(), autocast(frozen.precision, device):
                for images, seconds in itertools.islice(in_turn, math.ceil(len(span) / BATCH)):
                    before += seconds
                    images = images.to(device)
                    of_views = [compute(change(images, v)) for v in work.versions]
                    kinds = (torch.stack(of_kind) for of_kind in zip(*of_views, strict=True))
                    part, *made_on_the_way = (kind.to(frozen.dtype).cpu() for kind in kinds)
                    parts.append(part)
                    maps += made_on_the_way
                    if later is not None and _write_maps(later, span, len(parts), maps):
                        maps.clear()
            made = Chunk(torch.cat(parts, 1), time.perf_counter() - start + before)
            with contextlib.nullcontext() if work.group is None else work.locked():
                _write(work, chunk, made)
            yield chunk, made, before


def _write_maps(later: Pass, span: range, batches: int, maps: Sequence[Tensor]) -> bool:
    """Writes maps, as soon as there are those of a whole file.

    Without them the run goes on: another pass can make them. They took no time of their own. The
    pass that made them on the way counts it.

    Args:
        later: The pass that they belong to.
        span: The pictures that go through now.
        batches: The number of their batches that went through.
        maps: ``(V, n, ...)`` of the last batches: those that were not written yet.

    Returns:
        Whether there was a whole file.
    """
    end = min(span.start + batches * BATCH, span.stop)
    chunk = (end - 1) // later.in_file
    if end != later.span(chunk).stop:
        return False
    try:
        with later.locked():
            _write(later, chunk, Chunk(torch.cat(list(maps), 1), 0.0))
    except OSError as error:
        reason = error.strerror or str(error)
        warn_once(f"maps are not kept in {later.kept_in} ({reason}): finetune makes them itself")
    return True


def _images(work: Pass, places: Sequence[int]) -> Generator[tuple[Tensor, float], None, None]:
    """Yields batches of images, in the size of the network. Decoded ones may be kept.

    The pictures of a whole file are decoded before the network sees the first of them. Threads that
    decode beside those of the network slow both down (benchmarks/README.md).

    Args:
        work: The pictures.
        places: Those of whole files of the pass, ascending.

    Yields:
        ``(n, 3, size, size)`` uint8, n is at most `BATCH`. Beside it are the seconds that decoding
        took in an earlier call: all those of a file with its first batch, else 0.
    """
    decoded = work.decoded
    for chunk, group in itertools.groupby(places, lambda place: place // decoded.in_file):
        of_chunk, span, before = list(group), decoded.span(chunk), 0.0
        if (content := _read(decoded, chunk)) is not None:
            images = content.features[0, [place - span.start for place in of_chunk]]
            before = content.seconds * len(of_chunk) / len(span)
        else:
            start = time.perf_counter()
            stream = work.pictures.stream(of_chunk, work.frozen.network.frame)
            with contextlib.closing(stream):
                images = torch.cat(list(stream))
            made = Chunk(images[None], time.perf_counter() - start)
            if decoded.kept_in is not None and len(of_chunk) == len(span):
                _try_to_write(decoded, chunk, made, _bytes_of(work) + _bytes_of(work.later))
        for batch in images.split(BATCH):
            yield batch, before
            before = 0.0


def _read(work: Pass, chunk: int) -> Chunk | None:
    """Reads the features of a file. None: they are not there, or damaged."""
    if work.kept_in is None:
        return None
    path = work.path(chunk)
    if not path.exists():
        return None
    shape = (len(work.versions), len(work.span(chunk)), *work.frozen.shape)
    try:
        content = load_checkpoint(path, kind=FeaturesFile)
        features, seconds = content["features"], content["seconds"]
        if features.shape != shape or features.dtype != work.frozen.dtype:
            raise TypeError
        if content["place"] != _place(path):
            raise ValueError
    except (CheckpointError, TypeError, ValueError):
        warnings.warn(f"{path} is damaged or foreign: it is made anew", RunWarning, stacklevel=2)
        return None
    return Chunk(features, seconds)


def _write(work: Pass, chunk: int, content: Chunk) -> None:
    if work.kept_in is None:
        return
    path = work.path(chunk)
    if not (about := path.parent / ABOUT).exists():  # for people
        text = json.dumps(work.depends_on, indent=2) + "\n"
        write_atomically(about, text.encode("ascii"))
    save_checkpoint(path, {**content._asdict(), "place": _place(path)})


def _try_to_write(decoded: Pass, chunk: int, content: Chunk, needed: int) -> None:
    """Writes decoded pictures. They only save time: without them the run goes on.

    They leave space for features and maps: ``needed`` bytes.
    """
    assert decoded.kept_in is not None
    try:
        with decoded.locked():
            if shutil.disk_usage(decoded.kept_in).free < needed + SPARE:
                raise OSError(errno.ENOSPC, "the disk is almost full")
            _write(decoded, chunk, content)
    except OSError as error:
        warn_once(not_kept(decoded.kept_in, error))


def _bytes_of(work: Pass | None) -> int:
    """Computes the bytes of all features of a pass."""
    if work is None:
        return 0
    return len(work.pictures.rows) * len(work.versions) * work.bytes_of_one


def _place(path: Path) -> str:
    """Says what a file holds: a copy of it elsewhere holds something else."""
    return f"{path.parent.name}/{path.name}"
