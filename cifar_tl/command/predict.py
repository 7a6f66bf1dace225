"""``cifar-tl predict``: names the classes of pictures."""

import argparse
import contextlib
import json
import math
import shlex
import sys
import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from cifar_tl.command.answers import (
    SIGNATURE,
    add_output_options,
    check_output,
    csv_row,
    write_answers,
)
from cifar_tl.command.arguments import (
    MODEL_HELP,
    add_mirror_average,
    at_least_one,
    check_mirror_average,
    check_model,
    fraction,
    local_path,
)
from cifar_tl.command.console import (
    Parser,
    UsageError,
    called,
    run_command,
    say,
    shows_progress,
    warn,
)
from cifar_tl.data.pictures.find import list_image_files, listed_names
from cifar_tl.errors import DataWarning, ImageError
from cifar_tl.experiment.stages import MODEL, OUTPUT_DIR, RESULT, STAGES
from cifar_tl.names import count, printable
from cifar_tl.pretrained import DEFAULT_MODEL

if TYPE_CHECKING:
    from cifar_tl.backbone import Network
    from cifar_tl.prediction import Prediction

    # A file, and its most probable classes, or why it cannot be read.
    Answer: TypeAlias = tuple[Path, list[Prediction] | ImageError]

TOP = 3  # classes to name
UNSURE, PROBLEM = "unsure", "problem"  # the names of columns, too


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
        help=f"classes to name (default: {TOP}; with --csv, all classes in their order)",
    )
    add_mirror_average(add)
    add(
        "--unsure",
        metavar="P",
        type=fraction,
        default=0.0,
        help=f"answer {UNSURE!r} if no class has the probability P; results.txt of a run says what "
        "that does (default: always name a class)",
    )
    add(
        "--sort",
        choices=("class", "probability"),
        help="the most doubtful answers first, of all pictures or of each class (default: the "
        "order of the files)",
    )
    add_output_options(add, "a row for each picture", "one JSON object a line")
    parser.add_help_options()
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command with some arguments; returns the exit code."""
    return run_command(make_parser(), argv, name_images, check=check)


def check(options: argparse.Namespace) -> None:
    """Checks that there is the model, and at least one picture; and where answers go."""
    check_output(options)
    check_model(model_of(options))
    if not any(path.exists() for path in options.images):
        raise UsageError(f"there is no file {options.images[0]}: check the path")


def name_images(options: argparse.Namespace) -> int:
    """Names the classes of each picture. Damaged files are reported, and the rest is done."""
    from cifar_tl.checkpoint import read_named_model
    from cifar_tl.machine import compute_with
    from cifar_tl.network import IMAGE_SIZE

    model, settings, outputs = read_named_model(model_of(options))
    if options.mirror_average:
        check_mirror_average(model_of(options), settings)
    files, notes = list_image_files(options.images)
    for note in notes:
        warnings.warn(note, DataWarning, stacklevel=1)
    if not files:
        raise ImageError("there are no images in these folders: name others, or files")
    top = len(outputs.classes) if options.csv else TOP
    read: list[Path] = []  # without what cannot be read
    found = answers_of(model, files, options, options.top or top, read)
    # Of small images, two threads would wait for each other at each layer. Reading needs the cores.
    threads = 1 if model.image_size == IMAGE_SIZE else None
    with compute_with(threads), contextlib.closing(found) as answers:
        in_order = answers if options.sort is None else doubtful_first(answers, options.sort)
        parts: Iterable[str] = lines(in_order, options, outputs.named)
        if options.output is not None:
            parts = list(parts)
            if not read:  # an older file stays
                return 1
        write_answers(parts, options.output)
    if options.output is not None:
        say(f"{printable(str(options.output))}: {count(len(read), 'picture')}")
    if options.model is None and read:
        warn(
            f"{called('predict')}: {DEFAULT_MODEL} answered, which can only know "
            f"{listed_names(outputs.names, most=len(outputs.names))}"
        )
        if own := newest_own_model(Path(OUTPUT_DIR)):
            warn(f"{called('predict')}: for your own classes add --model {shlex.quote(str(own))}")
    return 0 if len(read) == len(files) else 1


def answers_of(
    model: "Network",
    files: Sequence[Path],
    options: argparse.Namespace,
    top: int,
    read: list[Path],
) -> "Generator[Answer, None, None]":
    """Yields the answers for files, and reports what cannot be read. ``read`` gets the others."""
    from cifar_tl.data.pictures.read import read_each
    from cifar_tl.prediction import MirrorAverage, predict_each
    from cifar_tl.progress import above_bars, with_bar

    module = MirrorAverage(model) if options.mirror_average else model
    bar = "pictures" if shows_bar(options) else None
    with contextlib.closing(read_each(files, model.white, model.frame)) as images:
        found = with_bar(predict_each(module, images, top), bar, len(files))
        for path, predictions in zip(files, found, strict=True):
            if isinstance(predictions, ImageError):
                with above_bars():
                    warn(f"{called('predict')}: {predictions}")
            else:
                read.append(path)
            yield path, predictions


def doubtful_first(answers: "Iterable[Answer]", by: str) -> "list[Answer]":
    """Sorts answers: the lowest probability first; by ``class``, in the order of the classes.

    What cannot be read is last.
    """

    def key(answer: "Answer") -> tuple[float, float]:
        if isinstance(answer[1], ImageError):
            return (math.inf, 0.0)
        first = answer[1][0]
        return (first.label if by == "class" else 0, first.probability)

    return sorted(answers, key=key)


def lines(
    answers: "Iterable[Answer]", options: argparse.Namespace, named: Mapping[int, str]
) -> Iterator[str]:
    """Yields what is written for each answer: text, JSON, or a row of CSV."""
    if options.csv:
        yield from csv_rows(answers, options, named)
        return
    for path, predictions in answers:
        if isinstance(predictions, ImageError):
            continue
        is_unsure = predictions[0].probability < options.unsure
        if options.json:
            line: dict[str, Any] = {"file": str(path)}
            line |= {UNSURE: is_unsure} if options.unsure else {}
            line["classes"] = [prediction._asdict() for prediction in predictions]
            yield json.dumps(line) + "\n"
        else:
            names = ", ".join(f"{printable(p.name)} {p.probability:.1%}" for p in predictions)
            yield f"{printable(str(path))}: {f'{UNSURE} ({names})' if is_unsure else names}\n"


def csv_rows(
    answers: "Iterable[Answer]", options: argparse.Namespace, named: Mapping[int, str]
) -> Iterator[str]:
    """Yields the rows of a CSV file. Without ``--top``, each class has a column."""
    top: int | None = options.top
    head = ["file", "class", "probability", *([UNSURE] if options.unsure else [])]
    if top is None:
        head += named.values()
    else:
        more = range(2, min(top, len(named)) + 1)
        head += [f"{word} {place}" for place in more for word in ("class", "probability")]
    yield SIGNATURE + csv_row([*head, PROBLEM])
    for path, predictions in answers:
        if isinstance(predictions, ImageError):
            yield csv_row([str(path), *[""] * (len(head) - 1), str(predictions)])
            continue
        first, *others = predictions
        cells: list[str | float] = [str(path), first.name, first.probability]
        if options.unsure:
            cells.append("yes" if first.probability < options.unsure else "no")
        if top is None:
            probabilities = {other.label: other.probability for other in predictions}
            cells += [probabilities[label] for label in named]
        else:
            cells += [cell for other in others for cell in (other.name, other.probability)]
        yield csv_row([*cells, ""])


def shows_bar(options: argparse.Namespace) -> bool:
    """Returns whether a bar is shown: on a terminal, but not among the answers."""
    quiet = options.output is not None or options.sort is not None or not sys.stdout.isatty()
    return quiet and shows_progress()


def model_of(options: argparse.Namespace) -> Path:
    """Returns the model: the default if none is named."""
    return Path(DEFAULT_MODEL) if options.model is None else options.model


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
