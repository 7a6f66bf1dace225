"""What ``train`` shows in the end: the comparison, pictures, a page, the next command."""

import argparse
import importlib.util
import itertools
import os
import shlex
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import quote

from cifar_tl.command.console import called, say
from cifar_tl.command.train_parser import ALL, write_command
from cifar_tl.errors import RunWarning, first_line
from cifar_tl.experiment.stages import (
    COMPARISON_PICTURES,
    FEATURES,
    HEAD,
    MODEL,
    PICTURES,
    REPORT,
    STAGES,
    Place,
    way_to,
)
from cifar_tl.names import count, printable
from cifar_tl.pretrained import DEFAULT_MODEL
from cifar_tl.recipe import BACKBONE_EPOCHS

if TYPE_CHECKING:  # what needs torch is imported where it is used, when the arguments are good
    from cifar_tl import Data, StageResult

# What to try with large pictures: a network of torchvision that is fast on a CPU.
LARGE, LARGER_SIZE = 64, 224  # pixels
LARGER_BASE, LARGER_MB = "mobilenet_v3_small", 9.8
PICTURES_PER_SECOND = 50  # a third of what benchmarks/extraction.py measured with AVX2 alone

Results: TypeAlias = dict[str, "StageResult"]  # by stage
Experiment: TypeAlias = tuple[Place, Results]  # of one seed and one fraction


def show(
    options: argparse.Namespace,
    experiments: Sequence[Experiment],
    data: "Data",
    log: Callable[[str], object],
) -> None:
    """Shows what came out, and what to type next."""
    from cifar_tl.experiment.findings.table import save_runs

    if options.stage == ALL and data.new_classes:
        compare_all(options, experiments)
    elif options.seeds is not None:
        say_spreads(experiments)
    if not has_matplotlib():
        log("For pictures of all this: pip install matplotlib, then the same command again")
    if data.own_classes:
        log(next_step(experiments))
    if data.own_classes and options.base is None and data.shorter_side > LARGE:
        log(larger_base(options, data))
    save_runs(options.output_dir)  # last: all else is shown, even if it fails


def larger_base(options: argparse.Namespace, data: "Data") -> str:
    """Says which command tries a pretrained network that sees more in large pictures."""
    pictures = sum(len(part.labels) for part in (data.train, data.validation, data.test) if part)
    # An epoch of finetune takes almost as long as a pass through the network.
    passes = pictures + BACKBONE_EPOCHS * len(data.train.labels)
    seconds = max(10, round(passes / PICTURES_PER_SECOND))
    command = write_command(options, stage=ALL, base=(DEFAULT_MODEL, LARGER_BASE))
    return (
        f"The shorter side of these pictures has {count(data.shorter_side, 'pixel')}, and "
        f"{DEFAULT_MODEL} sees 32. A network that sees {LARGER_SIZE} may do better: {command} "
        f"(downloads {LARGER_MB} MB, takes about {seconds} s)"
    )


def compare_all(options: argparse.Namespace, experiments: Sequence[Experiment]) -> None:
    """Compares the stages that start from each base, and several bases."""
    from cifar_tl.experiment.findings.bases import bases_text, compare_bases
    from cifar_tl.experiment.folder import save_bases

    of_bases: dict[str, list[Experiment]] = {}
    for place, results in experiments:
        of_bases.setdefault(base_of(place, results), []).append((place, results))
    found = {base: compare_stages(of_base) for base, of_base in of_bases.items()}
    bases = compare_bases(found) if len(found) > 1 else None
    folders = {base: of_base[0][0].comparison for base, of_base in of_bases.items()}
    for base, of_base in of_bases.items():
        others = {name: folder for name, folder in folders.items() if name != base}
        show_comparison(of_base, found[base], write_command(options), bases, others)
    if bases:
        folder = experiments[0][0].folder
        text = bases_text(bases)
        save_bases(folder, bases, text)
        say(f"\n{text}\nEverything was written to {printable(str(folder))}")


def base_of(place: Place, results: Results) -> str:
    """Names the base that was given. If the base was trained here, each seed has its own: ""."""
    if place.backbone or any(STAGES[stage].learns == "base" for stage in results):
        return place.backbone or ""
    parents = (result["parent_path"] for result in results.values())
    return next((parent for parent in parents if parent), "")


def by_size(experiments: Sequence[Experiment]) -> dict[float, list[Experiment]]:
    """Sorts experiments by the fraction of the training images."""
    sizes: dict[float, list[Experiment]] = {}
    for place, results in experiments:
        sizes.setdefault(place.train_fraction, []).append((place, results))
    return sizes


def compare_stages(experiments: Sequence[Experiment]) -> dict[str, Any]:
    """Compares the stages, of all seeds and fractions."""
    from cifar_tl.experiment.findings.comparison import compare

    sizes = by_size(experiments)
    return compare({part: [found for _, found in size] for part, size in sizes.items()})


def show_comparison(
    experiments: Sequence[Experiment],
    comparison: dict[str, Any],
    command: str,
    bases: dict[str, Any] | None,
    others: Mapping[str, Path],
) -> None:
    """Shows a comparison of the stages in files and in print.

    Args:
        experiments: Of one base.
        comparison: Of them, from `compare_stages`.
        command: What made them.
        bases: The comparison with other bases, if there are any.
        others: The folders of their comparisons.
    """
    from cifar_tl.experiment.findings.about import pages_in
    from cifar_tl.experiment.findings.comparison import comparison_text
    from cifar_tl.experiment.findings.report import report_text
    from cifar_tl.experiment.folder import read_pictures, save_comparison, save_report

    sizes = by_size(experiments)
    largest = sizes[max(sizes)]
    place, results = largest[0]
    text = comparison_text(comparison)
    save_comparison(place.comparison, comparison, text)
    draw_comparison([place for place, _ in largest], list(results), several_sizes=len(sizes) > 1)
    links = {
        name: quote(Path(os.path.relpath(folder / REPORT, place.comparison)).as_posix())
        for name, folder in others.items()
    }
    shown = report_text(
        comparison,
        results,
        read_pictures(place),
        command,
        bases=bases,
        links=links,
        predicting=pages_in(place.comparison),
    )
    save_report(place.comparison, shown)
    say(f"\n{text}\nEverything was written to {printable(str(place.comparison))}")


