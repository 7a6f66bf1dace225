"""Finetune of a pretrained network: what learns, from what, and that it goes on."""

import dataclasses
import json
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cifar_tl.backbone import Backbone
from cifar_tl.checkpoint import load_checkpoint, load_model
from cifar_tl.command.train import do_jobs
from cifar_tl.command.train_arguments import list_jobs
from cifar_tl.command.train_parser import make_parser
from cifar_tl.data.examples import Data
from cifar_tl.disk import warn_once
from cifar_tl.errors import RunError, RunWarning
from cifar_tl.evaluation import evaluate
from cifar_tl.experiment import passes
from cifar_tl.experiment.findings.bases import compare_bases
from cifar_tl.experiment.findings.comparison import compare
from cifar_tl.experiment.findings.results import StageResult
from cifar_tl.experiment.frozen import pictures_of
from cifar_tl.experiment.run import run_stage
from cifar_tl.recipe import TUNED
from cifar_tl.tail import find_tail, maps_of, outputs_and_maps
from tests.experiment.conftest import SMALL
from tests.experiment.test_features import interrupt, needs_fork, tiny
from tests.test_distributed import in_groups

PLAIN = dataclasses.replace(SMALL, mirror=False, finetune_epochs=2)


class Deep(nn.Module):
    """A network of somebody else's, with a batch norm in its first and in its last layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 5, stride=2), nn.BatchNorm2d(12), nn.ReLU(True))
        self.block = nn.Sequential(nn.Conv2d(12, 8, 3, stride=3), nn.BatchNorm2d(8))
        self.fc = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.fc(self.block(self.stem(images)).relu().mean((2, 3)))
        return outputs


def deep(seed: int = 0) -> Backbone:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        module = Deep()
        module.train()(torch.randn(50, 3, 40, 40))  # statistics
    return Backbone(module.eval(), image_size=40, mean=(0.5,) * 3, std=(0.25,) * 3).eval()


def run(stage: str, data: Data, **values: Any) -> StageResult:
    values = {"output_dir": "runs", "base": deep(), **values}
    return run_stage(stage, data, PLAIN, **values)


@pytest.fixture(scope="session")
def whole(drawn_data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that were never interrupted."""
    output_dir = tmp_path_factory.mktemp("whole")
    for stage in ("transfer", "finetune"):
        run(stage, drawn_data, output_dir=output_dir)
    return output_dir / "drawn.npz"


def of(model: str | Path) -> Backbone:
    found = load_model(model, Deep())
    assert isinstance(found, Backbone)
    return found


def check_figures(result: dict[str, Any], model: Backbone, data: Data) -> None:
    """Compares the figures of a result with those of its model on the pictures themselves."""
    _, *parts = pictures_of(data, data.new_classes)
    for key, pictures in zip(("val", "test"), parts, strict=True):
        images = torch.cat(list(pictures.stream(range(len(pictures.rows)), model.frame)))
        found = evaluate(model, images, pictures.examples().labels)
        assert found.accuracy == result[f"{key}_accuracy"]
        assert found.loss == pytest.approx(result[f"{key}_loss"], rel=1e-5)


def test_the_last_layers_learn_and_all_else_stays(whole: Path) -> None:
    before, after = (of(whole / f"Deep/{stage}/model.pt") for stage in ("transfer", "finetune"))
    old, new = before.state_dict(), after.state_dict()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    head = {f"classifier.linear{n}.{part}" for n in (1, 2) for part in ("weight", "bias")}
    assert changed == {"features.block.0.weight", "features.block.0.bias"} | head
    result = json.loads((whole / "Deep/finetune/result.json").read_text())
    assert result["parameters_trainable"] == 12 * 8 * 9 + 8 + (8 + 1) * 128 + (128 + 1) * 10
    assert result["learns_from"] == "block"
    assert result["parent_stage"] == "transfer"
    last = load_checkpoint(whole / "Deep/finetune/last.pt")
    assert not [name for name in last["model"] if "stem" in name]


def test_its_figures_are_those_of_its_model_on_the_pictures(
    drawn_data: Data,
    whole: Path,
) -> None:
    result = json.loads((whole / "Deep/finetune/result.json").read_text())
    transfer = json.loads((whole / "Deep/transfer/result.json").read_text())
    assert result["val_loss"] < transfer["val_loss"]
    check_figures(result, of(whole / "Deep/finetune/model.pt"), drawn_data)


