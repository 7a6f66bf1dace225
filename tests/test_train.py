"""The command, run in-process with real arguments, and as a real process where that matters."""

import argparse
import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from conftest import ROOT
from torchvision.datasets import CIFAR10

import cifar_tl
import train
from cifar_tl import data, predict
from train import main

FAST = ["--epochs", "2", "--batch-size", "50"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs each test in an empty folder, with CIFAR-10 out of reach."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/refuses")


def result(path: str) -> dict[str, object]:
    content: dict[str, object] = json.loads(Path(path).read_text())
    return content


# What works


def test_all_runs_every_stage_and_compares(
    small_npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--data", str(small_npz), *FAST]) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    folder = Path("runs/small.npz")
    assert output.isascii()
    assert output.count("epoch 1/2") == 3
    assert output.count("epoch 4/4") == 1  # --epochs does not mean finetuning
    assert f"Everything was written to {folder}" in output
    text = (folder / "comparison.txt").read_text()
    assert text in output
    comparison = result("runs/small.npz/comparison.json")
    assert comparison["data"] == "small.npz"
    assert list(comparison["stages"]) == ["base", "transfer", "finetune", "scratch"]  # type: ignore[call-overload]
    for stage in train.STAGES:
        stage_result = result(f"runs/small.npz/{stage}/result.json")
        assert f"{stage_result['val_accuracy']:.2%}" in text
        assert f"{stage_result['test_accuracy']:.2%}" in text
    # Again: everything is finished, nothing is trained, and the same is said.
    assert main(["--data", str(small_npz), *FAST]) == 0
    again, errors = capsys.readouterr()
    assert errors == ""
    assert "epoch" not in again.replace("epochs", "").replace("s/epoch", "")
    assert text in again
    assert output.splitlines()[-1] == again.splitlines()[-1]


def test_single_stages_build_on_each_other(
    small_npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for stage in train.STAGES:
        assert main(["--stage", stage, "--data", str(small_npz), *FAST]) == 0
        output = capsys.readouterr().out
        assert f"{stage} on small.npz: validation accuracy" in output
        assert "files in runs/small.npz" in output.replace(os.sep, "/")
        assert result(f"runs/small.npz/{stage}/result.json")["epochs"] == 2
    assert not Path("runs/small.npz/comparison.txt").exists()


def test_options_reach_the_training(small_npz: Path) -> None:
    arguments = ["--stage", "base", "--recipe", "original", "--epochs", "1", "--batch-size", "30"]
    arguments += ["--lr", "0.01", "--weight-decay", "0.1", "--seed", "7", "--threads", "1"]
    arguments += ["--device", "cpu", "--output-dir", "elsewhere", "--data", str(small_npz)]
    arguments += ["--precision", "bf16"]
    assert main(arguments) == 0
    found = result("elsewhere/small.npz/base/result.json")
    expected = {"recipe": "original", "epochs": 1, "batch_size": 30, "lr": 0.01, "seed": 7}
    expected |= {"weight_decay": 0.1, "optimizer": "adam", "normalize": False, "precision": "bf16"}
    assert {key: found[key] for key in expected} == expected
    assert found["environment"]["threads"] == 1  # type: ignore[index]
    assert not Path("runs").exists()


def test_what_a_stage_has_of_its_own_is_meant_only_where_it_is_named(small_npz: Path) -> None:
    settings = ["--data", str(small_npz), "--lr", "0.01", *FAST]
    assert main([*settings, "--finetune-epochs", "3"]) == 0
    found = {s: result(f"runs/small.npz/{s}/result.json") for s in train.STAGES}
    assert [found[s]["lr"] for s in train.STAGES] == [0.01, 0.05, 0.02, 0.01]
    assert [found[s]["epochs"] for s in train.STAGES] == [2, 2, 3, 2]
    assert [found[s]["batch_size"] for s in train.STAGES] == [50, 500, 50, 50]
    for stage in ("transfer", "finetune"):
        assert main(["--stage", stage, "--restart", *settings]) == 0
        again = result(f"runs/small.npz/{stage}/result.json")
        assert (again["lr"], again["epochs"], again["batch_size"]) == (0.01, 2, 50)


def test_own_classes_from_a_base_model_to_a_prediction(
    small_npz: Path, own_classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--stage", "base", "--data", str(small_npz), *FAST]) == 0
    own = ["--data", str(own_classes), "--epochs", "8", "--finetune-epochs", "1"]
    own += ["--base", "runs/small.npz/base/model.pt"]
    assert main(own) == 0
    assert "The base model was there before" in capsys.readouterr().out
    assert not Path("runs/own/base").exists()
    comparison = json.loads(Path("runs/own/comparison.json").read_text())
    assert set(comparison["stages"]) == {"transfer", "finetune", "scratch"}
    assert comparison["seconds_base"] is None
    assert main(own) == 0
    assert capsys.readouterr().out.count("finished before") == 3
    model = "runs/own/transfer/model.pt"
    assert predict.main([str(own_classes / "train" / "ash"), "--model", model, "--top", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.partition(": ")[2].startswith("ash ") for line in lines) > len(lines) / 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stage", "base"], "a base model learns classes 0-4 of CIFAR-10"),
        (["--stage", "transfer"], "name the base model whose features to use"),
        ([], "name the base model whose features to use"),
        (["--stage", "scratch", "--base", "model.pt"], "add --stage transfer"),
    ],
)
def test_own_classes_need_a_base_model_and_make_none(
    own_classes: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--data", str(own_classes), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_fraction_of_the_new_images_on_a_base_of_all(
    small_npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--data", str(small_npz), "--train-fraction", "0.25", "--epochs", "2"]
    assert main([*settings, "--stage", "transfer"]) == 1  # there is no base yet
    assert main(remedy(capsys.readouterr().err)) == 0
    assert main(settings) == 0
    folder = Path("runs/small.npz")
    images = {
        stage: result(f"{folder}/{stage}/result.json")["images_train"] for stage in train.STAGES
    }
    assert images == {"base": 160, "transfer": 40, "finetune": 40, "scratch": 40}


def test_quiet_prints_only_results(small_npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--stage", "base", "--quiet", "--data", str(small_npz), *FAST]) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    assert len(output.splitlines()) == 1
    assert output.startswith("base on small.npz: validation accuracy")


def test_another_base_model(small_npz: Path) -> None:
    settings = ["--data", str(small_npz), *FAST]
    assert main(["--stage", "base", "--seed", "3", "--output-dir", "other", *settings]) == 0
    base = "other/small.npz/base/model.pt"
    assert main(["--stage", "transfer", "--base", base, *settings]) == 0
    transfer = cifar_tl.load_model("runs/small.npz/transfer/model.pt")
    expected = cifar_tl.load_model(base)
    assert torch.equal(transfer.features[0].weight, expected.features[0].weight)  # type: ignore[arg-type]


def test_official_archive_put_in_place_by_hand_is_used(
    archive: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("data").mkdir()
    (Path("data") / CIFAR10.filename).write_bytes(archive)
    assert main(["--stage", "base", *FAST]) == 0
    assert "data: cifar10 (CIFAR-10)" in capsys.readouterr().out
    assert result("runs/cifar10/base/result.json")["data"] == "cifar10"


def test_version_names_the_versions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert f"cifar_tl {cifar_tl.__version__}, torch " in capsys.readouterr().out


# Data that is not there


def test_without_cifar10_it_says_so_and_runs_on_shapes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--epochs", "1"]) == 0
    output, errors = capsys.readouterr()
    assert "THIS RUN USES THE BUILT-IN SHAPES INSTEAD" in errors
    assert "cannot be downloaded" in errors
    assert "cifar-10-python.tar.gz" in errors  # where a manual download goes
    assert "Comparison on shapes (built-in drawn shapes" in output
    assert [path.name for path in Path("runs").iterdir()] == ["shapes"]
    for stage in train.STAGES:
        assert result(f"runs/shapes/{stage}/result.json")["data"] == "shapes"
        assert "on shapes" in Path(f"runs/shapes/{stage}/results.txt").read_text()
    assert result("runs/shapes/comparison.json")["data"] == "shapes"


@pytest.mark.parametrize("source", ["data", "folder"])
def test_named_data_is_never_substituted(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("folder").mkdir()
    assert main(["--data", source, *FAST]) == 1
    errors = capsys.readouterr().err
    assert f"train.py: CIFAR-10 is not in {source} and cannot be downloaded" in errors
    assert len(errors.splitlines()) == 1
    assert not list(Path("runs").iterdir())


def test_results_on_cifar10_are_never_joined_by_shapes(capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs/cifar10/base").mkdir(parents=True)
    assert main(FAST) == 1
    assert "cannot be downloaded" in capsys.readouterr().err
    assert [path.name for path in Path("runs").iterdir()] == ["cifar10"]


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs: must be a whole number from 1 to 1000000000, not '0'"),
        (["--epochs", "2.5"], "--epochs: must be a whole number"),
        (["--batch-size", "-1"], "--batch-size: must be a whole number from 1"),
        (["--lr", "0"], "--lr: must be a number above 0"),
        (["--lr", "nan"], "--lr: must be a number from 0 to 1e30, not 'nan'"),
        (["--lr", "1e39"], "--lr: must be a number from 0 to 1e30, not '1e39'"),
        (["--data", ""], "--data: is empty"),
        (["--device", "hpu"], "--device hpu: cannot be used here"),
        (["--lr", "fast"], "--lr: must be a number"),
        (["--weight-decay", "-1"], "--weight-decay: must be a number from 0"),
        (["--weight-decay", "inf"], "--weight-decay: must be a number"),
        (["--seed", "-1"], "--seed: must be a whole number from 0"),
        (["--threads", "0"], "--threads: must be a whole number from 1 to 256"),
        (["--threads", "100000"], "--threads: must be a whole number from 1 to 256"),
        (["--stage", "all-of-it"], "--stage: invalid choice"),
        (["--recipe", "secret"], "--recipe: invalid choice"),
        (["--data", "dta"], "--data dta: there is no such file or folder"),
        (["--data", "file.txt"], "--data file.txt: name a folder, a .npz file or shapes"),
        (["--base", "file.txt"], "add --stage transfer"),
        (["--stage", "transfer", "--base", "none.pt"], "--base none.pt: there is no such file"),
        (["--device", "toaster"], "--device toaster: cannot be used here"),
        (["--device", "meta"], "--device meta: cannot be used here"),
        (["--output-dir", "file.txt"], "--output-dir file.txt: nothing can be written there"),
        (["--output-dir", "file.txt/x"], "--output-dir file.txt/x: nothing can be written there"),
        (["--train-fraction", "0"], "--train-fraction: must be a number above 0 and at most 1"),
        (["--train-fraction", "1.5"], "--train-fraction: must be a number above 0 and at most 1"),
        (["--train-fraction", ".5", "--stage", "base"], "base trains on all its images"),
        (["--data", "pictures"], "--data pictures: holds neither CIFAR-10 nor a folder train"),
        (["--data", "pictures/a"], "--data pictures/a: holds neither CIFAR-10 nor a folder"),
        (["--stage", "base", "--finetune-lr", "1"], "--finetune-lr is for finetune: leave it out"),
        (
            ["--stage", "transfer", "--transfer-batch-size", "5", "--batch-size", "5"],
            "--transfer-batch-size and --batch-size mean the same here: leave out one",
        ),
        (["--unknown"], "unrecognized arguments: --unknown"),
        (["stray"], "unrecognized arguments: stray"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file.txt").write_text("")
    Path("pictures/a").mkdir(parents=True)
    Path("pictures/a/b.jpg").touch()
    assert main(arguments) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert message in errors
    assert errors.startswith("train.py: ")
    assert len(errors.splitlines()) == 1


def remedy(errors: str) -> list[str]:
    """The arguments of the command that an error recommends."""
    assert len(errors.splitlines()) == 1
    found = re.search(r"python train\.py (.*)", errors)
    assert found is not None
    return found[1].split()


def test_every_remedy_works_as_it_is_printed(
    small_npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(small_npz, "my.npz")
    settings = ["--data", "my.npz", *FAST]
    transfer = ["--stage", "transfer", *settings]
    assert main(transfer) == 1
    base = remedy(capsys.readouterr().err)
    assert base[:2] == ["--stage", "base"]
    assert main(base) == 0
    assert main(transfer) == 0
    capsys.readouterr()
    assert main([*settings, "--stage", "base", "--seed", "1"]) == 1
    restart = remedy(capsys.readouterr().err)
    assert "--restart" in restart
    assert main(restart) == 0
    capsys.readouterr()
    assert main(transfer) == 1  # its base was trained anew
    renew = remedy(capsys.readouterr().err)
    assert main(renew) == 0
    assert main(transfer) == 0
    finetune = ["--stage", "finetune", "--data", "my.npz", "--epochs", "1", "--output-dir", "new"]
    capsys.readouterr()
    assert main(finetune) == 1
    assert "--epochs" not in remedy(capsys.readouterr().err)  # one epoch was meant for finetuning


def test_restart_deletes_nothing_that_could_not_be_made_anew(
    small_npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--data", str(small_npz), *FAST]
    assert main(settings) == 0
    shutil.rmtree("runs/small.npz/base")
    transfer = Path("runs/small.npz/transfer/model.pt").read_bytes()
    capsys.readouterr()
    assert main(["--stage", "transfer", "--restart", *settings]) == 1
    assert "--restart" not in remedy(capsys.readouterr().err)
    assert Path("runs/small.npz/transfer/model.pt").read_bytes() == transfer
    # One stage with other settings is no reason to throw all four away.
    assert main(["--stage", "scratch", "--restart", "--seed", "1", *settings]) == 0
    assert not Path("runs/small.npz/comparison.txt").exists()
    capsys.readouterr()
    assert main(settings) == 1
    assert remedy(capsys.readouterr().err)[:2] == ["--stage", "scratch"]


def test_restart_trains_again_and_spares_other_stages_and_files(small_npz: Path) -> None:
    settings = ["--data", str(small_npz), *FAST]
    assert main(["--stage", "base", *settings]) == 0
    assert main(["--stage", "scratch", *settings]) == 0
    base, scratch = (Path(f"runs/small.npz/{stage}") for stage in ("base", "scratch"))
    (base / "notes.txt").write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in (base / "model.pt", scratch / "model.pt")}
    assert main(["--stage", "base", "--restart", *settings]) == 0
    assert (base / "model.pt").stat().st_mtime_ns > before[base / "model.pt"]
    assert (scratch / "model.pt").stat().st_mtime_ns == before[scratch / "model.pt"]
    assert (base / "notes.txt").read_text() == "mine"


def test_bad_data_is_one_line_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.npz").write_bytes(b"no zip")
    Path("data").write_bytes(b"no folder")
    for arguments, message in (
        (["--data", "bad.npz"], "bad.npz is no readable .npz archive"),
        ([], "data is neither a folder nor a .npz file"),
    ):
        assert main(arguments) == 1
        errors = capsys.readouterr().err
        assert message in errors
        assert len(errors.splitlines()) == 1


def test_divergence_is_one_line_with_a_command_that_is_lower(
    small_npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--stage", "base", "--lr", "1e30", "--data", str(small_npz)]) == 1
    errors = capsys.readouterr().err
    assert "in epoch 1 with lr 1e+30 and weight_decay 0.2: try a lower learning rate" in errors
    assert main(remedy(errors)) == 1
    assert "with lr 1e+29" in capsys.readouterr().err


def test_names_written_twice_agree() -> None:
    assert train.STAGES == cifar_tl.STAGES
    assert train.SHAPES == data.SHAPES
    options = vars(train.make_parser().parse_args([]))
    for name in (field.name for field in dataclasses.fields(cifar_tl.Recipe)):
        if name.startswith(tuple(f"{stage}_" for stage in train.STAGES)):
            assert name in options
    assert set(train.RECIPES) == set(cifar_tl.RECIPES)
    precisions = get_args(get_type_hints(cifar_tl.Recipe)["precision"])
    assert precisions == train.PRECISIONS


def test_suggested_commands_are_understood_and_mean_what_they_should(own_classes: Path) -> None:
    Path("base.pt").touch()
    own = ["--data", str(own_classes), "--base", "base.pt"]
    settings = ["--lr", "0.1", "--transfer-lr", "5", "--finetune-lr", "6", "--finetune-epochs", "7"]

    def suggested(arguments: list[str], **changes: Any) -> argparse.Namespace:
        words = shlex.split(train.command(train.parse_arguments(arguments), **changes))
        return train.parse_arguments(words[2:])

    for arguments in (settings, [*own, *settings]):
        lower = suggested(arguments, stage="transfer", lr="0.5", restart=True)
        assert train.choose_recipe(lower).for_stage("transfer").lr == 0.5
        lower = suggested(arguments, stage="finetune", lr="0.5", restart=True)
        recipe = train.choose_recipe(lower).for_stage("finetune")
        assert (recipe.lr, recipe.epochs) == (0.5, 7)
        again = suggested(arguments, stage="scratch", restart=True)
        assert (again.lr, again.base, again.finetune_lr) == (0.1, None, None)
        assert suggested(arguments, restart=True).finetune_epochs == 7
    lower = suggested(["--stage", "transfer", "--transfer-lr", "5"], stage="transfer", lr="0.5")
    assert train.choose_recipe(lower).for_stage("transfer").lr == 0.5


def test_classes_in_the_default_folder_are_own_classes_too(
    own_classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(own_classes, "data")
    assert main([]) == 2
    assert "name the base model whose features to use" in capsys.readouterr().err


def test_command_repeats_what_was_given() -> None:
    arguments = ["--stage", "base", "--data", "my data.npz", "--lr", "0.1", "--restart"]
    options = train.make_parser().parse_args(arguments)
    assert isinstance(options, argparse.Namespace)
    expected = "python train.py --stage base --data 'my data.npz' --lr 0.1"
    assert train.command(options, restart=False) == expected
    assert train.command(options) == expected + " --restart"


# As a process


def test_help_and_wrong_usage_do_not_import_torch() -> None:
    script = (
        "import sys, train\n"
        "assert train.main(['--epochs', 'x']) == 2\n"
        "try: train.main(['--help'])\n"
        "except SystemExit as error: assert error.code == 0\n"
        "assert not {'torch', 'numpy', 'cifar_tl'} & set(sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, capture_output=True)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_bars_on_a_terminal_plain_lines_elsewhere(small_npz: Path, own_classes: Path) -> None:
    import fcntl
    import pty
    import termios

    assert main(["--stage", "base", "--data", str(small_npz), *FAST]) == 0
    reader, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    os.set_blocking(reader, False)  # fail rather than wait
    process = subprocess.run(
        [
            sys.executable,
            str(ROOT / "train.py"),
            "--data",
            str(own_classes),
            "--stage",
            "transfer",
            "--base",
            "runs/small.npz/base/model.pt",
            *FAST,
        ],
        stdout=subprocess.PIPE,
        stderr=terminal,
        check=True,
        text=True,
    )
    bars = os.read(reader, 100_000).decode("ascii")
    os.close(terminal)
    os.close(reader)
    for name in ("images", "transfer features", "transfer 1/2", "transfer 2/2"):
        assert f"\r{name}:   0%|  " in bars
    assert "\r" not in process.stdout
    assert process.stdout.count("transfer: epoch ") == 2


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_interrupted_command_says_how_to_go_on_and_ends_with_the_same_bytes(
    small_npz: Path,
) -> None:
    arguments = ["--stage", "base", "--data", str(small_npz), "--epochs", "12"]
    command = [sys.executable, str(ROOT / "train.py"), *arguments, "--threads", "1"]
    process = subprocess.Popen(
        [*command, "--restart"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell in the background ignores the signal, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "epoch  2/12" in line:
            process.send_signal(signal.SIGINT)
            break
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "interrupted" in errors
    go_on = remedy(errors)
    assert "--restart" not in go_on
    folder = Path("runs/small.npz/base")
    assert not (folder / "model.pt").exists()
    done = len((folder / "history.csv").read_text().splitlines()) - 1
    assert 2 <= done < 12
    resumed = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *go_on], capture_output=True, text=True, check=True
    )
    assert "going on after epoch" in resumed.stdout
    subprocess.run([*command, "--output-dir", "whole"], check=True, capture_output=True)
    for name in ("model.pt", "last.pt"):
        whole = Path("whole/small.npz/base") / name
        assert (folder / name).read_bytes() == whole.read_bytes()
