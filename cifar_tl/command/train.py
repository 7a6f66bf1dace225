"""``cifar-tl train``: runs the stages and shows what transfer saves and costs."""

import argparse
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from cifar_tl.command import signals
from cifar_tl.command.console import UsageError, run_command, say, shows_progress, warn
from cifar_tl.command.device import choose_device
from cifar_tl.command.train_arguments import (
    Job,
    check_arguments,
    check_files,
    choose_recipe,
    list_jobs,
    source_of,
    stages_to_run,
)
from cifar_tl.command.train_parser import make_parser, naming_commands, write_command
from cifar_tl.command.train_results import Experiment, draw_stage, show
from cifar_tl.data.source import OFFICIAL, SHAPES, results_name
from cifar_tl.disk import make_folder, megabytes_in
from cifar_tl.errors import BackboneError, DownloadError, MissingDataError, TailError, TrainingError
from cifar_tl.experiment.stages import PICTURE_CACHE, STAGES, control, stage_classes, takes_base
from cifar_tl.frame import Fit
from cifar_tl.names import count, printable
from cifar_tl.pretrained import is_backbone
from cifar_tl.processes import launch
from cifar_tl.recipe import finetune_lr_for
from cifar_tl.version import commit

if TYPE_CHECKING:  # what needs torch is imported where it is used, when the arguments are good
    from torch.distributed import ProcessGroup

    from cifar_tl import Data, StageResult
    from cifar_tl.backbone import Backbone

    Base: TypeAlias = Path | Backbone | None
    Bases: TypeAlias = dict[Path | None, Base]  # by what names them

Log = Callable[[str], None]

# Options that may differ between machines that work together. Paths are compared by content.
MACHINE_OPTIONS = ("data", "labels", "base", "weights", "output_dir", "device", "threads", "quiet")


def main(argv: Sequence[str]) -> int:
    """Runs the command with some arguments; returns the exit code."""
    return run_command(make_parser(), argv, train, check=check, load=load, go_on=how_to_go_on)


def check(options: argparse.Namespace) -> None:
    """Checks the options, and that results can be written at the end."""
    check_arguments(options)
    check_files(options)
    check_output_dir(options.output_dir)


def load(options: argparse.Namespace) -> None:
    """Imports all that training needs. The first optimizer of torch's own imports more."""
    import torch

    if choose_recipe(options).optimizer != "muon":
        torch.optim.SGD([torch.zeros(1)])  # seconds, in which a signal must not come
    commit()  # of the code that is imported now: it may change while it trains


def how_to_go_on(options: argparse.Namespace) -> str:
    """Says what to do when the command was cut off."""
    return f"what was finished is saved. To go on: {write_command(options)}"


def train(options: argparse.Namespace) -> int:
    """Runs the stages and shows what came out."""
    from cifar_tl.machine import compute_with, keep_freed_memory

    log: Log = (lambda _: None) if options.quiet else say
    separate = options.seeds is not None
    device = choose_device(options.device, options.precision, log, separate=separate)
    if signals.are_handled():  # nobody can undo it: not in another program's process
        keep_freed_memory()
    with compute_with(options.threads or launch.divided_threads()):
        with launch.process_group(device, separate=separate) as group:
            experiments, data = run_all(options, device, group, log)
        if launch.speaks():
            show(options, experiments, data, log)
    return 0


def run_all(
    options: argparse.Namespace, device: str, group: "ProcessGroup | None", log: Log
) -> tuple[list[Experiment], "Data"]:
    """Reads the data and does all jobs. Processes share each stage, or divide several seeds."""
    import torch

    from cifar_tl.distributed import gather_objects
    from cifar_tl.experiment.run import run_stage

    separate = options.seeds is not None
    with naming_commands(options):
        bases, (data, seconds_reading) = launch.once_a_machine(
            lambda: (load_bases(options, log), read_data(options, log)), group
        )
        check_machines(options, data, bases, device, group)
        stages = [
            stage
            for stage in stages_to_run(options, own_classes=data.own_classes)
            if stage_classes(stage, data)
        ]
        if not stages:
            raise UsageError(f"--stage {options.stage} has nothing to learn: no class is a new one")
        jobs = list_jobs(options, data.name)
        log(
            f"data: {printable(data.name)} ({data.description}); recipe: {options.recipe}; "
            f"{'first seed' if separate else 'seed'}: {options.seed}; "
            f"{f'{group.size()} processes of ' if group else ''}"
            f"{count(torch.get_num_threads(), 'thread')} on {device}"
        )
        prepare_folders(options, jobs, stages, data, bases, group, log)
    run = partial(
        run_stage,
        data=data,
        recipe=choose_recipe(options),
        output_dir=options.output_dir,
        device=device,
        class_balance=options.class_balance,
        seed_folder=separate,
        keep_features=options.feature_cache,
        keep_pictures=options.picture_cache,
        seconds_reading=seconds_reading,
        command=write_command(options),
        log=log,
        progress=shows_bars(options),
        group=None if separate else group,
    )
    if group is None or not separate:
        return do_jobs(jobs, stages, data, bases, run, log), data
    mine = [job for job in jobs if (job.seed - options.seed) % group.size() == group.rank()]
    of_all = gather_objects(do_jobs(mine, stages, data, bases, run, log), group)
    both = [experiment for experiments in of_all for experiment in experiments]
    places = [job.place for job in jobs]
    return sorted(both, key=lambda experiment: places.index(experiment[0])), data


