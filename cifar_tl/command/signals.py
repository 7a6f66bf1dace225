"""Signals that end a process: Ctrl-C, and what batch systems and closed terminals send.

Only a process of our own handles them. In the process of another program they stay as they are:
Ctrl-C raises ``KeyboardInterrupt``.
"""

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
ENDING = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]  # Windows lacks some


class Interrupt(KeyboardInterrupt):
    """A signal in a process of our own. ``code`` is the exit code for it."""

    code: int

    def __init__(self, number: int) -> None:
        super().__init__()
        self.code = 128 + number


def is_our_process() -> bool:
    """Returns whether this process runs our command alone, and no notebook or other program."""
    frames = [frame for frame, _ in traceback.walk_stack(None)]
    programs = sum(frame.f_code.co_name == "<module>" for frame in frames)
    callers = {frame.f_globals.get("__name__") for frame in frames}
    return programs == 1 and callers <= {__name__, "cifar_tl.__main__", "__main__", "runpy"}


def handle_signals() -> None:
    """Makes each signal raise `Interrupt`. After the first one, another ends the process at once.

    A signal that is ignored stays ignored: nohup ignores some, and so does a shell for a program in
    its background.
    """
    for number in ENDING:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _interrupt)
    sys.unraisablehook = _send_again


def are_handled() -> bool:
    """Returns whether `handle_signals` was called: whether the process is our own."""
    return sys.unraisablehook is _send_again


def _interrupt(number: int, _: object) -> NoReturn:
    for each in ENDING:
        if callable(signal.getsignal(each)):
            signal.signal(each, _end)
    raise Interrupt(number)


def _end(number: int, _: object) -> NoReturn:
    os._exit(128 + number)


def _send_again(ignored: "sys.UnraisableHookArgs") -> None:
    """Sends a signal again if Python ignores its exception, as it does while it frees an object."""
    if not isinstance(ignored.exc_value, Interrupt):
        sys.__unraisablehook__(ignored)
        return
    number = ignored.exc_value.code - 128
    signal.signal(number, _interrupt)
    threading.Timer(0.01, os.kill, (os.getpid(), number)).start()


@contextlib.contextmanager
def importing(say_why: Callable[[int], object]) -> Iterator[None]:
    """Keeps signals out of imports. An exception while torch is imported can crash the process.

    A process of our own ends at once. In another one the signal comes after the imports.

    Args:
        say_why: Is called with the exit code before a process of our own ends.
    """
    before = {number: signal.getsignal(number) for number in ENDING}
    came: list[int] = []

    def keep(number: int, _: object) -> None:
        if before[number] is _interrupt:
            say_why(128 + number)
            os._exit(128 + number)
        came.append(number)

    # Only the main thread may handle signals. Other threads get none.
    is_main = threading.current_thread() is threading.main_thread()
    handled = [number for number in ENDING if is_main and callable(before[number])]
    for number in handled:
        signal.signal(number, keep)
    try:
        yield
    finally:  # also if the import failed
        for number in handled:
            signal.signal(number, before[number])
        with contextlib.ExitStack() as stack:  # each one, also if the one before raises
            for number in reversed(came):
                stack.callback(signal.raise_signal, number)
