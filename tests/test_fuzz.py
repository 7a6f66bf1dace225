"""Thousands of damaged inputs: each works or ends with a clear error, never with another one."""

import argparse
import contextlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cifar_tl.__main__ import main
from cifar_tl.checkpoint import load_model, save_checkpoint, save_model
from cifar_tl.command import evaluate, export, predict, train_arguments, train_parser
from cifar_tl.command.console import Parser, UsageError
from cifar_tl.data.source import load_data
from cifar_tl.errors import CheckpointError, DataError
from cifar_tl.network import CifarNet

SHORT = 100  # examples of each kind in the ordinary suite
LONG = pytest.param(10_000, marks=pytest.mark.slow)


def try_many(examples: int, inputs: st.SearchStrategy[Any], check: Callable[[Any], None]) -> None:
    """Calls a function with many inputs, the same ones every time."""
    chosen = settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    chosen(given(inputs)(check))()


def damages(content: bytes) -> st.SearchStrategy[bytes]:
    """Cuts, insertions and replacements at any place of some bytes."""
    places = st.integers(0, len(content))
    return st.builds(
        lambda first, second, middle: (
            content[: min(first, second)] + middle + content[max(first, second) :]
        ),
        places,
        places,
        st.binary(max_size=30),
    )


def check_npz(path: Path) -> None:
    try:
        assert len(load_data(path).test.labels) == 50
    except DataError as error:
        assert str(path) in str(error)  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017


COMMANDS: dict[str, tuple[Callable[[], Parser], Callable[[argparse.Namespace], None]]] = {
    "train": (train_parser.make_parser, train_arguments.check_arguments),
    "predict": (predict.make_parser, predict.check),
    "evaluate": (evaluate.make_parser, evaluate.check),
    "export": (export.make_parser, export.check),
}
OPTIONS = {
    "train": [
        *("--stage", "--recipe", "--data", "--base", "--epochs", "--lr", "--batch-size", "--seed"),
        *("--transfer-lr", "--transfer-batch-size", "--finetune-epochs", "--finetune-lr"),
        *("--weight-decay", "--precision", "--train-fraction", "--device", "--threads"),
        *("--output-dir", "--restart", "--quiet", "--base-classes", "--new-classes"),
        "--seeds",
    ],
    "predict": ["--model", "--top", "--json"],
    "evaluate": ["--data", "--split"],
    "export": [],
}
VALUES_OF_OPTIONS = [
    *("base", "all", "tuned", "shapes", "test", "cpu", "none.npz", "none.pt", "none/out", "."),
    *("0,1", "cat,deer", "1,2", "dog", ",", "0.1,1", "1,1", "cifar10"),
    *("0", "1", "-1", "1e400", "nan", "--help", "-h", "--version", "--", "-", ""),
]


def words(command: str) -> st.SearchStrategy[list[str]]:
    known = st.sampled_from([*OPTIONS[command], *VALUES_OF_OPTIONS])
    return st.lists(known | st.text(max_size=8), max_size=6)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("examples", [SHORT, LONG])
def test_arguments(examples: int, command: str, tmp_path: Path) -> None:
    make_parser, check_options = COMMANDS[command]
    parser = make_parser()

    def check(arguments: list[str]) -> None:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                options = parser.parse_args(arguments)
            check_options(options)
        except UsageError as error:
            assert str(error)  # noqa: PT017
        except SystemExit as done:
            assert done.code in (None, 0)  # noqa: PT017

    try_many(examples, words(command), check)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [*COMMANDS, ""])
@pytest.mark.parametrize("examples", [SHORT, LONG])
def test_whole_commands(examples: int, command: str, tmp_path: Path) -> None:
    """In an empty folder, where there is nothing to work with."""
    nothing = ["--data", "none.npz"] if command == "train" else []

    def check(arguments: list[str]) -> None:
        output, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            code = main([*filter(None, [command]), *arguments, *nothing])
        assert code in (0, 1, 2)
        if code == 0:
            assert output.getvalue()
            assert not errors.getvalue()
        else:
            assert errors.getvalue().endswith("\n")
            # A line for each picture that is not there, else one.
            assert errors.getvalue().count("\n") == 1 or command == "predict"

    try_many(examples, words(command or "train"), check)
    # cifar10 and any word are right arguments of export: they say what to write.
    written = (".pt2", ".onnx") if command == "export" else ()
    assert not [path for path in tmp_path.iterdir() if path.suffix not in written]


@pytest.mark.parametrize("examples", [SHORT, LONG])
def test_npz(tmp_path: Path, small_npz: Path, examples: int) -> None:
    path = tmp_path / "damaged.npz"
    content = io.BytesIO()  # small: what is damaged should seldom be a pixel
    with np.load(small_npz) as arrays:
        np.savez_compressed(content, **{name: arrays[name] for name in arrays})

    def check(damaged: bytes) -> None:
        path.write_bytes(damaged)
        check_npz(path)

    try_many(examples, damages(content.getvalue()), check)


@pytest.mark.parametrize("examples", [SHORT, LONG])
def test_npz_members(tmp_path: Path, small_npz: Path, examples: int) -> None:
    """Whole archives with damaged arrays in them, as no checksum would notice."""
    with zipfile.ZipFile(small_npz) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    path = tmp_path / "damaged.npz"

    def check(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(members)))
        head = data.draw(damages(members[name][:128]))  # where shape and type are
        with zipfile.ZipFile(path, "w") as archive:
            for member, content in members.items():
                archive.writestr(member, head + content[128:] if member == name else content)
        check_npz(path)

    try_many(examples, st.data(), check)


@pytest.mark.parametrize("examples", [SHORT, LONG])
def test_checkpoints(tmp_path: Path, examples: int) -> None:
    path = tmp_path / "model.pt"
    save_model(path, CifarNet(5), {"stage": "base"})
    content = path.read_bytes()

    def check(damaged: bytes) -> None:
        path.write_bytes(damaged)
        if damaged == content:
            load_model(path)
        else:
            with pytest.raises(CheckpointError, match=r"model\.pt is damaged"):
                load_model(path)

    try_many(examples, damages(content), check)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@pytest.mark.parametrize("examples", [SHORT, LONG])
def test_checkpoints_of_any_content(tmp_path: Path, examples: int) -> None:
    path = tmp_path / "model.pt"
    keys = st.sampled_from(["network", "num_classes", "settings", "state_dict"])

    def check(content: dict[str, object]) -> None:
        save_checkpoint(path, {"network": "CifarNet", **content})
        with pytest.raises(CheckpointError, match=r"model\.pt"):
            load_model(path)

    try_many(examples, st.dictionaries(keys, VALUES), check)
