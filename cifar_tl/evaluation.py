"""Run a module on many examples in evaluation mode: metrics, confusion matrix, features."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from cifar_tl.checks import Loss, check_examples, check_logits, check_tensors
from cifar_tl.distributed import gather_rows, largest, share, total
from cifar_tl.machine import fits
from cifar_tl.progress import with_bar

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Examples in a batch, by default. A batch has at most MOST_NUMBERS: 33 images of 224 pixels, since
# a hundred fill gigabytes of a network.
BATCH, MOST_NUMBERS = 100, 5_000_000

Forward = Callable[[Tensor], Tensor]
Batches = Iterable[Sequence[Tensor]]  # pairs of inputs and labels


class Metrics(NamedTuple):
    """The mean loss over examples, by default cross-entropy in nats, and the accuracy, 0 to 1."""

    loss: float
    accuracy: float


def evaluate(
    module: Forward,
    inputs: Tensor | Batches,
    labels: Tensor | None = None,
    *,
    loss: Loss | None = None,
    batch_size: int | None = None,
    group: "ProcessGroup | None" = None,
) -> Metrics:
    """Computes loss and accuracy in evaluation mode. Afterwards every mode is as before.

    Args:
        module: Maps a batch of inputs to logits: a module, a method of a module, or any function.
            A program that was exported in training mode stays in training mode.
        inputs: ``(N, ...)``, N > 0; or batches of inputs and labels, such as a ``DataLoader``.
        labels: ``(N,)`` integers below the number of logits. With batches: None.
        loss: As for `fit`. None: cross-entropy in nats. If the targets are not classes, the
            accuracy is nan.
        batch_size: Examples at a time. It changes the result only by rounding. None: 100, or fewer
            if they are large.
        group: Processes that share the work. All pass the same tensors, or each passes its own
            batches. All get the metrics of all examples. None: this process alone.

    Raises:
        ValueError: If there are no examples, or labels do not fit.
        TypeError: If something is not a tensor, or labels are not integers.
    """
    outputs = []
    with torch.inference_mode():
        for logits, targets in _outputs(module, inputs, labels, loss, batch_size, group):
            outputs.append((mean_loss(loss, logits, targets), logits, targets))
    return compute_metrics(outputs, group, _device_of(module))


def confusion_matrix(
    module: Forward,
    inputs: Tensor | Batches,
    labels: Tensor | None = None,
    *,
    batch_size: int | None = None,
    group: "ProcessGroup | None" = None,
) -> Tensor:
    """Counts how often each class is predicted as which, in evaluation mode.

    Arguments, modes and errors are those of `evaluate`. K is the number of logits.

    Returns:
        ``(K, K)`` int64 on the CPU: a row for each true class, a column for each predicted class.
    """
    pairs, num_classes, device = [], 0, _device_of(module)
    with torch.inference_mode():
        for logits, targets in _outputs(module, inputs, labels, None, batch_size, group):
            num_classes = logits.shape[1]
            pairs.append(targets * num_classes + logits.argmax(1))
    num_classes = largest(num_classes, device, group)
    of_all = torch.cat(pairs) if pairs else torch.zeros(0, dtype=torch.int64, device=device)
    counts = total(torch.bincount(of_all, minlength=num_classes**2), group)
    return counts.cpu().view(num_classes, num_classes)


def extract_features(
    forward: Forward,
    images: Tensor | Iterable[Tensor] | Batches,
    *,
    batch_size: int | None = None,
    progress: str | None = None,
    group: "ProcessGroup | None" = None,
) -> Any:
    """Computes the features of many images in evaluation mode, without gradients.

    Args:
        forward: Maps a batch of images to features: a module, a method of a module such as
            ``model.forward_features``, or any function. Afterwards every mode is as before.
        images: ``(N, ...)``, N > 0. If they do not fit into memory: batches of images, or of images
            and labels, such as a ``DataLoader``.
        batch_size: Images at a time. It changes the result only by rounding. None: 100, or fewer if
            they are large.
        progress: Text before a progress bar on standard error. None: no bar.
        group: Processes that share the work. All pass the same tensor, and get the features of all
            images. None: this process alone.

    Returns:
        A tensor ``(N, ...)``, the outputs of ``forward`` for all images. It is on the device of the
        module, or on the CPU if it does not fit there. For batches with labels: a pair, this tensor
        and the labels ``(N,)`` in the same order.

    Raises:
        ValueError: If there are no images.
        TypeError: If the images are not a tensor or batches of tensors, or if a group is to share
            batches.
    """
    device, result = _device_of(forward), None
    with evaluating(forward), torch.no_grad():  # a classifier cannot train on inference tensors
        if not isinstance(images, Tensor):
            if group is not None:
                raise TypeError("images that a group shares must be a tensor, not batches")
            return _features_of_batches(forward, images, device, progress)
        for rows in with_bar(_slices(images, batch_size, group), progress):
            batch = forward(images[rows].to(device))
            if result is None:  # filled batch by batch: joining batches would take twice the memory
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
    forward: Forward,
    batches: Iterable[Tensor] | Batches,
    device: torch.device | None,
    progress: str | None,
) -> Tensor | tuple[Tensor, Tensor]:
    features, labels = [], []
    for images, *targets in with_bar(_parts(batches), progress):
        features.append(forward(images.to(device)))
        labels += [target.to(device) for target in targets]
    if not features:
        raise ValueError("there are no images to compute features of")
    return (torch.cat(features), torch.cat(labels)) if labels else torch.cat(features)


def _outputs(
    module: Forward,
    inputs: Tensor | Batches,
    labels: Tensor | None,
    loss: Loss | None,
    batch_size: int | None,
    group: "ProcessGroup | None",
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the logits and the labels of each batch."""
    device, number, split = _device_of(module), 0, True
    sources: Iterable[Sequence[Any]] = [(inputs, labels)]
    if labels is None and not isinstance(inputs, Tensor):
        sources, split = _parts(inputs), False  # each process has its own batches
    with evaluating(module):
        for examples, *targets in sources:
            if not targets:
                raise TypeError("batches must be pairs of inputs and labels, these have no labels")
            classes = check_examples(examples, targets[0], loss, "inputs")
            top = None if loss is not None else int(classes.max())  # once, not for each slice
            size, sharing = (batch_size, group) if split else (len(classes), None)
            for rows in _slices(examples, size, sharing):
                logits = module(examples[rows].to(device))
                check_logits(logits, top)
                number += len(logits)
                yield logits, classes[rows].to(logits.device)
    if largest(number, device, group) == 0:
        raise ValueError("there are no examples")


