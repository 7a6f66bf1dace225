"""A pretrained network as base, by the command: real files of weights, whose weights are random."""

import contextlib
import errno
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import get_model, get_model_weights

from cifar_tl.checkpoint import load_checkpoint, load_model, save_checkpoint, save_model
from cifar_tl.command import evaluate, export, predict
from cifar_tl.command.train import main
from cifar_tl.command.train_arguments import check_arguments
from cifar_tl.command.train_parser import ALL, make_parser, write_command
from cifar_tl.data.pictures.read import read_image
from cifar_tl.frame import CIFAR_MEAN, cifar_frame
from cifar_tl.published import load_backbone
from tests.command.conftest import start_and_hold
from tests.forked import Command, one_line
from tests.processes.launched import in_all

NAME = "mobilenet_v3_small"
OPTIONS = ["--epochs", "2", "--precision", "float32", "--threads", "1"]
needs_fork = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX processes")


def save_pictures(folder: Path, part: str, number: int) -> None:
    """Writes pictures of two classes, which differ in colour; of each, one smaller than seen."""
    generator = np.random.default_rng(len(part))
    for name, colour in (("daisy", (200, 190, 60)), ("rose", (190, 40, 60))):
        (folder / part / name).mkdir(parents=True)
        for count in range(number):
            shape = ((20, 30), (240, 300), (260, 230))[count % 3]
            coarse = generator.integers(-40, 40, (5, 6, 3)) + colour
            pixels = Image.fromarray(coarse.clip(0, 255).astype(np.uint8))
            pixels.resize(shape).save(folder / part / name / f"{count}.png")


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights, but statistics of images: without them, all pictures look the same."""
    with torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(0)
        network = get_model(NAME, weights=None)
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 1.0
        coarse = torch.randn(16, 3, 5, 6)
        network.train()(nn.functional.interpolate(coarse, (96, 96), mode="bicubic"))
    path = tmp_path_factory.mktemp("weights") / "own weights.pth"
    torch.save(network.state_dict(), path)
    return str(path)


@pytest.fixture(scope="session")
def flowers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "flowers"
    save_pictures(folder, "train", 6)
    save_pictures(folder, "test", 1)
    return folder


@pytest.fixture(scope="session")
def arguments(flowers: Path, weights: str) -> list[str]:
    return ["--data", str(flowers), "--base", NAME, "--weights", weights, *OPTIONS]


@pytest.fixture(scope="session")
def trained(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with the results, and what was printed."""
    runs, printed = tmp_path_factory.mktemp("trained"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setitem(sys.modules, "matplotlib", None)  # pictures take a second a stage
        assert main([*arguments, "--output-dir", str(runs)]) == 0
    return runs / "flowers", printed.getvalue()


@pytest.fixture(scope="session")
def model(trained: tuple[Path, str]) -> str:
    return str(trained[0] / NAME / "transfer/model.pt")


def test_files_are_where_they_should_be_and_say_what_they_are_of(
    trained: tuple[Path, str], weights: str
) -> None:
    folder, printed = trained
    names = {str(path.relative_to(folder)) for path in folder.rglob("*.*")}
    of_run = ("history.csv", "last.pt", "model.pt", "result.json", "results.txt")
    ran = (f"{NAME}/transfer", f"{NAME}/finetune", "scratch")
    expected = {f"{stage}/{name}" for stage in ran for name in of_run}
    expected |= {f"{NAME}/{name}" for name in ("comparison.json", "comparison.txt", "report.html")}
    keys = list((folder / "features").iterdir())  # features, maps for finetune, decoded pictures
    assert len(keys) == 3
    for key in keys:
        parts = ("train", "validation", "test")
        expected |= {f"features/{key.name}/{part}-1-views-0-00000.pt" for part in parts}
        expected.add(f"features/{key.name}/about.json")
    # Pictures that were made less than two seconds before are not kept.
    assert names - {"pictures/32-crop.pictures"} == expected

    assert f"base: {NAME}, weights {weights}, images of 224 pixels" in printed
    assert f"from {NAME}, 2 epochs" in printed
    assert f"predict photo.jpg --model {shlex.quote(str(folder))}" in printed.splitlines()[-1]
    result = json.loads((folder / NAME / "transfer/result.json").read_text())
    assert (result["backbone"], result["fit"]) == (NAME, "crop")
    assert result["backbone_source"]["weights"] == weights
    assert result["parameters_trainable"] == (1024 + 1) * 128 + (128 + 1) * 2
    text = (folder / NAME / "transfer/results.txt").read_text()
    assert f"From the pretrained network {NAME}, fit crop\n  weights: {weights}\n" in text
    assert f"sha256: {result['backbone_source']['sha256']}" in text
    assert "backbone" not in json.loads((folder / "scratch/result.json").read_text())

    last = load_checkpoint(folder / NAME / "transfer/last.pt")
    names = {f"linear{n}.{part}" for n in (1, 2) for part in ("weight", "bias")}
    assert set(last["model"]) == names


def test_again_is_finished_and_a_restart_reads_the_features(
    trained: tuple[Path, str], arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained[0], "runs/flowers")
    path = Path("runs/flowers") / NAME / "transfer"
    before = {name: (path / name).read_bytes() for name in ("model.pt", "last.pt")}
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert output.count("finished before, in") == 3
    (path / "notes.txt").touch()
    for extra in ([], ["--no-feature-cache"]):
        assert main([*arguments, "--stage", "transfer", "--restart", *extra]) == 0
        output = capsys.readouterr().out
        assert ("computing what was there before took" in output) is (not extra)
        assert {name: (path / name).read_bytes() for name in before} == before
    assert not Path(f"runs/flowers/{NAME}/comparison.txt").exists()
    assert Path("runs/flowers/scratch/result.json").exists()
    assert (path / "notes.txt").exists()


@needs_fork
def test_it_goes_on_to_the_same_bytes(
    zygote: subprocess.Popen[str], trained: tuple[Path, str], arguments: list[str]
) -> None:
    arguments = [*arguments, "--stage", "transfer", "--no-feature-cache", "--no-picture-cache"]
    process = start_and_hold(zygote, arguments, 5)  # two syncs for each file: in the second epoch
    process.send(signal.SIGTERM)
    errors = process.end(143)
    Path("go").touch()
    assert f"--base {NAME} --weights '" in errors
    assert errors.endswith(
        "--no-feature-cache --no-picture-cache --threads 1 --precision float32\n"
    )
    path = Path("runs/flowers") / NAME / "transfer"
    assert load_checkpoint(path / "last.pt")["epoch"] == 1
    assert not Path("runs/flowers/features").exists()
    words = shlex.split(errors.partition("To go on: cifar-tl train ")[2])
    assert main(words) == 0
    assert not Path("runs/flowers/features").exists()
    for name in ("model.pt", "last.pt"):
        assert (path / name).read_bytes() == (trained[0] / NAME / "transfer" / name).read_bytes()


@needs_fork
def test_a_full_disk_is_one_line_and_costs_nothing(
    zygote: subprocess.Popen[str], trained: tuple[Path, str], arguments: list[str]
) -> None:
    shutil.copytree(trained[0] / "features", "runs/flowers/features")
    (path,) = (
        path
        for path in Path("runs/flowers/features").glob("*/validation-*.pt")
        if "weights" in (about := (path.parent / "about.json").read_text())
        if "maps_before" not in about
    )
    path.unlink()
    before = {file: file.read_bytes() for file in Path("runs").rglob("*.*")}
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))"
    arguments = [*arguments, "--stage", "transfer", "--no-picture-cache"]
    errors = Command(zygote, ["train", *arguments], before=limit).end(1)
    said = f"{path}: {os.strerror(errno.EFBIG)}; what was finished is saved. To go on: "
    assert said in errors
    assert {file: file.read_bytes() for file in Path("runs").rglob("*.*")} == before
    assert main(arguments) == 0
    assert path.exists()


