"""A run's folder, kept to one process or to a group, maybe on several machines.

One process on each machine writes, or one for all machines if they see the same folder. A machine
that comes back, or is new, gets the files of the others. So all go on from the same epoch.
"""

import contextlib
import hashlib
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import distributed

from cifar_tl.disk import LARGEST_CHECKPOINT, locked, make_folder, read_file, write_atomically
from cifar_tl.distributed import check_same, gather_objects
from cifar_tl.errors import RunError
from cifar_tl.experiment.folder import RunFolder
from cifar_tl.experiment.stages import FILES, LAST, MODEL

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@contextlib.contextmanager
def held(
    folder: RunFolder, group: "ProcessGroup | None"
) -> Iterator[tuple[bool, dict[str, Any] | None]]:
    """Keeps a run's folder to this process, or to a group of processes, until they are done.

    A finished run is not kept: many may read it.

    Yields:
        Whether this process writes in it, and the result if the run is finished.

    Raises:
        RunError: If it holds a run with other settings, or the processes have different ones.
        LockedError: If another process is at work in it.
    """
    if group is not None:
        with _shared(folder, group) as writes:
            yield writes, folder.finished()
    elif (result := folder.finished()) is not None:
        yield False, result
    else:
        make_folder(folder.path)
        with locked(folder.path):
            yield True, None


@contextlib.contextmanager
def _shared(folder: RunFolder, group: "ProcessGroup") -> Iterator[bool]:
    """Makes a run's folder the same for all processes, and keeps it to them."""
    try:  # the digest of the model to start from is a setting, too
        check_same(group, **folder.settings)
    except ValueError as error:
        raise RunError(f"{error}: give all machines the same options and files") from error
    writes = writes_in(folder.path, group)
    with locked(folder.path) if writes else contextlib.nullcontext():
        _copy_progress(folder, group, writes)
        yield writes
        distributed.barrier(group)  # what comes next reads the files


def writes_in(folder: Path, group: "ProcessGroup") -> bool:
    """Returns whether this process is the first of those that see the folder. Makes the folder."""
    make_folder(folder)
    mark = folder / f".{uuid.uuid4().hex}"
    marks = gather_objects(mark.name, group)
    mark.touch()
    try:
        distributed.barrier(group)
        writes = not any((folder / name).exists() for name in marks[: group.rank()])
        distributed.barrier(group)
    finally:
        mark.unlink(missing_ok=True)
    return writes


def _copy_progress(folder: RunFolder, group: "ProcessGroup", writes: bool) -> None:
    """Copies the files of the folder that is furthest to the others."""
    done = (_epochs_done(folder), _digest(folder.path)) if writes else None
    of_all = gather_objects(done, group)
    most = max(found for found in of_all if found is not None)
    if all(found in (most, None) for found in of_all):
        return
    source = of_all.index(most)
    content: list[dict[str, bytes]] = [{}]
    if group.rank() == source:
        paths = (folder.path / name for name in FILES)
        content = [{path.name: _read(path) for path in paths if path.exists()}]
    of_source = distributed.get_global_rank(group, source)
    distributed.broadcast_object_list(content, of_source, group=group)
    if writes and done != most:
        for name, file in content[0].items():
            write_atomically(folder.path / name, file)
    distributed.barrier(group)


def _digest(folder: Path) -> str:
    """Computes a digest that differs between runs that are equally far."""
    contents = [folder / name for name in (LAST, MODEL)]
    return hashlib.sha256(b"".join(map(_read, filter(Path.exists, contents)))).hexdigest()


def _read(path: Path) -> bytes:
    return read_file(path, LARGEST_CHECKPOINT)


def _epochs_done(folder: RunFolder) -> int:
    """Counts the epochs that a folder has, and one more if the stage is finished."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damage: there is a warning when the file is used
        if folder.finished() is not None:
            return int(folder.settings["epochs"]) + 1
    return folder.epochs_done()
