"""The arguments of ``train``: which there are, what they mean together, and how to write them."""

import argparse
import contextlib
import dataclasses
import shlex
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, get_args

from cifar_tl.command.arguments import (
    MODEL_HELP,
    at_least_one,
    at_least_zero,
    check_source,
    dropout_rate,
    fractions,
    not_negative,
    positive,
    whole_number,
)
from cifar_tl.command.console import Parser, UsageError
from cifar_tl.data.classes import choose_classes, split_suffix
from cifar_tl.data.pictures.find import TRAIN
from cifar_tl.data.source import (
    DEFAULT_SOURCE,
    SOURCES,
    kind_of,
    lacks_cifar10,
    results_name,
)
from cifar_tl.errors import DataError, RunError
from cifar_tl.experiment import stages
from cifar_tl.experiment.parents import read_parent
from cifar_tl.pretrained import DEFAULT_MODEL, is_pretrained
from cifar_tl.recipe import (
    FEW_SHIFT,
    FEW_TO_SHIFT,
    MAX_SHIFT,
    RECIPES,
    STAGES_WITH_VALUES,
    TUNED,
    Precision,
    Recipe,
)

ALL = "all"
# torch.set_num_threads(100000) crashes the process.
seed_count: Callable[[str], int] = partial(whole_number, low=1, high=1000)
thread_count: Callable[[str], int] = partial(whole_number, low=1, high=256)
shift: Callable[[str], int] = partial(whole_number, low=0, high=MAX_SHIFT)

# What a stage has of its own in the recipe, such as transfer_lr.
OWN_SETTINGS = [
    (stage, field.name)
    for field in dataclasses.fields(Recipe)
    for stage in STAGES_WITH_VALUES
    if field.name.startswith(f"{stage}_")
]


def make_parser() -> Parser:
    """Makes the parser; None stands for the recipe's or torch's own default."""
    parser = Parser(
        "train",
        "Trains a small network on CIFAR-10 classes 0-4 (base), a new classifier on its frozen "
        "features for classes 5-9 (transfer), everything for a few more epochs (finetune), and the "
        "same network from fresh weights as a control (scratch). The same command again goes on "
        "where it stopped.",
    )
    parser.usage = "%(prog)s [options]"
    add = parser.add_group("everyday options", "--stage base --epochs 20")
    add(
        "--data",
        metavar="SOURCE",
        help=f"{SOURCES} (default: {DEFAULT_SOURCE}, to which CIFAR-10 is downloaded if missing)",
    )
    add(
        "--stage",
        choices=(*stages.STAGES, ALL),
        default=ALL,
        help="what to run (default: all of them in this order, then a comparison)",
    )
    add(
        "--epochs",
        metavar="N",
        type=at_least_one,
        help="epochs of base, transfer and scratch, or of the one --stage that is named (default "
        "here and below: the recipe's)",
    )
    add("--seed", metavar="N", type=at_least_zero, default=0, help="(default: %(default)s)")
    add(
        "--seeds",
        metavar="N",
        type=seed_count,
        help="run N seeds from --seed on, each stage in a folder seed-N, then means and spreads",
    )
    add(
        "--output-dir",
        metavar="DIR",
        type=Path,
        default=Path(stages.OUTPUT_DIR),
        help="results are written to DIR/DATA/STAGE (default: %(default)s)",
    )
    _add_other_options(parser)
    parser.add_help_options()
    return parser


def _add_other_options(parser: Parser) -> None:
    add = parser.add_group("the classes", "--base-classes cat,deer,dog --new-classes ship,truck")
    add(
        "--base-classes",
        metavar="LIST",
        help="the classes that base learns, by names or numbers with commas, or all (default: "
        "those that are not new; the first half, 0-4 of ten)",
    )
    add(
        "--new-classes",
        metavar="LIST",
        help="the classes of the other stages, likewise (default: those not for base; 5-9 of ten)",
    )
    add(
        "--base",
        metavar="FILE",
        type=Path,
        help=f"another base model for transfer: {MODEL_HELP} (default for classes of your own: "
        f"{DEFAULT_MODEL})",
    )
    add(
        "--train-fraction",
        metavar="X",
        type=fractions,
        default=(1.0,),
        help="train transfer, finetune and scratch on this part of their training images, the "
        "first of each class (default: 1), in a folder fraction-X; with commas, on several",
    )
    _add_recipe_options(parser)
    add = parser.add_group("the machine", "--device cuda --precision bf16")
    add(
        "--device",
        metavar="NAME",
        help="such as cuda, or auto: an accelerator if there is one (default: cpu)",
    )
    add(
        "--threads",
        metavar="N",
        type=thread_count,
        help="of each process (default: torch's choice; of several processes, its part of the "
        "cores)",
    )
    add(
        "--precision",
        choices=get_args(Precision),
        help="bf16: autocast to bfloat16; auto: where the machine has instructions for it "
        "(default: tuned auto, original float32)",
    )
    add = parser.add_group("the run", "--stage scratch --restart")
    add("--restart", action="store_true", help="first delete the results of the stages to run")
    add("--quiet", action="store_true", help="print only results, warnings and errors")


