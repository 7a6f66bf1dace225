"""The classes of a data set: those that a base model learns, and those that are new after it."""

import hashlib
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TypeAlias

from cifar_tl.errors import DataError
from cifar_tl.names import count, numbered, printable

CIFAR10_CLASS_NAMES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
SHAPES_CLASS_NAMES = (
    *("disc", "square", "triangle", "cross", "bars"),
    *("clover", "flower", "star", "gear", "diamond"),
)
ALL_CLASSES = "all"
LONGEST_SUFFIX = 40  # characters; a file system allows about 255 for the whole name

Chosen: TypeAlias = str | Iterable[int | str] | None  # "cat,deer", or a list of names or numbers


def halves(num_classes: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Divides classes by default: the first half is for base, the rest is new."""
    return tuple(range(num_classes // 2)), tuple(range(num_classes // 2, num_classes))


BASE_CLASSES, NEW_CLASSES = halves(10)  # the documented ones: 0-4 and 5-9


def choose_classes(
    names: Sequence[str], base: Chosen = None, new: Chosen = None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Finds the numbers of the base classes and of the new classes.

    Args:
        names: The names of all classes.
        base: Names or numbers, in a list or with commas between them. If a name looks like a
            number, the name counts. ``"all"``: all classes, then none is new. Default: all that
            are not new.
        new: Names or numbers of new classes. ``"all"``: all classes are the user's own, and a base
            comes from elsewhere. Default: all that are not base classes. If both are missing:
            `halves`, or with fewer than four classes all are the user's own.

    Returns:
        The base classes and the new classes, each in ascending order. Classes of the user's own
        are all on both sides.

    Raises:
        DataError: If a class does not exist, is named twice or on both sides, or if a side has
            fewer than two classes.
    """
    if len(names) < 2:
        raise DataError(f"there is only {count(len(names), 'class')}: there must be two or more")
    everything = tuple(range(len(names)))
    if base is None and new is None and len(names) >= 4:
        return halves(len(names))
    if base is None and (new is None or (new == ALL_CLASSES and ALL_CLASSES not in names)):
        return everything, everything
    if base == new == ALL_CLASSES and ALL_CLASSES not in names:
        raise DataError(
            "base classes and new classes cannot both be all: leave the base classes out to learn "
            "all classes from a base of other data, or leave the new classes out to make a base"
        )
    if base == ALL_CLASSES and ALL_CLASSES not in names:
        base = everything
        new = () if new is None else new
    chosen = [
        None if given is None else _numbers(names, side, given)
        for side, given in (("base", base), ("new", new))
    ]
    rest = {*everything}.difference(*(found for found in chosen if found is not None))
    of_base, of_new = (tuple(sorted(rest if found is None else found)) for found in chosen)
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


def split_suffix(base: Sequence[int], new: Sequence[int], num_classes: int) -> str:
    """Writes how the name of a results folder ends; other classes give another ending.

    Returns:
        Nothing for the default, ``-all`` if no class is new, ``-own`` if all classes are the user's
        own. Else the base classes, then the new ones:
        ``-345-89`` of ten classes, ``-0to19_25-30_31`` of any other number. A long ending is
        replaced by two counts and a checksum: ``-50-50-1b4f0e98``.
    """
    is_own = tuple(base) == tuple(new)
    if (tuple(base), tuple(new)) == halves(num_classes) or (is_own and num_classes < 4):
        return ""
    if is_own:
        return "-own"
    if not new:
        return f"-{ALL_CLASSES}"
    if num_classes == 10:  # one digit each
        return f"-{''.join(map(str, base))}-{''.join(map(str, new))}"
    suffix = f"-{'_'.join(_runs(base, 'to'))}-{'_'.join(_runs(new, 'to'))}"
    if len(suffix) <= LONGEST_SUFFIX:
        return suffix
    return f"-{len(base)}-{len(new)}-{hashlib.sha256(suffix.encode()).hexdigest()[:8]}"


def listed(numbers: Sequence[int]) -> str:
    """Writes the numbers of classes for people: ``0, 2, 5-9``."""
    return ", ".join(_runs(numbers, "-"))


def _runs(numbers: Sequence[int], to: str) -> list[str]:
    """Writes numbers; three or more without a gap become one text, such as ``5-9``."""
    texts: list[str] = []
    for _, places in groupby(range(len(numbers)), lambda place: numbers[place] - place):
        run = [numbers[place] for place in places]
        texts += [f"{run[0]}{to}{run[-1]}"] if len(run) > 2 else map(str, run)
    return texts
