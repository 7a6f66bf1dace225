"""Scales pictures in torch operations, as `cifar_tl.frame.scale` does with Pillow, for exports.

Each new row is a sum of old rows, so scaling is two products of matrices. Their weights are
computed from height and width in float64, and rounded as Pillow rounds them. So each sum is exact,
whatever computes it. The order of the passes is that of Pillow 13.
"""

import math

import torch
from torch import Tensor

from cifar_tl.frame import LONGEST, Frame

_UNITS = 2**22  # Pillow's weights are whole numbers of 1/_UNITS


def scale_pictures(pictures: Tensor, frame: Frame) -> Tensor:
    """Scales pictures of one size to what a network sees.

    `torch.export` keeps the size open: no operation here depends on the values of the shape.

    Args:
        pictures: ``(N, 3, H, W)`` uint8.
        frame: What the network sees.

    Returns:
        ``(N, 3, size, size)`` uint8.
    """
    height, width = (torch.scalar_tensor(side, dtype=torch.float64) for side in pictures.shape[-2:])
    rows, new_height, in_rows = _weights(torch.arange(pictures.shape[-2]), height, width, frame)
    columns, new_width, in_columns = _weights(
        torch.arange(pictures.shape[-1]), width, height, frame
    )
    pixels, columns = pictures.double(), columns.T
    # Pillow begins with the side that saves it more work. This order decides a few levels.
    is_tall = height - new_height > (2 * (width - new_width)).clamp(min=0)
    rows_first = _levels(_levels(rows @ pixels) @ columns)
    scaled = torch.where(is_tall, rows_first, _levels(rows @ _levels(pixels @ columns)))
    colour = frame.padding if frame.fit == "pad" else (0, 0, 0)
    # Not torch.tensor: of such a constant, the exporter of torch 2.6 warns.
    borders = torch.stack([torch.full((1, 1), level, dtype=torch.float64) for level in colour])
    return torch.where(in_rows[:, None] & in_columns, scaled, borders).to(torch.uint8)


def _levels(sums: Tensor) -> Tensor:
    return (sums + 0.5).floor().clamp(0, 255)


def _weights(
    pixels: Tensor, side: Tensor, other: Tensor, frame: Frame
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes how much of which old pixel is in each new pixel along one side.

    Args:
        pixels: The numbers of the old pixels, ``(side,)``.
        side: The length of this side, a float64 scalar.
        other: The length of the other side.
        frame: What the network sees.

    Returns:
        The weights ``(size, side)``; to how many pixels the side is scaled; and which of the
        ``size`` pixels are of the picture, not of a border.
    """
    size, shorter = frame.size, torch.minimum(side, other)
    places = torch.arange(size, dtype=torch.float64)
    start, length, new = torch.zeros_like(side), side, torch.full_like(side, size)
    if frame.fit == "pad":
        new = (size * side / torch.maximum(side, other)).round().clamp(min=1)
        places = places - ((size - new) / 2).floor()
    elif frame.fit == "crop" and frame.resize is None:
        start, length = (side - shorter) / 2, shorter
    elif frame.resize is not None:
        cut = ((side - LONGEST * other).clamp(min=0) / 2).floor()
        pixels, side = pixels - cut, side - 2 * cut
        length, new = side, (frame.resize * side / shorter).floor()
        left, border = ((new - size) / 2).round(), ((size - new) / 2).floor()
        places = places + left.clamp(min=0) - border.clamp(min=0)
    inside = (places >= 0) & (places < new)
    step = length / new
    centres = start + (torch.minimum(places.clamp(min=0), new - 1)[:, None] + 0.5) * step
    stretch = step.clamp(min=1)  # a smaller picture is blurred, which is antialiasing
    exact = _filter((pixels - centres + 0.5) / stretch, frame.interpolation)
    exact = exact * ((pixels >= 0) & (pixels < side))
    return (exact / exact.sum(1, keepdim=True) * _UNITS).round() / _UNITS, new, inside


def _filter(distances: Tensor, interpolation: str) -> Tensor:
    """Computes a filter of Pillow at distances in pixels of the smaller of both pictures."""
    x = distances.abs()
    if interpolation == "bilinear":
        return (1 - x).clamp(min=0)
    if interpolation == "bicubic":  # Keys 1981, a = -0.5
        near = (1.5 * x - 2.5) * x * x + 1
        far = ((-0.5 * x + 2.5) * x - 4) * x + 2
        return torch.where(x < 1, near, far * (x < 2))
    turns = math.pi * x.clamp(min=1e-9)  # lanczos
    return 3 * turns.sin() * (turns / 3).sin() / turns**2 * (x < 3)
