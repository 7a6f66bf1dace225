"""Decoded pictures that are kept: which are taken from the file, and which are read again."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cifar_tl.data.pictures import kept, read
from cifar_tl.data.pictures.read import read_images
from cifar_tl.data.source import load_data
from cifar_tl.disk import SEAL_SIZE, write_sealed
from cifar_tl.errors import ImageError, RunWarning
from cifar_tl.frame import CIFAR_FRAME, Frame

FILE = Path("kept/32.pictures")


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Five pictures of all kinds. Files are trusted at once, not after two seconds."""
    monkeypatch.setattr(kept, "SETTLED", 0.0)
    generator = np.random.default_rng(0)
    paths = [Path(name) for name in ("a.png", "b.jpg", "deep.png", "c.webp", "\u00e4.png")]
    for number, path in enumerate(paths):
        pixels = generator.integers(0, 256, (40 + number, 50, 3)).astype(np.uint8)
        image = Image.fromarray(pixels)
        if path.name == "deep.png":
            image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 16)
        with path.open("wb") as file:
            image.save(file, {"jpg": "JPEG"}.get(path.suffix[1:], path.suffix[1:]))
    return paths


def invert() -> None:
    """Inverts the pixels in the file: so one sees in which images they were taken from it."""
    what = read._what_decides(CIFAR_FRAME)
    found = kept._read(FILE, 32, what)
    kept._write(
        FILE, what, {p: each._replace(pixels=255 - each.pixels) for p, each in found.items()}
    )


def taken(paths: list[Path]) -> list[str]:
    """Reads again. Returns the names of those that came from the file."""
    plain, again = read_images(paths), read_images(paths, kept=FILE)
    assert again._replace(images=plain.images, seconds_before=0) == plain
    is_same = [
        bool((one == other).all()) for one, other in zip(again.images, plain.images, strict=True)
    ]
    for number, same in enumerate(is_same):
        assert same or torch.equal(again.images[number], 255 - plain.images[number])
    return [path.name for path, same in zip(paths, is_same, strict=True) if not same]


def test_what_is_kept_is_read_again_only_if_it_has_more_than_8_bits(paths: list[Path]) -> None:
    plain = read_images(paths)
    assert plain.white == {"integers": 4095}
    for _ in range(2):  # read and kept; taken from the file
        found = read_images(paths, kept=FILE)
        assert torch.equal(found.images, plain.images)
        assert found._replace(images=plain.images, seconds_before=0) == plain
    invert()
    assert taken(paths) == ["a.png", "b.jpg", "c.webp", "\u00e4.png"]
    assert taken(paths[::-1]) == ["\u00e4.png", "c.webp", "b.jpg", "a.png"]


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(Path("b.jpg").read_bytes()),
        lambda path: Path("b.jpg").replace(path),
        lambda path: os.utime(path, ns=(10**18, 10**18)),
        lambda path: os.utime(path, ns=(10**19, 4 * 10**18)),
    ],
    ids=["other content", "another file in its place", "another time", "a time to come"],
)
def test_a_file_that_changed_is_read_again(
    paths: list[Path], change: Callable[[Path], object]
) -> None:
    read_images(paths, kept=FILE)
    invert()
    change(paths[0])
    paths.remove(Path("b.jpg"))
    assert taken(paths) == ["c.webp", "\u00e4.png"]
    invert()  # what was read again is kept
    assert "a.png" in taken(paths)


@pytest.mark.skipif(os.name != "posix", reason="there is no time of the change of a file")
def test_a_change_is_noticed_though_size_and_time_of_writing_are_the_same(
    paths: list[Path],
) -> None:
    with Image.open(paths[0]) as image:
        turned = image.rotate(180)
    turned.save(paths[0], "BMP")
    read_images(paths, kept=FILE)
    invert()
    about = paths[0].stat()
    turned.rotate(180).save(paths[0], "BMP")
    os.utime(paths[0], ns=(about.st_atime_ns, about.st_mtime_ns))
    assert paths[0].stat().st_size == about.st_size
    assert "a.png" not in taken(paths)


