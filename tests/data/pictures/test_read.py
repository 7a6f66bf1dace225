import contextlib
import io
import os
import random
import signal
import struct
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import (
    Image,
    ImageFile,
    ImageOps,
    PngImagePlugin,
    UnidentifiedImageError,
    features,
)

from cifar_tl.data.pictures.find import HEIF_PACKAGE
from cifar_tl.data.pictures.libtiff import damage_found
from cifar_tl.data.pictures.read import read_image, read_images
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
    cmyk = Image.new("CMYK", (40, 40), (0, 255, 255, 0))
    assert colour(read_image(save(cmyk, tmp_path / "a.tif"))) == RED
    # As Photoshop writes it, with all values inverted.
    inverted = read_image(save(cmyk, tmp_path / "a.jpg", quality=100))
    assert inverted[0].min() > 250
    assert inverted[1:].max() < 5
    palette = Image.new("P", (40, 40), 0)
    palette.putpalette([*RED] * 256)
    assert colour(read_image(save(palette, tmp_path / "a.gif", transparency=0))) == WHITE


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"it is empty\)"),
        (b"no image", "none of JPEG, PNG"),
        (b"\x89PNG\r\n\x1a\n", ""),
        (b"<!DOCTYPE html>", "none of JPEG, PNG"),  # what a server sent instead
        (b"GIF89a", ""),
        (b"RIFF", "none of JPEG, PNG"),
    ],
)
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=rf"a\.png is no readable image \({message}"):
        read_image(path)


def test_cut_images_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    path = save(Image.effect_noise((90, 90), 50), tmp_path / "a.jpg")
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


@pytest.mark.usefixtures("no_garbage_collection")
@pytest.mark.parametrize("first", range(1, 40, 8))
def test_ctrl_c_does_not_wait_for_images_that_remain(tmp_path: Path, first: int) -> None:
    path = save(Image.effect_noise((300, 300), 50), tmp_path / "a.png")
    read = 0

    class Paths(list[Path]):
        def __getitem__(self, number: Any) -> Any:
            nonlocal read
            read += 1
            if read == first:
                signal.raise_signal(signal.SIGINT)
            return super().__getitem__(number)

    with pytest.raises(KeyboardInterrupt):
        read_images(Paths([path] * 1000))
    assert read < 1000


def test_whatever_goes_wrong_in_a_thread_is_raised(tmp_path: Path) -> None:
    path = save(Image.new("L", (40, 40)), tmp_path / "a.png")

    class Paths(list[Path]):
        def __getitem__(self, number: Any) -> Any:
            if number == 30:
                raise MemoryError
            return super().__getitem__(number)

    with pytest.raises(MemoryError):
        read_images(Paths([path] * 100))


# More than 8 bits of grey

DEEP = np.linspace(0, 1, 32 * 32).reshape(32, 32)  # from black to white, already of the right size


def save_deep(folder: Path, name: str, top: float, dtype: type = np.uint16) -> Path:
    values: Any = (DEEP * top).astype(dtype)
    return save(Image.fromarray(values), folder / name)


def expected(white: float, top: float, dtype: type = np.uint16) -> torch.Tensor:
    values: Any = (DEEP * top).astype(dtype)
    return torch.from_numpy((values * (255 / white)).round().astype(np.uint8))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_bits_are_those_of_the_file_whatever_the_brightest_pixel(
    tmp_path: Path, suffix: str
) -> None:
    for top in (4200, 20000, 65535):
        image = read_image(save_deep(tmp_path, f"{top}{suffix}", top))
        assert torch.equal(image, expected(65535, top).expand(3, 32, 32))
    for top in (255, 256, 4095):  # 8 to 12 bits in 16, or a dark picture
        with pytest.raises(ImageError, match=rf"has no value above {top}, where 65535 would be"):
            read_image(save_deep(tmp_path, f"{top}{suffix}", top))
    # And one of 8 bits in which nothing is bright is dark.
    dark = read_image(save(Image.new("L", (40, 40), 3), tmp_path / f"dark{suffix}"))
    assert colour(dark) == (3, 3, 3)


