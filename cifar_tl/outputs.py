"""Which output of a model stands for which class."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Outputs:
    """The outputs of a model, and the K classes that it learns.

    A model with K outputs has one for each of its classes, in their order. A model with more
    outputs has one for every class of the data, and only K of them are trained.

    Attributes:
        classes: The K classes, by their numbers in the data.
        names: Their K names.
        size: The number of outputs.
    """

    classes: tuple[int, ...]
    names: tuple[str, ...]
    size: int

    @property
    def columns(self) -> tuple[int, ...]:
        """The K trained outputs, in the order of the classes."""
        return tuple(range(self.size)) if len(self.classes) == self.size else self.classes

    @property
    def named(self) -> dict[int, str]:
        """The names of the trained outputs, by output."""
        return dict(zip(self.columns, self.names, strict=True))

    @property
    def untrained(self) -> list[int]:
        """The outputs that are never trained."""
        return [output for output in range(self.size) if output not in self.columns]

    def places(self, labels: Tensor) -> Tensor:
        """Turns labels ``(N,)``, numbers of classes in the data, into places from 0 to K - 1."""
        table = torch.full((max(self.classes) + 1,), -1)
        table[list(self.classes)] = torch.arange(len(self.classes))
        return table[labels]

    def of(self, labels: Tensor) -> Tensor:
        """Turns labels ``(N,)``, numbers of classes in the data, into output numbers ``(N,)``."""
        return torch.tensor(self.columns)[self.places(labels)]


def outputs_of(settings: Mapping[str, Any], size: int) -> Outputs | None:
    """Reads the classes of a model from its settings or from a ``result.json``.

    Args:
        settings: They have a list ``classes`` and a list ``class_names``.
        size: The number of outputs of the model.

    Returns:
        The outputs. None: the settings do not fit the model.
    """
    classes, names = settings.get("classes"), settings.get("class_names")
    if not isinstance(classes, list) or not isinstance(names, list) or len(names) != len(classes):
        return None
    if not all(type(label) is int for label in classes):
        return None
    if not all(isinstance(name, str) for name in names):
        return None
    found = Outputs(tuple(classes), tuple(names), size)
    numbers = set(found.columns)
    return found if 0 < len(numbers) == len(classes) and numbers <= set(range(size)) else None
