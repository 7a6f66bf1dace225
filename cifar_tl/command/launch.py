"""What ``torchrun`` tells its processes: who they are, where they meet, and which of them speaks.

Importing it imports no torch: that takes seconds.
"""

import contextlib
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from cifar_tl.errors import first_line

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store
    from torch.distributed import ProcessGroup

Result = TypeVar("Result")
TIME_TO_BE_ENDED = 5.0  # in seconds: torchrun looks ten times a second whether a process has failed
ANY_TIME = timedelta(weeks=52)  # a seed takes as long as it takes


class Launch(NamedTuple):
    """The place of this process among those of one launch."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # on its machine
    local_size: int = 1
    machines: int = 1


def launch() -> Launch:
    """Reads what torchrun says; a process that it did not start is alone."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Launch()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")
    return Launch(*(int(os.environ[name]) for name in names))


def words() -> list[str]:
    """Writes the beginning of the command that started this launch; nothing if there was none."""
    found = launch()
    if found.size == 1:
        return []
    machines = ["--nnodes", str(found.machines)] if found.machines > 1 else []
    return ["torchrun", *machines, "--nproc-per-node", str(found.local_size)]


class _Meeting:
    """Where the processes of a launch leave notes, once they have met."""

    lasting: "Store | None" = None  # for as long as the launch, whatever is started again
    store: "Store | None" = None  # for this time


@contextlib.contextmanager
def process_group(*, separate: bool) -> Iterator["ProcessGroup | None"]:
    """Joins the processes of a launch; one alone opens no group, which None stands for.

    Args:
        separate: Each works by itself, for as long as it likes.
    """
    if launch().size == 1:
        yield None
        return
    from torch import distributed
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    store = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=launch().rank == 0 and not _has_lasting_store(),
    )
    _Meeting.lasting, _Meeting.store = store, PrefixStore(_meet(store), store)
    distributed.init_process_group(
        store=_Meeting.store,
        rank=launch().rank,
        world_size=launch().size,
        timeout=ANY_TIME if separate else None,
    )
    yield distributed.group.WORLD
    distributed.destroy_process_group()  # after a failure the others would not answer


def _has_lasting_store() -> bool:
    """Tells whether torchrun keeps the store, or the first process has one for this start."""
    return os.environ["TORCHELASTIC_USE_AGENT_STORE"] == "True"


def _meet(store: "Store") -> str:
    """Finds a word that all processes of this start of the launch know, and no earlier ones did.

    torchrun's store still has the addresses of processes that have been ended since, and torch
    would try to reach them: each start needs a part of the store of its own.
    """
    rank, mine = launch().rank, uuid.uuid4().hex
    if rank > 0:
        store.set(f"here/{rank}", mine)
        word = store.get(f"answer/{mine}").decode()
        store.set(f"{word}/heard/{rank}", "")
        return word
    missing = set(range(1, launch().size))
    while missing:  # what is in "here" may be of an earlier start until its process comes
        for other in list(missing):
            if store.check([f"here/{other}"]):
                store.set("answer/" + store.get(f"here/{other}").decode(), mine)
            if store.check([f"{mine}/heard/{other}"]):
                missing.remove(other)
        time.sleep(0.01)
    return mine


def once_a_launch(name: str, function: Callable[[], None], group: "ProcessGroup | None") -> bool:
    """Calls a function in all processes, but not again when torchrun starts them again.

    Returns:
        Whether it was called.
    """
    if group is None:  # one process alone, which torchrun may have started before, too
        if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0:
            return False
        function()
        return True
    from torch import distributed

    from cifar_tl.distributed import gather_objects

    assert _Meeting.lasting is not None
    starts_before = gather_objects(int(os.environ["TORCHELASTIC_RESTART_COUNT"]), group)
    done = _Meeting.lasting.check([name]) if _has_lasting_store() else any(starts_before)
    distributed.barrier(group)
    if not done:
        function()
    distributed.barrier(group)
    _Meeting.lasting.set(name, "")
    return not done


def once_a_machine(function: Callable[[], Result], group: "ProcessGroup | None") -> Result:
    """Calls a function in one process of each machine; the others get its result from a file.

    They do not read it into memory: what is large is shared by all.
    """
    rank, _, local_rank, local_size, _ = launch()
    if group is None or local_size == 1:
        return function()
    import torch

    assert _Meeting.store is not None
    place = f"result/{rank - local_rank}"
    if local_rank > 0:
        _wait_for(_Meeting.store, place)
        path = _Meeting.store.get(place).decode()
        found: Result = torch.load(path, mmap=True, weights_only=False)
        _Meeting.store.set(f"{place}/{local_rank}", "")
        return found
    result = function()
    with tempfile.TemporaryDirectory(prefix="cifar_tl-") as folder:
        path = f"{folder}/result.pt"
        try:
            torch.save(result, path)
        except RuntimeError as error:  # torch's word for a disk that is full
            raise OSError(f"{path} cannot be written: {first_line(error)}") from error
        _Meeting.store.set(place, path)
        for other in range(1, local_size):
            _wait_for(_Meeting.store, f"{place}/{other}")
    return result


def _wait_for(store: "Store", name: str) -> None:
    """Waits until somebody has left a note, for as long as it takes, and open to signals."""
    while not store.check([name]):
        time.sleep(0.05)


def reports_failure() -> bool:
    """Tells whether this process, which has failed, is to say why: the first one that fails.

    The others wait until torchrun ends them. Who is still there then has something else to tell, if
    the processes have not met, so that the first of this machine went first, or if nobody knows any
    more who was first.
    """
    store = _Meeting.store
    try:
        first = launch().local_rank == 0 if store is None else store.add("failures", 1) == 1
    except RuntimeError:  # the process that had the store is gone, maybe without a word
        first, store = False, None
    if not first:
        time.sleep(TIME_TO_BE_ENDED)
    return first or store is None


def speaks() -> bool:
    """Tells whether this process prints."""
    return launch().rank == 0


def divided_threads() -> int | None:
    """Computes each local process's part of the cores; None: as torch chooses for one alone."""
    # torchrun sets one thread, whatever there is, unless the user has set some number.
    if launch().local_size == 1 or os.environ.get("OMP_NUM_THREADS") != "1":
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // launch().local_size)
