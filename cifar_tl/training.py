"""Train and evaluate a module on plain tensors, one record per epoch."""

import contextlib
import copy
import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor, nn
from torch.nn import functional

from cifar_tl.errors import TrainingError
from cifar_tl.muon import Muon
from cifar_tl.progress import with_bar
from cifar_tl.recipe import Recipe, rate_factor

Loss = Callable[[Tensor, Tensor], Tensor]  # logits and targets to one value per example
Transform = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # of inputs and targets


class Metrics(NamedTuple):
    """Means over examples.

    Attributes:
        loss: By default cross-entropy in nats.
        accuracy: A fraction from 0 to 1.
    """

    loss: float
    accuracy: float


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
    recipe: Recipe,
    *,
    seed: int = 0,
    optimizer: torch.optim.Optimizer | None = None,
    loss: Loss | None = None,
    transform: Transform | None = None,
    records: Sequence[EpochRecord] = (),
    on_epoch: Callable[[EpochRecord], object] | None = None,
    keep_best: bool = False,
    progress: str | None = None,
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
            and its mirror image. Each epoch picks one version of each example.
        labels: ``(N,)`` integers, each below the number of logits; for a ``loss`` of your own,
            whatever it takes, a row for each example.
        val_inputs: ``(M, ...)`` validation inputs; None: there are none, and the records say nan.
        val_labels: ``(M,)``.
        recipe: How to train.
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

    Returns:
        The records of all epochs, those given included.

    Raises:
        ValueError: If shapes, labels or the optimizer do not fit.
        TypeError: If something is no tensor, or labels are no integers.
        TrainingError: If losses or weights are no longer finite numbers.
    """
    labels = _check_views(views, labels, loss)
    if (val_inputs is None) != (val_labels is None):
        raise ValueError("validation needs inputs and labels: give both, or None for both")
    if val_inputs is not None:
        val_labels = _check_examples(val_inputs, val_labels, loss, "validation inputs")
    elif keep_best:
        raise ValueError("keep_best needs validation inputs and labels")
    _check_trainable(module, optimizer)
    device = next(module.parameters()).device
    views, labels = views.to(device), labels.to(device)
    if optimizer is None:
        optimizer = make_optimizer(module, recipe)
    records, best = list(records), _Best(keep_best)
    try:
        for epoch in range(len(records) + 1, recipe.epochs + 1):
            bar = f"{progress} {epoch}/{recipe.epochs}" if progress is not None else None
            start = time.perf_counter()
            train = _train_epoch(
                module, views, labels, recipe, epoch, seed, optimizer, loss, transform, bar
            )
            trained = time.perf_counter()
            val = Metrics(math.nan, math.nan)
            if val_inputs is not None:
                with autocast(recipe, device):
                    val = evaluate(module, val_inputs, val_labels, loss=loss)
            validated = time.perf_counter()
            _check_finite(module, train, val if val_inputs is not None else train, epoch, recipe)
            record = EpochRecord(epoch, *train, *val, trained - start, validated - trained)
            records.append(record)
            best.look(module, record)
            ended = on_epoch(record) if on_epoch is not None else None
            if ended is True or (hasattr(ended, "dtype") and bool(ended)):  # of numpy or torch
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


def evaluate(
    module: Callable[[Tensor], Tensor],
    inputs: Tensor | Iterable[Sequence[Tensor]],
    labels: Tensor | None = None,
    *,
    loss: Loss | None = None,
    batch_size: int = 100,
) -> Metrics:
    """Computes loss and accuracy in evaluation mode; then every mode is as it was.

    Args:
        module: Maps a batch of inputs to logits: a module, a method of one, or any function. A
            program that was exported in training mode stays in it.
        inputs: ``(N, ...)``, N > 0; or batches of inputs and labels, such as a ``DataLoader``.
        labels: ``(N,)`` integers, each below the number of logits; none for batches.
        loss: As for `fit`; by default cross-entropy, in nats. Where targets are no classes, the
            accuracy is nan.
        batch_size: Examples at a time; it changes the result only by rounding.

    Raises:
        ValueError: If there are no examples, or labels do not fit.
        TypeError: If something is no tensor, or labels are no integers.
    """
    outputs = []
    with torch.inference_mode():
        for logits, targets in _outputs(module, inputs, labels, loss, batch_size):
            outputs.append((_mean_loss(loss, logits, targets), logits, targets))
    return _metrics(outputs)


def confusion_matrix(
    module: Callable[[Tensor], Tensor],
    inputs: Tensor | Iterable[Sequence[Tensor]],
    labels: Tensor | None = None,
    *,
    batch_size: int = 100,
) -> Tensor:
    """Counts which class is taken for which, in evaluation mode.

    Args, modes and errors are those of `evaluate`; K is the number of logits.

    Returns:
        ``(K, K)`` int64 on the CPU: a row for each true class, a column for each class predicted.
    """
    pairs, num_classes = [], 0
    with torch.inference_mode():
        for logits, targets in _outputs(module, inputs, labels, None, batch_size):
            num_classes = logits.shape[1]
            pairs.append((targets * num_classes + logits.argmax(1)).cpu())
    counts = torch.bincount(torch.cat(pairs), minlength=num_classes**2)
    return counts.view(num_classes, num_classes)


@overload
def extract_features(
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    batch_size: int = 100,
    progress: str | None = None,
) -> Tensor: ...


@overload
def extract_features(
    forward: Callable[[Tensor], Tensor],
    images: Iterable[Tensor],
    *,
    batch_size: int = 100,
    progress: str | None = None,
) -> Tensor: ...


@overload
def extract_features(
    forward: Callable[[Tensor], Tensor],
    images: Iterable[Sequence[Tensor]],
    *,
    batch_size: int = 100,
    progress: str | None = None,
) -> tuple[Tensor, Tensor]: ...


def extract_features(
    forward: Callable[[Tensor], Tensor],
    images: Tensor | Iterable[Tensor] | Iterable[Sequence[Tensor]],
    *,
    batch_size: int = 100,
    progress: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Computes the features of many images without gradients, in evaluation mode.

    Args:
        forward: Maps a batch of images to features: a module, or a method of one such as
            ``model.forward_features``, whose modes are then as they were; or any function.
        images: ``(N, ...)``, N > 0; or batches of images, or of images and labels, such as a
            ``DataLoader``, where the images do not fit into memory.
        batch_size: Images at a time; it changes the result only by rounding.
        progress: Text before a progress bar on standard error; by default there is no bar.

    Returns:
        ``(N, ...)``, what ``forward`` returned for all images; of batches with labels a pair, these
        and the labels ``(N,)`` in the same order.

    Raises:
        ValueError: If there are no images.
        TypeError: If they are neither a tensor nor batches of tensors.
    """
    _check_batch_size(batch_size)
    device = _device_of(forward)
    with evaluating(forward), torch.no_grad():  # no classifier could train on inference tensors
        if not isinstance(images, Tensor):
            return _features_of_batches(forward, images, device, progress)
        result = None
        for start in with_bar(range(0, len(images), batch_size), progress):
            batch = forward(images[start : start + batch_size].to(device))
            if result is None:  # collecting batches and joining them would take twice the memory
                result = batch.new_empty(len(images), *batch.shape[1:])
            result[start : start + batch_size] = batch
    if result is None:
        raise ValueError("there are no images to compute features of")
    return result


