"""What a result depends on apart from its settings: versions and the machine."""

import contextlib
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

from cifar_tl.version import __version__


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
