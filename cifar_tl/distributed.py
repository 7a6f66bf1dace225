"""One computation in several processes. Its result is that of one process.

Every process has all of the data and takes its share of each batch. `torch.distributed` does the
rest. A ``group`` of None means this process alone. This module neither opens nor closes groups.
"""

import hashlib
from collections.abc import Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, distributed, nn

if TYPE_CHECKING:  # some builds of torch have no groups
    from torch.distributed import ProcessGroup

Value = TypeVar("Value")


def share(number: int, group: "ProcessGroup | None", rank: int | None = None) -> slice:
    """Computes which of ``number`` examples belong to a process, by default to this one.

    The shares follow each other in the order of the ranks. Their sizes differ by at most one, and
    no share is larger than the first.
    """
    if group is None:
        return slice(0, number)
    rank, size = group.rank() if rank is None else rank, group.size()
    return slice(-(-number * rank // size), -(-number * (rank + 1) // size))


def gather_objects(value: Value, group: "ProcessGroup | None") -> list[Value]:
    """Collects one value from each process, in the order of the ranks."""
    if group is None:
        return [value]
    values: list[Any] = [None] * group.size()
    distributed.all_gather_object(values, value, group=group)
    return values


def check_same(group: "ProcessGroup", **values: object) -> None:
    """Raises a ValueError in every process if one of them has other values than the first.

    Tensors are compared by shape and digest.
    """
    own = {name: _described(value) for name, value in values.items()}
    of_all = gather_objects(own, group)
    for name in dict.fromkeys(name for found in of_all for name in found):
        expected = of_all[0].get(name)
        for rank, found in enumerate(of_all):
            if found.get(name) != expected:
                raise ValueError(
                    f"the processes must have the same {name}: process 0 has {expected!r}, "
                    f"process {rank} {found.get(name)!r}"
                )


def _described(value: object) -> object:
    if not isinstance(value, Tensor):
        return value
    digest = hashlib.sha256(value.detach().cpu().numpy().tobytes()).hexdigest()[:16]
    return f"{tuple(value.shape)} {digest}"


def total(values: Tensor, group: "ProcessGroup | None") -> Tensor:
    """Sums a tensor over the processes, in place."""
    if group is not None:
        distributed.all_reduce(values, group=group)
    return values


def largest(number: int, device: torch.device | None, group: "ProcessGroup | None") -> int:
    """Computes the largest of the numbers that the processes have."""
    if group is None:
        return number
    value = torch.tensor(number, device=device)
    distributed.all_reduce(value, distributed.ReduceOp.MAX, group=group)
    return int(value)


def average_gradients(parameters: Sequence[Tensor], count: int, group: "ProcessGroup") -> None:
    """Turns the gradients of each share's mean loss into those of the whole batch's mean loss.

    The formula is ``sum(count * gradient) / sum(count)``, so shares may have any size, also 0. A
    parameter without a gradient in all processes stays without one.

    ``count`` is the number of examples in this process's share.
    """
    dtype = reduce(torch.promote_types, (p.dtype for p in parameters), torch.float32)
    sums = [
        (torch.zeros_like(p) if p.grad is None else p.grad * count).flatten().to(dtype)
        for p in parameters
    ]
    missing = [p.grad is None for p in parameters]
    # For each parameter, the examples that gave it a gradient; then the examples of the batch.
    counts = [*(0 if none else count for none in missing), count]
    sums.append(torch.tensor(counts, dtype=dtype, device=parameters[0].device))
    reduced = total(torch.cat(sums), group)
    *gradients, counted = reduced.split([len(part) for part in sums])
    used = (counted > 0).tolist() if any(missing) else []  # else no need to wait for a device
    for index, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
        if missing[index] and not used[index]:
            continue
        parameter.grad = (gradient / counted[-1]).view_as(parameter).to(parameter.dtype)


@torch.no_grad()
def copy_from_first(module: nn.Module, group: "ProcessGroup") -> None:
    """Copies the parameters and buffers of a module from the first process to all others."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.copy_(broadcast(tensor.contiguous(), 0, group))


def broadcast(tensor: Tensor, rank: int, group: "ProcessGroup") -> Tensor:
    """Copies a contiguous tensor from one process to all others, in place; returns it."""
    if tensor.numel():
        content = tensor.flatten().view(torch.uint8)  # not every backend knows every type
        distributed.broadcast(content, distributed.get_global_rank(group, rank), group=group)
    return tensor


def gather_rows(rows: Tensor | None, number: int, group: "ProcessGroup") -> Tensor | None:
    """Completes a tensor of rows: each process has filled its `share` of them.

    Args:
        rows: ``(number, ...)``. None: the share of this process is empty.
        number: The number of rows, of all processes together.
        group: The processes.
    """
    own = None if rows is None else (rows.shape, rows.dtype, rows.device.type)
    filled = [found for found in gather_objects(own, group) if found is not None]
    if not filled:
        return None
    shape, dtype, device = filled[0]
    if any(other == "cpu" for _, _, other in filled):  # not every process had room on its device
        device = "cpu"
    rows = torch.empty(shape, dtype=dtype, device=device) if rows is None else rows.to(device)
    for rank in range(group.size()):
        broadcast(rows[share(number, group, rank)], rank, group)
    return rows
