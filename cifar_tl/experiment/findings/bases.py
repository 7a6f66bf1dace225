"""Which base serves these images: the comparisons of several bases in one table."""

import itertools
from collections.abc import Mapping
from typing import Any

from cifar_tl.experiment.findings.comparison import (
    difference_line,
    differences,
    disturbed_in,
    disturbed_words,
    majority_lines,
    mean_columns,
    percent,
    seed_words,
    size_words,
    with_deviation,
)
from cifar_tl.experiment.findings.results import table
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
    ways = {
        base: [way for way in size["ways"] if way != first["control"]]
        for base, size in of_bases.items()
    }
    return {
        **{key: one[key] for key in ("train_fraction", "images_train")},
        "seeds": [seed["seed"] for seed in one["seeds"]],
        "disturbed": {base: disturbed_in(size["seeds"]) for base, size in of_bases.items()},
        "control": one["ways"][first["control"]],
        "bases": {
            base: {way: size["ways"][way] for way in ways[base]} for base, size in of_bases.items()
        },
        "differences": [
            {
                "way": way,
                "base": base,
                "other": other,
                **differences(of_bases[base]["seeds"], way, of_bases[other]["seeds"], way, first),
            }
            for way in dict.fromkeys(itertools.chain(*ways.values()))
            for base, other in itertools.combinations(of_bases, 2)
            if way in ways[base] and way in ways[other]  # a network may have no finetune
        ],
    }


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
            *table(rows := base_rows(found, size), "<<" + ">" * (len(rows[0]) - 2)),
            "",
        ]
        lines += base_sentences(found, size)
    return "\n".join([*lines, "", *base_legend(found)]) + "\n"


def base_rows(found: Mapping[str, Any], size: Mapping[str, Any]) -> list[list[str]]:
    """Lists the figures of each base and way, and of the control, below a head."""
    means = mean_columns([size["control"]])
    rows = [["base", "way", "validation", "test", *means, "total s"]]
    ways = [(base, way, each) for base, of in size["bases"].items() for way, each in of.items()]
    for base, way, each in [*ways, ("none", found["control"], size["control"])]:
        test = percent(each["test_accuracy"]) if each["test_accuracy"] else "-"
        seconds = with_deviation(each["seconds"], 1)
        of_classes = [percent(mean) if (mean := each.get(key)) else "-" for key in means.values()]
        accuracy = percent(each["val_accuracy"])
        rows.append([printable(base), way, accuracy, test, *of_classes, seconds])
    return rows


def base_sentences(found: Mapping[str, Any], size: Mapping[str, Any]) -> list[str]:
    """Says in plain words which base is better than which, way by way."""
    lines = []
    for each in size["differences"]:
        base, other = (printable(each[name]) for name in ("base", "other"))
        lines.append(f"{each['way']}: {difference_line(found, size, each, base, other)}")
    for base, ends in size["disturbed"].items():
        if ends:
            lines.append(f"The seconds of {printable(base)} are doubtful: {disturbed_words(ends)}.")
    return lines


def base_legend(found: Mapping[str, Any]) -> list[str]:
    """Explains the figures."""
    return [
        f"{found['images_validation']:,} validation images of the new classes judge.",
        "total s: of all stages of the way, with reading and with the features of the base. Each "
        "epoch counts as the median of its stage. Times compare only if nothing else ran on the "
        "machine.",
        *majority_lines(found, {found["control"]: found["sizes"][-1]["control"]}),
    ]
