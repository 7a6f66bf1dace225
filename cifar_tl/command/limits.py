"""A limit of memory, as a shell or a batch system sets one. Close to it torch ends the process."""

import os
import sys
from collections.abc import Callable

NEAR = 16 << 30  # bytes of a limit: with more, the imports of torch fit for certain
SPARE = 64 << 20  # bytes that must be left after the imports: less is not enough for anything


def memory_is_limited() -> bool:
    """Returns whether a limit of memory is near (``ulimit -v``, ``ulimit -d``)."""
    if sys.platform == "win32":
        return False
    import resource

    kinds = (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    limits = [resource.getrlimit(kind)[0] for kind in kinds]
    return any(limit != resource.RLIM_INFINITY and limit < NEAR for limit in limits)


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
