"""What tests of the commands share: an empty folder, forked processes, remedies in messages."""

import re
import shlex
from pathlib import Path

import pytest
from torchvision.datasets import CIFAR10

from tests.forked import one_line


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs each test in an empty folder, with CIFAR-10 out of reach."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/refuses")


def remedy(errors: str) -> list[str]:
    """The arguments of the command that an error recommends."""
    found = re.search(r"cifar-tl train (.*)", one_line(errors).partition("cifar-tl train: ")[2])
    assert found is not None
    return shlex.split(found[1])
