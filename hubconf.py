"""For ``torch.hub.load``: the documented networks, fresh or trained."""

dependencies = ["torch", "numpy", "tqdm"]

# torch.hub.list shows every name without an underscore.
from pathlib import Path as _Path

from cifar_tl.checkpoint import read_model as _read_model
from cifar_tl.errors import CheckpointError as _CheckpointError
from cifar_tl.experiment.stages import STAGES as _STAGES
from cifar_tl.network import CifarNet as _CifarNet


def base_net(weights: str | _Path | None = None) -> _CifarNet:
    """Makes the base network for classes 0-4.

    Args:
        weights: A ``model.pt`` of the base stage, or ``"cifar5"`` or ``"cifar10"``, which come with
            the package. None: fresh weights.

    Returns:
        The model. With trained weights it is in evaluation mode.
    """
    return _CifarNet(num_classes=5) if weights is None else _load(weights, "base")


def transfer_net(weights: str | _Path | None = None) -> _CifarNet:
    """Makes the network with ten outputs for classes 5-9.

    Args:
        weights: A ``model.pt`` of the transfer, finetune or scratch stage. It decides the number of
            outputs. None: fresh weights.

    Returns:
        The model, with nothing frozen. With trained weights it is in evaluation mode.
    """
    return _CifarNet(num_classes=10) if weights is None else _load(weights, "new")


def _load(weights: str | _Path, learns: str) -> _CifarNet:
    """Reads a model of one kind of stages; raises a CheckpointError if it cannot."""
    model, settings, _ = _read_model(weights)
    stages = [name for name, stage in _STAGES.items() if stage.learns == learns]
    if settings.get("stage") not in stages:
        raise _CheckpointError(
            f"{weights} is a model of the stage {settings.get('stage')!r} and not of "
            f"{' or '.join(stages)}: use another"
        )
    if not isinstance(model, _CifarNet):
        raise _CheckpointError(f"{weights} holds {model.name}: cifar_tl.load_model loads it")
    return model