def _features_of_batches(
    forward: Callable[[Tensor], Tensor],
    batches: Iterable[Tensor] | Iterable[Sequence[Tensor]],
    device: torch.device | None,
    progress: str | None,
) -> Tensor | tuple[Tensor, Tensor]:
    features, labels = [], []
    for batch in with_bar(_parts_of_batches(batches), progress):
        features.append(forward(batch[0].to(device)))
        if len(batch) == 2:
            if len(batch[1]) != len(batch[0]):
                raise ValueError(f"a batch of {len(batch[0])} images has {len(batch[1])} labels")
            labels.append(batch[1].to(device))
    if not features:
        raise ValueError("there are no images to compute features of")
    return (torch.cat(features), torch.cat(labels)) if labels else torch.cat(features)


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


def _check_trainable(module: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    """Refuses a module with nothing to train, and an optimizer that trains nothing of it."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    if not trainable:
        raise ValueError("the module has no trainable parameter: unfreeze what is to train")
    groups = optimizer.param_groups if optimizer is not None else [{"params": trainable}]
    held = {id(p) for group in groups for p in group["params"]}
    if not any(id(p) in held for p in trainable):
        raise ValueError(
            "the optimizer holds no trainable parameter of the module: make it after freezing, "
            "with what is to train"
        )


@contextlib.contextmanager
def _peaks(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Notes the learning rates as the peaks of an epoch, as torch names them, and restores them."""
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    try:
        yield
    finally:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"]


def _train_epoch(
    module: nn.Module,
    views: Tensor,
    labels: Tensor,
    recipe: Recipe,
    epoch: int,
    seed: int,
    optimizer: torch.optim.Optimizer,
    loss: Loss | None,
    transform: Transform | None,
    bar: str | None,
) -> Metrics:
    device = views.device
    steps = math.ceil(len(labels) / recipe.batch_size)
    outputs, top = [], None if loss is not None else int(labels.max())
    module.train()
    with seeded(derive_seed(seed, epoch), device), _peaks(optimizer):
        batches = with_bar(_batches(views, labels, recipe.batch_size), bar, steps)
        for step, (inputs, targets) in enumerate(batches, start=(epoch - 1) * steps):
            factor = rate_factor(recipe, step, recipe.epochs * steps)
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            if transform is not None:
                inputs, targets = _transformed(transform, inputs, targets)
            with autocast(recipe, device):
                logits = module(inputs)
                _check_logits(logits, top)
                mean_loss = _mean_loss(loss, logits, targets)
            optimizer.zero_grad()
            mean_loss.backward()
            optimizer.step()
            outputs.append((mean_loss.detach(), logits.detach(), targets))
    return _metrics(outputs)


def _transformed(transform: Transform, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    changed = transform(inputs, targets)
    if not isinstance(changed, tuple | list) or len(changed) != 2:
        raise TypeError(f"a transform returns inputs and targets, not {type(changed).__name__}")
    _check_tensors(inputs=changed[0], targets=changed[1])
    if len(changed[0]) != len(changed[1]):
        raise ValueError(
            f"a transform returned {len(changed[0])} inputs and {len(changed[1])} targets"
        )
    return changed[0], changed[1]


def _mean_loss(loss: Loss | None, logits: Tensor, targets: Tensor) -> Tensor:
    if loss is None:
        return functional.cross_entropy(logits, targets)
    values = loss(logits, targets)
    _check_tensors(loss=values)
    if values.shape != logits.shape[:1]:
        raise ValueError(
            f"a loss gives one value per example, {tuple(logits.shape[:1])}, not of shape "
            f"{tuple(values.shape)}: reduction='none' does so in torch's own"
        )
    return values.mean()


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


def _check_views(views: Tensor, labels: Tensor, loss: Loss | None) -> Tensor:
    """Checks training examples; returns the labels in the type that torch's loss takes."""
    _check_tensors(views=views, labels=labels)
    if views.ndim < 2 or labels.shape[:1] != views.shape[1:2] or len(labels) == 0:
        raise ValueError(
            f"views of shape {tuple(views.shape)} need labels of shape (N,) where views are "
            f"(V, N, ...) with N > 0, not {tuple(labels.shape)}; one version alone is images[None]"
        )
    return _check_labels(labels, loss)


def _check_examples(inputs: object, labels: object, loss: Loss | None, what: str) -> Tensor:
    """Checks inputs and labels; returns the labels in the type that torch's loss takes."""
    _check_tensors(inputs=inputs, labels=labels)
    assert isinstance(inputs, Tensor)
    assert isinstance(labels, Tensor)
    if labels.shape[:1] != inputs.shape[:1] or len(labels) == 0:
        raise ValueError(
            f"{what} of shape {tuple(inputs.shape)} need as many labels, at least one, not "
            f"{tuple(labels.shape)}"
        )
    return _check_labels(labels, loss)


def _check_tensors(**values: object) -> None:
    for name, value in values.items():
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise TypeError(f"{name} must be a torch.Tensor, not {kind}: torch.as_tensor makes one")


def _check_labels(labels: Tensor, loss: Loss | None) -> Tensor:
    if loss is not None:
        return labels
    if labels.is_floating_point() or labels.is_complex() or labels.ndim != 1:
        raise TypeError(
            f"labels must be class numbers (N,) of an integer type, not {labels.dtype} of shape "
            f"{tuple(labels.shape)}: labels.long() makes them, or give a loss of your own"
        )
    labels = labels.long()
    if int(labels.min()) < 0:
        raise ValueError(f"labels must be from 0 on, not {int(labels.min())}: leave these out")
    return labels


def _check_logits(logits: Tensor, top: int | None) -> None:
    """Checks that there is a logit for every label up to the highest, if that is known."""
    if logits.ndim != 2:
        raise ValueError(f"logits must be (N, classes), not {tuple(logits.shape)}")
    if top is not None and top >= logits.shape[1]:
        raise ValueError(
            f"labels go up to {top}, and there are only {logits.shape[1]} logits: give the model "
            "more outputs"
        )


def _outputs(
    module: Callable[[Tensor], Tensor],
    inputs: Tensor | Iterable[Sequence[Tensor]],
    labels: Tensor | None,
    loss: Loss | None,
    batch_size: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields logits and labels of one batch after the other; in the end every mode is as before."""
    batches: Iterable[tuple[Tensor, Tensor]]
    _check_batch_size(batch_size)
    if isinstance(inputs, Tensor) or labels is not None:
        if labels is None:
            raise TypeError("inputs that are a tensor need labels, a tensor as well")
        labels = _check_examples(inputs, labels, loss, "inputs")
        batches = zip(inputs.split(batch_size), labels.split(batch_size), strict=True)  # type: ignore[union-attr]
        top = None if loss is not None else int(labels.max())  # once, not for each batch
    else:
        batches, top = _batches_of_two(inputs), None
    device, number = _device_of(module), 0
    with evaluating(module):
        for batch, targets in batches:
            if labels is None:
                targets = _check_examples(batch, targets, loss, "inputs")
                top = None if loss is not None else int(targets.max())
            logits = module(batch.to(device))
            _check_logits(logits, top)
            number += len(targets)
            yield logits, targets.to(logits.device)
    if not number:
        raise ValueError("there are no examples")


def _batches_of_two(batches: Iterable[Sequence[Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in _parts_of_batches(batches):
        if len(batch) != 2:
            raise TypeError("batches must be pairs of inputs and labels, these have no labels")
        yield batch[0], batch[1]


def _parts_of_batches(batches: object) -> Iterator[Sequence[Tensor]]:
    """Yields the parts of each batch: images, and maybe labels."""
    if hasattr(batches, "__array__") or not isinstance(batches, Iterable):
        _check_tensors(inputs=batches)
    assert isinstance(batches, Iterable)
    for batch in batches:
        parts = [batch] if isinstance(batch, Tensor) else batch
        if not isinstance(parts, tuple | list) or len(parts) not in (1, 2):
            raise TypeError(
                f"batches must be tensors or pairs of inputs and labels, not "
                f"{type(batch).__name__}: a Dataset goes into a DataLoader"
            )
        for part in parts:
            _check_tensors(batch=part)
            if part.ndim == 0:
                raise TypeError("batches must be of several examples: use a DataLoader")
        yield parts


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")


def _owner(function: object) -> nn.Module | None:
    """Finds the module that a function computes with: itself, or the one whose method it is."""
    for name in ("func", "_torchdynamo_orig_callable", "__self__"):  # of partial, compile, methods
        if not isinstance(function, nn.Module):
            function = getattr(function, name, function)
    return function if isinstance(function, nn.Module) else None


def _device_of(function: object) -> torch.device | None:
    """Finds the device of a module's parameters; None if it has none, or is none."""
    owner = _owner(function)
    first = next(owner.parameters(), None) if owner is not None else None
    return None if first is None else first.device


@contextlib.contextmanager
def evaluating(function: object) -> Iterator[None]:
    """Puts the module of a function into evaluation mode, and every mode back as it was."""
    owner = _owner(function)
    modules = list(owner.modules()) if owner is not None else []
    modes = [(module, module.training) for module in modules if hasattr(module, "training")]
    try:
        if owner is not None:
            with contextlib.suppress(NotImplementedError, AttributeError):  # of exported programs
                owner.eval()
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training


def _metrics(outputs: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Metrics:
    """Computes means over examples from the mean loss, the logits and the labels of each batch.

    They are read at the end, so that no step waits for a device.
    """
    losses, logits, targets = zip(*outputs, strict=True)
    labels = torch.cat(targets)
    sizes = torch.tensor([len(batch) for batch in targets], dtype=torch.float64)
    loss = torch.stack(losses).cpu().double() @ sizes / len(labels)
    outputs_of_all = torch.cat(logits)
    if labels.ndim == 2 and labels.shape == outputs_of_all.shape and labels.shape[1] > 1:
        # A value for each class: the class with the largest is meant.
        labels = labels.argmax(1)
    if labels.ndim != 1 or labels.is_floating_point():
        return Metrics(float(loss), math.nan)
    correct = (outputs_of_all.argmax(1) == labels).sum()
    return Metrics(float(loss), int(correct) / len(labels))
