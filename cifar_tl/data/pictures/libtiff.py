"""Damage that libtiff finds while Pillow reads a TIFF file with it.

libtiff prints what it finds to standard error, without the name of the file. Pillow does not learn
of it: in a damaged fax, libtiff goes on after each bad row, and the picture counts as read.
"""

import contextlib
import ctypes
import functools
import threading
from collections.abc import Iterator
from typing import Any

from PIL import _imaging

# What libtiff calls: the name of one of its functions, a format for printf, its arguments.
_Handler = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)


class _Listening(threading.local):
    """What a thread hears. libtiff has one handler for the whole process."""

    found: list[str] | None = None


_listening = _Listening()
_lock = threading.Lock()
_listeners = 0  # threads that listen now
_before: Any = None  # the handler that libtiff had


@contextlib.contextmanager
def damage_found() -> Iterator[list[str]]:
    """Collects the damage that libtiff finds in this thread, and prints none of it.

    Other threads of the program print as before. After the last thread that listens, libtiff has
    the handler that it had. Where libtiff is a part of Pillow that cannot be reached, as on
    Windows, nothing is collected.

    Yields:
        The name of the decoder of libtiff that found damaged pixels, such as ``Fax4Decode``. The
        list is empty until then. Damaged metadata are no damage to the picture.
    """
    global _listeners, _before
    set_handler, found = _set_handler(), list[str]()
    if set_handler is None:
        yield found
        return
    with _lock:
        if _listeners == 0:
            _before = set_handler(_for_libtiff)
        _listeners += 1
    try:
        _listening.found = found
        yield found
    finally:
        _listening.found = None
        with _lock:
            _listeners -= 1
            if _listeners == 0:
                set_handler(_before)


@functools.cache
def _set_handler() -> Any:
    """Finds ``TIFFSetErrorHandler``, in Pillow or in the libtiff that it has loaded."""
    try:
        function = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
    except (AttributeError, OSError):
        return None
    function.argtypes, function.restype = [_Handler], _Handler
    return function


def _hear(module: bytes | None, text: bytes, values: int | None) -> None:
    found = _listening.found
    if found is None:
        if _before:
            _before(module, text, values)
    elif not found and module is not None and b"Decode" in module:
        found.append(module.decode("ascii", "replace"))


_for_libtiff = _Handler(_hear)  # which must outlive its use
