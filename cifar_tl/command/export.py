"""``cifar-tl export``: writes a trained model for programs without this package, or as a page."""

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from cifar_tl.command.arguments import MODEL_HELP, check_model, local_path
from cifar_tl.command.console import Parser, UsageError, run_command, say
from cifar_tl.experiment.stages import REPORT
from cifar_tl.names import numbered

PAGE = ".html"


def main(argv: Sequence[str]) -> int:
    """Runs the command with some arguments; returns the exit code."""
    return run_command(make_parser(), argv, export, check=check)


def make_parser() -> Parser:
    """Makes the parser."""
    parser = Parser(
        "export",
        "Writes a trained model as OUT.pt2 for torch.export.load and, after pip install "
        "'.[onnx]' in the clone, as OUT.onnx. Both take uint8 images. If OUT ends with .html, "
        "writes one page that classifies pictures in a browser, without a network.",
    )
    add = parser.add_group("model and files", "runs/cifar10/transfer/model.pt transfer")
    add("model", metavar="MODEL", type=local_path, help=MODEL_HELP)
    add("out", metavar="OUT", type=Path, help="the files' path without suffix, or a page's path")
    add(
        "--any-size",
        action="store_true",
        help="the model in .pt2 and .onnx takes pictures of any size, (N, 3, H, W), and scales "
        "them itself, as predict does (default: they have the size that the network sees)",
    )
    parser.add_help_options()
    return parser


def check(options: argparse.Namespace) -> None:
    """Checks that there is the model, and a folder for the files."""
    check_model(options.model)
    if options.out.name in ("", "..", PAGE):
        raise UsageError(f"{options.out}: names no file: add its name")
    if options.any_size and options.out.suffix.lower() == PAGE:
        raise UsageError("a page takes pictures of any size: leave out --any-size")
    if options.out.suffix in (".pt2", ".onnx"):
        options.out = options.out.with_suffix("")
    if not options.out.parent.is_dir():
        raise UsageError(f"{options.out}: there is no folder {options.out.parent}: make it first")


def export(options: argparse.Namespace) -> int:
    """Writes the page, or the .pt2 file, and the .onnx file if its packages are installed."""
    if options.out.suffix.lower() == PAGE:
        return export_page(options)
    from cifar_tl.checkpoint import read_named_model
    from cifar_tl.export import ONNX_PACKAGES, describe_input, export_onnx, export_pt2

    (model, _, outputs), out = read_named_model(options.model), options.out
    any_size = options.any_size
    export_pt2(model, out.with_name(f"{out.name}.pt2"), any_size=any_size)
    say(f"{out}.pt2: for torch.export.load")
    if all(find_spec(package) for package in ONNX_PACKAGES):
        export_onnx(model, out.with_name(f"{out.name}.onnx"), any_size=any_size)
        say(f"{out}.onnx: for any ONNX runtime")
    else:
        say(f"no {out}.onnx: pip install {' '.join(ONNX_PACKAGES)}")
    say(f"input: {describe_input(model, any_size)['in_words']}")
    untrained = ", ".join(map(str, outputs.untrained))
    never = f"; never trained: {untrained}" if untrained else ""
    say(f"outputs: {numbered(outputs.named)}{never}")
    return 0


def export_page(options: argparse.Namespace) -> int:
    """Writes the page. A report in the same folder gets a link to it."""
    from cifar_tl.backbone import Backbone
    from cifar_tl.checkpoint import read_named_model
    from cifar_tl.errors import ExportError
    from cifar_tl.experiment.findings.about import about_model, pages_in
    from cifar_tl.experiment.findings.report import with_links
    from cifar_tl.experiment.folder import save_report
    from cifar_tl.page import write_page

    (model, settings, outputs), out = read_named_model(options.model), options.out
    if isinstance(model, Backbone):
        parameters = sum(parameter.numel() for parameter in model.parameters())
        raise ExportError(
            f"no page {out}: {model.name} has {parameters:,} parameters and sees "
            f"{model.image_size}x{model.image_size} pixels, and a page computes in plain "
            f"JavaScript, enough for the documented network: export {out.with_suffix('.onnx')}"
        )
    write_page(out, model, outputs, *about_model(options.model, settings, outputs))
    say(f"{out}: open it in a browser, or send it to somebody")
    report = out.parent / REPORT
    if report.is_file():
        old = report.read_text(encoding="utf-8", errors="backslashreplace")
        linked = with_links(old, pages_in(out.parent))
        if linked != old:
            save_report(out.parent, linked)
            say(f"{report}: has a link to it")
    return 0
