import copy
import errno
import hashlib
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.utils.prune
from torch import nn

from cifar_tl.checkpoint import (
    load_checkpoint,
    load_model,
    read_named_model,
    save_checkpoint,
    save_model,
)
from cifar_tl.errors import CheckpointError
from cifar_tl.freezing import transfer_model
from cifar_tl.network import CifarNet
from cifar_tl.prediction import predict
from tests.forked import run_forked


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"epoch": 3, "name": "base", "weights": torch.arange(10.0)})
    return path


def test_content_comes_back(tmp_path: Path) -> None:
    state = {"step": torch.tensor(3.0), "buffer": torch.randn(2, 3)}
    values = [1, 2.5, "text", True]
    save_checkpoint(tmp_path / "last.pt", {"none": None, "values": values, "state": {0: state}})
    loaded = load_checkpoint(tmp_path / "last.pt")
    assert loaded["values"] == values
    assert loaded["none"] is None
    assert all(torch.equal(loaded["state"][0][key], value) for key, value in state.items())


def test_equal_content_gives_equal_bytes_whatever_the_objects_and_the_name(tmp_path: Path) -> None:
    one, other = tmp_path / "one.pt", tmp_path / "other.pt"
    name = "momentum"
    save_checkpoint(one, {name: [name, name], "weights": torch.arange(6.0)[:3], "pair": (1, 2)})
    copied = "".join(["momen", "tum"])  # equal, but another object
    storage = torch.cat([torch.zeros(1000), torch.arange(3.0)])
    save_checkpoint(other, {name: [copied, "momentum"], "weights": storage[1000:], "pair": [1, 2]})
    assert one.read_bytes() == other.read_bytes()


def test_plain_torch_reads_it(saved: Path) -> None:
    assert torch.equal(torch.load(saved, weights_only=True)["weights"], torch.arange(10.0))


@pytest.mark.parametrize("every", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_every_flipped_bit_is_noticed(saved: Path, every: int) -> None:
    data = bytearray(saved.read_bytes())
    for number in range(0, 8 * len(data), every):
        position, bit = divmod(number, 8)
        data[position] ^= 1 << bit
        saved.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"last\.pt is damaged"):
            load_checkpoint(saved)
        data[position] ^= 1 << bit


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.pt is damaged, or no checkpoint"):
        load_checkpoint(path)


def test_truncated_missing_and_folder_are_refused(saved: Path, tmp_path: Path) -> None:
    data = saved.read_bytes()
    for length in (1, len(data) // 2, len(data) - 1):
        saved.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match="damaged"):
            load_checkpoint(saved)
    for path in (tmp_path, tmp_path / "missing.pt"):
        with pytest.raises(CheckpointError, match=f"cannot read checkpoint {path}"):
            load_checkpoint(path)


