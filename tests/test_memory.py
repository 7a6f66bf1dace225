import platform
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

FAULTS = """
import resource, sys, torch, cifar_tl
{prepare}
def step():
    [torch.ones(2_500_000) for _ in range(5)]  # 10 MB each, as the activations of a training step
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(prepare: str, folder: Path) -> int:
    program = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})"]
    program[-1] += FAULTS.format(prepare=prepare)
    output = subprocess.run(program, cwd=folder, capture_output=True, text=True, check=True).stdout
    return int(output.splitlines()[-1])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is no glibc")
def test_freed_memory_is_kept_by_the_command_and_on_request_only(
    small_npz: Path, tmp_path: Path
) -> None:
    at_first = page_faults("", tmp_path)  # importing the package changes nothing
    options = ["--data", str(small_npz), "--stage", "base", "--epochs", "1", "--quiet"]
    for prepare in (
        "assert cifar_tl.keep_freed_memory()",
        f"import train; assert train.main({options}) == 0",
    ):
        assert page_faults(prepare, tmp_path) < at_first / 10
