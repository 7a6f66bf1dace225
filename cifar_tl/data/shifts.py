"""Shifts of images: at random, or all by as much."""

import torch
from torch import Tensor


def shift_randomly(images: Tensor, pixels: int) -> Tensor:
    """Shifts each image by up to so many pixels up or down, and left or right.

    What comes in at an edge is a reflection. How far is drawn from torch's global generator of the
    CPU, evenly.

    Args:
        images: ``(N, C, H, W)`` of any type.
        pixels: At least 0, and less than the images have.

    Returns:
        Images of the same shape, new ones if there are any pixels to shift by.
    """
    if pixels == 0:
        return images
    height, width = images.shape[2:]
    down, right = torch.randint(-pixels, pixels + 1, (2, len(images), 1)).to(images.device)
    rows, columns = _reflect(down, height), _reflect(right, width)
    source = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)
    source = source[:, None].expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, source).view_as(images)


def shift_by(images: Tensor, down: int, right: int) -> Tensor:
    """Shifts all images by as many pixels; what comes in at an edge is a reflection.

    Args:
        images: ``(N, C, H, W)`` of any type.
        down: How many, less than the images have; below 0 upwards.
        right: How many; below 0 to the left.

    Returns:
        Images of the same shape, new ones if there are any pixels to shift by.

    Raises:
        ValueError: If the images have no more pixels than that.
    """
    height, width = images.shape[2:]
    if abs(down) >= height or abs(right) >= width:
        raise ValueError(f"images of {height}x{width} cannot be shifted by {down} and {right}")
    if down == right == 0:
        return images
    rows = _reflect(torch.full((1, 1), -down, device=images.device), height)[0]
    columns = _reflect(torch.full((1, 1), -right, device=images.device), width)[0]
    return images.index_select(2, rows).index_select(3, columns)


def _reflect(steps: Tensor, size: int) -> Tensor:
    """Finds what comes to each place after steps ``(N, 1)`` between two mirrors: ``(N, size)``."""
    positions = (torch.arange(size, device=steps.device) + steps).abs()
    return size - 1 - (size - 1 - positions).abs()
