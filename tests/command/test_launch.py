"""What a process that torchrun has started again does not do twice."""

import pytest

from cifar_tl.command.launch import once_a_launch


def test_one_process_that_is_started_again_does_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    assert once_a_launch("restart", lambda: calls.append("alone"), None)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert once_a_launch("restart", lambda: calls.append("first"), None)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert not once_a_launch("restart", lambda: calls.append("again"), None)
    assert calls == ["alone", "first"]
