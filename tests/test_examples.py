"""The scripts in examples/, run as they are, and hubconf.py as torch.hub loads it."""

import dataclasses
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from cifar_tl.checkpoint import load_model
from cifar_tl.data.cifar10 import download_cifar10
from cifar_tl.data.pictures.read import read_image
from cifar_tl.data.source import load_data
from cifar_tl.errors import CheckpointError
from cifar_tl.experiment.run import run_stage
from cifar_tl.prediction import predict
from cifar_tl.published import make_network
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


def test_backbone_sees_what_is_lost_at_32_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its weights are random: they tell stripes that run across from stripes that run down."""
    draw_stripes(tmp_path / "fine", 20)
    seen_at_32 = load_data(tmp_path / "fine").train.images[..., 3:-3, 3:-3]
    assert seen_at_32.float().std((2, 3)).max() < 0.1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(make_network("resnet18", 224).state_dict(), tmp_path / "weights.pth")
    arguments = (
        *("--data", "fine", "--base", "resnet18", "--weights", "weights.pth"),
        *("--epochs", "100", "--out", "fine.pt"),
    )
    run_example("backbone.py", *arguments, monkeypatch=monkeypatch)
    found = percentages(capsys.readouterr().out)
    assert len(found) == 100
    assert found[-1] > 80  # 50 by chance; 100 with four seeds
    model = load_model("fine.pt")
    for name in ("across", "down"):
        image = read_image(tmp_path / "fine" / "train" / name / "00.png", model.white, model.frame)
        assert image.shape == (3, 224, 224)
        assert predict(model, image)[0].name == name


def test_backbone_refuses_what_is_no_folder_of_pictures(
    small_npz: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run_example("backbone.py", "--data", small_npz, monkeypatch=monkeypatch)
    assert "is no folder of pictures: name one" in capsys.readouterr().err


def draw_stripes(folder: Path, number: int) -> None:
    """Draws pictures of two classes, with stripes of two pixels."""
    random = np.random.default_rng(0)
    bright = np.arange(256) // 2 % 2 == 0
    for name, where in {"across": bright[:, None], "down": bright[None]}.items():
        (folder / "train" / name).mkdir(parents=True)
        for each in range(number):
            low, high = random.integers(0, 100), random.integers(150, 256)
            grey = np.where(where, high, np.full((256, 256), low)).astype(np.uint8)
            Image.fromarray(grey).convert("RGB").save(folder / "train" / name / f"{each:02}.png")


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
