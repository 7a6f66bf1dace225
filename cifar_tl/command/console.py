"""What all commands share: the parser, errors in one line, exit codes.

Exit codes: 0 done, 1 failed, 2 wrong usage; after a signal 128 and its number, 130 for Ctrl-C.
"""

import argparse
import contextlib
import logging
import re
import shlex
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from shutil import get_terminal_size, which
from typing import Any, NoReturn, TextIO

from cifar_tl.command.limits import can_load, memory_is_limited
from cifar_tl.command.signals import Interrupt, are_handled, importing
from cifar_tl.errors import CifarTLError, CifarTLWarning, first_line, is_out_of_memory
from cifar_tl.names import printable
from cifar_tl.processes import launch
from cifar_tl.version import __version__

COMMAND = "cifar-tl"
MODULE = ("cifar_tl", "__main__")  # the file's name without suffix after python -m
REQUIREMENTS = ("torch", "torchvision", "numpy", "tqdm")  # as in requirements.txt
RAISE_LIMIT = "raise the limit of memory (ulimit -v unlimited)"
# In torch's messages about a process that is gone.
LOST = re.compile("gloo/|NCCL|[Cc]onnection|failed to recv")


class UsageError(Exception):
    """The arguments make no sense. The message says what to do."""


class Parser(argparse.ArgumentParser):
    """Raises `UsageError`. argparse would print a usage text of many lines and exit."""

    def __init__(self, name: str, description: str) -> None:
        super().__init__(
            prog=called(name, short=True),
            description=textwrap.fill(description, get_terminal_size().columns - 2),
            formatter_class=argparse.RawDescriptionHelpFormatter,  # an example stays in one line
            add_help=False,
        )

    def add_group(self, title: str, example: str) -> Callable[..., Any]:
        """Begins a group of options. Returns the function that adds an option to it."""
        return self.add_argument_group(title, f"such as: %(prog)s {example}").add_argument

    def add_help_options(self) -> None:
        """Adds the options that every command has, after its own."""
        add = self.add_argument_group("help").add_argument
        add("-h", "--help", action="help", help="print this and exit")
        add("--version", action=_ShowVersion, nargs=0, help="print the versions and exit")

    def print_help(self, _: object = None) -> None:
        """Prints the help. argparse's own function hides errors of the output."""
        say(self.format_help().rstrip())

    def error(self, message: str) -> NoReturn:
        """Raises an error for argparse."""
        raise UsageError(f"{message} (try --help)")


class _ShowVersion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        others = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision"))
        say(f"cifar_tl {__version__}, {others}")
        parser.exit()


def called(name: str, *, short: bool = False) -> str:
    """Writes how a command is called, in the words with which this one was, ready to be pasted.

    Args:
        name: The command.
        short: Leave out the folder of Python, even if the shell does not find Python without it.

    Returns:
        Such as ``cifar-tl train``, ``python train.py`` or ``torchrun ... train.py``. In a notebook
        the same line works after ``!``.
    """
    program, *arguments = sys.argv
    file, door = Path(program), _door(name)
    python, *typed = sys.orig_argv or ["python"]  # a program that embeds Python has none
    options = typed[: max(0, len(typed) - len(arguments))]
    as_typed = typed == [*options, *arguments]  # else somebody has changed them, such as %run
    python, found = _spell_python(python, short), which(COMMAND)
    if name == "train" and (launcher := launch.words()):
        words = [*launcher, *door]
    elif as_typed and file.name == "train.py" and options[-1:] == [program]:
        words = [python, *options[:-1], *door]
    elif as_typed and "cifar_tl" in (file.name, file.parent.name) and file.stem in MODULE:
        words = [python, *options, name]
    elif file.stem == COMMAND:
        is_on_path = found is not None and Path(found).with_suffix("") == file.with_suffix("")
        words = [COMMAND if is_on_path else program, name]
    else:  # another program or a notebook called a function
        words = [COMMAND, name] if found else [python, *door]
    return shlex.join(filter(None, words))


def _door(name: str) -> list[str]:
    """Returns what follows ``python`` to call a command from here, in a clone or installed."""
    program, script = sys.argv[0], Path(__file__).resolve().parents[2] / "train.py"
    is_here = script.parent == Path.cwd().resolve() or not script.exists()  # or it is installed
    is_script = Path(program).name == script.name
    if is_here and not (is_script and name == "train"):
        return ["-m", "cifar_tl", name]
    return [program if is_script else str(script), *([name] if name != "train" else [])]


def _spell_python(typed: str, short: bool) -> str:
    """Replaces the path of Python by a name, if the shell finds the same Python by that name."""
    path = Path(typed)
    if path.name == typed or not sys.executable:  # in another program, Python has no path
        return path.name
    this = Path(sys.executable)
    for name in ("python", "python3", path.name):
        found = which(name)
        # The Python of a virtual environment may be a link to the one outside it.
        if found and Path(found).samefile(this) and Path(found).parent.samefile(this.parent):
            return name
    return "python" if short and path.is_absolute() else typed


def missing() -> str | None:
    """Says how to install the requirements that are not installed. None: nothing is missing."""
    names = [name for name in REQUIREMENTS if find_spec(name) is None]
    if not names:
        return None
    python = _spell_python((sys.orig_argv or ["python"])[0], short=False)
    return f"packages are missing, install them: {python} -m pip install {' '.join(names)}"


