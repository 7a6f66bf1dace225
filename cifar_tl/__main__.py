"""The command's first word: ``cifar-tl train``, ``python -m cifar_tl train``, and so on."""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NoReturn

from cifar_tl.command import signals
from cifar_tl.command.console import Parser, UsageError, called, missing, run_command, warn

COMMANDS = {
    "train": "run the stages and show what transfer saves and costs",
    "predict": "name what is in pictures",
    "evaluate": "measure a trained model on the images of a data source",
    "export": "write a trained model for programs without this package",
}


def start(*words: str) -> NoReturn:
    """Runs the command that was typed, and ends the program. Programs call `main` instead.

    Args:
        words: What stands before the arguments that were typed.
    """
    ours = signals.is_our_process()
    try:
        if ours:
            signals.handle_signals()
        code = main([*words, *sys.argv[1:]])
        if ours:
            _end(code)
    except signals.Interrupt as caught:  # where no command could catch it
        code = caught.code
        if ours:
            _end(code)
    sys.exit(code)


def _end(code: int) -> NoReturn:
    """Ends the process. Python would take a second to tidy up, in which signals have no handler."""
    with contextlib.suppress(OSError):  # nobody reads the output any more
        if sys.stdout is not None:
            sys.stdout.flush()
    os._exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the first argument names; returns the exit code.

    Raises:
        KeyboardInterrupt: After Ctrl-C. The command has said how to go on.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    is_command = bool(arguments) and arguments[0] in COMMANDS
    if needed := missing():
        warn(f"{called(arguments[0] if is_command else '')}: {needed}")
        return 2
    if is_command:
        command: Callable[[Sequence[str]], int]
        command = import_module(f"cifar_tl.command.{arguments[0]}").main
        return command(arguments[1:])
    return run_command(make_parser(), arguments, lambda _: 0, check=refuse)


def refuse(_: argparse.Namespace) -> None:
    """Refuses a line that parses but does not begin with a command."""
    raise UsageError("the command comes first (try --help)")


def make_parser() -> Parser:
    """Makes the parser of a line that names no command first, to say what there is."""
    parser = Parser("", "Transfer learning on CIFAR-10 and on classes of your own.")
    commands = parser.add_subparsers(
        title="commands",
        description="each with a --help of its own",
        metavar="COMMAND",
        required=True,
        parser_class=argparse.ArgumentParser,
    )
    for name, does in COMMANDS.items():
        commands.add_parser(name, help=does)
    parser.add_help_options()
    return parser


if __name__ == "__main__":
    start()
