"""Train a module on plain tensors, one record per epoch."""

import contextlib
import copy
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cifar_tl.checks import Loss, check_examples, check_logits, check_tensors, check_views
from cifar_tl.distributed import (
    average_gradients,
    check_same,
    copy_from_first,
    largest,
    share,
)
from cifar_tl.errors import TrainingError
from cifar_tl.evaluation import Metrics, compute_metrics, evaluate, mean_loss
from cifar_tl.machine import autocast, choose_precision, to_device_if_it_fits
from cifar_tl.muon import Muon
from cifar_tl.progress import with_bar
from cifar_tl.recipe import Plan, Recipe, rate_factor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Transform = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # of inputs and targets


@dataclass(frozen=True)
class EpochRecord:
    """What happened in one epoch.

    The training figures are those seen while training, with dropout and while the weights moved.
    Accuracies are fractions; without validation data, what is of validation is nan.

    Attributes:
        epoch: Counted from 1.
        train_loss: The mean loss over the training examples.
        train_accuracy: The part of them that was predicted.
        val_loss: The mean loss over the validation examples, after the epoch.
        val_accuracy: The part of them that was predicted.
        seconds_train: How long training took.
        seconds_validation: How long validation took.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    seconds_train: float
    seconds_validation: float


def fit(
    module: nn.Module,
    views: Tensor,
    labels: Tensor,
    val_inputs: Tensor | None,
    val_labels: Tensor | None,
    recipe: Recipe | Plan,
    *,
    seed: int = 0,
    optimizer: torch.optim.Optimizer | None = None,
    loss: Loss | None = None,
    transform: Transform | None = None,
    records: Sequence[EpochRecord] = (),
    on_epoch: Callable[[EpochRecord], object] | None = None,
    keep_best: bool = False,
    progress: str | None = None,
    group: "ProcessGroup | None" = None,
) -> list[EpochRecord]:
    """Trains a module in place; it ends in evaluation mode, however the training ends.

    Nothing depends on what the inputs are: images for a whole network, features for a classifier.
    All randomness is a function of the seed and the epoch, and the caller's generators are left
    alone, so training goes on after any epoch as if it had never stopped: give the module and the
    optimizer as they were then and the records so far. This holds as long as no other thread draws
    from torch's global generators meanwhile: there is only one of them.

    Args:
        module: Maps a batch of inputs to logits; trained on the device that it is on.
        views: ``(V, N, ...)``: V equally valid versions of each of N examples, such as an image
            and its mirror image. Each epoch picks one version of each example. They go to the
            module's device once, or batch by batch if they do not fit.
        labels: ``(N,)`` integers, each below the number of logits; for a ``loss`` of your own,
            whatever it takes, a row for each example.
        val_inputs: ``(M, ...)`` validation inputs; None: there are none, and the records say nan.
        val_labels: ``(M,)``.
        recipe: How to train. A `Recipe` is made for N examples: `Recipe.for_images`.
        seed: Decides order, views and dropout.
        optimizer: By default a new one from `make_optimizer`. One that is given keeps its own
            learning rates: what ``lr`` is at the start of an epoch is the peak, which the recipe's
            schedule scales during the epoch, and afterwards ``lr`` is the peak again.
        loss: Maps logits and targets of a batch to one value per example, such as a
            ``CrossEntropyLoss(weight=..., reduction="none")``; by default cross-entropy.
        transform: Changes each training batch, ``(inputs, targets) -> (inputs, targets)``, such as
            a random augmentation.
        records: Epochs that have been trained before.
        on_epoch: Called with each new record, after validation; returning True ends the training.
        keep_best: End with the weights of the epoch of this call that validated best, not with
            the last ones.
        progress: Text before a progress bar on standard error; by default there is no bar.
        group: Processes that share the work, such as ``torch.distributed.group.WORLD``: all call
            this with the same arguments, and each takes its part of every batch, so that they
            train as one process would; the weights to begin with are the first process's. Only
            the times in the records are each one's own. None: this process alone.

    Returns:
        The records of all epochs, those given included.

    Raises:
        ValueError: If shapes, labels or the optimizer do not fit, or the processes of a group were
            given different examples, recipes, seeds or records.
        TypeError: If something is no tensor, or labels are no integers.
        TrainingError: If losses or weights are no longer finite numbers.
    """
    labels = check_views(views, labels, loss)
    if (val_inputs is None) != (val_labels is None):
        raise ValueError("validation needs inputs and labels: give both, or None for both")
    if val_inputs is not None:
        val_labels = check_examples(val_inputs, val_labels, loss, "validation inputs")
    elif keep_best:
        raise ValueError("keep_best needs validation inputs and labels")
    _check_trainable(module, optimizer)
    device = next(module.parameters()).device
    views, labels = to_device_if_it_fits(views, device), labels.to(device)
    plan = recipe.for_images(len(labels)) if isinstance(recipe, Recipe) else recipe
    # All processes of a group must compute in one precision, whatever "auto" is for each.
    plan = replace(plan, precision=choose_precision(plan.precision, device))
    if optimizer is None:
        optimizer = make_optimizer(module, plan)
    records, best = list(records), _Best(keep_best)
    if group is not None:
        _check_same(group, views, labels, val_inputs, val_labels, plan, seed, len(records))
        copy_from_first(module, group)
    try:
        for epoch in range(len(records) + 1, plan.epochs + 1):
            bar = f"{progress} {epoch}/{plan.epochs}" if progress is not None else None
            start = time.perf_counter()
            train = _train_epoch(
                *(module, views, labels, plan, epoch, seed, device),
                *(optimizer, loss, transform, bar, group),
            )
            trained = time.perf_counter()
            val = Metrics(math.nan, math.nan)
            if val_inputs is not None:
                with autocast(plan.precision, device):
                    val = evaluate(module, val_inputs, val_labels, loss=loss, group=group)
            validated = time.perf_counter()
            _check_finite(module, train, val if val_inputs is not None else train, epoch, plan)
            record = EpochRecord(epoch, *train, *val, trained - start, validated - trained)
            records.append(record)
            best.look(module, record)
            ended = on_epoch(record) if on_epoch is not None else None
            ended = ended is True or (hasattr(ended, "dtype") and bool(ended))  # of numpy or torch
            if largest(ended, device, group):  # for all, if it is for one
                break
    finally:
        best.restore(module)
        module.eval()
    return records


class _Best:
    """The weights of the epoch that validated best so far, if they are to be kept."""

    def __init__(self, keep: bool) -> None:
        self.keep, self.accuracy = keep, -1.0
        self.state: dict[str, Any] | None = None

    def look(self, module: nn.Module, record: EpochRecord) -> None:
        if self.keep and record.val_accuracy > self.accuracy:
            self.accuracy = record.val_accuracy
            self.state = copy.deepcopy(module.state_dict())

    def restore(self, module: nn.Module) -> None:
        if self.state is not None:
            module.load_state_dict(self.state)


def make_optimizer(module: nn.Module, recipe: Recipe | Plan) -> torch.optim.Optimizer:
    """Makes the recipe's optimizer for the trainable parameters of a module.

    Raises:
        ValueError: If the rates depend on the number of images, and the recipe is no plan.
    """
    if isinstance(recipe, Recipe) and recipe.by_size:
        raise ValueError(
            "the recipe's rates depend on the number of images: give recipe.for_images(N)"
        )
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    both: dict[str, Any] = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "adam":
        betas = (recipe.momentum, 0.999)
        return torch.optim.Adam(parameters, betas=betas, eps=1e-7, fused=True, **both)
    both["momentum"] = recipe.momentum
    if recipe.optimizer == "muon":
        return Muon(parameters, **both)
    return torch.optim.SGD(parameters, nesterov=True, fused=True, **both)


def derive_seed(*parts: int | str) -> int:
    """Derives an independent seed, below 2**63, from a seed and what it is for, such as "base"."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds torch's generators of the CPU and of one device, and restores them in the end."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        _seed_generators(seed, device)
        yield


