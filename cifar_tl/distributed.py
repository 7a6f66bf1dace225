"""One computation in the processes of a group, with the result that one process would have.

Each process has all of the data and takes its share of every batch: `torch.distributed` does the
rest. Nothing here makes a process group or ends one; `None` for a group is one process alone.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, distributed, nn

if TYPE_CHECKING:  # some builds of torch have no groups
    from torch.distributed import ProcessGroup

Value = TypeVar("Value")


def share(number: int, group: "ProcessGroup | None", rank: int | None = None) -> slice:
    """Tells which of so many examples in a row are for this process, or for the one of a rank.

    The shares follow each other in the order of the ranks and differ by one at most; the first
    process's is as large as any.
    """
    if group is None:
        return slice(0, number)
    rank, size = group.rank() if rank is None else rank, group.size()
    return slice(-(-number * rank // size), -(-number * (rank + 1) // size))


def gather_objects(value: Value, group: "ProcessGroup | None") -> list[Value]:
    """Collects what all processes have, in the order of their ranks."""
    if group is None:
        return [value]
    values: list[Any] = [None] * group.size()
    distributed.all_gather_object(values, value, group=group)
    return values


def check_same(group: "ProcessGroup", **values: object) -> None:
    """Raises a ValueError in every process if one has other values than the first, or more."""
    of_all = gather_objects(values, group)
    for name in dict.fromkeys(name for found in of_all for name in found):
        expected = of_all[0].get(name)
        for rank, found in enumerate(of_all):
            if found.get(name) != expected:
                raise ValueError(
                    f"the processes must have the same {name}: process 0 has {expected!r}, "
                    f"process {rank} {found.get(name)!r}"
                )


def total(values: Tensor, group: "ProcessGroup | None") -> Tensor:
    """Sums values of any shape over the processes, in place."""
    if group is not None:
        distributed.all_reduce(values, group=group)
    return values


def largest(number: int, device: torch.device | None, group: "ProcessGroup | None") -> int:
    """Finds the largest number that a process has."""
    if group is None:
        return number
    value = torch.tensor(number, device=device)
    distributed.all_reduce(value, distributed.ReduceOp.MAX, group=group)
    return int(value)


def average_gradients(parameters: Iterable[Tensor], count: int, group: "ProcessGroup") -> None:
    """Makes gradients of the mean loss over a share into those over the whole batch.

    What is summed are gradients of sums of losses, and the examples, so the shares may have any
    size, and none at all. A parameter that no process has a gradient of gets none.

    Args:
        parameters: Those that are trained.
        count: How many examples the share of this process has.
        group: The processes.
    """
    parameters = list(parameters)
    dtype = torch.float32
    for parameter in parameters:
        dtype = torch.promote_types(dtype, parameter.dtype)
    sums = [
        (torch.zeros_like(p) if p.grad is None else p.grad * count).flatten().to(dtype)
        for p in parameters
    ]
    missing = [p.grad is None for p in parameters]
    # How many examples a parameter has a gradient of, and then how many there are.
    counts = [*(0 if none else count for none in missing), count]
    sums.append(torch.tensor(counts, dtype=dtype, device=parameters[0].device))
    reduced = total(torch.cat(sums), group)
    *gradients, counted = reduced.split([len(part) for part in sums])
    used = (counted > 0).tolist() if any(missing) else []  # asked only then: a device would wait
    for index, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
        if missing[index] and not used[index]:
            continue
        parameter.grad = (gradient / counted[-1]).view_as(parameter).to(parameter.dtype)


@torch.no_grad()
def copy_from_first(module: nn.Module, group: "ProcessGroup") -> None:
    """Gives a module in all processes the parameters and buffers that it has in the first."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.copy_(broadcast(tensor.contiguous(), 0, group))


def broadcast(tensor: Tensor, rank: int, group: "ProcessGroup") -> Tensor:
    """Fills a contiguous tensor, in place, with what it is in one process; returns it."""
    if tensor.numel():
        content = tensor.flatten().view(torch.uint8)  # not every backend knows every type
        distributed.broadcast(content, distributed.get_global_rank(group, rank), group=group)
    return tensor


def gather_rows(rows: Tensor | None, number: int, group: "ProcessGroup") -> Tensor | None:
    """Completes a tensor of ``number`` rows, of which each process has filled its `share`.

    Args:
        rows: ``(number, ...)``; None where the share is empty, and in all if there are no rows.
        number: How many rows all processes have.
        group: The processes.
    """
    like: list[tuple[torch.Size, torch.dtype, str] | None]
    like = [None if rows is None else (rows.shape, rows.dtype, rows.device.type)]
    distributed.broadcast_object_list(like, distributed.get_global_rank(group, 0), group=group)
    if like[0] is None:
        return None
    shape, dtype, device = like[0]
    # Where there is room may be another place in each process.
    devices = gather_objects(device if rows is None else rows.device.type, group)
    if "cpu" in devices:
        device = "cpu"
    rows = torch.empty(shape, dtype=dtype, device=device) if rows is None else rows.to(device)
    for rank in range(group.size()):
        broadcast(rows[share(number, group, rank)], rank, group)
    return rows
