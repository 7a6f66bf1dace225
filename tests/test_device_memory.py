"""What does not fit on a device stays where it is."""

import pytest
import torch

from cifar_tl.device_memory import fits, to_device_if_it_fits


def test_data_may_take_half_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 10_000))  # free, and in all
    assert fits(500, torch.device("cuda"))
    assert not fits(501, torch.device("cuda"))
    assert fits(10**15, torch.device("cpu"))
    images = torch.zeros(501, dtype=torch.uint8)
    assert to_device_if_it_fits(images, torch.device("cuda")) is images


def test_data_goes_to_a_device_where_it_fits() -> None:
    moved = to_device_if_it_fits(torch.zeros(3), torch.device("meta"))
    assert moved.device.type == "meta"