def test_predict_sees_a_picture_as_published(
    flowers: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    network, preset = load_model(model), get_model_weights(NAME).DEFAULT.transforms()
    files = [str(flowers / "train/rose" / name) for name in ("0.png", "1.png", "2.png")]
    assert predict.main([*files, "--model", model, "--json"]) == 0
    answers = map(json.loads, capsys.readouterr().out.splitlines())
    for file, answer in zip(files, answers, strict=True):
        with Image.open(file) as image, torch.no_grad():
            features = network.features(preset(image)[None])
        logits = network.classifier(features)[0] / network.temperature
        expected = logits.softmax(0).tolist()
        found = {each["name"]: each["probability"] for each in answer["classes"]}
        named = dict(zip(("daisy", "rose"), expected, strict=True))
        assert found == pytest.approx(named, abs=1e-3)


def test_evaluate_finds_what_training_found(
    trained: tuple[Path, str], flowers: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = json.loads((trained[0] / NAME / "transfer/result.json").read_text())
    for split, key in (("validation", "val"), ("test", "test")):
        assert evaluate.main([model, "--data", str(flowers), "--split", split]) == 0
        accuracy, loss = result[f"{key}_accuracy"], result[f"{key}_loss"]
        found = re.search(
            r"accuracy (\S+)%, mean .*, loss (\S+)$", capsys.readouterr().out, re.MULTILINE
        )
        assert found is not None
        assert found[1] == f"{100 * accuracy:.2f}"
        assert float(found[2]) == pytest.approx(loss, abs=2e-4)


def test_evaluate_reads_the_pictures_that_training_kept(
    trained: tuple[Path, str], flowers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "flowers"
    shutil.copytree(trained[0], runs)

    def loss() -> str:
        assert evaluate.main([f"{runs}/{NAME}/transfer/model.pt", "--data", str(flowers)]) == 0
        return capsys.readouterr().out.partition("loss ")[2]

    (decoded,) = (
        path
        for path in runs.glob("features/*/test-*.pt")
        if "frame" in path.with_name("about.json").read_text()
    )
    content = load_checkpoint(decoded)
    save_checkpoint(decoded, {**content, "features": 255 - content["features"]})
    shutil.rmtree(runs / "pictures", ignore_errors=True)  # somebody trained without the cache
    plain = loss()
    (runs / "pictures").mkdir()
    assert loss() != plain
    save_checkpoint(decoded, content)
    assert loss() == plain


def test_export_writes_what_computes_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    network = get_model("squeezenet1_1", weights=None)  # which is exported fast
    torch.save(network.state_dict(), "weights.pth")
    base = load_backbone("squeezenet1_1", "weights.pth")
    base.reset_classifier(2)
    save_model("model.pt", base, class_names=("daisy", "rose"))
    assert export.main(["model.pt", "flowers"]) == 0  # it compares before it keeps the file
    output, errors = capsys.readouterr()
    assert "outputs: 0 daisy, 1 rose" in output
    assert errors == ""
    exported = torch.export.load("flowers.pt2").module()
    images = torch.randint(256, (3, 3, 224, 224), dtype=torch.uint8)
    torch.testing.assert_close(exported(images), base(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "w.pth"], "--weights is for a pretrained network: name one with --base"),
        (["--data", "shapes", "--fit", "pad"], "--fit is for a pretrained network: name one with"),
        (["--base", "mobilnet_v3_small"], "there is no file and no network mobilnet_v3_small: "),
        (["--base", "cifar50"], "there is no file and no network cifar50: maybe cifar5"),
        (["--base", "qwertyuiop"], "network qwertyuiop: torchvision.models.list_models() has all"),
        (["--base", "timm/resnet18"], "--base timm/resnet18 needs the package timm: pip install"),
        (["--base", "other/resnet18"], "--base other/resnet18: there is no such file"),
        (["--base", NAME, "--fit", "whole"], "--fit: invalid choice: 'whole'"),
        (["--base", NAME, "--weights", "none.pth"], "there is no file none.pth, and mobilenet_v3"),
        (["--base", NAME, "--weights", "text.pth"], "text.pth is damaged, or holds more than"),
        (["--base", NAME, "--weights", "list.pth"], "list.pth holds no state_dict, tensors by na"),
        (["--base", NAME, "--weights", "cut.pth"], "cut.pth is damaged, or holds more than t"),
        (["--base", "alexnet"], "does not hold the weights of alexnet: "),
        (["--base", f"{NAME},cifar10,x"], "there is no file and no network x: "),
        (
            ["--base", NAME, "--stage", "finetune", "--dropout", "0.5"],
            "--dropout is for stages that learn from images: finetune from a pretrained network le",
        ),
        (
            ["--base", NAME, "--stage", "finetune", "--shift", "2"],
            "--shift is for stages that learn from images: finetune from a pretrained network lear",
        ),
        (["--base", "cifar10,cifar5"], "two of these are the documented network, and their res"),
        (["--base", f"{NAME},{NAME}"], f"--base: names a base twice: '{NAME},{NAME}'"),
        (["--base", f"{NAME},"], "--base: has an empty name"),
        (["--base", f"{NAME},alexnet", "--weights", "w.pth"], "--weights is for one network: mo"),
        (["--base", f"{NAME},none/x.pt"], "--base none/x.pt: there is no such file"),
        (["--base", f"{NAME},cifar10", "--stage", "finetune"], "of a transfer: add --stage tran"),
        (["--base", f"{NAME},cifar10", "--stage", "scratch"], f"name with --base {NAME} alone, or"),
        (
            ["--base", NAME, "--stage", "scratch", "--weights", "w.pth"],
            "--weights is for stages that start from them: leave it out for scratch",
        ),
    ],
)
def test_a_network_that_cannot_be_is_one_line_and_exit_code_2(
    flowers: Path,
    weights: str,
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # as if it were not installed
    Path("text.pth").write_text("weights")
    torch.save([1, 2], "list.pth")
    Path("cut.pth").write_bytes(Path(weights).read_bytes()[:-1000])
    Path("mobilnet_v3_small").mkdir()  # a folder is no model
    if options == ["--base", "alexnet"]:
        options = [*options, "--weights", weights]
    assert main(["--data", str(flowers), *options]) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert message in one_line(errors)
    assert not list(Path().glob("runs/*"))


def test_weights_that_cannot_be_downloaded_are_one_line(
    flowers: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_HOME", "hub")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # the discard port
    assert main(["--data", str(flowers), "--base", NAME]) == 2
    errors = one_line(capsys.readouterr().err)
    assert (
        f"the weights of {NAME} are not in hub/hub/checkpoints and cannot be downloaded" in errors
    )
    assert "put https://download.pytorch.org/models/mobilenet_v3_small-" in errors


def test_deep_and_grey_pictures_are_seen_at_every_size_as_documented(
    weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save_pictures(Path("flowers"), "train", 2)  # two of a class: one trains, one validates
    grey = np.add.outer(np.arange(250), np.arange(240)) * 8
    Image.fromarray(grey.astype(np.uint16)).save("flowers/train/rose/0.png")
    Image.fromarray((grey / 16).astype(np.uint8)).save("flowers/train/daisy/0.png")
    arguments = ["--base", NAME, "--weights", weights, "--fit", "pad", "--stage", "transfer"]
    assert main(["--data", "flowers", *arguments, *OPTIONS, "--quiet"]) == 0
    output, errors = capsys.readouterr()
    assert "validation accuracy" in one_line(output)
    assert "4095 is taken for white, and the model remembers it" in one_line(errors)
    model = f"runs/flowers/{NAME}/transfer/model.pt"
    files = ["flowers/train/rose/0.png", "flowers/train/daisy/0.png"]
    assert predict.main([*files, "--model", model, "--json"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    deep, plain = (  # the same picture, but for the last bits
        {each["name"]: each["probability"] for each in answer["classes"]}
        for answer in (first, second)
    )
    assert deep == pytest.approx(plain, abs=0.05)


@needs_fork
def test_machines_with_other_weights_are_refused(
    zygote: subprocess.Popen[str], flowers: Path, weights: str
) -> None:
    state = torch.load(weights, weights_only=True)
    for number in range(2):
        Path(f"machine{number}").mkdir()
        torch.save(state, f"machine{number}/weights{number}.pth")
        state["features.0.0.weight"][0, 0, 0, 0] += 0.1
    program = f"""
def train():
    own = f"weights{{Path.cwd().name[-1]}}.pth"
    return main(["--data", {str(flowers)!r}, "--base", "{NAME}", "--weights", own])

in_all(train, keeps_store=True)
"""
    (found,), errors = in_all(zygote, program)
    assert found == [2] * 4
    assert "the processes must have the same base: process 0 has" in one_line(errors)


def test_one_class_is_refused(weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    save_pictures(Path("flowers"), "train", 3)
    shutil.rmtree("flowers/train/rose")
    assert main(["--data", "flowers", "--base", NAME, "--weights", weights]) == 1
    assert "holds only one class" in one_line(capsys.readouterr().err)
    assert not list(Path().glob("runs/*"))


def test_one_stage_after_the_other_gives_the_same_bytes(
    trained: tuple[Path, str], arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    finetune = [*arguments, "--stage", "finetune", "--finetune-epochs", "1"]  # as in all stages
    finetune = [word for word in finetune if word not in ("--epochs", "2")]
    assert main(finetune) == 1
    errors = one_line(capsys.readouterr().err)
    path = f"runs/flowers/{NAME}"
    assert f"there is no transfer model {path}/transfer/model.pt: make it first: " in errors
    words = shlex.split(errors.partition("make it first: cifar-tl train ")[2])
    assert main([*words, "--epochs", "2"]) == 0
    assert main(finetune) == 0
    for stage in ("transfer", "finetune"):
        for name in ("model.pt", "last.pt"):
            whole = trained[0] / NAME / stage / name
            assert Path(path, stage, name).read_bytes() == whole.read_bytes()


def test_several_bases_are_compared_in_one_table(
    trained: tuple[Path, str], arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained[0], "runs/flowers")
    both = [f"{NAME},cifar10" if word == NAME else word for word in arguments]
    assert main(both) == 0
    output = capsys.readouterr().out
    assert output.count("finished before, in") == 3  # scratch is the control of both
    of_base = {"mobilenet_v3_small": f"runs/flowers/{NAME}", "cifar10": "runs/flowers"}
    rows = re.findall(r"^\| (\S+) +\| (\S+) +\| +(\S+) % ", output, re.MULTILINE)
    rows = [row for row in rows if row[0] in (*of_base, "none")]
    assert [row[:2] for row in rows] == [
        *((base, way) for base in of_base for way in ("transfer", "transfer+finetune")),
        ("none", "scratch"),
    ]
    found = json.loads(Path("runs/flowers/bases.json").read_text())
    assert found["bases"][NAME]["name"] == NAME
    assert found["bases"]["cifar10"] is None
    for (base, way, accuracy), (_, folder) in zip(
        rows, [(b, f) for b, f in of_base.items() for _ in range(2)], strict=False
    ):
        stage = way.rpartition("+")[2]
        result = json.loads(Path(folder, stage, "result.json").read_text())
        assert accuracy == f"{100 * result['val_accuracy']:.2f}"
        mean = found["sizes"][0]["bases"][base][way]["val_accuracy"]["mean"]
        assert mean == result["val_accuracy"]
    differences = found["sizes"][0]["differences"]
    assert [(d["way"], d["base"], d["other"]) for d in differences] == [
        (way, NAME, "cifar10") for way in ("transfer", "transfer+finetune")
    ]
    text = Path("runs/flowers/bases.txt").read_text()
    assert text in output
    assert re.search(
        rf"^transfer: {NAME} (and|is \w+ than) cifar10: \S+ points", text, re.MULTILINE
    )
    for base, folder in of_base.items():
        assert {"comparison.json", "report.html"} <= {path.name for path in Path(folder).iterdir()}
        report = Path(folder, "report.html").read_text()
        ((link, name),) = re.findall(r'<a href="([^"]+)">([^<]+)</a>', report)
        other = Path(of_base[name], "report.html")
        assert name != base
        assert Path(folder, link).resolve() == other.resolve()
        assert report.count(f"<td>{NAME}</td><td>transfer</td>") == 1
    restart = [*both, "--stage", "transfer", "--restart"]
    assert main(restart) == 0
    assert not list(Path("runs").rglob("comparison.*"))
    assert not list(Path("runs").rglob("bases.*"))


def test_the_documented_network_sees_pictures_in_another_fit_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_pictures(Path("flowers"), "train", 6)
    save_pictures(Path("flowers"), "test", 2)
    for fit in ("crop", "squash", "pad"):
        arguments = ["--data", "flowers", *OPTIONS, "--output-dir", fit]
        assert main([*arguments, *([] if fit == "crop" else ["--fit", fit])]) == 0
        capsys.readouterr()
        path = f"{fit}/flowers/finetune"
        model = load_model(f"{path}/model.pt")
        assert model.frame == cifar_frame(fit)
        result = json.loads(Path(path, "result.json").read_text())
        assert result.get("fit", "crop") == fit
        assert evaluate.main([f"{path}/model.pt", "--data", "flowers"]) == 0
        found = re.search(r"loss (\S+)$", capsys.readouterr().out, re.MULTILINE)
        assert found is not None
        assert float(found[1]) == pytest.approx(result["test_loss"], abs=2e-4)
    assert main(["--data", "flowers", *OPTIONS, "--output-dir", "crop", "--fit", "pad"]) == 1
    errors = one_line(capsys.readouterr().err)
    assert "crop/flowers/transfer holds a run with other settings (fit crop there, pad" in errors
    assert errors.endswith("--fit pad --threads 1 --precision float32 --restart\n")
    wide = read_image("flowers/train/rose/1.png", frame=cifar_frame("pad"))  # 240 x 300
    assert wide[:, 16, 0].tolist() == list(CIFAR_MEAN)


def test_a_command_for_finetune_alone_has_no_option_that_it_would_refuse() -> None:
    words = ["--data", "shapes", "--base", NAME, "--dropout", "0.5", "--shift", "2"]
    options = make_parser().parse_args(words)
    for stage, kept in (("finetune", False), ("scratch", True), (ALL, True)):
        command = write_command(options, stage=stage)
        assert ("--dropout 0.5" in command) is ("--shift 2" in command) is kept
        check_arguments(make_parser().parse_args(shlex.split(command.partition(" train ")[2])))


def test_scratch_of_the_network_itself_downloads_nothing(
    trained: tuple[Path, str],
    flowers: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TORCH_HOME", "hub")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    shutil.copytree(trained[0] / "scratch", "runs/flowers/scratch")
    documented = Path("runs/flowers/scratch/model.pt").read_bytes()
    options = ["--data", str(flowers), "--base", NAME, "--stage", "scratch", "--seeds", "2"]
    assert main([*options, *OPTIONS]) == 0
    output = capsys.readouterr().out
    assert f"base: {NAME}, weights fresh, images of 224 pixels" in output
    assert output.count("all layers learn; the epochs take about") == 2
    assert not Path("hub").exists()
    assert Path("runs/flowers/scratch/model.pt").read_bytes() == documented
    results = [
        json.loads(Path(f"runs/flowers/{NAME}/scratch/seed-{n}/result.json").read_text())
        for n in (0, 1)
    ]
    assert [result["backbone_source"]["weights"] for result in results] == ["fresh", "fresh"]
    assert results[0]["parent"] != results[1]["parent"]  # each seed has weights of its own
    assert main([*options, *OPTIONS]) == 0  # the same weights again: it is the same run
    assert capsys.readouterr().out.count("finished before, in") == 2
    command = write_command(make_parser().parse_args(options), restart=True)
    assert f"--base {NAME}" in command
    check_arguments(make_parser().parse_args(shlex.split(command.partition(" train ")[2])))
