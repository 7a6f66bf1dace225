"""What the options of ``train`` mean together: the source, the stages, the recipe, the jobs."""

import argparse
import dataclasses
import itertools
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from cifar_tl.command.arguments import check_source
from cifar_tl.command.console import UsageError
from cifar_tl.command.train_parser import (
    ALL,
    NOT_OF_MAPS,
    OWN_VALUES,
    flag,
    naming_commands,
    write_command,
)
from cifar_tl.data.classes import ALL_CLASSES, choose_classes, split_suffix
from cifar_tl.data.source import DEFAULT_SOURCE, check_early, kind_of, lacks_cifar10, results_name
from cifar_tl.errors import DataError
from cifar_tl.experiment.parents import read_parent
from cifar_tl.experiment.stages import STAGES, Place, control, takes_base, way_to
from cifar_tl.pretrained import is_backbone, is_pretrained
from cifar_tl.recipe import RECIPES, Recipe


class Job(NamedTuple):
    """One experiment: some stages, with one base and one seed, on one part of the images."""

    seed: int
    base: Path | None  # a file or a name; None: the default
    place: Place
    options: argparse.Namespace  # of a command that does this job alone


def check_arguments(options: argparse.Namespace) -> None:
    """Checks the options without importing torch or writing anything.

    Raises:
        UsageError: If the options make no sense, or would be ignored.
    """
    if options.data is not None:
        _check_data(options)
    if not options.picture_cache and not kind_of(source_of(options), options.labels).own_classes:
        raise UsageError("--no-picture-cache is for folders of image files: leave it out")
    _check_own_values(options)
    _check_classes(options)
    stages = stages_to_run(options)
    _check_base(options, stages)
    if options.train_fraction != (1.0,) and not any(way_to(stage) for stage in stages):
        raise UsageError("--train-fraction is for the other stages: base trains on all its images")


def _check_base(options: argparse.Namespace, stages: Sequence[str]) -> None:
    """Refuses a base that no stage takes, or options of a base that it has not."""
    bases = options.base or ()
    networks = [base for base in bases if is_backbone(base)]
    if not networks:
        unused = {"--weights": options.weights}
        unused["--no-feature-cache"] = None if options.feature_cache else True
        if not kind_of(
            source_of(options), options.labels
        ).own_classes:  # CIFAR-10's images are squares
            unused["--fit"] = options.fit
        if given := [name for name, value in unused.items() if value is not None]:
            raise UsageError(
                f"{given[0]} is for a pretrained network: name one with --base, such as "
                "mobilenet_v3_small"
            )
    if not bases:
        return
    on_maps = networks and options.stage != ALL and STAGES[options.stage].recipe == "finetune"
    if given := [name for name in NOT_OF_MAPS if on_maps and getattr(options, name) is not None]:
        raise UsageError(
            f"{flag(given[0])} is for stages that learn from images: {options.stage} from a "
            "pretrained network learns from maps, so leave it out"
        )
    if options.weights is not None and len(networks) > 1:
        raise UsageError(f"--weights is for one network: {networks[0]} and {networks[1]} are two")
    if len(bases) - len(networks) > 1:
        raise UsageError(
            f"--base {','.join(map(str, bases))}: two of these are the documented network, and "
            "their results would be in the same folders: try them in two --output-dir"
        )
    if options.stage == control() and networks and networks != list(bases):
        raise UsageError(
            f"--stage {control()} of a pretrained network has a command of its own: name with "
            f"--base {networks[0]} alone, or leave --base out for the documented network"
        )
    serves = networks == list(bases) and all(way_to(stage) for stage in stages)
    if stages[0] == "base" or not (serves or any(map(takes_base, stages))):
        raise UsageError("--base names the base model of a transfer: add --stage transfer")
    if options.weights is not None and options.stage == control():
        raise UsageError(
            f"--weights is for stages that start from them: leave it out for {control()}"
        )
    for base in bases:
        if not is_backbone(base) and not is_pretrained(base) and not base.is_file():
            raise UsageError(f"--base {base}: there is no such file")
        if base in networks and base.parts[0] == "timm" and find_spec("timm") is None:
            raise UsageError(f"--base {base} needs the package timm: pip install timm")


def check_files(options: argparse.Namespace) -> None:
    """Checks classes of the user's own, and the model that the first stage starts from.

    Raises:
        DataError: If something is wrong with the folders of the classes.
        RunError: If the model is missing or damaged.
    """
    source = source_of(options)
    with naming_commands(options):
        check_early(source, options.labels)
    _check_parent(options, stages_to_run(options)[0])


def _check_data(options: argparse.Namespace) -> None:
    """Refuses a source that cannot be meant. CIFAR-10's own folder may be missing."""
    if options.data != DEFAULT_SOURCE or Path(options.data).exists():
        check_source(options.data, options.labels, partial(write_command, options))


