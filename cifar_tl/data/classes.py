"""Which classes a data set has, which of them a base model learns, and which are new then."""

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from cifar_tl.errors import DataError
from cifar_tl.names import numbered, printable

CIFAR10_CLASS_NAMES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
SHAPES_CLASS_NAMES = (
    *("disc", "square", "triangle", "cross", "bars"),
    *("clover", "flower", "star", "gear", "diamond"),
)

BASE_CLASSES, NEW_CLASSES = tuple(range(5)), tuple(range(5, 10))  # the documented halves
ALL_CLASSES = "all"

Chosen: TypeAlias = str | Iterable[int | str] | None  # "cat,deer", or a list of names or numbers


def choose_classes(
    names: Sequence[str], base: Chosen = None, new: Chosen = None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Finds the numbers of the base classes and of the new ones.

    Args:
        names: Of all classes, ten.
        base: Names or numbers, as a list or with commas between them; a name that is a number wins.
            ``"all"``: all of them, so that none is new. By default all that are not new.
        new: Likewise, but not all. By default all the rest; without either, the documented halves.

    Raises:
        DataError: If there is no such class, one is named twice or on both sides, or there are
            fewer than two on a side.
    """
    if base is None and new is None:
        return BASE_CLASSES, NEW_CLASSES
    if base == ALL_CLASSES and ALL_CLASSES not in names:
        base = range(len(names))
        new = () if new is None else new
    numbers = {
        side: None if chosen is None else _numbers(names, side, chosen)
        for side, chosen in (("base", base), ("new", new))
    }
    rest = {number for found in numbers.values() if found is not None for number in found}
    rest = set(range(len(names))) - rest
    of_base, of_new = (
        tuple(sorted(rest if found is None else found)) for found in numbers.values()
    )
    if both := sorted(set(of_base) & set(of_new)):
        raise DataError(
            f"base classes and new classes both have {_named(names, both)}: leave it out of one"
        )
    for side, found in (("base", of_base), ("new", of_new)):
        if len(found) < 2 and not (side == "new" and len(of_base) == len(names)):
            raise DataError(
                f"{side} classes: there must be at least two, not {_named(names, found) or 'none'}"
            )
    return of_base, of_new


def _numbers(names: Sequence[str], side: str, chosen: str | Iterable[int | str]) -> list[int]:
    parts = [part.strip() for part in chosen.split(",")] if isinstance(chosen, str) else chosen
    numbers = []
    for part in parts:
        if part in names:
            numbers.append(names.index(str(part)))
        elif str(part).isdecimal() and int(part) < len(names):
            numbers.append(int(part))
        else:
            raise DataError(
                f"{side} classes: there is no class {printable(repr(part))}: choose among "
                f"{numbered(dict(enumerate(names)))}"
            )
    if twice := [number for number in numbers if numbers.count(number) > 1]:
        raise DataError(f"{side} classes: {_named(names, twice[:1])} is there twice: name it once")
    return numbers


def _named(names: Sequence[str], numbers: Iterable[int]) -> str:
    return numbered({number: names[number] for number in numbers})


def split_suffix(base: Sequence[int], new: Sequence[int]) -> str:
    """Writes what a folder's name has of the classes: nothing for the documented halves."""
    if (tuple(base), tuple(new)) == (BASE_CLASSES, NEW_CLASSES):
        return ""
    return "-".join(["", "".join(map(str, base)), "".join(map(str, new))]) if new else "-all"


def listed(numbers: Sequence[int]) -> str:
    """Writes numbers of classes in short, ``5-9``."""
    if len(numbers) > 2 and list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}-{numbers[-1]}"
    return ", ".join(map(str, numbers))
