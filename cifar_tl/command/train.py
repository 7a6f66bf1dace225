"""``cifar-tl train``: runs the stages and shows what transfer saves and costs."""

import argparse
import importlib.util
import os
import shlex
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

from cifar_tl.command.arguments import check_own_classes
from cifar_tl.command.console import UsageError, called, run_command, say, shows_progress, warn
from cifar_tl.command.train_arguments import (
    ALL,
    check_arguments,
    check_parent,
    choose_recipe,
    each_run,
    make_parser,
    naming_commands,
    place_of,
    source_of,
    stages_to_run,
    write_command,
)
from cifar_tl.data.source import OFFICIAL, SHAPES
from cifar_tl.errors import (
    DownloadError,
    MissingDataError,
    RunWarning,
    TrainingError,
    first_line,
)
from cifar_tl.experiment.run import (
    COMPARISON_PICTURES,
    MODEL,
    PICTURES,
    STAGES,
    Place,
    stage_classes,
    takes_base,
)
from cifar_tl.names import printable

if TYPE_CHECKING:  # what needs torch is imported where it is used, when the arguments are good
    from cifar_tl import Data, StageResult

Results: TypeAlias = dict[str, "StageResult"]  # by stage
Experiment: TypeAlias = tuple[argparse.Namespace, Results]  # the options of one seed and fraction


def main(argv: Sequence[str]) -> int:
    """Runs the command with some arguments; returns the exit code."""
    return run_command(make_parser(), argv, train, check=check, load=load, go_on=how_to_go_on)


def check(options: argparse.Namespace) -> None:
    """Checks the arguments, and that results can be written at the end."""
    check_arguments(options)
    check_own_classes(source_of(options))
    check_parent(options)
    check_output_dir(options.output_dir)


def load() -> None:
    """Imports all that training needs: the first optimizer imports more, also for seconds."""
    import torch

    torch.optim.SGD([torch.zeros(1)])


def how_to_go_on(options: argparse.Namespace) -> str:
    """Says what to do when the command was cut off."""
    return f"what was finished is saved. To go on: {write_command(options)}"


def train(options: argparse.Namespace) -> int:
    """Runs the stages."""
    import torch

    from cifar_tl.memory import keep_freed_memory

    check_device(options.device, options.precision)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    keep_freed_memory()
    log: Callable[[str], None] = (lambda _: None) if options.quiet else say
    with naming_commands(options):
        data, seconds_reading = read_data(options, log)
        stages = [stage for stage in stages_to_run(options) if stage_classes(stage, data)]
        if not stages:
            raise UsageError(f"--stage {options.stage} has nothing to learn: no class is a new one")
        log(
            f"data: {printable(data.name)} ({data.description}); recipe: {options.recipe}; "
            f"{'seed' if options.seeds is None else 'first seed'}: {options.seed}; "
            f"{torch.get_num_threads()} threads on {options.device}"
        )
        prepare_folders(options, data, stages)
    experiments = run_experiments(options, data, stages, seconds_reading, log)
    if options.stage == ALL and data.new_classes:
        compare_stages(options, data, experiments)
    if not has_matplotlib():
        log("For pictures of all this: pip install matplotlib, then the same command again")
    if data.needs_other_base:
        log(f"Try it: {next_command(data, experiments)}")
    return 0


def run_experiments(
    options: argparse.Namespace,
    data: "Data",
    stages: Sequence[str],
    seconds_reading: float,
    log: Callable[[str], None],
) -> list[Experiment]:
    """Runs the stages of each seed and fraction; a base serves all fractions."""
    from cifar_tl.experiment.results import summary

    experiments: list[Experiment] = []
    done: dict[Path, StageResult] = {}
    for one in each_run(options):
        place = place_of(one, data.name)
        if len(options.train_fraction) > 1 or options.seeds is not None:
            log(f"\nseed {one.seed}, {100 * place.train_fraction:.6g} % of the new images")
        for folder, stage in ((place.of(stage), stage) for stage in stages):
            if folder in done:
                continue
            with naming_commands(one):
                done[folder] = run_one(stage, data, one, seconds_reading, log)
            if one.seed == options.seed:  # pictures take a second a stage: one seed's are enough
                draw_stage(folder, data)
            say(f"{summary(done[folder])}; files in {printable(str(folder))}")
        experiments.append((one, {stage: done[place.of(stage)] for stage in stages}))
    return experiments


def next_command(data: "Data", experiments: Sequence[Experiment]) -> str:
    """Writes the command that asks the model that validated best."""
    accuracies = {
        place_of(one, data.name).of(stage) / MODEL: result["val_accuracy"]
        for one, results in experiments
        for stage, result in results.items()
    }
    best = max(accuracies, key=lambda path: accuracies[path])
    return f"{called('predict')} photo.jpg --model {shlex.quote(str(best))}"


def read_data(options: argparse.Namespace, log: Callable[[str], None]) -> tuple["Data", float]:
    """Reads the data, downloading CIFAR-10 if need be; returns it and the seconds of reading."""
    from cifar_tl.data.cifar10 import download_cifar10
    from cifar_tl.data.source import load_data

    source, progress = source_of(options), shows_bars(options)
    start = time.perf_counter()
    chosen = {"base_classes": options.base_classes, "new_classes": options.new_classes}
    try:
        return load_data(source, **chosen, progress=progress), time.perf_counter() - start
    except MissingDataError:
        log(f"getting CIFAR-10 into {source}, 170 MB if it must be downloaded")
    try:
        download_cifar10(source, progress=progress)
    except DownloadError as error:
        # Never substitute what was asked for, or what this output folder has been about.
        asked = (options.data, options.base_classes, options.new_classes) != (None, None, None)
        if asked or (options.output_dir / OFFICIAL).exists():
            raise
        instead = (
            "THIS RUN USES THE BUILT-IN SHAPES INSTEAD: its results say nothing about CIFAR-10."
        )
        for line in ("*" * 88, str(error), instead, "*" * 88):
            warn(line)
        source = SHAPES
    start = time.perf_counter()
    return load_data(source, **chosen), time.perf_counter() - start