def run_command(
    parser: Parser,
    argv: Sequence[str],
    work: Callable[[argparse.Namespace], int],
    *,
    check: Callable[[argparse.Namespace], None],
    load: Callable[[argparse.Namespace], object] = lambda _: import_module("torch"),
    go_on: Callable[[argparse.Namespace], str] | None = None,
) -> int:
    """Runs a command. An error becomes one line on standard error and an exit code.

    Args:
        parser: Parses the arguments.
        argv: The arguments.
        work: Does the work, and returns the exit code.
        check: Raises `UsageError` for wrong arguments, before the imports.
        load: Does the imports that take seconds.
        go_on: Says how to go on, if the work was cut off.

    Returns:
        The exit code.

    Raises:
        KeyboardInterrupt: After Ctrl-C in another program's process.
    """
    options = argparse.Namespace()

    def fail(message: object, code: int = 1, *, cut_off: bool = False) -> int:
        if not launch.reports_failure():
            return code
        hint = f"; {go_on(options)}" if cut_off and go_on and vars(options) else ""
        _write_error(f"{parser.prog}: {message}{hint}")
        return code

    if sys.stdout is None or getattr(sys.stdout, "closed", False):
        return fail("standard output is closed: send it somewhere, such as > /dev/null", 2)
    try:
        with _warnings_in_lines(parser.prog):
            try:
                parsed = parser.parse_args(argv)
            except SystemExit as done:  # --help and --version
                return int(done.code or 0)
            check(parsed)
        options = parsed
        with importing(lambda code: fail("interrupted", code, cut_off=True)):
            _import(partial(load, options))
        with _warnings_in_lines(parser.prog):
            return work(options)
    except KeyboardInterrupt as caught:
        if launch.speaks():
            fail("interrupted", cut_off=True)
        if isinstance(caught, Interrupt):
            return caught.code
        raise  # in another program's process it is an exception like any other
    except Exception as error:
        failure = _explain(error, options)
        if failure is None:
            raise
        message, code, cut_off = failure
        return fail(message, code, cut_off=cut_off)


def _explain(error: Exception, options: argparse.Namespace) -> tuple[str, int, bool] | None:
    """Says what an error means.

    Returns:
        The message, the exit code, and whether the work was cut off. None: the program has a
        defect, and Python shows where.
    """
    text = str(error)
    if isinstance(error, UsageError):
        return text, 2, False
    if isinstance(error, CifarTLError):
        return text, 1, False
    if isinstance(error, BrokenPipeError):
        return "nobody reads the output any more", 1, True
    if isinstance(error, OSError):
        if "No usable temporary directory" in text:
            return "there is no folder for temporary files: set TMPDIR to one", 2, False
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}", 1, True
    if is_out_of_memory(error):
        more = RAISE_LIMIT if memory_is_limited() else "close other programs"
        smaller = ", or try smaller batches" if "batch_size" in vars(options) else ""
        return f"out of memory: {more}{smaller}", 1, True
    if isinstance(error, RuntimeError) and launch.launch().size > 1 and LOST.search(text):
        return f"another process is gone ({first_line(error)})", 1, True
    return None


def _import(load: Callable[[], object]) -> None:
    """Imports torch. If the system cannot load it, that is no fault of the arguments."""
    limited = memory_is_limited()
    try:
        # A copy of another program's process could disturb that program.
        if limited and are_handled() and "torch" not in sys.modules and not can_load(load):
            raise ImportError("not under this limit of memory")
        load()
    except ImportError as error:
        remedy = f"{RAISE_LIMIT}, or " if limited else ""
        raise UsageError(
            f"torch cannot be imported ({first_line(error)}): {remedy}install torch anew"
        ) from error


def say(line: str) -> None:
    """Prints a line of results. Of several processes, one prints."""
    if launch.speaks():
        write(sys.stdout, f"{line}\n")


def warn(line: str) -> None:
    """Prints a line on standard error. Of several processes, one prints."""
    if launch.speaks():
        _write_error(line)


def _write_error(line: str) -> None:
    """Prints a line on standard error, if somebody reads it."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            write(sys.stderr, f"{printable(line)}\n")  # a library may warn in several lines


def write(stream: TextIO, text: str) -> None:
    """Writes text at once. A name in it may hold characters that the stream cannot write."""
    encoding = getattr(stream, "encoding", None) or "utf-8"  # a stream of another program has none
    # All of it together: several threads may warn.
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


@contextlib.contextmanager
def _warnings_in_lines(program: str) -> Iterator[None]:
    """Prints each warning in a line. Drops what Pillow logs of damaged files: errors name them.

    Imports of torch stay outside. They add filters of warnings, which must stay.
    """
    pillow, handler = logging.getLogger("PIL"), logging.NullHandler()
    pillow.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", CifarTLWarning)
            warnings.showwarning = partial(_show_warning, program)
            yield
    finally:
        pillow.removeHandler(handler)


def _show_warning(
    program: str, text: object, _: object, filename: str, *__: object, **___: object
) -> None:
    """Prints a warning in a line. Pillow warns of damaged metadata, which nobody asked about."""
    if launch.warns() and Path(filename).parent.name != "PIL":
        _write_error(f"{program}: warning: {text}")


def shows_progress() -> bool:
    """Returns whether standard error is a terminal, where bars can be seen."""
    return launch.speaks() and sys.stderr is not None and sys.stderr.isatty()
