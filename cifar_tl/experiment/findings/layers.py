"""The layer table of a model."""

from typing import NamedTuple

import torch
from torch import nn

from cifar_tl.backbone import Network
from cifar_tl.freezing import count_parameters


class Layer(NamedTuple):
    """One row of the layer table."""

    number: int
    name: str
    shape: tuple[int, ...]  # of the output for one image
    parameters: int
    trainable: int  # of these
    dropout: float = 0.0  # of layer 6: its rate in training


def layers(model: Network, dropout: float | None = None) -> list[Layer]:
    """Lists the eight documented layers, with the real shapes of their outputs.

    The features of another network are one row, unless they are a ``Sequential``.

    Args:
        model: Any network.
        dropout: The rate of layer 6 in training. None: the model's own.
    """
    rows: list[Layer] = []
    size, features = model.image_size, model.features
    output = model.preprocess(torch.zeros(1, 3, size, size, device=model.mean.device))
    parts = features if isinstance(features, nn.Sequential) else (features,)
    with torch.no_grad():
        for module in (*parts, *model.classifier):
            output = module(output)
            if isinstance(module, nn.ReLU) and any(row.parameters for row in rows):
                weighted = max(i for i, row in enumerate(rows) if row.parameters)
                rows[weighted] = rows[weighted]._replace(name=rows[weighted].name + " + ReLU")
                continue
            parameters = count_parameters(module)
            trainable = count_parameters(module, trainable_only=True)
            shape = tuple(output.shape[1:])
            rows.append(Layer(len(rows) + 1, _describe(module), shape, parameters, trainable))
            if module is model.classifier.get_submodule("dropout"):
                rate = dropout_rate(model, dropout)
                rows[-1] = rows[-1]._replace(name=f"Dropout {rate}", dropout=rate)
    return rows


def dropout_rate(model: Network, dropout: float | None) -> float:
    """Returns the rate of layer 6 in training, see `layers`."""
    layer = model.classifier.get_submodule("dropout")
    assert isinstance(layer, nn.Dropout)
    return layer.p if dropout is None else dropout


def _describe(module: nn.Module) -> str:
    if isinstance(module, nn.Conv2d):
        height, width = module.kernel_size
        return f"Conv {height}x{width}"
    if isinstance(module, nn.MaxPool2d):
        return f"MaxPool {module.kernel_size}x{module.kernel_size}"
    if isinstance(module, nn.Dropout):
        return f"Dropout {module.p}"
    return type(module).__name__