def prepare_folders(options: argparse.Namespace, data: "Data", stages: Sequence[str]) -> None:
    """Checks the folders of results, and empties them for a restart."""
    from cifar_tl.experiment.files import discard
    from cifar_tl.experiment.parents import load_parent

    places = [place_of(one, data.name) for one in each_run(options)]
    folders = dict.fromkeys(place.of(stage) for place in places for stage in stages)
    for path in (places[0].folder, *folders):
        if os.path.lexists(path):
            check_output_dir(path)
    if options.restart:
        # Delete nothing if it could not be made anew.
        for place in places:
            load_parent(stages[0], place, data, options.base)
        discard(places[0].folder, folders)
        options.restart = False  # so that a command to go on does not delete again


def run_one(
    stage: str,
    data: "Data",
    options: argparse.Namespace,
    seconds_reading: float,
    log: Callable[[str], None],
) -> "StageResult":
    """Runs a stage; if it diverges, says what to type instead."""
    from cifar_tl.experiment.stages import run_stage

    recipe = choose_recipe(options)
    try:
        return run_stage(
            stage,
            data,
            recipe,
            output_dir=options.output_dir,
            seed=options.seed,
            device=options.device,
            base=options.base if takes_base(stage) else None,
            train_fraction=options.train_fraction[0] if STAGES[stage].classes == "new" else 1.0,
            seed_folder=options.seeds is not None,
            seconds_reading=seconds_reading,
            log=log,
            progress=shows_bars(options),
        )
    except TrainingError as error:
        lower = f"{recipe.for_stage(stage).lr / 10:g}"
        better = write_command(options, stage=stage, lr=lower, restart=True)
        raise TrainingError(f"{error}: {better}") from error


def compare_stages(
    options: argparse.Namespace, data: "Data", experiments: Sequence[Experiment]
) -> None:
    """Compares the stages, of all seeds and fractions, in files and in print."""
    from cifar_tl.experiment.comparison import compare, comparison_text
    from cifar_tl.experiment.files import read_pictures, save_comparison, save_report
    from cifar_tl.experiment.report import report
    from cifar_tl.experiment.summary import summarize, summary_text

    folder = options.output_dir / data.name
    comparisons: dict[float, list[dict[str, Any]]] = {}
    places: dict[float, list[Place]] = {}
    for one, results in experiments:
        (fraction,) = one.train_fraction
        comparisons.setdefault(fraction, []).append(compare(results))
        places.setdefault(fraction, []).append(place_of(one, data.name))
    if len(experiments) == 1:
        comparison = comparisons[fraction][0]
        text = comparison_text(comparison)
    else:
        comparison = summarize(comparisons)
        text = summary_text(comparison)
    save_comparison(folder, comparison, text)
    largest = places[max(places)]
    draw_comparison(largest, several_sizes=len(places) > 1)
    stages = next(results for one, results in experiments if place_of(one, data.name) == largest[0])
    pictures = read_pictures(largest[0])
    save_report(folder, report(comparison, stages, pictures, write_command(options)))
    say(f"\n{text}\nEverything was written to {printable(str(folder))}")


def draw_stage(folder: Path, data: "Data") -> None:
    """Draws the pictures of a stage, if they are missing."""
    draw(folder, PICTURES, lambda: plots().draw_stage(folder, data))


def draw_comparison(places: Sequence[Place], *, several_sizes: bool) -> None:
    """Draws the pictures of a comparison: of the seeds of one fraction, and of the fractions."""
    folder, (ways, images) = places[0].folder, COMPARISON_PICTURES
    draw(folder, [ways], lambda: plots().draw_comparison(places))
    if several_sizes:
        draw(folder, [images], lambda: plots().draw_images(folder))


def plots() -> ModuleType:
    """Imports what draws, which needs matplotlib."""
    from cifar_tl.experiment import plots

    return plots


def draw(folder: Path, names: Sequence[str], function: Callable[[], None]) -> None:
    """Draws pictures that are missing; whatever goes wrong costs them, and nothing else."""
    if not has_matplotlib() or all((folder / name).exists() for name in names):
        return
    try:
        function()
    except MemoryError:
        raise
    except Exception as error:  # whatever it is
        warnings.warn(f"no pictures in {folder}: {first_line(error)}", RunWarning, stacklevel=2)


def has_matplotlib() -> bool:
    """Tells whether pictures can be drawn."""
    return importlib.util.find_spec("matplotlib") is not None


def shows_bars(options: argparse.Namespace) -> bool:
    """Tells whether to show progress bars."""
    return shows_progress() and not options.quiet


def check_output_dir(folder: Path) -> None:
    """Fails before any work is done if results could not be written at its end."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # root may write whatever the permissions say
    except OSError as error:
        raise UsageError(
            f"--output-dir {folder}: nothing can be written there ({error.strerror})"
        ) from error


def check_device(name: str, precision: str | None) -> None:
    """Fails before any work is done if the device does not exist or lacks the precision."""
    import torch

    try:
        number = torch.zeros(1, device=name)
        number.item()  # a device without data, such as meta, has none
        if precision == "bf16":
            with torch.autocast(number.device.type, torch.bfloat16):
                (number @ number).item()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError, ValueError) as error:
        reason = first_line(error).partition(". ")[0]
        raise UsageError(f"--device {name}: cannot be used here ({reason})") from error
