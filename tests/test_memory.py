import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT

# glibc unmaps a block when it is freed if it mapped it for this block alone: bit 1 of the size that
# it keeps before the block.
PROGRAM = """
import ctypes, sys
sys.path.insert(0, {root!r})
import cifar_tl
{prepare}
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
block = libc.malloc(ctypes.c_size_t(31 << 20))
size = ctypes.c_size_t.from_address(block - ctypes.sizeof(ctypes.c_size_t)).value
print(bool(size & 2))
"""


def returns_memory(folder: Path, prepare: str = "") -> bool:
    program = PROGRAM.format(root=str(ROOT), prepare=prepare)
    output = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True
    ).stdout
    return {"True": True, "False": False}[output.splitlines()[-1]]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is no glibc")
def test_freed_memory_is_kept_by_the_command_and_on_request_only(
    tmp_path: Path, small_npz: Path
) -> None:
    assert returns_memory(tmp_path)  # importing the package changes nothing
    assert not returns_memory(tmp_path, "assert cifar_tl.keep_freed_memory()")
    options = ["--data", str(small_npz), "--stage", "base", "--epochs", "1"]
    assert not returns_memory(
        tmp_path, f"from cifar_tl.command import train; assert train.main({options}) == 0"
    )
