"""Answers for spreadsheets and programs: CSV and JSON, to standard output or to a file."""

import argparse
import csv
import io
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from cifar_tl.command.console import UsageError, write
from cifar_tl.data.pictures.find import suffixes
from cifar_tl.disk import read_beginning, write_atomically

SIGNATURE = "\ufeff"  # at the beginning of a CSV file: a spreadsheet then reads it as UTF-8
_FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n")  # a spreadsheet may compute such a cell


def add_output_options(add: Callable[..., Any], rows: str, objects: str) -> None:
    """Adds the options that say how answers are written.

    Args:
        add: Adds an option.
        rows: What the rows of the CSV file are.
        objects: What the JSON is.
    """
    add("--csv", action="store_true", help=f"{rows}, as CSV for a spreadsheet")
    add("--json", action="store_true", help=objects)
    add(
        "--output",
        metavar="FILE",
        type=Path,
        help="write CSV or JSON to FILE, whole or not at all; FILE.csv and FILE.json need no --csv "
        "or --json (default: standard output)",
    )


def check_output(options: argparse.Namespace) -> None:
    """Checks the options of `add_output_options`. The name of the file may choose the format."""
    if options.csv and options.json:
        raise UsageError("--csv and --json exclude each other: choose one")
    path: Path | None = options.output
    if path is None:
        return
    suffix = path.suffix.lower()
    if not (options.csv or options.json):
        options.csv, options.json = suffix == ".csv", suffix in (".json", ".jsonl")
        if not (options.csv or options.json):
            raise UsageError(f"--output {path}: add --csv or --json")
    if path.is_dir() or path.name in ("", ".."):
        raise UsageError(f"--output {path}: names a folder: add the name of a file")
    if not path.parent.is_dir():
        raise UsageError(f"--output {path}: there is no folder {path.parent}: make it first")
    if path.exists() and not path.is_file():
        raise UsageError(f"--output {path}: is a device or a pipe: write > {path} instead")
    if suffix in (*suffixes(), ".pt", ".npz"):  # maybe an image that a * has named
        raise UsageError(f"--output {path}: looks like an image or a model: name another file")
    if path.exists() and not _is_replaced(path):
        raise UsageError(f"--output {path}: is there, and holds no answers: name another file")


def _is_replaced(path: Path) -> bool:
    """Returns whether a file is empty, or begins as answers do."""
    begins = read_beginning(path, 20)
    texts = (f"{SIGNATURE}file,", f"{SIGNATURE}number,", '{"file": ', '{"model": ')
    return not begins or begins.startswith(tuple(text.encode() for text in texts))


def write_answers(parts: Iterable[str], output: Path | None) -> None:
    """Writes text: to standard output as it comes, or to a file when all of it is there."""
    if output is not None:
        content = "".join(parts).encode("utf-8", "backslashreplace")  # not every name is UTF-8
        write_atomically(output, content)
        return
    is_csv = False
    for part in parts:
        is_csv = is_csv or part.startswith(SIGNATURE)
        stream = getattr(sys.stdout, "buffer", None)  # of bytes; a notebook has none
        if is_csv and stream is not None:  # UTF-8, whatever the terminal has
            stream.write(part.encode("utf-8", "backslashreplace"))
            stream.flush()
        else:
            write(sys.stdout, part)


def csv_row(cells: Sequence[str | float]) -> str:
    """Writes a row of CSV. Numbers have six decimals, and no text can be a formula."""
    row = io.StringIO(newline="")
    csv.writer(row).writerow([_cell(value) for value in cells])
    return row.getvalue()


def _cell(value: str | float) -> str:
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_FORMULAS) else value
    return f"{value:.6f}" if isinstance(value, float) else str(value)
