"""A run's folder: finished, or to go on with; every file of it is written whole."""

import contextlib
import csv
import dataclasses
import hashlib
import io
import itertools
import json
import math
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from cifar_tl.backbone import Network
from cifar_tl.checkpoint import load_checkpoint, save_checkpoint, save_model
from cifar_tl.disk import TEMPORARY, locked, write_atomically
from cifar_tl.errors import CheckpointError, HistoryError, RunError, RunWarning
from cifar_tl.experiment import stages
from cifar_tl.experiment.settings import check_settings
from cifar_tl.training import EpochRecord

DIGEST = "sha256"  # in result.json: of all the rest of it


@dataclass(frozen=True)
class HistoryRow(EpochRecord):
    """The record of an epoch, and the time of the stage until its end, without lost epochs."""

    seconds_features_so_far: float
    seconds_total_so_far: float


@dataclass
class History:
    """What a run has done so far, and for how long.

    Attributes:
        surroundings: What the bytes depend on, such as the version of torch. Each entry says from
            which epoch on it holds, ``from_epoch``.
        start: When the run began, on the clock of ``time.perf_counter``: earlier, by the seconds
            of the calls before this one.
        seconds_features: How long the frozen features took in all calls.
        rows: A row for each epoch.
    """

    surroundings: list[dict[str, Any]]
    start: float
    seconds_features: float = 0.0
    rows: list[HistoryRow] = field(default_factory=list)

    def add(self, record: EpochRecord) -> None:
        """Adds an epoch that has just ended."""
        self.rows.append(
            HistoryRow(
                **vars(record),
                seconds_features_so_far=self.seconds_features,
                seconds_total_so_far=time.perf_counter() - self.start,
            )
        )

    def figures(self) -> dict[str, float]:
        """Lists what ``result.json`` says of the epochs and of the time."""
        return {
            "val_accuracy": self.rows[-1].val_accuracy,
            "val_loss": self.rows[-1].val_loss,
            "seconds_train": sum(row.seconds_train for row in self.rows),
            "seconds_validation": sum(row.seconds_validation for row in self.rows),
            "seconds_features": self.seconds_features,
            "seconds_total": time.perf_counter() - self.start,
        }


@dataclass(frozen=True)
class RunFolder:
    """A folder with the files of a run, and the settings that identify the run."""

    path: Path
    settings: dict[str, Any]

    def finished(self) -> dict[str, Any] | None:
        """Reads the result of a finished run.

        Returns:
            The content of ``result.json``, without its digest. None: the run is not finished, or
            a file of its result is damaged. A warning says so: ``last.pt`` makes it anew.

        Raises:
            RunError: If the folder holds a finished run with other settings.
        """
        path = self.path / stages.RESULT
        if not path.exists() or not (self.path / stages.MODEL).exists():
            return None
        try:
            result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if result.pop(DIGEST) != _digest(result):
                raise ValueError
        except (ValueError, AttributeError, KeyError, TypeError):  # no JSON, no object, or changed
            warnings.warn(f"{path} is damaged: it is made anew", RunWarning, stacklevel=3)
            return None
        try:
            found = load_checkpoint(self.path / stages.MODEL).get("settings")
        except CheckpointError as error:
            warnings.warn(f"{error}; it is made anew", RunWarning, stacklevel=3)
            return None
        check_settings(self.path, found if isinstance(found, dict) else {}, self.settings)
        return result

    def epochs_done(self) -> int:
        """Counts the epochs after which `resume` would go on: 0 if ``last.pt`` is damaged.

        Raises:
            RunError: If the folder holds a run with other settings.
        """
        try:
            content = load_checkpoint(self.path / stages.LAST)
            found, epoch = dict(content["settings"]), int(content["epoch"])
        except (CheckpointError, KeyError, TypeError, ValueError):
            return 0
        check_settings(self.path, found, self.settings)
        return epoch

    def resume(
        self, model: nn.Module, optimizer: Optimizer, now: dict[str, Any], start: float
    ) -> History:
        """Brings model and optimizer to where an unfinished run stopped.

        Args:
            model: In place.
            optimizer: In place.
            now: The present surroundings. A warning says if they have changed: the bytes will then
                differ from those of a run that never stopped.
            start: When this call began, on the clock of ``time.perf_counter``.

        Returns:
            The history, without rows if there is nothing to go on with.

        Raises:
            RunError: If the folder holds a run with other settings, or its files are damaged.
        """
        path, remedy = self.path / stages.LAST, {"stage": self.settings["stage"], "restart": True}
        if not path.exists():
            return History([{"from_epoch": 1, **now}], start)
        try:
            content = load_checkpoint(path)
            check_settings(self.path, dict(content["settings"]), self.settings)
            rows = read_history(self.path / stages.HISTORY, int(content["epoch"]))
            model.load_state_dict(content["model"])
            _load_optimizer(optimizer, content["optimizer"])
            surroundings = [dict(part) for part in content["surroundings"]]
            before = surroundings[-1]
        except RunError:  # other settings
            raise
        except CheckpointError as error:
            raise RunError(f"{error}; or train again", **remedy) from error
        except HistoryError as error:
            raise RunError(f"{error}: train again", **remedy) from error
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise RunError(
                f"{path} does not hold an unfinished run of this version: train again", **remedy
            ) from error
        if changed := _changes(before, now):
            warnings.warn(
                f"going on in other surroundings ({changed}): the result will be as good, but its "
                "bytes will differ from those of a run that never stopped",
                RunWarning,
                stacklevel=3,
            )
            surroundings.append({"from_epoch": len(rows) + 1, **now})
        if rows:
            start -= rows[-1].seconds_total_so_far
        before_this_call = rows[-1].seconds_features_so_far if rows else 0.0
        return History(surroundings, start, before_this_call, rows)

    def save_epoch(self, model: nn.Module, optimizer: Optimizer, history: History) -> None:
        """Saves all that is needed to go on after the last epoch.

        ``last.pt`` holds no times: its bytes are the same with and without an interruption.
        """
        content = {
            "settings": self.settings,
            "epoch": len(history.rows),
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "surroundings": history.surroundings,
        }
        # The history first: if only it is written, it has a row too many, which is not read.
        _write_history(self.path / stages.HISTORY, history.rows)
        save_checkpoint(self.path / stages.LAST, content)

    def save_finished(self, model: Network, result: dict[str, Any], text: str) -> None:
        """Writes model and results, and deletes pictures of an earlier result.

        ``result.json`` comes last: from then on the run is finished.
        """
        for name in stages.PICTURES:
            (self.path / name).unlink(missing_ok=True)
        save_model(self.path / stages.MODEL, model, self.settings)
        digested = {**result, DIGEST: _digest(result)}
        _write_pair(self.path / stages.RESULT, self.path / stages.RESULTS, digested, text)


