"""The package as other projects see it, and the README as its readers use it."""

import inspect
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from conftest import ROOT
from PIL import Image
from torchvision.datasets import CIFAR10

import cifar_tl
import train
from cifar_tl.data import download_cifar10

README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = re.findall(r"python train\.py[^`\n#]*", README)


def test_import_does_not_load_torchvision() -> None:
    script = "import cifar_tl, sys; assert 'torchvision' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)


def test_every_public_name_is_there_and_explained() -> None:
    for name in cifar_tl.__all__:
        value = getattr(cifar_tl, name)
        if inspect.isroutine(value) or inspect.isclass(value):
            assert value.__doc__, name
            assert not value.__doc__.startswith(f"{name}("), name  # made by dataclass


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results on the built-in images that the examples read."""
    folder = tmp_path_factory.mktemp("readme")
    for stage in ("base", "transfer"):
        arguments = ["--stage", stage, "--data", "shapes", "--epochs", "1", "--quiet"]
        assert train.main([*arguments, "--output-dir", str(folder / "runs")]) == 0
    (folder / "hubconf.py").symlink_to(ROOT / "hubconf.py")  # as in a clone
    return folder


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_readme_example_runs(
    number: int, runs: Path, archive: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs)
    if not Path("data").exists():
        Path("data").mkdir()
        (Path("data") / CIFAR10.filename).write_bytes(archive)
        download_cifar10("data")
    exec(EXAMPLES[number], {"__name__": "__main__"})


def test_example_of_the_docstring_runs(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    example = "\n".join(re.findall(r"^    (.*)", cifar_tl.__doc__ or "", flags=re.MULTILINE))
    assert "fit(" in example
    exec(f"from cifar_tl import *\n{example}", {})


def test_readme_commands_are_understood(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cifar10.npz").touch()
    (tmp_path / "flowers" / "train").mkdir(parents=True)
    (tmp_path / "runs" / "cifar10" / "base").mkdir(parents=True)
    (tmp_path / "runs" / "cifar10" / "base" / "model.pt").touch()
    assert len(COMMANDS) > 3
    for command in COMMANDS:
        if "--help" in command:
            continue  # argparse would exit
        train.parse_arguments(command.split()[2:])


def test_readme_commands_for_own_classes_and_trained_models_run(
    own_classes: Path,
    archive: bytes,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    (Path("data") / CIFAR10.filename).write_bytes(archive)
    shutil.copytree(own_classes, "flowers")
    shutil.copy(own_classes / "train" / "ash" / "01.jpg", "photo.jpg")
    shutil.copytree("flowers/train/Birch", "holiday")
    section = README[README.index("### Your own classes") : README.index("## What a run leaves")]
    commands = [shlex.split(line) for line in re.findall("^python .*", section, flags=re.MULTILINE)]
    assert len(commands) == 6
    for _, *words in commands:
        if words[0] == "train.py":
            assert train.main(words[1:]) == 0
            continue
        if not Path("runs/cifar10/transfer").exists():
            assert train.main(["--stage", "transfer"]) == 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # it may have been imported before
            module = runpy.run_module(words[1])
        assert module["main"](words[2:]) == 0
        if words[1] == "cifar_tl.predict":
            assert "photo.jpg: " in capsys.readouterr().out
    assert Path("transfer.pt2").exists()


def test_readme_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert len(links) > 5
    for link in links:
        assert (ROOT / link).exists(), link
        if link.endswith(".png"):
            with Image.open(ROOT / link) as picture:
                assert min(picture.size) > 300
    assert "FEW" not in README  # a figure that is to be filled in


def test_readme_has_what_was_promised() -> None:
    assert len(EXAMPLES) > 3
    assert "pip install -r requirements.txt && python train.py\n" in README
    assert "pip install -r requirements-dev.txt && python -m pytest\n" in README
    assert "Learning Multiple Layers of Features from Tiny Images" in README
    assert "ten outputs" in README
