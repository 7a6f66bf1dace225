"""The command, run in-process with real arguments, and as a real process where that matters."""

import hashlib
import json
import os
import shlex
import shutil
import signal
import statistics
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

import cifar_tl
from cifar_tl.command import evaluate, predict
from cifar_tl.command.train import main
from cifar_tl.experiment.stages import STAGES, way_name
from tests.command.conftest import remedy, start_and_hold
from tests.forked import Command, one_line

FAST = ["--epochs", "2", "--batch-size", "50"]


def result(path: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(path).read_text())
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
    assert output.count("epoch 1/1") == 1  # of finetuning, two fifths
    assert f"Everything was written to {folder}" in output
    text = (folder / "comparison.txt").read_text()
    assert text in output
    comparison = result("runs/small.npz/comparison.json")
    assert comparison["data"] == "small.npz"
    assert list(comparison["sizes"][0]["stages"]) == ["base", "transfer", "finetune", "scratch"]
    for stage in STAGES:
        stage_result = result(f"runs/small.npz/{stage}/result.json")
        assert f"{100 * stage_result['val_accuracy']:.2f} %" in text
        assert f"{100 * stage_result['test_accuracy']:.2f} %" in text
    # Again: everything is finished, nothing is trained, and the same is said.
    assert main(["--data", str(small_npz), *FAST]) == 0
    again, errors = capsys.readouterr()
    assert errors == ""
    assert "epoch" not in again.replace("epochs", "").replace("s/epoch", "").replace(
        "each epoch", ""
    )
    assert text in again
    assert output.splitlines()[-1] == again.splitlines()[-1]


