"""What tests of the commands share: no CIFAR-10, remedies in messages, a held process."""

import re
import shlex
import subprocess
from collections.abc import Sequence

import pytest
from torchvision.datasets import CIFAR10

from tests.forked import Command, one_line


@pytest.fixture(autouse=True)
def _without_cifar10(monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFAR-10 is out of reach."""
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/refuses")


def remedy(errors: str) -> list[str]:
    """The arguments of the command that an error recommends."""
    found = re.search(r"cifar-tl train (.*)", one_line(errors).partition("cifar-tl train: ")[2])
    assert found is not None
    return shlex.split(found[1])


# The disk takes its time once: a file or folder is being synced until there is a file "go".
HELD_DISK = """
fsync, syncs = os.fsync, []
def held_fsync(descriptor):
    if syncs or os.path.isfile("/dev/fd/%d" % descriptor):  # from the first file on
        syncs.append(descriptor)
    if len(syncs) == {number}:
        print("saving", flush=True)
        while not os.path.exists("go"):
            time.sleep(0.01)
    fsync(descriptor)
os.fsync = held_fsync
"""


def start_and_hold(zygote: subprocess.Popen[str], arguments: Sequence[str], number: int) -> Command:
    """Starts ``train`` and waits until it is syncing a file or folder, the first, second, ..."""
    before = HELD_DISK.format(number=number)
    process = Command(zygote, ["train", *arguments], before=before)
    process.wait_until_printed("saving")
    return process
