"""Where images come from, and which of them train, validate and test."""

import contextlib
import hashlib
import math
import socket
import ssl
import urllib.error
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Subset

from cifar_tl import shapes
from cifar_tl.lock import locked

CIFAR10_CLASS_NAMES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
BASE_CLASSES = range(5)
TRANSFER_CLASSES = range(5, 10)

SHAPES = "shapes"  # the source, and the folder of its results
OFFICIAL = "cifar10"  # the folder of the official data's results

NETWORK_TIMEOUT = 30.0  # seconds without a single byte

# Not every OSError: a full disk is no fault of the network.
_NETWORK_ERRORS = (
    urllib.error.URLError,
    TimeoutError,
    ConnectionError,
    ssl.SSLError,
    HTTPException,
)

Example = TypeVar("Example", covariant=True)


class DataError(ValueError):
    """The data cannot be used; the message names the file and says what to do."""


class MissingDataError(DataError):
    """CIFAR-10 is not in the folder, or not all of it is undamaged."""


class DownloadError(DataError):
    """CIFAR-10 is not on disk, and the network or the server does not give it."""


class LabeledImages(NamedTuple):
    """Images and their labels, in file order."""

    images: Tensor  # (N, 3, 32, 32) uint8
    labels: Tensor  # (N,) int64


@dataclass(frozen=True)
class Data:
    """The images of all classes."""

    name: str  # the folder of its results
    description: str  # for people
    class_names: tuple[str, ...]
    train: LabeledImages  # with the validation images: see `train_and_validation`
    read_test: Callable[[], LabeledImages]  # what `test` calls once
    fingerprint: str  # SHA-256 of what identifies all images and labels
    validation: LabeledImages | None = None  # None: among `train`
    base_classes: range | None = BASE_CLASSES  # None: a base model comes from other data
    new_classes: range = TRANSFER_CLASSES

    @cached_property
    def test(self) -> LabeledImages:
        """The test images, maybe none; read when first asked for: training can start earlier."""
        return self.read_test()

    def train_and_validation(self, classes: Iterable[int]) -> tuple[LabeledImages, LabeledImages]:
        """Selects the training and the validation images of some classes, as a stage uses them.

        Args:
            classes: Those of a stage, all of ``base_classes`` or of ``new_classes``: unless they
                are apart, the validation images are the last 20 % of all images of these classes.

        Returns:
            The training part and the validation part.
        """
        train = select_classes(self.train, classes)
        if self.validation is None:
            return split_validation(train)
        return train, select_classes(self.validation, classes)


def load_data(source: str | Path, *, progress: bool = False) -> Data:
    """Reads one of the data sources and checks it.

    Args:
        source: ``"shapes"`` for the built-in images; a folder for the official CIFAR-10; a
            ``.npz`` file with ``x_train``, ``y_train``, ``x_test`` and ``y_test`` in the Keras
            layout, images ``(N, 32, 32, 3)`` uint8 and integer labels 0..9, ``(N,)`` or
            ``(N, 1)``; or a folder with classes of your own, image files
            ``train/CLASS/*`` and maybe ``val/CLASS/*`` and ``test/CLASS/*``, each read by
            `cifar_tl.images.read_image`. Without ``val/``, the first 80 % of each class
            train, in the order of their names, and the last 20 % validate.
        progress: Show a bar on standard error while image files are read.

    Returns:
        The images, with every class among the training and the validation images. The test images
        of the first three are read when they are first asked for, and damage to their pixels is
        found then, too.

    Raises:
        MissingDataError: If CIFAR-10 is not in the folder: see `download_cifar10`.
        DataError: If the data is damaged or not of this kind.
    """
    if source == SHAPES:
        return _shapes_data()
    path = Path(source)
    if path.suffix == ".npz":
        return _npz_data(path)
    if path.is_file():
        raise DataError(f"{path} is neither a folder nor a .npz file: name one of these")
    if (path / "train").is_dir():
        from cifar_tl.own_classes import read_own_classes  # here, since it imports this module

        return read_own_classes(path, progress=progress)
    return _cifar10_data(path)


def select_classes(examples: LabeledImages, classes: Iterable[int]) -> LabeledImages:
    """Selects the images of some classes; their order and labels stay.

    Args:
        examples: N images.
        classes: The labels to keep.

    Returns:
        The M <= N images that have one of these labels.
    """
    chosen = torch.isin(examples.labels, torch.tensor(list(classes))).nonzero().flatten()
    # index_select returns contiguous images whatever it is given: batches are gathered faster so.
    return LabeledImages(examples.images.index_select(0, chosen), examples.labels[chosen])


