"""The page examples/documented.py does what ``--recipe original`` does, with no code in common.

Both get the same images, weights and batches. Two more things must be made equal:

- Dropout. Ours makes four elements of a mask from one random number, torch's makes one. So here
  our network gets torch's, with our rate, and both sides draw from the same generator state.
- Rounding. In float32 it alone moves losses by more than 1e-3 within ten epochs. So both use
  float64.
"""

import ast
import copy
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import documented
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.datasets import CIFAR10

from cifar_tl.data.cifar10 import download_cifar10
from cifar_tl.data.examples import select_classes
from cifar_tl.data.shapes import draw_shapes
from cifar_tl.data.source import load_data
from cifar_tl.evaluation import evaluate, extract_features
from cifar_tl.freezing import count_parameters, transfer_model
from cifar_tl.network import CifarNet
from cifar_tl.recipe import ORIGINAL
from cifar_tl.training import fit
from tests.forked import ROOT

OLD, NEW = range(5), range(5, 10)
EPOCHS = 10
FEW = 20  # images, where convolutions train: in float64 they take 10 ms an image


class Epoch(NamedTuple):
    """What is random in an epoch."""

    order: Tensor  # of the examples
    state: Tensor  # of torch's generator, before dropout draws its first mask


@pytest.fixture(autouse=True)
def _own_randomness() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two halves, each of 108 training, 27 validation and 10 test images."""
    x_train, y_train, x_test, y_test = draw_shapes(270, 20)
    path = tmp_path_factory.mktemp("data") / "few.npz"
    x_train, x_test = x_train.transpose(0, 2, 3, 1), x_test.transpose(0, 2, 3, 1)
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test[:, None])
    return path


def read_as_float64(path: Path, classes: range, count: int | None = None) -> documented.Half:
    half = documented.read_half(str(path), classes)
    return [(images[:count].double(), labels[:count]) for images, labels in half]


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    for old, new in zip(source.parameters(), target.parameters(), strict=True):
        new.data.copy_(old.data)


def assert_same_weights(ours: nn.Module, page: nn.Module) -> None:
    for old, new in zip(ours.parameters(), page.parameters(), strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=1e-9)


# The same images and the same network


def test_it_is_one_page_and_needs_nothing_of_the_package() -> None:
    text = (ROOT / "examples" / "documented.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 110
    modules = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add((node.module or "").partition(".")[0])
    assert modules - sys.stdlib_module_names == {"numpy", "torch", "torchvision"}


@pytest.mark.parametrize("official", [False, True], ids=["npz", "official"])
@pytest.mark.parametrize("classes", [OLD, NEW], ids=["old", "new"])
def test_it_reads_the_same_images(
    classes: range, official: bool, npz: Path, archive: bytes, tmp_path: Path
) -> None:
    if official:
        (tmp_path / CIFAR10.filename).write_bytes(archive)
        download_cifar10(tmp_path)
    source = tmp_path if official else npz
    data = load_data(source)
    ours = (*data.train_and_validation(classes), select_classes(data.test, classes))
    page = documented.read_half(str(source), classes)
    for (images, labels), expected in zip(page, ours, strict=True):
        assert torch.equal(images, CifarNet(5).preprocess(expected.images))
        assert torch.equal(labels, expected.labels)
        assert labels.dtype == expected.labels.dtype


@pytest.mark.parametrize(("outputs", "count"), [(5, 119_581), (10, 120_226)])
def test_its_network_has_the_same_layers_and_starts_alike(outputs: int, count: int) -> None:
    ours, page = CifarNet(outputs), documented.make_network(outputs)
    assert count_parameters(ours) == count_parameters(page) == count
    for old, new in zip(ours.parameters(), page.parameters(), strict=True):
        assert old.shape == new.shape
        if old.dim() == 1:
            assert not new.any()
            continue
        # Of 640 uniform draws or more, the largest is close to the limit.
        limits = [float(weights.detach().abs().max()) for weights in (old, new)]
        assert limits[0] == pytest.approx(limits[1], rel=0.02)
        assert float(new.detach().std()) == pytest.approx(float(old.detach().std()), rel=0.05)


# The same training


def test_same_weights_and_batches_give_the_same_losses_of_base(npz: Path) -> None:
    half = read_as_float64(npz, OLD, FEW)
    ours, page = CifarNet(5).double(), documented.make_network(outputs=5).double()
    copy_weights(ours, page)
    ours.classifier.dropout = nn.Dropout(ours.dropout)
    losses, epochs = train_ours("base", ours, *half[0])
    found = documented.train("base", page, half, EPOCHS, repeat(epochs))
    assert means_of_epochs(found, half) == pytest.approx(losses, abs=1e-9)
    assert_same_weights(ours, page)


def test_same_weights_and_batches_give_the_same_losses_of_transfer(npz: Path) -> None:
    half = read_as_float64(npz, NEW)
    ours = transfer_model(CifarNet(5).double())
    page = documented.make_network(outputs=10).double()
    copy_weights(ours, page)
    ours.classifier.dropout = nn.Dropout(ours.dropout)
    features = extract_features(ours.forward_features, half[0][0])
    half = [(documented.compute(page[0], images), labels) for images, labels in half]
    torch.testing.assert_close(half[0][0], features, rtol=0, atol=1e-12)
    losses, epochs = train_ours("transfer", ours.classifier, features, half[0][1])
    found = documented.train("transfer", page[1], half, EPOCHS, repeat(epochs))
    assert means_of_epochs(found, half) == pytest.approx(losses, abs=1e-9)
    assert_same_weights(ours.classifier, page[1])


def train_ours(
    stage: str, module: nn.Module, inputs: Tensor, labels: Tensor
) -> tuple[list[float], list[Epoch]]:
    """Trains as the recipe does; returns the mean loss of each epoch, and what was random."""
    rows = {example.numpy().tobytes(): row for row, example in enumerate(inputs)}
    assert len(rows) == len(inputs)
    batches: list[Tensor] = []
    states: list[Tensor] = []

    def note(batch: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        batches.append(torch.tensor([rows[example.numpy().tobytes()] for example in batch]))
        states.append(torch.get_rng_state())
        return batch, targets

    recipe = replace(ORIGINAL, epochs=EPOCHS).for_stage(stage, len(labels))
    records = fit(module, inputs[None], labels, None, None, recipe, transform=note)
    steps = len(batches) // EPOCHS
    epochs = [
        Epoch(torch.cat(batches[first : first + steps]), states[first])
        for first in range(0, len(batches), steps)
    ]
    return [record.train_loss for record in records], epochs


def repeat(epochs: list[Epoch]) -> documented.Shuffle:
    """For the page: the same order, and then the same masks."""
    remaining = iter(epochs)

    def shuffle(count: int) -> Tensor:
        order, state = next(remaining)
        assert len(order) == count
        torch.set_rng_state(state)
        return order

    return shuffle


def means_of_epochs(losses: list[float], half: documented.Half) -> list[float]:
    """Turns the losses of batches into means over all examples of an epoch."""
    sizes = [len(batch) for batch in half[0][1].split(100)]
    table = np.reshape(losses, (EPOCHS, len(sizes)))
    return [float(mean) for mean in np.average(table, axis=1, weights=sizes)]


def test_features_computed_once_train_as_frozen_layers_in_every_epoch(npz: Path) -> None:
    half = read_as_float64(npz, NEW, FEW)
    features, classifier = documented.make_network(outputs=10).double()
    before = copy.deepcopy(features)
    features.requires_grad_(False)
    slow = nn.Sequential(features, copy.deepcopy(classifier))
    epochs = [Epoch(torch.randperm(FEW), torch.get_rng_state()) for _ in range(EPOCHS)]
    expected = documented.train("every epoch", slow, half, EPOCHS, repeat(epochs))
    half = [(documented.compute(features, images), labels) for images, labels in half]
    found = documented.train("once", classifier, half, EPOCHS, repeat(epochs))
    assert found == pytest.approx(expected, abs=1e-9)
    assert_same_weights(classifier, slow[1])
    assert all(map(torch.equal, before.parameters(), features.parameters()))


# The whole


def test_the_whole_page_trains_and_judges_the_right_networks(
    npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, transfer, scratch = documented.main(str(npz), epochs=2)
    lines = capsys.readouterr().out.splitlines()
    networks = {"base": (base, OLD), "transfer": (transfer, NEW), "scratch": (scratch, NEW)}
    data = load_data(npz)
    for name, (network, classes) in networks.items():
        ours = CifarNet(5 if name == "base" else 10)
        copy_weights(network, ours)
        accuracies = [
            f"{evaluate(ours, *part).accuracy:.2%}"
            for part in (data.train_and_validation(classes)[1], select_classes(data.test, classes))
        ]
        said = [line for line in lines if line.startswith(name) and "accuracy" in line]
        assert [re.sub(r" \d+\.\d s,", "", line) for line in said[1:]] == [
            f"{name}, epoch 2: validation accuracy {accuracies[0]}",
            f"{name}: test accuracy {accuracies[1]}",
        ]
    assert transfer[0] is base[0]
    assert count_parameters(transfer, trainable_only=True) == 103_818
    assert count_parameters(scratch, trainable_only=True) == 120_226