def test_a_file_that_changed_just_now_is_not_trusted(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "SETTLED", 1000.0)
    read_images(paths, kept=FILE)
    assert not FILE.exists()


def test_names_that_are_no_text_are_kept(paths: list[Path]) -> None:
    try:
        odd = paths[0].rename("\udcff.png")
    except (OSError, UnicodeError):
        pytest.skip("this file system has no such names")
    plain = read_images([odd], kept=FILE)
    invert()
    assert torch.equal(read_images([odd], kept=FILE).images, 255 - plain.images)


def test_other_rules_of_reading_make_other_pixels(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read_images(paths, kept=FILE)
    squashed = Frame(fit="squash")
    assert torch.equal(
        read_images(paths, squashed, kept=FILE).images, read_images(paths, squashed).images
    )
    read_images(paths, kept=FILE)
    invert()
    monkeypatch.setattr(read, "READING_RULES", read.READING_RULES + 1)
    assert taken(paths) == []


@pytest.mark.parametrize("content", [b"", b"no such file", None])
def test_a_damaged_file_is_made_anew(paths: list[Path], content: bytes | None) -> None:
    plain = read_images(paths, kept=FILE)
    whole, names = FILE.read_bytes(), {str(path.absolute()) for path in (*paths[:2], *paths[3:])}
    FILE.write_bytes(whole[:-40] + b"\0" + whole[-39:] if content is None else content)
    assert torch.equal(read_images(paths, kept=FILE).images, plain.images)
    assert kept._read(FILE, 32, read._what_decides(CIFAR_FRAME)).keys() == names


def test_an_error_keeps_what_was_read(paths: list[Path]) -> None:
    Path("broken.png").write_bytes(b"\x89PNG\r\n\x1a\n, but nothing follows")
    with pytest.raises(ImageError, match=r"broken\.png"):
        read_images([*paths, Path("broken.png")], kept=FILE)
    invert()
    assert taken(paths) == ["a.png", "b.jpg", "c.webp", "\u00e4.png"]


def test_an_error_costs_nothing_of_what_was_kept_before(paths: list[Path]) -> None:
    read_images(paths, kept=FILE)
    invert()
    Path("new.png").write_bytes(paths[0].read_bytes())
    Path("broken.png").write_bytes(b"\x89PNG\r\n\x1a\n, but nothing follows")
    with pytest.raises(ImageError, match=r"broken\.png"):
        read_images([Path("new.png"), Path("broken.png")], kept=FILE)
    invert()  # twice: only the new one is still inverted
    plain = read_images([Path("new.png")])
    assert torch.equal(read_images([Path("new.png")], kept=FILE).images, 255 - plain.images)
    assert taken(paths) == []
    assert kept._read(FILE, 32, read._what_decides(CIFAR_FRAME)).keys() == {
        str(path.absolute()) for path in (*paths[:2], *paths[3:], Path("new.png"))
    }
    paths[0].unlink()
    read_images([Path("new.png")], kept=FILE)  # nothing is decoded: nothing is written
    paths[1].rename("moved.jpg")
    read_images([Path("moved.jpg")], kept=FILE)
    names = {Path(p).name for p in kept._read(FILE, 32, read._what_decides(CIFAR_FRAME))}
    assert names == {"moved.jpg", "c.webp", "\u00e4.png", "new.png"}


def test_an_error_drops_no_picture_that_is_out_of_reach(paths: list[Path]) -> None:
    read_images(paths, kept=FILE)
    Path("share").mkdir()
    new, broken = Path("share/new.png"), Path("share/broken.png")
    new.write_bytes(paths[0].read_bytes())
    broken.write_bytes(b"\x89PNG\r\n\x1a\n, but nothing follows")
    for path in paths:
        path.rename(Path("share") / path.name)  # as a share that is not mounted
    with pytest.raises(ImageError, match=r"broken\.png"):
        read_images([new, broken], kept=FILE)
    for path in paths:
        (Path("share") / path.name).rename(path)
    assert kept._read(FILE, 32, read._what_decides(CIFAR_FRAME)).keys() == {
        str(path.absolute()) for path in (*paths[:2], *paths[3:], new)
    }


def test_what_another_process_keeps_meanwhile_stays(paths: list[Path]) -> None:
    what = read._what_decides(CIFAR_FRAME)
    with kept.keeping(FILE, 32, what) as (_, first):
        read_images(paths[1:], kept=FILE)
        path = str(paths[0].absolute())
        pixels = np.zeros((3, 32, 32), np.uint8)
        first[path] = kept.Decoded(kept.state_of(path), "digest", 40, False, pixels)
    assert {Path(path).name for path in kept._read(FILE, 32, what)} == {
        "a.png",
        "b.jpg",
        "c.webp",
        "\u00e4.png",
    }


def test_pictures_that_are_not_kept_have_their_part_of_the_time(paths: list[Path]) -> None:
    start = time.perf_counter()
    read_images(paths, kept=FILE)
    seconds = time.perf_counter() - start
    assert read_images(paths, kept=FILE).seconds_before <= seconds * 4 / 5  # one has 16 bits


def test_what_was_decoded_before_counts_its_time(paths: list[Path]) -> None:
    first = read_images(paths, kept=FILE)
    assert first.seconds_before == 0
    seconds = read_images(paths, kept=FILE).seconds_before
    assert seconds > 0
    assert read_images(paths[:2], kept=FILE).seconds_before == pytest.approx(seconds / 2)
    assert read_images(paths, kept=FILE).seconds_before == seconds


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["pictures"][0].__setitem__(5, "x"),
        lambda content: content["pictures"][0].__setitem__(1, [1]),
        lambda content: content["pictures"].pop(),
        lambda content: content.update(pictures=[[]] * 4),
        lambda content: content.update(pictures=1e300),
        lambda content: content.pop("depends_on"),
    ],
)
def test_a_sealed_file_that_holds_something_else_is_made_anew(
    paths: list[Path], change: Callable[[Any], object]
) -> None:
    plain = read_images(paths, kept=FILE)
    head, _, pixels = FILE.read_bytes().partition(b"\n")
    content = json.loads(head)
    change(content)
    write_sealed(FILE, json.dumps(content).encode() + b"\n" + pixels[:-SEAL_SIZE])
    again = read_images(paths, kept=FILE)
    assert torch.equal(again.images, plain.images)
    assert again.digests == plain.digests


