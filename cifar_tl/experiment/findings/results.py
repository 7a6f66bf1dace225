"""The results of one stage, for people and for programs."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from torch import Tensor

from cifar_tl.experiment.findings.layers import Layer
from cifar_tl.experiment.findings.probabilities import UnsurePoint, probability_lines
from cifar_tl.experiment.findings.uncertainty import wilson_interval
from cifar_tl.experiment.findings.unequal import MEAN, beside, never_predicted
from cifar_tl.names import count, numbered, printable
from cifar_tl.outputs import Outputs
from cifar_tl.recipe import Recipe
from cifar_tl.training import EpochRecord

FEW_IMAGES = 1000  # fewer make an accuracy uncertain by some points


class _EveryResult(TypedDict):
    """What is in every ``result.json``, whatever version wrote it."""

    stage: str
    data: str
    data_description: str
    classes: list[int]
    class_names: list[str]
    recipe: str
    precision: str
    epochs: int
    seed: int
    train_fraction: float
    num_classes: int
    images_train: int
    images_validation: int
    images_test: int
    parameters_total: int
    parameters_trainable: int
    val_accuracy: float
    val_loss: float
    val_confusion: list[list[int]]
    test_accuracy: float | None
    test_loss: float | None
    seconds_train: float
    seconds_validation: float
    seconds_features: float
    seconds_total: float
    environment: dict[str, Any]
    surroundings: list[dict[str, Any]]


class StageResult(_EveryResult, total=False):
    """The content of ``result.json``: what was trained, with which values, and what came out.

    ``val_confusion`` has a row for each class and a column for each output. Accuracies are
    fractions, None without images; seconds of reading are those of the last run alone.
    """

    data_notes: list[str]
    fingerprint: str
    parent_stage: str | None
    parent: str | None
    parent_path: str | None
    backbone: str  # this and the next three: of a pretrained network alone
    backbone_source: dict[str, Any]
    backbone_preprocessing: dict[str, Any]
    fit: str
    optimizer: str
    lr: float
    schedule: str
    normalize: bool
    first_layer: str
    mirror: bool
    batch_size: int
    weight_decay: float
    momentum: float
    warmup: float
    dropout: float | None
    shift: int
    val_class_accuracies: list[float | None]
    val_most_confused: list[tuple[str, str, float]]
    class_balance: str  # only where training aimed at the mean over unequal classes
    val_balanced_accuracy: float  # this and the next five: only where classes are unequal
    val_balanced_interval: list[float]
    val_majority: float
    test_balanced_accuracy: float | None
    test_balanced_interval: list[float] | None
    test_majority: float | None
    seconds_epoch_fastest: float  # with its validation
    seconds_epoch_median: float
    seconds_epoch_slowest: float
    temperature: float  # this and the next seven: runs of before have none
    val_calibration_error: float
    val_calibration_error_before: float  # with temperature 1
    val_calibration_error_by_chance: float  # if all probabilities were right
    val_unsure: list[UnsurePoint]
    test_calibration_error: float | None
    test_calibration_error_before: float | None
    test_calibration_error_by_chance: float | None
    seconds_reading: float
    command: str  # that finished it, if it was one


def epoch_line(record: EpochRecord, epochs: int) -> str:
    """Says in one line what happened in an epoch."""
    mean = record.val_balanced_accuracy
    return (
        f"epoch {record.epoch:{len(str(epochs))}}/{epochs}"
        f"  training: loss {record.train_loss:.4f}, accuracy {record.train_accuracy:7.2%}, "
        f"{record.seconds_train:.2f} s"
        f"  validation: loss {record.val_loss:.4f}, accuracy {record.val_accuracy:7.2%}, "
        + ("" if math.isnan(mean) else f"{MEAN} {mean:7.2%}, ")
        + f"{record.seconds_validation:.2f} s"
    )


def is_shown(epoch: int, epochs: int) -> bool:
    """Returns whether an epoch is printed: the first, about twenty more, and the last are."""
    return epoch in (1, epochs) or epoch % math.ceil(epochs / 20) == 0


def summary(result: Mapping[str, Any]) -> str:
    """Says in one line what came out of a stage, from its ``result.json``."""
    accuracy = result["test_accuracy"]
    tested = "no test images" if accuracy is None else f"test accuracy {accuracy:.2%}"
    missing = never_predicted(result)
    return (
        f"{result['stage']} on {printable(result['data'])}: "
        f"validation accuracy {result['val_accuracy']:.2%}{doubt(result)}{beside(result, 'val')}, "
        f"{tested}{beside(result, 'test')}, {result['seconds_total']:.1f} s in all"
        + (f"; never predicted: {', '.join(missing)}" if missing else "")
    )


def doubt(result: Mapping[str, Any]) -> str:
    """Says how uncertain the validation accuracy is, if few images judge."""
    if result["images_validation"] >= FEW_IMAGES:
        return ""
    low, high = wilson_interval(result["val_accuracy"], result["images_validation"])
    return f" ({low:.0%} to {high:.0%}: {count(result['images_validation'], 'image')})"


def training_words(result: Mapping[str, Any], dropout: float) -> str:
    """Says what makes training figures other than those of the finished model.

    Args:
        result: The content of ``result.json``.
        dropout: The rate of layer 6 in training.
    """
    harder = [f"dropout {dropout}"] if dropout else []
    harder += ["shifts"] if result.get("shift") else []  # runs of before may lack it
    words = f"with {' and '.join(harder)}, while weights move" if harder else "while weights move"
    if "class_balance" in result:
        words += "; the loss has the offsets of balanced training"
    return words


def results_text(
    result: Mapping[str, Any],
    records: Sequence[EpochRecord],
    layers: Sequence[Layer],
    outputs: Outputs,
) -> str:
    """Writes the report of one stage from the content of its ``result.json``."""
    seen = training_words(result, max(layer.dropout for layer in layers))
    has_frozen = result.get("parent_stage") or "backbone" not in result
    made = "frozen features" if has_frozen else "images in the size of the network"
    lines = [
        *_what_was_trained(result),
        "",
        *_layer_lines(result, layers),
        "",
        *(epoch_line(record, result["epochs"]) for record in records),
        f"(training figures are those seen in training, {seen})",
        "",
        *_what_came_out(result, outputs),
        "",
        f"Total time {result['seconds_total']:.1f} s: training {result['seconds_train']:.1f} s, "
        f"validation {result['seconds_validation']:.1f} s,",
        f"{made} {result['seconds_features']:.1f} s, the rest reading, testing, saving",
        *_what_it_was_measured_with(result),
    ]
    return "\n".join(lines) + "\n"


def _what_was_trained(result: Mapping[str, Any]) -> list[str]:
    classes = dict(zip(result["classes"], result["class_names"], strict=True))
    return [
        f"Stage {result['stage']} on {result['data']} ({result['data_description']})",
        recipe_line(result),
        f"Seed {result['seed']}",
        *([f"Training aimed at the {MEAN}"] if "class_balance" in result else []),
        *_where_it_started(result),
        f"Classes {numbered(classes)}",
        f"{result['images_train']:,} training, {result['images_validation']:,} validation and "
        f"{count(result['images_test'], 'test image')}",
        *(
            f"NOTE: {printable(note)}" for note in result.get("data_notes", ())
        ),  # runs of before have none
    ]


def recipe_line(result: Mapping[str, Any]) -> str:
    """Lists the values of the recipe that a stage used."""
    names = [field.name for field in dataclasses.fields(Recipe) if field.name in result]
    return f"Recipe {result['recipe']}: {', '.join(f'{name} {result[name]}' for name in names)}"


def _where_it_started(result: Mapping[str, Any]) -> list[str]:
    if not result.get("parent_path"):  # runs of before do not say it
        return []
    parent = [f"From the {result['parent_stage']} model {printable(result['parent_path'])}"]
    if "backbone" not in result:
        return parent
    source = result["backbone_source"]
    start = "From the pretrained network" if result["parent_stage"] else "All of the network"
    return [
        *([*parent, f"  {learning_words(result)}"] if "learns_from" in result else []),
        f"{start} {printable(result['backbone'])}, fit {result['fit']}",
        *(f"  {name}: {printable(str(value))}" for name, value in source.items()),
        *(f"  {name}: {value}" for name, value in result["backbone_preprocessing"].items()),
    ]


def learning_words(result: Mapping[str, Any]) -> str:
    """Says which layers of a pretrained network went on learning."""
    return f"its layers from {printable(result['learns_from'])} on learn, but no batch norm"


def source_words(source: Mapping[str, Any]) -> str:
    """Says where the weights of a pretrained network are from."""
    digest = source.get("sha256") or source.get("sha256_of_tensors")
    words = f"weights {printable(source['weights'])}" if "weights" in source else "weights given"
    return words + (f", SHA-256 {digest}" if digest else "")


def _layer_lines(result: Mapping[str, Any], layers: Sequence[Layer]) -> list[str]:
    table = [("#", "layer", "output", "parameters", "trained")]
    for layer in layers:
        trained = "yes" if layer.trainable == layer.parameters else f"{layer.trainable:,} of them"
        trained = trained if layer.trainable else "no, frozen" if layer.parameters else ""
        shape = " x ".join(map(str, layer.shape))
        table.append((str(layer.number), layer.name, shape, f"{layer.parameters:,}", trained))
    total, trainable = result["parameters_total"], result["parameters_trainable"]
    return [
        *align(table, "><<><"),
        f"{total:,} parameters: {trainable:,} trained, {total - trainable:,} frozen",
    ]


def _what_came_out(result: Mapping[str, Any], outputs: Outputs) -> list[str]:
    lines = []
    for name, key in (("Validation", "val"), ("Test", "test")):
        if images := result[f"images_{'validation' if key == 'val' else key}"]:
            accuracy = result[f"{key}_accuracy"]
            low, high = wilson_interval(accuracy, images)
            lines.append(
                f"{f'{name}:':12}accuracy {accuracy:.2%}, loss {result[f'{key}_loss']:.4f}; "
                f"so many images leave {low:.1%} to {high:.1%} possible (*)"
            )
            if words := beside(result, key):
                lines.append(f"{'':12}{words.removeprefix(', ')} (*)")
    lines.append("(*) the interval of 95 % of Wilson (1927), for other images of the same kind")
    lines += probability_lines(result)
    lines += ["", *class_lines(result["val_confusion"], outputs)]
    if missing := never_predicted(result):
        lines.append(f"Never predicted: {', '.join(missing)}")
    if outputs.untrained:
        lines.append(
            f"The model has {outputs.size} outputs, but knows only the {len(outputs.classes)} "
            "classes above."
        )
    return lines


def _what_it_was_measured_with(result: Mapping[str, Any]) -> list[str]:
    lines = ["Measured with"]
    lines += [f"  {key}: {value}" for key, value in result["environment"].items()]
    if len(result["surroundings"]) > 1:
        lines += [
            f"  from epoch {part['from_epoch']} on: "
            + ", ".join(f"{key} {value}" for key, value in part.items() if key != "from_epoch")
            for part in result["surroundings"]
        ]
    return lines


def confusion_figures(confusion: Tensor, outputs: Outputs) -> dict[str, Any]:
    """Lists what ``result.json`` says of a confusion matrix ``(outputs, outputs)`` of counts."""
    rows = confusion[list(outputs.columns)].tolist()
    return {
        "val_confusion": rows,  # a row for each class, a column for each output
        "val_class_accuracies": class_accuracies(rows, outputs),
        "val_most_confused": [list(pair) for pair in most_confused(rows, outputs)],
    }


def class_accuracies(confusion: Sequence[Sequence[int]], outputs: Outputs) -> list[float | None]:
    """Computes the accuracy of each class, None for a class without images.

    Args:
        confusion: Counts: a row for each of the K classes, a column for each output of the model.
        outputs: The K classes and their outputs.
    """
    return [
        row[column] / sum(row) if sum(row) else None
        for row, column in zip(confusion, outputs.columns, strict=True)
    ]


def most_confused(
    confusion: Sequence[Sequence[int]], outputs: Outputs, most: int = 3
) -> list[tuple[str, str, float]]:
    """Finds the most frequent confusions; see `class_accuracies`.

    Returns:
        The true class, the predicted one, and the fraction of the true one's images.
    """
    named = outputs.named
    shares = [
        (count / sum(row), named[true], named.get(column, f"output {column}"))
        for row, true in zip(confusion, outputs.columns, strict=True)
        for column, count in enumerate(row)
        if column != true and count
    ]
    return [(name, other, share) for share, name, other in sorted(shares, reverse=True)[:most]]


def class_lines(confusion: Sequence[Sequence[int]], outputs: Outputs) -> list[str]:
    """Says how well each class is known, and which classes are confused most often."""
    rows = class_rows(confusion, outputs)
    return align(rows, "<>>") + confused_lines(confusion, outputs)


def class_rows(confusion: Sequence[Sequence[int]], outputs: Outputs) -> list[tuple[str, str, str]]:
    """Lists the number of images and the accuracy of each class, below a head."""
    rows = [("class", "images", "accuracy")]
    accuracies = class_accuracies(confusion, outputs)
    for name, row, accuracy in zip(outputs.names, confusion, accuracies, strict=True):
        rows.append((name, f"{sum(row):,}", "-" if accuracy is None else f"{accuracy:.2%}"))
    return rows


def confused_lines(confusion: Sequence[Sequence[int]], outputs: Outputs) -> list[str]:
    """Says which classes are confused most often."""
    return [
        f"{share:.1%} of {printable(name)} are taken for {printable(other)}"
        for name, other, share in most_confused(confusion, outputs)
    ]


def table(rows: Sequence[Sequence[str]], alignments: str) -> list[str]:
    """Makes a table in Markdown. The arguments are those of `align`."""
    lines = [f"| {line} |" for line in align(rows, alignments, between=" | ", strip=False)]
    rules = [
        f"{'-' * (len(cell) - 1)}{'-' if alignment == '<' else ':'}"
        for cell, alignment in zip(lines[0][2:-2].split(" | "), alignments, strict=True)
    ]
    return [lines[0], f"| {' | '.join(rules)} |", *lines[1:]]


def align(
    rows: Sequence[Sequence[str]], alignments: str, between: str = "  ", *, strip: bool = True
) -> list[str]:
    """Makes a line of each row. ``alignments`` has ``<`` or ``>`` for each column."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        between.join(
            f"{cell:{alignment}{width}}"
            for cell, alignment, width in zip(row, alignments, widths, strict=True)
        )
        for row in rows
    ]
    return [line.rstrip() for line in lines] if strip else lines
