"""Train a module on tensors, with one record for each epoch."""

import contextlib
import copy
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cifar_tl.balance import are_unequal, balanced_accuracy, logit_offsets
from cifar_tl.checks import Loss, check_examples, check_logits, check_views
from cifar_tl.distributed import average_gradients, check_same, copy_from_first, largest, share
from cifar_tl.errors import TrainingError
from cifar_tl.evaluation import (
    Metrics,
    compute_metrics,
    confusion_matrix,
    evaluate,
    extract_features,
    mean_loss,
)
from cifar_tl.machine import autocast, choose_precision, to_device_if_it_fits
from cifar_tl.muon import Muon
from cifar_tl.progress import with_bar
from cifar_tl.recipe import Plan, Recipe, rate_factor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Transform = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # of inputs and targets


@dataclass(frozen=True)
class EpochRecord:
    """What happened in one epoch. Epochs count from 1.

    Losses are means over examples, accuracies are fractions. The training figures are collected
    during the epoch, with dropout and while the weights move. The validation figures are from the
    end of the epoch. They are nan without validation data. The balanced accuracy is the mean over
    classes. It is nan where `fit` does not record it: see its ``by_class``.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    seconds_train: float
    seconds_validation: float
    val_balanced_accuracy: float = field(default=math.nan, kw_only=True)


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
    balanced: bool = False,
    by_class: bool | None = None,
    records: Sequence[EpochRecord] = (),
    on_epoch: Callable[[EpochRecord], object] | None = None,
    keep_best: bool = False,
    progress: str | None = None,
    group: "ProcessGroup | None" = None,
) -> list[EpochRecord]:
    """Trains a module in place. Afterwards, also after an error, it is in evaluation mode.

    The inputs can be anything: images for a whole network, features for a classifier.

    All randomness follows from ``seed`` and the number of the epoch. In the end torch's global
    generators are as before. A stopped training can go on as if it had never stopped: pass the
    module and the optimizer as they were, and the records so far. No other thread may draw from
    torch's generators meanwhile.

    Args:
        module: Maps a batch of inputs to logits. It trains on the device of its parameters.
        views: ``(V, N, ...)``: V versions of each of N examples, such as an image and its mirror
            image. Each epoch picks one version of each example. If they fit, they move to the
            module's device once, else batch by batch.
        labels: ``(N,)`` integers below the number of logits. With a ``loss`` of your own: N
            targets of any kind.
        val_inputs: ``(M, ...)``. None: no validation.
        val_labels: ``(M,)``.
        recipe: How to train. A `Recipe` becomes a `Plan` for N examples: `Recipe.for_images`. Its
            optimizer, rates, epochs, batches and precision are used. Normalisation, mirror images,
            shifts and dropout are yours to do: see docs/library.md.
        seed: Decides order, views and dropout.
        optimizer: None: a new one from `make_optimizer`. One of your own keeps its learning rates:
            they are the peaks, which the recipe's schedule scales within an epoch. After the epoch
            they have their old values.
        loss: Maps the logits and targets of a batch to one value per example, such as
            ``CrossEntropyLoss(weight=..., reduction="none")``. None: cross-entropy.
        transform: Changes each training batch, ``(inputs, targets) -> (inputs, targets)``, such as
            a random augmentation.
        balanced: Aim at the mean over classes, if some have many more examples than others: add
            `logit_offsets` to the logits in training. The labels must be classes.
        by_class: Record the balanced accuracy of the validation. None: if the training classes are
            unequal (`are_unequal`) and the loss is cross-entropy.
        records: The records of earlier epochs.
        on_epoch: Called with each new record. If it returns True, the training ends.
        keep_best: End with the weights that validated best in this call, not with the last ones.
            If the balanced accuracy is recorded, it decides.
        progress: Text before a progress bar on standard error. None: no bar.
        group: Processes that share the work, such as ``torch.distributed.group.WORLD``. All pass
            the same arguments. Each computes its part of every batch, so that the result is that of
            one process. Training starts from the weights of the first process. Each process
            measures its own times. None: this process alone.

    Returns:
        The records of all epochs, with the earlier ones.

    Raises:
        ValueError: If shapes, labels or the optimizer do not fit, or if the processes of a group
            have different examples, recipes, seeds or numbers of records.
        TypeError: If something is not a tensor, or labels are not integers. With a ``loss`` of
            your own they must be integers if ``balanced`` or ``by_class``.
        TrainingError: If losses or weights are no longer finite numbers.
    """
    labels = check_views(views, labels, loss)
    if (val_inputs is None) != (val_labels is None):
        raise ValueError("validation needs inputs and labels: give both, or None for both")
    if val_inputs is not None:
        val_labels = check_examples(val_inputs, val_labels, loss, "validation inputs")
    elif keep_best:
        raise ValueError("keep_best needs validation inputs and labels")
    if by_class is None:
        by_class = loss is None and are_unequal(labels)
    if (balanced or by_class) and (labels.ndim != 1 or labels.is_floating_point()):
        raise TypeError(
            f"{'balanced' if balanced else 'by_class'} needs labels that are classes, integers "
            "(N,): leave it out with other targets"
        )
    _check_trainable(module, optimizer)
    device = next(module.parameters()).device
    views, labels = to_device_if_it_fits(views, device), labels.to(device)
    plan = recipe.for_images(len(labels)) if isinstance(recipe, Recipe) else recipe
    # A group computes in one precision, even if "auto" means something else for each process.
    plan = replace(plan, precision=choose_precision(plan.precision, device))
    if optimizer is None:
        optimizer = make_optimizer(module, plan)
    training = _Training(
        module, views, labels, plan, seed, device, optimizer, loss, transform, balanced, group
    )
    records = list(records)
    best, best_accuracy = None, -1.0
    if group is not None:
        check_same(
            group,
            views=tuple(views.shape),
            labels=labels,
            validation_labels=val_labels,
            recipe=plan,
            seed=seed,
            balanced=balanced,
            epochs_done=len(records),
        )
        copy_from_first(module, group)
    try:
        for epoch in range(len(records) + 1, plan.epochs + 1):
            bar = f"{progress} {epoch}/{plan.epochs}" if progress is not None else None
            start = time.perf_counter()
            train = _train_epoch(training, epoch, bar)
            trained = time.perf_counter()
            val, mean_of_classes = _validate(training, val_inputs, val_labels, by_class)
            seconds = (trained - start, time.perf_counter() - trained)
            record = EpochRecord(
                epoch, *train, *val, *seconds, val_balanced_accuracy=mean_of_classes
            )
            _check_finite(module, record, plan, validated=val_inputs is not None)
            records.append(record)
            accuracy = mean_of_classes if by_class else record.val_accuracy
            if keep_best and accuracy > best_accuracy:
                best, best_accuracy = copy.deepcopy(module.state_dict()), accuracy
            ended = on_epoch(record) if on_epoch is not None else None
            ended = ended is True or (hasattr(ended, "dtype") and bool(ended))  # numpy's, torch's
            if largest(ended, device, group):  # one process ends it for all
                break
    finally:
        if best is not None:
            module.load_state_dict(best)
        module.eval()
    return records


def make_optimizer(module: nn.Module, recipe: Recipe | Plan) -> torch.optim.Optimizer:
    """Makes the optimizer of a recipe for the trainable parameters of a module.

    Raises:
        ValueError: If the rates of a `Recipe` depend on the number of images. Pass a `Plan` then.
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
    """Derives an independent seed, below 2**63, from a seed and what it is for: "base", epoch 3."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds torch's generators of the CPU and of one device. In the end it restores them."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        _seed_generators(seed, device)
        yield


def _seed_generators(seed: int, device: torch.device) -> None:
    # torch.manual_seed would seed all CUDA devices, and fork_rng restores only one.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type != "cpu":
        torch.manual_seed(seed)


def _check_trainable(module: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    """Raises if nothing in the module can train, or if the optimizer trains nothing of it."""
    trainable = {parameter for parameter in module.parameters() if parameter.requires_grad}
    if not trainable:
        raise ValueError("the module has no trainable parameter: unfreeze what is to train")
    if optimizer is not None and trainable.isdisjoint(_parameters(optimizer)):
        raise ValueError(
            "the optimizer holds no trainable parameter of the module: make it after freezing, "
            "with what is to train"
        )


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


@contextlib.contextmanager
def _peaks(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Keeps the learning rates as the peaks of an epoch, under torch's name, and restores them."""
    for param_group in optimizer.param_groups:
        param_group["initial_lr"] = param_group["lr"]
    try:
        yield
    finally:
        for param_group in optimizer.param_groups:
            param_group["lr"] = param_group["initial_lr"]


