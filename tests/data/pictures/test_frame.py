import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.models import get_model_weights
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from cifar_tl.data.examples import SIZE
from cifar_tl.data.pictures.read import read_image, read_images
from cifar_tl.frame import Frame, fill, scale

RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)


def picture(width: int, height: int) -> Image.Image:
    """A picture in which every pixel and every colour differ from their neighbours."""
    y, x = np.mgrid[:height, :width]
    colours = [x * y * 7 % 256, (x * x + y) % 256, (x * 3 + y * y) % 256]
    return Image.fromarray(np.stack(colours, -1).astype(np.uint8))


def photo(width: int, height: int) -> Image.Image:
    """A picture of which as much is smooth, fine and sharp as of a photo."""
    y, x = np.mgrid[:height, :width]
    smooth = [x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)]
    pixels = np.stack(smooth, -1) // 2 + np.random.default_rng(0).integers(
        -9, 9, (height, width, 1)
    )
    pixels[height // 4 : height // 2, width // 4 : width // 2] += 110
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def save(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def pixels_of(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


# The network of this package: what it has always seen


def test_the_default_bytes_are_those_of_the_version_before_frames(tmp_path: Path) -> None:
    image = picture(110, 75)
    transparent = image.copy()
    transparent.putalpha(image.getchannel(0))
    grey: Any = np.array(image.getchannel(1)).astype(np.uint16) * 257
    paths = [
        *(save(image, tmp_path / name) for name in ("a.png", "b.bmp", "c.tif")),
        save(image.rotate(90, expand=True), tmp_path / "e.png"),
        save(transparent, tmp_path / "f.png"),
        save(Image.fromarray(grey), tmp_path / "h.png"),
        save(image.crop((0, 0, 1, 75)), tmp_path / "i.png"),
        save(image, tmp_path / "k.png", exif=exif(6)),
    ]
    digests = [
        hashlib.sha256(image.numpy()).hexdigest()[:16] for image in read_images(paths).images
    ]
    assert digests == [
        *["a4956448dd8d91e1"] * 3,
        *("a8d38864acce8d28", "2490ebfda4457827", "443ae933766f664d"),
        *("4cd1a80a9b5b3be3", "e8ef0903f47e48d3"),
    ]


@pytest.mark.parametrize("size", [(110, 75), (75, 110), (9, 5), (1, 300), (1200, 700)])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_the_default_is_pillows_fit(tmp_path: Path, suffix: str, size: tuple[int, int]) -> None:
    path = save(photo(*size), tmp_path / f"a{suffix}")  # the largest JPEG is decoded smaller
    with Image.open(path) as opened:
        opened.draft("RGB", (256, 256))
        expected = pixels_of(ImageOps.fit(opened, (32, 32), Image.Resampling.BICUBIC))
    for image in (read_image(path), read_image(path, frame=32), read_images([path]).images[0]):
        assert torch.equal(image, expected)
    assert Frame().size == SIZE


# Other networks: what was published with their weights

PUBLISHED = [
    ("resnet18", "IMAGENET1K_V1"),
    ("efficientnet_b3", "IMAGENET1K_V1"),
    ("efficientnet_v2_l", "IMAGENET1K_V1"),
    ("vit_b_16", "IMAGENET1K_SWAG_E2E_V1"),
    ("vit_b_16", "IMAGENET1K_SWAG_LINEAR_V1"),
    ("swin_v2_t", "IMAGENET1K_V1"),
    ("inception_v3", "IMAGENET1K_V1"),
]


def published(model: str, weights: str) -> tuple[Any, Frame]:
    """The transform that torchvision publishes, and its frame."""
    transform: Any = get_model_weights(model)[weights].transforms()
    (size,), (resize,) = transform.crop_size, transform.resize_size
    return transform, Frame(size, resize, transform.interpolation.value)


def normalized(image: torch.Tensor, transform: Any) -> torch.Tensor:
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (transform.mean, transform.std))
    return (image / 255 - mean) / std


def seen_by_torchvision(path: Path, transform: Any) -> torch.Tensor:
    with Image.open(path) as opened:
        seen: torch.Tensor = transform(ImageOps.exif_transpose(opened).convert("RGB"))
    return seen


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Pictures that are decoded whole."""
    folder = tmp_path_factory.mktemp("pictures")
    shapes = [(500, 333), (301, 407), (900, 130), (61, 700), (9, 5), (1, 1), (256, 256), (224, 224)]
    return [
        *(save(picture(*shape), folder / f"{shape}.png") for shape in shapes),
        *(save(photo(501, 380), folder / f"{turn}.jpg", exif=exif(turn)) for turn in (3, 6, 8)),
        save(photo(400, 300).quantize(64), folder / "palette.png"),
        save(photo(400, 300).convert("L"), folder / "grey.png"),
    ]


@pytest.mark.parametrize(("model", "weights"), PUBLISHED)
def test_a_network_sees_what_was_published_with_its_weights(
    files: list[Path], model: str, weights: str
) -> None:
    transform, frame = published(model, weights)
    for path, image in zip(files, read_images(files, frame).images, strict=True):
        expected = seen_by_torchvision(path, transform)
        assert image.shape == expected.shape
        difference = (normalized(image, transform) - expected).abs().max()
        assert difference < 2e-6, path.name  # a level of colour is 0.017


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture that is decoded smaller than it is."""
    return save(photo(1801, 1301), tmp_path_factory.mktemp("large") / "a.jpg", quality=90)


@pytest.mark.parametrize(("model", "weights"), PUBLISHED[:2])
def test_a_large_jpeg_is_decoded_smaller_and_looks_the_same(
    large: Path, model: str, weights: str
) -> None:
    """It is not the same: it is half a level of 255 away, and at sharp edges up to forty."""
    transform, frame = published(model, weights)
    seen = normalized(read_image(large, frame=frame), transform)
    levels = (seen - seen_by_torchvision(large, transform)).abs() * 0.229 * 255
    assert 0 < levels.mean() < 0.5


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_any_size_is_cropped_as_torchvision_crops_it(seed: int, interpolation: Any) -> None:
    """With borders, too: where the crop is larger than the picture."""
    random = np.random.default_rng(seed)
    for _ in range(40):
        width, height, size, resize = map(int, random.integers(1, 70, 4))
        height = height if random.random() < 0.8 else width
        image = picture(width, height)
        frame = Frame(size, resize, interpolation, padding=RED)  # which is for pad alone
        mode = InterpolationMode(interpolation)
        expected = Compose([Resize(resize, mode), CenterCrop(size)])(image)
        seen = fill(np.array(scale(image, frame)), frame)
        assert np.array_equal(seen, np.array(expected)), (width, height, size, resize)


@pytest.mark.parametrize(
    "frame", [Frame(224, 256), Frame(64), Frame(48, fit="squash"), Frame(48, fit="pad")]
)
@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (2, 30_001), (1, 200_000)])
def test_a_very_long_picture_is_read(tmp_path: Path, frame: Frame, size: tuple[int, int]) -> None:
    """Scaled to a shorter side of 256 pixels before it is cropped, the last would have 13 GB."""
    path = save(Image.new("RGB", size, RED), tmp_path / "a.png")
    image = read_image(path, frame=frame)
    assert image.shape == (3, frame.size, frame.size)
    is_red = (image == torch.tensor(RED).view(3, 1, 1)).all(0)
    assert is_red.sum() == (frame.size if frame.fit == "pad" else frame.size**2)