@pytest.mark.parametrize(
    ("tops", "white"),
    [((200, 255), 255), ((255, 256), 1023), ((3, 4000), 4095), ((9, 5000), 16383)],
)
def test_all_images_of_a_data_set_have_the_same_white(
    tmp_path: Path, tops: tuple[int, int], white: int
) -> None:
    paths = [save_deep(tmp_path, f"{top}.png", top) for top in tops]
    paths.append(save(Image.new("L", (40, 40), 77), tmp_path / "plain.png"))
    found = read_images(paths)
    assert found.white == {"integers": white}
    for image, top in zip(found.images[:2], tops, strict=True):
        assert torch.equal(image, expected(white, top).expand(3, 32, 32))
    assert colour(found.images[2]) == (77, 77, 77)
    # One of them alone, as the model that was trained on them is asked about it.
    assert torch.equal(read_image(paths[0], found.white), found.images[0])
    with pytest.raises(ImageError, match=rf"values up to 65535, where {white} is white"):
        read_image(save_deep(tmp_path, "bright.png", 65535), found.white)
    # What a trained model takes for white decides, and not what it is asked about.
    model = read_images(paths[:1], white=found.white)
    assert torch.equal(model.images, found.images[:1])
    if white <= 4095:
        with pytest.raises(ImageError, match="whether it is dark or has fewer bits nobody can te"):
            read_images(paths, white={})


@pytest.mark.parametrize(
    ("top", "white"), [(1, 1), (0.3, 1), (1.0000001, 1), (1.05, 1), (255, 255), (60000, 65535)]
)
def test_floats_have_one_white_too(tmp_path: Path, top: float, white: float) -> None:
    path = save_deep(tmp_path, "a.tif", top, np.float32)
    found = read_images([path, save_deep(tmp_path, "dark.tif", top / 9, np.float32)])
    assert found.white == {"floats": white}
    difference = found.images[0, 0].int() - expected(white, min(top, white), np.float32).int()
    assert difference.abs().max() <= (1 if top <= white else 13)  # rounding; beyond white is white
    if white == 1:
        assert torch.equal(read_image(path), found.images[0])
    else:
        with pytest.raises(ImageError, match=r"where 1 is white in what the model was trained on"):
            read_image(path)


@pytest.mark.parametrize("top", [1.5, 10, 300, 2000])
def test_floats_of_which_nobody_can_tell_are_refused(tmp_path: Path, top: float) -> None:
    path = save_deep(tmp_path, "a.tif", top, np.float32)
    with pytest.raises(ImageError, match=rf"largest floating-point value is {top:g}, in .*a\.tif"):
        read_images([path])


def test_depths_that_differ_within_a_data_set_are_named(tmp_path: Path) -> None:
    paths = [save_deep(tmp_path, f"{top}.png", top) for top in (65535, 60000, 4095)]
    (note,) = read_images(paths).notes
    assert "1 image of 3 that hold integers, such as " in note
    assert "4095.png, have no value above 4096, where 65535 is white: if they have fewer" in note
    assert read_images(paths[:2]).notes == []  # 65,535 is what the files say


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([-1.0, 1.0]), "has values from -1 to 1, of which nobody can tell"),
        (np.array([0, np.nan]), "has values from nan to nan"),
        (np.array([0, np.inf]), "has values from 0 to inf"),
        (np.array([0, 80000.0]), "has values from 0 to 80000"),
        (np.array([-5, 9], np.int32), "has whole numbers of 32 bits, which is not read"),
    ],
)
def test_what_nobody_can_tell_is_refused_with_its_range(
    tmp_path: Path, values: Any, message: str
) -> None:
    values = values.astype(np.float32) if values.dtype == np.float64 else values
    path = save(Image.fromarray(np.resize(values, (40, 40))), tmp_path / "a.tif")
    for read in (read_image, lambda path: read_images([path])):
        with pytest.raises(ImageError, match=message):
            read(path)


