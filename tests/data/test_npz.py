import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cifar_tl.command import evaluate, train
from cifar_tl.data.classes import CIFAR10_CLASS_NAMES
from cifar_tl.data.pictures.read import read_image
from cifar_tl.data.source import load_data
from cifar_tl.errors import DataError, DataWarning
from cifar_tl.experiment.frozen import pictures_of
from cifar_tl.frame import Fit, Frame, cifar_frame
from tests.conftest import Malicious


def save_npz(path: Path, arrays: tuple[Any, ...], **changes: Any) -> Path:
    x_train, y_train, x_test, y_test = arrays
    content = {
        "x_train": x_train.transpose(0, 2, 3, 1),
        "y_train": y_train,
        "x_test": x_test.transpose(0, 2, 3, 1),
        "y_test": y_test,
    }
    for key, change in changes.items():
        content[key] = change(content.get(key))
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


def test_fingerprints_stay_so_that_runs_go_on(tmp_path: Path) -> None:
    random, labels = np.random.default_rng(0), np.arange(240) % 10
    images = random.integers(256, size=(240, 3, 32, 32), dtype=np.uint8)
    arrays = (images[:200], labels[:200], images[200:], labels[200:])
    held_out = {
        "x_val": lambda _: images[100:200].transpose(0, 2, 3, 1),
        "y_val": lambda _: labels[100:200],
    }
    fingerprints = {
        "02cd5ce41b5c4ed40cf58565be72a17075414b7c340504a5ac5a52f2f8cd95f1": {},
        "4f39aa746c0cefb0fcacc27b2b063393f023118584f634357166f47e09bd538b": held_out,
    }
    for fingerprint, added in fingerprints.items():
        data = load_data(save_npz(tmp_path / "a.npz", arrays, **added))
        assert data.fingerprint == fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": lambda _: None}, "has no array x_test"),
        ({"x_test": lambda x: x.astype(int)}, "x_test must hold uint8 pixels .*, not int64"),
        ({"x_test": lambda x: x[:, :31]}, r"the same shape, not \(32, 32, 3\) and \(31, 32, 3\)"),
        ({"y_test": lambda y: y[:-1]}, r"y_test must have the shape \(40,\).*, not \(39,\)"),
        ({"x_train": lambda x: x / 255.0}, "x_train must hold uint8 pixels .*, not float64"),
        (
            {"x_train": lambda x: x.transpose(0, 3, 1, 2)},
            r"x_train must have the shape \(N, height",
        ),
        ({"y_test": lambda y: y.astype(float)}, "y_test must hold integers .*, not float64"),
        ({"y_train": lambda y: y > 4}, "y_train must hold integers .*, not bool"),
        ({"y_train": lambda y: np.eye(10, dtype=int)[y]}, r"y_train.argmax\(axis=1\) gives that"),
        ({"y_train": lambda y: y[:-1]}, r"y_train must have the shape \(200,\).*, not \(199,\)"),
        ({"y_train": lambda y: y + 1}, "y_train must hold labels from 0 to 9, not from 1 to 10"),
        ({"y_test": lambda y: y - 1}, "y_test must hold labels from 0 to 9, not from -1 to 8"),
        ({"y_test": lambda y: np.where(y == 7, 8, y)}, "no test image of class 7"),
        ({"y_train": lambda y: np.where(y == 2, 1, y)}, "no training image of class 2"),
        ({"y_train": lambda y: np.sort(y)}, "no training image of class 4: .* shuffle the file"),
        ({"x_train": lambda x: x[:0], "y_train": lambda y: y[:0]}, "no training image of class 0"),
        ({"y_train": lambda _: np.array([None] * 7)}, "y_train must hold integers .* Python"),
        ({"x_train": lambda _: np.array([None] * 7)}, "x_train must hold uint8 .* Python objects"),
        ({"x_val": lambda _: np.zeros((9, 32, 32, 3), np.uint8)}, "has no array y_val: add it"),
        (
            {"class_names": lambda _: np.array(list("abc"))},
            "y_train must hold labels from 0 to 2, not from 0 to 9: .* all classes in class_names",
        ),
        ({"class_names": lambda _: np.array([None] * 10)}, "must hold strings, .*not Python obj"),
        ({"class_names": lambda _: np.arange(10)}, "class_names must hold strings, .*, not int64"),
        ({"class_names": lambda _: np.array([["a"] * 10])}, r"list, not of shape \(1, 10\)"),
        ({"class_names": lambda _: np.array("a")}, r"class_names must be .*, not of shape \(\)"),
        ({"class_names": lambda _: np.array(["a"] * 10)}, "class_names has a name twice"),
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
        load_data(path)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("size", [0, 100, 50_000, -1])
