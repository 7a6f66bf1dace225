"""Hostile files, one a row: what is wrong, and the line that is printed. Nothing hangs or grows."""

import contextlib
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image

from cifar_tl.__main__ import main
from tests.forked import one_line
from tests.hostile import (
    INFINITE,
    NAN,
    Change,
    bounded,
    checkpoint,
    column,
    compressed,
    content,
    cut,
    delete,
    endless,
    folder,
    laughs,
    loop,
    marked,
    nested,
    pipe,
    result,
    saved,
    script,
    sealed,
    sparse,
    tensor,
    zeroed,
)

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux"),
    pytest.mark.filterwarnings("default::cifar_tl.errors.CifarTLWarning"),
]

RUN = Path("runs/tiny.npz/base")
PREDICT = ["predict", "picture.png", "--model", str(RUN / "model.pt")]
EVALUATE = ["evaluate", str(RUN / "model.pt"), "--data", "tiny.npz"]
TRAIN = ["train", "--data", "tiny.npz", "--stage", "base", "--epochs", "2", "--quiet"]
TRAIN += ["--batch-size", "20", "--threads", "1", "--precision", "float32"]
FROM_BASE = [*TRAIN, "--stage", "transfer"]
HINT = ["predict", "picture.png"]  # looks for models in runs/

MODEL = "model.pt does not hold what this program writes there "
NOT_WRITTEN = "model.pt is not what this program writes, tensors and plain values: use another"
LAST = "last.pt does not hold what this program writes there "
RESULT = "result.json is damaged, or not what this program writes there: it is made anew"
CHANGED = "runs/tiny.npz/base: missing or not what the run wrote: "
KINDS = "it is a pipe or a device, and only files are read"


class Row(NamedTuple):
    name: str  # of the file
    wrong: Change
    command: list[str]
    code: int
    line: str  # a part of it


