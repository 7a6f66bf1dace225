"""The errors of this package. Each message is one line: what is wrong, and what to do."""

import errno
import re
from typing import Any


class CifarTLError(Exception):
    """The base of all errors of this package. Each one is also a built-in error."""


class DataError(CifarTLError, ValueError):
    """The data cannot be used. The message names the file.

    ``remedy`` holds the options of ``train`` that help.
    """

    def __init__(self, message: str = "", **remedy: Any) -> None:
        super().__init__(message)
        self.remedy = remedy


class MissingDataError(DataError):
    """CIFAR-10 is not in the folder, or a part of it is missing or damaged."""


class DownloadError(DataError):
    """CIFAR-10 cannot be downloaded."""


class ImageError(CifarTLError, ValueError):
    """A file is not a readable image. The message names it."""


class CheckpointError(CifarTLError, ValueError):
    """A checkpoint cannot be read, or its model gives no finite numbers."""


class BackboneError(CifarTLError, ValueError):
    """A pretrained network or its weights cannot be had. The message says what to do."""


class TrainingError(CifarTLError, RuntimeError):
    """The training diverged. The message says when, and what to try.

    ``too_high`` is the value of the recipe that was too high: ``lr`` or ``weight_decay``.
    """

    def __init__(self, message: str, too_high: str = "lr") -> None:
        super().__init__(message)
        self.too_high = too_high


class ExportError(CifarTLError, RuntimeError):
    """A model cannot be exported, or would compute something else. Nothing was kept."""


class LockedError(CifarTLError, RuntimeError):
    """Another process is at work in a folder. The message names the folder."""


class RunError(CifarTLError, RuntimeError):
    """A run cannot start or go on. ``remedy`` holds the options of ``train`` that help."""

    def __init__(self, message: str, **remedy: Any) -> None:
        super().__init__(message)
        self.remedy = remedy


class TailError(RunError):
    """A pretrained network has no last layers that can learn by themselves."""


class CifarTLWarning(UserWarning):
    """The base of all warnings of this package."""


class RunWarning(CifarTLWarning):
    """A warning about a run."""


class BackboneWarning(CifarTLWarning):
    """A warning about a pretrained network."""


class DataWarning(CifarTLWarning):
    """A warning about data: what was left out, or is doubtful."""


_OUT_OF_MEMORY = re.compile(  # in messages of torch, oneDNN and Python
    "out of memory|can't allocate memory|could not create a primitive|can't start new thread"
)
# Nothing is there, or no file. After any other error of the system, the file may be whole.
_NO_FILE = (
    *(None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL),
    *(errno.ENAMETOOLONG, errno.ENXIO, errno.ENODEV),
)


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message. Without a message: the name of its class."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether memory was short. Torch says so by a ``RuntimeError``."""
    by_torch = isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error))
    return isinstance(error, MemoryError) or bool(by_torch)


def may_be_whole(error: BaseException) -> bool:
    """Returns whether the system failed. The file may be whole, so it is not called damaged."""
    return isinstance(error, OSError) and error.errno not in _NO_FILE
