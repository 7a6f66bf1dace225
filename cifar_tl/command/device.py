"""The device on which ``train`` computes."""

from collections.abc import Callable

from cifar_tl.command.console import UsageError
from cifar_tl.errors import first_line
from cifar_tl.processes import launch

CPU, AUTO = "cpu", "auto"


def choose_device(
    name: str | None, precision: str | None, log: Callable[[str], object], *, separate: bool = False
) -> str:
    """Finds the device of this process. Several processes have an accelerator each.

    Args:
        name: As torch names it, or ``"auto"``. None: the CPU, as documented.
        precision: The precision that was asked for. None: any.
        log: Called if an accelerator lies idle.
        separate: Each process works by itself. Then several may use one accelerator.

    Raises:
        UsageError: If the device does not exist, lacks the precision, or is one for several
            processes that work together.
    """
    import torch

    here = torch.accelerator.is_available()
    accelerator = torch.accelerator.current_accelerator() if here else None
    if name is None and accelerator is not None:
        log(f"{accelerator.type} is here and lies idle: --device {AUTO} would use it")
    chosen = CPU if name is None else name
    if name == AUTO:
        chosen = CPU if accelerator is None else accelerator.type
    processes = launch.launch().local_size
    if processes > 1 and chosen.partition(":")[0] != CPU and not separate:
        devices = 1 if ":" in chosen else torch.accelerator.device_count()
        if processes > devices > 0:
            raise UsageError(
                f"--device {chosen}: {processes} processes need as many devices, not {devices}: "
                f"--nproc-per-node {devices}, or --seeds, which they divide"
            )
    if accelerator is not None and chosen == accelerator.type and launch.launch().size > 1:
        number = launch.launch().local_rank % torch.accelerator.device_count()
        chosen = f"{chosen}:{number}"
        if accelerator.type == "cuda":
            torch.cuda.set_device(number)  # for nccl's own messages
    check_device(chosen, precision)
    return chosen


def check_device(name: str, precision: str | None) -> None:
    """Raises `UsageError` if the device does not exist or lacks the precision."""
    import torch

    try:
        number = torch.zeros(1, device=name)
        number.item()  # a device without data, such as meta, has none
        if precision == "bf16":
            with torch.autocast(number.device.type, torch.bfloat16):
                (number @ number).item()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError, ValueError) as error:
        reason = first_line(error).partition(". ")[0]
        raise UsageError(f"--device {name}: cannot be used here ({reason})") from error
