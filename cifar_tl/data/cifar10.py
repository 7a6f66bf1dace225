"""The official CIFAR-10: downloaded once, its checksums verified whenever it is read."""

import socket
import ssl
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError

import numpy as np
import torch

from cifar_tl.data.classes import CIFAR10_CLASS_NAMES
from cifar_tl.data.examples import Data, LabeledImages, fingerprint_of, labeled_images
from cifar_tl.data.pictures.layout import explain_missing
from cifar_tl.data.source import (
    BATCH,
    DEFAULT_SOURCE,
    check_cifar10,
    holds_cifar10,
    official_archive,
)
from cifar_tl.disk import locked
from cifar_tl.errors import DataError, DownloadError, MissingDataError

NETWORK_TIMEOUT = 30.0  # seconds without a single byte
# Not every OSError: a full disk is no fault of the network.
_NETWORK_ERRORS = (URLError, TimeoutError, ConnectionError, ssl.SSLError, HTTPException)


def read_cifar10(folder: Path, **_: object) -> Data:
    """Reads the official data with torchvision, which verifies the checksum of every file.

    Raises:
        MissingDataError: If a file is missing or damaged.
        DataError: If the folder holds something else.
    """
    from torchvision.datasets import CIFAR10  # here, since the import takes time

    check_cifar10(folder)
    if not folder.exists():
        missing = explain_missing(folder)
        is_for_it = folder.name == DEFAULT_SOURCE or "cifar" in folder.name.lower()
        how = "; download_cifar10 puts CIFAR-10 there" if is_for_it and not missing.remedy else ""
        raise MissingDataError(f"{missing}{how}", **missing.remedy)
    folder = _root(folder)

    def read(is_train: bool) -> LabeledImages:
        try:
            dataset = CIFAR10(folder, train=is_train)
        except RuntimeError as error:
            raise MissingDataError(
                f"CIFAR-10 is not in {folder}, or a file of it is damaged: `cifar-tl train` or "
                f"download_cifar10 gets it; your own classes belong into {folder}, a folder "
                "a class"
            ) from error
        return labeled_images(dataset.data.transpose(0, 3, 1, 2), np.array(dataset.targets))

    checksums = [md5 for _, md5 in CIFAR10.train_list + CIFAR10.test_list]
    return Data(
        description="CIFAR-10",
        class_names=CIFAR10_CLASS_NAMES,
        train=read(is_train=True),
        test=read(is_train=False),
        fingerprint=fingerprint_of(*checksums),
        mirror=True,
    )


def download_cifar10(folder: str | Path, *, progress: bool = False) -> None:
    """Downloads CIFAR-10 into a folder and extracts it. An archive that is there is used.

    Args:
        folder: Is made if it is missing.
        progress: Show a bar on standard error.

    Raises:
        DownloadError: If the network or the server fails.
        DataError: If the download, or what is in the folder, is damaged, or if the folder holds
            something else.
        OSError: If a file cannot be written.
    """
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity, extract_archive

    folder = _root(Path(folder))
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, wait=True):
        for partial in folder.glob(f"{CIFAR10.filename}.*.partial"):
            partial.unlink()  # of a process that was killed
        archives = [path for path in sorted(folder.glob("*")) if official_archive(path) == "10"]
        found = [path for path in archives if check_integrity(path, CIFAR10.tgz_md5)]
        others = sorted(path.name for path in folder.glob("[!.]*"))
        if not found and others and not holds_cifar10(folder):
            raise DataError(
                f"{folder} holds other things, such as {others[0]}: nothing is downloaded into it; "
                "for CIFAR-10, name an empty folder"
            )
        archive = found[0] if found else _download(folder, progress)
        try:
            extract_archive(str(archive), str(folder))
        except PermissionError as error:
            raise DataError(
                f"{archive} cannot be unpacked, since nothing can be written into {folder}: copy "
                "it into a folder of your own and name that"
            ) from error


def _download(folder: Path, progress: bool) -> Path:
    # Torchvision's own download has no limit of time, always shows a bar, and leaves half a file.
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    archive: Path = folder / CIFAR10.filename
    batches = folder / CIFAR10.base_folder
    by_hand = f"download {CIFAR10.url} by hand and put it at {archive}"
    checksums = {archive: CIFAR10.tgz_md5, batches / CIFAR10.meta["filename"]: CIFAR10.meta["md5"]}
    checksums |= {batches / name: md5 for name, md5 in CIFAR10.train_list + CIFAR10.test_list}
    damaged = [p for p, md5 in checksums.items() if p.exists() and not check_integrity(p, md5)]
    before = socket.getdefaulttimeout()  # by default, none
    try:
        socket.setdefaulttimeout(NETWORK_TIMEOUT)
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
    finally:
        socket.setdefaulttimeout(before)
    if not check_integrity(archive, CIFAR10.tgz_md5):
        size = archive.stat().st_size
        archive.unlink()  # so that the next run downloads it again
        raise DataError(
            f"the download of {archive} was incomplete or wrong ({size:,} bytes, wrong checksum; "
            f"deleted): try again, or {by_hand}"
        )
    return archive


def _root(folder: Path) -> Path:
    """Returns the folder above the batches. The user may have named the folder of the batches."""
    from torchvision.datasets import CIFAR10

    if not (folder / BATCH).exists():
        return folder
    if folder.resolve().name != CIFAR10.base_folder:
        raise DataError(f"{folder} holds CIFAR-10: rename it to {CIFAR10.base_folder}")
    return folder.resolve().parent