@dataclass(frozen=True)
class _Training:
    """What all epochs of a training have in common."""

    module: nn.Module
    views: Tensor
    labels: Tensor
    plan: Plan
    seed: int
    device: torch.device
    optimizer: torch.optim.Optimizer
    loss: Loss | None
    transform: Transform | None
    balanced: bool
    group: "ProcessGroup | None"


def _train_epoch(training: _Training, epoch: int, bar: str | None) -> Metrics:
    """Trains one epoch, and returns loss and accuracy during it."""
    module, plan, device = training.module, training.plan, training.device
    optimizer, loss, group = training.optimizer, training.loss, training.group
    steps = math.ceil(len(training.labels) / plan.batch_size)
    outputs, top = [], None if loss is not None else int(training.labels.max())
    offsets = logit_offsets(training.labels) if training.balanced else None
    module.train()
    with seeded(derive_seed(training.seed, epoch), device), _peaks(optimizer):
        batches = with_bar(_batches(training, epoch), bar, steps)
        for step, (inputs, targets) in enumerate(batches, start=(epoch - 1) * steps):
            factor = rate_factor(plan, step, plan.epochs * steps)
            for param_group in optimizer.param_groups:
                param_group["lr"] = param_group["initial_lr"] * factor
            optimizer.zero_grad()
            if len(targets):  # in a group, a share may be empty
                inputs, targets = inputs.to(device), targets.to(device)
                if training.transform is not None:
                    inputs, targets = training.transform(inputs, targets)
                with autocast(plan.precision, device):
                    logits = module(inputs)
                    check_logits(logits, top)
                    batch_loss = mean_loss(loss, _with_offsets(logits, offsets), targets)
                batch_loss.backward()
                outputs.append((batch_loss.detach(), logits.detach(), targets))
            if group is not None:
                average_gradients(_parameters(optimizer), len(targets), group)
            optimizer.step()
    if group is not None:
        copy_from_first(module, group)  # what layers count by themselves, such as running means
    return compute_metrics(outputs, group, device)