def test_damaged_npz_is_refused(tmp_path: Path, small_arrays: tuple[Any, ...], size: int) -> None:
    path = save_npz(tmp_path / "mine.npz", small_arrays)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match=r"mine\.npz is no readable .npz archive"):
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


def test_damage_in_the_test_images_is_noticed_before_anything_is_trained(
    tmp_path: Path, small_arrays: tuple[Any, ...]
) -> None:
    path = save_npz(tmp_path / "mine.npz", small_arrays)
    content = bytearray(path.read_bytes())
    content[content.index(b"x_test.npy") + 5_000] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"mine\.npz is no readable .npz archive .*CRC"):
        load_data(path)


@pytest.mark.parametrize("rows", [10**12, 199, 201])
@pytest.mark.parametrize("name", ["x_train", "y_train", "class_names"])
def test_an_array_that_is_not_as_long_as_it_says_takes_no_memory(
    tmp_path: Path, small_arrays: tuple[Any, ...], name: str, rows: int
) -> None:
    names = np.array([f"{number:03}" for number in range(200)])  # as many as images
    path = save_npz(tmp_path / "good.npz", small_arrays, class_names=lambda _: names)
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    start, content = members[f"{name}.npy"].split(b"(200,")
    length = f"({rows},".encode()
    head = start + length + content  # numpy pads with spaces
    members[f"{name}.npy"] = head.replace(b" " * (len(length) - 5) + b"\n", b"\n", 1)
    with zipfile.ZipFile(tmp_path / "lies.npz", "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    with pytest.raises(
        DataError, match=rf"lies\.npz .* \({name} is shorter or longer than it says"
    ):
        load_data(tmp_path / "lies.npz")


def test_missing_npz_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        load_data(tmp_path / "none.npz")


def test_suffix_counts_in_any_case(tmp_path: Path, small_arrays: tuple[Any, ...]) -> None:
    path = save_npz(tmp_path / "data.npz", small_arrays).rename(tmp_path / "DATA.NPZ")
    assert (load_data(path).name, len(load_data(str(path)).test.labels)) == ("DATA.NPZ", 40)


def test_arrays_that_are_not_used_are_named(tmp_path: Path, small_arrays: tuple[Any, ...]) -> None:
    path = save_npz(tmp_path / "mine.npz", small_arrays, weights=lambda _: np.ones(3), z=str)
    line = f"{path}: arrays that are not used: weights, z"
    with pytest.warns(DataWarning, match=re.escape(line)):
        assert load_data(path).notes == (line,)


@pytest.mark.parametrize("dtype", [str, bytes])
def test_class_names_are_used_and_then_nothing_is_mirrored(
    tmp_path: Path, small_arrays: tuple[Any, ...], dtype: type
) -> None:
    names = tuple(f"sign {letter}" for letter in "abcdefghij")
    plain = load_data(save_npz(tmp_path / "a.npz", small_arrays))
    path = save_npz(tmp_path / "b.npz", small_arrays, class_names=lambda _: np.array(names, dtype))
    named = load_data(path)
    assert (plain.class_names, plain.mirror) == (CIFAR10_CLASS_NAMES, True)
    assert (named.class_names, named.mirror) == (names, False)
    assert named.notes == ()


