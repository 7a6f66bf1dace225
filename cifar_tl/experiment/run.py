"""What a run is: a stage, the folder of its files, and the settings that identify it."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_tl.errors import RunError
from cifar_tl.recipe import NEUTRAL, Recipe

if TYPE_CHECKING:  # the commands' help needs this module, and no torch
    from cifar_tl.data.examples import Data

# The stages, in an order in which they can run, and the one whose model each starts from.
PARENTS = {"base": None, "transfer": "base", "finetune": "transfer", "scratch": None}
STAGES = tuple(PARENTS)

OUTPUT_DIR = "runs"
MODEL = "model.pt"  # the finished model
LAST = "last.pt"  # all that is needed to go on after the last finished epoch
HISTORY = "history.csv"  # a row for each epoch
RESULT = "result.json"  # for programs; written last, so that its presence means finished
RESULTS = "results.txt"  # for people
PICTURES = ("curves.png", "confusion.png", "samples.png", "filters.png")  # drawn afterwards
COMPARISON = ("comparison.json", "comparison.txt")  # of all stages, beside their folders
COMPARISON_PICTURE = "comparison.png"


def stage_folder(output_dir: str | Path, data_name: str, stage: str) -> Path:
    """Names the folder of a stage's files."""
    return Path(output_dir) / data_name / stage


def stage_classes(stage: str, data: "Data") -> range:
    """Tells which classes a stage learns: none for base where all are new ones."""
    return (data.base_classes or range(0)) if stage == "base" else data.new_classes


def recipe_values(stage: str, recipe: Recipe) -> dict[str, Any]:
    """Lists the values that a stage uses of its recipe, which is from `Recipe.for_stage`."""
    # Preprocessing belongs to the model that a stage starts from.
    unused = {"name"} if PARENTS[stage] is None else {"name", "normalize", "whiten"}
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
        "data": data.name,
        "classes": classes,
        "class_names": [data.class_names[label] for label in classes],
        "fingerprint": data.fingerprint,
        "parent_stage": PARENTS[stage],
        "parent": parent_digest,
        "recipe": recipe.name,
        **{
            name: value
            for name, value in recipe_values(stage, recipe).items()
            if value != NEUTRAL.get(name)
        },
        "seed": seed,
        "train_fraction": train_fraction,
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
    words = {"fingerprint": "other data", "parent": f"another {wanted['parent_stage']} model"}
    listed = ", ".join(
        words.get(key, f"{key} {found.get(key)} there, {wanted.get(key)} now")
        for key in differences
    )
    if differences == ["parent"]:
        message = f"{folder} was made from {listed} than the present one: renew it"
    else:
        message = (
            f"{folder} holds a run with other settings ({listed}): "
            "choose another output folder, or replace that run"
        )
    raise RunError(message, stage=wanted["stage"], restart=True)