def say_spreads(experiments: Sequence[Experiment]) -> None:
    """Says mean and spread of stages of several seeds that are not compared."""
    from cifar_tl.experiment.findings.comparison import percent
    from cifar_tl.experiment.findings.uncertainty import spread
    from cifar_tl.experiment.findings.unequal import MEAN, deciding

    of_seeds: dict[tuple[str, float], list[Any]] = {}
    for _, results in experiments:
        for stage, result in results.items():
            of_seeds.setdefault((stage, result["train_fraction"]), []).append(result)

    for (stage, fraction), found in of_seeds.items():
        of = "" if fraction == 1 else f" on {100 * fraction:.6g} % of its images"
        plain, key = "val_accuracy", deciding(found)
        said = {
            name: percent(spread([each[name] for each in found])._asdict()) for name in (plain, key)
        }
        words = f"validation accuracy {said[plain]}"
        if key != plain:
            most = f"always the most frequent class {100 * found[0]['val_majority']:.2f} %"
            words += f", {MEAN} {said[key]}, {most}"
        say(f"{stage}{of}: {words}, of {count(len(found), 'seed')}")


def draw_stage(
    place: Place, stage: str, data: "Data", *, keep_features: bool, keep_pictures: bool
) -> None:
    """Draws the pictures of a stage, if they are missing."""
    from cifar_tl.experiment.features import Cache

    # No other run sees what a stage made of a network that goes on learning.
    keep_features = keep_features and STAGES[stage].trains == HEAD
    folder, kept = place.of(stage), place.folder / FEATURES
    cache = Cache(kept if keep_features else None, kept if keep_pictures else None)
    draw(folder, PICTURES, lambda: plots().draw_stage(folder, data, cache))


def draw_comparison(places: Sequence[Place], stages: Sequence[str], *, several_sizes: bool) -> None:
    """Draws the pictures of a comparison: of the seeds of one fraction, and of the fractions."""
    folder, (ways, images) = places[0].comparison, COMPARISON_PICTURES
    draw(folder, [ways], lambda: plots().draw_comparison(places, stages))
    if several_sizes:
        draw(folder, [images], lambda: plots().draw_images(places[0]))


def plots() -> ModuleType:
    """Imports what draws, which needs matplotlib."""
    from cifar_tl.experiment.findings import plots

    return plots


def draw(folder: Path, names: Sequence[str], function: Callable[[], None]) -> None:
    """Draws missing pictures. If drawing fails, only the pictures are missing."""
    if not has_matplotlib() or all((folder / name).exists() for name in names):
        return
    try:
        function()
    except MemoryError:
        raise
    except Exception as error:  # whatever it is
        warnings.warn(f"no pictures in {folder}: {first_line(error)}", RunWarning, stacklevel=2)


def has_matplotlib() -> bool:
    """Returns whether pictures can be drawn."""
    return importlib.util.find_spec("matplotlib") is not None


def next_step(experiments: Sequence[Experiment]) -> str:
    """Says which command asks a model about a picture.

    The models are those of the most images. The best one has the highest validation accuracy, in
    the mean of the seeds. Where classes are unequal, it is the mean over classes. Some models are
    not clearly worse. Of these and the best, the one that was trained fastest is named. Of several
    seeds, it is the model of the first.
    """
    from cifar_tl.experiment.findings.comparison import difference_in, disturbed, way_seconds
    from cifar_tl.experiment.findings.unequal import deciding

    most = max(place.train_fraction for place, _ in experiments)
    runs: dict[Path, dict[Path, dict[str, Any]]] = {}  # of each model, by folder of a seed
    for place, results in experiments:
        for stage, result in results.items() if place.train_fraction == most else ():
            of_seeds = runs.setdefault(place._replace(seed=None).of(stage), {})
            of_seeds[place.of(stage)] = {**result, "seconds": way_seconds(stage, results)}
    key = deciding(result for of_seeds in runs.values() for result in of_seeds.values())
    images = next(iter(experiments[0][1].values()))["images_validation"]

    def differ(model: Path, other: Path) -> bool:
        pairs = zip(runs[model].values(), runs[other].values(), strict=True)
        return difference_in(key, pairs, images).is_clear

    def mean(model: Path, name: str) -> float:
        return float(statistics.mean(result[name] for result in runs[model].values()))

    best = max(runs, key=lambda model: mean(model, key))
    equals = [model for model in runs if model == best or not differ(best, model)]
    cheapest = min(equals, key=lambda model: mean(model, "seconds"))
    path = shlex.quote(str(next(iter(runs[cheapest])) / MODEL))
    why = ""
    if len(equals) > 1:
        of_equals = [next(iter(runs[model].values()))["stage"] for model in equals]
        ways = set(itertools.chain(*map(way_to, of_equals)))
        compared = [results for place, results in experiments if place.train_fraction == most]
        doubtful = any(ways & disturbed(results).keys() for results in compared)
        why = f" (of {len(equals)} models without a clear difference, the fastest to train"
        why += ", which is doubtful: something disturbed the epochs)" if doubtful else ")"
    return f"Try it{why}: {called('predict')} photo.jpg --model {path}"
