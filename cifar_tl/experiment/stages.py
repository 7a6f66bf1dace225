"""What a run is: a stage, the folder of its files, and the settings that identify it."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from cifar_tl.errors import CheckpointError, RunError
from cifar_tl.names import portable
from cifar_tl.pretrained import DEFAULT_MODEL, is_pretrained, read_model_file
from cifar_tl.recipe import NEUTRAL, Recipe

if TYPE_CHECKING:  # the commands' help needs this module, and no torch
    from cifar_tl.data.examples import Data


class Stage(NamedTuple):
    """What a stage starts from, which classes it learns, and what of the network it trains."""

    parent: str | None  # the stage whose model it starts from; None: fresh weights
    classes: Literal["old", "new"]
    trains: Literal["everything", "the classifier"]  # the latter on frozen features


STAGES = {  # in an order in which they can run
    "base": Stage(None, "old", "everything"),
    "transfer": Stage("base", "new", "the classifier"),
    "finetune": Stage("transfer", "new", "everything"),
    "scratch": Stage(None, "new", "everything"),
}

OUTPUT_DIR = "runs"
MODEL = "model.pt"  # the finished model
LAST = "last.pt"  # all that is needed to go on after the last finished epoch
HISTORY = "history.csv"  # a row for each epoch
RESULT = "result.json"  # for programs; written last, so that its presence means finished
RESULTS = "results.txt"  # for people
FILES = (HISTORY, LAST, RESULTS, MODEL, RESULT)  # as they are written: the one that counts last
PICTURES = ("curves.png", "confusion.png", "samples.png", "filters.png")  # drawn afterwards
COMPARISON = ("comparison.json", "comparison.txt")  # of all stages, beside their folders
COMPARISON_PICTURES = ("comparison.png", "images.png")  # the latter of several fractions
REPORT = "report.html"  # all of that in one file


class Place(NamedTuple):
    """Where the stages of one experiment have their folders: ``STAGE[/fraction-X][/seed-N]``."""

    folder: Path  # ``OUTPUT_DIR/DATA``
    train_fraction: float = 1.0
    seed: int | None = None  # None: there is one seed only

    def of(self, stage: str) -> Path:
        """Names the folder of a stage; base, which has all images, has none of a fraction."""
        folder = self.folder / stage
        if self.train_fraction != 1 and STAGES[stage].classes == "new":
            folder /= f"fraction-{self.train_fraction}"
        return folder if self.seed is None else folder / f"seed-{self.seed}"


def stage_classes(stage: str, data: "Data") -> tuple[int, ...]:
    """Tells which classes a stage learns."""
    return data.base_classes if STAGES[stage].classes == "old" else data.new_classes


def num_outputs(stage: str, data: "Data") -> int:
    """Tells how many outputs a model has, as documented: all but base for the old classes, too."""
    return len(data.base_classes if STAGES[stage].classes == "old" else data.class_names)


def way_to(stage: str) -> tuple[str, ...]:
    """Lists the stages on the new classes that lead to a stage's model, itself the last."""
    parent = STAGES[stage].parent
    before = way_to(parent) if parent else ()
    return (*before, stage) if STAGES[stage].classes == "new" else ()


def takes_base(stage: str) -> bool:
    """Tells whether a stage starts from a model of the old classes, which may be of other data."""
    parent = STAGES[stage].parent
    return parent is not None and STAGES[parent].classes == "old"


def read_parent(
    stage: str, place: Place, base: str | Path | None = None, *, own_classes: bool
) -> tuple[Path, bytes, dict[str, Any]]:
    """Reads the file that a stage starts from: ``base``, or the model of the stage before it.

    For classes of one's own, that is `DEFAULT_MODEL` where no base is named: never their own base.

    Returns:
        Its path, its content, and the options of ``train`` that make it anew: none for classes of
        one's own, whose base model comes from elsewhere.

    Raises:
        RunError: If there is no such file, or it is damaged.
    """
    parent = STAGES[stage].parent
    if own_classes and takes_base(stage) and base is None:
        base = DEFAULT_MODEL
    path = Path(base) if base is not None else place.of(str(parent)) / MODEL
    anew = {"stage": parent, "base": None, "restart": base is None and path.exists()}
    remedy = {} if own_classes else anew
    if not is_pretrained(path) and not path.exists():
        raise RunError(f"there is no {parent} model {path}: make it first", **remedy)
    try:
        return path, read_model_file(path), remedy
    except CheckpointError as error:
        raise RunError(f"{error}; or make it anew", **remedy) from error


def recipe_values(stage: str, recipe: Recipe) -> dict[str, Any]:
    """Lists the values that a stage uses of its recipe, which is from `Recipe.for_stage`."""
    unused = {"name", "by_size", "num_images"}  # what goes by size has been done
    if STAGES[stage].parent is not None:  # preprocessing and first weights are those of its model
        unused |= {"normalize", "first_layer"}
    unused |= {name for name in vars(recipe) if name.startswith(tuple(f"{s}_" for s in STAGES))}
    return {name: value for name, value in vars(recipe).items() if name not in unused}


def run_settings(
    stage: str,
    data: "Data",
    recipe: Recipe,
    seed: int,
    train_fraction: float,
    parent_digest: str | None,
) -> dict[str, Any]:
    """Collects all that decides the outcome of a stage, and so identifies a run, as plain values.

    Values of the recipe that change nothing are left out. ``parent_digest`` is the SHA-256 of the
    ``model.pt`` that the stage starts from.
    """
    classes = list(stage_classes(stage, data))
    settings = {
        "stage": stage,
        "data": portable(data.name),
        "classes": classes,
        "class_names": [data.class_names[label] for label in classes],
        "fingerprint": data.fingerprint,
        "parent_stage": STAGES[stage].parent,
        "parent": parent_digest,
        "recipe": recipe.name,
        **{
            name: value
            for name, value in recipe_values(stage, recipe).items()
            if value != NEUTRAL.get(name)
        },
        "seed": seed,
        "train_fraction": train_fraction,
        **data.reading,
    }
    plain: dict[str, Any] = json.loads(json.dumps(settings))  # a numpy.float64 becomes a float
    return plain


def check_settings(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises a `RunError` if a folder holds another run than is wanted, going by their settings."""
    found, wanted = {**NEUTRAL, **found}, {**NEUTRAL, **wanted}
    both = dict.fromkeys([*wanted, *found])  # what only one has and is not neutral counts, too
    differences = [key for key in both if found.get(key) != wanted.get(key)]
    if not differences:
        return
    if "recipe" in differences:  # its values differ as well: name it alone
        values = {field.name for field in dataclasses.fields(Recipe)}
        differences = [key for key in differences if key not in values]
    if "reading_rules" in differences:  # then the fingerprint cannot be the same
        differences = [key for key in differences if key != "fingerprint"]
    words = {
        "reading_rules": "made by a version that read image files by other rules",
        "fingerprint": "other data",
        "parent": f"another {wanted['parent_stage']} model",
    }
    listed = ", ".join(
        words.get(key, f"{key} {found.get(key)} there, {wanted.get(key)} now")
        for key in differences
    )
    if differences == ["precision"]:  # maybe of another machine, where auto means another one
        raise RunError(
            f"{folder} holds a run in another precision ({listed}): choose another output folder, "
            "or go on with",
            stage=wanted["stage"],
            precision=found["precision"],
        )
    if differences == ["parent"]:
        message = f"{folder} was made from {listed} than the present one: renew it"
    else:
        message = (
            f"{folder} holds a run with other settings ({listed}): "
            "choose another output folder, or replace that run"
        )
    raise RunError(message, stage=wanted["stage"], restart=True)
