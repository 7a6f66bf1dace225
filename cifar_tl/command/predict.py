"""A trained model on image files: ``python -m cifar_tl.predict IMAGE...``."""

import argparse
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from cifar_tl.checkpoint import CheckpointError, load_model_and_classes
from cifar_tl.images import ImageError, is_image_file, read_image
from cifar_tl.model import CifarNet

MODEL = Path("runs/cifar10/transfer/model.pt")


class Prediction(NamedTuple):
    """A class and how probable the model finds it."""

    label: int
    name: str
    probability: float


def predict(
    model: CifarNet, classes: Mapping[int, str], image: Tensor, top: int = 3
) -> list[Prediction]:
    """Names the most probable classes of one image; outputs never trained are left out.

    Args:
        model: In evaluation mode.
        classes: The names of the labels that it knows, from `load_model_and_classes`.
        image: ``(3, 32, 32)`` uint8, for example from `read_image`.
        top: How many classes at most.

    Returns:
        The classes, the most probable one first; over all known ones, probabilities sum to 1.
    """
    labels = list(classes)
    with torch.inference_mode():
        probabilities = model(image[None])[0, labels].softmax(0)
    values, places = probabilities.sort(descending=True, stable=True)
    return [
        Prediction(labels[place], classes[labels[place]], value)
        for value, place in zip(values[:top].tolist(), places[:top].tolist(), strict=True)
    ]


def image_files(paths: Sequence[Path]) -> Iterator[Path]:
    """Lists files, and for each folder the images in it and below it, in order.

    Args:
        paths: Files, whatever their names, and folders.
    """
    for path in paths:
        if path.is_dir():
            yield from sorted(filter(is_image_file, path.rglob("*")))
        else:
            yield path


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: The arguments; by default those of the process.

    Returns:
        The exit code: 0 done, 1 if the model or a file could not be read.
    """
    parser = argparse.ArgumentParser(
        prog="python -m cifar_tl.predict", description="Names what is in pictures."
    )
    add = parser.add_argument
    add("images", metavar="IMAGE", nargs="+", type=Path, help="a file, or a folder with files")
    add("--model", metavar="FILE", type=Path, default=MODEL, help="(default: %(default)s)")
    add("--top", metavar="N", type=int, default=3, help="classes to name (default: %(default)s)")
    add("--json", action="store_true", help="one JSON object a line")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names may hold any character
    options = parser.parse_args(argv)
    if options.top < 1:
        parser.error("--top must be at least 1")
    if not options.model.exists():
        return _fail(
            f"there is no model {options.model}: name one with --model, or make it with train.py"
        )
    try:
        model, classes = load_model_and_classes(options.model)
    except CheckpointError as error:
        return _fail(error)
    code, files = 0, 0
    for path in image_files(options.images):
        files += 1
        try:
            predictions = predict(model, classes, read_image(path), options.top)
        except ImageError as error:
            code = _fail(error)
            continue
        if options.json:
            found = [prediction._asdict() for prediction in predictions]
            print(json.dumps({"file": str(path), "classes": found}), flush=True)
        else:
            named = ", ".join(f"{p.name} {p.probability:.1%}" for p in predictions)
            print(f"{path}: {named}", flush=True)
    return code if files else _fail("there are no images in these folders")


def _fail(message: object) -> int:
    print(f"predict: {message}", file=sys.stderr, flush=True)
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # nobody reads any more; Python must not try again when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
