"""``cifar-tl evaluate``: measures a trained model on the images of a data source."""

import argparse
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_tl.command.answers import (
    SIGNATURE,
    add_output_options,
    check_output,
    csv_row,
    write_answers,
)
from cifar_tl.command.arguments import (
    LABELS,
    MODEL_HELP,
    add_mirror_average,
    check_mirror_average,
    check_model,
    check_source,
    local_path,
    no_address,
)
from cifar_tl.command.console import Parser, UsageError, called, run_command, say, shows_progress
from cifar_tl.data.pictures.find import TRAIN, VALIDATION, find_classes, is_part, part_of
from cifar_tl.data.source import (
    DEFAULT_SOURCE,
    SOURCES,
    check_early,
    kind_of,
    lacks_cifar10,
    results_name,
)
from cifar_tl.errors import CheckpointError, DataError, DataWarning
from cifar_tl.experiment.stages import FEATURES, PICTURE_CACHE
from cifar_tl.names import count, numbered, portable, printable

if TYPE_CHECKING:  # what needs torch is imported where it is used, when the arguments are good
    from torch import Tensor

    from cifar_tl.backbone import Network
    from cifar_tl.data.examples import Data
    from cifar_tl.experiment.frozen import Pictures
    from cifar_tl.outputs import Outputs

SPLITS = ("test", "validation", "training")
HEAD = ("truth", "answer", "probability")  # of a CSV file, after the file or the number


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
    add_mirror_average(add)
    add_output_options(add, "a row for each image, the surest errors first", "one JSON object")
    parser.add_help_options()
    return parser


def check(options: argparse.Namespace) -> None:
    """Checks that the model and the data are there, and where the answers go."""
    check_output(options)
    check_model(options.model)
    if options.data != DEFAULT_SOURCE:  # its absence has a message of its own
        check_source(options.data, options.labels)
    if is_plain(options):
        find_classes(Path(options.data), judged=True)
    else:
        check_early(options.data, options.labels)
    if options.labels is None and lacks_cifar10(options.data):
        raise UsageError(
            f"CIFAR-10 is not in {options.data}: name the model's data with --data; "
            f"{called('train')} downloads CIFAR-10"
        )


def is_plain(options: argparse.Namespace) -> bool:
    """Returns whether the data is a folder of labelled images, and all of them are to be judged."""
    if options.labels is not None or options.split != "test":
        return False
    is_folders = kind_of(options.data).module == "class_folders"
    return is_folders and not (Path(options.data) / TRAIN).is_dir()


def measure(options: argparse.Namespace) -> int:
    """Measures and prints."""
    from cifar_tl.checkpoint import read_named_model
    from cifar_tl.data.source import load_data
    from cifar_tl.experiment.features import Cache, logits_of

    model, settings, outputs = read_named_model(options.model)
    if options.mirror_average:
        check_mirror_average(options.model, settings)
    classes = dict(zip(outputs.classes, outputs.names, strict=True))
    cache = Cache()
    if is_plain(options):
        pictures = judge_folder(options, model, settings, classes)
    else:
        kept = cache_of_training(options, settings)
        data = load_data(
            options.data,
            labels=options.labels,
            white=model.white,
            fit=model.frame.fit,
            picture_cache=kept,
            progress=shows_progress(),
        )
        pictures = select_pictures(options, settings, classes, data)
        if kept is not None and data.fingerprint == settings.get("fingerprint"):
            cache = Cache(pictures=kept.parent / FEATURES)
    labels = outputs.of(pictures.examples().labels)
    precision = settings.get("precision", "float32")  # as it was judged
    logits = logits_of(
        model,
        pictures,
        precision,
        mirror_average=options.mirror_average,
        progress=shows_progress(),
        cache=cache,
    )
    if not logits.isfinite().all():
        raise CheckpointError(f"the outputs of {options.model} are no finite numbers: use another")
    report = figures(options, pictures, logits, labels, outputs)
    if options.csv:
        write_answers(
            csv_rows(pictures, logits / model.temperature, labels, outputs), options.output
        )
    elif options.json:
        write_answers([json.dumps(report) + "\n"], options.output)
    if options.output is not None or not (options.csv or options.json):
        say(in_words(report, outputs))
    return 0


def cache_of_training(options: argparse.Namespace, settings: Mapping[str, Any]) -> Path | None:
    """Finds the pictures that training has kept, if these data are those of the training."""
    name = settings.get("data")
    if name != results_name(options.data, options.labels):
        return None
    above = Path(options.model).absolute().parents
    caches = [folder / PICTURE_CACHE for folder in above if folder.name == name]
    return next((cache for cache in caches if cache.is_dir()), None)


