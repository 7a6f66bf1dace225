"""What identifies a run: its settings."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifar_tl.data.examples import Data
from cifar_tl.errors import RunError
from cifar_tl.experiment.stages import STAGES
from cifar_tl.names import portable, shown
from cifar_tl.outputs import Outputs
from cifar_tl.recipe import NEUTRAL, Plan, Recipe

_WORDS = {  # of settings that say nothing to a person
    "reading_rules": "made by a version that read image files by other rules",
    "fingerprint": "other data",
}

# Settings leave out values that change nothing, and older runs have fewer. These are meant then.
OLDER: dict[str, Any] = {**NEUTRAL, "fit": "crop", "class_balance": "off"}


def plan_values(plan: Plan) -> dict[str, Any]:
    """Lists the values of a plan under the names that files give them."""
    values = {**vars(plan), "shift": plan.view_shift or plan.shift}  # one of them is 0
    kept = [name for name in ("normalize", "first_layer") if values[name] is None]
    unlisted = ("name", "view_shift", *kept)
    return {name: value for name, value in values.items() if name not in unlisted}


def run_settings(
    stage: str,
    data: Data,
    outputs: Outputs,
    plan: Plan,
    seed: int,
    train_fraction: float,
    parent_digest: str | None,
    others: Mapping[str, Any],
) -> dict[str, Any]:
    """Collects all that decides the outcome of a stage, as plain values.

    Values of the plan that change nothing are left out. ``parent_digest`` is the SHA-256 of the
    ``model.pt`` that the stage starts from. ``others`` names a pretrained network, and says how
    pictures become its images. It also has ``class_balance``, if training aims at the mean over
    unequal classes.
    """
    values = plan_values(plan)
    settings = {
        "stage": stage,
        "data": portable(data.name),
        "classes": outputs.classes,
        "class_names": outputs.names,
        "fingerprint": data.fingerprint,
        "parent_stage": STAGES[stage].parent,
        "parent": parent_digest,
        "recipe": plan.name,
        **{name: value for name, value in values.items() if value != NEUTRAL.get(name)},
        "seed": seed,
        "train_fraction": train_fraction,
        **data.reading,
        **others,
    }
    plain: dict[str, Any] = json.loads(json.dumps(settings))  # a numpy.float64 becomes a float
    return plain


def check_settings(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises a `RunError` if a folder holds a run with other settings than the wanted ones."""
    found, wanted = ({**OLDER, **side} for side in (found, wanted))
    names = dict.fromkeys([*wanted, *found])  # a setting that only one side has counts, too
    differences = [name for name in names if found.get(name) != wanted.get(name)]
    if not differences:
        return
    if "recipe" in differences:  # its values differ as well: name it alone
        values = {field.name for field in dataclasses.fields(Recipe)}
        differences = [name for name in differences if name not in values]
    if "reading_rules" in differences:  # then the fingerprint cannot be the same
        differences = [name for name in differences if name != "fingerprint"]
    words = {**_WORDS, "parent": f"another {wanted['parent_stage'] or 'fresh'} model"}
    listed = ", ".join(
        words.get(name, f"{name} {shown(found.get(name))} there, {shown(wanted.get(name))} now")
        for name in differences
    )
    stage = wanted["stage"]
    if differences == ["precision"]:  # maybe of another machine, where auto is another one
        raise RunError(
            f"{folder} holds a run in another precision ({listed}): choose another output folder, "
            "or go on with",
            stage=stage,
            precision=found["precision"],
        )
    message = (
        f"{folder} was made from {listed} than the present one: renew it"
        if differences == ["parent"]
        else f"{folder} holds a run with other settings ({listed}): "
        "choose another output folder, or replace that run"
    )
    raise RunError(message, stage=stage, restart=True)
