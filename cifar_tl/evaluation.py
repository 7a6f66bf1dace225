"""What a module says of many examples, in evaluation mode: metrics, confusions, features."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, overload

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
from cifar_tl.distributed import gather_rows, largest, share, total
from cifar_tl.machine import fits
from cifar_tl.progress import with_bar

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


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
    group: "ProcessGroup | None" = None,
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
        group: Processes that share the work: all call this with the same tensors, or each with
            batches of its own, and get the metrics of all. None: this process alone.

    Raises:
        ValueError: If there are no examples, or labels do not fit.
        TypeError: If something is no tensor, or labels are no integers.
    """
    outputs = []
    with torch.inference_mode():
        for logits, targets in _outputs(module, inputs, labels, loss, batch_size, group):
            outputs.append((mean_loss(loss, logits, targets), logits, targets))
    return compute_metrics(outputs, group, _device_of(module))


def confusion_matrix(
    module: Callable[[Tensor], Tensor],
    inputs: Tensor | Iterable[Sequence[Tensor]],
    labels: Tensor | None = None,
    *,
    batch_size: int = 100,
    group: "ProcessGroup | None" = None,
) -> Tensor:
    """Counts which class is taken for which, in evaluation mode.

    Args, modes and errors are those of `evaluate`; K is the number of logits.

    Returns:
        ``(K, K)`` int64 on the CPU: a row for each true class, a column for each class predicted.
    """
    pairs, num_classes = [], 0
    with torch.inference_mode():
        for logits, targets in _outputs(module, inputs, labels, None, batch_size, group):
            num_classes = logits.shape[1]
            pairs.append(targets * num_classes + logits.argmax(1))
    device = _device_of(module)
    num_classes = largest(num_classes, device, group)
    of_all = torch.cat(pairs) if pairs else torch.zeros(0, dtype=torch.int64, device=device)
    counts = total(torch.bincount(of_all, minlength=num_classes**2), group)
    return counts.cpu().view(num_classes, num_classes)


@overload
def extract_features(
    forward: Callable[[Tensor], Tensor],
    images: Tensor | Iterable[Tensor],
    *,
    batch_size: int = 100,
    progress: str | None = None,
    group: "ProcessGroup | None" = None,
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
    group: "ProcessGroup | None" = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Computes the features of many images without gradients, in evaluation mode.

    Args:
        forward: Maps a batch of images to features: a module, or a method of one such as
            ``model.forward_features``, whose modes are then as they were; or any function.
        images: ``(N, ...)``, N > 0; or batches of images, or of images and labels, such as a
            ``DataLoader``, where the images do not fit into memory.
        batch_size: Images at a time; it changes the result only by rounding.
        progress: Text before a progress bar on standard error; by default there is no bar.
        group: Processes that share the work: all call this with the same tensor, and get the
            features of all images. None: this process alone.

    Returns:
        ``(N, ...)``, what ``forward`` returned for all images, on its device if it fits there; of
        batches with labels a pair, this and the labels ``(N,)`` in the same order.

    Raises:
        ValueError: If there are no images.
        TypeError: If they are neither a tensor nor batches of tensors, or batches for a group.
    """
    check_batch_size(batch_size)
    device = _device_of(forward)
    with evaluating(forward), torch.no_grad():  # no classifier could train on inference tensors
        if not isinstance(images, Tensor):
            if group is not None:
                raise TypeError("images that a group shares must be a tensor, not batches")
            return _features_of_batches(forward, images, device, progress)
        result, part = None, share(len(images), group)
        for start in with_bar(range(part.start, part.stop, batch_size), progress):
            rows = slice(start, min(start + batch_size, part.stop))
            batch = forward(images[rows].to(device))
            if result is None:  # collecting batches and joining them would take twice the memory
                shape = (len(images), *batch.shape[1:])
                room = fits(math.prod(shape) * batch.element_size(), batch.device)
                result = batch.new_empty(shape, device=None if room else "cpu")
            result[rows] = batch
        if group is not None:
            result = gather_rows(result, len(images), group)
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
    group: "ProcessGroup | None",
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields logits and labels of one batch after the other; in the end every mode is as before."""
    batches: Iterable[tuple[Tensor, Tensor]]
    check_batch_size(batch_size)
    if isinstance(inputs, Tensor) or labels is not None:
        if labels is None:
            raise TypeError("inputs that are a tensor need labels, a tensor as well")
        labels = check_examples(inputs, labels, loss, "inputs")
        assert isinstance(inputs, Tensor)
        top = None if loss is not None else int(labels.max())  # once, not for each batch
        part = share(len(labels), group)
        batches = _split(inputs[part], labels[part], batch_size)
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
    if largest(number, device, group) == 0:
        raise ValueError("there are no examples")


def _split(inputs: Tensor, labels: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Splits examples into batches; of none there is no batch, where torch's split gives one."""
    for start in range(0, len(labels), batch_size):
        yield inputs[start : start + batch_size], labels[start : start + batch_size]


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


def compute_metrics(
    outputs: Sequence[tuple[Tensor, Tensor, Tensor]],
    group: "ProcessGroup | None" = None,
    device: torch.device | None = None,
) -> Metrics:
    """Computes means over examples from the mean loss, the logits and the labels of each batch.

    They are read at the end, so that no step waits for a device. What the processes of a group
    have is summed, on a device where it can be.
    """
    if not outputs:  # an empty share
        sums = torch.zeros(3, dtype=torch.float64, device=device)
    else:
        losses, logits, targets = zip(*outputs, strict=True)
        sizes = torch.tensor([len(batch) for batch in targets], dtype=torch.float64)
        loss = torch.stack(losses).cpu().double() @ sizes
        correct = _count_correct(torch.cat(logits), torch.cat(targets))
        sums = torch.tensor([float(loss), correct, float(sizes.sum())], dtype=torch.float64)
    if group is not None:
        sums = total(sums.to(device), group)
    loss_of_all, correct_of_all, number = sums.tolist()
    return Metrics(loss_of_all / number, correct_of_all / number)


def _count_correct(logits: Tensor, targets: Tensor) -> float:
    """Counts the examples whose class is predicted; nan if the targets are no classes."""
    if targets.ndim == 2 and targets.shape == logits.shape and targets.shape[1] > 1:
        targets = targets.argmax(1)  # a value for each class: the one with the largest is meant
    if targets.ndim != 1 or targets.is_floating_point():
        return math.nan
    return float((logits.argmax(1) == targets).sum())
