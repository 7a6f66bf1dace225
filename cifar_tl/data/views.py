"""Other versions of images that show the same: mirrored images and shifted images."""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor


def make_views(images: Tensor, *, mirror: bool, shift: int = 0) -> Tensor:
    """Makes V views of each image: versions that show the same.

    Args:
        images: ``(N, 3, 32, 32)``.
        mirror: Add the mirror images.
        shift: Add the images, shifted by this many pixels in each of eight directions. If
            ``mirror`` is true, add the shifted mirror images, too. 0: no shifts.

    Returns:
        ``(V, N, 3, 32, 32)``. The first view is the images themselves. V is 1, or 2 with mirror
        images, times 9 with shifts. The views take V times the memory of the images.

    Raises:
        ValueError: If the shift is as large as the images.
    """
    versions = versions_of(mirror=mirror, shift=shift)
    if len(versions) == 1:
        return images[None]
    views = images.new_empty(len(versions), *images.shape)
    for view, version in zip(views, versions, strict=True):
        # In parts: a copy of all images would take the memory of another view.
        for part, batch in zip(view.split(1000), images.split(1000), strict=True):
            part.copy_(change(batch, version))
    return views


class Version(NamedTuple):
    """How a view differs from the images: 1 is mirrored, and steps are pixels."""

    mirrored: int
    down: int
    right: int


def versions_of(*, mirror: bool, shift: int = 0) -> list[Version]:
    """Lists the views that `make_views` makes. The first is the images themselves."""
    steps = (0, -shift, shift) if shift else (0,)
    return [Version(*v) for v in itertools.product((0, 1) if mirror else (0,), steps, steps)]


def change(images: Tensor, version: Version) -> Tensor:
    """Makes a view of images ``(N, 3, H, W)``."""
    mirrored = images.flip(-1) if version.mirrored else images
    return shift_by(mirrored, version.down, version.right)


def shift_randomly(images: Tensor, pixels: int) -> Tensor:
    """Shifts each image at random, up or down and left or right.

    Each image gets two steps of its own, whole numbers from ``-pixels`` to ``pixels``, all equally
    likely. They are drawn from torch's global generator of the CPU. Gaps are filled by reflection,
    without the pixel at the edge: ``1 2 3 4``, shifted right by one, is ``2 1 2 3``.

    Args:
        images: ``(N, C, H, W)`` of any type.
        pixels: The largest step: at least 0, less than H and W.

    Returns:
        New images of the same shape; with 0 pixels the given images.
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
    """Shifts all images by the same steps. The pixels that come in at an edge are a reflection.

    Args:
        images: ``(N, C, H, W)`` of any type.
        down: Pixels, less than H. A negative number shifts up.
        right: Pixels, less than W. A negative number shifts left.

    Returns:
        New images of the same shape; without a shift the given images.

    Raises:
        ValueError: If a step is as large as the images.
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
    """Returns ``(N, size)``: place p shows pixel p + step, reflected at the ends of the line."""
    positions = (torch.arange(size, device=steps.device) + steps).abs()
    return size - 1 - (size - 1 - positions).abs()
