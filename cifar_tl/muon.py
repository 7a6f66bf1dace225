"""Muon: an optimizer that moves the weights of a layer equally far in all directions."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

STEPS = 4  # of Newton and Schulz
LARGEST = 2048  # rows or columns: one step of AlexNet's 4096 x 9216 weights took a minute


def _unwrapped(method: Callable[..., Any]) -> Callable[..., Any]:
    found: Callable[..., Any] = getattr(method, "__wrapped__", method)
    return found


class Muon(torch.optim.Optimizer):
    """SGD with Nesterov momentum and orthogonalised updates.

    A few directions dominate the gradient of a layer. Muon sees the update of a layer as a matrix
    with a row for each output. It replaces this matrix by the nearest one whose singular values are
    all about 1. So rare directions count as much as common ones. Biases are not matrices: SGD with
    Nesterov momentum trains them, without weight decay. A matrix with more than 2,048 rows and
    columns keeps its directions, since the nearest one would take too long.

    After Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks". Here it
    trains the first and the last layer, too.

    Args:
        parameters: Parameters or groups of parameters, as for torch's optimizers.
        lr: The learning rate. It is about the spectral norm of the update of a weight matrix.
        momentum: The momentum of the gradients.
        weight_decay: A step multiplies weights by ``1 - lr * weight_decay``.

    Raises:
        ValueError: If a value is out of range.
    """

    def __init__(
        self, parameters: ParamsT, *, lr: float, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)
        for group in (defaults, *self.param_groups):
            lr, momentum, weight_decay = (group[name] for name in defaults)
            if not (lr >= 0 and 0 <= momentum < 1 and weight_decay >= 0):
                raise ValueError(
                    "lr and weight_decay must be at least 0 and momentum from 0 to below 1, not "
                    f"{lr}, {weight_decay} and {momentum}"
                )

    # torch wraps these so that the first call imports torch._dynamo, for seconds. This optimizer
    # calls them unwrapped. A torch that does not wrap them has no `__wrapped__`.
    if not TYPE_CHECKING:  # their types stay
        add_param_group = _unwrapped(torch.optim.Optimizer.add_param_group)
        zero_grad = _unwrapped(torch.optim.Optimizer.zero_grad)
        state_dict = _unwrapped(torch.optim.Optimizer.state_dict)
        load_state_dict = _unwrapped(torch.optim.Optimizer.load_state_dict)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Updates every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                momentum = state["momentum_buffer"].mul_(group["momentum"]).add_(parameter.grad)
                update = parameter.grad.add(momentum, alpha=group["momentum"])
                if parameter.ndim > 1:
                    update = _update(update.flatten(1)).view_as(parameter)
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(update, alpha=group["lr"])
        return loss


def _update(matrix: Tensor) -> Tensor:
    """Makes a matrix orthogonal. One that is too large only gets the norm that it would have."""
    if (smaller := min(matrix.shape)) <= LARGEST:
        return orthogonalize(matrix)
    scaled: Tensor = matrix / matrix.norm().clamp_min(1e-12) * math.sqrt(smaller)
    return scaled


def orthogonalize(matrix: Tensor) -> Tensor:
    """Computes approximately the nearest matrix ``(M, N)`` whose singular values are all 1.

    It is a Newton-Schulz iteration with the coefficients of Jordan et al. After `STEPS` every
    singular value is from 0.68 to 1.21, if it was above 0.006 of the norm. That is near enough.
    """
    if len(matrix) > matrix.shape[1]:
        return orthogonalize(matrix.t()).t()
    if matrix.dtype in (torch.float16, torch.bfloat16):  # too coarse for these powers
        return orthogonalize(matrix.float()).to(matrix.dtype)
    matrix = matrix / matrix.norm().clamp_min(1e-12)
    # A step is X <- p(X X^T) X, from the left. So the small matrix X X^T is enough to go on with.
    square = matrix @ matrix.t()
    product = polynomial = _polynomial(square)
    for _ in range(STEPS - 1):
        square = polynomial @ square @ polynomial
        polynomial = _polynomial(square)
        product = polynomial @ product
    orthogonal: Tensor = product @ matrix
    return orthogonal


def _polynomial(square: Tensor) -> Tensor:
    result = torch.addmm(square, square, square, beta=-4.7750, alpha=2.0315)
    result.diagonal().add_(3.4445)
    return result
