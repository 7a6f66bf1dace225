"""Many pictures, a batch at a time, while somebody computes."""

import contextlib
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cifar_tl.data.pictures.read import THREADS, read_each, read_image, read_images, stream_images
from cifar_tl.errors import ImageError
from cifar_tl.frame import Frame
from tests.data.pictures.test_read import save_deep_colours
from tests.forked import run_program

FRAMES = [Frame(), Frame(24, 30, "bilinear"), Frame(24, fit="pad", padding=(9, 8, 7))]


class Paths(list[Path]):
    """Paths that count how many of them were asked for, each when its file is read."""

    def __init__(self, *paths: Path) -> None:
        super().__init__(paths)
        self.asked = 0

    def __getitem__(self, number: Any) -> Any:
        self.asked += 1
        return super().__getitem__(number)


def readers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if type(thread) is threading.Thread}


@pytest.fixture(autouse=True)
def no_threads_are_left() -> Iterator[None]:
    before = readers()
    yield
    for _ in range(500):  # one that an interrupt kept from being waited for ends by itself
        if readers() <= before:
            break
        time.sleep(0.01)
    assert readers() <= before


@pytest.fixture
def files(tmp_path: Path) -> Paths:
    """Grey of 8 bits, of 12 bits and of floats, colours, and sizes that take different times."""
    random = np.random.default_rng(0)
    paths = Paths()
    for number in range(60):
        height, width = 20 + number % 7 * 60, 30 + number % 5 * 100
        levels: Any = random.integers(256, size=(height, width))
        path = tmp_path / f"{number:02}.{'tif' if number % 4 == 2 else 'png'}"
        values = {
            0: levels.astype(np.uint8),
            1: (levels * 16).astype(np.uint16),
            2: (levels / 255).astype(np.float32),
            3: np.stack([levels] * 3, -1).astype(np.uint8),
        }[number % 4]
        Image.fromarray(values).save(path)
        paths.append(path)
    return paths


@pytest.fixture
def many(tmp_path: Path) -> Paths:
    path = tmp_path / "a.png"
    Image.new("L", (40, 40), 7).save(path)
    return Paths(*[path] * 1000)


@pytest.mark.parametrize("frame", FRAMES)
def test_the_batches_are_the_images_that_are_read_at_once(files: Paths, frame: Frame) -> None:
    found = read_images(files, frame)
    small = read_images(files)
    assert found.white == small.white == {"integers": 4095, "floats": 1}
    for batch_size in (1, 7, 60, 100):
        batches = list(stream_images(files, frame, white=small.white, batch_size=batch_size))
        assert [len(batch) for batch in batches] == [
            len(found.images[start : start + batch_size]) for start in range(0, 60, batch_size)
        ]
        assert all(batch.is_contiguous() for batch in batches)
        assert torch.equal(torch.cat(batches), found.images)


def test_what_was_taken_for_white_decides_and_not_the_pictures_of_a_batch(files: Paths) -> None:
    dark = torch.cat(list(stream_images(files, 32, white={"integers": 65535, "floats": 1})))
    bright = torch.cat(list(stream_images(files, 32, white={"integers": 4095, "floats": 1})))
    assert torch.equal(dark[0::4], bright[0::4])
    assert dark[1::4].max() < 20
    assert bright[1::4].max() > 200


def test_there_may_be_no_pictures() -> None:
    assert list(stream_images([], 32, white={})) == []


@pytest.mark.parametrize("batch_size", [1, 10])
def test_only_a_few_pictures_wait_to_be_taken(many: Paths, batch_size: int) -> None:
    taken = 0
    with contextlib.closing(stream_images(many, 32, white={}, batch_size=batch_size)) as batches:
        for batch in batches:
            taken += len(batch)
            limit = taken + 2 * batch_size + THREADS
            if taken in (batch_size, 10 * batch_size):  # as one that takes its time
                for _ in range(500):
                    if many.asked >= limit - 1:
                        break
                    time.sleep(0.01)
                time.sleep(0.1)
                assert many.asked >= taken + 2 * batch_size  # and they are read ahead
            assert many.asked <= limit
    assert taken == many.asked == 1000


