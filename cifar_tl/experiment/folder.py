"""A run's folder: finished, or to go on with; every file of it is written whole."""

import contextlib
import csv
import dataclasses
import hashlib
import io
import itertools
import json
import math
import re
import statistics
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from cifar_tl.backbone import Network
from cifar_tl.checkpoint import load_checkpoint, model_content, save_checkpoint, save_model
from cifar_tl.contents import AnyModelFile, LastFile, check
from cifar_tl.disk import (
    LARGEST_CHECKPOINT,
    LARGEST_PICTURE,
    LARGEST_TEXT,
    TEMPORARY,
    digest,
    locked,
    open_file,
    read_file,
    write_atomically,
)
from cifar_tl.errors import (
    CheckpointError,
    RunError,
    RunWarning,
    is_out_of_memory,
    may_be_whole,
)
from cifar_tl.experiment import stages
from cifar_tl.experiment.findings.results import StageResult
from cifar_tl.experiment.settings import check_settings
from cifar_tl.names import shown
from cifar_tl.outputs import outputs_of
from cifar_tl.training import EpochRecord

DIGEST = "sha256"  # in result.json: of all the rest of it
DIGESTS = "files"  # in result.json: of these files
DIGESTED = (stages.MODEL, stages.HISTORY, stages.LAST, stages.RESULTS)
_UNEQUAL = ("balanced_accuracy", "balanced_interval", "majority")
_OF_UNEQUAL = {f"{part}_{name}" for part in ("val", "test") for name in _UNEQUAL}
NEEDED_WITH = {  # if the field is there
    "backbone": {"backbone_source", "backbone_preprocessing", "fit"},
    **dict.fromkeys(_OF_UNEQUAL, _OF_UNEQUAL),
}
_STRING_OR_NUMBERS = re.compile(r'"(?:[^"\\]|\\.)*"|\[[^][{}"]*\]')  # in JSON
MOST_LISTS = 100_000  # in result.json: it has one for each class, and few others


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
        start: When this call began, minus the seconds of earlier calls, on the clock of
            ``time.perf_counter``.
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

    def count_before(self, seconds: float) -> float:
        """Counts what was made in an earlier call, and is only read now.

        Each run that uses it counts its time, once: a run that goes on has counted it already.

        Args:
            seconds: In which it was made.

        Returns:
            The seconds that were counted.
        """
        counted = 0.0 if self.rows else seconds
        self.start -= counted
        return counted

    def figures(self) -> dict[str, float]:
        """Lists what ``result.json`` says of the epochs and of the time."""
        epochs = [row.seconds_train + row.seconds_validation for row in self.rows]
        return {
            "val_accuracy": self.rows[-1].val_accuracy,
            "val_loss": self.rows[-1].val_loss,
            "seconds_train": sum(row.seconds_train for row in self.rows),
            "seconds_validation": sum(row.seconds_validation for row in self.rows),
            "seconds_epoch_fastest": min(epochs),
            "seconds_epoch_median": statistics.median(epochs),
            "seconds_epoch_slowest": max(epochs),
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
            The content of ``result.json``, without digests. None: the run is not finished, or
            its result or its model is damaged. A warning says so: ``last.pt`` makes it anew. There
            is a warning, too, if another file is not what the run wrote.

        Raises:
            RunError: If the folder holds a finished run with other settings.
        """
        path = self.path / stages.RESULT
        if not path.exists() or not (self.path / stages.MODEL).exists():
            return None
        try:
            result, digests = read_result(path)
        except ValueError as error:
            warnings.warn(f"{error}: it is made anew", RunWarning, stacklevel=3)
            return None
        try:
            content = load_checkpoint(self.path / stages.MODEL, kind=AnyModelFile)
        except CheckpointError as error:
            warnings.warn(f"{error}; it is made anew", RunWarning, stacklevel=3)
            return None
        check_settings(self.path, content["settings"], self.settings)
        if any(result.get(name, value) != value for name, value in content["settings"].items()):
            warnings.warn(
                f"{path} is of another run than {stages.MODEL}: it is made anew",
                RunWarning,
                stacklevel=3,
            )
            return None
        if changed := [name for name in digests if _digest_of(self.path / name) != digests[name]]:
            warnings.warn(
                f"{self.path}: missing or not what the run wrote: {', '.join(changed)}; the result "
                "is whole, and --restart makes all anew",
                RunWarning,
                stacklevel=3,
            )
        return result

    def check_model(self, model: Network) -> None:
        """Raises a `RunError` before training if the trained model could not be saved."""
        try:
            model_content(model, self.settings)
        except ValueError as error:
            raise RunError(str(error)) from error

    def _read_last(self) -> dict[str, Any]:
        """Reads ``last.pt``. Raises a `RunError` if it is of a run with other settings."""
        path = self.path / stages.LAST
        content = load_checkpoint(path, kind=LastFile)
        check_settings(self.path, content["settings"], self.settings)
        if content["epoch"] > self.settings.get("epochs", math.inf):
            raise CheckpointError(f"{path} has more epochs than the run: use another")
        return content

    def epochs_done(self) -> int:
        """Counts the epochs after which `resume` would go on: 0 if ``last.pt`` is damaged.

        Raises:
            RunError: If the folder holds a run with other settings.
        """
        try:
            return int(self._read_last()["epoch"])
        except CheckpointError:
            return 0

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
            content = self._read_last()
            rows = read_history(self.path / stages.HISTORY, content["epoch"])
            model.load_state_dict(content["model"])
            _load_optimizer(optimizer, content["optimizer"]["state"])
            surroundings = content["surroundings"]
            before = surroundings[-1]
        except CheckpointError as error:
            raise RunError(f"{error}; or train again", **remedy) from error
        except RunError:  # other settings
            raise
        except (IndexError, ValueError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
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

        ``result.json`` comes last: from then on the run is finished. It has the digests of the
        files that nothing else would miss.
        """
        (self.path / stages.RESULT).unlink(missing_ok=True)  # damaged, or of a damaged model
        for name in stages.PICTURES:
            (self.path / name).unlink(missing_ok=True)
        save_model(self.path / stages.MODEL, model, self.settings)
        _write_text(self.path / stages.RESULTS, text)
        digests = {name: _digest_of(self.path / name) for name in DIGESTED}
        content = {**result, DIGESTS: digests}
        _write_json(self.path / stages.RESULT, {**content, DIGEST: _digest(content)})


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
        _write_text(folder / text_name, text)
        _write_json(folder / json_name, comparison)


def save_bases(folder: Path, comparison: dict[str, Any], text: str) -> None:
    """Writes a comparison of bases into the folder of their data."""
    json_name, text_name = stages.BASES
    with locked(folder, wait=True):
        _write_text(folder / text_name, text)
        _write_json(folder / json_name, comparison)


def save_report(folder: Path, text: str) -> None:
    """Writes the page that shows a comparison."""
    with locked(folder, wait=True):
        write_atomically(folder / stages.REPORT, text.encode("utf-8", "backslashreplace"))


def read_pictures(place: stages.Place) -> dict[str, bytes]:
    """Reads the pictures that there are, of a comparison and, as ``STAGE/NAME``, of stages."""
    paths = {name: place.comparison / name for name in stages.COMPARISON_PICTURES}
    for stage in stages.STAGES:
        paths |= {f"{stage}/{name}": place.of(stage) / name for name in stages.PICTURES}
    there = {name: path for name, path in paths.items() if path.exists()}
    return {name: read_file(path, LARGEST_PICTURE) for name, path in there.items()}


def read_result(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Reads a ``result.json``.

    Returns:
        Its content without digests, and the digests of the other files: none of earlier versions.

    Raises:
        ValueError: If it is damaged, or does not hold what this program writes there.
    """
    try:
        text = read_file(path, LARGEST_TEXT)
        if text.count(b"[") + text.count(b"{") > MOST_LISTS:  # each takes 60 bytes of memory
            raise ValueError("too many lists")
        result: dict[str, Any] = json.loads(text)
        if result.pop(DIGEST) != _digest(result):
            raise ValueError("wrong digest")
        check(result, _ResultFile)
        digests = result.pop(DIGESTS, {})
        _check_whole(result)
    # No JSON, no object, lists in lists in lists ..., or changed
    except (OSError, ValueError, AttributeError, LookupError, TypeError, RecursionError) as error:
        if may_be_whole(error):
            raise
        raise ValueError(f"{path} is damaged, or not what this program writes there") from error
    return result, digests


class _ResultFile(StageResult, total=False):
    files: dict[str, str]  # `DIGESTS`


def _check_whole(result: dict[str, Any]) -> None:
    """Raises an error if parts of a result are missing, or do not fit together."""
    if any(name in result and needed - result.keys() for name, needed in NEEDED_WITH.items()):
        raise ValueError("other fields")
    rows, size = result["val_confusion"], result["num_classes"]
    outputs = outputs_of(result, size)
    if outputs is None or [len(row) for row in rows] != [size] * len(outputs.classes):
        raise ValueError("other classes")
    if result["stage"] not in stages.STAGES or sum(map(sum, rows)) != result["images_validation"]:
        raise ValueError("other images")
    if (result["test_accuracy"] is None) != (result["images_test"] == 0):
        raise ValueError("other test images")
    for name in ("val_balanced_interval", "test_balanced_interval"):
        if len(result.get(name) or (0, 1)) != 2:
            raise ValueError("no interval")


def read_history(path: Path, epochs: int) -> list[HistoryRow]:
    """Reads the first rows of a ``history.csv``, one for each epoch of ``last.pt``.

    Raises:
        CheckpointError: If it is damaged or has fewer rows.
    """
    try:
        lines = io.StringIO(read_file(path, LARGEST_TEXT).decode("ascii"), newline="")
        rows = [_read_row(row) for row in itertools.islice(csv.DictReader(lines), epochs)]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        if may_be_whole(error):
            raise
        rows = []
    if [row.epoch for row in rows] != list(range(1, epochs + 1)):
        raise CheckpointError(
            f"{path} is damaged or lacks epochs that {stages.LAST} has: use another"
        )
    return rows


def _read_row(row: dict[str, str]) -> HistoryRow:
    values: dict[str, Any] = {
        key: int(value) if key == "epoch" else float(value) for key, value in row.items()
    }
    check(values, HistoryRow)
    return HistoryRow(**values)


def _load_optimizer(optimizer: Optimizer, state: dict[int, dict[str, Tensor]]) -> None:
    """Loads a state, but no rates: those of the optimizer follow from the settings.

    Raises:
        ValueError: If it is the state of another optimizer, or of other parameters.
    """
    groups = optimizer.state_dict()["param_groups"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    of_one = {"Adam": {"step", "exp_avg", "exp_avg_sq"}}.get(
        type(optimizer).__name__, {"momentum_buffer"}
    )
    for number, parameter in enumerate(parameters):
        shapes = {name: value.shape for name, value in state.get(number, {}).items()}
        wanted = {name: () if name == "step" else parameter.shape for name in of_one}
        if shapes and shapes != wanted:
            raise ValueError("the state of another optimizer")
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Lists what has changed in the surroundings, such as ``threads 2 before, 1 now``."""
    names = {**dict.fromkeys(before), **now}  # what only one side has counts, too
    names.pop("from_epoch", None)
    return ", ".join(
        f"{name} {shown(before.get(name))} before, {shown(now.get(name))} now"
        for name in names
        if before.get(name) != now.get(name)
    )


def _digest(result: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(result).encode()).hexdigest()


def _digest_of(path: Path) -> str | None:
    """Computes the SHA-256 of a file. None: there is none."""
    try:
        with open_file(path, LARGEST_CHECKPOINT) as file:
            return digest(file, LARGEST_CHECKPOINT).hex()
    except OSError as error:
        if may_be_whole(error):
            raise
        return None


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, text.encode("ascii", "backslashreplace"))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2) + "\n"
    # A confusion matrix of many classes: a row in a line, not a number.
    text = _STRING_OR_NUMBERS.sub(lambda found: _in_one_line(found[0]), text)
    write_atomically(path, text.encode("ascii"))


def _in_one_line(text: str) -> str:
    return text if text.startswith('"') else f"[{' '.join(text[1:-1].split())}]"


def _write_history(path: Path, rows: Sequence[HistoryRow]) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    names = [field.name for field in dataclasses.fields(HistoryRow)]
    # The classes are equal, or the first epochs are of a version that knew no balanced accuracy.
    if any(math.isnan(row.val_balanced_accuracy) for row in rows):
        names.remove("val_balanced_accuracy")
    writer.writerow(names)
    writer.writerows([getattr(row, name) for name in names] for row in rows)
    write_atomically(path, buffer.getvalue().encode("ascii"))
