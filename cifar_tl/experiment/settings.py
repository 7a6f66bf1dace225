"""What identifies a run: its settings."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_tl.errors import RunError
from cifar_tl.names import portable, shown
from cifar_tl.recipe import NEUTRAL, Plan, Recipe

if TYPE_CHECKING:
    from cifar_tl.experiment.task import Task

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


def run_settings(task: "Task") -> dict[str, Any]:
    """Collects all that decides the outcome of a stage, as plain values.

    Values of the plan that change nothing are left out.
    """
    values, data = plan_values(task.plan), task.data
    settings = {
        "stage": task.stage,
        "data": portable(data.name),
        "classes": task.outputs.classes,
        "class_names": task.outputs.names,
        "fingerprint": data.fingerprint,
        "parent_stage": task.row.parent,
        "parent": task.parent.digest if task.parent else None,
        "recipe": task.plan.name,
        **{name: value for name, value in values.items() if value != NEUTRAL.get(name)},
        "seed": task.seed,
        "train_fraction": task.train_fraction,
        **data.reading,
        **_backbone_settings(task),
        **({"class_balance": "even"} if task.evenly else {}),
    }
    plain: dict[str, Any] = json.loads(json.dumps(settings))  # a numpy.float64 becomes a float
    return plain


def _backbone_settings(task: "Task") -> dict[str, Any]:
    """Names a pretrained network, how pictures become its images, and where learning begins."""
    if task.backbone is None:
        return {}
    learning = {} if task.tail is None else {"learns_from": task.tail.first}
    return {"backbone": task.backbone.name, "fit": task.backbone.frame.fit, **learning}


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
