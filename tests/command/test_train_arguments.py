import argparse
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from cifar_tl.command.evaluate import main as evaluate
from cifar_tl.command.train import main
from cifar_tl.command.train_arguments import (
    check_arguments,
    choose_recipe,
)
from cifar_tl.command.train_parser import make_parser, write_command
from cifar_tl.data.pictures import kept, read
from cifar_tl.frame import CIFAR_FRAME


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs: must be a whole number from 1 to 1000000, not '0'"),
        (["--epochs", "2.5"], "--epochs: must be a whole number"),
        (["--batch-size", "-1"], "--batch-size: must be a whole number from 1"),
        (["--lr", "0"], "--lr: must be a number above 0"),
        (["--lr", "nan"], "--lr: must be a number above 0 and at most 1e30, not 'nan'"),
        (["--lr", "1e39"], "--lr: must be a number above 0 and at most 1e30, not '1e39'"),
        (["--data", ""], "--data: is empty"),
        (["--lr", "fast"], "--lr: must be a number"),
        (["--weight-decay", "-1"], "--weight-decay: must be a number from 0"),
        (["--weight-decay", "inf"], "--weight-decay: must be a number"),
        (["--seed", "-1"], "--seed: must be a whole number from 0"),
        (["--threads", "0"], "--threads: must be a whole number from 1 to 256"),
        (["--threads", "100000"], "--threads: must be a whole number from 1 to 256"),
        (["--stage", "all-of-it"], "--stage: invalid choice"),
        (["--recipe", "secret"], "--recipe: invalid choice"),
        (
            ["--data", "https://a.org/b.npz"],
            "--data: https://a.org/b.npz is an address: download it",
        ),
        (["--base", "cifar5,HTTP://a.org/b"], "--base: HTTP://a.org/b is an address: download it"),
        (["--base", "timm/x", "--weights", "s3://a/b"], "--weights: s3://a/b is an address: down"),
        (["--data", "dta"], "--data dta: there is no such file or folder"),
        (["--data", "file.txt"], "--data file.txt is no source of images: name a folder"),
        (["--base", "file.txt"], "add --stage transfer"),
        (["--stage", "transfer", "--base", "none.pt"], "--base none.pt: there is no such file"),
        (["--train-fraction", "0"], "--train-fraction: must be a number above 0 and at most 1"),
        (["--train-fraction", "1.5"], "--train-fraction: must be a number above 0 and at most 1"),
        (["--train-fraction", ".5", "--stage", "base"], "base trains on all its images"),
        (["--train-fraction", "0.1,1,0.1"], "--train-fraction: names a fraction twice"),
        (["--train-fraction", ","], "--train-fraction: must be a number"),
        (["--seeds", "0"], "--seeds: must be a whole number from 1 to 1000"),
        (["--base-classes", ","], "base classes: there is no class ''"),
        (["--new-classes", "dog"], "new classes: there must be at least two, not 5 dog"),
        (["--base-classes", "0,1", "--new-classes", "1,2"], "both have 1 automobile"),
        (
            ["--data", "pictures"],
            "--data pictures holds only one class, a: there must be two or more",
        ),
        (
            ["--data", "pictures/a"],
            "--data pictures/a holds 1 image and no folders for classes: move",
        ),
        (["--stage", "base", "--finetune-lr", "1"], "--finetune-lr is for finetune: leave it out"),
        (
            ["--stage", "transfer", "--transfer-batch-size", "5", "--batch-size", "5"],
            "--transfer-batch-size and --batch-size mean the same here: leave out one",
        ),
        (
            ["--data", "shapes", "--no-picture-cache"],
            "--no-picture-cache is for folders of image files: leave it out",
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
    assert errors.startswith("cifar-tl train: ")
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stage", "scratch", "--base", "model.pt"], "add --stage transfer"),
        (["--base", "cifar1.pt"], "--base cifar1.pt: there is no such file"),
        (["--base", "cifar1"], "there is no file and no network cifar1: maybe cifar10 or cifar5"),
    ],
)
def test_a_base_that_cannot_be_is_refused(
    own_classes: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--data", str(own_classes), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_classes_in_the_default_folder_are_own_classes_too(
    own_classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(own_classes, "data")
    assert main(["--stage", "transfer", "--epochs", "1"]) == 0
    assert "transfer on data: validation accuracy" in capsys.readouterr().out


def test_decoded_pictures_are_kept_for_the_next_commands(
    own_classes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kept, "SETTLED", 0.0)  # else files of the last two seconds are not trusted
    shutil.copytree(own_classes, "own")
    arguments = ["--data", "own", "--stage", "transfer", "--epochs", "1"]
    assert main([*arguments, "--no-picture-cache", "--output-dir", "plain"]) == 0
    assert "decoded pictures" not in capsys.readouterr().out
    assert not Path("plain/own/pictures").exists()
    assert main(arguments) == 0
    cache = Path("runs/own/pictures/32-crop.pictures")
    size = f"{cache.stat().st_size / 1e6:.1f} MB"
    assert f"decoded pictures are kept in runs/own/pictures ({size})\n" in capsys.readouterr().out
    model, plain = (Path(f"{name}/own/transfer/model.pt") for name in ("runs", "plain"))
    assert model.read_bytes() == plain.read_bytes()
    # Other pixels under the same key: who takes them has not read the files again.
    what = read._what_decides(CIFAR_FRAME)
    dark = {
        path: found._replace(pixels=found.pixels // 2)
        for path, found in kept._read(cache, 32, what).items()
    }
    kept._write(cache, what, dark)
    figures = []
    for path in (model, plain):
        assert evaluate([str(path), "--data", "own", "--split", "validation", "--json"]) == 0
        figures.append(json.loads(capsys.readouterr().out)["loss"])
    assert figures[0] != figures[1]
    written = cache.stat().st_mtime_ns
    assert main([*arguments, "--seed", "1", "--seeds", "1"]) == 0
    assert cache.stat().st_mtime_ns == written


def parsed(arguments: list[str]) -> argparse.Namespace:
    options = make_parser().parse_args(arguments)
    check_arguments(options)
    return options


def test_suggested_commands_are_understood_and_mean_what_they_should(own_classes: Path) -> None:
    Path("base.pt").touch()
    own = ["--data", str(own_classes), "--base", "base.pt"]
    settings = ["--lr", "0.1", "--transfer-lr", "5", "--finetune-lr", "6", "--finetune-epochs", "7"]
    settings += ["--shift", "3", "--transfer-shift", "0"]

    def suggested(arguments: list[str], **changes: Any) -> argparse.Namespace:
        words = shlex.split(write_command(parsed(arguments), **changes))
        return parsed(words[2:])

    for arguments in (settings, [*own, *settings]):
        lower = suggested(arguments, stage="transfer", lr="0.5", restart=True)
        plan = choose_recipe(lower).for_stage("transfer", 200)
        assert (choose_recipe(lower).transfer_lr, plan.shift, plan.view_shift) == (0.5, 0, 0)
        lower = suggested(arguments, stage="finetune", lr="0.5", restart=True)
        plan = choose_recipe(lower).for_stage("finetune", 20_000)
        assert (plan.lr, plan.epochs, plan.shift) == (0.5, 7, 3)
        again = suggested(arguments, stage="scratch", restart=True)
        assert (again.lr, again.base, again.finetune_lr) == (0.1, None, None)
        assert suggested(arguments, restart=True).finetune_epochs == 7
    lower = suggested(["--stage", "transfer", "--transfer-lr", "5"], stage="transfer", lr="0.5")
    assert choose_recipe(lower).transfer_lr == 0.5
    for flag in ("--shift", "--transfer-shift"):
        assert choose_recipe(parsed(["--stage", "transfer", flag, "1"])).transfer_shift == 1


def test_command_repeats_whether_to_mirror() -> None:
    for flag in ("--mirror", "--no-mirror"):
        options = make_parser().parse_args(["--data", "shapes", flag])
        assert write_command(options) == f"cifar-tl train --data shapes {flag}"
        assert choose_recipe(options).mirror is (flag == "--mirror")
    assert choose_recipe(make_parser().parse_args([])).mirror is None


def test_command_repeats_what_was_given() -> None:
    arguments = ["--stage", "base", "--data", "my data.npz", "--lr", "0.1", "--restart"]
    options = make_parser().parse_args(arguments)
    assert isinstance(options, argparse.Namespace)
    expected = "cifar-tl train --data 'my data.npz' --stage base --lr 0.1"
    assert write_command(options, restart=False) == expected
    assert write_command(options) == expected + " --restart"
