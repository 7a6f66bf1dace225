"""The machine: in which precision it computes, what fits into its memory, which versions it has."""

import contextlib
import ctypes
import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cifar_tl.recipe import Precision
from cifar_tl.version import __version__

# Intel since 2020 (servers), AMD since Zen 4. Without them bfloat16 is slower than float32.
CPU_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h


def choose_precision(precision: Precision, device: torch.device) -> Precision:
    """Turns ``"auto"`` into what is faster on a device; what else is asked for stays."""
    if precision != "auto":
        return precision
    return "bf16" if _has_bfloat16(device) else "float32"


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # torch 2.6 has none
        return False
    # What torch may use: ATEN_CPU_CAPABILITY can ask for less than the processor has.
    # It is "AVX2" or "DEFAULT" on older processors, "DEFAULT" or "SVE..." on aarch64.
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in CPU_INSTRUCTIONS)


def autocast(
    precision: Precision, device: torch.device
) -> contextlib.AbstractContextManager[object]:
    """Makes the context in which modules on a device compute in a precision."""
    if choose_precision(precision, device) == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def fits(num_bytes: int, device: torch.device) -> bool:
    """Tells whether a device has room for data, and for as much again to compute with it.

    Only CUDA says how much is free; elsewhere everything is said to fit.
    """
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return 2 * num_bytes <= free


def to_device_if_it_fits(tensor: Tensor, device: torch.device) -> Tensor:
    """Moves data to a device for good, or leaves it where it is."""
    if tensor.device == device or not fits(tensor.nbytes, device):
        return tensor
    return tensor.to(device)


def keep_freed_memory() -> bool:
    """Makes this process keep blocks of up to 32 MiB for reuse when they are freed.

    By default glibc returns the large tensors of a training step to the operating system, which
    has to clear and map every page of them again at the next step: a third of a step's time. This
    is for the whole process and for its lifetime, so it is the program's choice: ``cifar-tl train``
    calls it, and importing the package does not. See mallopt(3).

    Returns:
        Whether glibc took it: False on systems without glibc, where it does nothing.
    """
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # 32 MiB is the most that glibc takes on 64-bit systems; an untouched heap top costs nothing.
    return bool(mallopt(_M_MMAP_THRESHOLD, 32 << 20) and mallopt(_M_TRIM_THRESHOLD, 1 << 30))


def surroundings(device: str, processes: int) -> dict[str, Any]:
    """Tells what the bytes of a result depend on."""
    return {
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "device": torch.device(device).type,  # of several equal ones, any
        **_several(processes),
    }


def environment(device: str, processes: int) -> dict[str, Any]:
    """Tells what the figures depend on, times among them."""
    packages = ("torch", "torchvision", "numpy")
    return {
        "cifar_tl": __version__,
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in packages},
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
        **_several(processes),
    }


def _several(processes: int) -> dict[str, int]:
    return {"processes": processes} if processes > 1 else {}


def _processor() -> str:
    with contextlib.suppress(OSError):  # Linux; elsewhere platform knows
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
