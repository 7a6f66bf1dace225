"""``cifar-tl train``: runs the stages and shows what transfer saves and costs."""

import argparse
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cifar_tl.command.console import UsageError, run_command, say, shows_progress, warn
from cifar_tl.command.device import choose_device
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
from cifar_tl.data.source import OFFICIAL, SHAPES, kind_of
from cifar_tl.errors import (
    DownloadError,
    MissingDataError,
    TrainingError,
)
from cifar_tl.experiment.stages import STAGES, stage_classes, takes_base
from cifar_tl.names import count, printable
from cifar_tl.processes import launch
from cifar_tl.recipe import finetune_lr_for

if TYPE_CHECKING:  # what needs torch is imported where it is used, when the arguments are good
    from torch.distributed import ProcessGroup

    from cifar_tl import Data, StageResult

# What machines that work together may be told differently; paths are compared by content.
MACHINE_OPTIONS = ("data", "base", "output_dir", "device", "threads", "quiet")


def main(argv: Sequence[str]) -> int:
    """Runs the command with some arguments; returns the exit code."""
    return run_command(make_parser(), argv, train, check=check, load=load, go_on=how_to_go_on)


def check(options: argparse.Namespace) -> None:
    """Checks the arguments, and that results can be written at the end."""
    check_arguments(options)
    source = source_of(options)
    kind_of(source).check(Path(source))
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

    from cifar_tl.machine import keep_freed_memory

    log: Callable[[str], None] = (lambda _: None) if options.quiet else say
    separate = options.seeds is not None
    device = choose_device(options.device, options.precision, log, separate=separate)
    if threads := options.threads or launch.divided_threads():
        torch.set_num_threads(threads)
    keep_freed_memory()
    with launch.process_group(device, separate=separate) as group:
        experiments, data = run_all(options, device, group, log)
    if not launch.speaks():
        return 0
    if options.stage == ALL and data.new_classes:
        compare_stages(experiments, write_command(options))
    elif options.seeds is not None:
        say_spreads(experiments)
    if not has_matplotlib():
        log("For pictures of all this: pip install matplotlib, then the same command again")
    if data.own_classes:
        log(f"Try it: {next_command(experiments)}")
    return 0


def run_all(
    options: argparse.Namespace,
    device: str,
    group: "ProcessGroup | None",
    log: Callable[[str], None],
) -> tuple[list[Experiment], "Data"]:
    """Reads the data and runs everything; processes share each stage, or the seeds if several."""
    import torch

    from cifar_tl.distributed import gather_objects

    with naming_commands(options):
        data, seconds_reading = launch.once_a_machine(partial(read_data, options, log), group)
        check_machines(options, data, device, group)
        stages = [stage for stage in stages_to_run(options) if stage_classes(stage, data)]
        if not stages:
            raise UsageError(f"--stage {options.stage} has nothing to learn: no class is a new one")
        processes = f"{group.size()} processes of " if group else ""
        log(
            f"data: {printable(data.name)} ({data.description}); recipe: {options.recipe}; "
            f"{'seed' if options.seeds is None else 'first seed'}: {options.seed}; "
            f"{processes}{count(torch.get_num_threads(), 'thread')} on {device}"
        )
        prepare_folders(options, data, stages, group, log)
    run = partial(run_one, data=data, device=device, seconds_reading=seconds_reading, log=log)
    if group is None or options.seeds is None:
        return run_experiments(options, data, stages, partial(run, group=group), log), data
    mine = run_experiments(options, data, stages, run, log, separate=True)
    of_all = [found for each in gather_objects(mine, group) for found in each]
    return sorted(of_all, key=lambda experiment: experiment[0].seed or 0), data


