"""A trained model on the images of a data source: ``python -m cifar_tl.evaluate MODEL``.

A command, not to be imported: as a module it would hide the function `cifar_tl.evaluate`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cifar_tl.checkpoint import CheckpointError, known_classes, load_model_and_settings
from cifar_tl.data import SHAPES, DataError, MissingDataError, load_data, select_classes
from cifar_tl.report import class_lines
from cifar_tl.training import confusion_matrix, evaluate

SPLITS = ("test", "validation", "training")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: The arguments; by default those of the process.

    Returns:
        The exit code: 0 done, 1 if the model or the data could not be read or do not fit.
    """
    parser = argparse.ArgumentParser(
        prog="python -m cifar_tl.evaluate",
        description="Measures loss and accuracy of a trained model, for each class and in all.",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", type=Path, help="a model.pt")
    add(
        "--data",
        metavar="SOURCE",
        default="data",
        help=f"a folder with CIFAR-10 (default: %(default)s) or with classes of your own, "
        f"a .npz file, or {SHAPES}",
    )
    add("--split", choices=SPLITS, default="test", help="which images (default: %(default)s)")
    options = parser.parse_args(argv)
    try:
        model, settings = load_model_and_settings(options.model)
        classes = known_classes(options.model, model, settings)
        data = load_data(options.data, progress=sys.stderr.isatty())
        expected = {label: data.class_names[label] for label in range(len(data.class_names))}
        if not classes.items() <= expected.items():
            raise DataError(
                f"{options.model} knows the classes {_listed(classes)}, but {options.data} has "
                f"{_listed(expected)}: name the data that it was made for"
            )
        if options.split == "test":
            examples = select_classes(data.test, classes)
            if not len(examples.labels):
                raise DataError(f"{options.data} has no test images: use --split validation")
        elif settings.get("fingerprint") != data.fingerprint:
            raise DataError(
                f"{options.model} was trained on other images than {options.data}: its training "
                "images may be anywhere among these; use --split test"
            )
        else:
            parts = data.train_and_validation(classes)
            examples = parts[options.split == "validation"]
    except MissingDataError:
        print(
            f"evaluate: CIFAR-10 is not in {options.data}: name the model's data with --data; "
            "python train.py downloads CIFAR-10",
            file=sys.stderr,
        )
        return 1
    except (CheckpointError, DataError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    metrics = evaluate(model, examples.images, examples.labels)
    confusion = confusion_matrix(model, examples.images, examples.labels)[list(classes)]
    print(
        f"{options.model} on {len(examples.labels):,} {options.split} images of {data.name}: "
        f"accuracy {metrics.accuracy:.2%}, loss {metrics.loss:.4f}\n"
    )
    print("\n".join(class_lines(confusion.tolist(), list(classes), list(classes.values()))))
    return 0


def _listed(classes: dict[int, str]) -> str:
    return ", ".join(f"{label} {name}" for label, name in classes.items())


if __name__ == "__main__":
    sys.exit(main())
