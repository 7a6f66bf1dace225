"""Files that hold a model: tensors and plain values, read only if undamaged; they run no code."""

import io
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cifar_tl.errors import CheckpointError
from cifar_tl.model import CifarNet
from cifar_tl.sealed import read_sealed, write_sealed


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Writes a checkpoint so that the file is always either the old or the new one, whole.

    Equal content, of tensors, numbers, strings, None, lists and dictionaries, gives equal bytes.

    Raises:
        TypeError: If the content has values of other types.
        OSError: If it cannot be written; a file that was there before is still there.
    """
    buffer = io.BytesIO()  # saving to a path would put the file's name into the bytes
    torch.save(_canonical(content), buffer)
    write_sealed(path, buffer.getvalue())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads what `save_checkpoint` wrote, with all tensors on the CPU.

    Raises:
        CheckpointError: If the file is missing, damaged or not one of ours.
    """
    return _unpack(path, read_sealed(path))


def _unpack(path: Path, sealed: bytes) -> dict[str, Any]:
    try:
        content = torch.load(io.BytesIO(sealed), map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise TypeError
    except MemoryError:
        raise
    except Exception as error:  # undamaged, so somebody made it like this, maybe to run code
        raise CheckpointError(
            f"{path} is not what this program writes, tensors and plain values: use another"
        ) from error
    return content


def save_model(path: Path, model: CifarNet, settings: dict[str, Any]) -> None:
    """Writes a model, its preprocessing and ``settings``, what else a reader should know."""
    content = {"network": type(model).__name__, "num_classes": model.num_classes}
    save_checkpoint(path, {**content, "settings": settings, "state_dict": model.state_dict()})


def load_model(path: str | Path) -> CifarNet:
    """Rebuilds a model from a ``model.pt``: on the CPU, in evaluation mode, nothing frozen.

    Returns:
        The model; it takes uint8 images ``(N, 3, 32, 32)``, see `CifarNet.preprocess`.

    Raises:
        CheckpointError: If the file is missing, damaged or holds no model.
    """
    model, _ = load_model_and_settings(Path(path))
    return model


def load_model_and_settings(
    path: Path, sealed: bytes | None = None
) -> tuple[CifarNet, dict[str, Any]]:
    """Rebuilds a model as `load_model` does and returns the settings stored with it, too.

    ``sealed`` is the file's content, from `read_sealed`, where it has been read before.
    """
    content = _unpack(path, read_sealed(path) if sealed is None else sealed)
    if "network" not in content:
        raise CheckpointError(f"{path} holds no finished model: name a model.pt instead")
    if content["network"] != CifarNet.__name__:
        raise CheckpointError(
            f"{path} holds the network {content['network']!r} and not {CifarNet.__name__!r}: "
            "use another"
        )
    try:
        outputs = content["state_dict"]["classifier.linear2.bias"]
        if outputs.shape != (content["num_classes"],) or not outputs.is_contiguous():
            raise TypeError  # before memory is taken for as many as it says
        with torch.random.fork_rng([]):  # the fresh weights are overwritten at once
            model = CifarNet(content["num_classes"])
        for name, value in model.state_dict().items():
            if content["state_dict"][name].dtype != value.dtype:
                raise TypeError
        model.load_state_dict(content["state_dict"])
        settings = dict(content["settings"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} does not hold what a model.pt of this program holds: use another"
        ) from error
    return model.eval(), settings


def load_model_and_classes(path: str | Path) -> tuple[CifarNet, dict[int, str]]:
    """Rebuilds a model as `load_model` does, with the names of the classes it was trained on.

    Returns:
        The model, and a name for each label that it knows; its other outputs mean nothing.

    Raises:
        CheckpointError: If the file is missing, damaged, holds no model or does not name classes.
    """
    path = Path(path)
    model, settings = load_model_and_settings(path)
    return model, known_classes(path, model, settings)


def known_classes(path: Path, model: CifarNet, settings: dict[str, Any]) -> dict[int, str]:
    """Finds out which classes a model was trained on; see `load_model_and_classes`.

    Raises:
        CheckpointError: If the settings do not tell.
    """
    labels, names = settings.get("classes"), settings.get("class_names")
    if (
        not isinstance(labels, list)
        or not isinstance(names, list)
        or not 0 < len(labels) == len(names) == len(set(labels))
        or not all(label in range(model.num_classes) for label in labels)
    ):
        raise CheckpointError(f"{path} does not say which classes it knows: use another")
    return dict(zip(labels, names, strict=True))


def _canonical(content: Any) -> Any:
    """Copies content so that equal content is pickled to equal bytes.

    Pickle writes a string that it has seen as a reference to it, so equal strings must be one
    object; and a tensor is stored with all of its storage, so each gets a storage of its own.
    """
    if isinstance(content, Tensor):
        return content.detach().cpu().clone(memory_format=torch.contiguous_format)
    if isinstance(content, dict):
        return {_canonical(key): _canonical(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_canonical(value) for value in content]
    if isinstance(content, str):
        return sys.intern(content)
    if type(content) in (int, float, bool, type(None)):  # exactly: a numpy.float64 is a float
        return content
    raise TypeError(f"a checkpoint holds tensors and plain values, not {type(content).__name__}")