def do_jobs(
    jobs: Sequence[Job],
    stages: Sequence[str],
    data: "Data",
    bases: "Bases",
    run: "partial[StageResult]",
    log: Log,
) -> list[Experiment]:
    """Runs the stages of each job. A base model serves all fractions, a control all bases."""
    from cifar_tl.experiment.findings.results import summary

    experiments: list[Experiment] = []
    done: dict[Path, StageResult] = {}
    for job in jobs:
        if len(jobs) > 1 or job.place.seed is not None:
            of_base = "" if job.base is None else f", base {job.base}"
            part = f"{100 * job.place.train_fraction:.6g} % of the new images"
            log(f"\nseed {job.seed}, {part}{of_base}")
        for stage in stages:
            folder = job.place.of(stage)
            if folder in done:
                continue
            try:
                with naming_commands(job.options):
                    is_parent = any(STAGES[other].parent == stage for other in stages)
                    run_this = partial(run, keep_maps=is_parent)
                    done[folder] = run_one(stage, job, data, bases[job.base], run_this)
            except TailError as error:
                if len(stages) == 1:
                    raise
                warn(f"no {stage}: {error}")
                continue
            # Pictures take a second a stage: one seed's are enough.
            if job.seed == jobs[0].seed and launch.speaks():
                draw_stage(
                    job.place,
                    stage,
                    data,
                    keep_features=job.options.feature_cache,
                    keep_pictures=job.options.picture_cache,
                )
            say(f"{summary(done[folder])}; files in {printable(str(folder))}")
        folders = {stage: job.place.of(stage) for stage in stages}
        results = {stage: done[folder] for stage, folder in folders.items() if folder in done}
        experiments.append((job.place, results))
    return experiments


def run_one(
    stage: str, job: Job, data: "Data", base: "Base", run: "partial[StageResult]"
) -> "StageResult":
    """Runs a stage. If it diverges, says what to type instead."""
    from cifar_tl.experiment.task import num_training_images

    fraction = job.place.train_fraction if STAGES[stage].learns == "new" else 1.0
    try:
        base = base_for(stage, base, job)
        return run(stage, seed=job.seed, base=base, train_fraction=fraction)
    except TrainingError as error:
        recipe = choose_recipe(job.options)
        lr = getattr(recipe, f"{STAGES[stage].recipe}_lr", recipe.lr)
        if lr is None:
            lr = finetune_lr_for(num_training_images(stage, data, fraction))
        lower: dict[str, Any] = {"lr": f"{lr / 10:g}", "weight_decay": None}  # None: the recipe's
        change = {error.too_high: lower[error.too_high]}
        better = write_command(job.options, stage=stage, restart=True, **change)
        raise TrainingError(f"{error}: {better}") from error


def base_for(stage: str, base: "Base", job: Job) -> "Base":
    """Returns the base that a stage gets: a transfer any, what goes on from it a network.

    The control gets one if it alone runs: the network with fresh weights of the job's seed.
    """
    if STAGES[stage].control and job.place.control_is_backbone and job.base is not None:
        return load_network(job.base.as_posix(), job.options, lambda _: None)
    goes_on = STAGES[stage].parent is not None and not isinstance(base, Path)
    return base if takes_base(stage) or goes_on else None


def load_bases(options: argparse.Namespace, log: Log) -> "Bases":
    """Loads the pretrained networks that ``--base`` names, with their weights.

    They are loaded before the data: a wrong name is said at once. Other bases stay paths.
    """
    bases: Bases = {base: base for base in options.base or (None,)}
    networks = [base for base in bases if base is not None and is_backbone(base)]
    if networks:
        from cifar_tl.published import check_name

        try:
            for base in networks:  # before the first one is downloaded
                check_name(base.as_posix())
        except BackboneError as error:
            raise UsageError(str(error)) from error
    loaded = {base: load_network(base.as_posix(), options, log) for base in networks}
    for licence in dict.fromkeys(base.source.get("licence") for base in loaded.values()):
        if licence:
            log(licence)
    return bases | loaded


