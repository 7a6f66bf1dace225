import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cifar_tl.checkpoint import load_checkpoint, save_checkpoint
from cifar_tl.data.classes import CIFAR10_CLASS_NAMES
from cifar_tl.data.examples import Data
from cifar_tl.data.source import load_data
from cifar_tl.errors import DataWarning, RunError
from cifar_tl.experiment.folder import discard
from cifar_tl.experiment.run import run_stage
from tests.experiment.conftest import SMALL, copy_run


def test_missing_parent_is_explained(small_data: Data, tmp_path: Path) -> None:
    for stage, parent in (("transfer", "base"), ("finetune", "transfer")):
        with pytest.raises(RunError, match=f"there is no {parent} model") as error:
            run_stage(stage, small_data, SMALL, output_dir=tmp_path)
        other = {"base": None} if parent == "base" else {}  # --base is for transfer alone
        assert error.value.remedy == {"stage": parent, "restart": False, **other}
    assert not list(tmp_path.iterdir())


def test_child_of_a_model_that_was_trained_anew_is_stale(
    finished: Path, small_data: Data, tmp_path: Path
) -> None:
    for stage in ("base", "transfer"):
        copy_run(finished / stage, tmp_path / "small.npz" / stage)
    assert run_stage("transfer", small_data, SMALL, output_dir=tmp_path)
    discard([tmp_path / "small.npz"], [tmp_path / "small.npz" / "base"])
    run_stage("base", small_data, SMALL, output_dir=tmp_path, seed=1)
    with pytest.raises(RunError, match="was made from another base model") as error:
        run_stage("transfer", small_data, SMALL, output_dir=tmp_path)
    assert error.value.remedy == {"stage": "transfer", "restart": True}


def test_another_base_model_can_be_named(finished: Path, small_data: Data, tmp_path: Path) -> None:
    base = finished / "base" / "model.pt"
    run_stage("transfer", small_data, SMALL, output_dir=tmp_path, base=base)
    mine = (tmp_path / "small.npz" / "transfer" / "model.pt").read_bytes()
    assert mine == (finished / "transfer" / "model.pt").read_bytes()


@pytest.mark.parametrize("stage", ["transfer", "scratch"])
def test_base_model_of_another_stage_is_refused(
    finished: Path, small_data: Data, tmp_path: Path, stage: str
) -> None:
    base = finished / stage / "model.pt"
    with pytest.raises(RunError, match=f"made for stage '{stage}'.* and not for stage 'base'"):
        run_stage("transfer", small_data, SMALL, output_dir=tmp_path, base=base)


def test_checkpoint_that_is_no_model_is_refused_as_base(
    finished: Path, small_data: Data, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="holds no finished model"):
        run_stage(
            "transfer",
            small_data,
            SMALL,
            output_dir=tmp_path,
            base=finished / "base" / "last.pt",
        )


def test_a_base_from_other_images_must_be_named(
    finished: Path, small_data: Data, tmp_path: Path
) -> None:
    others = dataclasses.replace(small_data, fingerprint="f" * 64)
    copy_run(finished / "base", tmp_path / "small.npz" / "base")
    with pytest.raises(RunError) as error:
        run_stage("transfer", others, SMALL, output_dir=tmp_path)
    assert f"fingerprint '{small_data.fingerprint}' and not for data" in str(error.value)
    assert others.fingerprint in str(error.value)
    assert error.value.remedy == {"stage": "base", "base": None, "restart": True}
    base = finished / "base" / "model.pt"  # of other classes, so of other images
    result = run_stage("transfer", others, SMALL, output_dir=tmp_path, base=base)
    assert result["parent_path"] == str(base)


def test_a_named_base_that_knows_a_new_class_by_another_number_is_refused(
    finished: Path, small_data: Data, tmp_path: Path
) -> None:
    """The same images in a file that numbers its classes otherwise: 0-4 there are 5-9 here."""
    names = small_data.class_names
    others = dataclasses.replace(
        small_data, class_names=(*names[5:], *names[:5]), fingerprint="f" * 64
    )
    base = finished / "base" / "model.pt"
    with pytest.raises(RunError, match="knows airplane, a new class of small"):
        run_stage("transfer", others, SMALL, output_dir=tmp_path, base=base)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": "scratch"}, "made for stage 'scratch' and not for stage 'base'"),
        (
            {"classes": [0, 1, 2, 3, 9]},
            r"made for classes \[0, 1, 2, 3, 9\] and not for classes \[0, 1, 2, 3, 4\]",
        ),
    ],
)
def test_a_base_of_another_kind_is_refused(
    finished: Path, small_data: Data, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    content = load_checkpoint(finished / "base" / "model.pt")
    content["settings"] |= changes
    save_checkpoint(tmp_path / "model.pt", content)
    with pytest.raises(RunError, match=message):
        run_stage("transfer", small_data, SMALL, output_dir=tmp_path, base=tmp_path / "model.pt")


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": {"stage": "base", "classes": 3, "class_names": 3}},
        {"settings": {"stage": "ba\nse"}},
        {"network": "OtherNet"},
        {"state_dict": {1: torch.zeros(1)}},
    ],
)
def test_a_crafted_base_is_one_line(
    finished: Path, small_data: Data, tmp_path: Path, changes: dict[str, Any]
) -> None:
    content = load_checkpoint(finished / "base" / "model.pt") | changes
    save_checkpoint(tmp_path / "model.pt", content)
    with pytest.raises(RunError, match=r"model\.pt") as error:
        run_stage("transfer", small_data, SMALL, output_dir=tmp_path, base=tmp_path / "model.pt")
    assert "\n" not in str(error.value)


def test_finetuning_goes_on_with_the_same_images_only(
    finished: Path, own_classes: Path, tmp_path: Path
) -> None:
    own = load_data(own_classes)
    base = finished / "base" / "model.pt"
    run_stage("transfer", own, SMALL, output_dir=tmp_path, base=base)
    others = dataclasses.replace(own, fingerprint="f" * 64)
    with pytest.raises(RunError, match="was made for data with the fingerprint"):
        run_stage("finetune", others, SMALL, output_dir=tmp_path)


def test_a_folder_of_cifar10_is_not_transferred_to_from_cifar10(
    finished: Path, own_classes: Path, tmp_path: Path
) -> None:
    """Its validation images may be training images of the base."""
    own = load_data(own_classes)
    for name in CIFAR10_CLASS_NAMES:
        shutil.copytree(own_classes / "train" / "ash", tmp_path / "mine" / "train" / name)
    with pytest.warns(DataWarning, match="25 images are in two classes"):
        mine = load_data(tmp_path / "mine")
    assert mine.class_names == CIFAR10_CLASS_NAMES
    base = finished / "base" / "model.pt"
    with pytest.raises(RunError, match="leave out the folders of the first five classes"):
        run_stage("transfer", mine, SMALL, output_dir=tmp_path, base=base)
    assert run_stage("transfer", own, SMALL, output_dir=tmp_path, base=base)
