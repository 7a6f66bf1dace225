"""What transfer saves and costs: the stages side by side, for each number of images and seed."""

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cifar_tl.experiment.findings.results import source_words, table
from cifar_tl.experiment.findings.uncertainty import Difference, difference, spread
from cifar_tl.experiment.findings.unequal import MEAN, deciding
from cifar_tl.experiment.stages import STAGES, control, way_name, way_to
from cifar_tl.names import printable

VERSION = 2  # of what `compare` returns; 1 had one shape for one run and another for several
ACCURACIES = ("val_accuracy", "test_accuracy")
BALANCED = ("val_balanced_accuracy", "test_balanced_accuracy")  # where classes are unequal
MAJORITY = ("val_majority", "test_majority")  # likewise

Results = Mapping[str, Mapping[str, Any]]  # the content of ``result.json`` of each stage


def compare(sizes: Mapping[float, Sequence[Results]]) -> dict[str, Any]:
    """Compares the stages with the control: what transfer saves, and what it costs.

    A *way* is what leads to a model of the new classes, such as ``transfer+finetune``.

    Args:
        sizes: By the fraction of the training images, the results of each seed. Base may be
            missing, if it was there before.

    Returns:
        The content of ``comparison.json``. ``sizes`` has an entry for each fraction, and there
        ``seeds`` has an entry for each seed, also where there is one. Beside the figures of the
        seeds are their means, standard deviations and differences.
    """
    first = next(iter(sizes.values()))[0][control()]
    same = ("data", "data_description", "recipe", "images_validation", "images_test")
    return {
        "version": VERSION,
        **{key: first[key] for key in same},
        "backbone": _backbone(next(iter(sizes.values()))[0]),
        "control": way_name(control()),
        "sizes": [_size(fraction, of_seeds) for fraction, of_seeds in sizes.items()],
    }


def _backbone(results: Results) -> dict[str, Any] | None:
    """Describes the pretrained network that the stages started from, if they did."""
    for result in results.values():
        if "backbone" in result:
            source = result["backbone_source"]
            return {"name": result["backbone"], "fit": result["fit"], **source}
    return None


def _size(fraction: float, of_seeds: Sequence[Results]) -> dict[str, Any]:
    first = of_seeds[0][control()]
    names = [name for name in of_seeds[0] if way_to(name) and name != control()]
    names.append(control())  # the last: all others are compared with it
    seeds = [
        {
            "seed": results[control()]["seed"],
            "stages": {stage: _stage(result) for stage, result in results.items()},
            "ways": {
                way_name(name): {
                    **_accuracies(results[name]),
                    "seconds": way_seconds(name, results),
                }
                for name in names
            },
            "disturbed": disturbed(results),
        }
        for results in of_seeds
    ]

    def spreads(group: str) -> dict[str, Any]:
        return {
            name: {
                key: _spread([seed[group][name].get(key) for seed in seeds])
                for key in figures
                if not key.endswith("_interval")
            }
            for name, figures in seeds[0][group].items()
        }

    ways, stages = spreads("ways"), spreads("stages")
    seconds_of_control = ways[way_name(control())]["seconds"]["mean"]
    for name, way in zip(names, ways.values(), strict=True):
        base = STAGES[way_to(name)[0]].parent
        seconds_base = None
        if base in stages:
            seconds_base = statistics.mean(_undisturbed_seconds(each[base]) for each in of_seeds)
        way |= _savings(seconds_of_control - way["seconds"]["mean"], seconds_base)
    return {
        "train_fraction": fraction,
        "images_train": first["images_train"],
        "seeds": seeds,
        "stages": stages,
        "ways": ways,
        "differences": [
            {
                "way": way,
                "other": other,
                **differences(seeds, way, seeds, other, first),
            }
            for way, other in itertools.combinations(ways, 2)
        ],
    }


def _stage(result: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **_accuracies(result),
        "epochs": result["epochs"],
        "seconds_per_epoch": _epoch_seconds(result),
        "seconds_total": result["seconds_total"],
        "parameters_trainable": result["parameters_trainable"],
        "parameters_frozen": result["parameters_total"] - result["parameters_trainable"],
    }


def way_seconds(stage: str, results: Results) -> float:
    """Adds up the seconds of the stages on the way to a model, as far as they are there.

    Each epoch counts as the median of its stage: another program may have disturbed some.
    """
    way = [results[name] for name in way_to(stage) if name in results]
    seconds = sum(map(_undisturbed_seconds, way))
    # The data are read once, however many stages follow.
    return float(seconds - sum(result.get("seconds_reading", 0.0) for result in way[1:]))