def _check_own_values(options: argparse.Namespace) -> None:
    """Refuses a value of another stage, which would be ignored, and a value that is given twice."""
    for owner, name in OWN_VALUES:
        own = f"{owner}_{name}"
        if getattr(options, own) is None:
            continue
        if options.stage == ALL:
            continue
        if STAGES[options.stage].recipe != owner:
            raise UsageError(f"{flag(own)} is for {owner}: leave it out or add --stage {owner}")
        if getattr(options, name) is not None:
            raise UsageError(f"{flag(own)} and {flag(name)} mean the same here: leave out one")


def _check_classes(options: argparse.Namespace) -> None:
    """Refuses a wrong choice of classes, if the names of the classes are known."""
    source, chosen = source_of(options), (options.base_classes, options.new_classes)
    if chosen == (None, None):
        return
    kind = kind_of(source, options.labels)
    if kind.own_classes:
        raise UsageError(
            f"--base-classes and --new-classes divide given classes; those of {source} are all "
            "learned: move folders out of it instead"
        )
    if not kind.class_names:
        return
    try:
        _, new = choose_classes(kind.class_names, *chosen)
    except DataError as error:
        raise UsageError(str(error)) from error
    if not new and options.stage != ALL and STAGES[options.stage].learns == "new":
        raise UsageError(f"--stage {options.stage} has nothing to learn: no class is a new one")


def _check_parent(options: argparse.Namespace, stage: str) -> None:
    """Checks the model that the first stage starts from, if it is certain which data it is for."""
    source = source_of(options)
    if STAGES[stage].parent is None:
        return
    if options.labels is None and lacks_cifar10(source):  # maybe the shapes instead
        return
    kind, name = kind_of(source, options.labels), results_name(source, options.labels)
    if (options.base_classes, options.new_classes) != (None, None):
        if not (names := kind.class_names):  # not before it is read
            return
        halves = choose_classes(names, options.base_classes, options.new_classes)
        name += split_suffix(*halves, len(names))
    for job in list_jobs(options, name):
        if job.place.backbone is not None and takes_base(stage):
            continue  # that network is looked for later: it needs torch
        file = None if job.place.backbone else job.base
        with naming_commands(job.options):
            own_classes = kind.own_classes or options.new_classes == ALL_CLASSES
            read_parent(stage, job.place, file, own_classes=own_classes)


def source_of(options: argparse.Namespace) -> str:
    """Returns the source of data."""
    return options.data or DEFAULT_SOURCE


def stages_to_run(options: argparse.Namespace, *, own_classes: bool = False) -> tuple[str, ...]:
    """Lists the stages in their order. Classes of one's own are all new, so they need no base.

    Args:
        options: The options.
        own_classes: The data have turned out to have classes of the user's own.
    """
    if options.stage != ALL:
        return (options.stage,)
    if any(map(is_backbone, options.base or ())):
        return tuple(name for name in STAGES if way_to(name))
    own_classes |= options.new_classes == ALL_CLASSES
    own_classes |= kind_of(source_of(options), options.labels).own_classes
    return tuple(name for name, stage in STAGES.items() if stage.learns == "new" or not own_classes)


def list_jobs(options: argparse.Namespace, data_name: str) -> list[Job]:
    """Lists the experiments: one for each base, each seed and each fraction."""
    jobs = []
    every_seed = range(options.seed, options.seed + (options.seeds or 1))
    for base, seed in itertools.product(options.base or (None,), every_seed):
        seed_of_folder = None if options.seeds is None else seed
        seeds = None if options.seeds is None else 1  # 1: in a folder of its own
        for fraction in options.train_fraction:
            alone = {"seed": seed, "seeds": seeds, "train_fraction": (fraction,)}
            alone["base"] = None if base is None else (base,)
            if not is_backbone(base):
                alone |= {"weights": None, "feature_cache": True}
            backbone = base.as_posix() if base is not None and is_backbone(base) else None
            place = Place(
                options.output_dir / data_name,
                fraction,
                seed_of_folder,
                backbone,
                control_is_backbone=options.stage == control(),
            )
            jobs.append(Job(seed, base, place, argparse.Namespace(**vars(options) | alone)))
    return jobs


def choose_recipe(options: argparse.Namespace) -> Recipe:
    """Returns the named recipe with what the options change of it."""
    recipe = RECIPES[options.recipe]
    given = {
        field.name: value
        for field in dataclasses.fields(recipe)
        if field.name != "name" and (value := getattr(options, field.name, None)) is not None
    }
    if options.stage != ALL:  # --lr of the one stage is its own
        owner = STAGES[options.stage].recipe
        own = [name for stage, name in OWN_VALUES if stage == owner]
        given |= {f"{owner}_{name}": given[name] for name in own if name in given}
    return dataclasses.replace(recipe, **given)
