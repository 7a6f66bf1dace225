"""The table of all runs below an output folder."""

import csv
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

import cifar_tl.version
from cifar_tl.__main__ import main
from cifar_tl.errors import RunWarning
from cifar_tl.experiment.findings.table import save_runs
from tests.forked import run_program


def rows_of(path: Path) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return {row["folder"]: row for row in csv.DictReader(file)}


def test_all_runs_below_a_folder_are_in_one_table(
    tiny_npz: Path, own_classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--epochs", "1", "--threads", "1", "--quiet"]
    assert main(["train", "--data", str(tiny_npz), "--seeds", "2", *few]) == 0
    assert main(["train", "--data", str(own_classes), "--train-fraction", "0.5", *few]) == 0
    rows = rows_of(Path("runs/runs.csv"))
    files = {
        str(path.parent.relative_to("runs")): path for path in Path("runs").rglob("result.json")
    }
    assert len(files) == 2 * 4 + 3
    assert rows.keys() == files.keys()
    for folder, path in files.items():
        result: dict[str, Any] = json.loads(path.read_text())
        for name in ("stage", "data", "seed", "train_fraction", "lr", "test_accuracy", "command"):
            value = result[name]
            assert rows[folder][name] == ("" if value is None else str(value))
        assert "val_confusion" not in rows[folder]
    assert {rows[f"own/{stage}/fraction-0.5"]["base"] for stage in ("transfer", "finetune")} == {
        "cifar10"
    }
    assert rows["own/scratch/fraction-0.5"]["base"] == ""
    assert rows["tiny.npz/finetune/seed-1"]["base"] == "runs/tiny.npz/base/seed-1/model.pt"
    assert rows["tiny.npz/base/seed-0"]["command"] == (
        f"cifar-tl train --data {tiny_npz} --epochs 1 --seeds 2 --threads 1 --quiet"
    )
    capsys.readouterr()


@pytest.mark.parametrize("content", ["{", "[]", "{}", "[" * 100_000])
def test_a_damaged_result_is_left_out_with_a_warning(content: str) -> None:
    folder = Path("runs/own/base")
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(content)
    save_runs(Path("runs"))  # it may be of another program
    (folder / "model.pt").touch()
    lacking = r"own/base/result\.json is damaged, .*: runs\.csv lacks it"
    with pytest.warns(RunWarning, match=lacking):
        save_runs(Path("runs"))
    assert rows_of(Path("runs/runs.csv")) == {}


@pytest.mark.skipif(os.name != "posix", reason="needs links")
def test_runs_behind_links_and_of_data_called_as_a_stage_are_there(
    tiny_npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--epochs", "1", "--threads", "1", "--quiet"]
    Path("elsewhere").mkdir()
    Path("runs").mkdir()
    Path("runs/transfer").symlink_to(Path("elsewhere").absolute())
    Path("elsewhere/up").symlink_to(Path("runs").absolute())  # a loop
    Path("transfer").symlink_to(tiny_npz)  # data of that name
    Path("transfer.npz").symlink_to(tiny_npz)
    for stage in ("base", "transfer", "finetune"):
        assert main(["train", "--data", "transfer.npz", "--stage", stage, *few]) == 0
    for path in Path("runs/transfer.npz").iterdir():
        path.rename(Path("elsewhere", path.name))
    save_runs(Path("runs"))
    rows = rows_of(Path("runs/runs.csv"))
    assert {folder: row["base"] for folder, row in rows.items()} == {
        "transfer/base": "",
        "transfer/transfer": "runs/transfer.npz/base/model.pt",
        "transfer/finetune": "runs/transfer.npz/base/model.pt",
    }
    capsys.readouterr()


@pytest.mark.parametrize("content", ["", "folder,size\n", "folder;stage;data;base\n"])
def test_a_table_of_somebody_else_is_kept_with_a_warning(content: str) -> None:
    Path("runs").mkdir()
    table = Path("runs/runs.csv")
    table.write_text(content)
    with pytest.warns(RunWarning, match=r"runs/runs\.csv is another program's file, and stays: "):
        save_runs(Path("runs"))
    assert table.read_text() == content
    table.unlink()
    for _ in range(2):  # and one of ours is replaced
        save_runs(Path("runs"))
        assert rows_of(table) == {}
        with table.open("a") as file:
            file.write("of an earlier run\n")


def git(*words: str) -> str:
    identity = ["-c", "user.name=N", "-c", "user.email=n@example.org"]
    return subprocess.run(
        ["git", *identity, *words], capture_output=True, text=True, check=True
    ).stdout


def test_the_commit_of_a_clone_is_named_and_no_other(tmp_path: Path) -> None:
    package = tmp_path / "clone" / "cifar_tl"
    package.mkdir(parents=True)
    os.chdir(package.parent)
    source = Path(cifar_tl.version.__file__).read_text()
    (package / "version.py").write_text(source)
    (package / "__init__.py").touch()
    ask = (
        "-c",
        "import sys; sys.path.insert(0, '.'); import cifar_tl.version as v; print(v.commit())",
    )
    assert run_program(*ask).stdout == "None\n"
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    head = git("rev-parse", "HEAD").strip()
    assert run_program(*ask).stdout == f"{head}\n"
    (package / "version.py").write_text(f"{source}\n")
    assert run_program(*ask).stdout == f"{head}-dirty\n"
    package.rename(tmp_path / "clone" / "lib")  # an installed package in somebody's repository
    (tmp_path / "clone/site/").mkdir()
    Path("lib").rename("site/cifar_tl")
    os.chdir("site")
    assert run_program(*ask).stdout == "None\n"