def test_lists_in_lists_are_no_pictures(paths: list[Path]) -> None:
    plain = read_images(paths, kept=FILE)
    write_sealed(FILE, b"[" * 100_000 + b"\n")
    assert torch.equal(read_images(paths, kept=FILE).images, plain.images)


def test_where_nothing_can_be_kept_there_is_a_warning(paths: list[Path]) -> None:
    plain = read_images(paths)
    Path("kept").write_bytes(b"a file")
    with pytest.warns(
        RunWarning, match=r"^decoded pictures are not kept in kept/32\.pictures \(.*\): the next "
    ):
        found = read_images(paths, kept=FILE)
    assert torch.equal(found.images, plain.images)


@pytest.mark.filterwarnings("ignore:classes has no folder train")
def test_data_of_kept_pictures_are_the_same(paths: list[Path]) -> None:
    for name in ("one", "two"):
        Path(f"classes/{name}").mkdir(parents=True)
        for number, path in enumerate(paths[:2] + paths[3:]):
            with Image.open(path) as image:
                rotated = image.rotate(90 * ["one", "two"].index(name))
            rotated.save(f"classes/{name}/{number}.png")
    plain = load_data("classes")
    for _ in range(2):
        found = load_data("classes", picture_cache="cache")
        assert found.fingerprint == plain.fingerprint
        assert torch.equal(found.train.images, plain.train.images)
        assert found.shorter_side == plain.shorter_side
        assert found.software == plain.software
    assert [path.name for path in Path("cache").iterdir()] == ["32-crop.pictures"]
