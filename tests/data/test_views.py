"""Shifts: what may come out, and how often."""

import pytest
import torch
from torch.nn import functional

from cifar_tl.data.views import shift_by, shift_randomly


@pytest.mark.parametrize("pixels", [1, 2])
def test_every_image_is_one_of_the_shifted_ones_and_all_are_as_likely(pixels: int) -> None:
    torch.manual_seed(0)
    images = torch.randint(256, (4000, 3, 8, 6), dtype=torch.uint8)
    padded = functional.pad(images.float(), [pixels] * 4, mode="reflect").to(torch.uint8)
    steps = range(2 * pixels + 1)
    versions = [padded[:, :, y : y + 8, x : x + 6] for y in steps for x in steps]
    before = images.clone()
    shifted = shift_randomly(images, pixels)
    assert torch.equal(images, before)
    assert shifted.dtype == torch.uint8
    same = torch.stack([(shifted == version).flatten(1).all(1) for version in versions])
    assert same.any(0).all()
    counts = same.sum(1)
    assert counts.min() > 0.7 * len(images) / len(versions)
    assert counts.max() < 1.3 * len(images) / len(versions)
    torch.manual_seed(1)
    once = shift_randomly(images, pixels)
    torch.manual_seed(1)
    assert torch.equal(once, shift_randomly(images, pixels))


def test_all_go_down_and_to_the_right_by_as_much() -> None:
    images = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    shifted = shift_by(images, 1, -2)
    assert torch.equal(shifted[:, :, 1:, :3], images[:, :, :3, 2:])
    assert torch.equal(shifted[:, :, 0, :3], images[:, :, 1, 2:])  # reflected at the edge


def test_an_image_is_not_shifted_by_all_of_itself() -> None:
    for steps in ((4, 0), (0, -5), (-6, 0)):
        with pytest.raises(ValueError, match=r"images of 4x5 cannot be shifted by"):
            shift_by(torch.zeros(2, 3, 4, 5), *steps)


def test_no_pixels_are_no_shift_and_no_images_are_none() -> None:
    images = torch.rand(5, 3, 8, 8)
    assert torch.equal(shift_randomly(images, 0), images)
    assert shift_randomly(images[:0], 1).shape == (0, 3, 8, 8)
