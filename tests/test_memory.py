import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch, cifar_tl
{prepare}
def step():
    [torch.ones(2_500_000) for _ in range(12)]  # as large as the activations of training steps
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(prepare: str) -> int:
    program = [sys.executable, "-c", FAULTS.format(prepare=prepare)]
    return int(subprocess.run(program, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is no glibc")
def test_freed_memory_is_kept_on_request_only() -> None:
    at_first = page_faults("")  # importing the package changes nothing
    assert page_faults("assert cifar_tl.keep_freed_memory()") < at_first / 10