def test_files_that_run_code_are_refused(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "hacked"),)

    path = tmp_path / "model.pt"
    torch.save(Malicious(), path)
    with pytest.raises(CheckpointError, match="no checkpoint of this program"):
        load_checkpoint(path)
    # A checksum protects from damage, not from malice: anybody can compute it.
    archive = path.read_bytes()
    path.write_bytes(archive + b"cifar_tl sha256:" + hashlib.sha256(archive).digest())
    with pytest.raises(
        CheckpointError, match="is not what this program writes, tensors and plain values"
    ):
        load_checkpoint(path)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"num_classes": "ten"},
        {"num_classes": 11},
        {"num_classes": -1},
        {"num_classes": 0},
        {"state_dict": {}},
        {"state_dict": None},
        {"settings": 3},
    ],
)
def test_undamaged_files_with_senseless_content_are_refused(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    path = tmp_path / "model.pt"
    save_model(path, CifarNet(5), {"stage": "base"})
    save_checkpoint(path, load_checkpoint(path) | changes)
    with pytest.raises(CheckpointError, match=r"model\.pt does not hold what"):
        load_model(path)


def test_checkpoints_load_where_only_tensors_and_plain_values_may_be_unpickled(
    zygote: subprocess.Popen[str],
) -> None:
    save_model("model.pt", CifarNet(5), {"stage": "base", "lr": 0.1})
    program = """
import pickle, sys
from cifar_tl import load_model
def forbid(event, arguments):
    if event == "pickle.find_class":
        raise RuntimeError(f"unpickles {arguments}")
sys.addaudithook(forbid)
load_model("model.pt")
try:
    pickle.loads(pickle.dumps(print))
except RuntimeError:
    pass
else:
    raise AssertionError("nothing was forbidden")
"""
    run_forked(zygote, program)


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_failed_write_leaves_the_old_file_and_nothing_else(
    zygote: subprocess.Popen[str], saved: Path
) -> None:
    before = saved.read_bytes()
    program = """
import resource, signal, sys, torch
from pathlib import Path
from cifar_tl.checkpoint import save_checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    save_checkpoint(Path("last.pt"), {"weights": torch.zeros(100_000)})
except OSError as error:
    print(error.strerror)
"""
    run_forked(zygote, program)
    assert Path("out.txt").read_text() == os.strerror(errno.EFBIG) + "\n"
    assert saved.read_bytes() == before
    assert {path.name for path in Path().iterdir()} == {saved.name, "out.txt", "errors.txt"}


def test_values_that_could_not_be_read_back_are_refused(saved: Path) -> None:
    before = saved.read_bytes()
    for value in (np.float64(0.1), np.int64(3), saved, {1, 2}):
        with pytest.raises(TypeError, match="tensors and plain values, not"):
            save_checkpoint(saved, {"value": [value]})
    assert saved.read_bytes() == before


def test_model_comes_back_from_the_file_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = transfer_model(CifarNet(5))
    model.mean = torch.rand(3, 1, 1)
    save_model(tmp_path / "model.pt", model, {"stage": "transfer"})
    state = torch.get_rng_state()
    loaded = load_model(tmp_path / "model.pt")
    assert torch.equal(torch.get_rng_state(), state)
    assert not loaded.training
    images = torch.randint(256, (7, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(loaded(images), model.eval()(images))
    assert loaded.num_classes == 10


def test_a_temperature_comes_back_and_1_is_left_out(tmp_path: Path) -> None:
    model = CifarNet(5)
    save_model(tmp_path / "plain.pt", model)
    assert "temperature" not in load_checkpoint(tmp_path / "plain.pt")  # as in files of before
    assert load_model(tmp_path / "plain.pt").temperature == 1
    model.temperature = 1.25
    save_model(tmp_path / "warm.pt", model)
    warm = load_model(tmp_path / "warm.pt")
    assert warm.temperature == 1.25
    assert transfer_model(warm, 3).temperature == 1  # it was fitted to other classes
    assert transfer_model(warm, 3, classifier="classifier.linear2").temperature == 1
    warm.temperature = 1.0
    save_model(tmp_path / "again.pt", warm)
    assert (tmp_path / "again.pt").read_bytes() == (tmp_path / "plain.pt").read_bytes()
    for wrong in (0.0, math.nan, torch.tensor(1.25)):
        model.temperature = wrong  # type: ignore[assignment]
        with pytest.raises(ValueError, match="could not be loaded again: temperature is"):
            save_model(tmp_path / "plain.pt", model)


def test_checkpoint_without_a_model_is_refused(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no finished model: name a model\.pt"):
        load_model(saved)


def test_saving_leaves_the_content_alone(tmp_path: Path) -> None:
    model = CifarNet(5)
    before = copy.deepcopy(model.state_dict())
    save_checkpoint(tmp_path / "last.pt", {"state": model.state_dict()})
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


KNOWN = {"classes": [5, 6, 7], "class_names": ["dog", "frog", "horse"]}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        KNOWN | {"classes": [5, 6]},
        KNOWN | {"classes": [8, 9, 10]},
        KNOWN | {"classes": 5},
        KNOWN | {"classes": [5, [6], 7]},
    ],
)
def test_a_model_that_does_not_say_what_it_knows_is_refused(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    save_model(tmp_path / "model.pt", CifarNet(10), settings)
    with pytest.raises(CheckpointError, match="does not say which classes it knows"):
        read_named_model(tmp_path / "model.pt")
    assert load_model(tmp_path / "model.pt").class_names == {}


@pytest.mark.parametrize("as_text", [False, True])
def test_a_model_of_ones_own_comes_back_with_its_class_names(tmp_path: Path, as_text: bool) -> None:
    path = tmp_path / "mine.pt"
    given = str(path) if as_text else path
    model = CifarNet(3, dropout=0.1).eval()
    save_model(given, model, class_names=["cat", "dog", "fox"])
    back = load_model(given)
    assert back.class_names == {0: "cat", 1: "dog", 2: "fox"}
    assert (back.dropout, back.white) == (0.1, {})
    image = torch.randint(256, (3, 32, 32), dtype=torch.uint8)
    assert {prediction.name for prediction in predict(back, image)} == {"cat", "dog", "fox"}
    save_model(given, back)  # the names go along
    assert load_model(given).class_names == back.class_names
    save_model(given, CifarNet(10), class_names={7: "horse"})
    assert load_model(given).class_names == {7: "horse"}
    save_model(given, CifarNet(0))
    assert load_model(given).num_classes == 0
    with pytest.raises(ValueError, match="the model has 3 outputs, and no output 3"):
        save_model(given, model, class_names=["a", "b", "c", "d"])


def test_a_plain_state_dict_gets_the_right_message(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(CifarNet(5).state_dict(), path)
    with pytest.raises(CheckpointError, match="call load_state_dict, then save_model"):
        load_model(path)


@pytest.mark.parametrize("change", ["half", "pruned", "compiled", "subclass", "other"])
def test_what_could_not_be_loaded_again_is_not_saved(tmp_path: Path, change: str) -> None:
    class Mine(CifarNet):
        pass

    model: Any = CifarNet(3)
    if change == "half":
        model.half()
    elif change == "pruned":
        nn.utils.prune.l1_unstructured(model.classifier.linear1, "weight", amount=0.5)
    else:
        model = {
            "compiled": torch.compile(model, backend="eager"),
            "subclass": Mine(3),
            "other": nn.Sequential(model),
        }[change]
    expected = ValueError if change in ("half", "pruned") else TypeError
    with pytest.raises(
        expected, match=r"other weights than a CifarNet|writes a CifarNet or a Backbone, not"
    ):
        save_model(tmp_path / "model.pt", model)
    assert not list(tmp_path.iterdir())


def test_a_class_may_be_called_as_a_function_of_torch(tmp_path: Path) -> None:
    save_model(tmp_path / "model.pt", CifarNet(2), class_names=("_rebuild_x", "b"))
    assert load_model(tmp_path / "model.pt").class_names == {0: "_rebuild_x", 1: "b"}


def test_names_that_are_no_names_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    for names, message in (("cat", "not a string"), ([1, 2, 3], "must be strings, not 1")):
        with pytest.raises(TypeError, match=message):
            save_model(path, CifarNet(3), class_names=names)  # type: ignore[arg-type]
    model = CifarNet(3)
    model.white = {"integers": 4095.0}
    old = {"classes": [0], "class_names": ["old"]}
    save_model(path, model, old, class_names=["a", "b", "c"])
    back = load_model(path)
    assert back.class_names == {0: "a", 1: "b", 2: "c"}
    assert back.white == {"integers": 4095.0}