def test_the_middle_of_a_very_long_picture_is_where_torchvision_sees_it() -> None:
    image, frame = photo(3001, 20), Frame(64, 72)
    expected = np.array(Compose([Resize(72), CenterCrop(64)])(image)).astype(int)
    seen = np.array(scale(image, dataclasses.replace(frame, interpolation="bilinear")))
    assert np.abs(seen - expected).mean() < 1
    assert np.abs(seen[:, 4:] - expected[:, :-4]).mean() > 5  # a pixel of the file beside it


# All of a picture


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_squash_shows_all_of_a_picture(tmp_path: Path, interpolation: Any) -> None:
    image = photo(120, 50)
    path = save(image, tmp_path / "a.png")
    seen = read_image(path, frame=Frame(48, interpolation=interpolation, fit="squash"))
    expected = image.resize((48, 48), Image.Resampling[interpolation.upper()])
    assert torch.equal(seen, pixels_of(expected))


@pytest.mark.parametrize(
    ("size", "place"),  # left, top, width, height of the picture in 64 pixels
    [
        ((200, 100), (0, 16, 64, 32)),
        ((100, 200), (16, 0, 32, 64)),
        ((100, 33), (0, 21, 64, 21)),  # an odd rest: one more below
        ((33, 100), (21, 0, 21, 64)),
        ((8, 6), (0, 8, 64, 48)),  # smaller: it is scaled up
        ((500, 1), (0, 31, 64, 1)),
        ((1, 500), (31, 0, 1, 64)),
        ((90, 90), (0, 0, 64, 64)),
    ],
)
def test_pad_shows_all_of_a_picture_in_its_shape_and_in_the_middle(
    tmp_path: Path, size: tuple[int, int], place: tuple[int, ...]
) -> None:
    image, padding = photo(*size), (10, 20, 30)
    left, top, width, height = place
    expected = Image.new("RGB", (64, 64), padding)
    expected.paste(image.resize((width, height), Image.Resampling.BICUBIC), (left, top))
    path = save(image, tmp_path / "a.png")
    assert torch.equal(
        read_image(path, frame=Frame(64, fit="pad", padding=padding)), pixels_of(expected)
    )


