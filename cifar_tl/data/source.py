"""The sources of images: a table with a row for each kind, and `load_data`, which reads any.

Importing this module imports no torch. So a command can refuse a wrong source at once.
"""

import re
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
from cifar_tl.data.pictures.find import TRAIN, find_classes, image_folders, listed_names
from cifar_tl.data.pictures.labels import find_labelled
from cifar_tl.data.pictures.layout import explain_file, explain_folder, has_classes
from cifar_tl.errors import DataError, DataWarning
from cifar_tl.frame import Fit

if TYPE_CHECKING:
    from cifar_tl.data.examples import Data

SHAPES = "shapes"  # the source with the built-in images, and the folder of their results
OFFICIAL = "cifar10"  # the folder of the official data's results
DEFAULT_SOURCE = "data"  # the folder of the official data itself

BATCHES = "cifar-10-batches-py"  # the folder in it
BATCH = "data_batch_1"  # a file in that folder
BATCHES_100 = "cifar-100-python"  # the folder in the archive of CIFAR-100
COARSE = "coarse"  # as labels of CIFAR-100: its 20 superclasses
# A browser may have called the archive `cifar-10-python (1).tar.gz`.
_ARCHIVE = re.compile(r"cifar-?(10|100)(-python)?( ?\(\d+\))?(\.tar\.gz|\.tgz)", re.IGNORECASE)


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
        "a .npz file in the layout of Keras or MedMNIST",
        recognizes=lambda source: Path(source).suffix.lower() == ".npz",
        results=lambda path: path.name,
    ),
    Kind(
        "class_folders",
        "a folder with classes of your own, images in CLASS/, or in train/CLASS/ and maybe "
        "val/CLASS/ and test/CLASS/",
        recognizes=lambda source: _has_own_classes(Path(source)),
        results=lambda path: path.resolve().name,
        own_classes=True,
        check=find_classes,
    ),
    Kind(
        "cifar100",
        "CIFAR-100: its archive, or a folder with it",
        recognizes=lambda source: _holds_cifar100(Path(source)),
        results=lambda _: "cifar100",
    ),
    Kind(
        "cifar10",
        "a folder with CIFAR-10",
        recognizes=lambda source: not Path(source).is_file(),  # if it is missing, too: see download
        results=lambda _: OFFICIAL,
        class_names=CIFAR10_CLASS_NAMES,
        check=lambda path: check_cifar10(path),
    ),
)
SOURCES = "; ".join(kind.what for kind in reversed(KINDS))


def load_data(
    source: str | Path,
    *,
    labels: str | None = None,
    base_classes: Chosen = None,
    new_classes: Chosen = None,
    white: Mapping[str, float] | None = None,
    fit: Fit = "crop",
    picture_cache: str | Path | None = None,
    progress: bool = False,
) -> "Data":
    """Reads all images of a source, checks them, and divides their classes.

    Args:
        source: One of these:

            - ``"shapes"``: the built-in images.
            - A folder with the official CIFAR-10.
            - The official CIFAR-100: its archive, the folder in it, or the folder above.
            - A ``.npz`` file in the layout of Keras: ``x_train`` and ``x_test``, ``(N, H, W)``,
              ``(N, H, W, 1)`` or ``(N, H, W, 3)`` uint8; ``y_train`` and ``y_test``, ``(N,)`` or
              ``(N, 1)``, integers from 0 to K - 1; maybe ``x_val`` and ``y_val``. Or in that of
              MedMNIST: ``train_images``, ``train_labels`` and so on. It may have ``class_names``,
              K strings. Else ten classes of colour images of 32x32 pixels in the layout of Keras
              are CIFAR-10's, and others are called by their numbers.
            - A folder with classes of your own: image files ``train/CLASS/*``, maybe
              ``val/CLASS/*`` (also ``valid``) and ``test/CLASS/*``; or ``CLASS/*`` alone. Without
              ``val/``, the first 80 % of each class, by name, train, and the others validate.
        labels: For a folder of image files: the CSV file in which their classes are, such as
            ``"train.csv"``, or ``"train.csv:image,breed"`` with the names of its columns. Default:
            the folders are the classes. For CIFAR-100: ``"coarse"`` for its 20 superclasses.
        base_classes: The classes that a base model learns, by name or number:
            ``["cat", "deer", 5]``, ``"cat,deer,dog"`` or ``"all"``. Default: all that are not new.
            Classes of your own are not divided: all of them are base classes and new classes.
        new_classes: The classes that the other stages learn. Default: all that are not base
            classes. If both are missing, the first half is for base: 0-4 of ten, as documented.
            ``"all"``, and by default if there are fewer than four: all are classes of your own, and
            a base comes from elsewhere.
        white: What a trained model takes for white in images of more than 8 bits, see
            `read_image`. Default: the images tell.
        fit: What happens to an image file that is no square: see `Frame`.
        picture_cache: A folder that keeps decoded image files. Those whose path, size and times of
            change are still the same are not read again. None: nothing is kept.
        progress: Show a bar on standard error while image files are read.

    Returns:
        The images. Every class has training and validation images.

    Raises:
        MissingDataError: If CIFAR-10 is not in the folder: see `download_cifar10`.
        DataError: If the data is damaged, is no such source, or does not have these classes.
        OSError: If a file of the data cannot be read now. It may be whole.

    Warns:
        DataWarning: For each of `Data.notes`: what was left out, assumed, or is doubtful.
    """
    from cifar_tl.data.examples import check_classes, check_pixels

    kind, chosen = kind_of(source, labels), (base_classes, new_classes)
    is_chosen = chosen != (None, None)
    if kind.own_classes and is_chosen:
        raise DataError(
            f"{source}: its classes are not divided into base and new ones, all are either: move "
            "folders out of it, and leave the choice of classes out"
        )
    read = getattr(import_module(f"cifar_tl.data.{kind.module}"), f"read_{kind.module}")
    how = {"labels": labels, "white": white, "fit": fit, "picture_cache": picture_cache}
    data: Data = read(Path(source), **how, progress=progress)
    names, name, notes = data.class_names, kind.results(Path(source)), data.notes
    if kind.own_classes:
        base = new = tuple(range(len(names)))
    else:
        base, new = choose_classes(names, *chosen)
        name += split_suffix(base, new, len(names))
        if not is_chosen and len(names) != 10:
            which = (
                "all are new, and the base model is of other data"
                if base == new
                else f"base learns {listed(base)}, the other stages learn {listed(new)}; base "
                "classes and new classes can be chosen"
            )
            notes += (f"{source} has {len(names)} classes: {which}",)
    notes += _beside(Path(source), kind)
    data = replace(data, name=name, base_classes=base, new_classes=new, notes=notes)
    if not kind.own_classes:
        check_classes(str(source), data)
    check_pixels(data)
    for note in notes:
        warnings.warn(note, DataWarning, stacklevel=2)
    return data