def _seed_generators(seed: int, device: torch.device) -> None:
    # torch.manual_seed would seed the generators of all devices and restore none of them.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type != "cpu":
        torch.manual_seed(seed)


def _check_trainable(module: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    """Refuses a module with nothing to train, and an optimizer that trains nothing of it."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    if not trainable:
        raise ValueError("the module has no trainable parameter: unfreeze what is to train")
    if optimizer is None:
        return
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in held for p in trainable):
        raise ValueError(
            "the optimizer holds no trainable parameter of the module: make it after freezing, "
            "with what is to train"
        )


@contextlib.contextmanager
def _peaks(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Notes the learning rates as the peaks of an epoch, as torch names them, and restores them."""
    for param_group in optimizer.param_groups:
        param_group["initial_lr"] = param_group["lr"]
    try:
        yield
    finally:
        for param_group in optimizer.param_groups:
            param_group["lr"] = param_group["initial_lr"]


def _train_epoch(
    module: nn.Module,
    views: Tensor,
    labels: Tensor,
    plan: Plan,
    epoch: int,
    seed: int,
    device: torch.device,
    optimizer: torch.optim.Optimizer,
    loss: Loss | None,
    transform: Transform | None,
    bar: str | None,
    group: "ProcessGroup | None",
) -> Metrics:
    steps = math.ceil(len(labels) / plan.batch_size)
    outputs, top = [], None if loss is not None else int(labels.max())
    module.train()
    with seeded(derive_seed(seed, epoch), device), _peaks(optimizer):
        rows, targets = _order(views, labels)
        if group is not None and group.rank() > 0:
            _seed_generators(derive_seed(seed, epoch, group.rank()), device)  # a dropout of its own
        batches = with_bar(_batches(views, rows, targets, plan.batch_size, group), bar, steps)
        for step, (inputs, targets) in enumerate(batches, start=(epoch - 1) * steps):
            factor = rate_factor(plan, step, plan.epochs * steps)
            for param_group in optimizer.param_groups:
                param_group["lr"] = param_group["initial_lr"] * factor
            optimizer.zero_grad()
            if len(targets):  # else a share of a group, which may be empty
                inputs, targets = inputs.to(device), targets.to(device)
                if transform is not None:
                    inputs, targets = _transformed(transform, inputs, targets)
                with autocast(plan.precision, device):
                    logits = module(inputs)
                    check_logits(logits, top)
                    batch_loss = mean_loss(loss, logits, targets)
                batch_loss.backward()
                outputs.append((batch_loss.detach(), logits.detach(), targets))
            if group is not None:
                average_gradients(_parameters(optimizer), len(targets), group)
            optimizer.step()
    if group is not None:
        copy_from_first(module, group)  # what layers count by themselves, such as running means
    return compute_metrics(outputs, group, device)


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def _check_same(
    group: "ProcessGroup",
    views: Tensor,
    labels: Tensor,
    val_inputs: Tensor | None,
    val_labels: Tensor | None,
    plan: Plan,
    seed: int,
    epochs_done: int,
) -> None:
    """Refuses what would be no computation of one process, as far as a glance can tell."""
    check_same(
        group,
        views=tuple(views.shape),
        labels=_digest(labels),
        validation_inputs=None if val_inputs is None else tuple(val_inputs.shape),
        validation_labels=None if val_labels is None else _digest(val_labels),
        recipe=plan,
        seed=seed,
        epochs_done=epochs_done,
    )


def _digest(labels: Tensor) -> str:
    content = hashlib.sha256(labels.detach().cpu().numpy().tobytes())
    return f"{tuple(labels.shape)} {content.hexdigest()[:16]}"


def _transformed(transform: Transform, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    changed = transform(inputs, targets)
    if not isinstance(changed, tuple | list) or len(changed) != 2:
        raise TypeError(f"a transform returns inputs and targets, not {type(changed).__name__}")
    check_tensors(inputs=changed[0], targets=changed[1])
    if len(changed[0]) != len(changed[1]):
        raise ValueError(
            f"a transform returned {len(changed[0])} inputs and {len(changed[1])} targets"
        )
    return changed[0], changed[1]


def _check_finite(module: nn.Module, train: Metrics, val: Metrics, epoch: int, plan: Plan) -> None:
    values = {"training loss": train.loss, "validation loss": val.loss}
    values["sum of the weights"] = sum(float(p.detach().sum()) for p in module.parameters())
    for name, value in values.items():
        if not math.isfinite(value):
            raise TrainingError(
                f"the {name} became {value} in epoch {epoch} with lr {plan.lr:g} and "
                f"weight_decay {plan.weight_decay:g}: try a lower learning rate"
            )


def _order(views: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Draws one epoch's order and views: which rows of all views of all examples, and their labels.

    This alone decides which examples make up a batch, with torch's global generator of the CPU.
    """
    num_views, num_examples = views.shape[:2]
    examples = torch.randperm(num_examples)
    rows = torch.randint(num_views, (num_examples,)) * num_examples + examples
    return rows.to(views.device), labels[examples.to(labels.device)]


def _batches(
    views: Tensor,
    rows: Tensor,
    targets: Tensor,
    batch_size: int,
    group: "ProcessGroup | None",
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields one epoch's batches of inputs and labels, or shares of them; the last may be less."""
    inputs = views.flatten(0, 1)
    for chosen, labels in zip(rows.split(batch_size), targets.split(batch_size), strict=True):
        part = share(len(labels), group)
        yield inputs.index_select(0, chosen[part]), labels[part]
