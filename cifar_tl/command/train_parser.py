"""The options of ``train``: `make_parser` reads them, `write_command` writes them."""

import argparse
import contextlib
import dataclasses
import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, get_args

from cifar_tl.command.arguments import (
    LABELS,
    MODEL_HELP,
    at_least_zero,
    bases,
    dropout_rate,
    fractions,
    no_address,
    not_negative,
    positive,
    whole_number,
)
from cifar_tl.command.console import Parser, called
from cifar_tl.data.source import DEFAULT_SOURCE, SOURCES, kind_of
from cifar_tl.errors import DataError, RunError
from cifar_tl.experiment.stages import OUTPUT_DIR, STAGES, takes_base
from cifar_tl.frame import Fit
from cifar_tl.pretrained import DEFAULT_MODEL, is_backbone
from cifar_tl.recipe import (
    FEW_SHIFT,
    FEW_TO_SHIFT,
    MAX_SHIFT,
    RECIPES,
    STAGES_WITH_VALUES,
    TUNED,
    ClassBalance,
    Precision,
    Recipe,
)

ALL = "all"

# `contents.RANGES` has this limit of epochs, too. Importing it would import torch.
COUNT: dict[str, Any] = {"metavar": "N", "type": partial(whole_number, low=1, high=10**6)}
RATE: dict[str, Any] = {"metavar": "X", "type": positive}
DROPOUT: dict[str, Any] = {"metavar": "X", "type": dropout_rate}
SHIFT: dict[str, Any] = {"metavar": "N", "type": partial(whole_number, low=0, high=MAX_SHIFT)}
SEEDS: dict[str, Any] = {"metavar": "N", "type": partial(whole_number, low=1, high=1000)}
# torch.set_num_threads(100000) crashes the process.
THREADS: dict[str, Any] = {"metavar": "N", "type": partial(whole_number, low=1, high=256)}

# Values that finetune of a pretrained network does not take: it learns from maps, not from images.
NOT_OF_MAPS = ("dropout", "shift")

# The stages' own values in a recipe: ("transfer", "lr") is the field and the option transfer_lr.
OWN_VALUES = [
    (stage, field.name.removeprefix(f"{stage}_"))
    for field in dataclasses.fields(Recipe)
    for stage in STAGES_WITH_VALUES
    if field.name.startswith(f"{stage}_")
]


def make_parser() -> Parser:
    """Makes the parser. None stands for the default of the recipe or of torch."""
    parser = Parser(
        "train",
        "Trains a small network on CIFAR-10 classes 0-4 (base), a new classifier on its frozen "
        "features for classes 5-9 (transfer), everything for a few more epochs (finetune), and the "
        "same network from fresh weights as a control (scratch). The same command again goes on "
        "where it stopped.",
    )
    parser.usage = "%(prog)s [options]"
    _add_everyday_options(parser)
    _add_class_options(parser)
    _add_recipe_options(parser)
    _add_machine_options(parser)
    parser.add_help_options()
    return parser


def _add_everyday_options(parser: Parser) -> None:
    add = parser.add_group("everyday options", "--stage base --epochs 20")
    where = f"{SOURCES} (default: {DEFAULT_SOURCE}, to which CIFAR-10 is downloaded if missing)"
    add("--data", metavar="SOURCE", type=no_address, help=where)
    add("--labels", **LABELS)
    add(
        "--stage",
        choices=(*STAGES, ALL),
        default=ALL,
        help="what to run (default: all of them in this order, then a comparison)",
    )
    plain = ", ".join(name for name, stage in STAGES.items() if stage.recipe != "finetune")
    add(
        "--epochs",
        **COUNT,
        help=f"epochs of {plain}, or of the one --stage that is named (default here and below: the "
        "recipe's)",
    )
    add("--seed", metavar="N", type=at_least_zero, default=0, help="(default: %(default)s)")
    add(
        "--seeds",
        **SEEDS,
        help="run N seeds from --seed on, each stage in a folder seed-N, then means and spreads",
    )
    add(
        "--output-dir",
        metavar="DIR",
        type=Path,
        default=Path(OUTPUT_DIR),
        help="results are written to DIR/DATA/STAGE (default: %(default)s)",
    )


def _add_class_options(parser: Parser) -> None:
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
        help="the classes of the other stages, likewise (default: those not for base; 5-9 of ten); "
        "all: classes of your own, from a base model of other data",
    )
    add(
        "--base",
        metavar="BASE",
        type=bases,
        help=f"another base model for transfer: {MODEL_HELP}; or a pretrained network: the name of "
        "one of torchvision's classification models, such as mobilenet_v3_small, or timm/NAME "
        f"(default for classes of your own: {DEFAULT_MODEL}); with commas, several are compared; "
        "with --stage scratch, that network learns from fresh weights",
    )
    add(
        "--weights",
        metavar="FILE",
        type=no_address,
        help="the weights of that network: a file with its state_dict, or the name of published "
        "ones, such as IMAGENET1K_V1 (default: the published ones, downloaded once)",
    )
    add(
        "--fit",
        choices=get_args(Fit),
        help="what a network sees of a picture that is no square: crop: its middle, as "
        "published; squash: all, without its shape; pad: all, with borders (default: crop)",
    )
    add(
        "--feature-cache",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep what that network computes of the pictures, in DIR/DATA/features (default: yes)",
    )
    add(
        "--picture-cache",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep decoded picture files for the next command, in DIR/DATA/pictures and with these "
        "features: a file counts as the same if its path, size and times of change are the same "
        "(default: yes)",
    )
    add(
        "--train-fraction",
        metavar="X",
        type=fractions,
        default=(1.0,),
        help="train transfer, finetune and scratch on this part of their training images, the "
        "first of each class (default: 1), in a folder fraction-X; with commas, on several",
    )