def load_network(name: str, options: argparse.Namespace, log: Log) -> "Backbone":
    """Loads a pretrained network with its weights, and says where they are from.

    For the control its weights are fresh, and of the seed.
    """
    import torch

    from cifar_tl.backbone import FRESH
    from cifar_tl.published import load_backbone
    from cifar_tl.training import derive_seed, seeded

    weights = FRESH if options.stage == control() else options.weights
    fit: Fit = options.fit or "crop"
    try:
        if weights is None:
            log(f"base: {name}; its weights are downloaded if they are not there")
        with seeded(derive_seed(options.seed, FRESH), torch.device("cpu")):
            base = load_backbone(name, weights, fit=fit, progress=shows_bars(options))
    except BackboneError as error:
        raise UsageError(str(error)) from error
    source = base.source
    log(
        f"base: {base.name}, weights {source['weights']}, images of {base.image_size} pixels, as "
        f"for {source['preset']}"
    )
    return base


def read_data(options: argparse.Namespace, log: Log) -> tuple["Data", float]:
    """Reads the data; downloads CIFAR-10 if it is missing.

    Returns:
        The data, and the seconds of reading.
    """
    from cifar_tl.data.cifar10 import download_cifar10
    from cifar_tl.data.source import load_data

    source, progress = source_of(options), shows_bars(options)
    chosen: Any = {"labels": options.labels}
    chosen |= {"base_classes": options.base_classes, "new_classes": options.new_classes}
    fit: Fit = options.fit or "crop"
    folder = options.output_dir / results_name(source, options.labels)
    cache = folder / PICTURE_CACHE if options.picture_cache else None
    start = time.perf_counter()
    try:
        data = load_data(source, **chosen, fit=fit, picture_cache=cache, progress=progress)
        seconds = time.perf_counter() - start
        if data.files and cache is not None and cache.is_dir() and any(cache.iterdir()):
            log(f"decoded pictures are kept in {printable(str(cache))} ({megabytes_in(cache)})")
        return data, seconds
    except MissingDataError:
        log(f"getting CIFAR-10 into {source}, 170 MB if it must be downloaded")
    try:
        download_cifar10(source, progress=progress)
    except DownloadError as error:
        # Never replace what was asked for, or what this output folder has been about.
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
    options: argparse.Namespace,
    data: "Data",
    bases: "Bases",
    device: str,
    group: "ProcessGroup | None",
) -> None:
    """Refuses machines that have different images or options."""
    import torch

    from cifar_tl.backbone import digest_of
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
    same["base"] = [
        hashlib.sha256(read_model_file(base)).hexdigest()
        if isinstance(base, Path)
        else digest_of(base)
        for base in bases.values()
        if base is not None
    ]
    try:
        check_same(group, **same)
    except ValueError as error:
        raise UsageError(f"{error}: give all machines the same data and options") from error


def prepare_folders(
    options: argparse.Namespace,
    jobs: Sequence[Job],
    stages: Sequence[str],
    data: "Data",
    bases: "Bases",
    group: "ProcessGroup | None",
    log: Log,
) -> None:
    """Checks the folders of results, and empties them for a restart."""
    from cifar_tl.experiment.folder import discard
    from cifar_tl.experiment.parents import load_parent
    from cifar_tl.experiment.sharing import writes_in

    top = jobs[0].place.folder
    folders = dict.fromkeys(job.place.of(stage) for job in jobs for stage in stages)
    for path in (top, *folders):
        if os.path.lexists(path):
            check_output_dir(path)

    def empty() -> None:
        for job in jobs:  # delete nothing that could not be made anew
            load_parent(stages[0], job.place, data, base_for(stages[0], bases[job.base], job))
        if group is None or writes_in(top, group):
            comparisons = {job.place.comparison for job in jobs}
            discard((top, *comparisons) if len(comparisons) > 1 else comparisons, folders)

    if options.restart:
        if not launch.once_a_launch("restart", empty, group):
            log("torchrun has started again: it goes on, and --restart deletes nothing this time")
        for each in (options, *(job.options for job in jobs)):
            each.restart = False  # so that a command to go on does not delete again


def shows_bars(options: argparse.Namespace) -> bool:
    """Returns whether to show progress bars."""
    return shows_progress() and not options.quiet


def check_output_dir(folder: Path) -> None:
    """Fails before any work is done if no results could be written at its end."""
    try:
        make_folder(folder)
        tempfile.TemporaryFile(dir=folder).close()  # root may write whatever the permissions say
    except OSError as error:
        raise UsageError(
            f"--output-dir {folder}: nothing can be written there ({error.strerror})"
        ) from error
