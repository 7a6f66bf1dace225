import io
import random
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence

from cifar_tl.data.metadata import without_metadata
from cifar_tl.data.pictures.read import read_image, read_images
from cifar_tl.errors import ImageError

RED, WHITE = (255, 0, 0), (255, 255, 255)


def picture(size: int = 64) -> Image.Image:
    """White, its upper half red."""
    image = Image.new("RGB", (size, size), WHITE)
    image.paste(RED, (0, 0, size, size // 2))
    return image


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.array(image)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize(
    ("mode", "compression"),
    [
        *(("RGB", None), ("RGBA", "tiff_lzw"), ("CMYK", None), ("YCbCr", "jpeg"), ("I;16", None)),
        *(("L", "packbits"), ("1", "group4"), ("1", "group3"), ("P", "tiff_adobe_deflate")),
        ("F", None),
    ],
)
def test_a_tiff_file_keeps_all_that_its_pixels_need(
    mode: str, compression: str | None, big: bool
) -> None:
    image = picture().convert("F").convert("I;16") if mode == "I;16" else picture().convert(mode)
    content = encoded(
        image, "TIFF", compression=compression, big_tiff=big, software="nobody asks", dpi=(72, 72)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = without_metadata(content)
        assert np.array_equal(pixels(kept), pixels(content))
    with Image.open(io.BytesIO(kept)) as opened:
        assert 305 not in opened.tag_v2  # type: ignore[attr-defined]


def folder_of_tiff(content: bytes) -> tuple[int, int]:
    """Where the entries of a TIFF file begin, and how many they are."""
    (start,) = struct.unpack_from("<I", content, 4)
    return start + 2, struct.unpack_from("<H", content, start)[0]


def with_entry(content: bytes, tag: int, new: bytes) -> bytes:
    start, entries = folder_of_tiff(content)
    for at in range(start, start + 12 * entries, 12):
        if struct.unpack_from("<H", content, at) == (tag,):
            return content[:at] + new + content[at + 12 :]
    raise AssertionError(tag)


def strange(kind: str) -> bytes:
    """A good picture of which Pillow warns."""
    tiff = encoded(picture(), "TIFF", software="somebody")
    if kind == "one value too many":
        return with_entry(tiff, 277, struct.pack("<HHIHH", 277, 3, 2, 3, 3))
    if kind == "many values, elsewhere":
        place = len(tiff)
        tiff += struct.pack("<4H", 3, 3, 3, 3)
        return with_entry(tiff, 277, struct.pack("<HHII", 277, 3, 4, place))
    if kind == "data beyond the end":
        return with_entry(tiff, 305, struct.pack("<HHII", 305, 2, 500, len(tiff)))
    if kind == "entries cut off":  # an image file device that wrote less than it promised
        start, entries = folder_of_tiff(tiff)
        ends = tiff[start : start + 12 * entries]
        whole = tiff[: start - 2] + bytes(len(ends) + 6) + tiff[start + 12 * entries + 4 :]
        whole = whole[:4] + struct.pack("<I", len(whole)) + whole[8:]
        return whole + struct.pack("<H", entries + 5) + ends
    png = encoded(picture(), "PNG", save_all=True, append_images=[picture().rotate(180)])
    place = png.index(b"acTL")
    chunk = b"acTL" + bytes(8)
    return png[:place] + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[place + 16 :]


STRANGE = (
    *("one value too many", "many values, elsewhere", "data beyond the end", "entries cut off"),
    "no frames in an animation",
)


@pytest.mark.parametrize("kind", STRANGE)
def test_pillow_is_not_shown_of_what_it_warns(kind: str, tmp_path: Path) -> None:
    content = strange(kind)
    with pytest.warns(UserWarning, match="Metadata|orrupt EXIF|Truncated|Invalid APNG"):
        pixels(content)  # so there is something to warn of
    (tmp_path / "a").write_bytes(content)
    image = read_images([tmp_path / "a"]).images[0]  # in tests, a warning is an error
    assert tuple(image[:, 4, 16].tolist()) == RED
    assert tuple(image[:, 28, 16].tolist()) == WHITE


def test_an_animation_is_its_first_image(tmp_path: Path) -> None:
    content = encoded(picture(), "PNG", save_all=True, append_images=[picture().rotate(180)])
    with Image.open(io.BytesIO(content)) as opened:
        assert len(list(ImageSequence.Iterator(opened))) == 2
    (tmp_path / "a.png").write_bytes(content)
    assert tuple(read_image(tmp_path / "a.png")[:, 4, 16].tolist()) == RED


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "MPO", "WEBP", "GIF", "BMP", "PPM"])
def test_damage_is_an_error_of_ours_and_never_a_warning(kind: str, tmp_path: Path) -> None:
    several = {"save_all": True, "append_images": [picture(32).rotate(90)]}
    good = encoded(picture(32), kind, **(several if kind not in ("BMP", "PPM") else {}))
    start, entries = folder_of_tiff(good) if kind == "TIFF" else (0, 0)
    places = [*range(8), *range(start - 2, start + 12 * entries)] if entries else range(len(good))
    random.seed(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(good)
        for place in random.choices(places, k=random.choice((1, 4))):
            damaged[place] = random.choice((0, 1, 255, random.randrange(256)))
        (tmp_path / "a").write_bytes(damaged[: random.choice((len(good), len(good) // 2))])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                assert read_image(tmp_path / "a").shape == (3, 32, 32)
            except ImageError:
                refused += 1
        assert caught == []
    assert 20 < refused < 400
