"""What does not fit together, told in one line: tensors, labels and logits."""

from collections.abc import Callable

from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]  # logits and targets to one value per example


def check_views(views: Tensor, labels: Tensor, loss: Loss | None) -> Tensor:
    """Checks training examples; returns the labels in the type that torch's loss takes."""
    check_tensors(views=views, labels=labels)
    if views.ndim < 2 or labels.shape[:1] != views.shape[1:2] or len(labels) == 0:
        raise ValueError(
            f"views of shape {tuple(views.shape)} need labels of shape (N,) where views are "
            f"(V, N, ...) with N > 0, not {tuple(labels.shape)}; one version alone is images[None]"
        )
    return check_labels(labels, loss)


def check_examples(inputs: object, labels: object, loss: Loss | None, what: str) -> Tensor:
    """Checks inputs and labels; returns the labels in the type that torch's loss takes."""
    check_tensors(inputs=inputs, labels=labels)
    assert isinstance(inputs, Tensor)
    assert isinstance(labels, Tensor)
    if labels.shape[:1] != inputs.shape[:1] or len(labels) == 0:
        raise ValueError(
            f"{what} of shape {tuple(inputs.shape)} need as many labels, at least one, not "
            f"{tuple(labels.shape)}"
        )
    return check_labels(labels, loss)


def check_tensors(**values: object) -> None:
    """Raises a TypeError for the first value that is no tensor, by its name."""
    for name, value in values.items():
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise TypeError(f"{name} must be a torch.Tensor, not {kind}: torch.as_tensor makes one")


def check_labels(labels: Tensor, loss: Loss | None) -> Tensor:
    """Checks labels, whatever they are with a loss of one's own; returns class numbers as int64."""
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


def check_logits(logits: Tensor, top: int | None) -> None:
    """Checks that there is a logit for every label up to the highest, if that is known."""
    if logits.ndim != 2:
        raise ValueError(f"logits must be (N, classes), not {tuple(logits.shape)}")
    if top is not None and top >= logits.shape[1]:
        raise ValueError(
            f"labels go up to {top}, and there are only {logits.shape[1]} logits: give the model "
            "more outputs"
        )


def check_batch_size(batch_size: int) -> None:
    """Raises a ValueError if a batch would be empty."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
