"""A limit of memory, as a shell or a batch system sets one. Close to it torch ends the process."""

import os
import sys
from collections.abc import Callable

SPARE = 64 << 20  # bytes that must be left after the imports: less is not enough for anything


def memory_is_limited() -> bool:
    """Returns whether this process may use only so much memory (``ulimit -v``, ``ulimit -d``)."""
    if sys.platform == "win32":
        return False
    import resource

    kinds = (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    return any(resource.getrlimit(kind)[0] != resource.RLIM_INFINITY for kind in kinds)


def can_load(load: Callable[[], object]) -> bool:
    """Tries imports in a copy of this process, which torch may end. The copy prints nothing."""
    pid = os.fork()
    if pid == 0:
        try:
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1)
            os.dup2(silent, 2)
            load()
            bytearray(SPARE)
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    return status == 0
