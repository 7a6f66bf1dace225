"""Files of this package as somebody else could make them: with the right checksums, and wrong."""

import contextlib
import hashlib
import io
import json
import math
import os
import resource
import signal
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from cifar_tl.checkpoint import load_checkpoint
from cifar_tl.disk import SEAL_SIZE

PATIENCE = 120  # seconds, until something counts as hanging


class HangsError(BaseException):
    """Nothing may catch it."""


Change = Callable[[Path], None]  # of a file


def seal(path: Path, archive: bytes) -> None:
    """Writes a file with a right checksum, as anybody can."""
    path.write_bytes(archive + b"cifar_tl sha256:" + hashlib.sha256(archive).digest())


def saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def put(content: dict[str, Any], place: str, value: object) -> None:
    """Replaces a value, such as that of ``settings.white``. ``...`` deletes it."""
    *above, last = place.split(".")
    inner: Any = content
    for name in above:
        inner = inner[_key(name)]
    if value is ...:
        del inner[last]
    else:
        inner[_key(last)] = value


def _key(name: str) -> int | str:
    return int(name) if name.isdigit() else name


def checkpoint(place: str, value: object) -> Change:
    """Changes a value in a checkpoint. Its checksum is right."""

    def change(path: Path) -> None:
        content = load_checkpoint(path)
        put(content, place, value)
        seal(path, saved(content))

    return change


def tensor(place: str, name: str, change: Callable[[torch.Tensor], object]) -> Change:
    """Changes a tensor in a checkpoint."""

    def change_file(path: Path) -> None:
        content = load_checkpoint(path)
        inner: Any = content
        for key in place.split("."):
            inner = inner[_key(key)]
        inner[name] = change(inner[name])
        seal(path, saved(content))

    return change_file


def result(place: str, value: object) -> Change:
    """Changes a value in a ``result.json``. Its digest is right."""

    def change(path: Path) -> None:
        content = json.loads(path.read_text())
        put(content, place, value)
        write_result(path, content)

    return change


def write_result(path: Path, content: dict[str, Any]) -> None:
    """Writes a ``result.json`` with a right digest."""
    content.pop("sha256", None)
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    path.write_text(json.dumps(content | {"sha256": digest}))


def column(name: str, value: str) -> Change:
    """Changes a value in the first row of a ``history.csv``."""

    def change(path: Path) -> None:
        names, first, *rest = [line.split(",") for line in path.read_text().splitlines()]
        first[names.index(name)] = value
        path.write_text("".join(",".join(row) + "\n" for row in (names, first, *rest)))

    return change


def content(given: bytes) -> Change:
    return lambda path: _ignore(path.write_bytes(given))


def sealed(make: Callable[[Path], bytes]) -> Change:
    return lambda path: seal(path, make(path))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def delete(path: Path) -> None:
    path.unlink()


def endless(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def sparse(path: Path) -> None:
    """A file of 20 GB that takes no room on the disk."""
    path.write_bytes(b"")
    os.truncate(path, 20 * 10**9)


def marked(path: Path) -> None:
    """A file of 2 GB that takes no room on the disk, and ends as a sealed one."""
    path.write_bytes(b"")
    os.truncate(path, 2 * 10**9)
    with path.open("ab") as file:
        file.write(b"cifar_tl sha256:" + bytes(32))


def loop(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)


def compressed(path: Path) -> bytes:
    """An archive of some MB that becomes 1.2 GB."""
    archive = path.read_bytes()[:-SEAL_SIZE]
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(archive)) as source,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target,
    ):
        for member in source.infolist():
            if member.filename.endswith("data/0"):
                with target.open(member.filename, "w") as file:
                    for _ in range(12):
                        file.write(bytes(10**8))
            else:
                target.writestr(member.filename, source.read(member))
    return buffer.getvalue()


def script(_: Path) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), buffer)
    return buffer.getvalue()


def laughs(path: Path) -> bytes:
    """A list of lists of lists ..., each ten times in the next one."""
    laugh: list[Any] = ["ha"]
    for _ in range(12):
        laugh = [laugh] * 10
    return saved(load_checkpoint(path) | {"settings": {"stage": laugh}})


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def _ignore(_: object) -> None:
    pass


NAN, INFINITE = math.nan, math.inf


@contextlib.contextmanager
def bounded(seconds: int = PATIENCE, more: int = 10**9) -> Iterator[None]:
    """Fails if something hangs, or takes more memory than there is now and so many bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, before[1]))
    handler = signal.signal(signal.SIGALRM, _hangs)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def _hangs(*_: object) -> None:
    raise HangsError
