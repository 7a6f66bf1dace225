"""bfloat16 where there are instructions for it."""

from typing import Any

import pytest
import torch

from cifar_tl.precision import autocast, choose_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "chosen"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "bf16"),
        ({"avx512_bf16": False, "amx_bf16": True}, "bf16"),
        ({"avx512_bf16": False, "avx512_f": True}, "float32"),
        ({"architecture": "aarch64", "bf16": True}, "float32"),  # not tried
        (None, "float32"),  # torch 2.6
    ],
)
def test_auto_is_what_the_processor_has_instructions_for(
    monkeypatch: pytest.MonkeyPatch, capabilities: Any, chosen: str
) -> None:
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