def test_closed_early_it_reads_no_more(many: Paths) -> None:
    before = readers()
    batches = stream_images(many, 32, white={}, batch_size=4)
    next(batches)
    assert readers() > before
    batches.close()
    assert readers() == before
    asked = many.asked
    assert asked < 100
    assert list(batches) == []
    assert many.asked == asked


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_picture_is_named_when_its_turn_comes(files: Paths, damage: str) -> None:
    white = read_images(files).white
    expected = read_images(files).images
    for path in (list(files)[33], list(files)[35]):
        if damage == "cut":
            path.write_bytes(path.read_bytes()[:200])
        else:
            path.unlink()
    batches = stream_images(files, 32, white=white, batch_size=8)
    seen = [next(batches) for _ in range(4)]
    assert torch.equal(torch.cat(seen), expected[:32])
    with pytest.raises(ImageError, match=r"33\.png") as error:
        next(batches)
    assert "\n" not in str(error.value)
    assert "35.png" not in str(error.value)


def test_whatever_goes_wrong_in_a_thread_is_raised(many: Paths) -> None:
    class Few(Paths):
        def __getitem__(self, number: Any) -> Any:
            if number == 300:
                raise MemoryError
            return super().__getitem__(number)

    with pytest.raises(MemoryError):
        list(stream_images(Few(*many), 32, white={}))


@pytest.mark.usefixtures("no_garbage_collection")
@pytest.mark.parametrize("first", [1, 5, 40, 200])
def test_ctrl_c_ends_it_soon(many: Paths, first: int) -> None:
    class Interrupted(Paths):
        def __getitem__(self, number: Any) -> Any:
            if number == first:
                signal.raise_signal(signal.SIGINT)
            return super().__getitem__(number)

    paths = Interrupted(*many)
    with (
        pytest.raises(KeyboardInterrupt),
        contextlib.closing(stream_images(paths, 32, white={})) as batches,
    ):
        list(batches)
    assert paths.asked < 1000


def test_a_program_that_was_interrupted_elsewhere_ends(many: Paths, tmp_path: Path) -> None:
    """Its threads still read, and nobody closed what they read for: they end before Python does."""
    Image.effect_noise((2000, 2000), 50).save(many[0])
    script = (
        "import atexit, threading\n"
        "from cifar_tl.data.pictures.read import stream_images\n"
        "atexit.register(lambda: print(threading.active_count()))\n"
        f"batches = stream_images([{str(many[0])!r}] * 1000, 224, white={{}})\n"
        "next(batches)\n"
        "raise KeyboardInterrupt\n"
    )
    process = run_program("-c", script, cwd=tmp_path)
    assert (process.stdout, process.stderr.splitlines()[-1]) == ("1\n", "KeyboardInterrupt")
    assert process.returncode in (-signal.SIGINT, 130)


def test_each_file_is_read_as_if_alone_and_errors_have_its_place(files: Paths) -> None:
    files[7].write_bytes(b"damaged")
    files[8].unlink()
    save_deep_colours(files[9], np.full((30, 30, 3), 9))  # of 16 bits: alone it has no white
    for white in ({}, {"integers": 4095.0, "floats": 1.0}):
        found = list(read_each(files, white, FRAMES[1]))
        assert len(found) == 60
        for path, image in zip(files, found, strict=True):
            if isinstance(image, torch.Tensor):
                assert torch.equal(image, read_image(path, white, FRAMES[1]))
            else:
                with pytest.raises(ImageError, match=f"^{re.escape(str(image))}$"):
                    read_image(path, white, FRAMES[1])
        assert [isinstance(image, ImageError) for image in found[6:11]] == [
            False,
            *[True] * 3,
            False,
        ]


def test_each_file_waits_until_it_is_wanted(many: Paths) -> None:
    before = readers()
    with contextlib.closing(read_each(many)) as images:
        for taken, _ in enumerate(images, 1):
            assert many.asked <= taken + 64 + THREADS
            if taken == 50:
                break
    assert readers() == before
    assert many.asked < 1000
