"""Precision, memory of a device, memory of the process."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from cifar_tl.machine import autocast, choose_precision, fits, to_device_if_it_fits
from tests.forked import run_forked

CPU = torch.device("cpu")

# glibc unmaps a block when it is freed if it mapped it for this block alone: bit 1 of the size that
# it keeps before the block.
PROGRAM = """
import ctypes
{prepare}
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
block = libc.malloc(ctypes.c_size_t(31 << 20))
size = ctypes.c_size_t.from_address(block - ctypes.sizeof(ctypes.c_size_t)).value
print(bool(size & 2))
"""


@pytest.mark.parametrize(
    ("may_use", "capabilities", "chosen"),
    [
        ("AVX512", {"avx512_bf16": True, "amx_bf16": False}, "bf16"),
        ("AVX512", {"avx512_bf16": False, "amx_bf16": True}, "bf16"),
        ("AVX512", {"avx512_bf16": False, "avx512_f": True}, "float32"),
        ("AVX2", {"avx512_bf16": True, "amx_bf16": True}, "float32"),  # ATEN_CPU_CAPABILITY=avx2
        ("DEFAULT", {"avx512_bf16": True}, "float32"),  # ATEN_CPU_CAPABILITY=default
        ("SVE256", {"architecture": "aarch64", "bf16": True}, "float32"),  # not tried
        ("AVX512", None, "float32"),  # torch 2.6
    ],
)
def test_auto_is_what_the_processor_has_instructions_for(
    monkeypatch: pytest.MonkeyPatch, may_use: str, capabilities: Any, chosen: str
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: may_use)
    if capabilities is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert choose_precision("auto", CPU) == chosen
    assert choose_precision("float32", CPU) == "float32"
    assert choose_precision("bf16", CPU) == "bf16"
    expected = {"bf16": torch.bfloat16, "float32": torch.float32}[chosen]
    with autocast("auto", CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == expected


def test_what_is_not_known_computes_in_float32() -> None:
    assert choose_precision("auto", torch.device("meta")) == "float32"


def test_data_may_take_half_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 10_000))  # free, and in all
    assert fits(500, torch.device("cuda"))
    assert not fits(501, torch.device("cuda"))
    assert fits(10**15, torch.device("cpu"))
    images = torch.zeros(501, dtype=torch.uint8)
    assert to_device_if_it_fits(images, torch.device("cuda")) is images


def test_data_goes_to_a_device_where_it_fits() -> None:
    moved = to_device_if_it_fits(torch.zeros(3), torch.device("meta"))
    assert moved.device.type == "meta"


def returns_memory(zygote: subprocess.Popen[str], prepare: str = "") -> bool:
    """Looks in a process of its own, which has imported the package."""
    run_forked(zygote, PROGRAM.format(prepare=prepare))
    return {"True": True, "False": False}[Path("out.txt").read_text().splitlines()[-1]]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is no glibc")
def test_freed_memory_is_kept_by_the_command_and_on_request_only(
    zygote: subprocess.Popen[str], tiny_npz: Path
) -> None:
    assert returns_memory(zygote)  # importing the package changes nothing
    assert not returns_memory(zygote, "from cifar_tl import *; assert keep_freed_memory()")
    options = ["--data", str(tiny_npz), "--stage", "base", "--epochs", "1"]
    program = f"from cifar_tl.command import signals, train; assert train.main({options}) == 0"
    assert returns_memory(zygote, program)  # it may be somebody else's process
    program = program.replace("; ", "; signals.handle_signals(); ")
    assert not returns_memory(zygote, program)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity")
def test_cores_are_those_that_the_process_may_use(zygote: subprocess.Popen[str]) -> None:
    """Looks from a process that may use one core, as in a container or under a batch system."""
    run_forked(
        zygote,
        "import os\n"
        "from importlib import reload\n"
        "from cifar_tl.data.pictures import read\n"
        "from cifar_tl.machine import environment\n"
        "from cifar_tl.processes.launch import divided_threads\n"
        "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
        "os.environ |= dict(TORCHELASTIC_RUN_ID='0', OMP_NUM_THREADS='1', RANK='0',\n"
        "    LOCAL_RANK='0', WORLD_SIZE='2', LOCAL_WORLD_SIZE='2', GROUP_WORLD_SIZE='1')\n"
        "print(environment('cpu', 1)['cores'], divided_threads(), reload(read).THREADS)\n",
    )
    assert Path("out.txt").read_text() == "1 1 5\n"
