"""Tails: they compute what the network computes, share its weights, and alone learn."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import get_model

from cifar_tl.freezing import freeze
from cifar_tl.tail import LARGEST_PART, Tail, find_tail, maps_of, unfreeze_tail


class Chain(nn.Module):
    """Layers one after the other, with code between them, batch norms, and work in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.middle = nn.Conv2d(16, 16, 3, padding=1)
        self.last = nn.Sequential(
            nn.Hardswish(inplace=True), nn.Conv2d(16, 8, 3), nn.BatchNorm2d(8)
        )

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stem(images) * 2
        maps = nn.functional.max_pool2d(maps + self.middle(maps), 2)
        outputs: Tensor = self.last(maps).mean((2, 3))
        return outputs


class Block(nn.Module):
    """A part of a transformer, with its shortcut inside."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(16), nn.Linear(16, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        mixed = self.norm(tokens) + tokens.mean(1, keepdim=True)
        outputs: Tensor = tokens + self.linear(mixed).tanh()
        return outputs


class Tokens(nn.Module):
    """A small vision transformer: code joins a token and adds positions."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 8, stride=8)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.position = nn.Parameter(torch.randn(1, 17, 16))
        self.blocks = nn.ModuleList(Block() for _ in range(6))

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.patch(images).flatten(2).transpose(1, 2)
        maps = torch.cat([self.token.expand(len(maps), -1, -1), maps], 1) + self.position
        for block in self.blocks:
            maps = block(maps)
        return maps[:, 0]


class Shortcut(nn.Module):
    """The images reach the last code, past all layers: no layer cuts this network in two."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.second(self.first(images)).mean((2, 3))
        return outputs + images.mean((1, 2, 3))[:, None]


def squeezenet() -> nn.Module:
    network: Any = get_model("squeezenet1_1", weights=None)
    network.classifier[1] = nn.Identity()
    module: nn.Module = network
    return module


NETWORKS: list[Callable[[], nn.Module]] = [Chain, Tokens, squeezenet]


def made(make: Callable[[], nn.Module]) -> tuple[nn.Module, Tail]:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        network = make().eval()
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean = torch.rand(layer.num_features)
    tail = find_tail(network, 32)
    assert tail is not None
    return network, tail


def images(number: int = 5) -> Tensor:
    return torch.randn(number, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("make", NETWORKS)
def test_a_tail_computes_what_its_network_computes(make: Callable[[], nn.Module]) -> None:
    network, tail = made(make)
    with torch.no_grad():
        maps = maps_of(network, tail, images())
        expected = network(images())
        torch.testing.assert_close(tail(maps), expected)
        torch.testing.assert_close(tail(maps), expected)  # the maps are as they were
        torch.testing.assert_close(tail(maps[:2]), expected[:2])
    assert maps.shape == (5, *tail.shape)
    assert 0 < tail.part <= LARGEST_PART
    assert len(set(expected.std(0).tolist())) > 1  # the images are not all the same to it


@pytest.mark.parametrize("make", NETWORKS)
def test_a_tail_alone_learns_and_its_network_with_it(make: Callable[[], nn.Module]) -> None:
    network, tail = made(make)
    freeze(network)
    unfreeze_tail(tail)
    tail.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    maps = maps_of(network, tail, images())
    learning = [parameter for parameter in tail.parameters() if parameter.requires_grad]
    assert learning
    tail(maps).square().sum().backward()
    with torch.no_grad():
        for parameter in learning:
            assert parameter.grad is not None
            parameter.add_(0.1)
    changed = {
        name for name, value in network.state_dict().items() if (value != before[name]).any()
    }
    assert changed
    norms = {
        f"{name}.{part}"
        for name, layer in network.named_modules()
        if isinstance(layer, nn.BatchNorm2d)
        for part in layer.state_dict()
    }
    assert not changed & norms
    torch.testing.assert_close(maps_of(network, tail, images()), maps)  # the rest did not change
    network.eval()
    with torch.no_grad():
        torch.testing.assert_close(tail.eval()(maps), network(images()))


def test_batch_norms_count_nothing_while_a_tail_learns() -> None:
    network, tail = made(Chain)
    freeze(network)
    unfreeze_tail(tail)
    mean = network.get_buffer("last.2.running_mean").clone()
    tail.train()(maps_of(network, tail, images()))
    assert torch.equal(network.get_buffer("last.2.running_mean"), mean)


@pytest.mark.parametrize("make", [Shortcut, lambda: nn.Sequential(nn.Conv2d(3, 4, 8, stride=8))])
def test_a_network_that_cannot_be_cut_has_no_tail(make: Callable[[], nn.Module]) -> None:
    network = make()
    assert find_tail(network, 32) is None
    assert network.training  # as before


def test_a_larger_part_begins_earlier() -> None:
    network, tail = made(Tokens)
    larger = find_tail(network, 32, part=0.6)
    assert larger is not None
    assert (tail.first, larger.first) == ("blocks.2", "blocks.0")
    assert tail.part < larger.part <= 0.6


class Loud(nn.Module):
    """One large constant output would hide that the others are wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 8, stride=8), nn.Conv2d(8, 4, 1)
        nn.init.constant_(self.last.bias, 3000.0)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        maps = self.first(images)
        return torch.cat([self.last(maps), maps], 1).mean((2, 3))


def test_a_large_output_hides_no_wrong_one() -> None:
    """`last` alone cannot give the outputs that `first` gives past it."""
    torch.manual_seed(0)
    assert find_tail(Loud().eval(), 32, part=0.5) is None
