"""A run's folder: what is finished, what goes on where it stopped, what is refused."""

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from cifar_tl.checkpoint import load_checkpoint, save_checkpoint, write_atomically
from cifar_tl.recipe import Recipe
from cifar_tl.training import EpochRecord

MODEL = "model.pt"  # the finished model
LAST = "last.pt"  # all that is needed to go on after the last finished epoch
HISTORY = "history.csv"  # a row for each epoch
RESULT = "result.json"  # for programs; written last, so that its presence means finished
RESULTS = "results.txt"  # for people
COMPARISON = ("comparison.json", "comparison.txt")  # of all stages, beside their folders


class RunError(RuntimeError):
    """A run cannot be started or go on; the message says why and what to do.

    Attributes:
        remedy: The options of ``train.py`` that do it, such as ``{"restart": True}``.
    """

    def __init__(self, message: str, **remedy: Any) -> None:
        super().__init__(message)
        self.remedy = remedy


@dataclass(frozen=True)
class HistoryRow(EpochRecord):
    """An epoch's record and the stage's time up to its end, without epochs that were lost."""

    seconds_features_so_far: float
    seconds_total_so_far: float


def discard(folder: Path) -> None:
    """Deletes a run's files, the comparison that tells of it, and nothing else.

    Args:
        folder: The run's folder; it may be missing.
    """
    for name in (RESULT, MODEL, LAST, HISTORY, RESULTS):
        (folder / name).unlink(missing_ok=True)
    for name in COMPARISON:
        (folder.parent / name).unlink(missing_ok=True)


def finished_result(folder: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Reads the result of a finished run.

    Args:
        folder: The run's folder; it may be missing.
        settings: What identifies the run.

    Returns:
        The content of ``result.json``, or None if the run is not finished.

    Raises:
        RunError: If the folder holds a finished run with other settings, or a damaged result.
    """
    path = folder / RESULT
    if not path.exists() or not (folder / MODEL).exists():
        return None
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = {key: result.get(key) for key in settings}
    except (ValueError, AttributeError) as error:
        raise RunError(
            f"{path} is damaged: train again", stage=settings["stage"], restart=True
        ) from error
    _check_settings(folder, found, settings)
    return result


def resume(
    folder: Path, settings: dict[str, Any], model: nn.Module, optimizer: Optimizer
) -> list[HistoryRow]:
    """Brings model and optimizer to where an unfinished run stopped.

    Args:
        folder: The run's folder.
        settings: What identifies the run.
        model: Gets the saved weights.
        optimizer: Gets the saved state.

    Returns:
        A row for each epoch done; none if there is nothing to go on with.

    Raises:
        RunError: If the folder holds a run with other settings, or its history is damaged.
        CheckpointError: If ``last.pt`` is damaged.
    """
    path = folder / LAST
    if not path.exists():
        return []
    content = load_checkpoint(path)
    _check_settings(folder, content["settings"], settings)
    # The history is written first, so it may be an epoch ahead of the checkpoint.
    try:
        rows = _read_history(folder / HISTORY)[: content["epoch"]]
    except (ValueError, TypeError):
        rows = []
    if len(rows) != content["epoch"]:
        raise RunError(
            f"{folder / HISTORY} is damaged or lacks epochs that {LAST} has: train again",
            stage=settings["stage"],
            restart=True,
        )
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    return rows


def save_epoch(
    folder: Path,
    settings: dict[str, Any],
    model: nn.Module,
    optimizer: Optimizer,
    rows: Sequence[HistoryRow],
) -> None:
    """Saves all that is needed to go on after an epoch.

    ``last.pt`` holds no times, so it has the same bytes whether the run was interrupted or not.

    Args:
        folder: The run's folder.
        settings: What identifies the run.
        model: Its weights.
        optimizer: Its state.
        rows: All epochs done.
    """
    _write_history(folder / HISTORY, rows)
    content = {
        "settings": settings,
        "epoch": len(rows),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    save_checkpoint(folder / LAST, content)


def save_result(folder: Path, result: dict[str, Any], text: str) -> None:
    """Writes the results; from then on the run is finished.

    Args:
        folder: The run's folder.
        result: For programs.
        text: For people.
    """
    _write_report(folder / RESULT, folder / RESULTS, result, text)


def save_comparison(folder: Path, comparison: dict[str, Any], text: str) -> None:
    """Writes a comparison of runs beside their folders.

    Args:
        folder: Holds the runs' folders.
        comparison: For programs.
        text: For people.
    """
    json_name, text_name = COMPARISON
    _write_report(folder / json_name, folder / text_name, comparison, text)


def _write_report(json_path: Path, text_path: Path, content: dict[str, Any], text: str) -> None:
    write_atomically(text_path, text.encode("ascii", "backslashreplace"))
    write_atomically(json_path, (json.dumps(content, indent=2) + "\n").encode("ascii"))


def _check_settings(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    differences = [key for key in wanted if found.get(key) != wanted[key]]
    if not differences:
        return
    if "recipe" in differences:  # its values differ as well: name it alone
        values = {field.name for field in dataclasses.fields(Recipe)}
        differences = [key for key in differences if key not in values]
    words = {"fingerprint": "other data", "parent": f"another {wanted['parent_stage']} model"}
    listed = ", ".join(
        words.get(key, f"{key} {found.get(key)} there, {wanted[key]} now") for key in differences
    )
    if differences == ["parent"]:
        message = f"{folder} was made from {listed} than the present one: renew it"
    else:
        message = (
            f"{folder} holds a run with other settings ({listed}): "
            "choose another output folder, or replace that run"
        )
    raise RunError(message, stage=wanted["stage"], restart=True)


def _read_history(path: Path) -> list[HistoryRow]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="ascii") as file:
        return [
            HistoryRow(
                **{
                    key: int(value) if key == "epoch" else float(value)
                    for key, value in row.items()
                }  # type: ignore[arg-type]
            )
            for row in csv.DictReader(file)
        ]


def _write_history(path: Path, rows: Sequence[HistoryRow]) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(field.name for field in dataclasses.fields(HistoryRow))
    writer.writerows(dataclasses.astuple(row) for row in rows)
    write_atomically(path, buffer.getvalue().encode("ascii"))
