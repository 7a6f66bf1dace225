"""What transfer saves and costs: the stages of one experiment side by side."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

from cifar_tl.experiment.findings.results import table
from cifar_tl.experiment.findings.uncertainty import accuracy_difference_is_clear
from cifar_tl.experiment.stages import way_to


def compare(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Compares the four stages: what transfer saves, what it costs, and from when on it pays.

    The base model's time is a cost of transfer, too: with n transfers from one base model,
    transfer is cheaper than training from scratch if base + n * transfer < n * scratch.

    Args:
        results: The content of ``result.json`` of each stage by its name; base may be missing.

    Returns:
        The content of ``comparison.json``; ``pays_from`` is the number of transfers from which on
        it takes less time than scratch, base included (None: never, or there is no base).
    """
    scratch = results["scratch"]
    seconds_base = results["base"]["seconds_total"] if "base" in results else None
    same = ("data", "data_description", "recipe", "seed", "train_fraction", "images_train")
    comparison: dict[str, Any] = {
        **{key: scratch[key] for key in (*same, "images_validation")},
        "stages": {
            stage: {
                "val_accuracy": result["val_accuracy"],
                "test_accuracy": result["test_accuracy"],
                "epochs": result["epochs"],
                "seconds_per_epoch": (result["seconds_train"] + result["seconds_validation"])
                / result["epochs"],
                "seconds_total": result["seconds_total"],
                "parameters_trainable": result["parameters_trainable"],
                "parameters_frozen": result["parameters_total"] - result["parameters_trainable"],
            }
            for stage, result in results.items()
        },
        "seconds_base": seconds_base,
        "ways": {},
    }
    for name in results:
        if not (stages := way_to(name)):
            continue
        way, last = "+".join(stages), results[name]
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
            "is_clear": accuracy_difference_is_clear(
                last["val_accuracy"], scratch["val_accuracy"], scratch["images_validation"]
            ),
            "seconds_saved": saved,
            "pays_from": pays_from,
        }
    return comparison


def comparison_text(comparison: Mapping[str, Any]) -> str:
    """Writes what `compare` returned as a table and in plain words, in plain ASCII."""
    has_base = "base" in comparison["stages"]
    lines = [
        f"Comparison on {comparison['data']} ({comparison['data_description']}), "
        f"recipe {comparison['recipe']}, seed {comparison['seed']}",
        f"{comparison['images_train']:,} training and {comparison['images_validation']:,} "
        "validation images of the new classes",
        "",
        *table(stage_rows(comparison["stages"]), "<>>>>>>>"),
        "",
        *(["base: the old classes; all others: the new classes."] if has_base else []),
        "Accuracies are of validation and test images, and of one seed; s/epoch is training and",
        "validation; total s also has reading, frozen features, testing and saving. finetune goes",
        "on from transfer: its total s do not include transfer's, but reading once more, which the",
        "lines below count once. Times compare only if nothing else ran on the machine.",
        *first_layer_lines(comparison["stages"]["scratch"]["parameters_frozen"]),
        "",
        *itertools.chain(*way_sentences(comparison)),
    ]
    return "\n".join(lines) + "\n"


def stage_rows(stages: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Lists what came out of each stage, below a head."""
    columns = "stage,validation,test,epochs,s/epoch,total s,trainable,frozen"
    rows = [columns.split(",")]
    for stage, result in stages.items():
        tested = result["test_accuracy"]
        rows.append(
            [
                stage,
                f"{result['val_accuracy']:.2%}",
                "-" if tested is None else f"{tested:.2%}",
                str(result["epochs"]),
                f"{result['seconds_per_epoch']:.2f}",
                f"{result['seconds_total']:.1f}",
                f"{result['parameters_trainable']:,}",
                f"{result['parameters_frozen']:,}",
            ]
        )
    return rows


def first_layer_lines(frozen: int) -> list[str]:
    """Says why so many weights of the control are frozen, if any are."""
    if not frozen:
        return []
    return ["scratch keeps its first layer as computed from its images: the others are trained."]


def way_sentences(comparison: Mapping[str, Any]) -> list[list[str]]:
    """Says in plain words what each way saves and costs, a sentence a line."""
    ways, images = comparison["ways"], comparison["images_validation"]
    return [
        _way_lines(way, result, ways["scratch"], comparison["seconds_base"], images)
        for way, result in ways.items()
        if way != "scratch"
    ]


def _way_lines(
    way: str,
    result: Mapping[str, Any],
    scratch: Mapping[str, Any],
    seconds_base: float | None,
    images: int,
) -> list[str]:
    points = 100 * result["val_accuracy_above_scratch"]
    saved, pays_from = result["seconds_saved"], result["pays_from"]
    if result["is_clear"]:
        accuracy = f"It {'gains' if points >= 0 else 'costs'} {abs(points):.2f} points of"
        accuracy += " validation accuracy and"
    else:
        accuracy = f"It is {abs(points):.2f} points {'above' if points >= 0 else 'below'} in"
        accuracy += f" validation accuracy, no clear difference by {images:,} images, and"
    time = f"saves {saved:.1f} s" if saved > 0 else f"takes {abs(saved):.1f} s longer"
    base = f"  Counting the base model's {seconds_base or 0:.1f} s, it is "
    if seconds_base is None:
        base = "  The base model was there before: its time is not counted."
    elif pays_from is None:
        base += "never faster than scratch."
    elif pays_from == 1:
        base += "faster than scratch from the first transfer on."
    else:
        base += f"faster than scratch once {pays_from} transfers share that base."
    return [
        f"{way}: {result['val_accuracy']:.2%} in {result['seconds']:.1f} s; "
        f"scratch: {scratch['val_accuracy']:.2%} in {scratch['seconds']:.1f} s.",
        f"  {accuracy} {time}.",
        base,
    ]
