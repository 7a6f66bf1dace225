import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cifar_tl.data.image_files import read_image, read_images
from cifar_tl.errors import ImageError

RED, WHITE = (255, 0, 0), (255, 255, 255)


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def colour(image: torch.Tensor) -> tuple[int, ...]:
    """The colour of an image that has only one."""
    assert (image == image[:, :1, :1]).all()
    return tuple(image[:, 0, 0].tolist())


def test_image_of_the_right_size_is_taken_as_it_is(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(32, 32, 3), dtype=np.uint8)
    image = read_image(save(Image.fromarray(pixels), tmp_path / "a.png"))
    assert (image.dtype, image.is_contiguous()) == (torch.uint8, True)
    assert torch.equal(image, torch.from_numpy(pixels).permute(2, 0, 1))


@pytest.mark.parametrize("size", [(96, 64), (64, 96), (8, 5), (1, 1), (3000, 40)])
def test_shape_is_kept_and_the_middle_is_cropped(tmp_path: Path, size: tuple[int, int]) -> None:
    width, height = size
    image = Image.new("RGB", size, RED)
    if width > height:  # a mark outside the square in the middle
        image.paste((0, 0, 255), (0, 0, (width - height) // 4, height))
    elif height > width:
        image.paste((0, 0, 255), (0, 0, width, (height - width) // 4))
    assert read_image(save(image, tmp_path / "a.png")).shape == (3, 32, 32)
    if min(size) > 8:
        assert colour(read_image(tmp_path / "a.png")) == RED


def test_a_circle_stays_a_circle(tmp_path: Path) -> None:
    y, x = np.mgrid[:200, :320]
    circle = ((x - 160) ** 2 + (y - 100) ** 2 < 80**2).astype(np.uint8) * 255
    image = read_image(save(Image.fromarray(circle), tmp_path / "a.png")) > 127
    assert image[0, 16].sum() == pytest.approx(25.6, abs=1)
    assert image[0, :, 16].sum() == pytest.approx(25.6, abs=1)


def test_image_is_turned_as_its_exif_data_says(tmp_path: Path) -> None:
    image = Image.new("RGB", (64, 64), WHITE)
    image.paste(RED, (0, 0, 64, 32))  # the upper half
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    seen = read_image(save(image, tmp_path / "a.png", exif=exif))
    assert tuple(seen[:, 4, 16].tolist()) == WHITE
    assert tuple(seen[:, 28, 16].tolist()) == RED


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (40, 40), 77), (77, 77, 77)),
        (Image.new("1", (40, 40), 1), WHITE),
        (Image.new("I;16", (40, 40), 0x8080), (128, 128, 128)),
        (Image.new("RGBA", (40, 40), (*RED, 255)), RED),
        (Image.new("RGBA", (40, 40), (*RED, 0)), WHITE),
        (Image.new("LA", (40, 40), (0, 0)), WHITE),
        (Image.new("RGB", (40, 40), RED).convert("P"), RED),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else str(value),
)
def test_every_mode_becomes_colours(
    tmp_path: Path, image: Image.Image, expected: tuple[int, ...]
) -> None:
    assert colour(read_image(save(image, tmp_path / "a.png"))) == expected


def test_cmyk_and_transparent_palettes(tmp_path: Path) -> None:
    cmyk = save(Image.new("CMYK", (40, 40), (0, 255, 255, 0)), tmp_path / "a.tif")
    assert colour(read_image(cmyk)) == RED
    palette = Image.new("P", (40, 40), 0)
    palette.putpalette([*RED] * 256)
    assert colour(read_image(save(palette, tmp_path / "a.gif", transparency=0))) == WHITE


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.png is no readable image"):
        read_image(path)


def test_cut_images_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(90, 90, 3), dtype=np.uint8)
    path = save(Image.fromarray(pixels), tmp_path / "a.jpg")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ImageError, match=r"a\.jpg is no readable image \(image file is truncated"):
        read_image(path)
    with pytest.raises(ImageError, match="there is no file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ImageError, match="is no readable image"):
        read_image(tmp_path)


def test_many_images_are_read_in_their_order(tmp_path: Path) -> None:
    paths = [save(Image.new("L", (32, 32), n), tmp_path / f"{n}.png") for n in range(100, 0, -1)]
    images = read_images(paths).images
    assert images[:, 0, 0, 0].tolist() == list(range(100, 0, -1))
    assert read_images([]).images.shape == (0, 3, 32, 32)


def test_ctrl_c_does_not_wait_for_images_that_remain(tmp_path: Path) -> None:
    path = save(Image.effect_noise((600, 600), 50), tmp_path / "a.png")
    read = 0

    class Paths(list[Path]):
        def __getitem__(self, number: Any) -> Any:
            nonlocal read
            read += 1
            if read == 20:
                signal.raise_signal(signal.SIGINT)
            return super().__getitem__(number)

    with pytest.raises(KeyboardInterrupt):
        read_images(Paths([path] * 1000))
    assert read < 1000


def test_a_large_jpeg_is_decoded_small_and_looks_the_same(tmp_path: Path) -> None:
    y, x = np.mgrid[:2000, :3000]
    pixels = np.stack([x * 255 // 3000, y * 255 // 2000, 0 * x], -1).astype(np.uint8)
    large = read_image(save(Image.fromarray(pixels), tmp_path / "a.jpg", quality=95))
    small = read_image(save(Image.fromarray(pixels).resize((96, 64)), tmp_path / "b.png"))
    assert (large.int() - small.int()).abs().max() < 8
