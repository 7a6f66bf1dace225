from collections.abc import Iterator

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from cifar_tl.frame import Frame, cifar_frame, fill, scale
from cifar_tl.scaling import scale_pictures


def draw_pictures(number: int, longest: int = 1500) -> Iterator[torch.Tensor]:
    """Draws pictures of all kinds of sizes, smooth or not: ``(1, 3, H, W)`` uint8."""
    for seed in range(number):
        draw = np.random.default_rng(seed)
        shortest = (1, 20, 100)[seed % 3]
        sides = np.exp(draw.uniform(np.log(shortest), np.log(longest), 2)).astype(int)
        width, height = sides if seed else (longest, longest)
        if int(PIL.__version__.split(".")[0]) < 13:  # which scales tall pictures in another order
            width, height = max(width, height), min(width, height)
        coarse = Image.fromarray(draw.integers(0, 256, (7, 7, 3), np.uint8))
        pixels = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))
        if seed % 2:
            pixels = pixels // 2 + draw.integers(0, 128, pixels.shape, np.uint8)
        yield torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()


def scaled_by_pillow(picture: torch.Tensor, frame: Frame) -> torch.Tensor:
    """Scales ``(1, 3, H, W)`` uint8 as pictures in files are scaled: ``(1, 3, size, size)``."""
    pixels = np.array(scale(Image.fromarray(picture[0].permute(1, 2, 0).numpy()), frame))
    return torch.from_numpy(fill(pixels, frame)).permute(2, 0, 1)[None]


@pytest.mark.parametrize(
    "frame",
    [
        Frame(),
        cifar_frame("squash"),
        cifar_frame("pad"),
        Frame(33, interpolation="lanczos", fit="pad", padding=(1, 2, 3)),
        Frame(64, resize=72, interpolation="bilinear"),
        Frame(64, resize=41),
    ],
    ids=str,
)
def test_the_pixels_are_those_of_pillow(frame: Frame) -> None:
    for picture in (*draw_pictures(25, 400), *extreme_pictures()):
        scaled, expected = scale_pictures(picture, frame), scaled_by_pillow(picture, frame)
        difference = (scaled.int() - expected.int()).abs().max()
        assert difference == 0, f"{tuple(picture.shape)} differs by {difference} levels"


def extreme_pictures() -> Iterator[torch.Tensor]:
    """Draws pictures of which both ends are cut, of one pixel, and of a network's own size."""
    generator = torch.Generator().manual_seed(0)
    for height, width in ((3, 700), (1, 1), (32, 32), (64, 64)):
        yield torch.randint(256, (1, 3, height, width), dtype=torch.uint8, generator=generator)


def test_pictures_of_one_size_are_scaled_together() -> None:
    pictures = torch.cat([*draw_pictures(1, 50)] * 2)
    pictures[1] = 255 - pictures[1]
    together = scale_pictures(pictures, Frame())
    assert torch.equal(together[1:], scale_pictures(pictures[1:], Frame()))
    assert not torch.equal(together[0], together[1])
