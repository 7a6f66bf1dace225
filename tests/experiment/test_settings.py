import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cifar_tl.checkpoint import load_checkpoint, load_model
from cifar_tl.data.examples import Data
from cifar_tl.data.source import load_data
from cifar_tl.errors import RunError, RunWarning
from cifar_tl.experiment.run import run_stage
from cifar_tl.experiment.settings import check_settings, plan_values, run_settings
from cifar_tl.experiment.stages import EVERYTHING, HEAD, STAGES, Stage, stage_classes
from cifar_tl.experiment.task import Task
from cifar_tl.outputs import Outputs
from cifar_tl.recipe import NEUTRAL, ORIGINAL, Recipe
from tests.experiment.conftest import SMALL, StopError, contents, damage_checkpoint, stop_at


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": dataclasses.replace(SMALL, lr=0.01)}, r"lr 0\.04 there, 0\.01 now"),
        ({"recipe": dataclasses.replace(SMALL, epochs=3)}, r"epochs 2 there, 3 now"),
        ({"seed": 1}, r"seed 0 there, 1 now"),
        (
            {"recipe": ORIGINAL},
            r"settings \(recipe tuned there, original now\)",
        ),
    ],
)
def test_other_settings_are_refused_with_the_choice(
    finished: Path, small_data: Data, change: dict[str, Any], message: str
) -> None:
    before = contents(finished / "base")
    arguments = {"recipe": SMALL, "output_dir": finished.parent, **change}
    with pytest.raises(RunError, match=message) as error:
        run_stage("base", small_data, **arguments)
    assert "another output folder" in str(error.value)
    assert error.value.remedy == {"stage": "base", "restart": True}
    assert contents(finished / "base") == before


def test_unfinished_run_with_other_settings_or_data_is_refused(
    small_data: Data, tmp_path: Path
) -> None:
    stop = stop_at("epoch 1/2")
    with pytest.raises(StopError):
        run_stage("scratch", small_data, SMALL, output_dir=tmp_path, log=stop)
    with pytest.raises(RunError, match="seed 0 there, 2 now"):
        run_stage("scratch", small_data, SMALL, output_dir=tmp_path, seed=2)
    changed = dataclasses.replace(small_data, fingerprint="other")
    with pytest.raises(RunError, match=r"other settings \(other data\)"):
        run_stage("scratch", changed, SMALL, output_dir=tmp_path)


def settings_of(data: Data, recipe: Recipe = SMALL, stage: str = "base") -> dict[str, Any]:
    classes = stage_classes(stage, data)
    return run_settings(
        Task(
            stage,
            data,
            train_fraction=1.0,
            seed=0,
            parent=None,
            plan=recipe.for_stage(stage, 80, mirror=data.mirror),
            tail=None,
            outputs=Outputs(classes, tuple(data.class_names[label] for label in classes), 10),
            labels=torch.tensor(classes),
            class_balance="even",
        )
    )


def changed(recipe: Recipe, values: dict[str, Any]) -> Recipe:
    return dataclasses.replace(recipe, **values)


def listed(stage: str) -> dict[str, Any]:
    """The values that change nothing, as settings of before listed them."""
    values = plan_values(ORIGINAL.for_stage(stage, 80))
    return {name: NEUTRAL[name] for name in values if name in NEUTRAL}


@pytest.mark.parametrize("stage", STAGES)
def test_values_that_change_nothing_are_no_part_of_the_settings(
    small_data: Data, stage: str
) -> None:
    assert not NEUTRAL.keys() & settings_of(small_data, ORIGINAL, stage).keys()
    assert settings_of(small_data, changed(ORIGINAL, NEUTRAL), stage) == settings_of(
        small_data, ORIGINAL, stage
    )
    recipe = dataclasses.replace(SMALL, precision="bf16", first_layer="whitened")
    found = settings_of(small_data, recipe, stage)
    for name, value in plan_values(recipe.for_stage(stage, 80, mirror=True)).items():
        if value != NEUTRAL.get(name):
            assert found[name] == value
    assert {"schedule", "mirror", "weight_decay", "precision"} < found.keys()
    assert ("first_layer" in found) is (stage in ("base", "scratch"))


