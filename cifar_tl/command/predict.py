"""``cifar-tl predict``: names what is in pictures."""

import argparse
import json
import warnings
from collections.abc import Sequence
from pathlib import Path

from cifar_tl.command.arguments import at_least_one, check_model
from cifar_tl.command.console import Parser, UsageError, called, run_command, say, warn
from cifar_tl.data.find_images import list_image_files
from cifar_tl.data.source import OFFICIAL
from cifar_tl.errors import DataWarning, ImageError
from cifar_tl.experiment.run import MODEL, OUTPUT_DIR, stage_folder
from cifar_tl.names import printable

DEFAULT_MODEL = stage_folder(OUTPUT_DIR, OFFICIAL, "transfer") / MODEL


def make_parser() -> Parser:
    """Makes the parser."""
    parser = Parser("predict", "Names what is in pictures.")
    add = parser.add_group("pictures and model", "photo.jpg holiday/ --top 1")
    add("images", metavar="IMAGE", nargs="+", type=Path, help="a file, or a folder with files")
    add("--model", metavar="FILE", type=Path, default=DEFAULT_MODEL, help="(default: %(default)s)")
    add(
        "--top",
        metavar="N",
        type=at_least_one,
        default=3,
        help="classes to name (default: %(default)s)",
    )
    add("--json", action="store_true", help="one JSON object a line")
    parser.add_help_options()
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command with some arguments; returns the exit code."""
    return run_command(make_parser(), argv, name_images, check=check)


def check(options: argparse.Namespace) -> None:
    """Checks that the model and some of the pictures are there."""
    check_model(options.model)
    if not any(path.exists() for path in options.images):
        raise UsageError(f"there is no file {options.images[0]}: check the path")


def name_images(options: argparse.Namespace) -> int:
    """Names what is in each picture; what cannot be read is reported, and the rest done."""
    from cifar_tl.checkpoint import known_classes, load_model_and_settings
    from cifar_tl.data.image_files import read_image
    from cifar_tl.prediction import predict

    model, settings = load_model_and_settings(options.model)
    known_classes(options.model, model, settings)
    code, (files, notes) = 0, list_image_files(options.images)
    for note in notes:
        warnings.warn(note, DataWarning, stacklevel=1)
    for path in files:
        try:
            predictions = predict(model, read_image(path, model.white), options.top)
        except ImageError as error:
            warn(f"{called('predict')}: {error}")
            code = 1
            continue
        if options.json:
            found = [prediction._asdict() for prediction in predictions]
            say(json.dumps({"file": str(path), "classes": found}))
        else:
            named = ", ".join(f"{printable(p.name)} {p.probability:.1%}" for p in predictions)
            say(f"{printable(str(path))}: {named}")
    if not files:
        raise ImageError("there are no images in these folders: name others, or files")
    return code
