"""What several test files need: small images in the two file formats, and untouched settings."""

import contextlib
import gc
import hashlib
import io
import os
import pickle
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # on any number of cores, and there are several processes

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torchvision.datasets import CIFAR10

from cifar_tl.data.classes import CIFAR10_CLASS_NAMES
from cifar_tl.data.shapes import draw_shapes
from tests.forked import start_zygote

signal.signal(signal.SIGINT, signal.default_int_handler)  # which background shells have ignored
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup has ignored


@pytest.fixture(scope="session")
def zygote() -> Iterator[subprocess.Popen[str]]:
    """What forks the processes of `Command`."""
    with start_zygote() as process:
        yield process


@pytest.fixture(scope="session")
def small_npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 training and 50 test images in the Keras layout."""
    path = tmp_path_factory.mktemp("data") / "small.npz"
    save_npz(path, train=20, test=5)
    return path


@pytest.fixture(scope="session")
def tiny_npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 training and 20 test images, for what takes long."""
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    save_npz(path, train=5, test=2)
    return path


def save_npz(path: Path, *, train: int, test: int) -> None:
    """Writes drawn images, this many of each of the ten classes, in turn."""
    images, labels, _, _ = draw_shapes(400, 0)
    of_class = [(labels == label).nonzero()[0][: train + test] for label in range(10)]
    in_turn = np.stack(of_class, axis=1)
    first, last = in_turn[:train].flatten(), in_turn[train:].flatten()
    np.savez(
        path,
        x_train=images[first].transpose(0, 2, 3, 1),
        y_train=labels[first],
        x_test=images[last].transpose(0, 2, 3, 1),
        y_test=labels[last, None],
    )


@contextlib.contextmanager
def noted_precisions() -> Iterator[set[torch.dtype]]:
    """Notes in which precisions convolutions and linear layers compute a batch."""
    found: set[torch.dtype] = set()

    def note(module: nn.Module, _: object, output: Tensor) -> None:
        if isinstance(module, nn.Conv2d | nn.Linear) and len(output) > 1:  # 1: the layer table
            found.add(output.dtype)

    handle = register_module_forward_hook(note)
    try:
        yield found
    finally:
        handle.remove()


@pytest.fixture(scope="session")
def own_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of image files of different sizes, 25, 10 and 5 of them; nothing held out."""
    images, labels, _, _ = draw_shapes(400, 0)
    folder = tmp_path_factory.mktemp("data") / "own"
    for label, (name, count) in enumerate({"ash": 25, "Birch": 10, "cedar tree": 5}.items()):
        (folder / "train" / name).mkdir(parents=True)
        for number, image in enumerate(images[labels == label][:count]):
            pixels = Image.fromarray(image.transpose(1, 2, 0))
            size = (40 + number, 50)
            suffix = ("png", "jpg", "webp")[number % 3]
            pixels.resize(size).save(folder / "train" / name / f"{number:02}.{suffix}")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _temporary_files(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keeps what programs leave behind, such as torchrun its logs, where pytest deletes it."""
    os.environ["TMPDIR"] = str(tmp_path_factory.mktemp("tmp"))
    tempfile.tempdir = None  # so that Python looks again


@pytest.fixture(scope="session", autouse=True)
def _installed(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Puts a command ``cifar-tl`` on the path: messages name it, as after an installation."""
    program = tmp_path_factory.mktemp("bin") / ("cifar-tl.bat" if os.name == "nt" else "cifar-tl")
    program.touch()
    program.chmod(0o755)
    os.environ["PATH"] = f"{program.parent}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture(autouse=True)
def _same_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs each test in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "*")  # the servers of these tests are on loopback
    # Pictures take a second a stage: as if matplotlib were not installed, but in their own tests.
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_garbage_collection() -> Iterator[None]:
    """For signals that raise: one that comes while hypothesis watches a collection is lost."""
    gc.disable()
    yield
    gc.enable()


BATCHES = [f"data_batch_{n}" for n in range(1, 6)]


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@pytest.fixture(scope="session")
def small_arrays() -> tuple[Any, ...]:
    return draw_shapes(200, 40)


PicklerInPython: Any = vars(pickle)["_Pickler"]  # the one that can be told how to write a type


class Python2Pickler(PicklerInPython):  # type: ignore[misc]
    """Writes text and bytes as Python 2 did, which made the official files."""

    dispatch = PicklerInPython.dispatch.copy()

    def save_string(self, text: str | bytes) -> None:
        content = text.encode("ascii") if isinstance(text, str) else text
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(text)

    dispatch[str] = dispatch[bytes] = save_string


def pickle_as_python2(content: object) -> bytes:
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(content)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def official_files(small_arrays: tuple[Any, ...]) -> dict[str, bytes]:
    """Miniature batches in the official format: pickles of rows of 3072 bytes."""
    x_train, y_train, x_test, y_test = small_arrays
    parts = [
        *zip(BATCHES, np.split(x_train, 5), np.split(y_train, 5), strict=True),
        ("test_batch", x_test, y_test),
    ]
    contents: dict[str, Any] = {
        name: {"data": images.reshape(-1, 3072), "labels": labels.tolist(), "batch_label": name}
        for name, images, labels in parts
    }
    contents["batches.meta"] = {"label_names": list(CIFAR10_CLASS_NAMES), "num_vis": 3072}
    return {name: pickle_as_python2(content) for name, content in contents.items()}


@pytest.fixture
def archive(official_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The official archive in miniature; its checksums take the place of the official ones."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in official_files.items():
            member = tarfile.TarInfo(f"{CIFAR10.base_folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    content = buffer.getvalue()
    monkeypatch.setattr(CIFAR10, "train_list", [[n, md5(official_files[n])] for n in BATCHES])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5(official_files["test_batch"])]])
    meta = {**CIFAR10.meta, "md5": md5(official_files["batches.meta"])}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(content))
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/refuses")  # the discard port
    return content


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.folder,)
