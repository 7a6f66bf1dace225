"""Which base serves these images: the comparisons of several bases in one table."""

import itertools
from collections.abc import Mapping
from typing import Any

from cifar_tl.experiment.findings.comparison import (
    ACCURACIES,
    percent,
    points,
    seed_words,
    size_words,
    with_deviation,
)
from cifar_tl.experiment.findings.results import table
from cifar_tl.experiment.findings.uncertainty import difference
from cifar_tl.names import printable

VERSION = 1  # of what `compare_bases` returns


def compare_bases(comparisons: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Compares what the bases give, way by way.

    Args:
        comparisons: By the name of a base, what `compare` returned. All have the same data, seeds
            and fractions.

    Returns:
        The content of ``bases.json``: for each fraction the figures of each base and way, and the
        differences of each two bases on the same way.
    """
    first = next(iter(comparisons.values()))
    same = ("data", "data_description", "recipe", "images_validation", "control")
    return {
        "version": VERSION,
        **{key: first[key] for key in same},
        "bases": {name: comparison["backbone"] for name, comparison in comparisons.items()},
        "sizes": [
            _size({name: found["sizes"][place] for name, found in comparisons.items()}, first)
            for place in range(len(first["sizes"]))
        ],
    }


def _size(of_bases: Mapping[str, Mapping[str, Any]], first: Mapping[str, Any]) -> dict[str, Any]:
    one = next(iter(of_bases.values()))
    images = {"val_accuracy": first["images_validation"], "test_accuracy": first["images_test"]}
    ways = {
        base: [way for way in size["ways"] if way != first["control"]]
        for base, size in of_bases.items()
    }
    return {
        **{key: one[key] for key in ("train_fraction", "images_train")},
        "seeds": [seed["seed"] for seed in one["seeds"]],
        "control": one["ways"][first["control"]],
        "bases": {
            base: {way: size["ways"][way] for way in ways[base]} for base, size in of_bases.items()
        },
        "differences": [
            {
                "way": way,
                "base": base,
                "other": other,
                **{
                    key: _difference(of_bases[base], of_bases[other], way, key, images[key])
                    for key in ACCURACIES
                },
            }
            for way in dict.fromkeys(itertools.chain(*ways.values()))
            for base, other in itertools.combinations(of_bases, 2)
            if way in ways[base] and way in ways[other]  # a network may have no finetune
        ],
    }


def _difference(
    size: Mapping[str, Any], other: Mapping[str, Any], way: str, key: str, num_images: int
) -> dict[str, Any] | None:
    values, others = ([seed["ways"][way][key] for seed in each["seeds"]] for each in (size, other))
    return None if None in values else difference(values, others, num_images)._asdict()


def bases_text(found: Mapping[str, Any]) -> str:
    """Writes what `compare_bases` returned as tables in Markdown and in plain words, in ASCII."""
    name, description = (printable(found[key]) for key in ("data", "data_description"))
    lines = [f"The bases on {name} ({description}), recipe {found['recipe']}"]
    for size in found["sizes"]:
        seeds = seed_words([{"seed": seed} for seed in size["seeds"]])
        lines += [
            "",
            f"## {size_words(size)}, {seeds}",
            "",
            *table(base_rows(found, size), "<<>>>"),
            "",
        ]
        lines += base_sentences(found, size)
    return "\n".join([*lines, "", *base_legend(found)]) + "\n"


def base_rows(found: Mapping[str, Any], size: Mapping[str, Any]) -> list[list[str]]:
    """Lists the figures of each base and way, and of the control, below a head."""
    rows = [["base", "way", "validation", "test", "total s"]]
    ways = [(base, way, each) for base, of in size["bases"].items() for way, each in of.items()]
    for base, way, each in [*ways, ("none", found["control"], size["control"])]:
        test = percent(each["test_accuracy"]) if each["test_accuracy"] else "-"
        seconds = with_deviation(each["seconds"], 1)
        rows.append([printable(base), way, percent(each["val_accuracy"]), test, seconds])
    return rows


def base_sentences(found: Mapping[str, Any], size: Mapping[str, Any]) -> list[str]:
    """Says in plain words which base is better than which, way by way."""
    return [_sentence(found, size, each) for each in size["differences"]]


def _sentence(found: Mapping[str, Any], size: Mapping[str, Any], each: Mapping[str, Any]) -> str:
    """Says that a base is better or worse only where it is clear."""
    of_validation, seeds = each["val_accuracy"], len(size["seeds"])
    words = "is better than" if of_validation["mean"] > 0 else "is worse than"
    unclear = ""
    if not of_validation["is_clear"]:
        judges = f"{seeds} seeds" if seeds > 1 else f"{found['images_validation']:,} images"
        words, unclear = "and", f": {judges} show no clear difference"
    line = f"{each['way']}: {printable(each['base'])} {words} {printable(each['other'])}: "
    line += f"{points(of_validation)} of validation accuracy"
    if each["test_accuracy"]:
        line += f", {points(each['test_accuracy'])} of test accuracy"
    return f"{line}{unclear}."


def base_legend(found: Mapping[str, Any]) -> list[str]:
    """Explains the figures."""
    return [
        f"{found['images_validation']:,} validation images of the new classes judge.",
        "total s: of all stages of the way, with reading and with the features of the base. Times "
        "compare only if nothing else ran on the machine.",
    ]
