import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cifar_tl.balance import are_unequal, balanced_accuracy, logit_offsets
from cifar_tl.evaluation import confusion_matrix, evaluate
from cifar_tl.recipe import ORIGINAL
from cifar_tl.training import EpochRecord, fit

RECIPE = dataclasses.replace(ORIGINAL, epochs=3, batch_size=16)


def labels_of(*counts: int) -> Tensor:
    """So many labels 0, 1 and so on."""
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((300, 8), True),
        ((31, 20), True),
        ((30, 20), False),  # exactly 1.5 times as many
        ((4014, 3986, 4002), False),  # as in CIFAR-10
        ((5,), False),
        ((0, 4, 0, 6), False),  # classes without examples do not occur
        ((), False),
    ],
)
def test_more_than_one_and_a_half_times_as_many_is_unequal(
    counts: tuple[int, ...], expected: bool
) -> None:
    assert are_unequal(labels_of(*counts)) is expected


@pytest.mark.parametrize(
    ("confusion", "expected"),
    [
        ([[300, 0], [8, 0]], 0.5),  # always the most frequent class: 97 % are right
        ([[100, 0], [88, 12]], 0.56),
        ([[3, 1, 0], [0, 0, 0], [1, 1, 2]], 0.625),  # no example of the second class
    ],
)
def test_balanced_accuracy_is_the_mean_over_the_classes_that_occur(
    confusion: list[list[int]], expected: float
) -> None:
    assert balanced_accuracy(torch.tensor(confusion)) == pytest.approx(expected)


def test_offsets_are_those_of_menon_up_to_a_constant() -> None:
    labels = labels_of(300, 0, 8, 100)
    offsets = logit_offsets(labels)
    assert offsets.tolist() == pytest.approx([0, 0, math.log(8 / 300), math.log(1 / 3)])


def examples(*counts: int) -> tuple[Tensor, Tensor]:
    """Points of classes that overlap."""
    generator, labels = torch.Generator().manual_seed(0), labels_of(*counts)
    return torch.randn(len(labels), 3, generator=generator) + 0.7 * labels[:, None], labels


def test_records_have_the_balanced_accuracy_where_classes_are_unequal() -> None:
    inputs, labels = examples(90, 10)
    val_inputs, val_labels = examples(30, 6)
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    twin = copy.deepcopy(module)
    records = fit(module, inputs[None], labels, val_inputs, val_labels, RECIPE)
    last = records[-1]
    assert (last.val_loss, last.val_accuracy) == evaluate(module, val_inputs, val_labels)
    confusion = confusion_matrix(module, val_inputs, val_labels)
    assert last.val_balanced_accuracy == balanced_accuracy(confusion) != last.val_accuracy
    equal = labels_of(50, 50)
    records = fit(twin, inputs[None], equal, val_inputs, val_labels, RECIPE)
    assert all(math.isnan(record.val_balanced_accuracy) for record in records)


def test_the_best_weights_are_those_of_the_best_mean_over_classes() -> None:
    inputs, labels = examples(90, 10)
    module = nn.Linear(3, 2)
    states: list[dict[str, Tensor]] = []
    biases = [3.0, 0.0, -0.4]  # the first says the most frequent class to all

    def set_weights(record: EpochRecord) -> None:
        states.append(copy.deepcopy(module.state_dict()))
        seen.append(record)
        if record.epoch < 3:
            with torch.no_grad():
                module.weight.copy_(torch.tensor([[-1.0] * 3, [1.0] * 3]))
                module.bias.copy_(torch.tensor([biases[record.epoch], -biases[record.epoch]]))

    seen: list[EpochRecord] = []
    with torch.no_grad():
        module.weight.zero_()
        module.bias.copy_(torch.tensor([3.0, -3.0]))
    still = dataclasses.replace(RECIPE, lr=1e-6)
    fit(module, inputs[None], labels, inputs, labels, still, keep_best=True, on_epoch=set_weights)
    by_accuracy, by_class = (
        max(range(3), key=lambda number: getattr(seen[number], name))
        for name in ("val_accuracy", "val_balanced_accuracy")
    )
    assert by_accuracy == 0 != by_class
    assert torch.equal(module.bias, states[by_class]["bias"])


def test_balanced_training_ends_where_the_mean_over_classes_is_best() -> None:
    """One input that says nothing: the model can only learn how often each class is."""
    labels = labels_of(96, 4)
    inputs = torch.ones(1, 100, 1)
    recipe = dataclasses.replace(RECIPE, optimizer="sgd", lr=1.0, epochs=200, batch_size=100)
    shares = {}
    for balanced in (False, True):
        module = nn.Linear(1, 3)  # the third output has no examples
        records = fit(module, inputs, labels, None, None, recipe, balanced=balanced)
        shares[balanced] = module(torch.ones(1, 1)).softmax(1)[0].tolist()
        assert math.isnan(records[-1].val_balanced_accuracy)  # nothing validates
    assert shares[False] == pytest.approx([0.96, 0.04, 0.0], abs=0.01)
    assert shares[True] == pytest.approx([0.5, 0.5, 0.0], abs=0.02)


def test_of_equal_classes_balanced_training_is_any_training() -> None:
    inputs, labels = examples(50, 50)
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    twin = copy.deepcopy(module)
    fit(module, inputs[None], labels, None, None, RECIPE, balanced=True)
    fit(twin, inputs[None], labels, None, None, RECIPE)
    assert torch.equal(module.weight, twin.weight)


def test_targets_that_are_no_classes_cannot_be_balanced() -> None:
    inputs, labels = examples(45, 5)
    targets = functional.one_hot(labels).float()

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(logits, targets, reduction="none")

    with pytest.raises(TypeError, match="balanced needs labels that are classes"):
        fit(nn.Linear(3, 2), inputs[None], targets, None, None, RECIPE, loss=loss, balanced=True)


def test_a_loop_of_ones_own_gives_numpy_labels_and_the_number_of_logits() -> None:
    labels = np.array([0] * 300 + [1] * 8, dtype=np.uint16)
    assert are_unequal(labels)
    offsets = logit_offsets(labels, 3)
    assert offsets.tolist() == pytest.approx([0, math.log(8 / 300), 0])  # none of the last class
    assert (torch.zeros(5, 3) + offsets).shape == (5, 3)
    with pytest.raises(ValueError, match="a label is 1, but num_classes is 1: raise it"):
        logit_offsets(labels, 1)
    with pytest.raises(
        TypeError, match=r"labels must be integers \(N,\), not torch.float32 \(2,\)"
    ):
        logit_offsets(torch.tensor([0.7, 0.2]))


def test_a_caller_may_want_the_mean_over_classes_of_equal_classes() -> None:
    inputs, labels = examples(50, 50)
    val_inputs, val_labels = examples(30, 6)
    module = nn.Linear(3, 2)
    given = (inputs[None], labels, val_inputs, val_labels, RECIPE)
    last = fit(module, *given, by_class=True)[-1]
    confusion = confusion_matrix(module, val_inputs, val_labels)
    assert last.val_balanced_accuracy == balanced_accuracy(confusion)