def _with_offsets(logits: Tensor, offsets: Tensor | None) -> Tensor:
    """Adds offsets to the logits. Outputs beyond the last class have none."""
    if offsets is None:
        return logits
    return logits + functional.pad(offsets, (0, logits.shape[1] - len(offsets)))


def _validate(
    training: _Training, inputs: Tensor | None, labels: Tensor | None, by_class: bool
) -> tuple[Metrics, float]:
    """Computes loss, accuracy and, if wanted, balanced accuracy. What is not computed is nan."""
    module, loss, group = training.module, training.loss, training.group
    if inputs is None:
        return Metrics(math.nan, math.nan), math.nan
    with autocast(training.plan.precision, training.device):
        if not by_class:
            return evaluate(module, inputs, labels, loss=loss, group=group), math.nan
        logits = extract_features(module, inputs, group=group)  # once for both
        metrics = evaluate(nn.Identity(), logits, labels, loss=loss)
        return metrics, balanced_accuracy(confusion_matrix(nn.Identity(), logits, labels))


def _check_finite(module: nn.Module, record: EpochRecord, plan: Plan, *, validated: bool) -> None:
    values = {"training loss": record.train_loss}
    if validated:
        values["validation loss"] = record.val_loss
    values["sum of the weights"] = sum(float(p.detach().sum()) for p in module.parameters())
    for name, value in values.items():
        if not math.isfinite(value):
            # A step multiplies weights by 1 - lr * weight_decay: below -1 they grow for ever. With
            # a rate above 1, the rate is to blame.
            decayed = plan.lr <= 1 and plan.lr * plan.weight_decay > 2
            raise TrainingError(
                f"the {name} became {value} in epoch {record.epoch} with lr {plan.lr:g} and "
                f"weight_decay {plan.weight_decay:g}: try a lower "
                f"{'weight decay' if decayed else 'learning rate'}",
                "weight_decay" if decayed else "lr",
            )


def _batches(training: _Training, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Draws the order and the views of an epoch, and yields its batches of inputs and labels.

    In a group it yields this process's share of each batch. All processes draw the same order.
    """
    views, labels, group = training.views, training.labels, training.group
    num_views, num_examples = views.shape[:2]
    examples = torch.randperm(num_examples)
    rows = (torch.randint(num_views, (num_examples,)) * num_examples + examples).to(views.device)
    if group is not None and group.rank() > 0:  # from here on, a dropout of its own
        seed = derive_seed(training.seed, epoch, group.rank())
        _seed_generators(seed, training.device)
    inputs, targets = views.flatten(0, 1), labels[examples.to(labels.device)]
    size = training.plan.batch_size
    for chosen, wanted in zip(rows.split(size), targets.split(size), strict=True):
        part = share(len(wanted), group)
        yield inputs.index_select(0, chosen[part]), wanted[part]
