"""Save models to files and load them. Files hold tensors and plain values, and run no code."""

import io
import re
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cifar_tl.backbone import Backbone, Network
from cifar_tl.contents import AnyModelFile, check
from cifar_tl.disk import read_sealed, write_sealed
from cifar_tl.errors import BackboneError, CheckpointError, is_out_of_memory
from cifar_tl.frame import Frame, cifar_frame
from cifar_tl.names import count, shown
from cifar_tl.network import DROPOUT, CifarNet
from cifar_tl.outputs import Outputs, outputs_of
from cifar_tl.pretrained import TIMM, known_temperature, read_model_file

_REBUILD = re.compile(rb"\n(_rebuild_\w*)\n")  # the functions by which a pickle makes tensors


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Writes a checkpoint. At any moment the file is either the old one or the new one, whole.

    The content is tensors, numbers, strings, None, and lists and dictionaries of them. Equal
    content gives equal bytes.

    Raises:
        TypeError: If the content has values of other types.
        OSError: If the file cannot be written. An old file is then still there.
    """
    buffer = io.BytesIO()  # torch.save to a path would put the file's name into the bytes
    torch.save(_canonical(content), buffer)
    write_sealed(path, buffer.getvalue())


def load_checkpoint(
    path: str | Path, sealed: bytes | None = None, kind: Any = None
) -> dict[str, Any]:
    """Reads what `save_checkpoint` wrote, with all tensors on the CPU.

    Args:
        path: The file.
        sealed: Its content, if it has been read before.
        kind: What it must hold, a table of `contents`. None: the caller checks it.

    Raises:
        CheckpointError: If the file is missing or damaged, another program wrote it, or it holds
            something else.
    """
    sealed = read_sealed(Path(path)) if sealed is None else sealed
    try:
        _check_archive(sealed)
        content = torch.load(io.BytesIO(sealed), map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise TypeError
    except Exception as error:  # the checksum is right: somebody made it so, maybe to run code
        if is_out_of_memory(error):
            raise
        raise CheckpointError(
            f"{path} is not what this program writes, tensors and plain values: use another"
        ) from error
    if kind is not None:
        check_checkpoint(path, content, kind)
    return content


def check_checkpoint(path: str | Path, content: Any, kind: Any) -> None:
    """Raises a `CheckpointError` if the content of a file does not fit a table of `contents`."""
    try:
        check(content, kind)
    except ValueError as error:
        raise CheckpointError(
            f"{path} does not hold what this program writes there ({error}): use another"
        ) from error


def _check_archive(sealed: bytes) -> None:
    """Refuses an archive that torch.save does not write, before anything is allocated for it.

    torch.save does not compress: 2 MB could become 5 GB.
    """
    if not sealed.startswith(b"PK"):
        raise ValueError("no archive")
    with zipfile.ZipFile(io.BytesIO(sealed)) as archive:
        members = archive.infolist()
        stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
        if not stored or sum(member.file_size for member in members) > len(sealed):
            raise ValueError("compressed")
        pickles = [archive.read(name) for name in archive.namelist() if name.endswith(".pkl")]
    if len(pickles) != 1 or set(_REBUILD.findall(pickles[0])) - {b"_rebuild_tensor_v2"}:
        raise ValueError("TorchScript or sparse tensors, of which torch warns in lines of its own")


def save_model(
    path: str | Path,
    model: Network,
    settings: Mapping[str, Any] | None = None,
    *,
    class_names: Mapping[int, str] | Sequence[str] | None = None,
) -> None:
    """Writes a model with its preprocessing and the names of its outputs, for `load_model`.

    Args:
        path: The file.
        model: The model.
        settings: Plain values that go into the file, too.
        class_names: A name for each output, or for each trained output by its number. None: the
            names that the model has (`CifarNet.class_names`).

    Raises:
        ValueError: If the model does not have a named output, or could not be loaded again.
        TypeError: If it is neither a `CifarNet` nor a `Backbone`, or names or settings are not
            plain values.
        OSError: If the file cannot be written. An old file is then still there.
    """
    if type(model) not in (CifarNet, Backbone):  # a class of its own could not be made again
        raise TypeError(
            f"save_model writes a CifarNet or a Backbone, not {type(model).__name__}: make a "
            "Backbone of it"
        )
    save_checkpoint(Path(path), model_content(model, settings, class_names))


def model_content(
    model: Network,
    settings: Mapping[str, Any] | None = None,
    class_names: Mapping[int, str] | Sequence[str] | None = None,
) -> dict[str, Any]:
    """Makes what a ``model.pt`` holds, and reads it as `load_model` will. See `save_model`."""
    settings = dict(settings or {})
    if class_names is not None or (model.class_names and "classes" not in settings):
        names = model.class_names if class_names is None else class_names
        settings["classes"], settings["class_names"] = _check_names(model, names)
    if model.white:
        settings.setdefault("white", model.white)
    content: dict[str, Any] = _canonical(
        {**model.describe(), "settings": settings, "state_dict": model.state_dict()}
    )
    try:
        check(content, AnyModelFile)
    except ValueError as error:
        raise ValueError(f"the model could not be loaded again: {error}") from error
    try:
        _build(content, model.features if isinstance(model, Backbone) else None)
    except (KeyError, TypeError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(
            f"the model has other weights than a {type(model).__name__} in float32: undo what "
            "changed them, such as half() or pruning"
        ) from error
    return content


def _check_names(
    model: Network, class_names: Mapping[int, str] | Sequence[str]
) -> tuple[list[int], list[str]]:
    if isinstance(class_names, str):
        raise TypeError("class_names must be a list of names, or names by number, not a string")
    names = dict(class_names if isinstance(class_names, Mapping) else enumerate(class_names))
    for label, name in names.items():
        if label not in range(model.num_classes):
            raise ValueError(
                f"the model has {count(model.num_classes, 'output')}, and no output {label}"
            )
        if not isinstance(name, str):
            raise TypeError(f"class_names must be strings, not {name!r}")
    return list(names), list(names.values())


class SavedModel(NamedTuple):
    """What a ``model.pt`` holds."""

    model: Network
    settings: dict[str, Any]
    outputs: Outputs | None  # None: the settings do not name the classes


def load_model(path: str | Path, module: nn.Module | None = None) -> Network:
    """Loads a model from a ``model.pt``: on the CPU, in evaluation mode, nothing frozen.

    Args:
        path: The file, or the name of a base model that comes with the package: ``"cifar5"`` knows
            the documented classes 0-4, ``"cifar10"`` all ten.
        module: For a `Backbone` of your own module: such a module again, with any weights. It does
            not change. Networks of torchvision and timm need none, if ``name`` says which.

    Returns:
        The model. It takes uint8 images ``(N, 3, S, S)``, S is ``image_size``: see
        `CifarNet.preprocess`. The names of its outputs are in ``class_names``.

    Raises:
        CheckpointError: If the file is missing or damaged, or does not hold a model, or the module
            is another one.
    """
    return read_model(path, module=module).model


def read_model(
    path: str | Path, sealed: bytes | None = None, module: nn.Module | None = None
) -> SavedModel:
    """Reads a model as `load_model` does, with its settings and its outputs.

    Args:
        path: The file, or the name of a model that comes with the package.
        sealed: The content of the file, from `read_model_file`. None: it is read here.
        module: As for `load_model`.
    """
    sealed = read_model_file(path) if sealed is None else sealed
    content = load_checkpoint(path, sealed)
    if "network" not in content:
        raise CheckpointError(f"{path} holds no finished model: name a model.pt instead")
    check_checkpoint(path, content, AnyModelFile)
    if content["network"] != CifarNet.__name__ and "taken_off" not in content:
        raise CheckpointError(
            f"{path} holds the network {shown(repr(content['network']))} and not "
            f"{CifarNet.__name__!r}: use another"
        )
    try:
        model, settings = _build(content, module), content["settings"]
    except (BackboneError, CheckpointError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise CheckpointError(
            f"{path} does not hold what a model.pt of this program holds: use another"
        ) from error
    model.white = settings.get("white", {})
    model.temperature = float(content.get("temperature", known_temperature(sealed)))
    outputs = outputs_of(settings, model.num_classes)
    model.class_names = outputs.named if outputs else {}
    return SavedModel(model.eval(), settings, outputs)


def read_named_model(path: str | Path) -> tuple[Network, dict[str, Any], Outputs]:
    """Reads a model that names its classes, with its settings and its outputs.

    Raises:
        CheckpointError: If it does not name them, and as for `load_model`.
    """
    model, settings, outputs = read_model(path)
    if outputs is None:
        raise CheckpointError(f"{path} does not say which classes it knows: use another")
    return model, settings, outputs


def _build(content: dict[str, Any], module: nn.Module | None = None) -> Network:
    """Builds a model from the content of its file, and from a module if it is nobody's network."""
    state, is_documented = content["state_dict"], "taken_off" not in content
    bias = state.get("classifier.linear2.bias", torch.empty(0))
    if bias.shape != (content["num_classes"],):
        raise TypeError  # the file lies about its size: do not allocate what it claims
    with torch.random.fork_rng([]):  # the fresh weights are overwritten at once
        model: Network
        if is_documented:
            model = CifarNet(content["num_classes"], content.get("dropout", DROPOUT))
            model.frame = cifar_frame(content.get("fit", "crop"))
        else:
            model = _build_backbone(content, module)
    for name, value in model.state_dict().items():
        if state[name].dtype != value.dtype:
            raise TypeError
    model.load_state_dict(state)
    return model


