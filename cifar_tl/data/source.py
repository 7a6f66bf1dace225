"""The sources of images: a table with a row for each kind, and `load_data`, which reads any.

Importing this module imports no torch. So a command can refuse a wrong source at once.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cifar_tl.data.classes import (
    CIFAR10_CLASS_NAMES,
    SHAPES_CLASS_NAMES,
    Chosen,
    choose_classes,
    listed,
    split_suffix,
)
from cifar_tl.data.pictures.find import TRAIN, find_classes
from cifar_tl.errors import DataError, DataWarning
from cifar_tl.frame import Fit

if TYPE_CHECKING:
    from cifar_tl.data.examples import Data

SHAPES = "shapes"  # the source with the built-in images, and the folder of their results
OFFICIAL = "cifar10"  # the folder of the official data's results
DEFAULT_SOURCE = "data"  # the folder of the official data itself

ARCHIVES = (".tar.gz", ".tgz")  # how an archive of CIFAR-10 ends
BATCH = "data_batch_1"  # a file that the unpacked CIFAR-10 has


class Kind(NamedTuple):
    """A row of the table: everything about one kind of source that is known before it is read."""

    module: str  # the file beside this one that reads it, with a function ``read_<module>``
    what: str  # what a message calls it
    recognizes: Callable[[str | Path], bool]
    results: Callable[[Path], str]  # the name of its folder of results
    class_names: tuple[str, ...] = ()  # empty: only the files tell
    # The user's own classes: base learns all of them, the other stages too, from another base.
    own_classes: bool = False
    is_path: bool = True  # False: it is a name, and needs no file
    check: Callable[[Path], object] = lambda _: None  # raises DataError; imports no torch


KINDS = (  # the first that recognizes a source has it
    Kind(
        "shapes",
        f"{SHAPES}: built-in images",
        recognizes=lambda source: source == SHAPES,
        results=lambda _: SHAPES,
        class_names=SHAPES_CLASS_NAMES,
        is_path=False,
    ),
    Kind(
        "npz",
        "a .npz file in the Keras layout",
        recognizes=lambda source: Path(source).suffix.lower() == ".npz",
        results=lambda path: path.name,
    ),
    Kind(
        "class_folders",
        "a folder with classes of your own, images in train/CLASS/ and maybe val/CLASS/ and "
        "test/CLASS/",
        recognizes=lambda source: (Path(source) / TRAIN).is_dir(),
        results=lambda path: path.resolve().name,
        own_classes=True,
        check=find_classes,
    ),
    Kind(
        "cifar10",
        "a folder with CIFAR-10",
        recognizes=lambda source: not Path(source).is_file(),  # if it is missing, too: see download
        results=lambda _: OFFICIAL,
        class_names=CIFAR10_CLASS_NAMES,
    ),
)
SOURCES = "; ".join(kind.what for kind in reversed(KINDS))


def load_data(
    source: str | Path,
    *,
    base_classes: Chosen = None,
    new_classes: Chosen = None,
    white: Mapping[str, float] | None = None,
    fit: Fit = "crop",
    progress: bool = False,
) -> "Data":
    """Reads all images of a source, checks them, and divides their classes.

    Args:
        source: One of these:

            - ``"shapes"``: the built-in images.
            - A folder with the official CIFAR-10.
            - A ``.npz`` file in the Keras layout: ``x_train`` and ``x_test``, ``(N, 32, 32, 3)``
              uint8; ``y_train`` and ``y_test``, ``(N,)`` or ``(N, 1)``, integers from 0 to K - 1.
              It may have ``x_val`` and ``y_val``. It may have ``class_names``, K strings;
              without them the classes are CIFAR-10's ten.
            - A folder with classes of your own: image files ``train/CLASS/*``, maybe
              ``val/CLASS/*`` and ``test/CLASS/*``. `read_image` says how a file is read. Without
              ``val/``, the files of each class are sorted by name; the first 80 % train, the last
              20 % validate.
        base_classes: The classes that a base model learns, by name or number:
            ``["cat", "deer", 5]``, ``"cat,deer,dog"`` or ``"all"``. Default: all that are not new.
            Classes of your own are not divided: all of them are base classes and new classes.
        new_classes: The classes that the other stages learn. Default: all that are not base
            classes. If both are missing, the first half is for base: 0-4 of ten, as documented.
        white: What a trained model takes for white in images of more than 8 bits, see
            `read_image`. Default: the images tell.
        fit: What happens to an image file that is no square: see `Frame`.
        progress: Show a bar on standard error while image files are read.

    Returns:
        The images. Every class has training and validation images.

    Raises:
        MissingDataError: If CIFAR-10 is not in the folder: see `download_cifar10`.
        DataError: If the data is damaged, is no such source, or does not have these classes.

    Warns:
        DataWarning: For each of `Data.notes`: what was left out, assumed, or is doubtful.
    """
    from cifar_tl.data.examples import check_classes, check_pixels

    kind, chosen = kind_of(source), (base_classes, new_classes)
    is_chosen = chosen != (None, None)
    if kind.own_classes and is_chosen:
        raise DataError(
            f"{source}: its classes are not divided into base and new ones, all are either: move "
            "folders out of it, and leave the choice of classes out"
        )
    read = getattr(import_module(f"cifar_tl.data.{kind.module}"), f"read_{kind.module}")
    data: Data = read(Path(source), white=white, fit=fit, progress=progress)
    names, name, notes = data.class_names, kind.results(Path(source)), data.notes
    if kind.own_classes:
        base = new = tuple(range(len(names)))
    else:
        base, new = choose_classes(names, *chosen)
        name += split_suffix(base, new, len(names))
        if not is_chosen and len(names) != 10:
            notes += (
                f"{source} has {len(names)} classes: base learns {listed(base)}, the other stages "
                f"learn {listed(new)}; base classes and new classes can be chosen",
            )
    data = replace(data, name=name, base_classes=base, new_classes=new, notes=notes)
    if not kind.own_classes:
        check_classes(str(source), data)
    check_pixels(data)
    for note in notes:
        warnings.warn(note, DataWarning, stacklevel=2)
    return data


def kind_of(source: str | Path) -> Kind:
    """Finds the row of `KINDS` for a source.

    Raises:
        DataError: If there is none.
    """
    for kind in KINDS:
        if kind.recognizes(source):
            return kind
    if str(source).endswith(ARCHIVES):
        raise DataError(
            f"{source}: unpack it, or if it is CIFAR-10's, name the folder in which it is"
        )
    raise DataError(f"{source} is no source of images: name {SOURCES}")


def results_name(source: str | Path) -> str:
    """Returns the name of a source's folder of results, before `split_suffix`."""
    return kind_of(source).results(Path(source))


def lacks_cifar10(source: str | Path) -> bool:
    """Returns whether a source is a folder for CIFAR-10, but holds nothing of CIFAR-10 yet."""
    if kind_of(source).module != "cifar10":
        return False
    names = [path.name for path in Path(source).glob("*")]
    return BATCH not in names and not any("cifar" in name.lower() for name in names)
