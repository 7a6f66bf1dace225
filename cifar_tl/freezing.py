"""Freeze a part of any module; make a transfer model from a base model."""

import copy
from functools import partial
from typing import Any, TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def transfer_model(base: Module, num_classes: int = 10, *, classifier: str | None = None) -> Module:
    """Makes a transfer model: a frozen copy of a base model, with a new classifier.

    Args:
        base: A `CifarNet`, a `Backbone`, a model of timm, or any other. It does not change.
        num_classes: Number of outputs of the new classifier.
        classifier: The name of the last layer, such as ``"fc"`` of a torchvision ResNet. None: the
            model's ``reset_classifier`` knows it, or `last_layer` finds it.

    Returns:
        A model of the same class and in the same mode. Only the new classifier is trainable.

    Raises:
        ValueError: If the classifier cannot be found.
    """
    result = copy.deepcopy(base)
    model: Any = result  # models have no common type
    for name in ("class_names", "white"):  # they describe the data of the base
        if hasattr(model, name):
            setattr(model, name, {})
    if isinstance(getattr(model, "temperature", None), float):
        model.temperature = 1.0
    if classifier is None and hasattr(model, "reset_classifier"):
        model.reset_classifier(num_classes)
        if hasattr(model, "preprocess"):  # a network of ours: its classifier may have more layers
            freeze(model.features)
            return result
        new = model.get_classifier()
    else:
        new = _replace_last(
            model, last_layer(model) if classifier is None else classifier, num_classes
        )
        if hasattr(model, "num_classes"):
            model.num_classes = num_classes
    freeze(model)
    for part in new if isinstance(new, tuple | list) else (new,):  # distilled models have two
        unfreeze(part)
    model.train(base.training)
    return result


def last_layer(module: nn.Module) -> str:
    """Finds the layer that computes the outputs of a classifier.

    It is the last ``Linear``, in the order in which the layers were made. A module without a
    ``Linear``, such as SqueezeNet, may have a last ``Conv2d`` of 1x1 instead.

    Returns:
        Its name, such as ``"fc"``.

    Raises:
        ValueError: If there is none.
    """
    layers = [(name, layer) for name, layer in module.named_modules() if name]  # not itself
    linear: list[str] = [name for name, layer in layers if isinstance(layer, nn.Linear)]
    convolutions = [(name, layer) for name, layer in layers if isinstance(layer, nn.Conv2d)]
    if linear:
        return str(linear[-1])
    if convolutions and convolutions[-1][1].kernel_size == (1, 1):
        return str(convolutions[-1][0])
    raise ValueError(
        f"{type(module).__name__} has no Linear inside, and no Conv2d of 1x1 at its end: name its "
        'last layer, such as classifier="fc"'
    )


def _replace_last(model: nn.Module, name: str, num_classes: int) -> nn.Module:
    """Replaces the last layer by a fresh one of the same kind, with other outputs."""
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, not {num_classes}")
    parent, _, last = name.rpartition(".")
    old = dict(model.named_modules()).get(name) if name else None  # "" is the model itself
    new: nn.Module
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, num_classes, old.bias is not None)
    elif isinstance(old, nn.Conv2d) and old.kernel_size == (1, 1):
        new = nn.Conv2d(old.in_channels, num_classes, 1, bias=old.bias is not None)
    else:
        what = "is missing" if old is None else f"is a {type(old).__name__}"
        raise ValueError(f"the classifier {name!r} {what}: name a Linear, or a Conv2d of 1x1")
    new.to(old.weight.device, old.weight.dtype)
    setattr(model.get_submodule(parent), last, new)
    return new


def freeze(module: Module) -> Module:
    """Freezes a module in place: no gradients, and evaluation mode that survives ``train()``.

    All modules inside are frozen, too, and so are copies. A module counts as frozen while none of
    its parameters requires gradients. Each ``train()`` checks this. So `unfreeze` ends it, and
    setting ``requires_grad`` ends it, too. A module without parameters, such as ``Dropout``, is
    frozen while the module around it is frozen. There is one exception: a module with buffers and
    no parameters, such as ``BatchNorm2d(8, affine=False)``, stays frozen if `freeze` was called on
    itself.

    Returns:
        The same module.
    """
    for parameter in module.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None  # an optimizer would still apply it
    only_statistics = not list(module.parameters()) and bool(list(module.buffers()))
    for submodule in module.modules():
        submodule.eval()
        by_itself = only_statistics and submodule is module
        # A partial, unlike a closure, goes with the module when it is copied or pickled.
        submodule.__dict__["train"] = partial(_train_unless_frozen, submodule, by_itself)
    return module


def unfreeze(module: Module) -> Module:
    """Undoes `freeze` in place. The module stays in evaluation mode until ``train()`` is called."""
    module.requires_grad_(True)
    for submodule in module.modules():
        submodule.__dict__.pop("train", None)
    return module


def count_parameters(module: nn.Module, *, trainable_only: bool = False) -> int:
    """Counts the scalar weights of a module. By default it counts the frozen ones, too."""
    counted = [p for p in module.parameters() if p.requires_grad or not trainable_only]
    return sum(parameter.numel() for parameter in counted)


def _train_unless_frozen(module: Module, by_itself: bool, mode: bool = True) -> Module:
    """Stands for ``train()`` of a frozen module."""
    trainable = [parameter.requires_grad for parameter in module.parameters()]
    module.training = mode and (any(trainable) or not (trainable or by_itself))
    for child in module.children():  # one of them may be new, and not frozen
        child.train(module.training)
    return module