def num_training(num_images: int) -> int:
    """Computes how many of some images train: the first 80 %, as documented."""
    return num_images * 4 // 5


def split_validation(examples: LabeledImages) -> tuple[LabeledImages, LabeledImages]:
    """Splits images in file order: the first 80 % train, the last 20 % validate, as documented.

    Args:
        examples: N images.

    Returns:
        The training part and the validation part.
    """
    boundary = num_training(len(examples.labels))
    return (
        LabeledImages(examples.images[:boundary], examples.labels[:boundary]),
        # A copy, so that it does not keep the training images in memory.
        LabeledImages(examples.images[boundary:].clone(), examples.labels[boundary:].clone()),
    )


def stratified_prefix(examples: LabeledImages, fraction: float) -> LabeledImages:
    """Keeps the first part of the images of each class in file order.

    Each prefix is a part of every larger one, so results at several fractions can be compared.

    Args:
        examples: N images.
        fraction: Above 0, at most 1.

    Returns:
        This fraction of the images of each class, rounded, but at least one; their order stays.

    Raises:
        ValueError: If the fraction is out of range.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"a fraction of the images is above 0 and at most 1, not {fraction}")
    kept = torch.zeros_like(examples.labels, dtype=torch.bool)
    for label in examples.labels.unique():
        of_class = (examples.labels == label).nonzero().flatten()
        kept[of_class[: max(1, round(fraction * len(of_class)))]] = True
    return LabeledImages(examples.images[kept], examples.labels[kept])


def make_views(images: Tensor, *, mirror: bool) -> Tensor:
    """Stacks the equally valid versions of each image.

    Args:
        images: ``(N, 3, 32, 32)``.
        mirror: Add each image's mirror image.

    Returns:
        ``(V, N, 3, 32, 32)``, V = 2 with mirror images and 1 without.
    """
    if not mirror:
        return images[None]
    views = images.new_empty(2, *images.shape)
    views[0] = images
    for view, batch in zip(views[1].split(1000), images.split(1000), strict=True):
        view.copy_(batch.flip(-1))  # all at once would take the memory of a third view
    return views


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Computes mean and standard deviation of each colour channel.

    Args:
        images: ``(N, 3, 32, 32)`` uint8.

    Returns:
        Mean and standard deviation, ``(3, 1, 1)`` float32 each, of pixels from 0 to 1.
    """
    total, squares = torch.zeros(2, 3, dtype=torch.float64)
    for batch in images.split(100):  # exact: squares below 2**24, sums of whole numbers below 2**53
        pixels = batch.float().transpose(0, 1).flatten(1)
        total += pixels.sum(1, dtype=torch.float64)
        squares += pixels.square().sum(1, dtype=torch.float64)
    count = images.numel() / 3
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(1).sqrt()  # one grey level at the least
    return (mean / 255).float().view(3, 1, 1), (std / 255).float().view(3, 1, 1)


