"""Images in a .npz file, in the layout of Keras or MedMNIST, grey or colour, of any size."""

import contextlib
import math
import zipfile
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from cifar_tl.data.classes import CIFAR10_CLASS_NAMES
from cifar_tl.data.examples import SIZE, Data, LabeledImages, fingerprint_of, labeled_images
from cifar_tl.data.pictures.read import READING_RULES
from cifar_tl.disk import LARGEST_DATA, open_file
from cifar_tl.errors import DataError, first_line, may_be_whole
from cifar_tl.frame import CIFAR_FRAME, Fit, Frame, cifar_frame, fill, scale

INTEGERS = np.typecodes["AllInteger"]
KERAS, MEDMNIST = "Keras", "MedMNIST"
PARTS = {"train": "train", "test": "test", "val": "validation"}  # their names in `Data`
ARRAYS = {  # the names of the images and of the labels of a part
    KERAS: ("x_{}", "y_{}"),
    MEDMNIST: ("{}_images", "{}_labels"),
}


def read_npz(path: Path, *, fit: Fit = "crop", **_: object) -> Data:
    """Reads an archive as `load_data` describes it.

    Raises:
        DataError: If the archive is damaged or holds something else.
        OSError: If it cannot be read, and may be whole.
    """
    with _open_npz(path) as archive:
        arrays = {name.removesuffix(".npy") for name in archive.namelist()}
        layout = _layout(arrays)
        of_val = {name.format("val") for name in ARRAYS[layout]}
        parts = list(PARTS) if arrays & of_val else ["train", "test"]
        names = {part: [name.format(part) for name in ARRAYS[layout]] for part in parts}
        wanted = [name for part in parts for name in names[part]]
        if absent := [name for name in wanted if name not in arrays]:
            raise DataError(f"{path} has no array {', '.join(absent)}: add it to the archive")
        given = _read_names(path, archive) if "class_names" in arrays else None
        classes = given or _default_names(path, archive, *names["train"])
        found = {part: _read_part(path, archive, names[part], len(classes), fit) for part in parts}
        checksums = {part: archive.getinfo(f"{names[part][0]}.npy").CRC for part in parts}
    labels = {part: found[part].examples.labels.numpy() for part in parts}
    identity: list[Any] = [checksums["train"], checksums["test"], labels["train"], labels["test"]]
    identity += [checksums["val"], labels["val"]] if "val" in parts else []
    shapes = dict.fromkeys(found[part].images.shape[1:] for part in parts)
    if len(shapes) > 1:
        raise DataError(
            f"{path}: images of all parts must have the same shape, not "
            f"{' and '.join(map(str, shapes))}"
        )
    height, width = found["train"].images.shape[1:3]
    is_scaled, is_square = (height, width) != (SIZE, SIZE), height == width
    notes = []
    if unused := sorted(arrays.difference(wanted, ["class_names"])):
        notes.append(f"{path}: arrays that are not used: {', '.join(unused)}")
    if is_scaled:
        notes.append(
            f"{path}: images of {height}x{width} pixels are scaled to {SIZE}x{SIZE}, and for a "
            "pretrained network to its own size"
        )
    return Data(
        description=f"a .npz file in the {layout} layout",
        class_names=classes,
        train=found["train"].examples,
        test=found["test"].examples,
        fingerprint=fingerprint_of(*identity),
        validation=found["val"].examples if "val" in parts else None,
        notes=tuple(notes),
        mirror=classes == CIFAR10_CLASS_NAMES,
        reading={
            **({"reading_rules": READING_RULES} if is_scaled else {}),
            **({} if is_square or fit == "crop" else {"fit": fit}),
        },
        software={"pillow": PIL.__version__} if is_scaled else {},
        frame=CIFAR_FRAME if is_square else cifar_frame(fit),
        shorter_side=min(height, width),
        originals={PARTS[part]: found[part].images for part in parts} if is_scaled else {},
    )


class _Part(NamedTuple):
    examples: LabeledImages
    images: NDArray[np.uint8]  # as they are in the file


def _layout(arrays: Set[str]) -> str:
    """Finds the layout of which there are most arrays."""
    return max(
        ARRAYS,
        key=lambda layout: sum(
            name.format(part) in arrays for name in ARRAYS[layout] for part in ("train", "test")
        ),
    )


