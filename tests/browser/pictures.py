"""Pictures of all kinds, drawn with seeds: what people give to the page."""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

ORIENTATION = 0x0112  # the number of this field in EXIF data


class Picture(NamedTuple):
    """The content of an image file, and what is known of it."""

    name: str
    content: bytes
    is_exact: bool  # a browser decodes it to the very pixels that Pillow scales


def pictures() -> Iterator[Picture]:
    """Draws them."""
    sizes = [(32, 32), (1, 1), (3, 200), (200, 3), (7, 9), (31, 33), (64, 48), (640, 480)]
    sizes += [(255, 256), (1200, 90), (500, 700), (1000, 1000), (33, 32), (40, 64)]
    for number, size in enumerate(sizes):
        for mode in ("RGB", "RGBA", "L", "LA", "P", "1"):
            yield _png(f"{mode}-{size[0]}x{size[1]}", _draw(number, size).convert(mode))
    yield from _special_pngs()
    for number, size in enumerate([(256, 256), (32, 32), (9, 5), (100, 256), (255, 201), (1, 7)]):
        for quality, subsampling in ((30, 2), (75, 1), (95, 0)):
            picture = _draw(number, size, opaque=True)
            yield _jpeg(f"{size}-{quality}", picture, quality=quality, subsampling=subsampling)
        yield _jpeg(f"grey-{size}", picture.convert("L"))
        yield _jpeg(f"progressive-{size}", picture, progressive=True)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        picture = _draw(orientation, (160, 90), opaque=True)
        yield _jpeg(f"turned-{orientation}", picture, exif=exif)
        picture = _draw(orientation, (1333, 1001), opaque=True)
        yield _jpeg(f"large-turned-{orientation}", picture, exif=exif)
    for number, size in enumerate(
        [(512, 512), (1025, 770), (2049, 2051), (3001, 600), (4032, 3024)]
    ):
        for subsampling in (0, 2):
            picture = _draw(number, size, opaque=True)
            yield _jpeg(f"large-{size}-{subsampling}", picture, subsampling=subsampling)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    yield _png("turned", _draw(53, (90, 60), opaque=True), exif=exif)
    for kind in ("GIF", "BMP", "WEBP"):
        yield Picture(kind, _saved(_draw(5, (90, 120), opaque=True), kind), True)
    yield Picture("transparent WEBP", _saved(_draw(54, (90, 60)), "WEBP", lossless=True), True)
    yield _jpeg("CMYK", _draw(55, (90, 60), opaque=True).convert("CMYK"))
    frames = [_draw(number, (60, 50), opaque=True).convert("P") for number in range(3)]
    animated = _saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50)
    yield Picture("animated GIF", animated, True)


def _draw(seed: int, size: tuple[int, int], *, opaque: bool = False) -> Image.Image:
    """Draws something with smooth parts, sharp edges and noise. Its alpha has all values."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (4, 4, 4), dtype=np.uint8)
    picture = Image.fromarray(coarse, "RGBA").resize(size, Image.Resampling.BICUBIC)
    pixels = np.array(picture)
    height, width = pixels.shape[:2]
    pixels[height // 4 : height // 2, width // 3 : width // 2, :3] = generator.integers(0, 256, 3)
    noise = generator.integers(-30, 31, pixels.shape)
    pixels = np.clip(pixels.astype(int) + noise, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels[..., :3] if opaque else pixels)


def _special_pngs() -> Iterator[Picture]:
    rgb = _draw(50, (80, 60), opaque=True)
    yield _png("one-colour-transparent", rgb, transparency=rgb.getpixel((3, 3)))
    palette = rgb.quantize(16)
    yield _png("palette-transparent", palette, transparency=bytes(range(0, 256, 16)))
    deep = np.array(_draw(51, (70, 90), opaque=True).convert("L")).astype(np.uint16)
    grey = _png("grey-16", Image.fromarray(deep * 256 + deep[::-1]))
    yield grey._replace(is_exact=False)  # a browser takes the upper 8 bits, Pillow all of them
    gamma = PngImagePlugin.PngInfo()
    gamma.add(b"gAMA", struct.pack(">I", 100_000))
    yield _png("gamma", rgb, pnginfo=gamma)
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = profile.index(b"rXYZ"), profile.index(b"bXYZ")
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"  # red becomes blue
    yield _png("profile", rgb, icc_profile=bytes(profile))
    yield _jpeg("profile", rgb, icc_profile=bytes(profile))
    yield Picture("colours-16.png", _png_of_16_bits(np.array(_draw(52, (50, 40)))), True)


def _png_of_16_bits(pixels: np.ndarray) -> bytes:
    """Writes RGBA of 16 bits, which Pillow can read, but not write."""
    height, width = pixels.shape[:2]
    values = pixels.astype(">u2") * 256 + pixels[::-1]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 6, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + body


def _png(name: str, picture: Image.Image, **options: object) -> Picture:
    return Picture(f"{name}.png", _saved(picture, "PNG", **options), True)


def _jpeg(name: str, picture: Image.Image, **options: object) -> Picture:
    is_exact = min(picture.size) < 512
    return Picture(f"{name}.jpg", _saved(picture, "JPEG", **options), is_exact)


def _saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return content.getvalue()