def download_cifar10(folder: str | Path, *, progress: bool = False) -> None:
    """Puts the official CIFAR-10 into a folder; an undamaged archive there is only extracted.

    Args:
        folder: Made if it is missing.
        progress: Show a bar on standard error.

    Raises:
        DownloadError: If the network or the server does not give the archive.
        DataError: If what it gives, or what is on disk, is damaged.
        OSError: If the files cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, wait=True):
        _download_cifar10(folder, progress=progress)


def _download_cifar10(folder: Path, *, progress: bool) -> None:
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity, extract_archive

    archive = folder / CIFAR10.filename
    by_hand = f"download {CIFAR10.url} by hand and put it at {archive}"
    for partial in folder.glob(f"{CIFAR10.filename}.*.partial"):
        partial.unlink()  # of a process that was killed
    if not check_integrity(archive, CIFAR10.tgz_md5):
        damaged = _damaged_files(folder)
        try:
            with _socket_timeout(NETWORK_TIMEOUT):
                torch.hub.download_url_to_file(CIFAR10.url, str(archive), progress=progress)
        except _NETWORK_ERRORS as error:
            reason = getattr(error, "reason", None) or error
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            if damaged:
                raise DataError(
                    f"{damaged[0]} is damaged (wrong checksum), and CIFAR-10 cannot be downloaded "
                    f"anew ({reason}): delete it, {by_hand}"
                ) from error
            raise DownloadError(
                f"CIFAR-10 is not in {folder} and cannot be downloaded ({reason}): {by_hand}"
            ) from error
        if not check_integrity(archive, CIFAR10.tgz_md5):
            size = archive.stat().st_size
            archive.unlink()  # so that the next run downloads it again
            raise DataError(
                f"the download of {archive} was incomplete or wrong ({size:,} bytes, wrong "
                f"checksum; deleted): try again, or {by_hand}"
            )
    extract_archive(str(archive), str(folder))


def _damaged_files(folder: Path) -> list[Path]:
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    extracted = folder / CIFAR10.base_folder
    checksums = {folder / CIFAR10.filename: CIFAR10.tgz_md5}
    checksums |= {extracted / name: md5 for name, md5 in CIFAR10.train_list + CIFAR10.test_list}
    checksums[extracted / CIFAR10.meta["filename"]] = CIFAR10.meta["md5"]
    return [
        path for path, md5 in checksums.items() if path.exists() and not check_integrity(path, md5)
    ]


class ClassSubset(Subset[Example]):
    """The examples of some classes; see `class_subset`."""

    def __init__(
        self, dataset: Dataset[Example], indices: Sequence[int], targets: list[int]
    ) -> None:
        super().__init__(dataset, indices)
        self.targets = targets


def class_subset(dataset: Dataset[Example], classes: Iterable[int]) -> ClassSubset[Example]:
    """Selects the examples of some classes from a torchvision-style dataset.

    No example is loaded to select: only ``dataset.targets`` is read.

    Args:
        dataset: Any dataset with ``targets``, the label of every example.
        classes: The labels to keep.

    Returns:
        A dataset of these examples in their order, labels unchanged, with ``targets`` of its own.

    Raises:
        TypeError: If the dataset has no ``targets``.
        ValueError: If a class has no example.
    """
    targets = getattr(dataset, "targets", None)
    if targets is None:
        raise TypeError(f"{type(dataset).__name__} has no .targets: give it a list of the labels")
    labels = [int(target) for target in targets]
    wanted = {int(label) for label in classes}
    if absent := wanted.difference(labels):
        raise ValueError(
            f"no example has the label {min(absent)}: labels are {min(labels)} to {max(labels)}"
        )
    indices = [index for index, label in enumerate(labels) if label in wanted]
    return ClassSubset(dataset, indices, [labels[index] for index in indices])


def _shapes_data() -> Data:
    x_train, y_train, x_test, y_test = shapes.draw_shapes()
    return Data(
        name=SHAPES,
        description="built-in drawn shapes",
        class_names=shapes.CLASS_NAMES,
        train=_labeled_images(x_train, y_train),
        read_test=lambda: _labeled_images(x_test, y_test),
        fingerprint=fingerprint_of(x_train, y_train, x_test, y_test),
    )


def _cifar10_data(folder: Path) -> Data:
    """Reads the official data through torchvision, which verifies every file's checksum."""
    from torchvision.datasets import CIFAR10  # here, since the import takes time

    def read(is_train: bool) -> LabeledImages:
        try:
            dataset = CIFAR10(folder, train=is_train)
        except RuntimeError as error:
            raise MissingDataError(
                f"CIFAR-10 is not in {folder}, or a file of it is damaged: download_cifar10 gets "
                f"it; your own classes belong into {folder / 'train'}, a folder a class"
            ) from error
        return _labeled_images(dataset.data.transpose(0, 3, 1, 2), np.array(dataset.targets))

    checksums = [md5 for _, md5 in CIFAR10.train_list + CIFAR10.test_list]
    return Data(
        name=OFFICIAL,
        description="CIFAR-10",
        class_names=CIFAR10_CLASS_NAMES,
        train=read(is_train=True),
        read_test=lambda: read(is_train=False),
        fingerprint=fingerprint_of(*checksums),
    )


