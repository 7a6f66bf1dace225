"""torchrun's processes: their numbers, their meeting, and which of them speaks.

Importing this module does not import torch, which takes seconds.
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

from cifar_tl.cores import cores
from cifar_tl.errors import first_line

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store
    from torch.distributed import ProcessGroup

Result = TypeVar("Result")
TIME_TO_BE_ENDED = 5.0  # seconds: torchrun looks for failed processes ten times a second
TIME_TO_ASK = 1.0  # seconds, for processes that fail at the same time
TIME_TO_MEET = 300.0  # seconds: torchrun starts all processes at the same time
FAILURES = "failures"  # the note that counts failed processes
ANY_TIME = timedelta(weeks=52)  # a seed may take long


class Launch(NamedTuple):
    """The numbers of this process in its launch."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # on its machine
    local_size: int = 1
    machines: int = 1


def launch() -> Launch:
    """Reads the numbers from torchrun's environment variables. Without torchrun: one process."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Launch()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")
    return Launch(*(int(os.environ[name]) for name in names))


def words() -> list[str]:
    """Returns the first words of the command that started the processes. For one process: none."""
    _, size, _, local_size, machines = launch()
    if machines > 1:  # torchrun does not tell how the machines find each other
        return ["torchrun", "..."]
    return ["torchrun", "--nproc-per-node", str(local_size)] if size > 1 else []


class _Meeting:
    """What the processes know after they have met."""

    store: "Store | None" = None  # where they leave notes for each other, until the next start
    separate = False  # whether each process works by itself
    # Kept until the process ends. To free a group, older torch (2.6) waits for the group's threads,
    # and holds Python's lock (GIL). A thread that frees a tensor waits for that lock: a deadlock.
    group: "ProcessGroup | None" = None


@contextlib.contextmanager
def process_group(device: str, *, separate: bool) -> Iterator["ProcessGroup | None"]:
    """Joins the processes of a launch in a group. For one process it yields None.

    Args:
        device: Where the processes compute.
        separate: Each process works by itself, for as long as it takes.
    """
    if launch().size == 1:
        yield None
        return
    from torch import distributed
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    store = PrefixStore(  # several launches may share a store
        os.environ["TORCHELASTIC_RUN_ID"],
        TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            # With True, torchrun itself holds the store. It is then the same after a restart.
            is_master=launch().rank == 0 and os.environ["TORCHELASTIC_USE_AGENT_STORE"] != "True",
        ),
    )
    _Meeting.store, _Meeting.separate = PrefixStore(_meet(store), store), separate
    kind = device.partition(":")[0]
    backends = {"cpu": "gloo"}  # by default torch chooses by the hardware of the machine
    if not separate:
        backends[kind] = distributed.Backend.default_device_backend_map.get(kind, "gloo")
    distributed.init_process_group(
        ",".join(f"{name}:{backend}" for name, backend in backends.items()),
        store=_Meeting.store,
        rank=launch().rank,
        world_size=launch().size,
        timeout=ANY_TIME if separate else None,
    )
    _Meeting.group = distributed.group.WORLD
    yield _Meeting.group
    distributed.destroy_process_group()  # not after a failure: the others would not answer


def _meet(store: "Store") -> str:
    """Returns a word that all processes of this start know, and no process of an earlier start.

    torchrun may start the processes again with the same store. Addresses of killed processes are
    still in it, and torch would connect to them. So each start uses its own part of the store: the
    word is its name. Process 0 invents it. The others say that they are here, and get the word as
    an answer. Process 0 waits until all have heard it.
    """
    rank, mine = launch().rank, uuid.uuid4().hex
    if rank > 0:
        store.set(f"here/{rank}", mine)
        word = _wait_for(store, f"answer/{mine}", TIME_TO_MEET)
        store.set(f"{word}/heard/{rank}", "")
        return word
    end = time.monotonic() + TIME_TO_MEET
    missing = set(range(1, launch().size))
    while missing:
        for other in list(missing):  # "here" may be old: then nobody has heard the answer
            if store.check([f"here/{other}"]):
                store.set("answer/" + store.get(f"here/{other}").decode(), mine)
            if store.check([f"{mine}/heard/{other}"]):
                missing.remove(other)
        if time.monotonic() > end:
            raise RuntimeError(f"no connection with process {min(missing)}")
        time.sleep(0.01)
    return mine


def once_a_launch(name: str, function: Callable[[], None], group: "ProcessGroup | None") -> bool:
    """Calls a function in all processes. If torchrun starts them again, it is not called again.

    Returns:
        Whether it was called.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        function()
        return True
    from cifar_tl.distributed import gather_objects

    # torchrun does not count every start. So each process leaves a note in torchrun's log folder.
    log = os.environ["TORCHELASTIC_ERROR_FILE"]
    note = Path(log).parents[2] / name if log else None
    again = note.exists() if note else os.environ["TORCHELASTIC_RESTART_COUNT"] != "0"
    done = any(gather_objects(again, group))
    if not done:
        function()
        gather_objects(None, group)  # no note before all have finished: else they do it again
    if note:
        note.touch()
    return not done