ROWS = {
    # What a model says of itself
    "dropout NaN": Row("model.pt", checkpoint("dropout", NAN), PREDICT, 1, MODEL + "(dropout is"),
    "dropout 2": Row("model.pt", checkpoint("dropout", 2.0), PREDICT, 1, MODEL + "(dropout is not"),
    "temperature NaN": Row(
        "model.pt", checkpoint("temperature", NAN), PREDICT, 1, MODEL + "(temperature is not from"
    ),
    "temperature 0": Row(
        "model.pt", checkpoint("temperature", 0.0), PREDICT, 1, MODEL + "(temperature is not from"
    ),
    "temperature a string": Row(
        "model.pt", checkpoint("temperature", "1"), EVALUATE, 1, MODEL + "(temperature is of a"
    ),
    "white a string": Row(
        "model.pt", checkpoint("settings.white", "x"), PREDICT, 1, MODEL + "(white is of a wrong"
    ),
    "white of strings": Row(
        "model.pt",
        checkpoint("settings.white", {"integers": "x"}),
        PREDICT,
        1,
        MODEL + "(white is of a wrong type)",
    ),
    "white 0": Row(
        "model.pt",
        checkpoint("settings.white", {"integers": 0.0}),
        PREDICT,
        1,
        MODEL + "(white is not from",
    ),
    "names that are numbers": Row(
        "model.pt",
        checkpoint("settings.class_names", [1, 2, 3, 4, 5]),
        PREDICT,
        1,
        "model.pt does not say which classes it knows",
    ),
    "nested names": Row(
        "model.pt",
        checkpoint("settings.class_names", [["cat"]] * 5),
        EVALUATE,
        1,
        "model.pt does not say which classes it knows",
    ),
    "classes that are truth": Row(
        "model.pt",
        checkpoint("settings.classes", [True, False, 2, 3, 4]),
        EVALUATE,
        1,
        "model.pt does not say which classes it knows",
    ),
    "a precision that is none": Row(
        "model.pt", checkpoint("settings.precision", "int3"), EVALUATE, 1, MODEL + "(precision is"
    ),
    "a fit that is none": Row(
        "model.pt", checkpoint("fit", ["crop"]), PREDICT, 1, MODEL + "(fit is none of"
    ),
    "weights NaN": Row(
        "model.pt",
        tensor("state_dict", "features.conv1.weight", lambda weight: weight * NAN),
        PREDICT,
        1,
        MODEL + "(a tensor in state_dict has NaN",
    ),
    "weights infinite": Row(
        "model.pt",
        tensor("state_dict", "classifier.linear2.bias", lambda bias: bias + INFINITE),
        [*PREDICT, "--json"],
        1,
        "the outputs of the model are no finite numbers",
    ),
    "weights too large": Row(
        "model.pt",
        tensor("state_dict", "classifier.linear2.weight", lambda weight: weight + 3e38),
        EVALUATE,
        1,
        "model.pt are no finite numbers: use another",
    ),
    "no deviation": Row(
        "model.pt",
        tensor("state_dict", "std", lambda std: std * 0),
        PREDICT,
        1,
        "the outputs of the model are no finite numbers",
    ),
    "many outputs": Row(
        "model.pt", checkpoint("num_classes", 10**12), PREDICT, 1, MODEL + "(num_classes is not"
    ),
    "outputs without end": Row(
        "model.pt", checkpoint("num_classes", INFINITE), PREDICT, 1, MODEL + "(num_classes is of"
    ),
    "a weight for many": Row(
        "model.pt",
        tensor(
            "state_dict", "features.conv1.weight", lambda _: torch.zeros(1).expand(10**6, 10**6)
        ),
        PREDICT,
        1,
        MODEL + "(a tensor in state_dict is not contiguous)",
    ),
    "a sparse weight": Row(
        "model.pt",
        tensor("state_dict", "features.conv1.weight", lambda weight: weight.to_sparse()),
        PREDICT,
        1,
        NOT_WRITTEN,
    ),
    "lists in lists": Row(
        "model.pt", sealed(laughs), PREDICT, 1, MODEL + "(it has too many values or lists)"
    ),
    "a number of a hundred digits": Row(
        "model.pt", checkpoint("settings.seed", 10**100), FROM_BASE, 1, MODEL + "(a number in"
    ),
    "another network": Row(
        "model.pt", checkpoint("network", "X" * 10), PREDICT, 1, "holds the network 'XXXXXXXXXX'"
    ),
    # What is no model
    "a pickle": Row(
        "model.pt",
        sealed(lambda _: saved({"network": 1}, _use_new_zipfile_serialization=False)),
        PREDICT,
        1,
        NOT_WRITTEN,
    ),
    "TorchScript": Row("model.pt", sealed(script), PREDICT, 1, NOT_WRITTEN),
    "a list": Row("model.pt", sealed(lambda _: saved([1])), PREDICT, 1, NOT_WRITTEN),
    "compressed": Row("model.pt", sealed(compressed), PREDICT, 1, NOT_WRITTEN),
    "a model without end": Row("model.pt", endless, PREDICT, 1, f"model.pt: {KINDS}"),
    "a model in a pipe": Row("model.pt", pipe, EVALUATE, 1, f"model.pt: {KINDS}"),
    "a folder as model": Row("model.pt", folder, PREDICT, 2, "model.pt is a folder: name a"),
    "a model of 20 GB": Row(
        "model.pt", sparse, PREDICT, 1, "model.pt: it is larger than 10,000 MB"
    ),
    "2 GB that end as a sealed file": Row(
        "model.pt", marked, PREDICT, 1, "model.pt is damaged, or no checkpoint"
    ),
    "a base without end": Row("model.pt", endless, FROM_BASE, 1, f"model.pt: {KINDS}"),
    # The result of a run, by the same command and by predict without a model
    "10,000 lists": Row("result.json", content(nested(10_000)), TRAIN, 0, RESULT),
    "10,000 lists in a hint": Row("result.json", content(nested(10_000)), HINT, 0, "cifar10 answ"),
    "a result in a pipe": Row("result.json", pipe, TRAIN, 0, RESULT),
    "a result in a pipe in a hint": Row("result.json", pipe, HINT, 0, "cifar10 answered"),
    "a result without end": Row("result.json", endless, TRAIN, 0, RESULT),
    "a result without end in a hint": Row("result.json", endless, HINT, 0, "cifar10 answered"),
    "a result of 20 GB": Row("result.json", sparse, TRAIN, 0, RESULT),
    "a list of results": Row("result.json", content(b"[]"), TRAIN, 0, RESULT),
    "a million lists": Row("result.json", content(b"[" + b"[]," * 10**6 + b"1]"), TRAIN, 0, RESULT),
    "accuracy a string": Row("result.json", result("val_accuracy", "x"), TRAIN, 0, RESULT),
    "accuracy NaN": Row("result.json", result("val_accuracy", NAN), TRAIN, 0, RESULT),
    "accuracy 7": Row("result.json", result("val_accuracy", 7.0), TRAIN, 0, RESULT),
    "no accuracy": Row("result.json", result("val_accuracy", ...), TRAIN, 0, RESULT),
    "no confusion": Row("result.json", result("val_confusion", []), TRAIN, 0, RESULT),
    "no images": Row("result.json", result("images_validation", 0), TRAIN, 0, RESULT),
    "seconds of ages": Row("result.json", result("seconds_total", 1e308), TRAIN, 0, RESULT),
    "a name with NUL": Row("result.json", result("class_names", ["a\0"] * 5), TRAIN, 0, RESULT),
    "names of lists": Row("result.json", result("class_names", [[]] * 5), TRAIN, 0, RESULT),
    "a result of another run": Row(
        "result.json", result("seed", 7), TRAIN, 0, "result.json is of another run than model.pt"
    ),
    # The files of a finished run
    "results.txt deleted": Row("results.txt", delete, TRAIN, 0, CHANGED + "results.txt"),
    "results.txt zeroed": Row("results.txt", zeroed, TRAIN, 0, CHANGED + "results.txt"),
    "results.txt cut": Row("results.txt", cut, TRAIN, 0, CHANGED + "results.txt"),
    "history.csv deleted": Row("history.csv", delete, TRAIN, 0, CHANGED + "history.csv"),
    "history.csv zeroed": Row("history.csv", zeroed, TRAIN, 0, CHANGED + "history.csv"),
    "history.csv a pipe": Row("history.csv", pipe, TRAIN, 0, CHANGED + "history.csv"),
    "a model that somebody else sealed": Row(
        "model.pt",
        tensor("state_dict", "classifier.linear2.bias", lambda bias: bias + 9),
        TRAIN,
        0,
        CHANGED + "model.pt",
    ),
    "last.pt cut": Row("last.pt", cut, TRAIN, 0, CHANGED + "last.pt"),
    "last.pt deleted": Row("last.pt", delete, TRAIN, 0, CHANGED + "last.pt"),
    "last.pt without end": Row("last.pt", endless, TRAIN, 0, CHANGED + "last.pt"),
    # Images in an archive
    "an archive in a pipe": Row("tiny.npz", pipe, EVALUATE, 2, "tiny.npz is a pipe or a device"),
    "an archive without end": Row("tiny.npz", endless, TRAIN, 2, "tiny.npz is a pipe or a device"),
    # Pictures
    "a picture without end": Row("picture.png", endless, HINT, 1, KINDS),
    "a picture in a pipe": Row("picture.png", pipe, HINT, 1, KINDS),
    "a picture of 20 GB": Row("picture.png", sparse, HINT, 1, "it is larger than 1,000 MB"),
    "a picture that is its own link": Row("picture.png", loop, HINT, 2, "there is no file picture"),
}
OF_UNFINISHED = {
    "epoch infinite": Row("last.pt", checkpoint("epoch", INFINITE), TRAIN, 1, LAST + "(epoch is"),
    "10**9 epochs": Row("last.pt", checkpoint("epoch", 10**9), TRAIN, 1, LAST + "(epoch is not"),
    "3 of 2 epochs": Row("last.pt", checkpoint("epoch", 3), TRAIN, 1, "has more epochs than the"),
    "epoch -1": Row("last.pt", checkpoint("epoch", -1), TRAIN, 1, LAST + "(epoch is not from"),
    "other weights": Row(
        "last.pt", checkpoint("model", {}), TRAIN, 1, "last.pt does not hold an unfinished run"
    ),
    "weights NaN": Row(
        "last.pt",
        tensor("model", "features.conv1.weight", lambda weight: weight * NAN),
        TRAIN,
        1,
        LAST + "(a tensor in model has NaN",
    ),
    "the state of another optimizer": Row(
        "last.pt",
        checkpoint("optimizer.state.0", {"momentum_buffer": torch.zeros(1), "more": torch.ones(1)}),
        TRAIN,
        1,
        "last.pt does not hold an unfinished run",
    ),
    "the state of other weights": Row(
        "last.pt",
        tensor("optimizer.state.0", "momentum_buffer", lambda buffer: buffer[0]),
        TRAIN,
        1,
        "last.pt does not hold an unfinished run",
    ),
    "a state of strings": Row(
        "last.pt",
        checkpoint("optimizer.state.0", {"momentum_buffer": "x"}),
        TRAIN,
        1,
        LAST + "(a tensor in state is of a wrong type)",
    ),
    "surroundings of lists": Row(
        "last.pt", checkpoint("surroundings", [[]]), TRAIN, 1, LAST + "(surroundings is of a wrong"
    ),
    "last.pt compressed": Row(
        "last.pt", sealed(compressed), TRAIN, 1, "last.pt is not what this program writes"
    ),
    "last.pt in a pipe": Row("last.pt", pipe, TRAIN, 1, KINDS),
    "loss 1e308": Row("history.csv", column("train_loss", "1e308"), TRAIN, 1, "csv is damaged"),
    "seconds 1e308": Row(
        "history.csv", column("seconds_total_so_far", "1e308"), TRAIN, 1, "csv is damaged"
    ),
    "accuracy 1e308": Row("history.csv", column("val_accuracy", "1e308"), TRAIN, 1, "csv is dam"),
    "loss NaN": Row("history.csv", column("val_loss", "nan"), TRAIN, 1, "csv is damaged"),
    "history.csv without end": Row("history.csv", endless, TRAIN, 1, "history.csv is damaged"),
    "history.csv in a pipe": Row("history.csv", pipe, TRAIN, 1, "history.csv is damaged"),
    # What somebody has put where temporary files are
    "a folder in the way": Row(
        "history.csv.tmp", folder, TRAIN, 1, "history.csv.tmp: there is a folder of this name: move"
    ),
}


