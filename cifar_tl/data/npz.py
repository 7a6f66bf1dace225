"""CIFAR-10, or other images of that size, in a .npz file in the Keras layout."""

import contextlib
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cifar_tl.data.classes import CIFAR10_CLASS_NAMES
from cifar_tl.data.examples import SIZE, Data, LabeledImages, fingerprint_of, labeled_images
from cifar_tl.errors import DataError, first_line

REQUIRED = ("x_train", "y_train", "x_test", "y_test")
OPTIONAL = ("x_val", "y_val", "class_names")


def read_npz(path: Path, **_: object) -> Data:
    """Reads an archive as `load_data` describes it.

    Raises:
        DataError: If the archive is damaged or holds something else.
    """
    with _open_npz(path) as archive:
        arrays = {name.removesuffix(".npy") for name in archive.namelist()}
        parts = ("train", "test", "val") if arrays & {"x_val", "y_val"} else ("train", "test")
        wanted = [f"{kind}_{part}" for part in parts for kind in "xy"]
        if absent := [name for name in wanted if name not in arrays]:
            raise DataError(f"{path} has no array {', '.join(absent)}: add it to the archive")
        names = _read_names(path, archive) if "class_names" in arrays else CIFAR10_CLASS_NAMES
        found = {part: _read_part(path, archive, part, len(names)) for part in parts}
        checksums = {part: archive.getinfo(f"x_{part}.npy").CRC for part in parts}
    labels = {part: found[part].labels.numpy() for part in parts}
    identity: list[Any] = [checksums["train"], checksums["test"], labels["train"], labels["test"]]
    identity += [checksums["val"], labels["val"]] if "val" in parts else []
    unused = sorted(arrays.difference(REQUIRED, OPTIONAL))
    return Data(
        description="a .npz file in the Keras layout",
        class_names=names,
        train=found["train"],
        test=found["test"],
        fingerprint=fingerprint_of(*identity),
        validation=found.get("val"),
        notes=(f"{path}: arrays that are not used: {', '.join(unused)}",) if unused else (),
        mirror=names == CIFAR10_CLASS_NAMES,
    )


@contextlib.contextmanager
def _open_npz(path: Path) -> Iterator[zipfile.ZipFile]:
    """Opens an archive. Whatever goes wrong while it is open becomes a `DataError`."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except FileNotFoundError:
        raise DataError(f"there is no file {path}: check the path") from None
    except (DataError, MemoryError):
        raise
    except Exception as error:  # damage can raise anything
        reason = first_line(error).partition(". ")[0]
        raise DataError(
            f"{path} is no readable .npz archive of plain arrays ({reason}): make or copy it anew"
        ) from error


def _read_names(path: Path, archive: zipfile.ZipFile) -> tuple[str, ...]:
    what = "strings, as np.array([...], dtype=str) makes them"
    names = _read(path, archive, "class_names", "US", what)
    if names.ndim != 1:
        raise DataError(f"{path}: class_names must be a plain list, not of shape {names.shape}")
    if len(np.unique(names)) < len(names):
        raise DataError(f"{path}: class_names has a name twice: give each class its own")
    texts = names if names.dtype.kind == "U" else np.char.decode(names, "utf-8", "backslashreplace")
    return tuple(map(str, texts))


def _read_part(path: Path, archive: zipfile.ZipFile, part: str, num_classes: int) -> LabeledImages:
    """Reads the images and labels of a part, such as ``train``."""
    x, y, last = f"x_{part}", f"y_{part}", num_classes - 1
    images = _read(path, archive, x, "B", "uint8 pixels from 0 to 255")
    if images.ndim != 4 or images.shape[1:] != (SIZE, SIZE, 3):
        shape = f"(N, {SIZE}, {SIZE}, 3)"
        raise DataError(f"{path}: {x} must have the shape {shape}, not {images.shape}")
    labels = _read(path, archive, y, np.typecodes["AllInteger"], f"integers from 0 to {last}")
    if labels.shape not in ((len(images),), (len(images), 1)):
        raise DataError(
            f"{path}: {y} must have the shape ({len(images)},) to fit {x}, not {labels.shape}"
        )
    if labels.size and not 0 <= labels.min() <= labels.max() <= last:
        raise DataError(
            f"{path}: {y} must hold labels from 0 to {last}, not from {labels.min()} to "
            f"{labels.max()}: number them anew, or name all classes in class_names"
        )
    return labeled_images(images.transpose(0, 3, 1, 2), labels.reshape(len(images)))


def _read(path: Path, archive: zipfile.ZipFile, name: str, types: str, what: str) -> NDArray[Any]:
    """Reads an array of one of some types: NumPy's characters for them, and the same in words.

    The header is checked first: it may claim any size, and memory must not be taken for that.
    """
    file = archive.getinfo(f"{name}.npy")
    with archive.open(file) as member:
        old = np.lib.format.read_magic(member) == (1, 0)
        header = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(member)
        if dtype.char not in types:
            found = "Python objects" if dtype.hasobject else dtype
            raise DataError(f"{path}: {name} must hold {what}, not {found}")
        if member.tell() + math.prod(shape) * dtype.itemsize != file.file_size:
            raise ValueError(f"{name} is shorter or longer than it says")
    with archive.open(file) as member:
        return np.lib.format.read_array(member, allow_pickle=False)