def _build_backbone(content: dict[str, Any], module: nn.Module | None) -> Backbone:
    """Builds a network of somebody else's, with random weights."""
    frame, state = Frame(**content["frame"]), content["state_dict"]
    if state["mean"].dtype != torch.float32:
        raise TypeError
    module = _make_module(content["network"], frame.size) if module is None else module
    shapes = {f"features.{name}": value.shape for name, value in module.state_dict().items()}
    last = f"features.{content['taken_off']}"  # it is taken off: the file does not hold it
    if any(
        name.rpartition(".")[0] != last and (name not in state or state[name].shape != shape)
        for name, shape in shapes.items()
    ):
        raise CheckpointError(
            f"its weights are not those of a {type(module).__name__}: give load_model the module "
            "that it was made of"
        )
    model = Backbone(
        module,
        image_size=frame.size,
        mean=state["mean"].flatten().tolist(),
        std=state["std"].flatten().tolist(),
        classifier=content["taken_off"],
        frame=frame,
        name=content["network"],
        source=content["source"],
    )
    model.reset_classifier(content["num_classes"], content.get("dropout", DROPOUT))
    return model


def _make_module(network: str, image_size: int) -> nn.Module:
    from cifar_tl.published import check_name, make_network

    try:
        check_name(network)
    except BackboneError as error:
        if network.startswith(TIMM):
            raise
        raise CheckpointError(
            f"it holds a {network}, which is no network of torchvision or timm: give load_model "
            "such a module"
        ) from error
    return make_network(network, image_size)


def _canonical(content: Any) -> Any:
    """Copies content, so that equal content is pickled to equal bytes.

    Pickle writes a string that it has seen before as a reference, so equal strings must be one
    object. It writes a tensor with its whole storage, so each tensor gets its own storage.
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
