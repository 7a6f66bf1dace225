"""In which precision a device computes: in bfloat16 where it has instructions for it."""

import contextlib

import torch

from cifar_tl.recipe import Precision

# Intel since 2020 (servers), AMD since Zen 4. Without them bfloat16 is slower than float32.
CPU_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")


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
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in CPU_INSTRUCTIONS)


def autocast(
    precision: Precision, device: torch.device
) -> contextlib.AbstractContextManager[object]:
    """Makes the context in which modules on a device compute in a precision."""
    if choose_precision(precision, device) == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)
