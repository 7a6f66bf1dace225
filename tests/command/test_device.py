"""Which device is chosen, and what is said of one that lies idle."""

from typing import Any

import pytest
import torch

from cifar_tl.command.console import UsageError
from cifar_tl.command.device import choose_device


def pretend(monkeypatch: pytest.MonkeyPatch, accelerator: str | None) -> None:
    """Makes torch say that the machine has an accelerator, or none."""
    device: Any = accelerator and torch.device(accelerator)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: device is not None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: device)


def test_the_default_is_the_cpu_of_the_documented_experiment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines: list[str] = []
    pretend(monkeypatch, "cuda")
    assert choose_device(None, None, lines.append) == "cpu"
    assert lines == ["cuda is here and lies idle: --device auto would use it"]
    assert choose_device("cpu", None, lines.append) == "cpu"  # as was asked for
    assert len(lines) == 1


def test_auto_is_an_accelerator_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    pretend(monkeypatch, "meta")  # which has no data: it is refused by its name
    with pytest.raises(UsageError, match="--device meta: cannot be used here"):
        choose_device("auto", None, lines.append)
    pretend(monkeypatch, None)
    assert choose_device("auto", None, lines.append) == "cpu"
    assert choose_device(None, None, lines.append) == "cpu"
    assert lines == []


@pytest.mark.parametrize(("name", "devices"), [("cuda", 1), ("auto", 1), ("cuda:0", 2)])
def test_processes_that_share_a_training_do_not_share_a_device(
    name: str, devices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, "cuda")
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: devices)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    variables = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")
    for variable, value in zip(variables, "02021", strict=True):
        monkeypatch.setenv(variable, value)
    with pytest.raises(UsageError, match="2 processes need as many devices, not 1: --nproc-per"):
        choose_device(name, None, lambda _: None)
    assert choose_device("cpu", None, lambda _: None) == "cpu"
