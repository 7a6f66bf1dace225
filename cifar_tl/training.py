"""Train and evaluate a module on plain tensors, one record per epoch."""

import contextlib
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from cifar_tl.errors import TrainingError
from cifar_tl.muon import Muon
from cifar_tl.progress import with_bar
from cifar_tl.recipe import Recipe, learning_rate


class Metrics(NamedTuple):
    """Means over examples."""

    loss: float  # cross-entropy in nats
    accuracy: float  # a fraction from 0 to 1


@dataclass(frozen=True)
class EpochRecord:
    """What happened in one epoch.

    The training figures are those seen while training, with dropout and while the weights moved.
    """

    epoch: int  # from 1
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
    val_inputs: Tensor,
    val_labels: Tensor,
    recipe: Recipe,
    *,
    seed: int = 0,
    optimizer: torch.optim.Optimizer | None = None,
    records: Sequence[EpochRecord] = (),
    on_epoch: Callable[[EpochRecord], None] | None = None,
    progress: str | None = None,
) -> list[EpochRecord]:
    """Trains a module in place with cross-entropy; it ends in evaluation mode.

    Nothing depends on what the inputs are: images for a whole network, features for a classifier.
    All randomness is a function of the seed and the epoch, and the caller's generators are left
    alone, so training goes on after any epoch as if it had never stopped: give the module and the
    optimizer as they were then and the records so far.

    Args:
        module: Maps a batch of inputs to logits; trained on the device that it is on.
        views: ``(V, N, ...)``: V equally valid versions of each of N examples, such as an image
            and its mirror image. Each epoch picks one version of each example.
        labels: ``(N,)`` int64, each below the number of logits.
        val_inputs: ``(M, ...)`` validation inputs.
        val_labels: ``(M,)`` int64.
        recipe: How to train.
        seed: Decides order, views and dropout.
        optimizer: By default a new one from `make_optimizer`.
        records: Epochs that have been trained before.
        on_epoch: Called with each new record, after validation.
        progress: Text before a progress bar on standard error; by default there is no bar.

    Returns:
        The records of all epochs, those given included.

    Raises:
        ValueError: If the shapes do not fit together.
        TrainingError: If losses or weights are no longer finite numbers.
    """
    if views.ndim < 2 or labels.shape != views.shape[1:2] or len(labels) == 0:
        raise ValueError(
            f"views of shape {tuple(views.shape)} need labels of shape (N,) where views are "
            f"(V, N, ...) with N > 0, not {tuple(labels.shape)}; one version alone is images[None]"
        )
    if val_labels.shape != val_inputs.shape[:1] or len(val_labels) == 0:
        raise ValueError(
            f"validation inputs of shape {tuple(val_inputs.shape)} need as many labels, at least "
            f"one, not {tuple(val_labels.shape)}"
        )
    device = next(module.parameters()).device
    views, labels = views.to(device), labels.to(device)
    val_inputs, val_labels = val_inputs.to(device), val_labels.to(device)
    if optimizer is None:
        optimizer = make_optimizer(module, recipe)
    records = list(records)
    for epoch in range(len(records) + 1, recipe.epochs + 1):
        bar = f"{progress} {epoch}/{recipe.epochs}" if progress is not None else None
        start = time.perf_counter()
        train = _train_epoch(module, views, labels, recipe, epoch, seed, optimizer, bar)
        trained = time.perf_counter()
        with autocast(recipe, device):
            val = evaluate(module, val_inputs, val_labels)
        validated = time.perf_counter()
        _check_finite(module, train, val, epoch, recipe)
        record = EpochRecord(epoch, *train, *val, trained - start, validated - trained)
        records.append(record)
        if on_epoch is not None:
            on_epoch(record)
    module.eval()
    return records


def evaluate(
    module: nn.Module, inputs: Tensor, labels: Tensor, *, batch_size: int = 100
) -> Metrics:
    """Computes loss and accuracy in evaluation mode; then every mode is as it was.

    Args:
        module: Maps a batch of inputs to logits.
        inputs: ``(N, ...)``, N > 0.
        labels: ``(N,)`` int64, each below the number of logits.
        batch_size: Examples at a time; it changes the result only by rounding.
    """
    device = next(module.parameters()).device
    labels = labels.to(device)
    outputs = []
    with torch.inference_mode():
        for logits, targets in zip(
            _logits(module, inputs, batch_size), labels.split(batch_size), strict=True
        ):
            outputs.append((functional.cross_entropy(logits, targets), logits, targets))
    return _metrics(outputs)