def test_single_stages_build_on_each_other(
    small_npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for stage in STAGES:
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
    assert found["environment"]["threads"] == 1
    assert not Path("runs").exists()


def test_what_a_stage_has_of_its_own_is_meant_only_where_it_is_named(small_npz: Path) -> None:
    settings = ["--data", str(small_npz), "--lr", "0.01", *FAST]
    assert main([*settings, "--finetune-epochs", "3"]) == 0
    found = {s: result(f"runs/small.npz/{s}/result.json") for s in STAGES}
    finetune_lr = 0.04 * (80 / 5000) ** 0.5
    assert [found[s]["lr"] for s in STAGES] == pytest.approx(
        [0.01, 0.05 * (50 / 500) ** 0.5, finetune_lr, 0.01]
    )
    assert [found[s]["epochs"] for s in STAGES] == [2, 2, 3, 2]
    assert [found[s]["batch_size"] for s in STAGES] == [50, 50, 50, 50]
    for stage in ("transfer", "finetune"):
        assert main(["--stage", stage, "--restart", *settings]) == 0
        again = result(f"runs/small.npz/{stage}/result.json")
        assert (again["lr"], again["epochs"], again["batch_size"]) == (0.01, 2, 50)


def test_any_classes_have_a_folder_of_their_own(
    small_npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["--data", str(small_npz), "--base-classes", "dog,cat,4", *FAST]
    assert main([*chosen, "--new-classes", "ship,truck"]) == 0
    output = capsys.readouterr().out
    assert "base: 48 training and 12 validation images of classes 3-5" in output
    assert "transfer: 32 training and 8 validation images of classes 8, 9" in output
    assert Path("runs/small.npz-345-89/comparison.txt").exists()
    found = result("runs/small.npz-345-89/base/result.json")
    assert found["class_names"] == ["cat", "deer", "dog"]
    model = "runs/small.npz-345-89/base/model.pt"
    arguments = [model, "--data", str(small_npz), "--split", "validation"]
    assert evaluate.main(arguments) == 0
    output = capsys.readouterr().out
    assert f"on 12 validation images of small.npz: accuracy {found['val_accuracy']:.2%}" in output


def test_a_base_of_all_classes_is_made_alone(
    small_npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["--data", str(small_npz), "--base-classes", "all", *FAST]
    assert main(chosen) == 0
    assert [path.name for path in Path("runs/small.npz-all").iterdir()] == ["base"]
    assert main([*chosen, "--stage", "scratch"]) == 2
    assert "--stage scratch has nothing to learn: no class is a new one" in one_line(
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--base-classes", "cow,cat"], "base classes: there is no class 'cow': choose among 0"),
        (["--new-classes", "3,cat"], "new classes: 3 cat is there twice"),
        (["--data", "shapes", "--new-classes", "cat,dog"], "there is no class 'cat'"),
        (["--base-classes", "all", "--stage", "transfer"], "transfer has nothing to learn"),
        (["--data", "own", "--new-classes", "0,1"], "those of own are all learned"),
    ],
)
def test_classes_that_cannot_be_are_refused_without_torch(
    arguments: list[str], message: str, own_classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(own_classes, "own")
    assert main(arguments) == 2
    assert message in one_line(capsys.readouterr().err)
    assert not Path("runs").exists()


def test_own_classes_from_a_base_model_to_a_prediction(
    small_npz: Path, own_classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--stage", "base", "--data", str(small_npz), *FAST]) == 0
    own = ["--data", str(own_classes), "--epochs", "8", "--finetune-epochs", "1"]
    own += ["--base", "runs/small.npz/base/model.pt"]
    assert main(own) == 0
    output = capsys.readouterr().out
    assert "The base model was there before" in output
    assert not Path("runs/own/base").exists()
    comparison = json.loads(Path("runs/own/comparison.json").read_text())
    (of_seed,) = comparison["sizes"][0]["seeds"]
    accuracies = {name: stage["val_accuracy"] for name, stage in of_seed["stages"].items()}
    # The last line is the next command. It names the best model, or the cheapest of its equals.
    last = output.splitlines()[-1]
    named = last.rpartition(" --model runs/own/")[2].removesuffix("/model.pt")
    best = max(accuracies, key=lambda name: accuracies[name])
    unclear = {
        frozenset(found[side].rpartition("+")[2] for side in ("way", "other"))
        for found in comparison["sizes"][0]["differences"]
        if not found["val_accuracy"]["is_clear"]
    }
    equals = {name for name in accuracies if name == best or {name, best} in unclear}
    assert named == min(equals, key=lambda name: of_seed["ways"][way_name(name)]["seconds"])
    assert last.startswith("Try it: " if len(equals) == 1 else "Try it (of ")
    command = last.partition(": cifar-tl predict ")[2]
    shutil.copy(next((own_classes / "train" / "ash").iterdir()), "photo.jpg")
    assert predict.main(shlex.split(command)) == 0
    assert "photo.jpg: " in capsys.readouterr().out
    assert set(of_seed["stages"]) == {"transfer", "finetune", "scratch"}
    assert comparison["sizes"][0]["ways"]["transfer"]["seconds_base"] is None
    assert main(own) == 0
    assert capsys.readouterr().out.count("finished before") == 3
    model = "runs/own/transfer/model.pt"
    assert predict.main([str(own_classes / "train" / "ash"), "--model", model, "--top", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.partition(": ")[2].startswith("ash ") for line in lines) > len(lines) / 2


def test_unequal_classes_are_said_and_the_mean_over_classes_decides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second class cannot be told from the first: both are noise."""
    generator = np.random.default_rng(0)
    for name, number in (("good", 60), ("defect", 5)):
        (tmp_path / "parts/train" / name).mkdir(parents=True)
        for place in range(number):
            pixels = generator.integers(256, size=(32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"parts/train/{name}/{place:02}.png")
    own = ["--data", "parts", "--epochs", "2", "--finetune-epochs", "1"]
    assert main([*own, "--class-balance", "off"]) == 0
    output = capsys.readouterr().out
    for stage in ("transfer", "finetune", "scratch"):
        line = f"{stage}: unequal classes: good 48, defect 4 training images; always saying the "
        line += (
            "most frequent class is right for 92.31% of the validation images; training aims at "
        )
        assert f"{line}the plain accuracy" in output
        found = result(f"runs/parts/{stage}/result.json")
        assert found["val_majority"] == pytest.approx(12 / 13)
        (good, defect), mean = found["val_class_accuracies"][::-1], found["val_balanced_accuracy"]
        assert mean == (good + defect) / 2
        said = f"validation accuracy {found['val_accuracy']:.2%} ("
        assert said in output
        assert f", mean over classes {mean:.2%} (" in output
        predicted = sum(row[0] for row in found["val_confusion"])
        line = next(x for x in output.splitlines() if x.startswith(f"{stage} on parts"))
        assert ("; never predicted: defect;" in line) is (predicted == 0)
    assert "always the most frequent class 92.31%" in output
    means = {
        stage: result(f"runs/parts/{stage}/result.json")["val_balanced_accuracy"]
        for stage in ("transfer", "finetune", "scratch")
    }
    best = max(means, key=lambda stage: means[stage])
    last = output.splitlines()[-1]
    assert f"--model runs/parts/{best}/model.pt" in last or "without a clear difference" in last
    assert "the mean over classes decides" in output
    assert main(own) == 1
    errors = one_line(capsys.readouterr().err)
    assert "settings (class_balance off there, even now)" in errors
    assert main(remedy(errors)) == 0
    output = capsys.readouterr().out
    assert "training aims at the mean over classes" in output


def test_deep_pictures_are_asked_about_as_they_were_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    for number in range(30):
        for name, low in (("dark", 0), ("bright", 2200)):
            values = low + random.integers(1800, size=(32, 32))
            path = tmp_path / "camera" / "train" / name / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values.astype(np.uint16)).save(path)
    command = ["--data", "camera", "--stage", "scratch", "--epochs", "8", "--batch-size", "8"]
    assert main(command) == 0
    output, errors = capsys.readouterr()
    assert "in all that hold integers, 4095 is taken for white, and the model" in one_line(errors)
    assert "validation accuracy 100.00%" in output
    assert result("runs/camera/scratch/result.json")["white"] == {"integers": 4095}
    model = ["--model", "runs/camera/scratch/model.pt", "--top", "1"]
    for name in ("dark", "bright"):  # the bright ones alone would have another white
        assert predict.main([f"camera/train/{name}/00.png", *model]) == 0
        assert f".png: {name} " in capsys.readouterr().out
    Image.fromarray(np.full((32, 32), 9000, np.uint16)).save("brighter.png")
    assert predict.main(["brighter.png", *model]) == 1
    assert "values up to 9000, where 4095 is white" in one_line(capsys.readouterr().err)
    shutil.copytree("camera/train", "other/train")
    Image.fromarray(np.full((32, 32), 9000, np.uint16)).save("other/train/dark/x.png")
    arguments = ["runs/camera/scratch/model.pt", "--data", "other"]
    assert evaluate.main([*arguments, "--split", "validation"]) == 1
    assert "x.png has values up to 9000, where 4095 is white in what the model" in one_line(
        capsys.readouterr().err
    )
    shutil.copytree("camera/train/dark", "dark/test/dark")  # which alone would have another white
    shutil.copytree("camera/train/bright", "dark/test/bright")
    for path in Path("dark/test/bright").iterdir():
        path.unlink()
        Image.fromarray(np.full((32, 32), 3000, np.uint16)).save(path)
    shutil.copytree("camera/train", "dark/train")
    assert evaluate.main(["runs/camera/scratch/model.pt", "--data", "dark"]) == 0
    assert "accuracy 100.00%" in capsys.readouterr().out


@pytest.mark.parametrize(("flag", "used"), [("--mirror", True), ("--no-mirror", False)])
def test_mirror_images_can_be_had_and_not(
    small_npz: Path, own_classes: Path, flag: str, used: bool
) -> None:
    for source in (small_npz, own_classes):
        assert main(["--data", str(source), "--stage", "scratch", "--epochs", "1", flag]) == 0
        assert result(f"runs/{source.name}/scratch/result.json")["mirror"] is used
    words = ["--stage", "base", "--recipe", "original", "--epochs", "1", flag]
    assert main([*words, "--data", str(small_npz)]) == 0
    assert result("runs/small.npz/base/result.json")["mirror"] is used


def test_a_fraction_of_the_new_images_on_a_base_of_all(
    small_npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--data", str(small_npz), "--train-fraction", "0.25", "--epochs", "2"]
    assert main([*settings, "--stage", "transfer"]) == 1  # there is no base yet
    assert main(remedy(capsys.readouterr().err)) == 0
    assert main(settings) == 0
    folder = Path("runs/small.npz")
    folders = {stage: "." if stage == "base" else "fraction-0.25" for stage in STAGES}
    images = {
        stage: result(f"{folder}/{stage}/{of}/result.json")["images_train"]
        for stage, of in folders.items()
    }
    assert images == {"base": 80, "transfer": 20, "finetune": 20, "scratch": 20}


SEVERAL = ["--epochs", "2", "--batch-size", "50", "--train-fraction", "1,0.5"]


def test_several_seeds_and_sizes_have_folders_of_their_own(
    tiny_npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--data", str(tiny_npz), *SEVERAL]
    assert main([*command, "--seed", "3", "--seeds", "2"]) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    folder = Path("runs/tiny.npz")
    found = sorted(str(path.parent.relative_to(folder)) for path in folder.rglob("result.json"))
    expected = [
        f"{stage}{fraction}/seed-{seed}"
        for stage in STAGES
        for fraction in (("",) if stage == "base" else ("", "/fraction-0.5"))
        for seed in (3, 4)
    ]
    assert found == sorted(expected)  # and only runs have a result.json
    for path in found:
        of_run = result(str(folder / path / "result.json"))
        assert of_run["seed"] == int(path[-1])
        assert of_run["train_fraction"] == (0.5 if "fraction" in path else 1)
        digest = hashlib.sha256((folder / f"base/seed-{path[-1]}/model.pt").read_bytes())
        if path.startswith("transfer"):
            assert of_run["parent"] == digest.hexdigest()
    assert output.count("base: epoch 2/2") == 2  # once a seed
    text = (folder / "comparison.txt").read_text()
    assert text in output
    comparison = result(str(folder / "comparison.json"))
    half, whole = comparison["sizes"]
    assert [seed["seed"] for seed in half["seeds"]] == [3, 4]
    assert (half["images_train"], whole["images_train"]) == (10, 20)
    values = [result(f"{folder}/scratch/seed-{s}/result.json")["val_accuracy"] for s in (3, 4)]
    assert whole["ways"]["scratch"]["val_accuracy"]["values"] == values
    # One seed more: what is there is kept, and the same is said of it.
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("model.pt")}
    assert main([*command, "--seed", "3", "--seeds", "3"]) == 0
    assert capsys.readouterr().out.count("finished before") == 14
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(folder.rglob("model.pt"))) == 21
    # A plain run is apart.
    assert main(["--data", str(tiny_npz), *FAST]) == 0
    assert len(list(folder.rglob("model.pt"))) == 25


def test_seeds_of_one_stage_have_a_mean(
    small_npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--data", str(small_npz), *SEVERAL, "--seeds", "2", "--stage", "scratch"]
    assert main(command) == 0
    *_, half, whole, pictures = capsys.readouterr().out.splitlines()
    values = [
        100 * result(f"runs/small.npz/scratch/seed-{seed}/result.json")["val_accuracy"]
        for seed in (0, 1)
    ]
    mean, deviation = statistics.mean(values), statistics.stdev(values)
    assert whole == f"scratch: validation accuracy {mean:.2f} +- {deviation:.2f} %, of 2 seeds"
    assert half.startswith("scratch on 50 % of its images: validation accuracy ")
    assert "For pictures" in pictures
    assert not Path("runs/small.npz/comparison.txt").exists()


@pytest.mark.slow
def test_interrupted_among_seeds_it_goes_on_to_the_same_bytes(
    zygote: subprocess.Popen[str], tiny_npz: Path
) -> None:
    command = ["train", "--data", str(tiny_npz), *SEVERAL, "--seeds", "2", "--threads", "1"]
    cut = Command(zygote, [*command, "--output-dir", "cut"])
    cut.wait_until_printed("finetune: epoch 1/1", times=3)  # of seed 1, half of the images
    cut.send(signal.SIGINT)
    assert "To go on: " in cut.end(130)
    assert len(list(Path("cut").rglob("model.pt"))) < 14
    assert Command(zygote, [*command, "--output-dir", "cut"]).exit_code() == 0
    assert Command(zygote, [*command, "--output-dir", "whole"]).exit_code() == 0
    models = sorted(path.relative_to("whole") for path in Path("whole").rglob("*.pt"))
    assert len(models) == 28
    for path in models:
        assert ("cut" / path).read_bytes() == ("whole" / path).read_bytes()


def test_the_advice_for_one_of_several_is_for_it_alone(
    small_npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--data", str(small_npz), *FAST, "--seeds", "2", "--stage", "base"]
    assert main(command) == 0
    Path("runs/small.npz/base/seed-1/last.pt").unlink()
    Path("runs/small.npz/base/seed-1/model.pt").write_bytes(b"damaged")
    capsys.readouterr()
    transfer = [*command[:-1], "transfer"]
    assert main(transfer) == 1
    advice = remedy(capsys.readouterr().err)
    assert {"--seed", "1", "--seeds", "--restart"} <= set(advice)
    kept = Path("runs/small.npz/base/seed-0/model.pt").stat().st_mtime_ns
    assert main(advice) == 0
    assert Path("runs/small.npz/base/seed-0/model.pt").stat().st_mtime_ns == kept
    assert main(transfer) == 0


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
    weights = (model.get_parameter("features.conv1.weight") for model in (transfer, expected))
    assert torch.equal(*weights)


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
    assert main(["--epochs", "1", "--stage", "scratch", "--train-fraction", "0.01"]) == 0
    output, errors = capsys.readouterr()
    assert "THIS RUN USES THE BUILT-IN SHAPES INSTEAD" in errors
    assert "cannot be downloaded" in errors
    assert "cifar-10-python.tar.gz" in errors  # where a manual download goes
    assert "data: shapes (built-in drawn shapes)" in output
    assert {path.name for path in Path("runs").iterdir()} == {"shapes", "runs.csv"}
    assert result("runs/shapes/scratch/fraction-0.01/result.json")["data"] == "shapes"
    assert "on shapes" in Path("runs/shapes/scratch/fraction-0.01/results.txt").read_text()


@pytest.mark.parametrize("source", ["data", "folder"])
def test_named_data_is_never_substituted(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("folder").mkdir()
    assert main(["--data", source, *FAST]) == 1
    errors = capsys.readouterr().err
    assert f"cifar-tl train: CIFAR-10 is not in {source} and cannot be downloaded" in errors
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
        (["--device", "hpu"], "--device hpu: cannot be used here"),
        (["--device", "toaster"], "--device toaster: cannot be used here"),
        (["--device", "meta"], "--device meta: cannot be used here"),
        (["--output-dir", "file.txt"], "--output-dir file.txt: nothing can be written there"),
        (["--output-dir", "file.txt/x"], "--output-dir file.txt/x: nothing can be written there"),
    ],
)
def test_what_cannot_be_used_here_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file.txt").write_text("")
    assert main(arguments) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert message in errors
    assert errors.startswith("cifar-tl train: ")
    assert len(errors.splitlines()) == 1


def test_every_remedy_works_as_it_is_printed(
    small_npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(small_npz, "my.npz")
    settings = ["--data", "my.npz", *FAST]
    transfer = ["--stage", "transfer", *settings]
    assert main(transfer) == 1
    base = remedy(capsys.readouterr().err)
    assert "--stage base" in " ".join(base)
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
    assert "--stage scratch" in " ".join(remedy(capsys.readouterr().err))


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
        ([], "data is no source of images: name a folder with CIFAR-10; "),
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
    assert "in epoch 1 with lr 5e+29 and weight_decay " in errors  # in batches of 50, not 200
    assert "try a lower learning rate" in errors
    assert main(remedy(errors)) == 1
    assert "with lr 5e+28" in capsys.readouterr().err


def test_too_much_weight_decay_is_called_so(
    small_npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["--stage", "base", "--epochs", "1", "--data", str(small_npz)]
    assert main([*train, "--weight-decay", "1e6"]) == 1
    errors = capsys.readouterr().err
    assert "try a lower weight decay: cifar-tl train" in errors
    assert main(remedy(errors)) == 0


# As a process


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_bars_on_a_terminal_plain_lines_elsewhere(
    zygote: subprocess.Popen[str], own_classes: Path
) -> None:
    import fcntl
    import pty
    import termios

    reader, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    os.set_blocking(reader, False)  # fail rather than wait
    errors_to_it = f"sys.stderr = open({os.ttyname(terminal)!r}, 'w')"
    arguments = ["train", "--data", str(own_classes), "--stage", "transfer", *FAST]
    assert Command(zygote, arguments, before=errors_to_it).exit_code() == 0
    bars = os.read(reader, 100_000).decode("ascii")
    os.close(terminal)
    os.close(reader)
    for name in ("images", "transfer features", "transfer 1/2", "transfer 2/2"):
        assert f"\r{name}:   0%|  " in bars
    output = Path("out.txt").read_text()
    assert "\r" not in output
    assert output.count("transfer: epoch ") == 2


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_interrupted_command_says_how_to_go_on_and_ends_with_the_same_bytes(
    zygote: subprocess.Popen[str], tiny_npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--stage", "base", "--data", str(tiny_npz), "--epochs", "4"]
    process = start_and_hold(zygote, [*arguments, "--restart"], 5)  # in the second epoch
    process.send(signal.SIGINT)
    Path("go").touch()
    errors = process.end(130)
    assert errors.startswith("cifar-tl train: interrupted")
    program, command, *go_on = shlex.split(errors.partition("To go on: ")[2])
    assert (program, command) == ("cifar-tl", "train")
    assert "--restart" not in go_on
    assert not Path("runs/tiny.npz/base/model.pt").exists()
    assert main(go_on) == 0
    assert "going on after epoch 1" in capsys.readouterr().out
    assert main([*arguments, "--output-dir", "whole"]) == 0
    for name in ("model.pt", "last.pt"):
        found, whole = (Path(folder, "tiny.npz/base", name) for folder in ("runs", "whole"))
        assert found.read_bytes() == whole.read_bytes()


def test_large_pictures_name_a_network_that_sees_more(
    own_classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["--stage", "transfer", *FAST]
    assert main(["--data", str(own_classes), *train]) == 0  # shorter sides of 40 to 50 pixels
    assert "--base" not in capsys.readouterr().out
    for path in own_classes.rglob("*.*"):
        if not path.is_file():
            continue
        large = tmp_path / "large" / path.relative_to(own_classes)
        large.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            image.resize((100, 80)).save(large)
    assert main(["--data", "large", *train]) == 0
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith("The shorter side of these pictures has 80 pixels, and cifar10 sees 32.")
    assert " --data large " in last
    assert "--stage" not in last
    assert " --base cifar10,mobilenet_v3_small (downloads 9.8 MB" in last
    # Who has named a base has chosen.
    assert main(["--data", "large", "--base", "cifar5", "--restart", *train]) == 0
    assert "The shorter side" not in capsys.readouterr().out