def test_another_precision_is_refused_with_the_flag_that_goes_on(
    small_data: Data, tmp_path: Path
) -> None:
    """As on a machine where "auto" means another one."""
    run_stage("base", small_data, SMALL, output_dir=tmp_path)
    other = dataclasses.replace(SMALL, precision="bf16")
    with pytest.raises(
        RunError, match=r"precision float32 there, bf16 now\): .*, or go on with"
    ) as error:
        run_stage("base", small_data, other, output_dir=tmp_path)
    assert error.value.remedy == {"stage": "base", "precision": "float32"}


def test_auto_is_resolved_before_settings_are_compared(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load_data(tiny_npz)
    recipe = dataclasses.replace(SMALL, precision="auto", epochs=1)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    for capabilities, precision in (({"amx_bf16": True}, "bf16"), ({}, "float32")):
        monkeypatch.setattr(
            torch.cpu, "get_capabilities", lambda found=capabilities: found, raising=False
        )
        result = run_stage("base", data, recipe, output_dir=tmp_path / precision)
        assert result["precision"] == precision
    with pytest.raises(RunError, match="bf16 there, float32 now"):
        run_stage("base", data, recipe, output_dir=tmp_path / "bf16")


def test_every_neutral_value_is_one_of_the_recipe() -> None:
    values = dataclasses.asdict(changed(SMALL, NEUTRAL))
    assert {name: values[name] for name in NEUTRAL} == NEUTRAL


@pytest.mark.parametrize("recipe", [SMALL, ORIGINAL], ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("stage", STAGES)
def test_settings_may_list_what_changes_nothing_or_not(
    small_data: Data, tmp_path: Path, stage: str, recipe: Recipe
) -> None:
    without = settings_of(small_data, recipe, stage)
    with_all = {**listed(stage), **without}
    assert len(with_all) > len(without)
    check_settings(tmp_path, with_all, without)
    check_settings(tmp_path, without, with_all)
    check_settings(tmp_path, without, without)
    check_settings(tmp_path, with_all, with_all)


@pytest.mark.parametrize(
    ("name", "value", "written"),
    [
        ("schedule", "one-cycle", "schedule {} there, {} now"),
        ("mirror", True, "mirror {} there, {} now"),
        ("weight_decay", 0.2, "weight_decay {} there, {} now"),
        ("shift", 1, "shift {} there, {} now"),
    ],
)
def test_a_value_that_changes_something_is_refused_with_both_values(
    small_data: Data, tmp_path: Path, name: str, value: object, written: str
) -> None:
    plain = settings_of(small_data, ORIGINAL)
    other = settings_of(small_data, changed(ORIGINAL, {name: value}))
    for there, now in ((plain, other), (other, plain)):
        for found in (there, {**listed("base"), **there}):
            for wanted in (now, {**listed("base"), **now}):
                values = (found.get(name, NEUTRAL[name]), wanted.get(name, NEUTRAL[name]))
                with pytest.raises(RunError) as error:
                    check_settings(tmp_path, found, wanted)
                assert f"other settings ({written.format(*values)}):" in str(error.value)
                assert error.value.remedy == {"stage": "base", "restart": True}


def test_an_ingredient_that_one_side_does_not_know_makes_another_run(
    small_data: Data, tmp_path: Path
) -> None:
    settings = settings_of(small_data)
    # What a later version has used and this one does not know: had it changed nothing, it would not
    # be listed.
    with pytest.raises(RunError, match=r"\(sharpness 0\.5 there, None now\)"):
        check_settings(tmp_path, {**settings, "sharpness": 0.5}, settings)
    # What a later version wants and an older run has not had.
    with pytest.raises(RunError, match=r"\(sharpness None there, 0\.5 now\)"):
        check_settings(tmp_path, settings, {**settings, "sharpness": 0.5})


def whole_and_begun(data: Data, tmp_path: Path, recipe: Recipe) -> tuple[Path, Path]:
    """Runs base whole, and elsewhere to the end of its first epoch; returns both folders."""
    run_stage("base", data, recipe, output_dir=tmp_path / "whole")
    with pytest.raises(StopError):
        run_stage("base", data, recipe, output_dir=tmp_path / "begun", log=stop_at("epoch 1/2"))
    whole, begun = (tmp_path / name / "small.npz" / "base" for name in ("whole", "begun"))
    return whole, begun


@pytest.mark.parametrize("recipe", [SMALL, ORIGINAL], ids=lambda recipe: recipe.name)
def test_a_run_that_began_with_settings_of_before_goes_on_to_the_same_weights(
    small_data: Data, tmp_path: Path, recipe: Recipe
) -> None:
    recipe = dataclasses.replace(recipe, epochs=2, batch_size=20)
    whole, folder = whole_and_begun(small_data, tmp_path, recipe)
    found = load_checkpoint(folder / "last.pt")["settings"]
    damage_checkpoint(folder, settings={**listed("base"), **found})
    lines: list[str] = []
    arguments: dict[str, Any] = {"output_dir": tmp_path / "begun"}
    result = run_stage("base", small_data, recipe, log=lines.append, **arguments)
    assert "going on after epoch 1" in lines[0]
    expected = load_model(whole / "model.pt").state_dict()
    weights = load_model(folder / "model.pt").state_dict()
    assert all((weights[key] == value).all() for key, value in expected.items())
    assert run_stage("base", small_data, recipe, **arguments) == result


@pytest.mark.parametrize("recipe", [SMALL, ORIGINAL], ids=lambda recipe: recipe.name)
def test_a_result_lists_every_value_of_the_recipe(
    small_data: Data, tmp_path: Path, recipe: Recipe
) -> None:
    recipe = dataclasses.replace(recipe, epochs=1)
    result: dict[str, Any] = {**run_stage("base", small_data, recipe, output_dir=tmp_path)}
    written = json.loads((tmp_path / "small.npz" / "base" / "result.json").read_text())
    plan = recipe.for_stage("base", 80, mirror=True)
    assert plan.mirror is (recipe.name == "tuned")
    for name, value in plan_values(plan).items():
        assert result[name] == written[name] == value
    text = (tmp_path / "small.npz" / "base" / "results.txt").read_text()
    assert f"weight_decay {plan.weight_decay}" in text
    assert "precision float32" in text


def test_a_run_of_before_these_reading_rules_is_told_plainly(
    own_classes: Path, tmp_path: Path
) -> None:
    own = load_data(own_classes)
    now = settings_of(own, stage="scratch")
    before = {key: value for key, value in now.items() if key != "reading_rules"}
    before["fingerprint"] = "of pixels"
    with pytest.raises(RunError) as error:
        check_settings(tmp_path, before, now)
    assert (
        "other settings (made by a version that read image files by other rules): choose another "
        "output folder, or replace that run"
    ) in str(error.value)


def test_another_pillow_is_a_warning_and_recorded(own_classes: Path, tmp_path: Path) -> None:
    own = load_data(own_classes)
    recipe = dataclasses.replace(SMALL, epochs=2)
    with pytest.raises(StopError):
        run_stage("scratch", own, recipe, output_dir=tmp_path, log=stop_at("epoch 1/2"))
    other = dataclasses.replace(own, software={"pillow": "99.1"})
    version = own.software["pillow"]
    with pytest.warns(RunWarning, match=rf"surroundings \(pillow {version} before, 99\.1 now\)"):
        result = run_stage("scratch", other, recipe, output_dir=tmp_path)
    assert [part["pillow"] for part in result["surroundings"]] == [version, "99.1"]
    text = (tmp_path / "own" / "scratch" / "results.txt").read_text()
    assert f"pillow {version}\n" in text
    assert "pillow 99.1\n" in text


@pytest.mark.parametrize("recipe", [SMALL, ORIGINAL], ids=lambda recipe: recipe.name)
def test_a_file_of_before_that_notes_no_peak_goes_on_to_the_same_weights(
    small_data: Data, tmp_path: Path, recipe: Recipe
) -> None:
    recipe = dataclasses.replace(recipe, epochs=2, batch_size=20)
    whole, folder = whole_and_begun(small_data, tmp_path, recipe)
    state = load_checkpoint(folder / "last.pt")["optimizer"]
    for group in state["param_groups"]:
        del group["initial_lr"]
        group["lr"] *= 0.3  # as the schedule left it
    damage_checkpoint(folder, optimizer=state)
    run_stage("base", small_data, recipe, output_dir=tmp_path / "begun")
    for name in ("model.pt", "last.pt"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()


def test_what_a_stage_trains_decides_whose_values_it_uses() -> None:
    look: dict[str, Any] = {"words": "", "colour": "#000000", "marker": "o"}
    for parent, trains, recipe in (
        (None, EVERYTHING, "base"),
        ("base", HEAD, "transfer"),
        ("base", EVERYTHING, "finetune"),
        ("transfer", HEAD, "transfer"),
    ):
        assert Stage(parent, "new", trains, **look).recipe == recipe
    assert [name for name, stage in STAGES.items() if stage.control] == ["scratch"]
