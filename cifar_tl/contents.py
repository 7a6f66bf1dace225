"""Does a file of this package hold what it should? Types and ranges, before anything uses it.

Anybody can make such a file, seal it and give it away. A row of a table is a field of a `TypedDict`
or of a dataclass: its annotation is the type, and `RANGES` has the range. `check` compares a
content with such a table. A field without a row is a plain value. So is a field of type `Any`.
"""

import types
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from fnmatch import fnmatchcase
from typing import (
    Any,
    Literal,
    TypedDict,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

import torch
from torch import Tensor

from cifar_tl.frame import Frame
from cifar_tl.recipe import Precision

MOST_CLASSES = 4_000  # of a run: a larger confusion matrix is not read
MOST_VALUES = 1_000_000  # in a file; a list of integers counts as three
DEEPEST = 20  # lists in lists
LARGEST = 1e38  # of any number: float32 ends there
DTYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
)
RANGES: dict[str, tuple[float, float]] = {  # by the name of a field; the first that fits
    "*accurac*": (0, 1),
    "*majority": (0, 1),
    "*interval": (0, 1),
    "*confused": (0, 1),
    "*fraction": (0, 1),
    "*calibration_error*": (0, 1),
    "probability": (0, 1),
    "share": (0, 1),
    "temperature": (0.01, 100),
    "dropout": (0, 1),
    "momentum": (0, 1),
    "warmup": (0, 1),
    "seconds*": (0, 1e10),  # 300 years
    "epoch*": (1, 10**6),
    "from_epoch": (1, 10**6),
    "num_classes": (0, 10**6),
    "images_validation": (1, 10**12),
    "white": (1e-30, LARGEST),
    "padding": (0, 255),
    "size": (1, 2048),  # pixels: a file that claims more would fill the memory
    "resize": (1, 2048),
    "seed": (-LARGEST, LARGEST),
    "*": (0, LARGEST),
}


class Settings(TypedDict, total=False):
    """What settings say about how a model computes. Others are plain values."""

    white: dict[str, float]
    precision: Precision


class ModelFile(TypedDict):
    """What every ``model.pt`` holds."""

    network: str
    num_classes: int
    state_dict: dict[str, Tensor]
    settings: Settings


class AnyModelFile(ModelFile, total=False):
    """A ``model.pt``. The last three are of a `Backbone`."""

    dropout: float
    temperature: float
    fit: Literal["crop", "squash", "pad"]
    taken_off: str
    frame: Frame
    source: dict[str, Any]


class OptimizerState(TypedDict):
    """The state of an optimizer. Its rates follow from the settings, not from here."""

    state: dict[int, dict[str, Tensor]]


class Surroundings(TypedDict):
    """What the bytes of a run depend on, from an epoch on. Others are plain values."""

    from_epoch: int


class LastFile(TypedDict):
    """A ``last.pt``."""

    settings: Settings
    epoch: int
    model: dict[str, Tensor]
    optimizer: OptimizerState
    surroundings: list[Surroundings]


class FeaturesFile(TypedDict):
    """A file of features or maps."""

    features: Tensor
    seconds: float
    place: str


def check(content: Any, kind: Any) -> None:
    """Compares what a file holds with a table of types and ranges.

    Args:
        content: What was read: tensors and plain values.
        kind: A `TypedDict`, or a dataclass.

    Raises:
        ValueError: If it does not fit. The message names the field, and says nothing of its value.
    """
    _check(content, kind, "it", iter(range(MOST_VALUES)))


def _check(value: Any, kind: Any, name: str, budget: Iterator[int], depth: int = 0) -> None:
    if next(budget, None) is None or depth > DEEPEST:
        raise ValueError("it has too many values or lists")
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        kinds = [each for each in arguments if each is not types.NoneType or value is None]
        kind = types.NoneType if value is None and types.NoneType in kinds else kinds[0]
        _check(value, kind, name, budget, depth)
    elif kind is Any:
        _check_plain(value, name, budget, depth)
    elif is_typeddict(kind) or is_dataclass(kind):
        _check_record(value, kind, name, budget, depth)
    elif origin is dict:
        _check_type(value, (dict,), name)
        for key, each in value.items():
            _check_type(key, (arguments[0],), f"a name in {name}")
            _check(each, arguments[1], name, budget, depth + 1)
    elif origin in (list, tuple):
        _check_type(value, (list, tuple), name)
        if arguments == (int,) and value and {*map(type, value)} == {int}:  # a row of a matrix
            value = [min(value), max(value)]
        kinds = list(arguments) if origin is tuple else [arguments[0]] * len(value)
        if len(value) != len(kinds):
            raise ValueError(f"{name} must have {len(kinds)} values")
        for each, of_each in zip(value, kinds, strict=True):
            _check(each, of_each, name, budget, depth + 1)
    elif origin is Literal:
        if not isinstance(value, str) or value not in arguments:
            raise ValueError(f"{name} is none of {', '.join(arguments)}")
    elif kind in (int, float):
        _check_type(value, (int,) if kind is int else (int, float), name)
        low, high = next(found for word, found in RANGES.items() if fnmatchcase(name, word))
        if not low <= value <= high:  # nor is NaN
            raise ValueError(f"{name} is not from {low:g} to {high:g}")
    elif kind is Tensor:
        _check_tensor(value, name)
    else:
        _check_type(value, (kind,), name)


def _check_record(value: Any, kind: Any, name: str, budget: Iterator[int], depth: int) -> None:
    _check_type(value, (dict,), name)
    hints = get_type_hints(kind)
    if is_dataclass(kind) and kind is not Frame:
        required = {field.name for field in fields(kind) if field.default is MISSING}
    else:
        required = getattr(kind, "__required_keys__", set(hints))
    if missing := sorted(required - value.keys()):
        raise ValueError(f"{missing[0]} is missing")
    for key, each in value.items():
        _check_type(key, (str,), f"a name in {name}")
        _check(each, hints.get(key, Any), key if key in hints else name, budget, depth + 1)


def _check_plain(value: Any, name: str, budget: Iterator[int], depth: int) -> None:
    _check_type(value, (dict, list, str, int, float, bool, types.NoneType), name)
    if isinstance(value, dict):
        for key, each in value.items():
            _check_type(key, (str, int), f"a name in {name}")
            _check(each, Any, name, budget, depth + 1)
    elif isinstance(value, list):
        for each in value:
            _check(each, Any, name, budget, depth + 1)
    elif isinstance(value, int) and abs(value) > LARGEST:  # Python cannot print every number
        raise ValueError(f"a number in {name} is too large")


def _check_type(value: Any, kinds: tuple[type, ...], name: str) -> None:
    if type(value) not in kinds:  # exactly: True is an int
        raise ValueError(f"{name} is of a wrong type")
    if isinstance(value, str) and "\0" in value:  # CSV of Python 3.10 cannot hold it
        raise ValueError(f"{name} has the character NUL")


def _check_tensor(value: Any, name: str) -> None:
    _check_type(value, (Tensor,), f"a tensor in {name}")
    if value.layout != torch.strided or value.device.type != "cpu" or value.dtype not in DTYPES:
        kind = f"{value.dtype}, {value.layout}, on {value.device.type}"
        raise ValueError(f"a tensor in {name} is of a kind that is not saved: {kind}")
    if not value.is_contiguous():  # it may claim more values than the file has
        raise ValueError(f"a tensor in {name} is not contiguous")
    if value.isnan().any():
        raise ValueError(f"a tensor in {name} has NaN")