def figures(
    options: argparse.Namespace,
    pictures: "Pictures",
    logits: "Tensor",
    labels: "Tensor",
    outputs: "Outputs",
) -> dict[str, Any]:
    """Computes all figures, as plain values."""
    from torch import nn

    from cifar_tl.balance import are_unequal, balanced_accuracy
    from cifar_tl.evaluation import confusion_matrix, evaluate
    from cifar_tl.experiment.findings.results import class_accuracies

    metrics = evaluate(nn.Identity(), logits, labels)
    counts = confusion_matrix(nn.Identity(), logits, labels)
    confusion: list[list[int]] = counts[list(outputs.columns)].tolist()
    each = zip(
        outputs.classes, outputs.names, confusion, class_accuracies(confusion, outputs), strict=True
    )
    return {
        "model": str(options.model),
        "data": pictures.data.name,
        "split": options.split,
        "mirror_average": options.mirror_average,
        "images": len(labels),
        "accuracy": metrics.accuracy,
        "balanced_accuracy": balanced_accuracy(counts),
        "loss": metrics.loss,
        **({"majority": int(counts.sum(1).max()) / len(labels)} if are_unequal(labels) else {}),
        "classes": [
            {"label": label, "name": name, "images": sum(row), "accuracy": accuracy}
            for label, name, row, accuracy in each
        ],
        "confusion": confusion,
    }


def in_words(report: Mapping[str, Any], outputs: "Outputs") -> str:
    """Writes the figures for people."""
    from cifar_tl.experiment.findings.results import class_lines

    images = count(report["images"], f"{report['split']} image")
    averaged = ", averaged with mirror images" if report["mirror_average"] else ""
    most = report.get("majority")
    beside = "" if most is None else f", always the most frequent class of these {most:.2%}"
    first = (
        f"{report['model']} on {images} of {printable(report['data'])}{averaged}: accuracy "
        f"{report['accuracy']:.2%}, mean over classes {report['balanced_accuracy']:.2%}{beside}, "
        f"loss {report['loss']:.4f}\n"
    )
    return "\n".join([first, *class_lines(report["confusion"], outputs)])


def csv_rows(
    pictures: "Pictures", logits: "Tensor", labels: "Tensor", outputs: "Outputs"
) -> Iterator[str]:
    """Yields the rows of a CSV file: the surest errors first, then the most doubtful right answers.

    The answer is the largest output, trained or not, as it counts for the accuracy.
    """
    from cifar_tl.prediction import probabilities_of

    answers = logits.argmax(1).cpu()
    # Those of `predict`. An output that was never trained has none.
    probabilities = logits.new_zeros(logits.shape)
    probabilities[:, list(outputs.columns)] = probabilities_of(logits, outputs.columns)
    values = probabilities.cpu().gather(1, answers[:, None])[:, 0]
    files = pictures.data.files.get(pictures.part)
    named = outputs.named
    found = [
        (row if files is None else files[row], truth, answer, probability)
        for row, truth, answer, probability in zip(
            pictures.rows.tolist(), labels.tolist(), answers.tolist(), values.tolist(), strict=True
        )
    ]
    found.sort(key=lambda row: (row[1] == row[2], row[3] if row[1] == row[2] else -row[3]))
    yield SIGNATURE + csv_row(["number" if files is None else "file", *HEAD])
    for place, truth, answer, probability in found:
        yield csv_row([place, named[truth], named.get(answer, f"output {answer}"), probability])


def judge_folder(
    options: argparse.Namespace,
    model: "Network",
    settings: Mapping[str, Any],
    classes: Mapping[int, str],
) -> "Pictures":
    """Reads a folder with all its images as test images. Refuses images of the training."""
    import torch

    from cifar_tl.data.class_folders import read_test_folders
    from cifar_tl.data.examples import check_pixels
    from cifar_tl.experiment.frozen import Pictures

    folder = Path(options.data)
    name = portable(folder.resolve().name)
    if is_part(name) and part_of(name) in (TRAIN, VALIDATION):
        raise DataError(
            f"{folder} has the name of training images: name the folder above it, or rename it if "
            f"{options.model} has learned from none of its images"
        )
    data = read_test_folders(
        folder, classes, white=model.white, fit=model.frame.fit, progress=shows_progress()
    )
    if data.fingerprint == settings.get("fingerprint"):
        raise DataError(f"{options.data} has no test images: use --split validation")
    if name == settings.get("data"):
        raise DataError(
            f"{options.model} was trained on images in a folder {name}, and {folder} holds others "
            "now: its training images may be anywhere among them; put new images into a folder of "
            "another name"
        )
    check_pixels(data)
    for note in data.notes:
        warnings.warn(note, DataWarning, stacklevel=1)
    rows = torch.arange(len(data.test.labels))
    warnings.warn(
        f"{folder} has no folder {TRAIN}: all its {count(len(rows), 'image')} are test images; if "
        f"{options.model} has learned from some of them, the accuracy says too much",
        DataWarning,
        stacklevel=1,
    )
    return Pictures(data, "test", "test", rows, tuple(classes))


def select_pictures(
    options: argparse.Namespace,
    settings: Mapping[str, Any],
    classes: Mapping[int, str],
    data: "Data",
) -> "Pictures":
    """Selects the images to measure on. Refuses images whose accuracy would mislead."""
    from cifar_tl.experiment.frozen import Pictures, pictures_of

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