def test_a_large_jpeg_that_is_padded_or_squashed_looks_the_same(tmp_path: Path) -> None:
    image = photo(2000, 800)
    large, whole = save(image, tmp_path / "a.jpg", quality=95), save(image, tmp_path / "a.png")
    for frame in (Frame(96, fit="pad"), Frame(96, fit="squash"), Frame(160, 200)):
        difference = read_image(large, frame=frame).int() - read_image(whole, frame=frame).int()
        assert difference.abs().float().mean() < 1


def test_borders_have_their_colour_around_every_kind_of_picture(tmp_path: Path) -> None:
    transparent = Image.new("RGBA", (60, 30), (*RED, 0))
    transparent.paste((*GREEN, 255), (0, 0, 30, 30))
    deep: Any = np.full((30, 60), 40_000, np.uint16)
    floats: Any = np.full((30, 60), 0.5, np.float32)
    turned = Image.new("RGB", (30, 60), RED)
    palette = Image.new("P", (60, 30), 1)
    palette.putpalette([*WHITE, *RED])
    inside = {
        save(transparent, tmp_path / "transparent.png"): [GREEN, WHITE],
        save(palette, tmp_path / "palette.gif"): [RED],
        save(palette, tmp_path / "transparent.gif", transparency=1): [WHITE],
        save(turned, tmp_path / "turned.png", exif=exif(6)): [RED],
        save(Image.fromarray(deep), tmp_path / "deep.png"): [(156,) * 3],  # 40000 / 65535 * 255
        save(Image.fromarray(floats), tmp_path / "floats.tif"): [(128,) * 3],
        save(Image.new("L", (60, 30), 77), tmp_path / "grey.png"): [(77,) * 3],
    }
    frame = Frame(20, fit="pad", padding=(124, 116, 104))
    images = read_images(list(inside), frame, white={"integers": 65535, "floats": 1}).images
    for (path, colours), image in zip(inside.items(), images, strict=True):
        assert torch.equal(read_image(path, frame=frame), image), path
        found = image.permute(1, 2, 0)
        borders = torch.cat([found[:5], found[15:]])
        assert (borders == torch.tensor(frame.padding)).all(), path
        assert tuple(found[10, 2].tolist()) == colours[0], path
        assert tuple(found[10, 17].tolist()) == colours[-1], path


def test_deep_grey_is_scaled_and_cropped_as_its_copy_of_8_bits_is(tmp_path: Path) -> None:
    grey = photo(301, 200).convert("L")
    deep: Any = np.array(grey).astype(np.uint16) * 257
    paths = [save(grey, tmp_path / "a.png"), save(Image.fromarray(deep), tmp_path / "b.png")]
    for frame in (
        *(Frame(size, resize) for size, resize in ((64, None), (64, 72), (64, 50))),
        *(Frame(64, fit="pad", padding=RED), Frame(64, fit="squash"), Frame(64, 80, "lanczos")),
    ):
        plain, other = read_images(paths, frame, white={"integers": 65535}).images.int()
        assert (plain - other).abs().max() <= 2  # rounded once, and not after each direction


# What a frame is


def test_a_frame_is_the_same_after_json_and_can_be_a_key() -> None:
    frame = Frame(224, None, "lanczos", "pad", (1, 2, 3))
    again = Frame(**json.loads(json.dumps(dataclasses.asdict(frame))))
    assert again == frame
    assert {frame: 1}[again] == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 0}, "size is a number of pixels from 1, not 0"),
        ({"resize": 0}, "resize is None or a number of pixels from 1, not 0"),
        ({"interpolation": "box"}, "interpolation is one of nearest, bilinear, bicubic, lanczos"),
        ({"fit": "stretch"}, "fit is one of crop, squash, pad, not 'stretch'"),
        ({"fit": "pad", "resize": 256}, "resize is for fit='crop' alone: set it to None for 'pad'"),
        ({"padding": (0, 0)}, "padding is three numbers from 0 to 255"),
        ({"padding": (0, 0, 256)}, "padding is three numbers from 0 to 255"),
        ({"padding": (0.5, 0, 0)}, "padding is three numbers from 0 to 255"),
    ],
)
def test_what_is_no_frame_is_refused_in_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Frame(**values)
    assert "\n" not in str(error.value)
