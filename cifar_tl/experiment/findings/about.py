"""What a page that predicts says of its model: when it was made, from what, and how good it is."""

import datetime
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cifar_tl.experiment.findings.results import class_accuracies
from cifar_tl.experiment.findings.uncertainty import wilson_interval
from cifar_tl.experiment.findings.unequal import beside
from cifar_tl.experiment.folder import read_result
from cifar_tl.experiment.stages import RESULT
from cifar_tl.names import count
from cifar_tl.outputs import Outputs
from cifar_tl.page import is_page
from cifar_tl.pretrained import FOLDER, is_pretrained, read_model_file
from cifar_tl.version import __version__

_UNKNOWN = "How often it is right, this page does not know: no result.json of it was there."


class About(NamedTuple):
    """What a page says of its model."""

    sentences: list[str]
    rows: list[tuple[str, ...]]  # of the classes, with a head; or none


def about_model(
    path: Path, settings: Mapping[str, Any], outputs: Outputs, today: datetime.date | None = None
) -> About:
    """Says what is known of a model.

    Args:
        path: Its file, or the name of a model that comes with the package.
        settings: Those in the file.
        outputs: Its classes.
        today: The date of the page. Default: today.
    """
    digest = hashlib.sha256(read_model_file(path)).hexdigest()
    made = (
        f"Made on {today or datetime.date.today()} by cifar_tl {__version__} from {path.name}. Its "
        f"SHA-256 begins with {digest[:12]}."
    )
    if is_pretrained(path):
        return About([made, _published(path.name)], [])
    result = _result_of(path, settings)
    if result is None:
        return About([made, _UNKNOWN], [])
    learned = (
        f"It is the {result['stage']} model of {result['data']}. It learned from "
        f"{count(result['images_train'], 'image')}."
    )
    accuracies = [
        _accuracy(result, key, name)
        for key, name in (("val", "validation"), ("test", "test"))
        if result[f"{key}_accuracy"] is not None
    ]
    interval = (
        "The range is the interval of 95 % of Wilson (1927), for other images of the same kind."
    )
    return About([made, learned, *accuracies, interval], _class_rows(result, outputs))


def _published(name: str) -> str:
    """Says what README.md in the folder of the trained models says of one of them."""
    lines = (FOLDER / "README.md").read_text(encoding="utf-8").splitlines()
    row = next(line for line in lines if line.startswith(f"| `{name}` |"))
    _, _, _, images, validation, test, *_ = (cell.strip() for cell in row.split("|"))
    return (
        f"It learned from {images} images of CIFAR-10. Accuracy on other images: {validation} "
        f"(validation), {test} (test)."
    )


def _result_of(path: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Reads the result beside a model. None: there is none, or it is of another model."""
    try:
        result, _ = read_result(path.with_name(RESULT))
    except ValueError:
        return None
    names = ("classes", "class_names", *settings)
    is_same = all(result.get(name) == settings.get(name) for name in names if name in result)
    return result if is_same else None


def _accuracy(result: Mapping[str, Any], key: str, name: str) -> str:
    images = result["images_validation" if key == "val" else "images_test"]
    accuracy = result[f"{key}_accuracy"]
    low, high = wilson_interval(accuracy, images)
    return (
        f"Accuracy on {count(images, f'{name} image')}: {accuracy:.1%} ({low:.1%} to {high:.1%})"
        f"{beside(result, key)}."
    )


def _class_rows(result: Mapping[str, Any], outputs: Outputs) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("Class", "Validation images", "Accuracy", "Range")]
    accuracies = class_accuracies(result["val_confusion"], outputs)
    for name, row, accuracy in zip(outputs.names, result["val_confusion"], accuracies, strict=True):
        figures = ("-", "-")
        if accuracy is not None:
            low, high = wilson_interval(accuracy, sum(row))
            figures = (f"{accuracy:.1%}", f"{low:.1%} to {high:.1%}")
        rows.append((name, f"{sum(row):,}", *figures))
    return rows


def pages_in(folder: Path) -> Sequence[str]:
    """Names the pages that predict in a folder."""
    return sorted(path.name for path in folder.glob("*.html") if is_page(path))
