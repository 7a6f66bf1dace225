"""``cifar-tl train``: runs the stages and shows what transfer saves and costs."""

import argparse
import importlib.util
import os
import shlex
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_tl.command.arguments import check_own_classes
from cifar_tl.command.console import UsageError, called, run_command, say, shows_progress, warn
from cifar_tl.command.train_arguments import (
    ALL,
    check_arguments,
    check_parent,
    choose_recipe,
    make_parser,
    naming_commands,
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
    COMPARISON_PICTURE,
    MODEL,
    PICTURES,
    STAGES,
    stage_classes,
    stage_folder,
    takes_base,
)
from cifar_tl.names import printable

if TYPE_CHECKING:  # what needs torch is imported where it is used, when the arguments are good
    from cifar_tl import Data, Recipe, StageResult


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
        recipe = choose_recipe(options)
        stages = [stage for stage in stages_to_run(options) if stage_classes(stage, data)]
        if not stages:
            raise UsageError(f"--stage {options.stage} has nothing to learn: no class is a new one")
        log(
            f"data: {printable(data.name)} ({data.description}); recipe: {recipe.name}; "
            f"seed: {options.seed}; {torch.get_num_threads()} threads on {options.device}"
        )
        prepare_folders(options, data, stages)
        results = {
            stage: run_one(stage, data, recipe, options, seconds_reading, log) for stage in stages
        }
        if options.stage == ALL and data.new_classes:
            compare_stages(options.output_dir / data.name, results)
    if not has_matplotlib():
        log("For pictures of all this: pip install matplotlib, then the same command again")
    if data.needs_other_base:
        log(f"Try it: {next_command(options.output_dir / data.name, results)}")
    return 0


def next_command(folder: Path, results: Mapping[str, Mapping[str, Any]]) -> str:
    """Writes the command that asks the model of the stage that validated best."""
    best = max(results, key=lambda stage: results[stage]["val_accuracy"])
    return f"{called('predict')} photo.jpg --model {shlex.quote(str(folder / best / MODEL))}"


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

    folders = [stage_folder(options.output_dir, data.name, stage) for stage in stages]
    for path in (folders[0].parent, *folders):
        if os.path.lexists(path):
            check_output_dir(path)
    if options.restart:
        # Delete nothing if it could not be made anew.
        load_parent(stages[0], folders[0].parent, data, options.base, options.train_fraction)
        discard(folders)
        options.restart = False  # so that a command to go on does not delete again


def run_one(
    stage: str,
    data: "Data",
    recipe: "Recipe",
    options: argparse.Namespace,
    seconds_reading: float,
    log: Callable[[str], None],
) -> "StageResult":
    """Runs a stage, draws its pictures and says what came out."""
    from cifar_tl.experiment.results import summary
    from cifar_tl.experiment.stages import run_stage

    try:
        result = run_stage(
            stage,
            data,
            recipe,
            output_dir=options.output_dir,
            seed=options.seed,
            device=options.device,
            base=options.base if takes_base(stage) else None,
            train_fraction=options.train_fraction if STAGES[stage].classes == "new" else 1.0,
            seconds_reading=seconds_reading,
            log=log,
            progress=shows_bars(options),
        )
    except TrainingError as error:
        lower = f"{recipe.for_stage(stage).lr / 10:g}"
        better = write_command(options, stage=stage, lr=lower, restart=True)
        raise TrainingError(f"{error}: {better}") from error
    folder = stage_folder(options.output_dir, data.name, stage)
    draw(folder, data)
    say(f"{summary(result)}; files in {printable(str(folder))}")
    return result


def compare_stages(folder: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Compares the stages, in files and in print."""
    from cifar_tl.experiment.comparison import compare, comparison_text
    from cifar_tl.experiment.files import save_comparison

    comparison = compare(results)
    text = comparison_text(comparison)
    save_comparison(folder, comparison, text)
    draw(folder)
    say(f"\n{text}\nEverything was written to {printable(str(folder))}")


def draw(folder: Path, data: "Data | None" = None) -> None:
    """Draws the pictures of a stage, or without data the comparison's, if they are missing."""
    names = (COMPARISON_PICTURE,) if data is None else PICTURES
    if not has_matplotlib() or all((folder / name).exists() for name in names):
        return
    try:
        from cifar_tl.experiment import plots

        if data is None:
            plots.draw_comparison(folder)
        else:
            plots.draw_stage(folder, data)
    except MemoryError:
        raise
    except Exception as error:  # whatever it is costs pictures, nothing else
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
