"""Muon: an optimizer that moves a layer's weights equally far in all directions."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Muon(torch.optim.SGD):
    """SGD with Nesterov momentum whose updates of weights are orthogonalised.

    A layer's gradient is dominated by few directions. Taken as a matrix with a row for each output,
    its momentum is replaced by the nearest matrix whose singular values are all about 1, so that
    rare directions count as much as common ones. After Jordan et al. 2024, "Muon: An optimizer for
    hidden layers in neural networks"; here it trains the first and the last layer, too. Biases,
    which are no matrices, are trained by plain SGD, without weight decay.

    Args:
        parameters: What to train.
        lr: The learning rate: the spectral norm of a weight's update.
        momentum: Of the gradients.
        weight_decay: The part of a weight that a step takes away, in learning rates.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
    ) -> None:
        parameters = list(parameters)
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1]},
        ]
        super().__init__(groups, lr=lr, momentum=momentum, nesterov=True, fused=True)

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Updates what has a gradient; the gradients of weights are used up."""
        weights, _ = self.param_groups
        for weight in weights["params"]:
            if weight.grad is not None:
                self._update(weight, weights)
                weight.grad = None  # so that SGD passes over it
        return super().step(closure)

    @torch.no_grad()
    def _update(self, weight: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        assert weight.grad is not None
        momentum = state["momentum_buffer"].mul_(group["momentum"]).add_(weight.grad)
        direction = weight.grad.add(momentum, alpha=group["momentum"])
        update = orthogonalize(direction.flatten(1)).view_as(weight)
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.sub_(update, alpha=group["lr"])


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """Computes approximately the nearest matrix whose singular values are all 1.

    By a Newton-Schulz iteration, with the coefficients of Jordan et al.: five steps bring every
    singular value above 0.002 of the norm to between 0.68 and 1.21, which is near enough.

    Args:
        matrix: ``(M, N)``.
        steps: Number of iterations.

    Returns:
        ``(M, N)``.
    """
    if len(matrix) > matrix.shape[1]:
        return orthogonalize(matrix.t(), steps).t()
    x: Tensor = matrix / matrix.norm().clamp_min(1e-12)
    for _ in range(steps):
        square = x @ x.t()
        polynomial = torch.addmm(square, square, square, beta=-4.7750, alpha=2.0315)
        x = torch.addmm(x, polynomial, x, beta=3.4445)
    return x