def discard(comparisons: Iterable[Path], folders: Iterable[Path]) -> None:
    """Deletes the files of runs, and the comparisons of them. Other files stay.

    Raises:
        LockedError: If another process is at work in one of them. Then nothing is deleted.
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
        of_all = (*stages.COMPARISON, *stages.COMPARISON_PICTURES, stages.REPORT, *stages.BASES)
        for folder, name in itertools.product(comparisons, of_all):
            (folder / name).unlink(missing_ok=True)


def save_comparison(folder: Path, comparison: dict[str, Any], text: str) -> None:
    """Writes a comparison beside the folders of its runs, and deletes earlier pictures of it."""
    json_name, text_name = stages.COMPARISON
    with locked(folder, wait=True):
        for name in stages.COMPARISON_PICTURES:
            (folder / name).unlink(missing_ok=True)
        _write_pair(folder / json_name, folder / text_name, comparison, text)


def save_bases(folder: Path, comparison: dict[str, Any], text: str) -> None:
    """Writes a comparison of bases into the folder of their data."""
    json_name, text_name = stages.BASES
    with locked(folder, wait=True):
        _write_pair(folder / json_name, folder / text_name, comparison, text)


def save_page(folder: Path, text: str) -> None:
    """Writes the page that shows a comparison."""
    with locked(folder, wait=True):
        write_atomically(folder / stages.REPORT, text.encode("utf-8", "backslashreplace"))


def read_pictures(place: stages.Place) -> dict[str, bytes]:
    """Reads the pictures that there are, of a comparison and, as ``STAGE/NAME``, of stages."""
    paths = {name: place.comparison / name for name in stages.COMPARISON_PICTURES}
    for stage in stages.STAGES:
        paths |= {f"{stage}/{name}": place.of(stage) / name for name in stages.PICTURES}
    return {name: path.read_bytes() for name, path in paths.items() if path.exists()}


def read_history(path: Path, epochs: int) -> list[HistoryRow]:
    """Reads the first rows of a ``history.csv``, one for each epoch of ``last.pt``.

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


def _load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    peaks = [group["lr"] for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
        if "initial_lr" not in group:  # files of earlier versions have the rate of their last step
            group["lr"] = peak


def _changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Lists what has changed in the surroundings, such as ``threads 2 before, 1 now``."""
    names = {**dict.fromkeys(before), **now}  # what only one side has counts, too
    names.pop("from_epoch", None)
    return ", ".join(
        f"{name} {before.get(name)} before, {now.get(name)} now"
        for name in names
        if before.get(name) != now.get(name)
    )


def _digest(result: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(result).encode()).hexdigest()


def _write_pair(json_path: Path, text_path: Path, content: dict[str, Any], text: str) -> None:
    """Writes findings for people, then for programs."""
    write_atomically(text_path, text.encode("ascii", "backslashreplace"))
    write_atomically(json_path, (json.dumps(content, indent=2) + "\n").encode("ascii"))


def _write_history(path: Path, rows: Sequence[HistoryRow]) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    names = [field.name for field in dataclasses.fields(HistoryRow)]
    if all(math.isnan(row.val_balanced_accuracy) for row in rows):  # the classes are equal
        names.remove("val_balanced_accuracy")
    writer.writerow(names)
    writer.writerows([getattr(row, name) for name in names] for row in rows)
    write_atomically(path, buffer.getvalue().encode("ascii"))