def _beside(folder: Path, kind: Kind) -> tuple[str, ...]:
    """Returns notes about what else is in a folder with CIFAR-10 or CIFAR-100."""
    if kind.module not in ("cifar10", "cifar100") or not folder.is_dir():
        return ()
    name = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}[kind.module]
    notes = []
    if kind.module == "cifar100" and folder == Path(DEFAULT_SOURCE):
        notes.append(f"{folder} holds {name}, which is taken: for CIFAR-10, name another folder")
    if others := image_folders(folder):
        listed = listed_names([str(folder / other) for other in others])
        notes.append(f"images in {listed} are not used: {folder} holds {name}, which is taken")
    return tuple(notes)


def _has_own_classes(folder: Path) -> bool:
    is_official = holds_cifar10(folder) or _holds_cifar100(folder)
    return ((folder / TRAIN).is_dir() or not is_official) and has_classes(folder)


def _holds_cifar100(path: Path) -> bool:
    """Returns whether a path is CIFAR-100. A folder that also holds CIFAR-10 is CIFAR-10's."""
    if path.is_file():
        return official_archive(path) == "100"
    if all((path / name).is_file() for name in ("train", "test", "meta")):
        return True
    if holds_cifar10(path):
        return False
    found = (path / BATCHES_100).is_dir()
    return found or any(official_archive(other) == "100" for other in path.glob("*"))


def kind_of(source: str | Path, labels: str | None = None) -> Kind:
    """Finds the row of `KINDS` for a source. Labels in a file are for a folder of image files.

    Raises:
        DataError: If there is none.
    """
    if labels is not None:
        if labels == COARSE and _holds_cifar100(Path(source)):
            cifar100 = next(kind for kind in KINDS if kind.module == "cifar100")
            return cifar100._replace(results=lambda _: f"cifar100-{COARSE}")
        if Path(source).exists() and not Path(source).is_dir():
            raise DataError(
                f"{source} is no folder: labels in a file are for a folder with image files"
            )
        return next(kind for kind in KINDS if kind.module == "class_folders")
    if (path := Path(source)).exists() and not (path.is_file() or path.is_dir()):
        raise DataError(f"{path} is a pipe or a device, and only files and folders are read")
    for kind in KINDS:
        if kind.recognizes(source):
            return kind
    if official_archive(path) == "10":
        raise DataError(
            f"{path} is CIFAR-10: name its folder, {path.parent}", data=str(path.parent)
        )
    if error := explain_file(path):
        raise error
    raise DataError(f"{source} is no source of images: name {SOURCES}")


def check_early(source: str | Path, labels: str | None = None) -> None:
    """Checks a source as far as it can be checked before torch is imported.

    Raises:
        DataError: If something is wrong.
    """
    kind = kind_of(source, labels)
    if labels is not None and kind.check is find_classes:
        find_labelled(Path(source), labels)
    else:
        kind.check(Path(source))


def results_name(source: str | Path, labels: str | None = None) -> str:
    """Returns the name of a source's folder of results, before `split_suffix`."""
    return kind_of(source, labels).results(Path(source))


def lacks_cifar10(source: str | Path) -> bool:
    """Returns whether a source is a folder for CIFAR-10, but holds nothing of CIFAR-10 yet."""
    return kind_of(source).module == "cifar10" and not holds_cifar10(source)


def holds_cifar10(folder: str | Path) -> bool:
    """Returns whether a folder holds CIFAR-10's archive or its batches, whole or damaged."""
    folder = Path(folder)
    if (folder / BATCH).exists() or (folder / BATCHES).is_dir():
        return True
    return any(official_archive(path) == "10" for path in folder.glob("*"))


def official_archive(path: Path) -> str | None:
    """Finds out by its name if a file is the archive of CIFAR-10 or CIFAR-100: ``10``, ``100``."""
    found = _ARCHIVE.fullmatch(path.name)
    return found[1] if found and not path.is_dir() else None


def check_cifar10(folder: Path) -> None:
    """Refuses a folder that holds other things than CIFAR-10. It may be empty, or missing.

    Raises:
        DataError: The message says what is there, and what to do.
    """
    if lacks_cifar10(folder) and any(folder.glob("[!.]*")):
        raise explain_folder(folder)
