"""Processes of a group compute what one would, and do so only when they are asked to."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.forked import run_forked

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")

# Forks the processes of each group, which meet over a file.
GROUPS = """
import json, os, sys, traceback
import torch
from torch import distributed, nn
from torch.nn import functional
from cifar_tl import *
from cifar_tl.distributed import check_same

def in_group(size, work, folder):
    pids = []
    for rank in range(size):
        pids.append(os.fork())
        if pids[-1] == 0:
            code = 1
            try:
                torch.set_num_threads(1)
                distributed.init_process_group(
                    "gloo", f"file://{folder}/{work.__name__}{size}", rank=rank, world_size=size
                )
                group = distributed.group.WORLD  # torch 2.6 may hang if nobody keeps it
                found = work(group)
                with open(f"{folder}/{work.__name__}-{size}-{rank}.json", "w") as file:
                    json.dump(found, file)
                distributed.barrier()
                distributed.destroy_process_group()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
"""


def in_groups(
    zygote: subprocess.Popen[str], program: str, name: str, sizes: tuple[int, ...]
) -> dict[int, Any]:
    """Runs a function of a program in groups; returns what it returned, by size and rank."""
    calls = "\n".join(
        f"assert not any(in_group({size}, {name}, {str(Path.cwd())!r}))" for size in sizes
    )
    run_forked(zygote, GROUPS + program + calls)
    return {
        size: [json.loads(Path(f"{name}-{size}-{rank}.json").read_text()) for rank in range(size)]
        for size in sizes
    }


TRAINING = """
torch.set_default_dtype(torch.float64)

def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))

def data(number):
    torch.manual_seed(2)
    inputs = torch.randn(number, 5)
    return inputs, (inputs.sum(1) > 0).long() + (inputs[:, 0] > 1).long()

def train(group, optimizer="muon", **others):
    # 23 examples in batches of 5: shares of 5 are uneven, the last batch has 3, validation 10.
    inputs, labels = data(33)
    module = net()
    recipe = Recipe(name="own", optimizer=optimizer, lr=0.05, batch_size=5, epochs=3)
    records = fit(
        module, torch.stack([inputs[:23], -inputs[:23]]), labels[:23], inputs[23:], labels[23:],
        recipe, seed=3, group=group, **others,
    )
    figures = [[r.train_loss, r.train_accuracy, r.val_loss, r.val_accuracy] for r in records]
    return module, figures

def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()]).tolist()

def epochs(group):
    if group.size() == 1:
        group = None
    results = []
    for optimizer in ("muon", "adam", "sgd"):
        module, figures = train(group, optimizer)
        results.append([weights(module), figures])
    inputs, labels = data(4)  # fewer examples in a batch than processes: empty shares
    module = net()
    records = fit(module, inputs[None], labels, None, None,
                  Recipe(name="own", lr=0.1, batch_size=1, epochs=2), group=group)
    results.append([weights(module), [[r.train_loss, r.train_accuracy] for r in records]])
    return results

def balanced(group):
    # The rare class is in the shares of few processes: its number is that of all images.
    if group.size() == 1:
        group = None
    labels = torch.tensor([0] * 20 + [1] * 3)
    inputs, val_labels = data(33)[0], torch.tensor([0, 1] * 5)
    results = []
    for balanced in (True, False):
        module = nn.Linear(5, 2)
        with torch.no_grad():
            module.weight.fill_(0.1)
            module.bias.fill_(0.0)
        recipe = Recipe(name="own", optimizer="sgd", lr=0.05, batch_size=5, epochs=3)
        records = fit(module, inputs[None, :23], labels, inputs[23:], val_labels, recipe,
                      group=group, balanced=balanced)
        figures = [[r.train_loss, r.val_balanced_accuracy] for r in records]
        results.append([weights(module), figures])
    return results
"""


def flat(values: Any) -> list[float]:
    if isinstance(values, list):
        return [number for value in values for number in flat(value)]
    return [values]


def test_any_number_of_processes_trains_as_one_does(zygote: subprocess.Popen[str]) -> None:
    found = in_groups(zygote, TRAINING, "epochs", (1, 2, 3))
    (alone,) = found[1]
    for size in (2, 3):
        assert all(of_rank == found[size][0] for of_rank in found[size])  # to the last bit
        assert flat(found[size][0]) == pytest.approx(flat(alone), abs=1e-12)


def test_balanced_training_counts_the_classes_of_all_processes(
    zygote: subprocess.Popen[str],
) -> None:
    found = in_groups(zygote, TRAINING, "balanced", (1, 2, 3))
    ((even, off),) = found[1]
    assert flat(even) != pytest.approx(flat(off), abs=1e-3)
    for size in (2, 3):
        assert all(of_rank == found[size][0] for of_rank in found[size])
        assert flat(found[size][0]) == pytest.approx(flat([even, off]), abs=1e-12)


FORWARD = """
torch.set_default_dtype(torch.float64)