@pytest.fixture(scope="module")
def run(tiny_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of two epochs, its images and a picture."""
    place = tmp_path_factory.mktemp("run")
    shutil.copy(tiny_npz, place)
    Image.new("RGB", (40, 40), "red").save(place / "picture.png")
    with contextlib.chdir(place) if sys.version_info >= (3, 11) else _inside(place):
        assert main(TRAIN) == 0
    return place


@contextlib.contextmanager
def _inside(place: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(place)
    yield
    os.chdir(before)


@pytest.mark.parametrize("name", ROWS)
def test_of_a_finished_run(name: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run, ".", dirs_exist_ok=True)
    try_row(ROWS[name], capsys)


@pytest.mark.parametrize("name", OF_UNFINISHED)
def test_of_an_unfinished_run(name: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run, ".", dirs_exist_ok=True)
    (RUN / "result.json").unlink()
    if OF_UNFINISHED[name].name.endswith(".tmp"):  # it has to train
        (RUN / "last.pt").unlink()
    try_row(OF_UNFINISHED[name], capsys)


def try_row(row: Row, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(row.name) if Path(row.name).is_file() else RUN / row.name
    row.wrong(path)
    capsys.readouterr()
    with bounded(), warnings.catch_warnings():
        warnings.simplefilter("default")  # as in a program: torch's would be lines of their own
        code = main(row.command)
    output, errors = capsys.readouterr()
    assert row.line in one_line(errors)
    assert code == row.code, errors
    assert "nan" not in output


@pytest.mark.parametrize("name", ["history.csv", "last.pt", "model.pt", "result.json"])
@pytest.mark.parametrize("kind", ["link", "link to nowhere", "pipe", "file"])
def test_what_is_in_the_place_of_a_temporary_file_is_never_written_through(
    run: Path, name: str, kind: str
) -> None:
    shutil.copytree(run, ".", dirs_exist_ok=True)
    before = (RUN / "model.pt").read_bytes()
    shutil.rmtree("runs")
    RUN.mkdir(parents=True)
    victim, place = Path("victim"), RUN / f"{name}.tmp"
    victim.write_text("mine")
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "file":
        os.link(victim, place)  # a second name of the same file
    else:
        place.symlink_to(Path("victim" if kind == "link" else "nowhere").absolute())
    with bounded():
        assert main(TRAIN) == 0
    assert victim.read_text() == "mine"
    assert not Path("nowhere").exists()
    assert (RUN / "model.pt").read_bytes() == before
    assert sorted(path.name for path in RUN.iterdir() if path.is_symlink()) == []
    assert not place.exists()
