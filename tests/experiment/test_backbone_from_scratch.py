"""Scratch of somebody else's network: all of it learns, from images in its own size."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from cifar_tl.backbone import Backbone
from cifar_tl.checkpoint import load_checkpoint
from cifar_tl.data.examples import Data
from cifar_tl.evaluation import evaluate
from cifar_tl.experiment import passes
from cifar_tl.experiment.findings.results import StageResult
from cifar_tl.experiment.run import _outlook, run_stage
from tests.experiment.test_features import interrupt
from tests.experiment.test_pretrained_finetune import PLAIN, check_figures, deep, of

RUN = Path("drawn.npz/Deep/scratch")


def fresh(seed: int = 0) -> Backbone:
    base = deep(seed)
    base.source = {"weights": "fresh"}
    return base


def scratch(data: Data, **values: Any) -> StageResult:
    values = {"output_dir": "runs", "base": fresh(), **values}
    return run_stage("scratch", data, dataclasses.replace(PLAIN, epochs=2), **values)


@pytest.fixture(scope="session")
def whole(drawn_data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never interrupted."""
    output_dir = tmp_path_factory.mktemp("whole")
    scratch(drawn_data, output_dir=output_dir)
    return output_dir


def test_all_layers_learn_and_its_batch_norms_count(whole: Path) -> None:
    before, after = deep().state_dict(), of(whole / RUN / "model.pt").state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {"mean", "std"}
    result = json.loads((whole / RUN / "result.json").read_text())
    assert result["parameters_trainable"] == result["parameters_total"]
    assert (result["backbone"], result["parent_stage"]) == ("Deep", None)
    assert "learns_from" not in result
    assert "All of the network Deep, fit crop" in (whole / RUN / "results.txt").read_text()


def test_the_base_and_the_documented_control_are_not_touched(drawn_data: Data) -> None:
    base = fresh()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    scratch(drawn_data, base=base)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
    documented = scratch(drawn_data, base=None)
    assert "backbone" not in documented
    assert {path.parent for path in Path("runs").rglob("result.json")} == {
        "runs" / RUN,
        Path("runs/drawn.npz/scratch"),
    }


def test_its_figures_are_those_of_its_model_on_the_pictures(drawn_data: Data, whole: Path) -> None:
    result = json.loads((whole / RUN / "result.json").read_text())
    check_figures(result, of(whole / RUN / "model.pt"), drawn_data)


def test_images_are_kept_as_bytes_for_other_seeds_and_weights(
    drawn_data: Data, whole: Path
) -> None:
    (file, *_) = sorted((whole / "drawn.npz/features").rglob("train-*.pt"))
    kept = load_checkpoint(file)["features"]
    assert kept.dtype == torch.uint8
    assert kept.shape == (1, 256, 3, 40, 40)
    shutil.copytree(whole / "drawn.npz/features", "runs/drawn.npz/features")
    lines: list[str] = []
    scratch(drawn_data, base=fresh(1), seed=1, log=lines.append)
    assert any("computing what was there before took" in line for line in lines)
    assert len(list(Path("runs/drawn.npz/features").iterdir())) == 1


@pytest.mark.parametrize("when", ["in the images", "after an epoch"])
def test_interrupted_it_goes_on_to_the_same_bytes(
    drawn_data: Data, whole: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []

    def log(line: str) -> None:
        lines.append(line)
        if when == "after an epoch" and "epoch 1" in line:
            interrupt()

    with monkeypatch.context() as patch:
        if when == "in the images":
            patch.setattr(passes, "_write", lambda *_: interrupt())
        with pytest.raises(KeyboardInterrupt):
            scratch(drawn_data, log=log)
    assert sum("all layers learn; the epochs take about" in line for line in lines) == (
        when == "after an epoch"
    )
    scratch(drawn_data)
    for name in ("model.pt", "last.pt"):
        assert ("runs" / RUN / name).read_bytes() == (whole / RUN / name).read_bytes()


def test_a_base_that_is_not_fresh_is_no_control(drawn_data: Data) -> None:
    with pytest.raises(ValueError, match=r"^scratch starts from fresh weights, and those of Deep "):
        scratch(drawn_data, base=deep())
    assert not Path("runs").exists()


def test_no_batch_has_one_image(drawn_data: Data) -> None:
    """A batch norm of one image has no deviation."""
    number = len(drawn_data.train_and_validation(drawn_data.new_classes)[0].labels)
    size = next(size for size in range(20, number) if number % size == 1)
    recipe = dataclasses.replace(PLAIN, epochs=1, batch_size=size, by_size=False)
    values: dict[str, Any] = {"output_dir": "runs", "base": fresh(), "keep_features": False}
    assert run_stage("scratch", drawn_data, recipe, **values)["batch_size"] == size + 1


def test_the_estimate_changes_nothing_and_counts_the_optimizer() -> None:
    model = fresh()
    model.reset_classifier(3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    steps: list[str] = []
    handle = register_optimizer_step_post_hook(lambda *_: steps.append("step"))
    try:
        views = torch.randint(256, (1, 7, 3, 40, 40), dtype=torch.uint8)
        said = _outlook(model, views, PLAIN.for_images(7), None)
    finally:
        handle.remove()
    assert said.startswith("all layers learn; the epochs take about ")
    assert len(steps) == 2
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_large_images_are_judged_a_few_at_a_time() -> None:
    sizes: list[int] = []

    def count(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        return images.flatten(1)[:, :2].float()

    images, labels = torch.zeros(70, 3, 224, 224, dtype=torch.uint8), torch.zeros(70).long()
    evaluate(count, images, labels)
    assert sizes == [33, 33, 4]
    sizes.clear()
    evaluate(count, images, labels, batch_size=70)
    assert sizes == [70]