def test_validation_images_of_its_own_are_used(
    tmp_path: Path, small_arrays: tuple[Any, ...]
) -> None:
    _, y_train, x_test, y_test = small_arrays
    held_out = {
        "x_val": lambda _: 255 - x_test.transpose(0, 2, 3, 1),
        "y_val": lambda _: y_test[:, None],
    }
    plain = load_data(save_npz(tmp_path / "a.npz", small_arrays))
    data = load_data(save_npz(tmp_path / "b.npz", small_arrays, **held_out))
    assert data.fingerprint != plain.fingerprint
    train, validation = data.train_and_validation(range(5, 10))
    assert torch.equal(train.labels, torch.from_numpy(y_train[y_train > 4]))
    assert torch.equal(validation.labels, torch.from_numpy(y_test[y_test > 4]))
    assert torch.equal(validation.images, torch.from_numpy(255 - x_test[y_test > 4]))
    changed = held_out | {"y_val": lambda _: y_test[::-1]}
    assert load_data(save_npz(tmp_path / "c.npz", small_arrays, **changed)).fingerprint not in (
        plain.fingerprint,
        data.fingerprint,
    )
    missing = held_out | {"y_val": lambda _: np.where(y_test == 7, 8, y_test)}
    with pytest.raises(DataError, match="no validation image of class 7: every class must be in"):
        load_data(save_npz(tmp_path / "d.npz", small_arrays, **missing))


def drawn(size: tuple[int, ...], classes: int, layout: str = "keras") -> dict[str, Any]:
    """Makes the arrays of a file with images of a size: 20 training images of each class."""
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for part, rows in (("train", 20), ("val", 3), ("test", 3)):
        images = random.integers(256, size=(rows * classes, *size), dtype=np.uint8)
        labels = np.arange(rows * classes) % classes
        if layout == "medmnist":
            arrays |= {f"{part}_images": images, f"{part}_labels": labels[:, None]}
        elif part != "val":
            arrays |= {f"x_{part}": images, f"y_{part}": labels}
    return arrays


@pytest.mark.parametrize(
    ("size", "fit"),
    [
        *(((28, 28), "crop"), ((28, 28, 1), "pad"), ((64, 64, 3), "squash"), ((32, 32), "crop")),
        *(((20, 33, 3), "crop"), ((20, 33, 3), "squash"), ((20, 33, 3), "pad")),
    ],
)
def test_images_of_any_size_are_seen_as_files_are(
    tmp_path: Path, size: tuple[int, ...], fit: Fit
) -> None:
    arrays = drawn(size, 10)
    np.savez(tmp_path / "a.npz", **arrays)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        data = load_data(tmp_path / "a.npz", fit=fit)
    line = (
        f"a.npz: images of {size[0]}x{size[1]} pixels are scaled to 32x32, and for a pretrained "
        "network to its own size"
    )
    assert [str(w.message).partition(f"{tmp_path}/")[2] for w in warned] == (
        [] if size[:2] == (32, 32) else [line]
    )
    assert (data.class_names, data.mirror) == (tuple("0123456789"), False)
    assert data.new_classes == (5, 6, 7, 8, 9)
    for array, image in zip(arrays["x_train"][:20], data.train.images, strict=False):
        Image.fromarray(array.squeeze()).save(tmp_path / "a.png")
        assert torch.equal(image, read_image(tmp_path / "a.png", frame=cifar_frame(fit)))


