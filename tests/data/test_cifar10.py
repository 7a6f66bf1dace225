import gc
import http.server
import os
import pickle
import random
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.datasets import CIFAR10

from cifar_tl.data import cifar10
from cifar_tl.data.cifar10 import download_cifar10
from cifar_tl.data.classes import CIFAR10_CLASS_NAMES
from cifar_tl.data.source import lacks_cifar10, load_data
from cifar_tl.errors import DataError, DownloadError, MissingDataError
from tests.conftest import Malicious


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
    with pytest.raises(MissingDataError, match=r"data: there is no such .*; download_cifar10 puts"):
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
    monkeypatch.setattr(cifar10, "NETWORK_TIMEOUT", 0.3)
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


def test_damaged_batch_is_never_unpickled(tmp_path: Path, archive: bytes) -> None:
    (tmp_path / CIFAR10.filename).write_bytes(archive)
    download_cifar10(tmp_path)
    (tmp_path / CIFAR10.base_folder / "data_batch_1").write_bytes(
        pickle.dumps(Malicious(tmp_path / "hacked"))
    )
    with pytest.raises(MissingDataError):
        load_data(tmp_path)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("name", ["cifar-10-python (1).tar.gz", "cifar10.tgz", "CIFAR-10.tar.gz"])
def test_the_right_archive_of_another_name_is_used(
    tmp_path: Path, archive: bytes, server: Server, name: str
) -> None:
    (tmp_path / "cifar10 notes.tgz").write_bytes(b"something else")
    (tmp_path / name).write_bytes(archive)
    assert not lacks_cifar10(tmp_path)
    download_cifar10(tmp_path)
    assert server.requests == 0
    assert len(load_data(tmp_path).train.labels) == 200


def test_the_folder_with_the_batches_may_be_named(tmp_path: Path, archive: bytes) -> None:
    (tmp_path / CIFAR10.filename).write_bytes(archive)
    download_cifar10(tmp_path)
    batches = tmp_path / CIFAR10.base_folder
    assert not lacks_cifar10(batches)
    assert load_data(batches).fingerprint == load_data(tmp_path).fingerprint
    (batches / "data_batch_3").write_bytes(b"damaged")
    download_cifar10(batches)  # from the archive above it
    assert len(load_data(batches).train.labels) == 200
    renamed = batches.rename(tmp_path / "batches")
    with pytest.raises(DataError, match="batches holds CIFAR-10: rename it to cifar-10-batches-py"):
        load_data(renamed)


def test_an_archive_where_nothing_can_be_written_says_what_to_do(
    tmp_path: Path, archive: bytes
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / CIFAR10.filename).write_bytes(archive)
    folder.chmod(0o555)
    for parent in (tmp_path, *tmp_path.parents[:3]):
        if os.geteuid() == 0 and parent != Path("/tmp"):
            parent.chmod(0o755)  # so that somebody else may look into it
    process = os.fork()
    if process == 0:  # as somebody else: root may write whatever the permissions say
        code = 1
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            download_cifar10(folder)
        except DataError as error:
            code = 0 if "copy it into a folder of your own and name that" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    folder.chmod(0o755)
