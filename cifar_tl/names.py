"""Write names and numbers in messages. A name may hold any character."""

import os
from collections.abc import Mapping


def printable(name: str) -> str:
    """Replaces characters that cannot be printed in one line by their numbers."""
    known = name.encode("utf-8", "backslashreplace").decode()  # a name need not be UTF-8
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in known)


def portable(name: str) -> str:
    """Reads the name of a file as UTF-8, whatever character set the system has."""
    return os.fsencode(name).decode("utf-8", "surrogateescape")


def count(number: int, noun: str) -> str:
    """Writes a number with its noun: ``1 file``, ``2,000 files``, ``2 classes``."""
    ending = "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}{ending}"


def numbered(classes: Mapping[int, str], most: int | None = None) -> str:
    """Lists classes with their numbers: ``3 cat, 5 dog and 8 more`` if two are the most."""
    listed = [f"{number} {printable(name)}" for number, name in classes.items()]
    rest = "" if most is None or len(listed) <= most else f" and {len(listed) - most} more"
    return ", ".join(listed[:most]) + rest


def shown(value: object) -> str:
    """Writes a value of somebody's file for a message, in one line. A long one is cut."""
    text = printable(str(value))
    return text if len(text) <= 200 else f"{text[:200]}..."
