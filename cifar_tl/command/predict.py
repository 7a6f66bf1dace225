"""``cifar-tl predict``: names the classes of pictures."""

import argparse
import contextlib
import json
import shlex
import warnings
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path

from cifar_tl.command.arguments import MODEL_HELP, at_least_one, check_model, local_path
from cifar_tl.command.console import Parser, UsageError, called, run_command, say, warn
from cifar_tl.data.pictures.find import list_image_files
from cifar_tl.errors import DataWarning, ImageError
from cifar_tl.experiment.stages import MODEL, OUTPUT_DIR, RESULT, STAGES
from cifar_tl.names import printable
from cifar_tl.pretrained import DEFAULT_MODEL


def make_parser() -> Parser:
    """Makes the parser."""
    parser = Parser("predict", "Names what is in pictures.")
    add = parser.add_group("pictures and model", "photo.jpg holiday/ --top 1")
    add(
        "images", metavar="IMAGE", nargs="+", type=local_path, help="a file, or a folder with files"
    )
    add(
        "--model",
        metavar="FILE",
        type=local_path,
        help=f"{MODEL_HELP} (default: {DEFAULT_MODEL}, which knows the ten classes of CIFAR-10)",
    )
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
    """Checks that there is the model, and at least one picture."""
    check_model(model_of(options))
    if not any(path.exists() for path in options.images):
        raise UsageError(f"there is no file {options.images[0]}: check the path")


def name_images(options: argparse.Namespace) -> int:
    """Names the classes of each picture. Damaged files are reported, and the rest is done."""
    from cifar_tl.checkpoint import read_named_model
    from cifar_tl.data.pictures.read import read_image
    from cifar_tl.prediction import predict

    model, _, outputs = read_named_model(model_of(options))
    code, (files, notes) = 0, list_image_files(options.images)
    for note in notes:
        warnings.warn(note, DataWarning, stacklevel=1)
    if not files:
        raise ImageError("there are no images in these folders: name others, or files")
    answers = 0
    for path in files:
        try:
            predictions = predict(model, read_image(path, model.white, model.frame), options.top)
        except ImageError as error:
            warn(f"{called('predict')}: {error}")
            code = 1
            continue
        answers += 1
        if options.json:
            found = [prediction._asdict() for prediction in predictions]
            say(json.dumps({"file": str(path), "classes": found}))
        else:
            named = ", ".join(f"{printable(p.name)} {p.probability:.1%}" for p in predictions)
            say(f"{printable(str(path))}: {named}")
    if options.model is None and answers:
        warn(
            f"{called('predict')}: {DEFAULT_MODEL} answered, which can only know "
            f"{listing(outputs.names)}"
        )
        if own := newest_own_model(Path(OUTPUT_DIR)):
            warn(f"{called('predict')}: for your own classes add --model {shlex.quote(str(own))}")
    return code


def model_of(options: argparse.Namespace) -> Path:
    """Returns the model: the default if none is named."""
    return Path(DEFAULT_MODEL) if options.model is None else options.model


def listing(classes: Sequence[str]) -> str:
    """Lists the names of classes in a sentence."""
    *names, last = map(printable, classes)
    return f"{', '.join(names)} and {last}"


def newest_own_model(output_dir: Path) -> Path | None:
    """Finds the best model on the user's own classes, in the newest folder of results.

    Its classes are the user's own if a stage after the base knows all classes of its data.
    """
    from cifar_tl.experiment.findings.unequal import deciding
    from cifar_tl.experiment.folder import read_result

    found = []
    for path in output_dir.glob(f"*/*/**/{RESULT}"):
        model, folder = path.with_name(MODEL), path.relative_to(output_dir).parts[0]
        with contextlib.suppress(OSError, ValueError):  # damaged, or no model
            result, _ = read_result(path)
            is_new = STAGES[result["stage"]].learns == "new"
            if is_new and len(result["classes"]) == result["num_classes"]:
                found.append((model.stat().st_mtime, folder, model, result))
    if not found:
        return None
    _, newest, _, _ = max(found, key=itemgetter(0))
    models = {model: result for _, folder, model, result in found if folder == newest}
    key = deciding(models.values())
    return max(models, key=lambda model: (models[model][key], model))
