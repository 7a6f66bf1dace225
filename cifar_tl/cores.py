"""How many processor cores this process may use. Importing it imports no torch."""

import os


def cores() -> int:
    """Counts the cores. A container or a batch system may leave fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