def _add_recipe_options(parser: Parser) -> None:
    add = parser.add_group("the recipe", f"--recipe {TUNED.name} --lr 0.01 --transfer-lr 0.02")
    add("--recipe", choices=RECIPES, default=TUNED.name, help="how to train (default: %(default)s)")
    add(
        "--lr",
        **RATE,
        help="(peak) learning rate of base and scratch, or of the one --stage that is named. With "
        "tuned, all learning rates, batch sizes and the weight decay are for ten epochs of 20,000 "
        "images, and change with fewer",
    )
    add(
        "--batch-size",
        **COUNT,
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
        "--class-balance",
        choices=get_args(ClassBalance),
        default="even",
        help="even: if the largest class has more than 1.5 times as many training images as the "
        "smallest, training aims at the mean over classes; off: at the plain accuracy (default: "
        "%(default)s)",
    )
    add(
        "--dropout",
        **DROPOUT,
        help="of layer 6 while all of the network trains (default: original 0.42, the network's "
        "own; tuned 0)",
    )
    add(
        "--shift",
        **SHIFT,
        help="shift images by up to N pixels at random (default: tuned 1, or 2 with fewer than "
        "20,000 images or more than ten epochs; original 0)",
    )
    kinds = {"lr": RATE, "dropout": DROPOUT, "shift": SHIFT}
    for stage, name in OWN_VALUES:
        text = f"{name.replace('_', ' ').replace('lr', 'learning rate')} of {stage}"
        if name == "shift":
            text = (
                f"{stage} also learns from images shifted by N pixels in eight directions, nine "
                f"times as many (default: tuned {FEW_SHIFT} with up to {FEW_TO_SHIFT:,} images, "
                "else 0)"
            )
        add(flag(f"{stage}_{name}"), **kinds.get(name, COUNT), help=text)


def _add_machine_options(parser: Parser) -> None:
    add = parser.add_group("the machine", "--device cuda --precision bf16")
    add(
        "--device",
        metavar="NAME",
        help="such as cuda, or auto: an accelerator if there is one (default: cpu)",
    )
    add(
        "--threads",
        **THREADS,
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


def flag(name: str) -> str:
    """Writes the option of a field: ``--transfer-lr`` for ``transfer_lr``."""
    return f"--{name.replace('_', '-')}"


def write_command(options: argparse.Namespace, **changes: Any) -> str:
    """Writes the command that has these options, with some changed, ready to be pasted."""
    stage = changes.get("stage", options.stage)
    values = vars(options).copy()
    group, before = (STAGES[name].recipe if name != ALL else ALL for name in (stage, options.stage))
    for owner, name in OWN_VALUES:
        if group != before and owner in (group, before):
            values[name] = None  # it has another meaning in the other stage
        if group not in (ALL, owner) or (group == owner and name in changes):
            values[f"{owner}_{name}"] = None
    values |= changes
    if stage != ALL and STAGES[stage].learns == "base":
        values["train_fraction"] = (1.0,)
    trains_network = stage == options.stage and any(map(is_backbone, options.base or ()))
    if stage != ALL and STAGES[stage].parent is None and not trains_network:
        values |= {"base": None, "weights": None, "feature_cache": True}
    elif stage != ALL and not takes_base(stage) and not any(map(is_backbone, values["base"] or ())):
        values["base"] = None
    squares = not kind_of(values["data"] or DEFAULT_SOURCE, values["labels"]).own_classes
    has_network = any(map(is_backbone, values["base"] or ()))
    if squares and not has_network:
        values["fit"] = None
    if has_network and group == "finetune":
        values |= dict.fromkeys(NOT_OF_MAPS)
    words = []
    for action in make_parser()._actions:
        value = values.get(action.dest, action.default)
        if value != action.default:
            words += [action.option_strings[-1 if value is False else 0]]
            if isinstance(value, tuple):
                value = ",".join(map(str, value))
            words += [] if isinstance(value, bool) else [str(value)]
    return f"{called('train')} {shlex.join(words)}".rstrip()


@contextlib.contextmanager
def naming_commands(options: argparse.Namespace) -> Iterator[None]:
    """Adds to a `RunError` or a `DataError` the command that helps."""
    try:
        yield
    except (RunError, DataError) as error:
        if not error.remedy:
            raise
        kind = DataError if isinstance(error, DataError) else RunError
        raise kind(f"{error}: {write_command(options, **error.remedy)}") from error
