"""``cifar-tl train``: runs the stages and shows what transfer saves and costs."""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cifar_tl.command.arguments import check_own_classes
from cifar_tl.command.console import UsageError, run_command, say, shows_progress, warn
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
from cifar_tl.command.train_results import (
    Experiment,
    compare_stages,
    draw_stage,
    has_matplotlib,
    next_command,
    say_spreads,
)
from cifar_tl.data.source import OFFICIAL, SHAPES
from cifar_tl.errors import (
    DownloadError,
    MissingDataError,
    TrainingError,
    first_line,
)
from cifar_tl.experiment.run import (
    STAGES,
    stage_classes,
    takes_base,
)
from cifar_tl.names import printable

if TYPE_CHECKING:  # what needs torch is imported where it is used, when the arguments are good
    from cifar_tl import Data, StageResult


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
        compare_stages(experiments, write_command(options))
    elif options.seeds is not None:
        say_spreads(experiments)
    if not has_matplotlib():
        log("For pictures of all this: pip install matplotlib, then the same command again")
    if data.needs_other_base:
        log(f"Try it: {next_command(experiments)}")
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
        for stage in stages:
            folder = place.of(stage)
            if folder in done:
                continue
            with naming_commands(one):
                done[folder] = run_one(stage, data, one, seconds_reading, log)
            if one.seed == options.seed:  # pictures take a second a stage: one seed's are enough
                draw_stage(folder, data)
            say(f"{summary(done[folder])}; files in {printable(str(folder))}")
        experiments.append((place, {stage: done[place.of(stage)] for stage in stages}))
    return experiments


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
