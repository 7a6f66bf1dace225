import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from cifar_tl import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    [torch.ones(2_500_000) for _ in range(5)]  # 10 MB each, as the activations of a training step
for _ in range(3):
    step()
before = faults()
for _ in range(10):
    step()
print(faults() - before)
"""


def page_faults(*, keep: bool) -> int:
    program = [sys.executable, "-c", FAULTS.format(keep=keep)]
    return int(subprocess.run(program, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is no glibc")
def test_freed_memory_is_kept_only_when_asked_for() -> None:
    assert page_faults(keep=False) > 10_000  # importing the package alone changes nothing
    assert page_faults(keep=True) < 1_000