def confusion_matrix(
    module: nn.Module, inputs: Tensor, labels: Tensor, *, batch_size: int = 100
) -> Tensor:
    """Counts which class is taken for which, in evaluation mode.

    Args and modes are those of `evaluate`; K is the number of logits.

    Returns:
        ``(K, K)`` int64 on the CPU: a row for each true class, a column for each class predicted.
    """
    with torch.inference_mode():
        logits = torch.cat(list(_logits(module, inputs, batch_size))).cpu()
    num_classes = logits.shape[1]
    pairs = labels.cpu() * num_classes + logits.argmax(1)
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def extract_features(
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    batch_size: int = 100,
    progress: str | None = None,
) -> Tensor:
    """Computes the features of many images without gradients.

    Args:
        forward: Maps a batch of images to features, such as ``model.forward_features``; what it
            runs must be in evaluation mode.
        images: ``(N, ...)``, N > 0, on the device that ``forward`` expects.
        batch_size: Images at a time; it changes the result only by rounding.
        progress: Text before a progress bar on standard error; by default there is no bar.

    Returns:
        ``(N, ...)``, what ``forward`` returned for all images.
    """
    features = None
    with torch.no_grad():  # not inference_mode, whose tensors no classifier could train on
        for start in with_bar(range(0, len(images), batch_size), progress):
            batch = forward(images[start : start + batch_size])
            if features is None:  # collecting batches and joining them would take twice the memory
                features = batch.new_empty(len(images), *batch.shape[1:])
            features[start : start + batch_size] = batch
    if features is None:
        raise ValueError("there are no images to compute features of")
    return features


def autocast(recipe: Recipe, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Makes the context in which modules on a device compute in the recipe's precision."""
    if recipe.precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def make_optimizer(module: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Makes the recipe's optimizer for the trainable parameters of a module, and no frozen ones."""
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
        # torch.manual_seed would seed the generators of all devices and restore none of them.
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        elif device.type != "cpu":
            torch.manual_seed(seed)
        yield


def _train_epoch(
    module: nn.Module,
    views: Tensor,
    labels: Tensor,
    recipe: Recipe,
    epoch: int,
    seed: int,
    optimizer: torch.optim.Optimizer,
    bar: str | None,
) -> Metrics:
    device = views.device
    steps = math.ceil(len(labels) / recipe.batch_size)
    outputs = []
    module.train()
    with seeded(derive_seed(seed, epoch), device):
        batches = with_bar(_batches(views, labels, recipe.batch_size), bar, steps)
        for step, (inputs, targets) in enumerate(batches, start=(epoch - 1) * steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, step, recipe.epochs * steps)
            with autocast(recipe, device):
                logits = module(inputs)
                loss = functional.cross_entropy(logits, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            outputs.append((loss.detach(), logits.detach(), targets))
    return _metrics(outputs)


def _check_finite(
    module: nn.Module, train: Metrics, val: Metrics, epoch: int, recipe: Recipe
) -> None:
    values = {"training loss": train.loss, "validation loss": val.loss}
    values["sum of the weights"] = sum(float(p.detach().sum()) for p in module.parameters())
    for name, value in values.items():
        if not math.isfinite(value):
            raise TrainingError(
                f"the {name} became {value} in epoch {epoch} with lr {recipe.lr:g} and "
                f"weight_decay {recipe.weight_decay:g}: try a lower learning rate"
            )


def _batches(views: Tensor, labels: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields one epoch's batches of inputs and labels, the last one maybe smaller.

    This alone decides which examples make up a batch, with torch's global generator of the CPU.
    """
    num_views, num_examples = views.shape[:2]
    examples = torch.randperm(num_examples)
    rows = torch.randint(num_views, (num_examples,)) * num_examples + examples
    inputs = views.flatten(0, 1)
    targets = labels[examples.to(labels.device)]
    for chosen, batch_targets in zip(
        rows.to(views.device).split(batch_size), targets.split(batch_size), strict=True
    ):
        yield inputs.index_select(0, chosen), batch_targets


def _logits(module: nn.Module, inputs: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Yields the logits of one batch after the other; in the end every mode is as it was."""
    device = next(module.parameters()).device
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    module.eval()
    try:
        for batch in inputs.split(batch_size):
            yield module(batch.to(device))
    finally:
        for submodule, was_training in modes:
            submodule.training = was_training


def _metrics(outputs: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Metrics:
    """Computes means over examples from the mean loss, the logits and the labels of each batch.

    They are read at the end, so that no step waits for a device.
    """
    losses, logits, targets = zip(*outputs, strict=True)
    labels = torch.cat(targets)
    sizes = torch.tensor([len(batch) for batch in targets], dtype=torch.float64)
    loss = torch.stack(losses).cpu().double() @ sizes / len(labels)
    correct = (torch.cat(logits).argmax(1) == labels).sum()
    return Metrics(float(loss), int(correct) / len(labels))
