"""``cifar-tl export``: writes a trained model for programs without this package."""

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from cifar_tl.command.arguments import MODEL_HELP, check_model, local_path
from cifar_tl.command.console import Parser, UsageError, run_command, say
from cifar_tl.names import numbered


def main(argv: Sequence[str]) -> int:
    """Runs the command with some arguments; returns the exit code."""
    return run_command(make_parser(), argv, export, check=check)


def make_parser() -> Parser:
    """Makes the parser."""
    parser = Parser(
        "export",
        "Writes a trained model as OUT.pt2 for torch.export.load and, after pip install "
        "'.[onnx]' in the clone, as OUT.onnx. Both take uint8 images.",
    )
    add = parser.add_group("model and files", "runs/cifar10/transfer/model.pt transfer")
    add("model", metavar="MODEL", type=local_path, help=MODEL_HELP)
    add("out", metavar="OUT", type=Path, help="the files' path without suffix")
    parser.add_help_options()
    return parser


def check(options: argparse.Namespace) -> None:
    """Checks that there is the model, and a folder for the files."""
    check_model(options.model)
    if options.out.name in ("", ".."):
        raise UsageError(f"{options.out}: names no file: add its name")
    if options.out.suffix in (".pt2", ".onnx"):
        options.out = options.out.with_suffix("")
    if not options.out.parent.is_dir():
        raise UsageError(f"{options.out}: there is no folder {options.out.parent}: make it first")


def export(options: argparse.Namespace) -> int:
    """Writes the .pt2 file, and the .onnx file if its packages are installed."""
    from cifar_tl.checkpoint import read_named_model
    from cifar_tl.export import ONNX_PACKAGES, export_onnx, export_pt2

    (model, _, outputs), out = read_named_model(options.model), options.out
    export_pt2(model, out.with_name(f"{out.name}.pt2"))
    say(f"{out}.pt2: for torch.export.load")
    if all(find_spec(package) for package in ONNX_PACKAGES):
        export_onnx(model, out.with_name(f"{out.name}.onnx"))
        say(f"{out}.onnx: for any ONNX runtime")
    else:
        say(f"no {out}.onnx: pip install {' '.join(ONNX_PACKAGES)}")
    untrained = ", ".join(map(str, outputs.untrained))
    never = f"; never trained: {untrained}" if untrained else ""
    say(f"outputs: {numbered(outputs.named)}{never}")
    return 0
