"""Keep the C library from handing memory back to the system at every training step."""

import ctypes
import platform
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h


def keep_freed_memory() -> bool:
    """Makes this process keep blocks of up to 32 MiB for reuse when they are freed.

    By default glibc returns the large tensors of a training step to the operating system, which
    has to clear and map every page of them again at the next step: a third of a step's time. This
    is for the whole process and for its lifetime, so it is the program's choice: ``cifar-tl train``
    calls it, and importing the package does not. See mallopt(3).

    Returns:
        Whether glibc took it: False on systems without glibc, where it does nothing.
    """
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # 32 MiB is the most that glibc takes on 64-bit systems; an untouched heap top costs nothing.
    return bool(mallopt(_M_MMAP_THRESHOLD, 32 << 20) and mallopt(_M_TRIM_THRESHOLD, 1 << 30))
