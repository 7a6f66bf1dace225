import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cifar_tl import muon
from cifar_tl.muon import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(16, 800), (8, 144), (128, 800), (800, 128), (5, 5)])
def test_orthogonalized_matrix_keeps_directions_and_evens_their_sizes(
    shape: tuple[int, int],
) -> None:
    torch.manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(shape[0], min(shape)))
    right, _ = torch.linalg.qr(torch.randn(shape[1], min(shape)))
    sizes = torch.logspace(0, -1.3, min(shape))
    result = orthogonalize(left * sizes @ right.t())
    inner = left.t() @ result @ right  # diagonal if the directions are the same
    assert inner.diag().min() > 0.6
    assert inner.diag().max() < 1.25
    torch.testing.assert_close(inner, inner.diag().diag(), atol=1e-3, rtol=0)


def test_orthogonalizing_nothing_gives_nothing() -> None:
    assert not orthogonalize(torch.zeros(3, 4)).any()


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        inputs = torch.randn(50, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        module(inputs).square().mean().backward()
        optimizer.step()


def make_module() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 6))


def make_muon(module: nn.Module, lr: float = 0.02, weight_decay: float = 0.1) -> Muon:
    return Muon(module.parameters(), lr=lr, momentum=0.9, weight_decay=weight_decay)


def test_each_step_moves_weights_by_the_learning_rate_in_every_direction() -> None:
    module = make_module()
    before = copy.deepcopy(module)
    train(module, make_muon(module, lr=0.01, weight_decay=0), steps=1)
    for layer in (0, 3):
        moved = (module[layer].weight - before[layer].weight).detach().flatten(1)
        sizes = torch.linalg.svdvals(moved)
        assert sizes.min() > 0.006
        assert sizes.max() < 0.0125


def test_weights_decay_apart_from_the_gradient_and_biases_never() -> None:
    module, plain = make_module(), make_module()
    nn.init.ones_(module[3].bias)
    nn.init.ones_(plain[3].bias)
    before = copy.deepcopy(module)
    train(module, make_muon(module, lr=0.1, weight_decay=0.5), steps=1)
    train(plain, make_muon(plain, lr=0.1, weight_decay=0), steps=1)
    for layer in (0, 3):
        lost = plain[layer].weight - module[layer].weight
        torch.testing.assert_close(lost, 0.05 * before[layer].weight)
        assert torch.equal(plain[layer].bias, module[layer].bias)
    assert not torch.equal(module[3].bias, before[3].bias)


def test_biases_are_trained_by_nesterov_sgd() -> None:
    module, other = make_module(), make_module()
    train(module, make_muon(module), steps=1)
    biases = [layer.bias for layer in (other[0], other[3])]
    train(other, torch.optim.SGD(biases, lr=0.02, momentum=0.9, nesterov=True), steps=1)
    torch.testing.assert_close(module[3].bias, other[3].bias)


def test_it_goes_on_from_its_state_as_if_it_had_never_stopped() -> None:
    whole = make_module()
    train(whole, make_muon(whole), steps=6)
    parts = make_module()
    optimizer = make_muon(parts)
    train(parts, optimizer, steps=3)
    resumed = make_muon(parts)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(parts, resumed, steps=3, first=3)
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, parts.get_parameter(name))


def test_frozen_parameters_stay() -> None:
    module = make_module()
    module[0].requires_grad_(False)
    before = copy.deepcopy(module)
    train(module, make_muon(module), steps=2)
    assert torch.equal(module[0].weight, before[0].weight)
    assert not torch.equal(module[3].weight, before[3].weight)


def test_without_weights_or_without_biases_it_works() -> None:
    for parameters in ([nn.Parameter(torch.ones(3))], [nn.Parameter(torch.ones(3, 3))]):
        optimizer = Muon(parameters, lr=0.1, momentum=0.9, weight_decay=0)
        parameters[0].square().sum().backward()
        optimizer.step()
        assert (parameters[0] != 1).any()


@pytest.mark.parametrize(
    "settings", [{"lr": -1}, {"momentum": 5}, {"momentum": 1.0}, {"weight_decay": -0.1}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    weights = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(ValueError, match="must be at least 0 and momentum from 0 to below 1"):
        Muon([weights], **{"lr": 0.1, **settings})


def test_groups_and_named_parameters_are_taken_as_by_torchs_own() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    groups = [
        {"params": model[0].parameters(), "lr": 0.0},
        {"params": model[1].parameters(), "lr": 0.1},
    ]
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = Muon(groups, lr=7.0)
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    moved = [not torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True)]
    assert moved == [False, False, True, True]
    Muon(model.named_parameters(), lr=0.1).step()


def test_bfloat16_is_orthogonalised_as_float32_is() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(128, 3) @ torch.randn(3, 800)
    found = orthogonalize(matrix.bfloat16())
    assert found.dtype == torch.bfloat16
    expected = orthogonalize(matrix.bfloat16().float())
    torch.testing.assert_close(found.float(), expected, rtol=0.01, atol=0.01)
    with pytest.raises(ValueError, match="must be at least 0"):
        Muon([{"params": [nn.Parameter(matrix)], "lr": -1.0}], lr=0.1)


def test_a_matrix_that_is_too_large_gets_the_norm_of_an_orthogonal_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(muon, "LARGEST", 3)
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(4, 6))
    weight.grad = torch.randn(4, 6)
    Muon([weight], lr=1.0, momentum=0.0).step()
    torch.testing.assert_close(-weight.data, weight.grad * 2 / weight.grad.norm())
    small = nn.Parameter(torch.zeros(3, 6))
    small.grad = torch.randn(3, 6)
    Muon([small], lr=1.0, momentum=0.0).step()
    torch.testing.assert_close(-small.data, orthogonalize(small.grad))


def test_without_torch_dynamo_it_trains_and_a_compiled_step_computes_the_same(
    tiny_npz: Path, tmp_path: Path
) -> None:
    program = """
import sys, torch
from cifar_tl.__main__ import main
from cifar_tl.muon import Muon

def train(compiled):
    torch.manual_seed(0)
    module = torch.nn.Linear(8, 4)
    optimizer = Muon(module.parameters(), lr=0.1)
    optimizer.load_state_dict(optimizer.state_dict())
    def step():
        optimizer.zero_grad()
        module(torch.ones(2, 8)).square().sum().backward()
        optimizer.step()
    step = torch.compile(step, backend="eager") if compiled else step
    step(), step()
    return module.weight

plain = train(compiled=False)
model = sys.argv.pop()
assert main(["train", *sys.argv[1:], "--epochs", "1", "--quiet"]) == 0  # all stages
assert main(["evaluate", model, *sys.argv[1:3]]) == 0
assert main(["predict", "tests/cifar10.png", "--model", model]) == 0
assert "torch._dynamo" not in sys.modules  # its import takes seconds
assert torch.equal(plain, train(compiled=True))
assert "torch._dynamo" in sys.modules
"""
    root = Path(__file__).parents[1]
    options = ["--data", str(tiny_npz), "--output-dir", str(tmp_path)]
    model = str(tmp_path / tiny_npz.name / "finetune/model.pt")
    command = [sys.executable, "-c", program, *options, model]
    subprocess.run(command, cwd=root, check=True, timeout=240)
