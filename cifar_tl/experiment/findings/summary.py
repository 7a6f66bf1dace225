"""Several seeds and several numbers of images: means, spreads, differences seed by seed."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from cifar_tl.experiment.findings.comparison import first_layer_lines
from cifar_tl.experiment.findings.results import table
from cifar_tl.experiment.findings.uncertainty import difference, spread
from cifar_tl.names import printable


def summarize(comparisons: Mapping[float, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Puts the comparisons of several runs together.

    Args:
        comparisons: By the fraction of the training images, for each seed what `compare` returned.

    Returns:
        The content of ``comparison.json``: for each fraction, in ``sizes``, mean, standard
        deviation and every value of accuracies and seconds, and how each way to a model of the new
        classes differs from those that follow it, seed by seed, with the standard error.
    """
    first = next(iter(comparisons.values()))
    same = ("data", "data_description", "recipe", "images_validation")
    return {
        **{key: first[0][key] for key in same},
        "seeds": [comparison["seed"] for comparison in first],
        "sizes": [_size(fraction, of_seeds) for fraction, of_seeds in comparisons.items()],
    }


def _size(fraction: float, comparisons: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first = comparisons[0]
    ways = {way: [found["ways"][way] for found in comparisons] for way in first["ways"]}
    if "base" in first["stages"]:
        of_base = [{**c["stages"]["base"], "seconds": c["seconds_base"]} for c in comparisons]
        ways = {"base": of_base, **ways}
    tested = all(found["test_accuracy"] is not None for of_way in ways.values() for found in of_way)
    accuracies = ("val_accuracy", "test_accuracy") if tested else ("val_accuracy",)

    def values(way: str, key: str) -> list[float]:
        return [found[key] for found in ways[way]]

    return {
        "train_fraction": fraction,
        "images_train": first["images_train"],
        "epochs": {stage: found["epochs"] for stage, found in first["stages"].items()},
        "scratch_frozen": first["stages"]["scratch"]["parameters_frozen"],
        "ways": {
            way: {key: spread(values(way, key))._asdict() for key in (*accuracies, "seconds")}
            for way in ways
        },
        "differences": [
            {
                "way": way,
                "other": other,
                **{
                    key: difference(values(way, key), values(other, key))._asdict()
                    for key in accuracies
                },
            }
            for way, other in itertools.combinations([way for way in ways if way != "base"], 2)
        ],
    }


def summary_text(summary: Mapping[str, Any]) -> str:
    """Writes what `summarize` returned as tables, in Markdown, and in plain words."""
    seeds = summary["seeds"]
    lines = [
        f"Comparison on {printable(summary['data'])} ({printable(summary['data_description'])}), "
        f"recipe {summary['recipe']}, {_of_seeds(seeds)}",
        f"Accuracies and seconds: means and standard deviations; {summary['images_validation']:,} "
        "validation images.",
        "Differences: means and standard errors, seed by seed. base: the old classes; all others: "
        "the new ones.",
    ]
    for size in summary["sizes"]:
        lines += [
            "",
            f"## {size['images_train']:,} training images of the new classes"
            + ("" if size["train_fraction"] == 1 else f" ({100 * size['train_fraction']:.6g} %)")
            + f", {size['epochs']['scratch']} epochs (finetune {size['epochs']['finetune']})",
            "",
            *table(way_rows(size["ways"]), "<>>>"),
            "",
            *difference_lines(size, len(seeds)),
            *first_layer_lines(size["scratch_frozen"]),
            "",
            *table(seed_rows(seeds, size["ways"]), ">" * (len(size["ways"]) + 1)),
        ]
    return "\n".join(lines) + "\n"


def _of_seeds(seeds: Sequence[int]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"


def percent(found: Mapping[str, Any]) -> str:
    """Writes the mean and deviation of an accuracy."""
    deviation = "" if found["deviation"] is None else f" +- {100 * found['deviation']:.2f}"
    return f"{100 * found['mean']:.2f}{deviation} %"


def way_rows(ways: Mapping[str, Any]) -> list[list[str]]:
    """Lists means and deviations of each way, below a head."""
    rows = [["way", "validation", "test", "seconds"]]
    for way, found in ways.items():
        seconds = found["seconds"]
        deviation = "" if seconds["deviation"] is None else f" +- {seconds['deviation']:.1f}"
        tested = percent(found["test_accuracy"]) if "test_accuracy" in found else "-"
        time = f"{seconds['mean']:.1f}{deviation}"
        rows.append([way, percent(found["val_accuracy"]), tested, time])
    return rows


def difference_lines(size: Mapping[str, Any], num_seeds: int) -> list[str]:
    """Says which way is better than which."""
    return [_difference_line(found, num_seeds) for found in size["differences"]]


def _difference_line(found: Mapping[str, Any], num_seeds: int) -> str:
    """Says that one way is better or worse only where that holds for other seeds, too."""
    of_validation = found["val_accuracy"]
    words = "is better than" if of_validation["mean"] > 0 else "is worse than"
    if not of_validation["is_clear"]:
        words = "and" if num_seeds > 1 else "compared to"
    line = (
        f"{found['way']} {words} {found['other']}: {points(of_validation)} of validation accuracy"
    )
    if "test_accuracy" in found:
        line += f", {points(found['test_accuracy'])} of test accuracy"
    if not of_validation["is_clear"]:
        line += ", no clear difference" if num_seeds > 1 else ", of one seed"
    return f"{line}."


def points(found: Mapping[str, Any]) -> str:
    """Writes a mean difference of accuracies and its standard error."""
    error = found["standard_error"]
    return f"{100 * found['mean']:+.2f}{'' if error is None else f' +- {100 * error:.2f}'} points"


def seed_rows(seeds: Sequence[int], ways: Mapping[str, Any]) -> list[list[str]]:
    """Lists the validation accuracies of each seed, below a head."""
    rows = [["validation by seed", *ways]]
    for place, seed in enumerate(seeds):
        values = [found["val_accuracy"]["values"][place] for found in ways.values()]
        rows.append([str(seed), *(f"{value:.2%}" for value in values)])
    return rows
