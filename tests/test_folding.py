"""Folded batch norms: the same outputs, fewer layers, and no change of the network."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import get_model

from cifar_tl.folding import folded


class Net(nn.Module):
    """Two convolutions with batch norms, and a batch norm of another sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.second, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.norm3 = nn.BatchNorm2d(8)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.norm1(self.first(images)).relu()
        outputs: Tensor = self.norm3(maps + self.norm2(self.second(maps)))
        return outputs.mean((2, 3))


class Twice(Net):
    """The output of a convolution is used twice: it must stay."""

    def forward(self, images: Tensor) -> Tensor:
        maps = self.first(images)
        outputs: Tensor = self.norm1(maps) + maps
        return outputs.mean((2, 3))


class Shared(Net):
    """A convolution that is called twice."""

    def forward(self, images: Tensor) -> Tensor:
        maps = self.norm1(self.first(images))
        outputs: Tensor = self.norm2(self.second(self.second(maps)))
        return outputs.mean((2, 3))


def with_statistics(network: nn.Module) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean = torch.randn(layer.num_features)
                layer.running_var = torch.rand(layer.num_features) + 0.5
    return network


def norms(network: nn.Module) -> int:
    return sum(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())


def mobilenet() -> nn.Module:
    network: Any = get_model("mobilenet_v3_small", weights=None)
    module: nn.Module = network
    return module


@pytest.mark.parametrize(
    ("make", "left"), [(Net, 1), (Twice, 3), (Shared, 2), (mobilenet, 0), (nn.Flatten, 0)]
)
def test_a_folded_network_computes_the_same(make: Any, left: int) -> None:
    network = with_statistics(make())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [layer.training for layer in network.modules()]
    result = folded(network, 40)
    assert norms(result) == left
    images = torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert [layer.training for layer in network.modules()] == modes
        expected = network.eval()(images)
        torch.testing.assert_close(result(images), expected, rtol=1e-3, atol=1e-4)
    after = network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