def once_a_machine(function: Callable[[], Result], group: "ProcessGroup | None") -> Result:
    """Calls a function in one process of each machine, and returns its result in all processes.

    The others map a file with the result into memory, so that all share one copy of large data.
    All processes wait for the slowest machine. The group itself would not wait that long.
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
        try:
            result: Result = torch.load(path, mmap=True, weights_only=False)
        except (RuntimeError, OSError) as error:
            if Path(path).exists():
                raise
            # The process that wrote the file has failed, and the file went with it.
            raise RuntimeError("no connection with a process that has failed") from error
        store.set(f"{rank} has it", "")
    else:
        result = function()
        with tempfile.TemporaryDirectory(prefix="cifar_tl-") as folder:
            if local_size > 1:
                path = f"{folder}/result.pt"
                try:
                    torch.save(result, path)
                except RuntimeError as error:  # torch says so if the disk is full
                    raise OSError(f"{path} cannot be written: {first_line(error)}") from error
                store.set(f"result of {rank}", path)
            store.set(f"{rank} has it", "")
            for other in range(first, first + local_size):  # before the file is deleted
                _wait_for(store, f"{other} has it")
    for other in range(size):
        _wait_for(store, f"{other} has it")
    return result


def _wait_for(store: "Store", name: str, seconds: float = math.inf) -> str:
    """Waits for a note and returns it. Signals get through meanwhile.

    Raises:
        RuntimeError: If a process has failed, or the time is over.
    """
    end = time.monotonic() + seconds
    while not store.check([name]):
        if store.check([FAILURES]) or time.monotonic() > end:
            raise RuntimeError("no connection with a process that has failed")
        time.sleep(0.05)
    return store.get(name).decode()


def reports_failure() -> bool:
    """Returns whether this process, which has failed, reports why: only the first one does.

    All other processes sleep until torchrun kills them. One that survives reports, too, if there
    was no shared store, so that nobody could know who failed first.
    """
    store, (rank, size, local_rank, *_) = _Meeting.store, launch()
    try:
        first = local_rank == 0 if store is None else store.add(FAILURES, 1) == 1
        if store is not None and first and rank == 0:  # it may hold the store: let others ask
            end = time.monotonic() + TIME_TO_ASK
            while store.add(FAILURES, 0) < size and time.monotonic() < end:
                time.sleep(0.01)
    except RuntimeError:  # the process that held the store is gone
        first, store = False, None
    if not first:
        time.sleep(TIME_TO_BE_ENDED)
    return first or store is None


def speaks() -> bool:
    """Returns whether this process prints: only the first one does."""
    return launch().rank == 0


def warns() -> bool:
    """Returns whether this process prints warnings: one on each machine, and separate ones."""
    return launch().local_rank == 0 or _Meeting.separate


def divided_threads() -> int | None:
    """Returns this process's part of the cores. None: leave the number to torch."""
    # torchrun sets one thread, unless the user has set a number.
    if launch().local_size == 1 or os.environ.get("OMP_NUM_THREADS") != "1":
        return None
    return max(1, cores() // launch().local_size)
