"""Files of this package with anything in them, and with right checksums, for every reader.

Only errors of this package come out. Nothing hangs or takes a GB.
"""

import contextlib
import copy
import csv
import hashlib
import json
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cifar_tl.checkpoint import load_checkpoint, read_named_model
from cifar_tl.contents import FeaturesFile
from cifar_tl.data.examples import Data
from cifar_tl.data.source import load_data
from cifar_tl.errors import CifarTLError, RunWarning
from cifar_tl.experiment.findings.comparison import compare, comparison_text
from cifar_tl.experiment.findings.report import report_text
from cifar_tl.experiment.findings.results import summary
from cifar_tl.experiment.folder import RunFolder, read_result
from cifar_tl.experiment.stages import STAGES
from cifar_tl.network import CifarNet
from cifar_tl.prediction import predict
from cifar_tl.training import make_optimizer
from tests.experiment.conftest import SMALL, run_all_stages
from tests.hostile import bounded, saved, seal

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")

VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 7, 10**6, 10**9, 2**63, -(2**63), 10**100),
    *(0.0, 0.5, 1.0, -1.0, 1e-300, 1e30, 1e308, float("nan"), float("inf"), float("-inf")),
    *("", "x", "cifar10", "nan", "\n", "\x00", "x" * 10**5),
    *([], {}, [[]], [None], [1, 2], ["x"], {"x": 1}, {"": []}, [[1]] * 5, [0.5, 0.6]),
]
TENSORS: list[Callable[[Tensor], Any]] = [
    lambda tensor: tensor * float("nan"),
    lambda tensor: tensor + float("inf"),
    lambda tensor: tensor * 0,
    lambda tensor: tensor.double() * 1e38,
    lambda tensor: tensor.half(),
    lambda tensor: tensor.int(),
    lambda tensor: tensor.clone().flatten(),
    lambda tensor: tensor[None],
    lambda tensor: tensor[:0] if tensor.ndim else tensor,
    lambda _: torch.zeros(1).expand(10**6, 10**6),
    lambda tensor: tensor.to_sparse(),
    lambda tensor: nn.Parameter(tensor.float()),
    lambda _: torch.zeros(0),
    lambda tensor: tensor.tolist() if tensor.numel() < 100 else None,
]


def places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Yields all places in a content: a list or dictionary, and a key."""
    keys: Any = content if isinstance(content, dict) else range(len(content))
    for key in keys:
        yield content, key
        if isinstance(content[key], dict | list):
            yield from places(content[key])


def mutated(content: Any, generator: random.Random) -> Any:
    """Copies a content, and changes one to three places in it."""
    content = copy.deepcopy(content)
    for _ in range(generator.choice((1, 1, 1, 2, 3))):
        found = list(places(content))
        if not found:
            return content
        inner, key = generator.choice(found)
        kind = generator.random()
        if isinstance(inner[key], Tensor) and kind < 0.8:
            if inner[key].numel() > 10**9 or inner[key].is_sparse:  # changed before
                continue
            inner[key] = generator.choice(TENSORS)(inner[key])
        elif kind < 0.1:
            del inner[key]
        elif kind < 0.2 and isinstance(inner, dict):
            inner[generator.choice(["x", 0, "white", "precision", "files", "epoch"])] = inner[key]
        elif kind < 0.3:
            inner[key] = [inner[key]] * generator.choice((1, 2, 1000))
        elif kind < 0.35:
            for _ in range(generator.choice((5, 100))):
                inner[key] = [inner[key]]
        else:
            inner[key] = copy.deepcopy(generator.choice(VALUES))
    return content


@pytest.fixture(scope="module")
def data(tiny_npz: Path) -> Data:
    return load_data(tiny_npz)


@pytest.fixture(scope="module")
def runs(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of all stages."""
    return run_all_stages(data, tmp_path_factory.mktemp("runs"))


def try_many(
    tries: int, change: Callable[[random.Random], None], use: Callable[[], object]
) -> Counter[str]:
    """Uses changed files. Counts how it ended. Any other error fails."""
    ends: Counter[str] = Counter()
    generator = random.Random(tries)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RunWarning)
        for _ in range(tries):
            change(generator)
            try:
                with bounded():
                    use()
                ends["good"] += 1
            except CifarTLError as error:
                assert len(str(error).splitlines()) == 1  # noqa: PT017
                assert len(str(error)) < 6000  # noqa: PT017
                ends["refused"] += 1
    assert ends["refused"] > tries / 4
    print(ends)
    return ends


