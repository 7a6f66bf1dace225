"""The files of a run: read when it is finished, gone on from when it stopped, written whole."""

import contextlib
import csv
import dataclasses
import hashlib
import io
import itertools
import json
import signal
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from torch import nn
from torch.optim import Optimizer

from cifar_tl.checkpoint import load_checkpoint, save_checkpoint, save_model
from cifar_tl.disk import TEMPORARY, locked, write_atomically
from cifar_tl.errors import CheckpointError, HistoryError, RunError, RunWarning
from cifar_tl.experiment import stages
from cifar_tl.network import CifarNet
from cifar_tl.training import EpochRecord

DIGEST = "sha256"  # in result.json: of all the rest of it


@dataclass(frozen=True)
class HistoryRow(EpochRecord):
    """An epoch's record and the stage's time up to its end, without epochs that were lost."""

    seconds_features_so_far: float
    seconds_total_so_far: float


def discard(data_folder: Path, folders: Iterable[Path]) -> None:
    """Deletes the files of runs, some maybe missing, the comparison of them, and nothing else.

    Raises:
        LockedError: If another process is at work in one of them; then nothing is deleted.
    """
    present = [folder for folder in folders if folder.exists()]
    with contextlib.ExitStack() as stack:
        for folder in present:
            stack.enter_context(locked(folder))
        for folder in present:
            for name in (*reversed(stages.FILES), *stages.PICTURES):
                (folder / name).unlink(missing_ok=True)
                (folder / (name + TEMPORARY)).unlink(missing_ok=True)
        if not present:
            return
        for name in (*stages.COMPARISON, *stages.COMPARISON_PICTURES, stages.REPORT):
            (data_folder / name).unlink(missing_ok=True)


