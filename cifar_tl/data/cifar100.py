"""The official CIFAR-100, from its python archive or from its folder: 100 classes, or 20 coarse."""

import hashlib
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from cifar_tl.data.examples import SIZE, Data, LabeledImages, fingerprint_of, labeled_images
from cifar_tl.data.source import BATCHES_100, official_archive
from cifar_tl.disk import LARGEST_DATA, open_file, read_file
from cifar_tl.errors import DataError, first_line, may_be_whole


def read_cifar100(source: Path, *, labels: str | None = None, **_: object) -> Data:
    """Reads the official files. The checksum of each is verified before it is unpickled.

    Args:
        source: The archive, the folder ``cifar-100-python``, or the folder above one of them.
        labels: ``"coarse"``: the 20 superclasses. None: the 100 fine classes.

    Raises:
        DataError: If a file is missing or damaged.
        OSError: If a file cannot be read, and may be whole.
    """
    from torchvision.datasets import CIFAR100  # here, since the import takes time

    meta = {**CIFAR100.meta}
    checksums = dict(CIFAR100.train_list + CIFAR100.test_list) | {meta["filename"]: meta["md5"]}
    contents = _read_files(source, list(checksums))
    for name, content in contents.items():
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != checksums[name]:
            raise DataError(
                f"{source}: the file {name} of CIFAR-100 is damaged (wrong checksum): copy or "
                "unpack it anew"
            )
    found = {name: pickle.loads(content, encoding="latin1") for name, content in contents.items()}
    kind = labels or "fine"
    return Data(
        description=f"CIFAR-100, {kind} labels",
        class_names=tuple(found[meta["filename"]][f"{kind}_label_names"]),
        train=_examples(found["train"], kind),
        test=_examples(found["test"], kind),
        fingerprint=fingerprint_of(*checksums.values(), *([] if labels is None else [labels])),
        mirror=True,
    )


def _read_files(source: Path, names: list[str]) -> dict[str, bytes]:
    """Reads the files of these names from an archive or a folder."""
    folder = source / BATCHES_100 if (source / BATCHES_100).is_dir() else source
    archives = [path for path in sorted(source.glob("*")) if official_archive(path) == "100"]
    try:
        if source.is_file() or (archives and not (folder / names[0]).is_file()):
            return _unpack(source if source.is_file() else archives[0], names)
        return {name: read_file(folder / name, LARGEST_DATA) for name in names}
    except (OSError, EOFError, KeyError, tarfile.TarError) as error:
        if may_be_whole(error):
            raise
        raise DataError(
            f"{source}: a file of CIFAR-100 is missing or damaged ({first_line(error)}): copy or "
            "unpack it anew"
        ) from error


def _unpack(archive: Path, names: list[str]) -> dict[str, bytes]:
    """Reads files of an archive into memory."""
    contents = {}
    with open_file(archive, LARGEST_DATA) as content, tarfile.open(fileobj=content) as opened:
        for name in names:
            file = opened.extractfile(f"{BATCHES_100}/{name}")
            contents[name] = file.read() if file else b""
    return contents


def _examples(batch: dict[str, Any], kind: str) -> LabeledImages:
    images = np.ascontiguousarray(batch["data"].reshape(-1, 3, SIZE, SIZE))
    return labeled_images(images, np.array(batch[f"{kind}_labels"]))
