"""``runs.csv``: all runs below an output folder, a row for each, for programs."""

import csv
import io
import os
import warnings
from pathlib import Path
from typing import Any

from cifar_tl.disk import locked, read_beginning, write_atomically
from cifar_tl.errors import RunWarning
from cifar_tl.experiment.folder import read_result
from cifar_tl.experiment.stages import MODEL, RESULT, RUNS, STAGES, takes_base

FIRST = ("folder", "stage", "data", "base", "seed", "train_fraction")


def save_runs(output_dir: Path) -> None:
    """Writes the table of all finished runs below a folder. It replaces an earlier table only.

    The columns are `FIRST`, then all settings and results that are one value, as ``result.json``
    names them.

    Raises:
        OSError: If the file cannot be written.
    """
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    with locked(output_dir, wait=True):
        if not _is_free(output_dir / RUNS):
            note = f"{output_dir / RUNS} is another program's file, and stays: rename it, and the "
            warnings.warn(f"{note}next run writes its table of all runs", RunWarning, stacklevel=2)
            return
        for path in _results(output_dir):
            try:
                result, _ = read_result(path)
                found[path.relative_to(output_dir).parts[:-1]] = result
            except OSError as error:
                warnings.warn(
                    f"{path}: {error.strerror}: {RUNS} lacks it", RunWarning, stacklevel=2
                )
            except ValueError as error:
                if not (path.parent / MODEL).exists():  # of another program, or not finished
                    continue
                warnings.warn(f"{error}: {RUNS} lacks it", RunWarning, stacklevel=2)
        rows = [{**result, "folder": "/".join(parts)} for parts, result in found.items()]
        for parts, row in zip(found, rows, strict=True):
            row["base"] = _base(parts, found)
        names = [name for row in rows for name, value in row.items() if _is_flat(value)]
        table = io.StringIO(newline="")
        writer = csv.DictWriter(
            table, dict.fromkeys([*FIRST, *names]), extrasaction="ignore", lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows({k: v for k, v in row.items() if _is_flat(v)} for row in rows)
        content = table.getvalue().encode("utf-8", "backslashreplace")
        write_atomically(output_dir / RUNS, content)


def _results(output_dir: Path) -> list[Path]:
    """Finds each ``result.json`` below a folder, also behind links. Warns of what it cannot see."""

    def warn(error: OSError) -> None:
        text = f"{error.filename}: {error.strerror}: {RUNS} lacks what is in it"
        warnings.warn(text, RunWarning, stacklevel=2)

    found, seen = [], set()
    for folder, folders, files in os.walk(output_dir, onerror=warn, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(real)
        if RESULT in files and folder != str(output_dir):
            found.append(Path(folder, RESULT))
    return sorted(found)


def _is_free(path: Path) -> bool:
    """Returns whether there is no file, or an earlier table: its first columns are `FIRST`."""
    try:
        begins = ",".join(FIRST).encode()
        return read_beginning(path, len(begins)) == begins
    except FileNotFoundError:
        return True


def _is_flat(value: object) -> bool:
    return value is None or isinstance(value, (str, int, float))


def _base(parts: tuple[str, ...], found: dict[tuple[str, ...], dict[str, Any]]) -> object:
    """Returns the pretrained network or the model with which the way to a run begins."""
    result = found.get(parts, {})
    stage = result.get("stage")
    if "backbone" in result or stage not in STAGES or STAGES[stage].parent is None:
        return result.get("backbone")
    if takes_base(stage):
        return result.get("parent_path")
    if stage not in parts:  # somebody has moved it
        return None
    place = len(parts) - 1 - parts[::-1].index(stage)  # data may have the name of a stage, too
    return _base((*parts[:place], STAGES[stage].parent or "", *parts[place + 1 :]), found)
