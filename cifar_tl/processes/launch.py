"""What ``torchrun`` tells its processes: who they are, where they meet, and which of them speaks.

Importing it imports no torch: that takes seconds.
"""

import contextlib
import math
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from cifar_tl.errors import first_line

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store
    from torch.distributed import ProcessGroup

Result = TypeVar("Result")
TIME_TO_BE_ENDED = 5.0  # in seconds: torchrun looks ten times a second whether a process has failed
TIME_TO_ASK = 1.0  # in seconds, for processes that fail together
TIME_TO_MEET = 300.0  # in seconds: torchrun has started all of them at the same time
FAILURES = "failures"  # the note that counts the processes that have failed
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
    if found.machines > 1:  # how they find each other is not to be known
        return ["torchrun", "..."]
    return ["torchrun", "--nproc-per-node", str(found.local_size)]


class _Meeting:
    """Where the processes of a launch leave notes, once they have met: until the next start."""

    store: "Store | None" = None
    separate = False  # whether each then works by itself


@contextlib.contextmanager
def process_group(device: str, *, separate: bool) -> Iterator["ProcessGroup | None"]:
    """Joins the processes of a launch; one alone opens no group, which None stands for.

    Args:
        device: Where they compute.
        separate: Each works by itself, for as long as it likes.
    """
    if launch().size == 1:
        yield None
        return
    from torch import distributed
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    store = PrefixStore(  # launches may share a store
        os.environ["TORCHELASTIC_RUN_ID"],
        TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            # torchrun may keep the store itself, from one start to the next.
            is_master=launch().rank == 0 and os.environ["TORCHELASTIC_USE_AGENT_STORE"] != "True",
        ),
    )
    _Meeting.store, _Meeting.separate = PrefixStore(_meet(store), store), separate
    kind = device.partition(":")[0]
    # Without a word about it, torch would choose by what the machine has.
    backends = {"cpu": "gloo"}
    if not separate:
        backends[kind] = distributed.Backend.default_device_backend_map.get(kind, "gloo")
    distributed.init_process_group(
        ",".join(f"{name}:{backend}" for name, backend in backends.items()),
        store=_Meeting.store,
        rank=launch().rank,
        world_size=launch().size,
        timeout=ANY_TIME if separate else None,
    )
    yield distributed.group.WORLD
    distributed.destroy_process_group()  # after a failure the others would not answer


def _meet(store: "Store") -> str:
    """Finds a word that all processes of this start of the launch know, and no earlier ones did.

    torchrun's store still has the addresses of processes that have been ended since, and torch
    would try to reach them: each start needs a part of the store of its own.
    """
    rank, mine = launch().rank, uuid.uuid4().hex
    if rank > 0:
        store.set(f"here/{rank}", mine)
        word = _wait_for(store, f"answer/{mine}", TIME_TO_MEET)
        store.set(f"{word}/heard/{rank}", "")
        return word
    end = time.monotonic() + TIME_TO_MEET
    missing = set(range(1, launch().size))
    while missing:  # what is in "here" may be of an earlier start until its process comes
        for other in list(missing):
            if store.check([f"here/{other}"]):
                store.set("answer/" + store.get(f"here/{other}").decode(), mine)
            if store.check([f"{mine}/heard/{other}"]):
                missing.remove(other)
        if time.monotonic() > end:
            raise RuntimeError(f"no connection with process {min(missing)}")
        time.sleep(0.01)
    return mine


def once_a_launch(name: str, function: Callable[[], None], group: "ProcessGroup | None") -> bool:
    """Calls a function in all processes, but not again when torchrun starts them again.

    Returns:
        Whether it was called.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        function()
        return True
    from cifar_tl.distributed import gather_objects

    # torchrun does not count every start, so each one of them gets a note in its folder of logs.
    log = os.environ["TORCHELASTIC_ERROR_FILE"]
    note = Path(log).parents[2] / name if log else None
    again = note.exists() if note else os.environ["TORCHELASTIC_RESTART_COUNT"] != "0"
    done = any(gather_objects(again, group))
    if not done:
        function()
        gather_objects(None, group)  # only when all have done it: what is half done is done again
    if note:
        note.touch()
    return not done


def once_a_machine(function: Callable[[], Result], group: "ProcessGroup | None") -> Result:
    """Calls a function in one process of each machine; the others get its result from a file.

    They do not read it into memory: what is large is shared by all. All wait for the slowest
    machine, longer than a group would.
    """
    if group is None:
        return function()
    import torch

    rank, size, local_rank, local_size, _ = launch()
    store = _Meeting.store
    assert store is not None
    first = rank - local_rank  # of this machine
    if local_rank > 0:
        path = _wait_for(store, f"result of {first}")
        result: Result = torch.load(path, mmap=True, weights_only=False)
        store.set(f"{rank} has it", "")
        _wait_for_all(store, range(size))
        return result
    result = function()
    with tempfile.TemporaryDirectory(prefix="cifar_tl-") as folder:
        if local_size > 1:
            path = f"{folder}/result.pt"
            try:
                torch.save(result, path)
            except RuntimeError as error:  # torch's word for a disk that is full
                raise OSError(f"{path} cannot be written: {first_line(error)}") from error
            store.set(f"result of {rank}", path)
        store.set(f"{rank} has it", "")
        _wait_for_all(store, range(first, first + local_size))
    _wait_for_all(store, range(size))
    return result


def _wait_for_all(store: "Store", ranks: range) -> None:
    for rank in ranks:
        _wait_for(store, f"{rank} has it")


def _wait_for(store: "Store", name: str, seconds: float = math.inf) -> str:
    """Waits until somebody has left a note, open to signals.

    Raises:
        RuntimeError: If a process has failed meanwhile, or it takes too long.
    """
    end = time.monotonic() + seconds
    while not store.check([name]):
        if store.check([FAILURES]) or time.monotonic() > end:
            raise RuntimeError("no connection with a process that has failed")
        time.sleep(0.05)
    return store.get(name).decode()


def reports_failure() -> bool:
    """Tells whether this process, which has failed, is to say why: the first one that fails.

    The others wait until torchrun ends them. Who is still there then has something else to tell, if
    the processes have not met, so that the first of this machine went first, or if nobody knows any
    more who was first.
    """
    store, (rank, size, local_rank, *_) = _Meeting.store, launch()
    try:
        first = local_rank == 0 if store is None else store.add(FAILURES, 1) == 1
        if store is not None and first and rank == 0:  # others may ask: it may have the store
            end = time.monotonic() + TIME_TO_ASK
            while store.add(FAILURES, 0) < size and time.monotonic() < end:
                time.sleep(0.01)
    except RuntimeError:  # the process that had the store is gone, maybe without a word
        first, store = False, None
    if not first:
        time.sleep(TIME_TO_BE_ENDED)
    return first or store is None


def speaks() -> bool:
    """Tells whether this process prints."""
    return launch().rank == 0


def warns() -> bool:
    """Tells whether this process prints warnings: of several that do the same, one a machine."""
    return launch().local_rank == 0 or _Meeting.separate


def divided_threads() -> int | None:
    """Computes each local process's part of the cores; None: as torch chooses for one alone."""
    # torchrun sets one thread, whatever there is, unless the user has set some number.
    if launch().local_size == 1 or os.environ.get("OMP_NUM_THREADS") != "1":
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // launch().local_size)