def _undisturbed_seconds(result: Mapping[str, Any]) -> float:
    measured = result["seconds_train"] + result["seconds_validation"]
    return float(result["seconds_total"] - measured + _epoch_seconds(result) * result["epochs"])


def _epoch_seconds(result: Mapping[str, Any]) -> float:
    """Returns the seconds of a usual epoch: the median. Results of before have only the mean."""
    mean = (result["seconds_train"] + result["seconds_validation"]) / result["epochs"]
    return float(result.get("seconds_epoch_median", mean))


def disturbed(results: Results) -> dict[str, list[float]]:
    """Finds the stages whose epochs took unequal times, as beside another program.

    The slowest took more than twice as long as the fastest. And compared with the fastest, all
    epochs lost more than a twentieth of the stage's time. The first epoch of a short stage may take
    longer by itself.

    Returns:
        By stage, the seconds of the fastest and of the slowest epoch.
    """
    found = {}
    for name, result in results.items():
        fastest = result.get("seconds_epoch_fastest", 0.0)
        slowest = result.get("seconds_epoch_slowest", 0.0)
        measured = result["seconds_train"] + result["seconds_validation"]
        lost = measured - fastest * result["epochs"]
        if slowest > 2 * fastest and lost > 0.05 * result["seconds_total"]:
            found[name] = [fastest, slowest]
    return found


