"""The sources of images: what they are called, how each is recognised, and which module reads it.

Nothing here needs torch, so that a command can refuse a wrong source at once.
"""

import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cifar_tl.data.classes import CIFAR10_CLASS_NAMES, SHAPES_CLASS_NAMES, Chosen
from cifar_tl.errors import DataError, DataWarning

if TYPE_CHECKING:
    from cifar_tl.data.examples import Data

SHAPES = "shapes"  # the source with the built-in images, and the folder of their results
OFFICIAL = "cifar10"  # the folder of the official data's results
DEFAULT_SOURCE = "data"  # the folder of the official data itself

ARCHIVES = (".tar.gz", ".tgz")  # how an archive of CIFAR-10 ends
BATCH = "data_batch_1"  # a file that the unpacked CIFAR-10 has

TRAIN, VALIDATION, TEST = PARTS = ("train", "val", "test")  # folders with a folder for each class


class Kind(NamedTuple):
    """A kind of source: how a person would name it, is it this one, and its results' folder."""

    what: str
    recognizes: Callable[[str | Path], bool]
    results: Callable[[Path], str]
    class_names: tuple[str, ...] = ()  # where they are known before anything is read


# The kind X is read by ``read_X`` in the module X beside this one. The first to recognize a source
# has it.
KINDS = {
    "shapes": Kind(
        f"{SHAPES}: built-in images",
        lambda source: source == SHAPES,
        lambda _: SHAPES,
        SHAPES_CLASS_NAMES,
    ),
    "npz": Kind(
        "a .npz file in the Keras layout",
        lambda source: Path(source).suffix.lower() == ".npz",
        lambda path: path.name,
    ),
    "class_folders": Kind(
        "a folder with classes of your own, images in train/CLASS/ and maybe val/CLASS/ and "
        "test/CLASS/",
        lambda source: (Path(source) / TRAIN).is_dir(),
        lambda path: path.resolve().name,
    ),
    "cifar10": Kind(
        "a folder with CIFAR-10",
        lambda source: not Path(source).is_file(),  # which may be missing: CIFAR-10 goes there
        lambda _: OFFICIAL,
        CIFAR10_CLASS_NAMES,
    ),
}
SOURCES = "; ".join(kind.what for kind in reversed(KINDS.values()))


def load_data(
    source: str | Path,
    *,
    base_classes: Chosen = None,
    new_classes: Chosen = None,
    white: Mapping[str, float] | None = None,
    progress: bool = False,
) -> "Data":
    """Reads one of the data sources and checks it.

    Args:
        source: ``"shapes"`` for the built-in images; a folder for the official CIFAR-10; a
            ``.npz`` file with ``x_train``, ``y_train``, ``x_test`` and ``y_test`` in the Keras
            layout, images ``(N, 32, 32, 3)`` uint8 and integer labels 0..9, ``(N,)`` or
            ``(N, 1)``, and maybe ``x_val``, ``y_val`` and ten ``class_names``; or a folder with
            classes of your own, image files
            ``train/CLASS/*`` and maybe ``val/CLASS/*`` and ``test/CLASS/*``, each read by
            `read_image`. Without ``val/``, the first 80 % of each class train, in the order of
            their names, and the last 20 % validate.
        base_classes: Which of the ten classes a base model learns, by names or numbers,
            ``["cat", "deer", 5]`` or ``"cat,deer,dog"``, or ``"all"``; by default all that are not
            new. Not for a folder with classes of your own, where all are.
        new_classes: Which classes the other stages learn, likewise; by default all the rest;
            without either, 0-4 and 5-9, as documented.
        white: For image files that a trained model is to be asked about: what it takes for white
            in images of more than 8 bits, see `read_image`. By default the images tell.
        progress: Show a bar on standard error while image files are read.

    Returns:
        The images, with every class among the training and the validation images. The test images
        of the first three are read when they are first asked for, and damage to their pixels is
        found then, too.

    Raises:
        MissingDataError: If CIFAR-10 is not in the folder: see `download_cifar10`.
        DataError: If the data is damaged or not of this kind, or has no such classes.

    Warns:
        DataWarning: Of what is left out, taken for granted, or doubtful; see `Data.notes`.
    """
    from cifar_tl.data.examples import check_pixels

    kind = kind_of(source)
    read = getattr(import_module(f"cifar_tl.data.{kind}"), f"read_{kind}")
    chosen = {"base_classes": base_classes, "new_classes": new_classes}
    data: Data = read(Path(source), **chosen, white=white, progress=progress)
    check_pixels(data.name, "training", data.train.images)
    if data.validation is not None:
        check_pixels(data.name, "validation", data.validation.images)
    for note in data.notes:
        warnings.warn(note, DataWarning, stacklevel=2)
    return data


def kind_of(source: str | Path) -> str:
    """Finds out which of `KINDS` a source is; raises `DataError` if it can be none."""
    for name, kind in KINDS.items():
        if kind.recognizes(source):
            return name
    if str(source).endswith(ARCHIVES):
        raise DataError(
            f"{source}: unpack it, or if it is CIFAR-10's, name the folder in which it is"
        )
    raise DataError(f"{source} is no source of images: name {SOURCES}")


def results_name(source: str | Path) -> str:
    """Names the folder of a source's results."""
    return KINDS[kind_of(source)].results(Path(source))


def has_own_classes(source: str | Path) -> bool:
    """Tells whether a source is a folder with classes of the user's own: it has ``train``."""
    return kind_of(source) == "class_folders"


def lacks_cifar10(source: str | Path) -> bool:
    """Tells whether a source is a folder for CIFAR-10 that holds nothing of it."""
    if kind_of(source) != "cifar10":
        return False
    names = [path.name for path in Path(source).glob("*")]
    return BATCH not in names and not any("cifar" in name.lower() for name in names)