def save_deep_colours(path: Path, values: Any) -> Path:
    """Writes a PNG with 16 bits a colour, which Pillow only reads."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    return path


def test_colours_of_which_16_levels_would_be_left_are_refused(tmp_path: Path) -> None:
    values: Any = np.random.default_rng(0).integers(4096, size=(32, 32, 3))
    low = save_deep_colours(tmp_path / "low.png", values)
    high = save_deep_colours(tmp_path / "high.png", values * 16)
    with pytest.raises(ImageError, match=r"low\.png, and 0 more, have 16 bits a colour"):
        read_images([low])
    with pytest.raises(ImageError, match=r"low\.png, and 0 more, have 16 bits a colour"):
        read_image(low)
    images = read_images([low, high]).images  # 16 bits are used
    assert torch.equal(images[1], torch.from_numpy(values // 16).byte().permute(2, 0, 1))


# Nothing but a picture


def test_what_claims_to_be_an_image_starts_no_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/trace\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    path = tmp_path / "a.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\nshowpage\n%%EOF\n")
    with contextlib.suppress(OSError), Image.open(path) as opened:  # what Pillow does by itself
        opened.load()
    assert (tmp_path / "trace").exists()
    (tmp_path / "trace").unlink()
    with pytest.raises(ImageError, match=r"a\.jpg is no readable image \(none of JPEG, PNG"):
        read_image(path)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("suffix", [".tga", ".ico", ".psd", ".xbm", ".pcx", ".sgi", ".jp2"])
def test_other_formats_are_not_opened_whatever_their_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    try:
        Image.new("L", (32, 32), 9).save(path)
    except (ValueError, KeyError, OSError):
        path.write_bytes(b"8BPS\0\1" + bytes(40))
    path = path.rename(tmp_path / "a.png")
    with pytest.raises(ImageError, match="is no readable image"):
        read_image(path)


def test_what_counts_is_the_size_that_would_be_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400_000)
    image = Image.new("RGB", (3000, 2000), RED)
    large = read_image(save(image, tmp_path / "a.jpg", quality=95))
    assert large[0].min() > 240
    assert large[1:].max() < 15
    with pytest.raises(
        ImageError, match=r"a\.png is too large, with too many pixels: scale it down"
    ):
        read_image(save(image, tmp_path / "a.png"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # somebody wants no limit
    assert colour(read_image(tmp_path / "a.png")) == RED


def halves(size: int = 64) -> Image.Image:
    """White, its upper half red."""
    image = Image.new("RGB", (size, size), WHITE)
    image.paste(RED, (0, 0, size, size // 2))
    return image


def strange_images(folder: Path) -> list[Path]:
    """Good pictures of whose metadata Pillow warns, or of which it reads none; upside down."""
    image = halves().rotate(180)
    exif = b"Exif\0\0MM\0*" + struct.pack(">IHHHIHH", 8, 9, 274, 3, 1, 1, 0)  # 9 entries, and one
    paths = [
        *(save(image, folder / f"entries{suffix}", exif=exif) for suffix in (".jpg", ".png")),
        *(save(image, folder / f"no{kind}", exif=b"no EXIF") for kind in (".jpg", ".png", ".webp")),
    ]
    tiff = save(image, folder / "value.tif").read_bytes()
    samples = struct.pack("<HHI", 277, 3, 1)
    assert samples in tiff
    (folder / "values.tif").write_bytes(tiff.replace(samples, struct.pack("<HHI", 277, 3, 2)))
    tiff = save(image, folder / "text.tif", software="somebody or other").read_bytes()
    text = tiff.index(struct.pack("<HH", 305, 2))
    beyond = tiff[: text + 8] + struct.pack("<I", len(tiff)) + tiff[text + 12 :]
    (folder / "beyond.tif").write_bytes(beyond)
    png = save(image, folder / "a.png", save_all=True, append_images=[image]).read_bytes()
    place, chunk = png.index(b"acTL"), b"acTL" + bytes(8)  # an animation of no images
    none = png[:place] + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[place + 16 :]
    (folder / "animation.png").write_bytes(none)
    return [*paths, *(folder / name for name in ("values.tif", "beyond.tif", "animation.png"))]


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_metadata_are_no_damage(tmp_path: Path) -> None:
    paths = strange_images(tmp_path)
    for path, image in zip(paths, read_images(paths).images, strict=True):
        assert tuple(image[:, 4, 16].tolist()) == WHITE, path
        assert image[0, 28, 16] > 250, path
        assert image[1:, 28, 16].max() < 10, path


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_an_image_is_turned_although_other_metadata_are_damaged(tmp_path: Path) -> None:
    exif = b"Exif\0\0MM\0*" + struct.pack(">IHHHIHH", 8, 9, 274, 3, 1, 3, 0)  # 9 entries, and one
    for suffix in (".jpg", ".png"):
        seen = read_image(save(halves(), tmp_path / f"a{suffix}", exif=exif))
        assert tuple(seen[:, 4, 16].tolist()) == WHITE
        assert seen[1, 28, 16] < 10


def test_pillow_warns_as_it_likes_and_nothing_of_the_process_changes(tmp_path: Path) -> None:
    paths = strange_images(tmp_path)
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_images(paths)
    assert {Path(warning.filename).parent.name for warning in caught} == {"PIL"}
    after = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))
    assert before == after


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ["TIFF", "PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "PPM"])
def test_whatever_is_damaged_it_is_read_or_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[305] = 6, "somebody or other"
    options: dict[str, Any] = {} if kind in ("BMP", "PPM", "GIF") else {"exif": exif}
    if kind in ("TIFF", "PNG", "MPO", "WEBP", "GIF"):
        options |= {"save_all": True, "append_images": [halves(32).rotate(90)]}
    buffer = io.BytesIO()
    halves(32).save(buffer, kind, **options)
    good, path = buffer.getvalue(), tmp_path / "a"
    random.seed(0)
    refused = 0
    for _ in range(100):
        damaged = bytearray(good)
        for place in random.choices(range(min(len(good), 600)), k=random.choice((1, 4))):
            damaged[place] = random.choice((0, 1, 255, random.randrange(256)))
        path.write_bytes(damaged[: random.choice((len(good), len(good) // 2))])
        try:
            assert read_image(path).shape == (3, 32, 32)
        except ImageError as error:
            assert "\n" not in str(error)  # noqa: PT017
            refused += 1
    assert 5 < refused < 100


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_every_orientation_is_turned_as_pillow_turns_it(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(pixels.repeat(16, 0).repeat(16, 1))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"quality": 95} if suffix in (".jpg", ".webp") else {}
    path = save(image, tmp_path / f"a{suffix}", exif=exif, **options)
    with Image.open(path) as opened:
        turned = ImageOps.exif_transpose(opened).convert("RGB").resize((32, 32))
    seen = torch.from_numpy(np.array(turned)).permute(2, 0, 1)
    assert (read_image(path).int() - seen.int()).abs().float().mean() < 8


def test_orientation_may_stand_in_other_places(tmp_path: Path) -> None:
    xmp, profile = PngImagePlugin.PngInfo(), PngImagePlugin.PngInfo()
    xmp.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="3"/>')
    exif = Image.Exif()
    exif[0x0112] = 3
    content = exif.tobytes()  # as ImageMagick writes it
    profile.add_text("Raw profile type exif", f"\nexif\n{len(content):8}\n{content.hex()}\n")
    long = b"Exif\0\0MM\0*" + struct.pack(">IHHHII", 8, 1, 274, 4, 1, 3) + bytes(4)
    other = b"Exif\0\0MM\0*" + struct.pack(">IHHHIHH", 8, 1, 296, 3, 1, 2, 0) + bytes(4)
    for path in (
        save(halves(), tmp_path / "xmp.png", pnginfo=xmp),
        save(halves(), tmp_path / "beside.png", exif=other, pnginfo=xmp),
        save(halves(), tmp_path / "profile.png", pnginfo=profile),
        save(halves(), tmp_path / "long.jpg", exif=long),
    ):
        assert tuple(read_image(path)[:, 4, 16].tolist()) == WHITE, path


def test_of_several_images_in_a_file_the_first_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in (RED, WHITE)]
    for suffix in (".gif", ".png", ".webp", ".tif", ".mpo"):
        path = tmp_path / f"a{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:])
        image = read_image(path)
        assert image[0].min() > 250
        assert image[1:].max() < 5


def test_a_suffix_may_lie(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("RGB", (40, 40), RED).save(path, format="WEBP", lossless=True)
    assert colour(read_image(path)) == RED


def save_tiff(path: Path, pixels: Any, **tags: int) -> Path:
    """Writes an uncompressed TIFF, its samples one plane after the other if there are several."""
    planes = pixels if pixels.ndim == 3 else pixels[None]
    count, height, width = planes.shape
    numbers = {"photometric": 262, "format": 339}
    bits = pixels.itemsize * 8
    content = planes.tobytes()
    entries = {
        256: [width],
        257: [height],
        258: [bits] * count,
        259: [1],
        262: [2 if count > 1 else 1],
    }
    entries |= {277: [count], 284: [2 if count > 1 else 1]}
    entries |= {
        numbers[name]: [value] * (count if name == "format" else 1) for name, value in tags.items()
    }
    after = 8 + 2 + 12 * (len(entries) + 2) + 4
    offsets = [after + 400 + place * len(content) // count for place in range(count)]
    longs = {273: offsets, 279: [len(content) // count] * count}
    directory, more = b"", b""
    for tag, values in sorted((entries | longs).items()):
        kind = "I" if tag in longs else "H"
        packed = struct.pack(f"<{len(values)}{kind}", *values)
        if len(packed) > 4:
            packed, more = struct.pack("<I", after + len(more)), more + packed
        directory += struct.pack("<HHI", tag, 4 if kind == "I" else 3, len(values))
        directory += packed.ljust(4, b"\0")
    head = b"II*\0" + struct.pack("<IH", 8, len(entries) + 2) + directory + bytes(4)
    path.write_bytes(head + more.ljust(400, b"\0") + content)
    return path


@pytest.mark.parametrize(
    ("dtype", "planes", "tags", "message"),
    [
        (np.uint16, 3, {}, "has planes of 16 bits, which is not read: convert it to 8 bits"),
        (np.uint16, 1, {"photometric": 0}, "has zero for white, which is not read"),
        (np.int8, 1, {"format": 2}, "has signed numbers of 8 bits, which is not read"),
        (np.uint32, 1, {}, "has whole numbers of 32 bits, which is not read"),
    ],
)
def test_a_tiff_that_would_come_out_as_another_picture_is_refused(
    tmp_path: Path, dtype: type, planes: int, tags: dict[str, int], message: str
) -> None:
    pixels: Any = np.arange(planes * 32 * 32).reshape(planes, 32, 32).astype(dtype)
    path = save_tiff(tmp_path / "a.tif", pixels if planes > 1 else pixels[0], **tags)
    with pytest.raises(ImageError, match=message):
        read_image(path)


def test_a_tiff_of_planes_or_with_zero_for_white_is_right_with_8_bits(tmp_path: Path) -> None:
    pixels: Any = np.random.default_rng(0).integers(256, size=(3, 32, 32), dtype=np.uint8)
    path = save_tiff(tmp_path / "a.tif", pixels)
    assert torch.equal(read_image(path), torch.from_numpy(pixels))
    path = save_tiff(tmp_path / "b.tif", pixels[0], photometric=0)
    assert torch.equal(read_image(path)[0], 255 - torch.from_numpy(pixels[0]))


def test_deep_grey_with_transparency_is_refused(tmp_path: Path) -> None:
    levels = Image.fromarray((DEEP * 65535).astype(np.uint16))
    path = save(levels, tmp_path / "a.png", transparency=0)
    with pytest.raises(ImageError, match="grey of more than 8 bits with transparency: convert it"):
        read_image(path)


# The size comes first


@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "PPM", "HEIF"]
)
def test_too_many_pixels_are_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind == "HEIF":
        heif = pytest.importorskip(HEIF_PACKAGE)
    elif kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    path = tmp_path / "a"
    pixels = np.random.default_rng(0).integers(256, size=(300, 300, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    if kind == "HEIF":
        heif.from_pillow(image).save(path)
    else:
        image.save(path, format=kind)
    content = path.read_bytes()
    if kind not in ("WEBP", "AVIF"):  # Pillow needs all of them for the size
        path.write_bytes(content[: len(content) // 2])  # to decode it is an error
        with pytest.raises(ImageError, match="no readable image"):
            read_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 89_999)
    for read in (read_image, lambda path: read_images([path] * 3)):
        with pytest.raises(ImageError, match="a is too large, with too many pixels: scale it down"):
            read(path)


def test_more_rows_than_a_picture_has_are_not_decoded(tmp_path: Path) -> None:
    entries = {256: 1, 257: 16_777_215, 258: 8, 259: 1, 262: 1, 273: 0, 277: 1, 278: 16_777_215}
    entries |= {279: 16_777_215}
    content = struct.pack("<2sHIH", b"II", 42, 8, len(entries))
    content += b"".join(struct.pack("<HHII", tag, 4, 1, n) for tag, n in entries.items()) + bytes(4)
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.tif is too large, with too many pixels"):
        read_image(tmp_path / "a.tif")


# Grey and transparent


def test_grey_that_is_multiplied_by_its_alpha_is_seen_on_white(tmp_path: Path) -> None:
    save(Image.new("LA", (40, 40), (100, 128)), tmp_path / "a.tif")
    content = (tmp_path / "a.tif").read_bytes()
    alpha = struct.pack("<HHIH", 338, 3, 1, 2)
    assert alpha in content
    path = tmp_path / "b.tif"
    path.write_bytes(content.replace(alpha, struct.pack("<HHIH", 338, 3, 1, 1)))
    try:
        Image.open(path).close()
    except UnidentifiedImageError:
        pytest.skip("this Pillow does not open it")
    with Image.open(path) as opened:
        assert opened.mode == "La"
    assert colour(read_image(path))[0] == pytest.approx(100 + 127, abs=1)


# What libtiff finds


def damaged_fax(path: Path, compression: str) -> Path:
    pixels = np.random.default_rng(0).random((64, 64)) > 0.5
    content = bytearray(save(Image.fromarray(pixels), path, compression=compression).read_bytes())
    content[200:240] = bytes([1]) * 40
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt"])
def test_a_damaged_fax_is_refused_by_its_name(
    tmp_path: Path, compression: str, capfd: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(0).random((32, 32)) > 0.5
    good = save(Image.fromarray(pixels), tmp_path / "good.tif", compression=compression)
    path = damaged_fax(tmp_path / "bad.tif", compression)
    with Image.open(path) as opened:
        opened.load()  # Pillow takes it for good, and libtiff prints
    if not capfd.readouterr().err:
        pytest.skip("libtiff prints nothing")
    for _ in range(2):
        assert torch.equal(read_image(good)[0], torch.from_numpy(pixels) * 255)
        with pytest.raises(ImageError, match=r"bad\.tif is no readable image \(its pixels are dam"):
            read_image(path)
    with pytest.raises(ImageError, match="20 of 40 images cannot be read"):
        read_images([good, path] * 20)
    assert capfd.readouterr().err == ""
    with Image.open(path) as opened:
        opened.load()
    assert capfd.readouterr().err  # other programs' pictures are as before


def test_what_libtiff_finds_elsewhere_is_printed_meanwhile(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = damaged_fax(tmp_path / "bad.tif", "group4")

    def load() -> None:
        with Image.open(path) as opened:
            opened.load()

    load()
    if not capfd.readouterr().err:
        pytest.skip("libtiff prints nothing")
    with damage_found() as found:
        thread = threading.Thread(target=load)
        thread.start()
        thread.join()
        assert found == []
        assert capfd.readouterr().err
        load()
        assert set(found) == {"Fax4Decode"}
        assert capfd.readouterr().err == ""


# Words


UNREADABLE = r"is no readable image \(it is damaged, cut off, or of a kind that is not read: save"


@pytest.mark.parametrize(("tag", "value"), [(259, 28163), (262, 9), (259, 5)])
def test_what_pillow_has_no_words_for_is_said_in_words(
    tmp_path: Path, tag: int, value: int
) -> None:
    path = save(Image.new("RGB", (40, 40), RED), tmp_path / "a.tif")
    content = path.read_bytes()
    place = content.index(struct.pack("<HHI", tag, 3, 1)) + 8
    path.write_bytes(content[:place] + struct.pack("<H", value) + content[place + 2 :])
    with pytest.raises(ImageError, match=rf"a\.tif {UNREADABLE}"):
        read_image(path)


@pytest.mark.parametrize("box", [b"iloc", b"pitm", b"ipco", b"iprp"])
def test_damaged_heic_is_said_to_be(tmp_path: Path, box: bytes) -> None:
    heif = pytest.importorskip(HEIF_PACKAGE)
    path = tmp_path / "a.heic"
    heif.from_pillow(Image.new("RGB", (64, 48), RED)).save(path)
    path.write_bytes(path.read_bytes().replace(box, b"zzzz", 1))
    with pytest.raises(ImageError, match=UNREADABLE):
        read_image(path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize(("suffix", "length"), [(".tif", 20), (".webp", 60)])
def test_a_file_that_is_cut_off_early_is_said_to_be(
    tmp_path: Path, suffix: str, length: int
) -> None:
    path = save(Image.new("RGB", (40, 40), RED), tmp_path / f"a{suffix}")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ImageError, match=UNREADABLE):
        read_image(path)


# What is no path


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".webp"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "I;16", "P"])
def test_content_and_images_are_read_as_a_file_is(tmp_path: Path, suffix: str, mode: str) -> None:
    if suffix in (".jpg", ".webp") and mode not in ("RGB", "L"):
        pytest.skip("this format has no such mode")
    pixels = np.random.default_rng(0).integers(256, size=(48, 40, 4), dtype=np.uint8)
    image = Image.fromarray(pixels, "RGBA")
    if mode == "I;16":
        image = Image.fromarray(pixels.astype(np.uint16)[..., 0] * 257)
    elif mode != "RGBA":
        image = image.convert("RGB").convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(image, tmp_path / f"a{suffix}", exif=exif)
    expected = read_image(path)
    assert torch.equal(read_image(path.read_bytes()), expected)
    assert torch.equal(read_image(bytearray(path.read_bytes())), expected)
    with path.open("rb") as file:
        assert torch.equal(read_image(file), expected)
    assert torch.equal(read_image(io.BytesIO(path.read_bytes())), expected)
    with Image.open(io.BytesIO(path.read_bytes())) as opened:
        assert torch.equal(read_image(opened), expected)
        opened.load()
        before = (opened.size, opened.mode, opened.tobytes(), dict(opened.getexif()))
        assert torch.equal(read_image(opened), expected)
        assert (opened.size, opened.mode, opened.tobytes(), dict(opened.getexif())) == before
        assert torch.equal(read_image(opened.copy()), expected)


def test_what_is_no_path_has_the_name_that_it_has(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"^the picture is no readable image \(none of JPEG"):
        read_image(io.BytesIO(b"no image"))
    with path.open("rb") as file, pytest.raises(ImageError, match=r"a\.png is no readable image"):
        read_image(file)
    with pytest.raises(ImageError, match=r"^the picture is no readable image \(it has no pixels\)"):
        read_image(Image.new("RGB", (0, 4)))
    with path.open() as file, pytest.raises(TypeError, match=r"a\.png is open in text mode: open"):
        read_image(file)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="no picture is a ndarray: give a path or bytes"):
        read_image(np.zeros((4, 4, 3), np.uint8))  # type: ignore[arg-type]


def test_an_image_of_pillow_with_too_many_pixels_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = Image.new("RGB", (300, 300), RED)
    assert colour(read_image(image)) == RED
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 89_999)
    with pytest.raises(ImageError, match="the picture is too large, with too many pixels"):
        read_image(image)
