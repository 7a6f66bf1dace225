"""Random shifts of images, while they are trained on."""

import torch
from torch import Tensor


def shift_randomly(images: Tensor, pixels: int) -> Tensor:
    """Shifts each image, or not, by up to so many pixels up, down, left or right.

    What comes in at an edge is a reflection. The choice is drawn from torch's global generator of
    the CPU.

    Args:
        images: ``(N, C, H, W)`` of any type.
        pixels: At least 0, and less than the images have.

    Returns:
        New images of the same shape.
    """
    steps = [step for step in range(-pixels, pixels + 1) if step]
    shifts = [(axis, step) for axis in (2, 3) for step in steps]
    which = torch.randint(len(shifts) + 1, (len(images),))  # the last of them: no shift
    result = images.clone()
    for number, (axis, shift) in enumerate(shifts):
        chosen = (which == number).nonzero().flatten().to(images.device)
        source = (torch.arange(images.shape[axis], device=images.device) + shift).abs()
        last = images.shape[axis] - 1
        source = last - (last - source).abs()  # both edges are mirrors
        result[chosen] = images[chosen].index_select(axis, source)
    return result
