"""What tests of the commands share: no CIFAR-10, remedies in messages."""

import re
import shlex

import pytest
from torchvision.datasets import CIFAR10

from tests.forked import one_line


@pytest.fixture(autouse=True)
def _without_cifar10(monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFAR-10 is out of reach."""
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/refuses")


def remedy(errors: str) -> list[str]:
    """The arguments of the command that an error recommends."""
    found = re.search(r"cifar-tl train (.*)", one_line(errors).partition("cifar-tl train: ")[2])
    assert found is not None
    return shlex.split(found[1])
