"""What a module says of many examples, in evaluation mode: metrics, confusions, features."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, overload

import torch
from torch import Tensor, nn
from torch.nn import functional

from cifar_tl.checks import (
    Loss,
    check_batch_size,
    check_examples,
    check_logits,
    check_tensors,
)
from cifar_tl.progress import with_bar


class Metrics(NamedTuple):
    """Means over examples.

    Attributes:
        loss: By default cross-entropy in nats.
        accuracy: A fraction from 0 to 1.
    """

    loss: float
    accuracy: float


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
            outputs.append((mean_loss(loss, logits, targets), logits, targets))
    return compute_metrics(outputs)


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
    images: Tensor | Iterable[Tensor],
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
    check_batch_size(batch_size)
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


def _outputs(
    module: Callable[[Tensor], Tensor],
    inputs: Tensor | Iterable[Sequence[Tensor]],
    labels: Tensor | None,
    loss: Loss | None,
    batch_size: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields logits and labels of one batch after the other; in the end every mode is as before."""
    batches: Iterable[tuple[Tensor, Tensor]]
    check_batch_size(batch_size)
    if isinstance(inputs, Tensor) or labels is not None:
        if labels is None:
            raise TypeError("inputs that are a tensor need labels, a tensor as well")
        labels = check_examples(inputs, labels, loss, "inputs")
        batches = zip(inputs.split(batch_size), labels.split(batch_size), strict=True)  # type: ignore[union-attr]
        top = None if loss is not None else int(labels.max())  # once, not for each batch
    else:
        batches, top = _batches_of_two(inputs), None
    device, number = _device_of(module), 0
    with evaluating(module):
        for batch, targets in batches:
            if labels is None:
                targets = check_examples(batch, targets, loss, "inputs")
                top = None if loss is not None else int(targets.max())
            logits = module(batch.to(device))
            check_logits(logits, top)
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
        check_tensors(inputs=batches)
    assert isinstance(batches, Iterable)
    for batch in batches:
        parts = [batch] if isinstance(batch, Tensor) else batch
        if not isinstance(parts, tuple | list) or len(parts) not in (1, 2):
            raise TypeError(
                f"batches must be tensors or pairs of inputs and labels, not "
                f"{type(batch).__name__}: a Dataset goes into a DataLoader"
            )
        for part in parts:
            check_tensors(batch=part)
            if part.ndim == 0:
                raise TypeError("batches must be of several examples: use a DataLoader")
        yield parts


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
        if owner is not None and hasattr(owner, "training"):  # which torch.jit.freeze takes away
            with contextlib.suppress(NotImplementedError):  # of exported programs
                owner.eval()
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training


def mean_loss(loss: Loss | None, logits: Tensor, targets: Tensor) -> Tensor:
    """Computes the mean loss of a batch: cross-entropy, or a loss with a value per example."""
    if loss is None:
        return functional.cross_entropy(logits, targets)
    values = loss(logits, targets)
    check_tensors(loss=values)
    if values.shape != logits.shape[:1]:
        raise ValueError(
            f"a loss gives one value per example, {tuple(logits.shape[:1])}, not of shape "
            f"{tuple(values.shape)}: reduction='none' does so in torch's own"
        )
    return values.mean()


def compute_metrics(outputs: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Metrics:
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