def _add_recipe_options(parser: Parser) -> None:
    add = parser.add_group("the recipe", f"--recipe {TUNED.name} --lr 0.01 --transfer-lr 0.02")
    add("--recipe", choices=RECIPES, default=TUNED.name, help="how to train (default: %(default)s)")
    add(
        "--lr",
        metavar="X",
        type=positive,
        help="(peak) learning rate of base and scratch, or of the one --stage that is named; with "
        "tuned, all learning rates, batch sizes and the weight decay are for ten epochs of 20,000 "
        "images, and change with fewer",
    )
    add(
        "--batch-size",
        metavar="N",
        type=at_least_one,
        help="images in a batch of base, finetune and scratch, or of the one --stage that is named",
    )
    add("--weight-decay", metavar="X", type=not_negative, help="as the recipe's optimizer means it")
    add(
        "--mirror",
        action=argparse.BooleanOptionalAction,
        help="train on mirror images, too (default: tuned does where they show the same class, as "
        "with CIFAR-10, and not with classes of your own)",
    )
    add(
        "--dropout",
        metavar="X",
        type=dropout_rate,
        help="of layer 6 while all of the network trains (default: original 0.42, the network's "
        "own; tuned 0)",
    )
    add(
        "--shift",
        metavar="N",
        type=shift,
        help="shift images by up to so many pixels at random (default: tuned 1, or 2 with fewer "
        "than 20,000 images or more than ten epochs; original 0)",
    )
    for stage, name in OWN_SETTINGS:
        what = name.removeprefix(f"{stage}_").replace("_", " ").replace("lr", "learning rate")
        number: dict[str, Any] = {"metavar": "N", "type": at_least_one}
        text = f"{what} of {stage}"
        if what == "learning rate":
            number = {"metavar": "X", "type": positive}
        if what == "dropout":
            number = {"metavar": "X", "type": dropout_rate}
        if what == "shift":
            number["type"] = shift
            text = (
                f"{stage} learns from images shifted by so many pixels in eight directions, too, "
                f"nine times as many (default: tuned {FEW_SHIFT} with up to {FEW_TO_SHIFT:,} "
                "images, else 0)"
            )
        add(_flag(name), **number, help=text)


def check_arguments(options: argparse.Namespace) -> None:
    """Checks what can be checked without importing torch or writing anything.

    Raises:
        UsageError: If the arguments make no sense, or would be ignored.
    """
    if options.data is not None:
        _check_data(options.data)
    _check_own_settings(options)
    _check_classes(options)
    if options.base is not None:
        if not stages.takes_base(stages_to_run(options)[0]):
            raise UsageError("--base names the base model of a transfer: add --stage transfer")
        if not is_pretrained(options.base) and not options.base.is_file():
            raise UsageError(f"--base {options.base}: there is no such file")
    if options.train_fraction != (1.0,) and not any(
        stages.way_to(stage) for stage in stages_to_run(options)
    ):
        raise UsageError("--train-fraction is for the other stages: base trains on all its images")


def _check_classes(options: argparse.Namespace) -> None:
    """Refuses a choice of classes that cannot be, as far as it is known which there are."""
    source, chosen = source_of(options), (options.base_classes, options.new_classes)
    if chosen == (None, None):
        return
    kind = kind_of(source)
    if kind.own_classes:
        raise UsageError(
            f"--base-classes and --new-classes divide given classes; those of {source} are all "
            "learned: move folders out of it instead"
        )
    if not (names := kind.class_names):
        return
    try:
        _, new = choose_classes(names, *chosen)
    except DataError as error:
        raise UsageError(str(error)) from error
    if not new and options.stage != ALL and stages.STAGES[options.stage].learns == "new":
        raise UsageError(f"--stage {options.stage} has nothing to learn: no class is a new one")


def _check_data(source: str) -> None:
    """Refuses a folder that cannot have been meant, but for the one that CIFAR-10 goes to."""
    if source != DEFAULT_SOURCE:
        check_source(source, "to download CIFAR-10, leave out --data or make the folder first")
    if lacks_cifar10(source) and any(Path(source).glob("[!.]*")):
        raise UsageError(
            f"--data {source}: holds neither CIFAR-10 nor a folder {TRAIN}; classes of your own "
            f"belong into {Path(source) / TRAIN}, a folder with images each, and CIFAR-10 is "
            "downloaded into an empty folder"
        )


