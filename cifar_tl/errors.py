"""Every error of this package: one line that says what is wrong and what to do."""

from typing import Any


class CifarTLError(Exception):
    """What all errors of this package are, beside the built-in kind that fits them best."""


class DataError(CifarTLError, ValueError):
    """The data cannot be used; the message names the file."""


class MissingDataError(DataError):
    """CIFAR-10 is not in the folder, or not all of it is undamaged."""


class DownloadError(DataError):
    """CIFAR-10 is not on disk, and the network or the server does not give it."""


class ImageError(CifarTLError, ValueError):
    """A file is no readable image; the message names it."""


class CheckpointError(CifarTLError, ValueError):
    """A checkpoint cannot be read; the message names the file."""


class TrainingError(CifarTLError, RuntimeError):
    """The training went wrong; the message says where and what to try."""


class ExportError(CifarTLError, RuntimeError):
    """An exported model does not compute what the original computes; it was not kept."""


class LockedError(CifarTLError, RuntimeError):
    """Another process is at work in a folder; the message names it."""


class HistoryError(CifarTLError, ValueError):
    """The history of a run is damaged."""


class RunError(CifarTLError, RuntimeError):
    """A run cannot be started or go on; ``remedy`` has the options of ``train`` that help."""

    def __init__(self, message: str, **remedy: Any) -> None:
        super().__init__(message)
        self.remedy = remedy


class CifarTLWarning(UserWarning):
    """What all warnings of this package are."""


class RunWarning(CifarTLWarning):
    """Something about a run that its owner should know."""


class DataWarning(CifarTLWarning):
    """Something about images that their owner should know: what was left out, or is doubtful."""


def first_line(error: BaseException) -> str:
    """Takes the first line of what an error of another library says, or what it is called."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