@pytest.mark.parametrize("when", ["in the maps", "after an epoch"])
def test_interrupted_it_goes_on_to_the_same_bytes(
    drawn_data: Data,
    whole: Path,
    when: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(whole / "Deep/transfer", "runs/drawn.npz/Deep/transfer")
    lines: list[str] = []

    def log(line: str) -> None:
        lines.append(line)
        if when == "after an epoch" and "epoch 1" in line:
            interrupt()

    write = passes._write

    def write_then_stop(*values: Any) -> None:
        write(*values)
        interrupt()

    with monkeypatch.context() as patch:
        if when == "in the maps":
            patch.setattr(passes, "_write", write_then_stop)
        with pytest.raises(KeyboardInterrupt):
            run("finetune", drawn_data, log=log)
    assert len(list(Path("runs").rglob("train-*.pt"))) == (1 if when == "in the maps" else 3)
    lines.clear()
    run("finetune", drawn_data, log=lines.append)
    said = [line for line in lines if "the layers from block on learn" in line]
    assert len(said) == (1 if when == "in the maps" else 0)  # the bars tell the rest
    for name in ("model.pt", "last.pt"):
        path = Path("drawn.npz/Deep/finetune") / name
        assert ("runs" / path).read_bytes() == (whole.parent / path).read_bytes()


def test_other_seeds_read_the_maps(drawn_data: Data, whole: Path) -> None:
    shutil.copytree(whole / "features", "runs/drawn.npz/features")
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*.pt")}
    lines: list[str] = []
    for stage in ("transfer", "finetune"):
        run(stage, drawn_data, seed=3, seed_folder=True, log=lines.append)
    assert sum("computing what was there before took" in line for line in lines) == 2
    kept = Path("runs/drawn.npz/features").rglob("*.pt")
    assert {path: path.stat().st_mtime_ns for path in kept} == before


@pytest.mark.parametrize("maps_in_file", [256, 64])
def test_maps_that_transfer_made_on_the_way_are_those_of_a_pass_of_their_own(
    drawn_data: Data, whole: Path, monkeypatch: pytest.MonkeyPatch, maps_in_file: int
) -> None:
    monkeypatch.setattr(passes, "FILE_SIZE", 4 * 12 * 18 * 18 * maps_in_file)
    run("transfer", drawn_data, output_dir="apart")
    run("finetune", drawn_data, output_dir="apart")
    run("transfer", drawn_data, keep_maps=True)
    kept = {path.relative_to("runs"): path for path in Path("runs").glob("*/features/*/*.pt")}
    assert kept.keys() == {p.relative_to("apart") for p in Path("apart").glob("*/features/*/*.pt")}
    for below, path in kept.items():
        found, expected = load_checkpoint(path), load_checkpoint("apart" / below)
        assert torch.equal(found["features"], expected["features"])
        assert found["features"].untyped_storage().nbytes() == found["features"].nbytes
        assert (found["seconds"] == 0) is (found["features"].ndim > 3)  # transfer counts the maps
    before = {path: path.stat().st_mtime_ns for path in kept.values()}
    run("finetune", drawn_data)
    assert {path: path.stat().st_mtime_ns for path in kept.values()} == before
    for stage in ("transfer", "finetune"):
        for name in ("model.pt", "last.pt"):
            path = Path("drawn.npz/Deep") / stage / name
            assert ("runs" / path).read_bytes() == (whole.parent / path).read_bytes()


class Doubles(nn.Module):
    """A layer that works in place on what it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.layer(images.mul_(2))
        return outputs


def test_maps_on_the_way_are_those_before_a_layer_that_works_in_place() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), Doubles(), nn.Flatten()).requires_grad_(False)
    tail = find_tail(network, 8)
    assert tail is not None
    assert tail.first == "1"
    images = torch.randn(2, 3, 8, 8)
    outputs, maps = outputs_and_maps(network, tail, images)
    assert torch.equal(maps, maps_of(network, tail, images))
    assert torch.equal(maps, network[0](images))
    assert torch.equal(outputs, network(images))


def test_maps_of_all_views_are_made_on_the_way(drawn_data: Data) -> None:
    recipe = dataclasses.replace(PLAIN, mirror=True)
    of_both = []
    for keep_maps in (False, True):
        values: dict[str, Any] = {"output_dir": f"runs-{keep_maps}", "base": deep()}
        run_stage("transfer", drawn_data, recipe, **values, keep_maps=keep_maps)
        run_stage("finetune", drawn_data, recipe, **values)
        folder = Path(f"runs-{keep_maps}/drawn.npz")
        assert len(list(folder.glob("features/*/train-2-views-0-*.pt"))) == 6
        of_both.append((folder / "Deep/finetune/model.pt").read_bytes())
    assert of_both[0] == of_both[1]
    shifted = dataclasses.replace(PLAIN, transfer_shift=1)
    run_stage("transfer", drawn_data, shifted, output_dir="shifted", base=deep(), keep_maps=True)
    assert len({path.parent for path in Path("shifted").rglob("train-*.pt")}) == 1


def test_maps_that_cannot_be_kept_stop_nothing(drawn_data: Data, whole: Path) -> None:
    (about,) = (path for path in whole.rglob("about.json") if "maps_before" in path.read_text())
    in_the_way = "runs" / about.parent.relative_to(whole.parent)
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_bytes(b"a file where a folder should be")
    warn_once.cache_clear()
    with pytest.warns(RunWarning, match=r"^maps are not kept in runs/.*features \(.*\): finetune"):
        run("transfer", drawn_data, keep_maps=True)
    in_the_way.unlink()
    run("finetune", drawn_data)
    path = Path("drawn.npz/Deep/finetune/model.pt")
    assert ("runs" / path).read_bytes() == (whole.parent / path).read_bytes()


def test_without_last_layers_there_are_no_maps(drawn_data: Data) -> None:
    run("transfer", drawn_data, base=tiny(), keep_maps=True)
    run("transfer", drawn_data, keep_maps=True, keep_features=False)
    assert len({path.parent for path in Path("runs").rglob("train-*.pt")}) == 1


def test_large_maps_are_in_a_file_that_vanishes(
    drawn_data: Data,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(passes, "IN_MEMORY", 0)
    monkeypatch.setattr(passes, "FILE_SIZE", 4 * 12 * 18 * 18 * 64)  # of 64 maps
    for stage in ("transfer", "finetune"):
        run(stage, drawn_data)
    for stage in ("transfer", "finetune"):
        for name in ("model.pt", "last.pt"):
            path = Path("drawn.npz/Deep") / stage / name
            assert ("runs" / path).read_bytes() == (whole.parent / path).read_bytes()
    names = [path.name for path in Path("runs/drawn.npz/features").rglob("*") if path.is_file()]
    assert len([name for name in names if name.startswith("train")]) == 3 + 9
    assert all(re.fullmatch(r"(about\.json|\w+-1-views-0-\d{5}\.pt)", name) for name in names)


def test_what_it_cannot_go_on_from_is_one_line(drawn_data: Data, whole: Path) -> None:
    with pytest.raises(RunError, match=r"^there is no transfer model runs/.*: make it first$"):
        run("finetune", drawn_data)
    shutil.copytree(whole, "runs/drawn.npz")
    shutil.rmtree("runs/drawn.npz/Deep/finetune")
    with pytest.raises(RunError, match=r"model\.pt was made from another Deep: make it anew"):
        run("finetune", drawn_data, base=deep(1))
    run("transfer", drawn_data, base=tiny())
    with pytest.raises(RunError, match=r"no last layers that could learn .*: transfer is all"):
        run("finetune", drawn_data, base=tiny())


def test_its_recipe_has_few_epochs_and_moves_no_maps() -> None:
    plan = TUNED.for_backbone().for_stage("finetune", 500)
    assert (plan.epochs, plan.shift, plan.view_shift) == (5, 0, 0)
    recipe = dataclasses.replace(TUNED, finetune_epochs=7, shift=2)
    assert recipe.for_backbone().for_stage("finetune", 500).epochs == 7
    recipe = dataclasses.replace(TUNED, epochs=20)
    assert recipe.for_backbone().for_stage("finetune", 500).epochs == 8


@needs_fork
def test_a_group_finds_what_one_process_finds(
    zygote: subprocess.Popen[str], drawn: Path, whole: Path
) -> None:
    program = f"""
from cifar_tl.data.source import load_data
from tests.experiment.test_pretrained_finetune import *

def both(group):
    data = load_data({str(drawn)!r})
    for stage in ("transfer", "finetune"):
        values = {{"output_dir": f"runs{{group.size()}}", "keep_maps": group.size() == 2}}
        result = run(stage, data, group=group, **values)
    return [result["val_loss"], result["test_loss"]]
"""
    result = json.loads((whole / "Deep/finetune/result.json").read_text())
    alone = [result[name] for name in ("val_loss", "test_loss")]  # dropout draws other numbers
    for size, of_ranks in in_groups(zygote, program, "both", (2, 3)).items():
        assert all(found == of_ranks[0] for found in of_ranks)
        assert of_ranks[0] == pytest.approx(alone, abs=0.03)
        kept = list(Path(f"runs{size}").glob("*/features/*/*.pt"))
        expected = (whole / "features").glob("*/*.pt")
        assert sorted(path.name for path in kept) == sorted(path.name for path in expected)
        made_by_transfer = [path for path in kept if load_checkpoint(path)["seconds"] == 0]
        assert len(made_by_transfer) == (len(kept) // 2 if size == 2 else 0)  # the maps


def test_the_command_goes_on_without_a_finetune_that_cannot_be(
    drawn_data: Data, capsys: pytest.CaptureFixture[str]
) -> None:
    options = make_parser().parse_args(["--base", "Tiny", "--epochs", "2", "--quiet"])
    jobs = list_jobs(options, drawn_data.name)
    steps = partial(
        run_stage, data=drawn_data, recipe=PLAIN, output_dir=options.output_dir, base=None
    )
    bases: Any = {Path("Tiny"): tiny()}
    stages = ("transfer", "finetune", "scratch")
    ((_, results),) = do_jobs(jobs, stages, drawn_data, bases, steps, lambda _: None)
    assert list(results) == ["transfer", "scratch"]
    assert "no finetune: Tiny has no last layers that could learn" in capsys.readouterr().err
    compared = compare({1.0: [results]})
    assert [d["way"] for d in compared["sizes"][0]["differences"]] == ["transfer"]
    both = compare_bases({"Tiny": compared, "Deep": compared})
    assert list(both["sizes"][0]["bases"]["Tiny"]) == ["transfer"]
    with pytest.raises(RunError, match="no last layers"):
        do_jobs(jobs, ["finetune"], drawn_data, bases, steps, lambda _: None)