@pytest.mark.parametrize(("size", "classes"), [((28, 28), 9), ((28, 28, 3), 4), ((64, 64), 11)])
@pytest.mark.filterwarnings("ignore::cifar_tl.errors.DataWarning")
def test_the_layout_of_medmnist_is_read(
    tmp_path: Path, size: tuple[int, ...], classes: int
) -> None:
    arrays = drawn(size, classes, "medmnist")
    np.savez(tmp_path / "a.npz", **arrays)
    data = load_data(tmp_path / "a.npz")
    assert data.class_names == tuple(map(str, range(classes)))
    assert data.validation is not None
    parts = {"train": data.train, "val": data.validation, "test": data.test}
    for part, (images, labels) in parts.items():
        assert images.shape == (len(labels), 3, 32, 32)
        assert labels.tolist() == arrays[f"{part}_labels"][:, 0].tolist()
    (scaled, halves) = data.notes
    assert "are scaled to 32x32" in scaled
    assert f"has {classes} classes: base learns 0" in halves
    assert data.base_classes == tuple(range(classes // 2))
    arrays["val_images"][0, 0, 0] ^= 1
    np.savez(tmp_path / "b.npz", **arrays)
    assert load_data(tmp_path / "b.npz").fingerprint != data.fingerprint


@pytest.mark.filterwarnings("ignore::cifar_tl.errors.DataWarning")
def test_two_classes_are_learned_from_a_base_of_other_data(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From the beginning to the end: there are no halves."""
    np.savez("a.npz", **drawn((28, 28), 2))
    data = load_data("a.npz")
    assert data.own_classes
    assert data.notes[-1] == "a.npz has 2 classes: all are new, and the base model is of other data"
    assert train.main(["--data", "a.npz", "--epochs", "1"]) == 0
    assert "from cifar10, 1 epoch" in capsys.readouterr().out
    stages = {path.parent.name for path in Path("runs/a.npz").glob("*/model.pt")}
    assert stages == {"transfer", "finetune", "scratch"}
    model = Path("runs/a.npz/transfer/model.pt")
    assert evaluate.main([str(model), "--data", "a.npz"]) == 0
    assert "on 6 test images of a.npz" in capsys.readouterr().out
    assert load_data("a.npz", base_classes="all").new_classes == ()


@pytest.mark.filterwarnings("ignore::cifar_tl.errors.DataWarning")
def test_all_classes_may_be_new_ones(capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("a.npz", **drawn((28, 28), 4))
    command = ["--data", "a.npz", "--new-classes", "all", "--stage", "transfer", "--epochs", "1"]
    assert train.main(command) == 0
    assert "classes 0-3, from cifar10, 1 epoch" in capsys.readouterr().out
    assert Path("runs/a.npz-own/transfer/model.pt").exists()


@pytest.mark.parametrize(
    ("size", "fit"),
    [((80, 64, 3), "crop"), ((28, 28), "crop"), ((50, 40, 1), "squash"), ((50, 40, 1), "pad")],
)
@pytest.mark.filterwarnings("ignore::cifar_tl.errors.DataWarning")
def test_a_network_of_another_size_sees_all_pixels(
    tmp_path: Path, size: tuple[int, ...], fit: Fit
) -> None:
    """They are not scaled to 32 first."""
    arrays = drawn(size, 4, "medmnist")
    np.savez(tmp_path / "a.npz", **arrays)
    data = load_data(tmp_path / "a.npz", fit=fit)
    frame = Frame(40, 44 if fit == "crop" else None, fit=fit)
    for part, pictures in zip(("train", "val", "test"), pictures_of(data, (1, 3)), strict=True):
        rows = np.isin(arrays[f"{part}_labels"][:, 0], (1, 3)).nonzero()[0]
        seen = torch.cat(list(pictures.stream(range(len(rows)), frame)))
        assert len(seen) == len(rows) > 0
        for row, image in zip(rows, seen, strict=True):
            Image.fromarray(arrays[f"{part}_images"][row].squeeze()).save(tmp_path / "a.png")
            assert torch.equal(image, read_image(tmp_path / "a.png", frame=frame))


@pytest.mark.filterwarnings("ignore::cifar_tl.errors.DataWarning")
def test_colour_images_of_the_size_of_cifar10_may_have_any_number_of_classes(
    tmp_path: Path,
) -> None:
    for classes in (4, 9, 11, 43):
        np.savez(tmp_path / "a.npz", **drawn((32, 32, 3), classes))
        assert load_data(tmp_path / "a.npz").class_names == tuple(map(str, range(classes)))
    np.savez(tmp_path / "a.npz", **drawn((32, 32, 3), 10))
    assert load_data(tmp_path / "a.npz").class_names == CIFAR10_CLASS_NAMES


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"test_images": np.zeros((30, 28, 28, 3), np.uint8)},
            r"the same shape, not \(28, 28\) and \(28, 28, 3\)",
        ),
        ({"test_labels": np.zeros((30, 14), int)}, r"test_labels must have the shape \(30,\)"),
        ({"val_images": None}, "has no array val_images: add it to the archive"),
        ({"train_labels": np.arange(200) % 10 + 1}, "hold labels from 0 to 9, not from 1 to 10"),
        ({"train_images": np.zeros((200, 28, 28, 4), np.uint8)}, "must have the shape"),
        ({"train_images": np.zeros((200, 0, 28), np.uint8)}, "must have the shape"),
    ],
)
def test_another_file_in_that_layout_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    arrays = drawn((28, 28), 10, "medmnist") | changes
    np.savez(tmp_path / "a.npz", **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(DataError, match=message):
        load_data(tmp_path / "a.npz")
