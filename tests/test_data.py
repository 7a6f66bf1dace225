import gc
import http.server
import pickle
import random
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import CIFAR10, FakeData

from cifar_tl import data as data_module
from cifar_tl.data import (
    BASE_CLASSES,
    CIFAR10_CLASS_NAMES,
    TRANSFER_CLASSES,
    DataError,
    DownloadError,
    LabeledImages,
    MissingDataError,
    channel_statistics,
    class_subset,
    download_cifar10,
    load_data,
    make_views,
    select_classes,
    split_validation,
    stratified_prefix,
)
from cifar_tl.images import read_image
from cifar_tl.shapes import draw_shapes


class Server(http.server.ThreadingHTTPServer):
    """Serves one archive on loopback, in the manner that the path names."""

    content = b""
    requests = 0
    closing = threading.Event()


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests += 1
        content = self.server.content
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.path == "/whole":
            self.wfile.write(content)
        elif self.path == "/wrong":
            self.wfile.write(bytes(len(content)))
        elif self.path.startswith("/cut/"):
            self.wfile.write(content[: int(self.path.removeprefix("/cut/"))])
        else:
            self.wfile.write(content[: len(content) // 2])
        if self.path == "/hangs":
            self.server.closing.wait()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(archive: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.content = archive
        server.closing = threading.Event()
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/whole")
        yield server
        server.closing.set()
        server.shutdown()
        serving.join()


def serve(manner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    host = CIFAR10.url.split("/")[2]
    monkeypatch.setattr(CIFAR10, "url", f"http://{host}/{manner}")


# The official data


def test_official_reader_gives_what_the_files_hold(
    tmp_path: Path, archive: bytes, small_arrays: tuple[Any, ...]
) -> None:
    (tmp_path / CIFAR10.filename).write_bytes(archive)
    download_cifar10(tmp_path)  # nothing to download: it only extracts
    data = load_data(tmp_path)
    tensors = (*data.train, *data.test)
    for tensor, array in zip(tensors, small_arrays, strict=True):
        assert torch.equal(tensor, torch.from_numpy(array))
    assert (data.name, data.description) == ("cifar10", "CIFAR-10")
    assert data.class_names == tuple(CIFAR10(tmp_path).classes) == CIFAR10_CLASS_NAMES


def test_download_is_whole_and_happens_once(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    with pytest.raises(MissingDataError, match="is not in"):
        load_data(folder)
    download_cifar10(folder)
    assert len(load_data(folder).train.labels) == 200
    download_cifar10(folder)
    assert server.requests == 1
    assert capsys.readouterr() == ("", "")
    shutil.rmtree(folder)
    download_cifar10(folder, progress=True)
    assert "100%" in capsys.readouterr().err


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize(
    ("manner", "error", "message"),
    [
        ("truncated", DataError, r"cifar-10-python\.tar\.gz was incomplete or wrong"),
        ("wrong", DataError, r"cifar-10-python\.tar\.gz was incomplete or wrong"),
        ("missing", DownloadError, r"cannot be downloaded \(.*Not Found.*\): download http"),
        ("hangs", DownloadError, r"cannot be downloaded \(.*timed out"),
    ],
)
def test_failed_download_is_explained_and_the_next_run_recovers(
    tmp_path: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    manner: str,
    error: type[Exception],
    message: str,
) -> None:
    monkeypatch.setattr(data_module, "NETWORK_TIMEOUT", 0.3)
    serve(manner, monkeypatch)
    with pytest.raises(error, match=message) as caught:
        download_cifar10(tmp_path)
    assert str(tmp_path / CIFAR10.filename) in str(caught.value)  # where to put it by hand
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    serve("whole", monkeypatch)
    download_cifar10(tmp_path)
    assert len(load_data(tmp_path).test.labels) == 40
    assert server.requests == 2
    assert socket.getdefaulttimeout() is None
    gc.collect()  # torch 2.6 leaves the connection of a failed download open


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize("cuts", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_downloads_cut_off_anywhere_always_recover(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, cuts: int
) -> None:
    lengths = random.Random(cuts).sample(range(len(server.content)), cuts)
    for length in lengths:
        serve(f"cut/{length}", monkeypatch)
        with pytest.raises(DataError):
            download_cifar10(tmp_path)
        assert not list(tmp_path.iterdir())
        serve("whole", monkeypatch)
        download_cifar10(tmp_path)
        assert len(load_data(tmp_path).test.labels) == 40
        shutil.rmtree(tmp_path)
    gc.collect()


@pytest.mark.usefixtures("archive")
def test_no_network_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"cannot be downloaded .*refused.*by hand and put it"):
        download_cifar10(tmp_path)


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
@pytest.mark.parametrize("damage", ["flipped", "deleted"])
def test_damaged_files_are_extracted_again(
    tmp_path: Path, archive: bytes, name: str, damage: str
) -> None:
    (tmp_path / CIFAR10.filename).write_bytes(archive)
    download_cifar10(tmp_path)
    before = load_data(tmp_path).fingerprint
    path = tmp_path / CIFAR10.base_folder / name
    if damage == "deleted":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(MissingDataError):
        load_data(tmp_path)
    download_cifar10(tmp_path)
    assert load_data(tmp_path).fingerprint == before


@pytest.mark.parametrize("name", ["data_batch_3", "batches.meta", CIFAR10.filename])
@pytest.mark.usefixtures("server")
def test_damaged_file_is_named_when_there_is_no_network(
    tmp_path: Path, archive: bytes, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    download_cifar10(tmp_path)
    (tmp_path / CIFAR10.filename).unlink()
    path = tmp_path / (name if name == CIFAR10.filename else f"{CIFAR10.base_folder}/{name}")
    path.write_bytes(archive[:1000])
    serve("missing", monkeypatch)
    with pytest.raises(DataError, match=f"{path} is damaged .wrong checksum.*: delete it") as error:
        download_cifar10(tmp_path)
    assert not isinstance(error.value, DownloadError)
    serve("whole", monkeypatch)
    download_cifar10(tmp_path)
    load_data(tmp_path)


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.folder,)


def test_damaged_batch_is_never_unpickled(tmp_path: Path, archive: bytes) -> None:
    (tmp_path / CIFAR10.filename).write_bytes(archive)
    download_cifar10(tmp_path)
    (tmp_path / CIFAR10.base_folder / "data_batch_1").write_bytes(
        pickle.dumps(Malicious(tmp_path / "hacked"))
    )
    with pytest.raises(MissingDataError):
        load_data(tmp_path)
    assert not (tmp_path / "hacked").exists()


# .npz files


def save_npz(path: Path, arrays: tuple[Any, ...], **changes: Any) -> Path:
    x_train, y_train, x_test, y_test = arrays
    content = {
        "x_train": x_train.transpose(0, 2, 3, 1),
        "y_train": y_train,
        "x_test": x_test.transpose(0, 2, 3, 1),
        "y_test": y_test,
    }
    for key, change in changes.items():
        content[key] = change(content[key])
    np.savez(path, **{key: value for key, value in content.items() if value is not None})
    return path


def test_npz_is_read(tmp_path: Path, small_arrays: tuple[Any, ...]) -> None:
    data = load_data(save_npz(tmp_path / "mine.npz", small_arrays))
    assert data.name == "mine.npz"
    for tensor, array in zip((*data.train, *data.test), small_arrays, strict=True):
        assert torch.equal(tensor, torch.from_numpy(array))
    # Keras keeps labels in a column, and any integer type will do.
    column = save_npz(
        tmp_path / "other.npz", small_arrays, y_train=lambda y: y[:, None].astype(np.uint8)
    )
    assert load_data(column).fingerprint == data.fingerprint


def test_fingerprint_notices_one_pixel_and_one_label(
    tmp_path: Path, small_arrays: tuple[Any, ...]
) -> None:
    def changed(array: Any) -> Any:
        array = array.copy()
        array.flat[-1] ^= 1
        return array

    paths = [
        save_npz(tmp_path / "0.npz", small_arrays),
        *(
            save_npz(tmp_path / f"{key}.npz", small_arrays, **{key: changed})
            for key in ("x_train", "y_train", "x_test", "y_test")
        ),
    ]
    assert len({load_data(path).fingerprint for path in paths}) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": lambda _: None}, "has no array x_test"),
        ({"x_test": lambda x: x.astype(int)}, "x_test must hold uint8 pixels .*, not int64"),
        ({"x_test": lambda x: x[:, :31]}, r"x_test must have the shape .*, not \(40, 31, 32, 3\)"),
        ({"y_test": lambda y: y[:-1]}, r"y_test must have the shape \(40,\).*, not \(39,\)"),
        ({"x_train": lambda x: x / 255.0}, "x_train must hold uint8 pixels .*, not float64"),
        ({"x_train": lambda x: x.transpose(0, 3, 1, 2)}, r"x_train must have the shape \(N, 32, 3"),
        ({"y_test": lambda y: y.astype(float)}, "y_test must hold integers .*, not float64"),
        ({"y_train": lambda y: y[:-1]}, r"y_train must have the shape \(200,\).*, not \(199,\)"),
        ({"y_train": lambda y: y + 1}, "y_train must hold labels from 0 to 9, not from 1 to 10"),
        ({"y_test": lambda y: y - 1}, "y_test must hold labels from 0 to 9, not from -1 to 8"),
        ({"y_test": lambda y: np.where(y == 7, 8, y)}, "no test image of class 7"),
        ({"y_train": lambda y: np.where(y == 2, 1, y)}, "no training image of class 2"),
        ({"y_train": lambda y: np.sort(y)}, "no training image of class 4: .* shuffle the file"),
        ({"x_train": lambda x: x[:0], "y_train": lambda y: y[:0]}, "no training image of class 0"),
        ({"y_train": lambda y: np.array([{}] * len(y))}, "is no readable .npz archive"),
    ],
)
def test_npz_of_another_kind_is_refused(
    tmp_path: Path, small_arrays: tuple[Any, ...], changes: dict[str, Any], message: str
) -> None:
    path = save_npz(tmp_path / "mine.npz", small_arrays, **changes)
    with pytest.raises(DataError, match=message) as error:
        load_data(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["x_train", "y_train", "x_test", "y_test"])
def test_npz_is_never_unpickled(tmp_path: Path, small_arrays: tuple[Any, ...], key: str) -> None:
    malicious = np.array([Malicious(tmp_path / "hacked")] * 3, dtype=object)
    path = save_npz(tmp_path / "mine.npz", small_arrays, **{key: lambda _: malicious})
    with pytest.raises(DataError, match=r"mine\.npz"):
        _ = load_data(path).test
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("size", [0, 100, 50_000, -1])
def test_damaged_npz_is_refused(tmp_path: Path, small_arrays: tuple[Any, ...], size: int) -> None:
    path = save_npz(tmp_path / "mine.npz", small_arrays)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match=r"mine\.npz is no readable .npz archive"):
        load_data(path)


def test_flipped_byte_in_npz_is_noticed(tmp_path: Path, small_arrays: tuple[Any, ...]) -> None:
    path = save_npz(tmp_path / "mine.npz", small_arrays)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"no readable .npz archive .*CRC"):
        load_data(path)


def test_flipped_bits_in_compressed_npz_are_noticed(
    tmp_path: Path, small_arrays: tuple[Any, ...]
) -> None:
    x_train, y_train, x_test, y_test = small_arrays
    path = tmp_path / "mine.npz"
    np.savez_compressed(
        path,
        x_train=x_train.transpose(0, 2, 3, 1),
        y_train=y_train,
        x_test=x_test.transpose(0, 2, 3, 1),
        y_test=y_test,
    )
    content = path.read_bytes()

    def read() -> list[torch.Tensor]:
        data = load_data(path)
        return [*data.train, *data.test]

    assert all(map(torch.equal, read(), map(torch.from_numpy, small_arrays)))
    noticed = 0
    generator = np.random.default_rng(0)
    for position in generator.integers(len(content), size=50):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        try:  # a few bits, such as those of dates, mean nothing
            assert all(map(torch.equal, read(), map(torch.from_numpy, small_arrays)))
        except DataError:
            noticed += 1
    assert noticed > 45


def test_test_images_are_read_when_they_are_asked_for(
    tmp_path: Path, small_arrays: tuple[Any, ...]
) -> None:
    path = save_npz(tmp_path / "mine.npz", small_arrays)
    data, unread = load_data(path), load_data(path)
    assert data.test is data.test
    save_npz(path, small_arrays, x_test=lambda x: 255 - x)
    assert torch.equal(data.test.images, torch.from_numpy(small_arrays[2]))
    with pytest.raises(
        DataError, match=r"mine\.npz has changed since the training images were read"
    ):
        _ = unread.test
    path.unlink()
    with pytest.raises(DataError, match=r"there is no file .*mine\.npz"):
        _ = unread.test


def test_damage_in_the_test_images_is_noticed(
    tmp_path: Path, small_arrays: tuple[Any, ...]
) -> None:
    path = save_npz(tmp_path / "mine.npz", small_arrays)
    content = bytearray(path.read_bytes())
    content[content.index(b"x_test.npy") + 5_000] ^= 1
    path.write_bytes(content)
    data = load_data(path)
    with pytest.raises(DataError, match=r"mine\.npz is no readable .npz archive .*CRC"):
        _ = data.test


def test_missing_npz_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        load_data(tmp_path / "none.npz")


# Halves, splits, views


def test_halves_have_the_documented_labels_and_sizes() -> None:
    data = load_data("shapes")
    assert data.name == "shapes"
    for classes, labels in ((BASE_CLASSES, range(5)), (TRANSFER_CLASSES, range(5, 10))):
        half = select_classes(data.train, classes)
        train, validation = split_validation(half)
        assert (len(train.labels), len(validation.labels)) == (4000, 1000)
        assert torch.equal(torch.cat([train.images, validation.images]), half.images)
        assert set(train.labels.tolist()) == set(validation.labels.tolist()) == set(labels)
        assert train.images.dtype == torch.uint8
        assert train.labels.dtype == torch.int64
        test = select_classes(data.test, classes)
        assert len(test.labels) == 1000
        assert set(test.labels.tolist()) == set(labels)


def test_cifar10_splits_as_documented() -> None:
    half = LabeledImages(torch.zeros(25_000, 0), torch.arange(25_000))
    train, validation = split_validation(half)
    assert train.labels.tolist() == list(range(20_000))
    assert validation.labels.tolist() == list(range(20_000, 25_000))


def test_stratified_prefix_keeps_the_first_of_each_class() -> None:
    labels = torch.tensor([5, 5, 6, 5, 6, 5, 7, 5, 5, 5, 6, 6])  # seven, four and one of a class
    images = torch.arange(12, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 32, 32)
    half = stratified_prefix(LabeledImages(images, labels), 0.5)
    assert half.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert half.labels.tolist() == [5, 5, 6, 5, 6, 5, 7]
    whole = stratified_prefix(LabeledImages(images, labels), 1)
    assert torch.equal(whole.images, images)
    least = stratified_prefix(LabeledImages(images, labels), 1e-6)
    assert least.labels.tolist() == [5, 6, 7]
    for fraction in (0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            stratified_prefix(LabeledImages(images, labels), fraction)


def test_select_classes_keeps_order_and_pairs() -> None:
    labels = torch.tensor([3, 7, 1, 7, 0])
    examples = LabeledImages(labels.view(5, 1, 1, 1), labels)
    selected = select_classes(examples, [7, 1])
    assert selected.labels.tolist() == selected.images.flatten().tolist() == [7, 1, 7]


def test_views_are_the_image_and_its_mirror_image() -> None:
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
    assert torch.equal(make_views(images, mirror=False), images[None])
    views = make_views(images, mirror=True)
    assert views.shape == (2, 2, 3, 4, 4)
    assert torch.equal(views[0], images)
    assert views[1, 0, 0, 0].tolist() == [3, 2, 1, 0]
    assert views[1, 0, 0, :, 0].tolist() == images[0, 0, :, 3].tolist()


def test_channel_statistics_are_mean_and_standard_deviation() -> None:
    images = torch.from_numpy(draw_shapes(1500, 0)[0])
    mean, std = channel_statistics(images)
    pixels = images.double() / 255
    assert mean.shape == std.shape == (3, 1, 1)
    torch.testing.assert_close(mean.flatten().double(), pixels.mean((0, 2, 3)), atol=1e-7, rtol=0)
    expected = pixels.std((0, 2, 3), correction=0)
    torch.testing.assert_close(std.flatten().double(), expected, atol=1e-7, rtol=0)
    assert (channel_statistics(torch.zeros(4, 3, 32, 32, dtype=torch.uint8))[1] > 0).all()


# class_subset


class Undecodable(Dataset[tuple[int, int]]):
    """Counts how many examples are loaded."""

    def __init__(self, targets: Any) -> None:
        self.targets = targets
        self.loaded = 0

    def __getitem__(self, index: int) -> tuple[int, int]:
        self.loaded += 1
        return index, int(self.targets[index])


@pytest.mark.parametrize("container", [list, torch.tensor, np.array])
def test_class_subset_selects_without_loading(container: Any) -> None:
    dataset = Undecodable(container([4, 9, 5, 9, 0]))
    subset = class_subset(dataset, [9, 5])
    assert isinstance(subset, Dataset)
    assert dataset.loaded == 0
    assert len(subset) == 3
    assert [subset[index] for index in range(3)] == [(1, 9), (2, 5), (3, 9)]
    assert subset.targets == [9, 5, 9]
    assert class_subset(subset, [5])[0] == (2, 5)
    assert class_subset(dataset, torch.tensor([9, 5])).targets == [9, 5, 9]
    with pytest.raises(ValueError, match="no example has the label 7: labels are 0 to 9"):
        class_subset(dataset, [9, 7])


def test_class_subset_feeds_a_data_loader(tmp_path: Path, archive: bytes) -> None:
    (tmp_path / CIFAR10.filename).write_bytes(archive)
    download_cifar10(tmp_path)
    dataset = CIFAR10(tmp_path, transform=lambda image: torch.from_numpy(np.array(image)))
    batches = list(DataLoader(class_subset(dataset, TRANSFER_CLASSES), batch_size=32))
    labels = torch.cat([labels for _, labels in batches])
    assert len(labels) == 100
    assert set(labels.tolist()) == set(range(5, 10))
    assert batches[0][0].shape == (32, 32, 32, 3)


def test_class_subset_of_a_dataset_without_targets_is_refused() -> None:
    with pytest.raises(TypeError, match=r"FakeData has no \.targets"):
        class_subset(FakeData(10), [1])


# Classes of one's own


def own_paths(folder: Path, part: str = "train") -> dict[str, list[Path]]:
    return {path.name: sorted(path.iterdir()) for path in sorted((folder / part).iterdir())}


def add_image(path: Path, colour: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 30), colour).save(path)


def images_of(examples: LabeledImages, label: int) -> torch.Tensor:
    return examples.images[examples.labels == label]


def test_own_classes_are_split_class_by_class_in_file_order(own_classes: Path) -> None:
    data = load_data(own_classes)
    assert (data.name, data.class_names) == ("own", ("Birch", "ash", "cedar tree"))
    assert (data.base_classes, data.new_classes) == (None, range(3))
    train, validation = data.train_and_validation(range(3))
    for label, paths in enumerate(own_paths(own_classes).values()):
        boundary = len(paths) * 4 // 5
        for examples, expected in ((train, paths[:boundary]), (validation, paths[boundary:])):
            # Prepared as predict prepares them.
            images = torch.stack([read_image(path) for path in expected])
            assert torch.equal(images_of(examples, label), images)
    assert len(data.test.labels) == 0
    # The classes take turns: the first images show all of them.
    assert train.labels[:9].tolist() == [0, 1, 2] * 3


def test_own_validation_and_test_images_are_numbered_as_train_numbers_them(
    own_classes: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "own"
    shutil.copytree(own_classes, folder)
    for name, colour in {"Birch": "red", "ash": "green", "cedar tree": "blue"}.items():
        add_image(folder / "val" / name / "a.png", colour)
    add_image(folder / "test" / "cedar tree" / "a.jpg", "white")  # the only class there
    data = load_data(folder)
    train, validation = data.train_and_validation(range(3))
    assert torch.bincount(train.labels).tolist() == [10, 25, 5]
    assert [images_of(validation, label)[0, label].min() for label in (0, 2)] == [255, 255]
    assert images_of(validation, 1)[0, 1].min() == 128
    assert data.test.labels.tolist() == [2]
    assert data.test.images.min() == 255


def test_fingerprint_of_own_classes_tells_of_every_change(
    own_classes: Path, tmp_path: Path
) -> None:
    def fingerprint(change: Callable[[Path], object] = lambda _: None) -> str:
        folder = tmp_path / "own"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(own_classes, folder)
        change(folder)
        return load_data(folder).fingerprint

    def hold_out(folder: Path) -> None:
        for name in own_paths(folder):
            add_image(folder / "val" / name / "a.png", "red")

    changes: list[Callable[[Path], object]] = [
        lambda folder: (folder / "train/ash/00.png").unlink(),
        lambda folder: (folder / "train/ash").rename(folder / "train/aspen"),
        lambda folder: add_image(folder / "train/ash/00.png", "red"),
        lambda folder: add_image(folder / "test/ash/a.png", "red"),
        hold_out,
    ]
    assert fingerprint() == load_data(own_classes).fingerprint
    assert len({fingerprint(), *map(fingerprint, changes)}) == 6


def test_damaged_images_are_all_listed(own_classes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    shutil.copytree(own_classes, folder)
    add_image(folder / "test/ash/good.png", "red")
    names = ("train/ash/03.png", "train/Birch/00.png", "test/ash/x.jpg")
    for name in names:
        (folder / name).write_bytes(b"damaged")
    (folder / "train" / ".ipynb_checkpoints").mkdir()
    for ignored in ("train/ash/notes.txt", "train/ash/._01.jpg", "train/readme"):
        (folder / ignored).write_bytes(b"no image")
    with pytest.raises(DataError, match=r"^3 of 42 images cannot be read") as error:
        load_data(folder)
    for name in names:
        assert str(folder / name) in str(error.value)


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ("train/dust/readme.txt", "every class needs a folder with .*dust"),
        ("train/one/a.png", "class one has no training image"),
        ("val/ash/a.png", "class Birch has no validation image"),
        ("test/oak/a.png", "oak is a class that train does not have"),
    ],
)
def test_folders_with_other_classes_are_explained(
    own_classes: Path, tmp_path: Path, added: str, message: str
) -> None:
    folder = tmp_path / "own"
    shutil.copytree(own_classes, folder)
    add_image((folder / added).with_suffix(".png"), "red")
    (folder / added).with_suffix(".png").rename(folder / added)
    with pytest.raises(DataError, match=message) as error:
        load_data(folder)
    assert "\n" not in str(error.value)


def test_folders_of_other_kinds_are_explained(own_classes: Path, tmp_path: Path) -> None:
    (tmp_path / "empty" / "train").mkdir(parents=True)
    add_image(tmp_path / "one" / "train" / "oak" / "a.png", "red")
    shutil.copytree(own_classes / "train", tmp_path / "classes")
    for name in ("cifar10", "held-out", "loose"):
        shutil.copytree(own_classes, tmp_path / name)
    add_image(tmp_path / "held-out" / "validation" / "ash" / "a.png", "red")
    add_image(tmp_path / "loose" / "test" / "a.png", "red")
    for name, message in {
        "empty": "every class needs a folder with its images",
        "one": "holds only one class",
        "classes": "your own classes belong into .*train, a folder a class",
        "held-out": "validation would be ignored: rename it to val",
        "loose": "test/a.png has no class: move it",
        "cifar10": "a folder cifar10 are of other data: rename it",
    }.items():
        with pytest.raises(DataError, match=message):
            load_data(tmp_path / name)