@contextlib.contextmanager
def _open_npz(path: Path) -> Iterator[zipfile.ZipFile]:
    """Opens an archive. Whatever goes wrong while it is open becomes a `DataError`."""
    try:
        with open_file(path, LARGEST_DATA) as file, zipfile.ZipFile(file) as archive:
            yield archive
    except FileNotFoundError:
        raise DataError(f"there is no file {path}: check the path") from None
    except (DataError, MemoryError):
        raise
    except Exception as error:  # damage can raise anything
        if may_be_whole(error):
            raise
        reason = getattr(error, "strerror", None) or first_line(error).partition(". ")[0]
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


def _default_names(
    path: Path, archive: zipfile.ZipFile, images: str, labels: str
) -> tuple[str, ...]:
    """Names the classes of an archive that does not: CIFAR-10's, or numbers.

    Numbers are for other images than those of CIFAR-10's size in the Keras layout, and for these
    if the labels are those of fewer or more classes than ten.
    """
    numbers = np.unique(_read(path, archive, labels, INTEGERS, "integers from 0")).tolist()
    in_order = len(numbers) > 1 and numbers == list(range(len(numbers)))
    like_cifar10 = images == "x_train" and _header(archive, images)[0][1:] == (SIZE, SIZE, 3)
    if like_cifar10 and (len(numbers) == 10 or not in_order):
        return CIFAR10_CLASS_NAMES
    return tuple(map(str, range(len(numbers))))


def _read_part(
    path: Path, archive: zipfile.ZipFile, names: Sequence[str], num_classes: int, fit: Fit
) -> _Part:
    """Reads the images and labels of a part, whose arrays have these names."""
    x, y = names
    last = num_classes - 1
    images = _read(path, archive, x, "B", "uint8 pixels from 0 to 255")
    is_known = images.ndim in (3, 4) and images.shape[3:] in ((), (1,), (3,))
    if not is_known or 0 in images.shape[1:]:
        shape = "(N, height, width), (N, height, width, 1) or (N, height, width, 3)"
        raise DataError(f"{path}: {x} must have the shape {shape}, not {images.shape}")
    labels = _read(path, archive, y, INTEGERS, f"integers from 0 to {last}")
    if labels.shape not in ((len(images),), (len(images), 1)):
        one_hot = labels.ndim == 2 and len(labels) == len(images)
        how = f": with a column a class, {y}.argmax(axis=1) gives that" if one_hot else ""
        raise DataError(
            f"{path}: {y} must have the shape ({len(images)},) to fit {x}, not {labels.shape}{how}"
        )
    if labels.size and not 0 <= labels.min() <= labels.max() <= last:
        raise DataError(
            f"{path}: {y} must hold labels from 0 to {last}, not from {labels.min()} to "
            f"{labels.max()}: number them anew, or name all classes in class_names"
        )
    pixels = _to_size(images, fit).transpose(0, 3, 1, 2)
    examples = labeled_images(pixels, labels.reshape(len(images)))
    return _Part(examples, images)


def _to_size(images: NDArray[np.uint8], fit: Fit) -> NDArray[np.uint8]:
    """Makes grey or colour images ``(N, H, W[, C])`` to ``(N, 32, 32, 3)``, as files are read."""
    if images.shape[1:] == (SIZE, SIZE, 3):
        return images
    frame = cifar_frame(fit)
    scaled = np.empty((len(images), SIZE, SIZE, 3), np.uint8)
    for number, image in enumerate(images):
        scaled[number] = to_square(image, frame)
    return scaled


def to_square(image: NDArray[np.uint8], frame: Frame) -> NDArray[np.uint8]:
    """Scales an image ``(H, W)``, ``(H, W, 1)`` or ``(H, W, 3)`` as if it came from a file.

    Returns:
        ``(size, size, 3)``.
    """
    grey = image.shape[2:] == (1,)
    picture = Image.fromarray(image[..., 0] if grey else image).convert("RGB")
    return fill(np.array(scale(picture, frame)), frame)


def _read(path: Path, archive: zipfile.ZipFile, name: str, types: str, what: str) -> NDArray[Any]:
    """Reads an array of one of some types: NumPy's characters for them, and the same in words.

    The header is checked first: it may claim any size, and memory must not be taken for that.
    """
    file = archive.getinfo(f"{name}.npy")
    shape, dtype, start = _header(archive, name)
    if dtype.char not in types:
        found = "Python objects" if dtype.hasobject else dtype
        raise DataError(f"{path}: {name} must hold {what}, not {found}")
    if start + math.prod(shape) * dtype.itemsize != file.file_size:
        raise ValueError(f"{name} is shorter or longer than it says")
    with archive.open(file) as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def _header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Reads the shape and the type that an array claims, and where its values begin."""
    with archive.open(f"{name}.npy") as member:
        old = np.lib.format.read_magic(member) == (1, 0)
        header = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(member)
        return shape, dtype, member.tell()