def check_parent(options: argparse.Namespace) -> None:
    """Checks the model that the first stage starts from, if it is certain which data it is for.

    Raises:
        RunError: If it is missing or damaged.
    """
    source, (stage, *_) = source_of(options), stages_to_run(options)
    if stages.STAGES[stage].parent is None or lacks_cifar10(source):  # maybe the shapes instead
        return
    chosen = (options.base_classes, options.new_classes)
    name = results_name(source)
    if chosen != (None, None):
        if not (names := kind_of(source).class_names):  # not before it is read
            return
        name += split_suffix(*choose_classes(names, *chosen), len(names))
    for one in each_run(options):
        with naming_commands(one):
            own_classes = kind_of(source).own_classes
            read_parent(stage, place_of(one, name), options.base, own_classes=own_classes)


def _check_own_settings(options: argparse.Namespace) -> None:
    """Refuses what would be ignored: a stage's own setting without the stage, or given twice."""
    for stage, name in OWN_SETTINGS:
        plain = name.removeprefix(f"{stage}_")
        if getattr(options, name) is None:
            continue
        if options.stage not in (ALL, stage):
            raise UsageError(f"{_flag(name)} is for {stage}: leave it out or add --stage {stage}")
        if options.stage == stage and getattr(options, plain) is not None:
            raise UsageError(f"{_flag(name)} and {_flag(plain)} mean the same here: leave out one")


def source_of(options: argparse.Namespace) -> str:
    """Returns the source of data that the arguments name or mean."""
    return options.data or DEFAULT_SOURCE


def stages_to_run(options: argparse.Namespace) -> tuple[str, ...]:
    """Lists the stages in their order; one's own classes are all new, for bases of other data."""
    if options.stage != ALL:
        return (options.stage,)
    if kind_of(source_of(options)).own_classes:
        return tuple(name for name, stage in stages.STAGES.items() if stage.learns == "new")
    return tuple(stages.STAGES)


def each_run(options: argparse.Namespace) -> list[argparse.Namespace]:
    """Lists the options of each experiment, of one seed and one fraction."""
    several = options.seeds is not None
    return [
        argparse.Namespace(
            **{
                **vars(options),
                "seed": seed,
                "seeds": 1 if several else None,  # in a folder of its own
                "train_fraction": (fraction,),
            }
        )
        for seed in range(options.seed, options.seed + (options.seeds or 1))
        for fraction in options.train_fraction
    ]


def place_of(options: argparse.Namespace, data_name: str) -> stages.Place:
    """Tells where the results of an experiment of `each_run` are."""
    seed = None if options.seeds is None else options.seed
    return stages.Place(options.output_dir / data_name, options.train_fraction[0], seed)


def choose_recipe(options: argparse.Namespace) -> Recipe:
    """Returns the named recipe with what the arguments change of it."""
    recipe = RECIPES[options.recipe]
    given = {
        field.name: value
        for field in dataclasses.fields(recipe)
        if field.name != "name" and (value := getattr(options, field.name, None)) is not None
    }
    own = {name.removeprefix(f"{stage}_") for stage, name in OWN_SETTINGS if stage == options.stage}
    given |= {f"{options.stage}_{name}": given[name] for name in own & given.keys()}
    return dataclasses.replace(recipe, **given)


def write_command(options: argparse.Namespace, **changes: Any) -> str:
    """Writes the command that has these options, with some changed, ready to be pasted."""
    stage = changes.get("stage", options.stage)
    values = vars(options).copy()
    if stage != options.stage:  # what has another meaning in the other stage is left out
        for other, name in OWN_SETTINGS:
            if other in (stage, options.stage):
                values[name.removeprefix(f"{other}_")] = None
    for other, name in OWN_SETTINGS:
        is_given_anew = other == stage and name.removeprefix(f"{other}_") in changes
        if stage not in (ALL, other) or is_given_anew:
            values[name] = None
    values |= changes
    if stage != ALL and stages.STAGES[stage].learns == "base":
        values["train_fraction"] = (1.0,)
    if stage != ALL and not stages.takes_base(stage):
        values["base"] = None
    parser = make_parser()
    words = []
    for action in parser._actions:
        value = values.get(action.dest, action.default)
        if value != action.default:
            words += [action.option_strings[-1 if value is False else 0]]
            if isinstance(value, tuple):
                value = ",".join(map(str, value))
            words += [] if isinstance(value, bool) else [str(value)]
    return f"{parser.prog} {shlex.join(words)}".rstrip()


@contextlib.contextmanager
def naming_commands(options: argparse.Namespace) -> Iterator[None]:
    """Adds to a `RunError` the command that helps."""
    try:
        yield
    except RunError as error:
        if not error.remedy:
            raise
        raise RunError(f"{error}: {write_command(options, **error.remedy)}") from error


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
