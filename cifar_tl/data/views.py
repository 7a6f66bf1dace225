"""Versions of images that show the same: mirrored, shifted at random, shifted all by as much."""

import itertools

import torch
from torch import Tensor


def make_views(images: Tensor, *, mirror: bool, shift: int = 0) -> Tensor:
    """Stacks the equally valid versions of each image.

    Args:
        images: ``(N, 3, 32, 32)``.
        mirror: Add the mirror images.
        shift: Add the images, and mirror images, shifted by so many pixels in eight directions.

    Returns:
        ``(V, N, 3, 32, 32)``, the images themselves first; V is 1 or 2, with shifts 9 or 18, and so
        is the memory that they take.

    Raises:
        ValueError: If the images have no more pixels than that.
    """
    steps = (0, -shift, shift) if shift else (0,)
    versions = list(itertools.product((False, True) if mirror else (False,), steps, steps))
    if len(versions) == 1:
        return images[None]
    views = images.new_empty(len(versions), *images.shape)
    for view, (mirrored, down, right) in zip(views, versions, strict=True):
        # All at once would take the memory of a further view.
        for part, batch in zip(view.split(1000), images.split(1000), strict=True):
            part.copy_(shift_by(batch.flip(-1) if mirrored else batch, down, right))
    return views


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
