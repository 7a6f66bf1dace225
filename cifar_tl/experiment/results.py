"""What a run and a comparison of runs say, for people and for programs."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from cifar_tl.model import Layer
from cifar_tl.recipe import Recipe
from cifar_tl.training import EpochRecord


def epoch_line(record: EpochRecord, epochs: int) -> str:
    """Says what happened in one epoch, in one line.

    Args:
        record: The epoch.
        epochs: Number of epochs in the whole training.

    Returns:
        The line, without a line break.
    """
    return (
        f"epoch {record.epoch:{len(str(epochs))}}/{epochs}"
        f"  training: loss {record.train_loss:.4f}, accuracy {record.train_accuracy:7.2%}"
        f"  validation: loss {record.val_loss:.4f}, accuracy {record.val_accuracy:7.2%}"
        f"  {record.seconds_train:.2f} s + {record.seconds_validation:.2f} s"
    )


def summary(result: Mapping[str, Any]) -> str:
    """Says what came out of a stage, in one line.

    Args:
        result: The content of ``result.json``.

    Returns:
        The line, without a line break.
    """
    accuracy = result["test_accuracy"]
    tested = "no test images" if accuracy is None else f"test accuracy {accuracy:.2%}"
    return (
        f"{result['stage']} on {result['data']}: "
        f"validation accuracy {result['val_accuracy']:.2%}, "
        f"{tested}, {result['seconds_total']:.1f} s in all"
    )


def results_text(
    result: Mapping[str, Any], records: Sequence[EpochRecord], layers: Sequence[Layer]
) -> str:
    """Writes the report of one stage.

    Args:
        result: The content of ``result.json``.
        records: All epochs.
        layers: The rows of the layer table.

    Returns:
        Lines of plain ASCII.
    """
    classes = ", ".join(
        f"{label} {name}"
        for label, name in zip(result["classes"], result["class_names"], strict=True)
    )
    frozen = result["parameters_total"] - result["parameters_trainable"]
    table = [("#", "layer", "output", "parameters", "trained")]
    table += [
        (
            str(layer.number),
            layer.name,
            " x ".join(map(str, layer.shape)),
            f"{layer.parameters:,}",
            "" if layer.parameters == 0 else "yes" if layer.trainable else "no, frozen",
        )
        for layer in layers
    ]
    values = ", ".join(
        f"{field.name} {result[field.name]}"
        for field in dataclasses.fields(Recipe)
        if field.name in result
    )
    environment = [f"  {key}: {value}" for key, value in result["environment"].items()]
    changes = [
        f"  from epoch {part['from_epoch']} on: torch {part['torch']}, {part['threads']} threads, "
        f"device {part['device']}"
        for part in result["surroundings"]
    ]
    lines = [
        f"Stage {result['stage']} on {result['data']} ({result['data_description']})",
        f"Recipe {result['recipe']}: {values}",
        f"Seed {result['seed']}",
        f"Classes {classes}",
        f"{result['images_train']:,} training, {result['images_validation']:,} validation and "
        f"{result['images_test']:,} test images",
        "",
        *_align(table, "><<><"),
        f"{result['parameters_total']:,} parameters: {result['parameters_trainable']:,} trained, "
        f"{frozen:,} frozen",
        "",
        *(epoch_line(record, result["epochs"]) for record in records),
        "(training figures are those seen while training, with dropout; "
        "times are training + validation)",
        "",
        f"Validation: accuracy {result['val_accuracy']:.2%}, loss {result['val_loss']:.4f}",
    ]
    if result["images_test"]:
        lines.append(
            f"Test:       accuracy {result['test_accuracy']:.2%}, loss {result['test_loss']:.4f}"
        )
    lines += ["", *class_lines(result["val_confusion"], result["classes"], result["class_names"])]
    if result["num_classes"] > len(result["classes"]):
        lines.append(
            f"The model has {result['num_classes']} outputs, but knows only the "
            f"{len(result['classes'])} classes above."
        )
    lines += [
        "",
        f"Total time {result['seconds_total']:.1f} s: training {result['seconds_train']:.1f} s, "
        f"validation {result['seconds_validation']:.1f} s,",
        f"frozen features {result['seconds_features']:.1f} s, the rest reading, testing, saving",
        "Measured with",
        *environment,
        *(changes if len(changes) > 1 else ()),
    ]
    return "\n".join(lines) + "\n"


def class_accuracies(
    confusion: Sequence[Sequence[int]], classes: Sequence[int]
) -> list[float | None]:
    """Computes the accuracy of each class.

    Args:
        confusion: A row of counts for each class, a column for each output of the model.
        classes: The labels of the rows.

    Returns:
        A fraction for each row, None for a class without images.
    """
    return [
        row[label] / sum(row) if sum(row) else None
        for row, label in zip(confusion, classes, strict=True)
    ]


def most_confused(
    confusion: Sequence[Sequence[int]], classes: Sequence[int], names: Sequence[str], most: int = 3
) -> list[tuple[str, str, float]]:
    """Finds which classes are taken for which most often.

    Args:
        confusion: A row of counts for each class, a column for each output of the model.
        classes: The labels of the rows.
        names: Their names.
        most: How many confusions to name.

    Returns:
        The true class, the predicted one, and the fraction of the true one's images.
    """
    named = dict(zip(classes, names, strict=True))
    shares = [
        (count / sum(row), name, named.get(column, f"output {column}"))
        for row, label, name in zip(confusion, classes, names, strict=True)
        for column, count in enumerate(row)
        if column != label and count
    ]
    return [(name, other, share) for share, name, other in sorted(shares, reverse=True)[:most]]


def class_lines(
    confusion: Sequence[Sequence[int]], classes: Sequence[int], names: Sequence[str]
) -> list[str]:
    """Says how well each class is known, and which are taken for which most often.

    Args:
        confusion: A row of counts for each class, a column for each output of the model.
        classes: The labels of the rows.
        names: Their names.

    Returns:
        Lines of text.
    """
    table = [("class", "images", "accuracy")]
    for name, row, accuracy in zip(
        names, confusion, class_accuracies(confusion, classes), strict=True
    ):
        table.append((name, f"{sum(row):,}", "-" if accuracy is None else f"{accuracy:.2%}"))
    return _align(table, "<>>") + [
        f"{share:.1%} of {name} are taken for {other}"
        for name, other, share in most_confused(confusion, classes, names)
    ]


def compare(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Compares the four stages: what transfer saves, what it costs, and from when on it pays.

    The base model's time is a cost of transfer, too: with n transfers from one base model,
    transfer is cheaper than training from scratch if base + n * transfer < n * scratch.

    Args:
        results: The content of ``result.json`` of each stage by its name; base may be missing.

    Returns:
        The content of ``comparison.json``: for each way to a model of the new classes its accuracy,
        its seconds, the differences from scratch, and ``pays_from``, the number of transfers from
        which on it takes less time than scratch, base included (None: never, or there is no base;
        and for scratch).
    """
    scratch = results["scratch"]
    seconds_base = results["base"]["seconds_total"] if "base" in results else None
    ways = {"transfer": ("transfer",), "transfer+finetune": ("transfer", "finetune")}
    ways["scratch"] = ("scratch",)
    comparison: dict[str, Any] = {
        "data": scratch["data"],
        "data_description": scratch["data_description"],
        "recipe": scratch["recipe"],
        "seed": scratch["seed"],
        "train_fraction": scratch["train_fraction"],
        "images_train": scratch["images_train"],
        "stages": {
            stage: {
                "val_accuracy": result["val_accuracy"],
                "test_accuracy": result["test_accuracy"],
                "epochs": result["epochs"],
                "seconds_per_epoch": _seconds_per_epoch(result),
                "seconds_total": result["seconds_total"],
                "parameters_trainable": result["parameters_trainable"],
                "parameters_frozen": result["parameters_total"] - result["parameters_trainable"],
            }
            for stage, result in results.items()
        },
        "seconds_base": seconds_base,
        "ways": {},
    }
    for way, stages in ways.items():
        last = results[stages[-1]]
        seconds = sum(results[stage]["seconds_total"] for stage in stages)
        # The data is read once, whatever follows.
        seconds -= sum(results[stage].get("seconds_reading", 0.0) for stage in stages[1:])
        saved = scratch["seconds_total"] - seconds
        pays_from = None
        if seconds_base is not None and saved > 0:
            pays_from = math.floor(seconds_base / saved) + 1
        comparison["ways"][way] = {
            "val_accuracy": last["val_accuracy"],
            "test_accuracy": last["test_accuracy"],
            "seconds": seconds,
            "val_accuracy_above_scratch": last["val_accuracy"] - scratch["val_accuracy"],
            "seconds_saved": saved,
            "pays_from": pays_from,
        }
    return comparison


