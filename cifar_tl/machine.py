"""The machine: which precision it computes in, what fits into its memory, what it consists of."""

import ctypes
import importlib.metadata
import platform
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cifar_tl.cores import cores
from cifar_tl.recipe import Precision
from cifar_tl.version import __version__, commit

# Processors with these compute bfloat16 fast: Intel's for servers since 2020, AMD's since Zen 4.
# On others it is slower than float32.
CPU_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h


def choose_precision(precision: Precision, device: torch.device) -> Precision:
    """Replaces ``"auto"`` by the faster precision on a device. Other values stay."""
    if precision != "auto":
        return precision
    return "bf16" if _has_bfloat16(device) else "float32"


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # torch 2.6 has none
        return False
    # torch uses less than the processor has if ATEN_CPU_CAPABILITY says so. It is "AVX2" or
    # "DEFAULT" on older processors, "DEFAULT" or "SVE..." on aarch64.
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in CPU_INSTRUCTIONS)


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Makes a context in which modules on a device compute in a precision."""
    if choose_precision(precision, device) == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


@contextmanager
def compute_with(threads: int | None) -> Iterator[None]:
    """Sets the number of threads of torch, and sets it back at the end. None: it stays."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if threads is not None:
            torch.set_num_threads(before)


def fits(num_bytes: int, device: torch.device) -> bool:
    """Returns whether a device has room for data twice: to keep it, and to compute with it.

    Only CUDA says how much is free. On other devices the answer is always yes.
    """
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return 2 * num_bytes <= free


def to_device_if_it_fits(tensor: Tensor, device: torch.device) -> Tensor:
    """Moves a tensor to a device. If it does not fit, it stays where it is."""
    if tensor.device == device or not fits(tensor.nbytes, device):
        return tensor
    return tensor.to(device)


def keep_freed_memory() -> bool:
    """Makes this process keep freed blocks of up to 32 MiB, to use them again.

    By default glibc gives the large tensors of a training step back to the system. At the next step
    the system clears and maps every page again. That takes a third of a step's time. The setting is
    for the whole process, and nothing can undo it. So the program decides: ``cifar-tl train`` calls
    this function in a process of its own, and importing the package does not. See mallopt(3).

    Returns:
        Whether it worked. Without glibc it does nothing and returns False.
    """
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # glibc takes at most 32 MiB on 64-bit systems. The 1 GiB costs nothing until it is used.
    return bool(mallopt(_M_MMAP_THRESHOLD, 32 << 20) and mallopt(_M_TRIM_THRESHOLD, 1 << 30))


def surroundings(device: str, processes: int) -> dict[str, Any]:
    """Lists what the bytes of a result depend on, beside its settings."""
    return {
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "device": torch.device(device).type,  # not its number: "cuda:0" and "cuda:1" are equal
        **_several(processes),
    }


def environment(device: str, processes: int) -> dict[str, Any]:
    """Lists what the figures of a result depend on, also its times."""
    packages = ("torch", "torchvision", "numpy")
    return {
        "cifar_tl": __version__,
        **({"commit": made_by} if (made_by := commit()) else {}),
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in packages},
        "system": platform.platform(),
        "processor": _processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "device": device,
        **_several(processes),
    }


def _several(processes: int) -> dict[str, int]:
    return {"processes": processes} if processes > 1 else {}


def _processor() -> str:
    with suppress(OSError):  # only Linux has this file
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
