"""``cifar-tl evaluate``: measures a trained model on the images of a data source."""

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cifar_tl.command.arguments import (
    LABELS,
    MODEL_HELP,
    check_model,
    check_source,
    local_path,
    no_address,
)
from cifar_tl.command.console import Parser, UsageError, called, run_command, say, shows_progress
from cifar_tl.data.source import DEFAULT_SOURCE, SOURCES, check_early, lacks_cifar10
from cifar_tl.errors import CheckpointError, DataError
from cifar_tl.names import count, numbered

if TYPE_CHECKING:  # what needs torch is imported where it is used, when the arguments are good
    from cifar_tl.data.examples import Data
    from cifar_tl.experiment.features import Pictures

SPLITS = ("test", "validation", "training")


def main(argv: Sequence[str]) -> int:
    """Runs the command with some arguments; returns the exit code."""
    return run_command(make_parser(), argv, measure, check=check)


def make_parser() -> Parser:
    """Makes the parser."""
    parser = Parser(
        "evaluate", "Measures loss and accuracy of a trained model, for each class and in all."
    )
    add = parser.add_group("model and images", "runs/cifar10/transfer/model.pt --split validation")
    add("model", metavar="MODEL", type=local_path, help=MODEL_HELP)
    add(
        "--data",
        metavar="SOURCE",
        type=no_address,
        default=DEFAULT_SOURCE,
        help=f"{SOURCES} (default: %(default)s)",
    )
    add("--labels", **LABELS)
    add("--split", choices=SPLITS, default="test", help="which images (default: %(default)s)")
    parser.add_help_options()
    return parser


def check(options: argparse.Namespace) -> None:
    """Checks that the model and the data are there."""
    check_model(options.model)
    if options.data != DEFAULT_SOURCE:  # its absence has a message of its own
        check_source(options.data, options.labels)
    check_early(options.data, options.labels)
    if options.labels is None and lacks_cifar10(options.data):
        raise UsageError(
            f"CIFAR-10 is not in {options.data}: name the model's data with --data; "
            f"{called('train')} downloads CIFAR-10"
        )


def measure(options: argparse.Namespace) -> int:
    """Measures and prints."""
    from torch import nn

    from cifar_tl.balance import are_unequal, balanced_accuracy
    from cifar_tl.checkpoint import read_named_model
    from cifar_tl.data.source import load_data
    from cifar_tl.evaluation import confusion_matrix, evaluate
    from cifar_tl.experiment.features import logits_of
    from cifar_tl.experiment.findings.results import class_lines

    model, settings, outputs = read_named_model(options.model)
    classes = dict(zip(outputs.classes, outputs.names, strict=True))
    data = load_data(
        options.data,
        labels=options.labels,
        white=model.white,
        fit=model.frame.fit,
        progress=shows_progress(),
    )
    pictures = select_pictures(options, settings, classes, data)
    labels = outputs.of(pictures.examples().labels)
    precision = settings.get("precision", "float32")  # as it was judged
    logits = logits_of(model, pictures, precision, progress=shows_progress())
    if not logits.isfinite().all():
        raise CheckpointError(f"the outputs of {options.model} are no finite numbers: use another")
    metrics = evaluate(nn.Identity(), logits, labels)
    counts = confusion_matrix(nn.Identity(), logits, labels)
    confusion = counts[list(outputs.columns)].tolist()
    if are_unequal(labels):
        most = int(counts.sum(1).max()) / len(labels)
        beside = f", mean over classes {balanced_accuracy(counts):.2%}, always the most frequent "
        beside += f"class of these {most:.2%}"
    else:
        beside = ""
    say(
        f"{options.model} on {count(len(labels), f'{options.split} image')} of {data.name}: "
        f"accuracy {metrics.accuracy:.2%}{beside}, loss {metrics.loss:.4f}\n"
    )
    say("\n".join(class_lines(confusion, outputs)))
    return 0


def select_pictures(
    options: argparse.Namespace,
    settings: Mapping[str, Any],
    classes: Mapping[int, str],
    data: "Data",
) -> "Pictures":
    """Selects the images to measure on. Refuses images whose accuracy would mislead."""
    from cifar_tl.experiment.features import Pictures, pictures_of

    expected = dict(enumerate(data.class_names))
    if not classes.items() <= expected.items():
        raise DataError(
            f"{options.model} knows the classes {numbered(classes, 10)}, but {options.data} has "
            f"{numbered(expected, 10)}: name the data that it was made for"
        )
    found: dict[str, Pictures] = dict(zip(SPLITS[::-1], pictures_of(data, classes), strict=True))
    chosen = found[options.split]
    if options.split == "test":
        if not len(chosen.rows):
            raise DataError(f"{options.data} has no test images: use --split validation")
    elif settings.get("fingerprint") != data.fingerprint:
        raise DataError(
            f"{options.model} was trained on other images than {options.data}: its training "
            "images may be anywhere among these; use --split test"
        )
    return chosen