def comparison_text(comparison: Mapping[str, Any]) -> str:
    """Writes the comparison of the four stages as a table and in plain words.

    Args:
        comparison: What `compare` returned.

    Returns:
        Lines of plain ASCII.
    """
    table = [
        (
            *("stage", "validation", "test", "epochs"),
            *("s/epoch", "total s", "trainable", "frozen"),
        )
    ]
    stages = comparison["stages"]
    for stage, result in stages.items():
        table.append(
            (
                stage,
                f"{result['val_accuracy']:.2%}",
                f"{result['test_accuracy']:.2%}" if result["test_accuracy"] is not None else "-",
                str(result["epochs"]),
                f"{result['seconds_per_epoch']:.2f}",
                f"{result['seconds_total']:.1f}",
                f"{result['parameters_trainable']:,}",
                f"{result['parameters_frozen']:,}",
            )
        )
    lines = [
        f"Comparison on {comparison['data']} ({comparison['data_description']}), "
        f"recipe {comparison['recipe']}, seed {comparison['seed']}",
        f"{comparison['images_train']:,} training images of the new classes",
        "",
        *_align(table, "<>>>>>>>"),
        "",
        *(["base: the old classes; all others: the new classes."] if "base" in stages else []),
        "Accuracies are of validation and test images, and of one seed; s/epoch is training and",
        "validation; total s also has reading, frozen features, testing and saving. finetune goes",
        "on from transfer: its total s do not include transfer's, but reading once more, which the",
        "lines below count once. Times compare only if nothing else ran on the machine.",
        "",
    ]
    scratch = comparison["ways"]["scratch"]
    for way, result in comparison["ways"].items():
        if way == "scratch":
            continue
        points = 100 * result["val_accuracy_above_scratch"]
        saved = result["seconds_saved"]
        lines.append(
            f"{way}: {result['val_accuracy']:.2%} in {result['seconds']:.1f} s; "
            f"scratch: {scratch['val_accuracy']:.2%} in {scratch['seconds']:.1f} s."
        )
        lines.append(
            f"  It {'gains' if points >= 0 else 'costs'} {abs(points):.2f} points of validation "
            f"accuracy and {'saves' if saved > 0 else 'takes'} {abs(saved):.1f} s"
            f"{'' if saved > 0 else ' longer'}."
        )
        if comparison["seconds_base"] is None:
            lines.append("  The base model was there before: its time is not counted.")
            continue
        pays_from = result["pays_from"]
        base = f"  Counting the base model's {comparison['seconds_base']:.1f} s, it is "
        if pays_from is None:
            lines.append(base + "never faster than scratch.")
        elif pays_from == 1:
            lines.append(base + "faster than scratch from the first transfer on.")
        else:
            lines.append(base + f"faster than scratch once {pays_from} transfers share that base.")
    return "\n".join(lines) + "\n"


def _seconds_per_epoch(result: Mapping[str, Any]) -> float:
    seconds: float = (result["seconds_train"] + result["seconds_validation"]) / result["epochs"]
    return seconds


def _align(rows: Sequence[Sequence[str]], alignments: str) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            f"{cell:{alignment}{width}}"
            for cell, alignment, width in zip(row, alignments, widths, strict=True)
        ).rstrip()
        for row in rows
    ]