def _slices(inputs: Tensor, batch_size: int | None, group: "ProcessGroup | None") -> list[slice]:
    """Splits this process's share of the examples into batches."""
    if batch_size is None:
        batch_size = min(BATCH, max(1, MOST_NUMBERS // max(1, math.prod(inputs.shape[1:]))))
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    part = share(len(inputs), group)
    starts = range(part.start, part.stop, batch_size)
    return [slice(start, min(start + batch_size, part.stop)) for start in starts]


def _parts(batches: Iterable[Tensor] | Batches) -> Iterator[Sequence[Tensor]]:
    """Yields the parts of each batch: inputs, or inputs and labels."""
    if hasattr(batches, "__array__"):  # numpy
        check_tensors(inputs=batches)
    for batch in batches:
        parts = [batch] if isinstance(batch, Tensor) else batch
        tensors = isinstance(parts, tuple | list) and all(isinstance(p, Tensor) for p in parts)
        if not tensors or len(parts) not in (1, 2):
            raise TypeError(
                "a batch must be a tensor, or a pair of tensors, inputs and labels: a Dataset goes "
                "into a DataLoader"
            )
        if len(parts[0]) != len(parts[-1]):
            raise ValueError(f"a batch of {len(parts[0])} inputs has {len(parts[1])} labels")
        yield parts


def _owner(function: object) -> nn.Module | None:
    """Finds the module of a function: the function itself, or the module whose method it is."""
    for name in ("func", "_torchdynamo_orig_callable", "__self__"):  # of partial, compile, methods
        if not isinstance(function, nn.Module):
            function = getattr(function, name, function)
    return function if isinstance(function, nn.Module) else None


def _device_of(function: object) -> torch.device | None:
    """Finds the device of a module's parameters. None: there are no parameters, or no module."""
    owner = _owner(function)
    first = next(owner.parameters(), None) if owner is not None else None
    return None if first is None else first.device


@contextlib.contextmanager
def evaluating(function: object) -> Iterator[None]:
    """Puts the module of a function into evaluation mode. In the end every mode is as before."""
    owner = _owner(function)
    modules = list(owner.modules()) if owner is not None else []
    modes = [(module, module.training) for module in modules if hasattr(module, "training")]
    try:
        if owner is not None and hasattr(owner, "training"):  # torch.jit.freeze removes it
            with contextlib.suppress(NotImplementedError):  # exported programs
                owner.eval()
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training


def mean_loss(loss: Loss | None, logits: Tensor, targets: Tensor) -> Tensor:
    """Computes the mean loss of a batch: cross-entropy, or a loss with one value per example."""
    if loss is None:
        return functional.cross_entropy(logits, targets)
    values = loss(logits, targets)
    if not values.shape == logits.shape[:1] == targets.shape[:1]:  # it may have broadcast
        raise ValueError(
            f"a loss gives one value per example, not shape {tuple(values.shape)} for {len(logits)}"
            f" logits and {len(targets)} targets: give torch's losses reduction='none'"
        )
    return values.mean()


def compute_metrics(
    outputs: Sequence[tuple[Tensor, Tensor, Tensor]],
    group: "ProcessGroup | None" = None,
    device: torch.device | None = None,
) -> Metrics:
    """Computes means over examples.

    Args:
        outputs: The mean loss, the logits and the labels of each batch. They are read here, at the
            end, so that no step waits for a device.
        group: Processes whose examples count together.
        device: Where the group can sum.
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
    """Counts the correct predictions. The result is nan if the targets are not classes."""
    if targets.ndim == 2 and targets.shape == logits.shape and targets.shape[1] > 1:
        targets = targets.argmax(1)  # a value for each class: the largest is the class
    if targets.ndim != 1 or targets.is_floating_point():
        return math.nan
    return float((logits.argmax(1) == targets).sum())