def disturbed_in(seeds: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Puts together what `disturbed` found in each seed: the fastest and the slowest of all.

    Args:
        seeds: The entries of `compare` for each seed.
    """
    found: dict[str, list[float]] = {}
    for seed in seeds:
        for name, ends in seed["disturbed"].items():
            both = [*found.get(name, ()), *ends]
            found[name] = [min(both), max(both)]
    return found


def disturbed_words(found: Mapping[str, Sequence[float]]) -> str:
    """Says which epochs took unequal times: that makes what is said of time doubtful."""
    epochs = (f"{name} {low:.1f} to {high:.1f} s" for name, (low, high) in found.items())
    return f"something disturbed the epochs ({', '.join(epochs)})"


def _accuracies(result: Mapping[str, Any]) -> dict[str, Any]:
    """Takes the accuracies of a result, and where classes are unequal what stands beside them."""
    intervals = [key.replace("_accuracy", "_interval") for key in BALANCED]
    others = [key for key in (*BALANCED, *intervals, *MAJORITY) if key in result]
    return {key: result[key] for key in (*ACCURACIES, *others)}


def _savings(saved: float, seconds_base: float | None) -> dict[str, Any]:
    """Computes from how many transfers on a way is faster than the control.

    The base model's time is a cost of transfer, too. n transfers from one base are faster if
    ``seconds_base + n * seconds < n * seconds_of_control``.
    """
    pays_from = None
    if seconds_base is not None and saved > 0:
        pays_from = math.floor(seconds_base / saved) + 1
    # No seconds of a base: it was there before, or the way starts from fresh weights.
    return {"seconds_base": seconds_base, "seconds_saved": saved, "pays_from": pays_from}


def _spread(values: Sequence[float | None]) -> dict[str, Any] | None:
    known = [value for value in values if value is not None]
    return spread(known)._asdict() if len(known) == len(values) else None  # no test images


def differences(
    seeds: Sequence[Mapping[str, Any]],
    way: str,
    other_seeds: Sequence[Mapping[str, Any]],
    other: str,
    images: Mapping[str, Any],
) -> dict[str, dict[str, Any] | None]:
    """Compares each accuracy of two ways, seed by seed.

    Args:
        seeds: The entries of `compare` for each seed.
        way: A way in them.
        other_seeds: Those of the other way. They may be of another base.
        other: The other way.
        images: ``images_validation`` and ``images_test``.
    """
    pairs = [
        (one["ways"][way], its["ways"][other]) for one, its in zip(seeds, other_seeds, strict=True)
    ]
    found: dict[str, dict[str, Any] | None] = {}
    for key in (*ACCURACIES, *BALANCED):
        if key in BALANCED and not all(key in each for pair in pairs for each in pair):
            continue
        is_tested = None not in (each[key] for pair in pairs for each in pair)
        number = images["images_validation" if key.startswith("val") else "images_test"]
        found[key] = difference_in(key, pairs, number)._asdict() if is_tested else None
    return found


def difference_in(
    key: str, pairs: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]], num_images: int
) -> Difference:
    """Compares two models in one accuracy.

    Args:
        key: The name of the accuracy in ``result.json``.
        pairs: For each seed the figures of the one and of the other.
        num_images: How many images they were measured on.
    """
    ones, others = zip(*pairs, strict=True)
    intervals = None
    if key in BALANCED:
        name = key.replace("_accuracy", "_interval")
        intervals = [(one[name], its[name]) for one, its in zip(ones, others, strict=True)]
    values, its_values = ([each[key] for each in side] for side in (ones, others))
    return difference(values, its_values, num_images, intervals)


def comparison_text(comparison: Mapping[str, Any]) -> str:
    """Writes what `compare` returned as tables in Markdown and in plain words, in ASCII."""
    name, description = (printable(comparison[key]) for key in ("data", "data_description"))
    seeds = comparison["sizes"][0]["seeds"]
    lines = [
        f"Comparison on {name} ({description}), recipe {comparison['recipe']}, {seed_words(seeds)}"
    ]
    for size in comparison["sizes"]:
        lines += [
            "",
            f"## {size_words(size)}",
            "",
            *table(rows := stage_rows(size), "<" + ">" * (len(rows[0]) - 1)),
            "",
            *itertools.chain(*way_sentences(comparison, size)),
            *notes(size),
        ]
        if len(seeds) > 1:
            lines += ["", *table(seed_rows(comparison, size), ">" * (len(size["stages"]) + 1))]
    return "\n".join([*lines, "", *legend(comparison)]) + "\n"


def seed_words(seeds: Sequence[Mapping[str, Any]]) -> str:
    """Names the seeds: ``seed 0``, or ``seeds 0 to 4``."""
    first, last = seeds[0]["seed"], seeds[-1]["seed"]
    return f"seed {first}" if len(seeds) == 1 else f"seeds {first} to {last}"


def size_words(size: Mapping[str, Any]) -> str:
    """Says on how many images the stages were trained."""
    part = 100 * size["train_fraction"]
    of = "" if part == 100 else f" ({part:.6g} %)"
    return f"{size['images_train']:,} training images of the new classes{of}"


def stage_rows(size: Mapping[str, Any]) -> list[list[str]]:
    """Lists the figures of each stage, below a head."""
    means = mean_columns(size["stages"].values())
    columns = "epochs,s/epoch,total s,trainable,frozen"
    rows = [["stage", "validation", "test", *means, *columns.split(",")]]
    for stage, found in size["stages"].items():
        rows.append(
            [
                stage,
                percent(found["val_accuracy"]),
                percent(found["test_accuracy"]) if found["test_accuracy"] else "-",
                *(percent(mean) if (mean := found.get(key)) else "-" for key in means.values()),
                *(f"{found['epochs']['mean']:.6g}", with_deviation(found["seconds_per_epoch"], 2)),
                with_deviation(found["seconds_total"], 1),
                *(f"{found[f'parameters_{key}']['mean']:,.0f}" for key in ("trainable", "frozen")),
            ]
        )
    return rows


def mean_columns(figures: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Names the columns of the means over classes, and their figures, if classes are unequal."""
    if not any(BALANCED[0] in found for found in figures):
        return {}
    heads = (f"{part}, {MEAN}" for part in ("validation", "test"))
    return dict(zip(heads, BALANCED, strict=True))


def decides(comparison: Mapping[str, Any]) -> tuple[str, str, str]:
    """Names the validation and the test accuracy that decide in all sizes, and words for them."""
    key = deciding(found for size in comparison["sizes"] for found in size["differences"])
    return key, key.replace("val", "test"), f" ({MEAN})" if key in BALANCED else ""


def way_sentences(comparison: Mapping[str, Any], size: Mapping[str, Any]) -> list[list[str]]:
    """Says in plain words which way is better than which, and which is faster than the control."""
    control, epochs = comparison["control"], disturbed_in(size["seeds"])
    doubt = f" This is doubtful: {disturbed_words(epochs)}." if epochs else ""
    return [
        [
            difference_line(comparison, size, found, found["way"], found["other"]),
            *(
                [_time_line(size["ways"][found["way"]], control) + doubt]
                if found["other"] == control
                else []
            ),
        ]
        for found in size["differences"]
    ]


def difference_line(
    comparison: Mapping[str, Any],
    size: Mapping[str, Any],
    found: Mapping[str, Any],
    this: str,
    other: str,
) -> str:
    """Says that one is better or worse than another only where it is clear.

    Args:
        comparison: It has the number of validation images, and all sizes.
        size: It has the seeds.
        found: The differences, from `differences`.
        this: The name of the one.
        other: The name of the other.
    """
    (key, test_key, what), seeds = decides(comparison), len(size["seeds"])
    of_validation, of_test = found[key], found[test_key]
    words = "is better than" if of_validation["mean"] > 0 else "is worse than"
    unclear = ""
    if not of_validation["is_clear"]:
        judges = f"{comparison['images_validation']:,} images"
        judges = f"{seeds} seeds on {judges}" if seeds > 1 else judges
        words, unclear = "and", f": {judges} show no clear difference"
    line = f"{this} {words} {other}: {points(of_validation)} of validation accuracy"
    if of_test:
        line += f", {points(of_test)} of test accuracy"
    return f"{line}{what}{unclear}."


def _time_line(way: Mapping[str, Any], control: str) -> str:
    saved, pays_from, seconds_base = (
        way[key] for key in ("seconds_saved", "pays_from", "seconds_base")
    )
    line = f"  It takes {with_deviation(way['seconds'], 1)} s, "
    line += f"{abs(saved):.1f} s {'less' if saved > 0 else 'more'} than {control}. "
    if seconds_base is None:
        return line + "The base model was there before: its time is not counted."
    line += f"Counting the base model's {seconds_base:.1f} s, it is "
    if pays_from is None:
        return line + f"never faster than {control}."
    if pays_from == 1:
        return line + f"faster than {control} from the first transfer on."
    return line + f"faster than {control} once {pays_from} transfers share that base."


def notes(size: Mapping[str, Any]) -> list[str]:
    """Says why weights of the control are frozen, if any are."""
    if not size["stages"][control()]["parameters_frozen"]["mean"]:
        return []
    return [
        f"{control()} keeps its first layer as computed from its images. The other "
        "layers are trained."
    ]


def seed_rows(comparison: Mapping[str, Any], size: Mapping[str, Any]) -> list[list[str]]:
    """Lists the validation accuracies of each seed, below a head."""
    key, _, what = decides(comparison)
    rows = [[f"validation by seed{what}", *size["stages"]]]
    for seed in size["seeds"]:
        accuracies = [found.get(key) for found in seed["stages"].values()]  # base: other classes
        shown = ("-" if accuracy is None else f"{accuracy:.2%}" for accuracy in accuracies)
        rows.append([str(seed["seed"]), *shown])
    return rows


def legend(comparison: Mapping[str, Any]) -> list[str]:
    """Explains the figures."""
    lines = [
        f"{comparison['images_validation']:,} validation images of the new classes judge.",
        "s/epoch: the median, with validation. total s: also reading, frozen features, testing, "
        "saving.",
        "Sentences on time count each epoch as the median of its stage.",
        "Times compare only if nothing else ran on the machine.",
        *majority_lines(comparison, comparison["sizes"][-1]["ways"]),
    ]
    if backbone := comparison["backbone"]:
        lines.append(
            f"The base is {printable(backbone['name'])}, {source_words(backbone)}. {control()} is "
            "not that network: it is the documented one, on images of 32x32 pixels."
        )
    present = comparison["sizes"][0]["stages"]
    if bases := [stage for stage in present if STAGES[stage].learns == "base"]:
        lines.append(f"{', '.join(bases)}: the base classes. All others: the new classes.")
    for stage in present:
        if len(way := way_to(stage)) > 1:
            lines.append(
                f"{stage} goes on from {way[-2]}. In the table, its seconds are its own. The "
                f"sentences count {' and '.join(way)}, and reading once."
            )
    if len(comparison["sizes"][0]["seeds"]) > 1:
        lines.append("+-: of figures the standard deviation, of differences the standard error.")
    return lines


def majority_lines(
    comparison: Mapping[str, Any], ways: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Says what always saying the most frequent class gives, if classes are unequal."""
    found = [way for way in ways.values() if way.get(MAJORITY[0])]
    if not found:
        return []
    val, test = (found[0][key] for key in MAJORITY)
    tested = f", {percent(test)} of the test images" if test else ""
    return [
        f"Classes are unequal: the {MEAN if decides(comparison)[2] else 'plain accuracy'} decides. "
        f"Always saying the most frequent class is right for {percent(val)} of the validation "
        f"images{tested}.",
    ]


def percent(found: Mapping[str, Any]) -> str:
    """Writes an accuracy, and the standard deviation of several."""
    deviation = found["deviation"]
    return f"{100 * found['mean']:.2f}{'' if deviation is None else f' +- {100 * deviation:.2f}'} %"


def with_deviation(found: Mapping[str, Any], digits: int) -> str:
    """Writes seconds, and the standard deviation of several."""
    deviation = found["deviation"]
    mean = f"{found['mean']:.{digits}f}"
    return mean if deviation is None else f"{mean} +- {deviation:.{digits}f}"


def points(found: Mapping[str, Any]) -> str:
    """Writes a mean difference of accuracies in points, and its standard error."""
    error = found["standard_error"]
    return f"{100 * found['mean']:+.2f}{'' if error is None else f' +- {100 * error:.2f}'} points"