def judge(group):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5))
    results = []
    for number in (1, 2, 7, 250):  # with empty shares, and with several batches in each
        inputs, labels = torch.randn(number, 5), torch.randint(4, (number,))
        alone = evaluate(module, inputs, labels), extract_features(module, inputs)
        shared = evaluate(module, inputs, labels, group=group)
        assert torch.allclose(torch.tensor(shared), torch.tensor(alone[0]), atol=1e-12)
        features = extract_features(module, inputs, group=group)
        assert torch.allclose(features, alone[1], atol=1e-12)
        counts = confusion_matrix(module, inputs, labels, group=group)
        assert torch.equal(counts, confusion_matrix(module, inputs, labels))
        start, stop = (r * number // group.size() for r in (group.rank(), group.rank() + 1))
        half = slice(start, stop)
        loader = [(inputs[half], labels[half])] if start < stop else []
        own = evaluate(module, loader, group=group)  # each process brings batches of its own
        assert torch.allclose(torch.tensor(own), torch.tensor(alone[0]), atol=1e-12)
    return results

def unasked(group):
    # In somebody else's group, and by the first process alone: what one process computes.
    recipe = Recipe(name="own", lr=0.1, batch_size=2, epochs=1)
    torch.manual_seed(0)
    inputs, labels, module = torch.randn(6, 5), torch.randint(3, (6,)), nn.Linear(5, 3)
    found = None
    if group.rank() == 0:
        records = fit(module, inputs[None], labels, inputs, labels, recipe)
        features = extract_features(module, inputs)
        found = [records[-1].val_loss, evaluate(module, inputs, labels).loss, features.sum().item()]
    distributed.barrier()
    assert distributed.is_initialized()
    return found

def differing(group):
    recipe = Recipe(name="own", lr=0.1, batch_size=2, epochs=1)
    inputs, labels = torch.randn(6, 5), torch.tensor([0, 1, 2, 0, 1, group.rank()])
    try:
        fit(nn.Linear(5, 3), inputs[None], labels, None, None, recipe, group=group)
    except ValueError as error:
        message = str(error)
    try:
        check_same(group, seed=1, **({"precision": "bf16"} if group.rank() else {}))
    except ValueError as error:
        return message, str(error)

def work(group):
    # Who does how much; from weights that differ at first.
    torch.manual_seed(group.rank())
    module, rows = nn.Linear(5, 3), []
    module.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    torch.manual_seed(9)
    inputs, labels = torch.randn(30, 5), torch.randint(3, (30,))
    recipe = Recipe(name="own", optimizer="sgd", lr=0.1, batch_size=7, epochs=2)
    fit(module, inputs[:23][None], labels[:23], inputs[23:], labels[23:], recipe, group=group)
    extract_features(module, inputs, group=group)
    return sum(rows), [p.detach().flatten().tolist() for p in module.parameters()]

def parts(group):
    # Layers that count, weights that differ at first, one that nothing uses, an end by one alone.
    torch.manual_seed(group.rank())
    module = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    module.unused = nn.Parameter(torch.ones(3, dtype=torch.float64))
    module.forward = lambda x: module[2](module[1](module[0](x)))
    torch.manual_seed(0)
    inputs, labels = torch.randn(12, 5), torch.randint(3, (12,))
    recipe = Recipe(name="own", optimizer="sgd", lr=0.1, batch_size=6, epochs=4, weight_decay=0.1)
    records = fit(module, inputs[None], labels, None, None, recipe, group=group,
                  on_epoch=lambda record: group.rank() == 1 and record.epoch == 2)
    assert len(records) == 2
    assert torch.equal(module.unused, torch.ones(3))
    return [p.detach().flatten().tolist() for p in (*module.parameters(), *module.buffers())]
"""


@pytest.mark.parametrize("size", [2, 3])
def test_processes_judge_in_shares_what_one_would(zygote: subprocess.Popen[str], size: int) -> None:
    in_groups(zygote, FORWARD, "judge", (size,))


def test_nobody_shares_who_is_not_asked_to(zygote: subprocess.Popen[str]) -> None:
    found = in_groups(zygote, FORWARD, "unasked", (1, 2))
    assert found[2] == [found[1][0], None]


def test_other_labels_in_one_process_are_refused_in_all(zygote: subprocess.Popen[str]) -> None:
    first, second = in_groups(zygote, FORWARD, "differing", (2,))[2]
    assert first == second
    assert first[0].startswith("the processes must have the same labels: process 0 has")
    assert first[1].startswith("the processes must have the same precision: process 0 has None")


def test_processes_end_with_the_same_weights_and_counts(zygote: subprocess.Popen[str]) -> None:
    first, second = in_groups(zygote, FORWARD, "parts", (2,))[2]
    assert first == second


def test_work_is_divided_and_begins_with_the_weights_of_the_first(
    zygote: subprocess.Popen[str],
) -> None:
    found = in_groups(zygote, FORWARD, "work", (1, 2))
    ((examples, weights),) = found[1]
    assert examples == 2 * (23 + 7) + 30
    (first, weights_of_first), (second, _) = found[2]
    assert first + second == examples
    assert 0 <= first - second <= 2 * 5 + 1  # at most one more of each batch
    assert flat(weights_of_first) == pytest.approx(flat(weights), abs=1e-12)
