"""Arguments of several commands: numbers within bounds, models, sources of data."""

import argparse
import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cifar_tl.command.console import UsageError, called
from cifar_tl.data.pictures.layout import explain_missing
from cifar_tl.data.source import COARSE, kind_of
from cifar_tl.errors import DataError, RunError
from cifar_tl.pretrained import PRETRAINED, is_pretrained, read_model_file

LABELS: dict[str, Any] = {
    "metavar": "CSV",
    "help": "the classes of the image files in SOURCE are in this file, with a column of files and "
    "one of labels; CSV:image,breed names the columns (default: the folders are the classes). Of "
    f"CIFAR-100: {COARSE} for its 20 superclasses",
}
MODEL_HELP = f"a model.pt, or {' or '.join(PRETRAINED)}, which come with the package"
_ADDRESS = re.compile("[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def whole_number(text: str, low: int, high: int = 10**9) -> int:
    """Reads a whole number from ``low`` to ``high``."""
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(
            f"must be a whole number from {low} to {high}, not {text!r}"
        )
    return value


at_least_zero: Callable[[str], int] = partial(whole_number, low=0)
at_least_one: Callable[[str], int] = partial(whole_number, low=1)


def _number(text: str, is_right: Callable[[float], bool], words: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan  # it is in no range
    if not is_right(value):
        raise argparse.ArgumentTypeError(f"must be a number {words}, not {text!r}")
    return value


# float32 ends at 3e38
not_negative: Callable[[str], float] = partial(
    _number, is_right=lambda value: 0 <= value <= 1e30, words="from 0 to 1e30"
)
positive: Callable[[str], float] = partial(
    _number, is_right=lambda value: 0 < value <= 1e30, words="above 0 and at most 1e30"
)
fraction: Callable[[str], float] = partial(
    _number, is_right=lambda value: 0 < value <= 1, words="above 0 and at most 1"
)
dropout_rate: Callable[[str], float] = partial(
    _number, is_right=lambda value: 0 <= value < 1, words="from 0 to below 1"
)


def fractions(text: str) -> tuple[float, ...]:
    """Reads numbers as `fraction` does, with commas between them, and sorts them."""
    values = sorted(fraction(part) for part in text.split(","))
    if len(set(values)) < len(values):
        raise argparse.ArgumentTypeError(f"names a fraction twice: {text!r}")
    return tuple(values)


def local_path(text: str) -> Path:
    """Reads the path of a file or folder that is there. `Path` would take a slash of an address."""
    return Path(no_address(text))


def no_address(text: str) -> str:
    """Refuses the address of a page or file on the internet."""
    if _ADDRESS.match(text):
        raise argparse.ArgumentTypeError(f"{text} is an address: download it first, name the file")
    return text


def bases(text: str) -> tuple[Path, ...]:
    """Reads the names of base models, with commas between them. A file may have commas itself."""
    parts = [text] if Path(text).is_file() else text.split(",")
    found = tuple(local_path(part.strip()) for part in parts)
    if not all(part.strip() for part in parts):
        raise argparse.ArgumentTypeError("has an empty name")
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"names a base twice: {text!r}")
    return found


def check_model(path: Path) -> None:
    """Refuses a model that is missing or damaged."""
    if not is_pretrained(path) and not path.exists():
        maker = called("train")
        raise UsageError(f"there is no model {path}: name another, or make one with {maker}")
    if not is_pretrained(path) and path.is_dir():
        raise UsageError(
            f"the model {path} is a folder: name a file in it, such as {path / 'model.pt'}"
        )
    read_model_file(path)


def add_mirror_average(add: Callable[..., Any]) -> None:
    """Adds the option that averages an image and its mirror image."""
    add(
        "--mirror-average",
        action="store_true",
        help="average the outputs for an image and for its mirror image, in twice the time; for "
        "models that were trained on mirror images",
    )


def check_mirror_average(path: Path, settings: Mapping[str, Any]) -> None:
    """Refuses a model that may not know mirror images."""
    if settings.get("mirror") is not True:
        raise RunError(f"{path} was not trained on mirror images: leave out --mirror-average")


def check_source(
    source: str, labels: str | None = None, suggest: Callable[..., str] | None = None
) -> None:
    """Refuses a wrong source of data.

    Args:
        source: What was typed.
        labels: The file with the labels.
        suggest: Writes the command with some options changed, such as ``data="flowers"``.
    """
    if source == "":
        raise UsageError("--data: is empty; leave it out or name a source")
    try:
        kind = kind_of(source, labels)
        if kind.is_path and not Path(source).exists():
            raise explain_missing(Path(source))
        if kind.module == "cifar10":
            kind.check(Path(source))
    except DataError as error:
        command = f": {suggest(**error.remedy)}" if suggest and error.remedy else ""
        raise UsageError(f"--data {error}{command}") from error