SHORT = 150
MANY = [SHORT, pytest.param(2000, marks=pytest.mark.slow)]


@pytest.mark.parametrize("tries", MANY)
@pytest.mark.parametrize("stage", ["base", "transfer"])
def test_models(runs: Path, tmp_path: Path, stage: str, tries: int) -> None:
    content, path = load_checkpoint(runs / stage / "model.pt"), tmp_path / "model.pt"
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)

    def use() -> None:
        model, settings, outputs = read_named_model(path)
        repr(settings)
        json.dumps([p._asdict() for p in predict(model, image)], allow_nan=False)
        assert outputs.named

    try_many(tries, lambda generator: seal(path, saved(mutated(content, generator))), use)


@pytest.mark.parametrize("tries", MANY)
def test_archives(tmp_path: Path, tries: int) -> None:
    """Bytes of the archive are changed, below a right checksum."""
    path = tmp_path / "model.pt"
    archive = saved({"network": "CifarNet", "a": torch.zeros(3), "b": [1, "x"]})

    def change(generator: random.Random) -> None:
        damaged = bytearray(archive)
        for _ in range(generator.choice((1, 2, 8))):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        start = generator.choice((0, 0, generator.randrange(len(damaged))))
        seal(path, bytes(damaged[start:]))

    try_many(tries, change, lambda: read_named_model(path))


@pytest.mark.parametrize("tries", MANY)
@pytest.mark.parametrize("name", ["last.pt", "history.csv"])
def test_unfinished_runs(runs: Path, tmp_path: Path, name: str, tries: int) -> None:
    content = load_checkpoint(runs / "base" / "last.pt")
    seal(tmp_path / "last.pt", saved(content))
    text = (runs / "base" / "history.csv").read_text()
    (tmp_path / "history.csv").write_text(text)
    names, *rows = list(csv.reader(text.splitlines()))
    plan = SMALL.for_stage("base", 20)

    def change(generator: random.Random) -> None:
        if name == "last.pt":
            seal(tmp_path / name, saved(mutated(content, generator)))
            return
        lines = mutated([names, *rows], generator)
        cells = [line if isinstance(line, list) else [line] for line in lines]
        # Not csv.writer: that of Python 3.10 cannot write the character NUL.
        (tmp_path / name).write_text("\n".join(",".join(map(str, row)) for row in cells))

    def use() -> None:
        model = CifarNet(5)
        folder = RunFolder(tmp_path, content["settings"])
        optimizer = make_optimizer(model, plan)
        history = folder.resume(model, optimizer, {"threads": 1}, 0.0)
        folder.epochs_done()
        model(torch.zeros(1, 3, 32, 32)).sum().backward()
        optimizer.step()
        json.dumps(history.figures(), allow_nan=False)

    try_many(tries, change, use)


@pytest.mark.parametrize("tries", MANY)
@pytest.mark.parametrize("stage", ["base", "scratch"])
def test_results(runs: Path, tmp_path: Path, stage: str, tries: int) -> None:
    results = {name: read_result(runs / name / "result.json")[0] for name in STAGES}
    path = tmp_path / "result.json"

    def change(generator: random.Random) -> None:
        content = mutated(results[stage], generator)
        if isinstance(content, dict):
            with contextlib.suppress(ValueError):  # Python does not write every number
                digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
                content["sha256"] = digest
        path.write_text(json.dumps(content))

    def use() -> None:
        try:
            result, _ = read_result(path)
        except ValueError as error:
            raise CifarTLError(str(error)) from error
        summary(result)
        all_stages = {**results, stage: result}
        comparison = compare({1.0: [all_stages]})
        comparison_text(comparison)
        report_text(comparison, all_stages, {}, "command", bases=None, links={})

    try_many(tries, change, use)


@pytest.mark.parametrize("tries", MANY)
def test_features(tmp_path: Path, tries: int) -> None:
    content, path = {"features": torch.zeros(1, 2, 3), "seconds": 1.0, "place": "x"}, tmp_path / "x"

    def change(generator: random.Random) -> None:
        seal(path, saved(mutated(content, generator)))

    try_many(tries, change, lambda: load_checkpoint(path, kind=FeaturesFile))
