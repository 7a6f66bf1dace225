"""The last layers of a network, cut off: they learn from what the first layers computed once."""

import copy
import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from cifar_tl.checks import same_outputs
from cifar_tl.evaluation import evaluating
from cifar_tl.freezing import freeze, unfreeze

LARGEST_PART = 0.25  # of a network's multiplications
EQUAL = 1e-5  # of an output: the same code computes it, so hardly anything is rounded otherwise


class Tail(nn.Module):
    """The last layers of a network: the same objects as in the network, not copies.

    It runs the code of the network. But the layers before its first layer do not compute: zeros
    stand for their outputs. Its first layer gets a map instead of the zeros. A map is what this
    layer takes in the network. `find_tail` makes it.

    Attributes:
        first: The name of its first layer.
        shape: The shape of the map of one image.
        part: Its part of the network's multiplications, from 0 to 1.
        layers: Those that can learn.
        network: The network's code, with what stands for the first layers.
    """

    first: str
    shape: tuple[int, ...]
    part: float
    layers: list[nn.Module]
    network: nn.Module

    def __init__(self, network: nn.Module, listened: "_Listened", first: "_Call") -> None:
        super().__init__()
        self.first, self.shape = first.name, first.shape or ()
        self.part = 1 - first.before / listened.total
        self._image = listened.images.shape[1:]
        self.layers = [first.layer]  # a plain list: the copy below has them already
        # deepcopy takes what is in the memo instead of a copy. So it copies the containers alone.
        memo: dict[int, Any] = {}
        for tensor in (*network.parameters(), *network.buffers()):
            memo[id(tensor)] = tensor
        for layer, call in {call.layer: call for call in listened.calls}.items():  # the last calls
            if call.begin > first.begin:
                memo[id(layer)] = layer
                self.layers.append(layer)
            elif call.end < first.begin and isinstance(call.output, Tensor):
                memo[id(layer)] = _Zeros(call.output)
        memo[id(first.layer)] = start = _Given(first.layer)
        self._starts = [start]  # a list, for the same reason
        self.network = copy.deepcopy(network, memo)

    def forward(self, maps: Tensor) -> Tensor:
        """Computes the outputs of the network of maps ``(N, ...)``."""
        (start,) = self._starts
        start.map = maps
        try:
            outputs: Tensor = self.network(maps.new_zeros(()).expand(len(maps), *self._image))
            return outputs
        finally:
            start.map = None


class _Zeros(nn.Module):
    """Stands for a layer that does not compute."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.shape = output.shape[1:]

    def forward(self, inputs: Tensor, *_: Any, **__: Any) -> Tensor:
        return inputs.new_zeros(()).expand(len(inputs), *self.shape)


class _Given(nn.Module):
    """Stands for the first layer of a tail: gives it the map, whatever comes."""

    map: Tensor | None

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.map = layer, None

    def forward(self, *_: Any, **__: Any) -> Any:
        assert self.map is not None
        return self.layer(self.map.clone())  # it may work in place, and maps are used again


class _Call(NamedTuple):
    """A call of a layer, while images go through the network."""

    name: str
    layer: nn.Module
    begin: int  # places in the order of all begins and ends
    end: int
    before: int  # the floating-point operations before it
    shape: tuple[int, ...] | None  # of the tensor that it takes, if it takes nothing else
    output: Any


class _Listened(NamedTuple):
    """What happened while images went through a network."""

    images: Tensor
    outputs: Tensor
    calls: list[_Call]  # in the order of their ends
    total: int  # floating-point operations


def find_tail(network: nn.Module, image_size: int, part: float = LARGEST_PART) -> Tail | None:
    """Finds the largest tail that has at most a part of a network's multiplications.

    It tries the layers that have weights, one after the other. The first tail is taken that
    computes what the network computes.

    Args:
        network: It takes images ``(N, 3, image_size, image_size)``.
        image_size: Their height and width in pixels.
        part: From 0 to 1.

    Returns:
        The tail. None: there is none.
    """
    device = next(network.parameters()).device
    images = torch.rand(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    with evaluating(network), torch.no_grad():
        try:
            listened = _listen(network, images.to(device))
        except AssertionError:  # torch's counter does not understand every network, such as cait
            return None
        for call in sorted(listened.calls, key=lambda call: call.begin):
            if call.shape is None or call.before < (1 - part) * listened.total:
                continue
            if not _learns(call.layer):
                continue
            tail = Tail(network, listened, call)
            if _agrees(tail, network, listened):
                return tail
    return None


def _listen(network: nn.Module, images: Tensor) -> _Listened:
    """Runs a network, and writes down the calls of all its layers."""
    calls: list[_Call] = []
    running: list[tuple[int, int]] = []
    handles, ticks = [], itertools.count()
    names = {layer: name for name, layer in network.named_modules()}
    counter = FlopCounterMode(display=False)

    def begin(_layer: nn.Module, _taken: Any) -> None:
        running.append((next(ticks), counter.get_total_flops()))

    def end(layer: nn.Module, taken: tuple[Any, ...], output: Any) -> None:
        (tick, before), shape = running.pop(), None
        if len(taken) == 1 and isinstance(taken[0], Tensor):
            shape = tuple(taken[0].shape[1:])
        calls.append(_Call(names[layer], layer, tick, next(ticks), before, shape, output))

    for layer in network.modules():
        handles += [layer.register_forward_pre_hook(begin), layer.register_forward_hook(end)]
    try:
        with counter:
            outputs: Tensor = network(images)
    finally:
        for handle in handles:
            handle.remove()
    return _Listened(images, outputs, calls, max(1, counter.get_total_flops()))


def _learns(layer: nn.Module) -> bool:
    """Returns whether a layer has weights, apart from those of batch norms."""
    return any(
        not isinstance(inside, _BatchNorm) and list(inside.parameters(recurse=False))
        for inside in layer.modules()
    )


def _agrees(tail: Tail, network: nn.Module, listened: _Listened) -> bool:
    """Returns whether a tail computes of maps what the network computes of the images."""
    try:
        found = tail(maps_of(network, tail, listened.images))
    except Exception:  # the code between the layers can raise anything about zeros
        return False
    return same_outputs(found, listened.outputs, rounding=EQUAL)


class _ReachedError(Exception):
    """The first layer of a tail was reached."""


def maps_of(network: nn.Module, tail: Tail, inputs: Tensor) -> Tensor:
    """Computes the maps ``(N, ...)`` of the inputs of a network, by its first layers alone."""
    maps: list[Tensor] = []

    def stop(_layer: nn.Module, taken: Any) -> None:
        maps.append(taken[0])
        raise _ReachedError

    handle = network.get_submodule(tail.first).register_forward_pre_hook(stop)
    try:
        network(inputs)
    except _ReachedError:
        pass
    finally:
        handle.remove()
    return maps[0]


def outputs_and_maps(network: nn.Module, tail: Tail, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Computes the outputs of a network, and on the way the maps ``(N, ...)`` of its tail."""
    maps: list[Tensor] = []

    def keep(_layer: nn.Module, taken: Any) -> None:
        maps.append(taken[0].clone())  # a later layer may work in place

    handle = network.get_submodule(tail.first).register_forward_pre_hook(keep)
    try:
        return network(inputs), maps[0]
    finally:
        handle.remove()


def unfreeze_tail(tail: Tail) -> None:
    """Lets a tail learn, but for its batch norms: few images would spoil their means."""
    for layer in tail.layers:
        unfreeze(layer)
    for layer in tail.modules():
        if isinstance(layer, _BatchNorm):
            freeze(layer)
