"""A folder of results at which the processes of a group are at work, maybe on several machines.

One process on each machine writes there, or one for all machines whose folder it is. A machine
that comes back, or comes new, gets what the others have, so that all go on from the same epoch.
"""

import contextlib
import hashlib
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import distributed

from cifar_tl.disk import locked, write_atomically
from cifar_tl.distributed import check_same, gather_objects
from cifar_tl.errors import RunError
from cifar_tl.experiment import folder as files
from cifar_tl.experiment import stages

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@contextlib.contextmanager
def shared(folder: Path, settings: dict[str, Any], group: "ProcessGroup") -> Iterator[bool]:
    """Makes a stage's folder the same for all, and keeps it to this group until all are done.

    Yields:
        Whether this process writes in it.

    Raises:
        RunError: If it holds a run with other settings, or the processes have different ones.
        LockedError: If a process of no group, or of another, is at work in it.
    """
    try:  # the settings have the digest of the model to start from, too
        check_same(group, **settings)
    except ValueError as error:
        raise RunError(f"{error}: give all machines the same options and files") from error
    writes = writes_in(folder, group)
    with locked(folder) if writes else contextlib.nullcontext():
        _copy_progress(folder, settings, group, writes)
        yield writes
        distributed.barrier(group)  # what comes next reads the files


def writes_in(folder: Path, group: "ProcessGroup") -> bool:
    """Tells whether this process is the first of those that see the same folder; makes it."""
    folder.mkdir(parents=True, exist_ok=True)
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


def _copy_progress(
    folder: Path, settings: dict[str, Any], group: "ProcessGroup", writes: bool
) -> None:
    """Gives all folders what the one has in which most of the run is done."""
    done = (_epochs_done(folder, settings), _digest(folder)) if writes else None
    of_all = gather_objects(done, group)
    most = max(found for found in of_all if found is not None)
    if all(found in (most, None) for found in of_all):
        return
    source = of_all.index(most)
    content: list[dict[str, bytes]] = [{}]
    if group.rank() == source:
        paths = (folder / name for name in stages.FILES)
        content = [{path.name: path.read_bytes() for path in paths if path.exists()}]
    of_source = distributed.get_global_rank(group, source)
    distributed.broadcast_object_list(content, of_source, group=group)
    if writes and done != most:
        for name, file in content[0].items():
            write_atomically(folder / name, file)
    distributed.barrier(group)


def _digest(folder: Path) -> str:
    """Tells which run a folder holds, of several that have gone as far."""
    contents = [folder / name for name in (stages.LAST, stages.MODEL)]
    return hashlib.sha256(
        b"".join(path.read_bytes() for path in contents if path.exists())
    ).hexdigest()


def _epochs_done(folder: Path, settings: dict[str, Any]) -> int:
    """Counts the epochs that a folder has, one more if the stage is finished."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damage, of which will be told when it is used
        if files.finished_result(folder, settings) is not None:
            return int(settings["epochs"]) + 1
    return files.epochs_done(folder, settings)