def _npz_data(path: Path) -> Data:
    """Reads an archive in the Keras layout, all but the test images, which are only checked."""
    with _open_npz(path) as archive:
        members = {name.removesuffix(".npy") for name in archive.namelist()}
        if absent := [
            key for key in ("x_train", "y_train", "x_test", "y_test") if key not in members
        ]:
            raise DataError(f"{path} has no array {', '.join(absent)}: add it to the archive")
        _check_images(path, "train", *_read_header(archive, "x_train"))
        test_shape, test_dtype = _read_header(archive, "x_test")
        _check_images(path, "test", test_shape, test_dtype)
        x_train, y_train, y_test = (_read(archive, key) for key in ("x_train", "y_train", "y_test"))
        image_checksums = [archive.getinfo(f"{key}.npy").CRC for key in ("x_train", "x_test")]
    _check_labels(path, "train", y_train, len(x_train))
    _check_labels(path, "test", y_test, test_shape[0])
    y_train, y_test = (labels.reshape(-1).astype(np.int64) for labels in (y_train, y_test))
    _check_classes(path, y_train, y_test)

    def read_test() -> LabeledImages:
        with _open_npz(path) as archive:
            checksum = archive.getinfo("x_test.npy").CRC
            if checksum != image_checksums[1]:
                raise DataError(
                    f"{path} has changed since the training images were read: put it back as it was"
                )
            return _labeled_images(_read(archive, "x_test").transpose(0, 3, 1, 2), y_test)

    return Data(
        name=path.name,
        description="a .npz file in the Keras layout",
        class_names=CIFAR10_CLASS_NAMES,
        train=_labeled_images(x_train.transpose(0, 3, 1, 2), y_train),
        read_test=read_test,
        fingerprint=fingerprint_of(*image_checksums, y_train, y_test),
    )


@contextlib.contextmanager
def _open_npz(path: Path) -> Iterator[zipfile.ZipFile]:
    """Opens an archive; whatever is wrong with it while it is open becomes a `DataError`."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except FileNotFoundError:
        raise DataError(f"there is no file {path}: check the path") from None
    except (DataError, MemoryError):
        raise
    except Exception as error:  # damage surfaces as whatever the reader trips over first
        reason, *_ = (str(error) or type(error).__name__).splitlines()
        raise DataError(
            f"{path} is no readable .npz archive of plain arrays "
            f"({reason.partition('. ')[0]}): make or copy it anew"
        ) from error


def _read(archive: zipfile.ZipFile, key: str) -> NDArray[Any]:
    shape, dtype = _read_header(archive, key)
    if math.prod(shape) * dtype.itemsize > archive.getinfo(f"{key}.npy").file_size:
        raise ValueError(f"{key} is shorter than it says")  # before memory is taken for it
    with archive.open(f"{key}.npy") as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def _read_header(archive: zipfile.ZipFile, key: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Reads an array's shape and type without its content."""
    with archive.open(f"{key}.npy") as member:
        if np.lib.format.read_magic(member) == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(member)
        return shape, dtype


def _check_images(path: Path, split: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    name = f"{path}: x_{split}"
    if dtype != np.uint8:
        raise DataError(f"{name} must hold uint8 pixels from 0 to 255, not {dtype}")
    if len(shape) != 4 or shape[1:] != (32, 32, 3):
        raise DataError(f"{name} must have the shape (N, 32, 32, 3), not {shape}")


def _check_labels(path: Path, split: str, labels: NDArray[Any], num_images: int) -> None:
    name = f"{path}: y_{split}"
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{name} must hold integers from 0 to 9, not {labels.dtype}")
    if labels.shape not in ((num_images,), (num_images, 1)):
        raise DataError(
            f"{name} must have the shape ({num_images},) to fit x_{split}, not {labels.shape}"
        )
    if len(labels) and (labels.min() < 0 or labels.max() > 9):
        raise DataError(
            f"{name} must hold labels from 0 to 9, not from {labels.min()} to {labels.max()}"
        )


def _check_classes(path: Path, y_train: NDArray[np.int64], y_test: NDArray[np.int64]) -> None:
    labels = torch.from_numpy(y_train)
    for classes in (BASE_CLASSES, TRANSFER_CLASSES):
        # Which images train and validate is decided by labels alone: they stand in for the images.
        half = select_classes(LabeledImages(labels, labels), classes)
        train, validation = split_validation(half)
        for part, found in (
            ("training", train.labels.tolist()),
            ("validation", validation.labels.tolist()),
            ("test", y_test.tolist()),
        ):
            if absent := sorted(set(classes).difference(found)):
                raise DataError(
                    f"{path}: no {part} image of class {absent[0]}: every class must be in the "
                    "first 80 % (training) and the last 20 % (validation) of the training images "
                    "of its half, and in the test images; shuffle the file if it is sorted"
                )


def _labeled_images(images: NDArray[np.uint8], labels: NDArray[Any]) -> LabeledImages:
    return LabeledImages(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)))


def fingerprint_of(*parts: NDArray[Any] | int | str) -> str:
    """Computes a SHA-256 of arrays and plain values, for `Data`."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype} {part.shape} ".encode())
            digest.update(np.ascontiguousarray(part).data)
        else:
            digest.update(f"{part} ".encode())
    return digest.hexdigest()


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Limits every wait for the network: the downloading functions have no limit of their own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
