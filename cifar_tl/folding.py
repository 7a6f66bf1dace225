"""A network with its batch norms folded into its convolutions: the same outputs, in less time."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cifar_tl.checks import same_outputs
from cifar_tl.evaluation import evaluating


def folded(network: nn.Module, image_size: int) -> nn.Module:
    """Makes a copy of a network for inference, in which convolutions do what batch norms did.

    In evaluation mode a batch norm multiplies and adds fixed numbers. The convolution before it can
    do this as well. One image goes through the network and shows which convolution that is.

    Args:
        network: It takes images ``(N, 3, image_size, image_size)``. It does not change.
        image_size: Their height and width in pixels.

    Returns:
        The copy, in evaluation mode. Or the network itself, if there is nothing to fold, or if the
        copy computes something else.
    """
    device = next((parameter.device for parameter in network.parameters()), None)
    images = torch.rand(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    with evaluating(network), torch.no_grad():
        pairs, expected = _pairs(network, images.to(device))
        if not pairs:
            return network
        # deepcopy takes what is in the memo instead of a copy.
        memo: dict[int, Any] = {}
        for convolution, norm in pairs:
            memo[id(convolution)] = fuse_conv_bn_eval(convolution, norm)
            memo[id(norm)] = _after(norm)
        result = copy.deepcopy(network, memo)
        return result if same_outputs(result(images.to(device)), expected) else network


def _pairs(network: nn.Module, images: Tensor) -> tuple[list[tuple[nn.Conv2d, Any]], Tensor]:
    """Finds each convolution whose output goes into a batch norm; returns the outputs, too."""
    outputs: dict[int, nn.Conv2d] = {}  # by the identity of a tensor: who made it
    pairs: list[tuple[nn.Conv2d, Any]] = []
    kept: list[Tensor] = []  # a tensor that is gone would lend its identity to another one
    calls: dict[nn.Module, int] = {}

    def made(layer: nn.Module, _taken: Any, output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        calls[layer] = calls.get(layer, 0) + 1
        outputs[id(output)] = layer
        kept.append(output)

    def taken(layer: nn.Module, taken: tuple[Any, ...]) -> None:
        calls[layer] = calls.get(layer, 0) + 1
        if id(taken[0]) in outputs:
            pairs.append((outputs[id(taken[0])], layer))

    handles = []
    for layer in network.modules():
        if type(layer) is nn.Conv2d:  # a subclass may compute in its own way
            handles.append(layer.register_forward_hook(made))
        elif isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None:
            handles.append(layer.register_forward_pre_hook(taken))
    try:
        result: Tensor = network(images)
    finally:
        for handle in handles:
            handle.remove()
    return [pair for pair in pairs if all(calls[layer] == 1 for layer in pair)], result


def _after(norm: _BatchNorm) -> nn.Module:
    """Returns what is left of a batch norm. Those of timm also have an activation."""
    left = [norm.get_submodule(name) for name, _ in norm.named_children()]
    return nn.Sequential(*left) if left else nn.Identity()
