"""The official CIFAR-10: downloaded once, every checksum verified at each reading."""

import contextlib
import socket
import ssl
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError

import numpy as np
import torch

from cifar_tl.data.classes import CIFAR10_CLASS_NAMES, Chosen, choose_classes, split_suffix
from cifar_tl.data.examples import Data, LabeledImages, fingerprint_of, labeled_images
from cifar_tl.data.source import ARCHIVES, BATCH, OFFICIAL, TRAIN
from cifar_tl.disk import locked
from cifar_tl.errors import DataError, DownloadError, MissingDataError

NETWORK_TIMEOUT = 30.0  # seconds without a single byte

# Not every OSError: a full disk is no fault of the network.
_NETWORK_ERRORS = (URLError, TimeoutError, ConnectionError, ssl.SSLError, HTTPException)


def read_cifar10(
    folder: Path, *, base_classes: Chosen = None, new_classes: Chosen = None, **_: object
) -> Data:
    """Reads the official data through torchvision, which verifies every file's checksum.

    Raises:
        MissingDataError: If it is not there, or a file of it is damaged.
    """
    from torchvision.datasets import CIFAR10  # here, since the import takes time

    base, new = choose_classes(CIFAR10_CLASS_NAMES, base_classes, new_classes)
    folder = _root(folder)

    def read(is_train: bool) -> LabeledImages:
        try:
            dataset = CIFAR10(folder, train=is_train)
        except RuntimeError as error:
            raise MissingDataError(
                f"CIFAR-10 is not in {folder}, or a file of it is damaged: `cifar-tl train` or "
                f"download_cifar10 gets it; your own classes belong into {folder / TRAIN}, a "
                "folder a class"
            ) from error
        return labeled_images(dataset.data.transpose(0, 3, 1, 2), np.array(dataset.targets))

    checksums = [md5 for _, md5 in CIFAR10.train_list + CIFAR10.test_list]
    return Data(
        name=OFFICIAL + split_suffix(base, new),
        description="CIFAR-10",
        class_names=CIFAR10_CLASS_NAMES,
        train=read(is_train=True),
        read_test=lambda: read(is_train=False),
        fingerprint=fingerprint_of(*checksums),
        base_classes=base,
        new_classes=new,
        mirror=True,
    )


def download_cifar10(folder: str | Path, *, progress: bool = False) -> None:
    """Puts CIFAR-10 into a folder, made if need be; an undamaged archive there is only extracted.

    Raises:
        DownloadError: If the network or the server does not give the archive.
        DataError: If what it gives, or what is on disk, is damaged.
        OSError: If the files cannot be written.
    """
    folder = _root(Path(folder))
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
    archives = sorted(path for path in folder.glob("*") if _is_archive(path))
    found = [path for path in archives if check_integrity(path, CIFAR10.tgz_md5)]
    if found:
        archive = found[0]
    else:
        damaged = _damaged_files(folder)
        try:
            with _socket_timeout(NETWORK_TIMEOUT):
                torch.hub.download_url_to_file(CIFAR10.url, str(archive), progress=progress)
        except _NETWORK_ERRORS as error:
            reason = getattr(error, "reason", None) or error
            if isinstance(error, HTTPError):
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
    try:
        extract_archive(str(archive), str(folder))
    except PermissionError as error:
        raise DataError(
            f"{archive} cannot be unpacked, since nothing can be written into {folder}: copy it "
            "into a folder of your own and name that"
        ) from error


def _root(folder: Path) -> Path:
    """Returns the folder that holds the one with the batches, which may have been named itself."""
    from torchvision.datasets import CIFAR10

    if not (folder / BATCH).exists():
        return folder
    if folder.resolve().name != CIFAR10.base_folder:
        raise DataError(f"{folder} holds CIFAR-10: rename it to {CIFAR10.base_folder}")
    return folder.resolve().parent


def _is_archive(path: Path) -> bool:
    """Tells by its name if a file may be the archive, such as ``cifar-10-python (1).tar.gz``."""
    return "cifar" in path.name.lower() and path.name.endswith(ARCHIVES) and path.is_file()


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


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Limits every wait for the network: the downloading functions have no limit of their own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