def finished_result(folder: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Reads the result of a finished run.

    Returns:
        The content of ``result.json``, or None if the run is not finished, or if a file of its
        result is damaged, of which a warning tells: all of them can be made anew from ``last.pt``.

    Raises:
        RunError: If the folder holds a finished run with other settings.
    """
    path = folder / stages.RESULT
    if not path.exists() or not (folder / stages.MODEL).exists():
        return None
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if result.pop(DIGEST) != _digest(result):
            raise ValueError
    except (ValueError, AttributeError, KeyError, TypeError):  # no JSON, no object, or changed
        warnings.warn(f"{path} is damaged: it is made anew", RunWarning, stacklevel=3)
        return None
    try:
        found = load_checkpoint(folder / stages.MODEL).get("settings")
    except CheckpointError as error:
        warnings.warn(f"{error}; it is made anew", RunWarning, stacklevel=3)
        return None
    stages.check_settings(folder, found if isinstance(found, dict) else {}, settings)
    return result


def epochs_done(folder: Path, settings: dict[str, Any]) -> int:
    """Counts the epochs that `resume` would go on from; none if it cannot, of which it will tell.

    Raises:
        RunError: If the folder holds a run with other settings.
    """
    try:
        content = load_checkpoint(folder / stages.LAST)
        found, epoch = dict(content["settings"]), int(content["epoch"])
    except (CheckpointError, KeyError, TypeError, ValueError):
        return 0
    stages.check_settings(folder, found, settings)
    return epoch


def resume(
    folder: Path,
    settings: dict[str, Any],
    model: nn.Module,
    optimizer: Optimizer,
    now: dict[str, Any],
) -> tuple[list[HistoryRow], list[dict[str, Any]]]:
    """Brings model and optimizer to where an unfinished run stopped.

    A warning tells if it was made in other surroundings than those of ``now``, since then the bytes
    will be others than those of a run that never stopped.

    Returns:
        A row for each epoch done, none if there is nothing to go on with; and the surroundings of
        the run so far, the present ones included, each with its ``from_epoch``.

    Raises:
        RunError: If the folder holds a run with other settings, or what it would go on from is
            damaged.
    """
    path = folder / stages.LAST
    if not path.exists():
        return [], [{"from_epoch": 1, **now}]
    again = {"stage": settings["stage"], "restart": True}
    try:
        content = load_checkpoint(path)
        stages.check_settings(folder, dict(content["settings"]), settings)
        rows = read_history(folder / stages.HISTORY, int(content["epoch"]))
        model.load_state_dict(content["model"])
        peaks = [group["lr"] for group in optimizer.param_groups]
        optimizer.load_state_dict(content["optimizer"])
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            if "initial_lr" not in group:  # files of before have the rate of their last step
                group["lr"] = peak
        surroundings = [dict(part) for part in content["surroundings"]]
        before = surroundings[-1]
    except RunError:  # other settings
        raise
    except CheckpointError as error:
        raise RunError(f"{error}; or train again", **again) from error
    except HistoryError as error:
        raise RunError(f"{error}: train again", **again) from error
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise RunError(
            f"{path} does not hold an unfinished run of this version: train again", **again
        ) from error
    both = {**dict.fromkeys(before), **now}  # what only one names, such as processes, counts, too
    both.pop("from_epoch", None)
    if changes := [key for key in both if before.get(key) != now.get(key)]:
        changed = ", ".join(
            f"{key} {before.get(key)} before, {now.get(key)} now" for key in changes
        )
        warnings.warn(
            f"going on in other surroundings ({changed}): the result will be as good, but its "
            "bytes will differ from those of a run that never stopped",
            RunWarning,
            stacklevel=3,
        )
        surroundings.append({"from_epoch": len(rows) + 1, **now})
    return rows, surroundings


def save_epoch(
    folder: Path,
    settings: dict[str, Any],
    model: nn.Module,
    optimizer: Optimizer,
    rows: Sequence[HistoryRow],
    surroundings: Sequence[dict[str, Any]],
) -> None:
    """Saves all that is needed to go on after the epochs done, to the end even on Ctrl-C.

    ``last.pt`` holds no times, so it has the same bytes whether the run was interrupted or not.
    """
    content = {
        "settings": settings,
        "epoch": len(rows),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "surroundings": surroundings,
    }

    with _to_the_end():
        _write_history(folder / stages.HISTORY, rows)
        save_checkpoint(folder / stages.LAST, content)


def save_finished(
    folder: Path, settings: dict[str, Any], model: CifarNet, result: dict[str, Any], text: str
) -> None:
    """Writes model and results, to the end even on Ctrl-C; from then on the run is finished.

    Pictures of an earlier result are deleted.
    """
    with _to_the_end():
        for name in stages.PICTURES:
            (folder / name).unlink(missing_ok=True)
        save_model(folder / stages.MODEL, model, settings)
        digested = {**result, DIGEST: _digest(result)}
        _write_report(folder / stages.RESULT, folder / stages.RESULTS, digested, text)


def save_comparison(folder: Path, comparison: dict[str, Any], text: str) -> None:
    """Writes a comparison of runs beside their folders, to the end even on Ctrl-C.

    The pictures of an earlier comparison are deleted.
    """
    json_name, text_name = stages.COMPARISON
    with locked(folder, wait=True):
        for name in stages.COMPARISON_PICTURES:
            (folder / name).unlink(missing_ok=True)
        with _to_the_end():
            _write_report(folder / json_name, folder / text_name, comparison, text)


def save_report(folder: Path, text: str) -> None:
    """Writes the page that shows a comparison."""
    with locked(folder, wait=True):
        write_atomically(folder / stages.REPORT, text.encode("utf-8", "backslashreplace"))


def read_pictures(place: stages.Place) -> dict[str, bytes]:
    """Reads the pictures of a comparison and, as ``STAGE/NAME``, of stages, as far as they are."""
    paths = {name: place.folder / name for name in stages.COMPARISON_PICTURES}
    for stage in stages.STAGES:
        paths |= {f"{stage}/{name}": place.of(stage) / name for name in stages.PICTURES}
    return {name: path.read_bytes() for name, path in paths.items() if path.exists()}


@contextlib.contextmanager
def _to_the_end() -> Iterator[None]:
    """Has Ctrl-C, and whatever else a signal is to do, wait for the end of the block.

    A second signal does not wait.
    """
    if threading.current_thread() is not threading.main_thread():  # signals reach no other
        yield
        return
    received: list[int] = []
    waits = True
    numbers = map(int, signal.valid_signals())
    handlers = {n: found for n in numbers if callable(found := signal.getsignal(n))}

    def handle(number: int, frame: FrameType | None) -> None:
        if received or not waits:  # also where a signal has kept this handler from being removed
            handlers[number](number, frame)
        received.append(number)

    try:
        for number in handlers:
            signal.signal(number, handle)
        yield
    finally:
        try:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        finally:
            waits = False
        for number in received[:1]:
            signal.raise_signal(number)


def _digest(result: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(result).encode()).hexdigest()


def _write_report(json_path: Path, text_path: Path, content: dict[str, Any], text: str) -> None:
    write_atomically(text_path, text.encode("ascii", "backslashreplace"))
    write_atomically(json_path, (json.dumps(content, indent=2) + "\n").encode("ascii"))


def read_history(path: Path, epochs: int) -> list[HistoryRow]:
    """Reads so many rows of a ``history.csv``: written before ``last.pt``, it may have one more.

    Raises:
        HistoryError: If it is damaged or has fewer rows.
    """
    try:
        with path.open(newline="", encoding="ascii") as file:
            rows = [
                HistoryRow(
                    **{
                        key: int(value) if key == "epoch" else float(value)
                        for key, value in row.items()
                    }  # type: ignore[arg-type]
                )
                for row in itertools.islice(csv.DictReader(file), epochs)
            ]
    except (OSError, ValueError, TypeError, csv.Error):
        rows = []
    if [row.epoch for row in rows] != list(range(1, epochs + 1)):
        raise HistoryError(f"{path} is damaged or lacks epochs that {stages.LAST} has")
    return rows


def _write_history(path: Path, rows: Sequence[HistoryRow]) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(field.name for field in dataclasses.fields(HistoryRow))
    writer.writerows(dataclasses.astuple(row) for row in rows)
    write_atomically(path, buffer.getvalue().encode("ascii"))