def run_experiments(
    options: argparse.Namespace,
    data: "Data",
    stages: Sequence[str],
    run: Callable[[str, argparse.Namespace], "StageResult"],
    log: Callable[[str], None],
    *,
    separate: bool = False,
) -> list[Experiment]:
    """Runs the stages of each seed and fraction; a base serves all fractions.

    Processes that are ``separate`` each take some of the seeds.
    """
    from cifar_tl.experiment.findings.results import summary

    experiments: list[Experiment] = []
    done: dict[Path, StageResult] = {}
    for one in each_run(options):
        if separate and (one.seed - options.seed) % launch.launch().size != launch.launch().rank:
            continue
        place = place_of(one, data.name)
        if len(options.train_fraction) > 1 or options.seeds is not None:
            log(f"\nseed {one.seed}, {100 * place.train_fraction:.6g} % of the new images")
        for stage in stages:
            folder = place.of(stage)
            if folder in done:
                continue
            with naming_commands(one):
                done[folder] = run(stage, one)
            # Pictures take a second a stage: one seed's are enough.
            if one.seed == options.seed and launch.speaks():
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


def check_machines(
    options: argparse.Namespace, data: "Data", device: str, group: "ProcessGroup | None"
) -> None:
    """Refuses to train on one machine from other images, or in another way, than on another."""
    import torch

    from cifar_tl.distributed import check_same
    from cifar_tl.machine import choose_precision
    from cifar_tl.pretrained import read_model_file

    if group is None:
        return
    same = {name: value for name, value in vars(options).items() if name not in MACHINE_OPTIONS}
    same |= {"data": data.name, "fingerprint": data.fingerprint, "torch": torch.__version__}
    kind = torch.device(device)
    precision = choose_precision(choose_recipe(options).precision, kind)
    same |= {"device": kind.type, "precision": precision}
    if options.base is not None:
        same["base"] = hashlib.sha256(read_model_file(options.base)).hexdigest()
    try:
        check_same(group, **same)
    except ValueError as error:
        raise UsageError(f"{error}: give all machines the same data and options") from error


def prepare_folders(
    options: argparse.Namespace,
    data: "Data",
    stages: Sequence[str],
    group: "ProcessGroup | None",
    log: Callable[[str], None],
) -> None:
    """Checks the folders of results, and empties them for a restart."""
    from cifar_tl.experiment.folder import discard
    from cifar_tl.experiment.parents import load_parent
    from cifar_tl.experiment.sharing import writes_in

    places = [place_of(one, data.name) for one in each_run(options)]
    folders = dict.fromkeys(place.of(stage) for place in places for stage in stages)
    for path in (places[0].folder, *folders):
        if os.path.lexists(path):
            check_output_dir(path)
    if options.restart:

        def empty() -> None:
            # Delete nothing if it could not be made anew.
            for place in places:
                load_parent(stages[0], place, data, options.base)
            if group is None or writes_in(places[0].folder, group):
                discard(places[0].folder, folders)

        if not launch.once_a_launch("restart", empty, group):
            log("going on where this launch was before: --restart deletes only once")
        options.restart = False  # so that a command to go on does not delete again


def run_one(
    stage: str,
    options: argparse.Namespace,
    *,
    data: "Data",
    device: str,
    seconds_reading: float,
    log: Callable[[str], None],
    group: "ProcessGroup | None" = None,
) -> "StageResult":
    """Runs a stage; if it diverges, says what to type instead."""
    from cifar_tl.experiment.run import num_training_images, run_stage

    recipe = choose_recipe(options)
    train_fraction = options.train_fraction[0] if STAGES[stage].learns == "new" else 1.0
    try:
        return run_stage(
            stage,
            data,
            recipe,
            output_dir=options.output_dir,
            seed=options.seed,
            device=device,
            base=options.base if takes_base(stage) else None,
            train_fraction=train_fraction,
            seed_folder=options.seeds is not None,
            seconds_reading=seconds_reading,
            log=log,
            progress=shows_bars(options),
            group=group,
        )
    except TrainingError as error:
        lr = getattr(recipe, f"{stage}_lr", recipe.lr)
        if lr is None:
            lr = finetune_lr_for(num_training_images(stage, data, train_fraction))
        lower = f"{lr / 10:g}"
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
