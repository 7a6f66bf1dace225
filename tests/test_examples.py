"""The scripts in examples/, run as they are, and hubconf.py as torch.hub loads it."""

import dataclasses
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchvision.datasets import CIFAR10

from cifar_tl.checkpoint import load_model
from cifar_tl.data.cifar10 import download_cifar10
from cifar_tl.data.source import load_data
from cifar_tl.errors import CheckpointError
from cifar_tl.experiment.run import run_stage
from cifar_tl.recipe import TUNED
from tests.forked import ROOT


@pytest.fixture(scope="module")
def runs(small_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output_dir = tmp_path_factory.mktemp("runs")
    recipe = dataclasses.replace(TUNED, epochs=8, batch_size=20)
    for stage in ("base", "transfer"):
        run_stage(stage, load_data(small_npz), recipe, output_dir=output_dir)
    return output_dir / "small.npz"


def run_example(name: str, *arguments: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")


def percentages(output: str) -> list[float]:
    return [float(number) for number in re.findall(r"accuracy ([\d.]+)%", output)]


def test_embedding(
    runs: Path,
    small_npz: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = (runs / "base" / "model.pt", "--data", small_npz)
    run_example("embedding.py", *arguments, monkeypatch=monkeypatch)
    found = percentages(capsys.readouterr().out)
    assert len(found) == 3
    assert sum(found) / 3 > 30  # 20 by chance


def test_backbone_logs_every_epoch(
    small_npz: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = tmp_path / "log.jsonl"
    arguments = ("--data", small_npz, "--size", 32, "--epochs", 3, "--log", log)
    run_example("backbone.py", *arguments, monkeypatch=monkeypatch)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    assert len(percentages(capsys.readouterr().out)) == 3


def test_loop(
    archive: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / CIFAR10.filename).write_bytes(archive)
    download_cifar10(tmp_path)
    run_example("loop.py", "--root", tmp_path, "--epochs", 2, monkeypatch=monkeypatch)
    output = capsys.readouterr().out
    assert output.count("training loss") == 2
    assert len(percentages(output)) == 1


def test_documented(
    small_npz: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """test_documented.py has the rest."""
    with torch.random.fork_rng(devices=[]):
        run_example("documented.py", small_npz, 2, monkeypatch=monkeypatch)
    output = capsys.readouterr().out
    assert len(percentages(output)) == 3 * (2 + 1)
    assert re.findall(r"^(\w+): test accuracy", output, flags=re.MULTILINE) == [
        *("base", "transfer", "scratch")
    ]
    assert len(re.findall(r"\d\.\d s", output)) == 3 * 2 + 1  # epochs, and the frozen features


def test_every_example_has_a_test() -> None:
    tested = Path(__file__).read_text(encoding="utf-8")
    for path in (ROOT / "examples").glob("*.py"):
        assert f'"{path.name}"' in tested


def hub(entry: str, weights: Path | None = None) -> torch.nn.Module:
    model: torch.nn.Module = torch.hub.load(str(ROOT), entry, source="local", weights=weights)
    return model


def test_hub_gives_fresh_and_trained_networks(runs: Path) -> None:
    assert hub("base_net").num_classes == 5
    assert hub("transfer_net").num_classes == 10
    for entry, stage in (("base_net", "base"), ("transfer_net", "transfer")):
        path = runs / stage / "model.pt"
        expected = load_model(path).state_dict()
        found = hub(entry, path).state_dict()
        assert all(torch.equal(found[key], value) for key, value in expected.items())
    with pytest.raises(CheckpointError, match="model of the stage 'base' and not of transfer or"):
        hub("transfer_net", runs / "base" / "model.pt")


def test_hub_needs_no_torchvision() -> None:
    script = (
        "import sys, torch; sys.modules['torchvision'] = None\n"
        f"model = torch.hub.load({str(ROOT)!r}, 'base_net', source='local')\n"
        "print(model(torch.zeros(2, 3, 32, 32)).shape)"
    )
    environment = {**os.environ, "PYTHONPATH": ""}
    process = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert process.stdout == "torch.Size([2, 5])\n"
