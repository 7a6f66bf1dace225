"""The pretrained networks of torchvision and timm: their weights and their preprocessing."""

import difflib
import hashlib
import io
import re
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cifar_tl.backbone import Backbone
from cifar_tl.errors import BackboneError, first_line
from cifar_tl.frame import Fit, Frame
from cifar_tl.freezing import last_layer
from cifar_tl.pretrained import PRETRAINED

TIMM = "timm/"  # before the names of timm's networks

# torchvision makes these otherwise if published weights are named: without their side outputs, and
# with other normalised images.
_AS_PUBLISHED: dict[str, dict[str, Any]] = {
    "googlenet": {"transform_input": True, "init_weights": False},
    "inception_v3": {"transform_input": True, "init_weights": False},
}
_SIDE_OUTPUTS = ("aux1", "aux2", "AuxLogits")
# densenet's files are older than its present names: "norm.1" is "norm1".
_OLD_NAME = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")

# https://docs.pytorch.org/vision/stable/models.html
LICENCE = (
    'torchvision says of its weights: "may have their own licenses or terms and conditions derived '
    "from the dataset used for training. It is your responsibility to determine whether you have "
    'permission to use the models for your use case."'
)
TIMM_LICENCE = "the licence of timm's weights is that of their publisher"


class _Preset(NamedTuple):
    """What a network was trained with."""

    frame: Frame
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load_backbone(name: str, weights: str | Path | None = None, *, fit: Fit = "crop") -> Backbone:
    """Makes a pretrained network.

    Args:
        name: A classification model of torchvision, such as ``"resnet50"``, or one of timm after
            ``timm/``.
        weights: A file with its ``state_dict``: ``torch.save`` or safetensors wrote it. Or the name
            of published weights, such as ``"IMAGENET1K_V1"``. None: the default ones. Published
            weights are downloaded once.
        fit: What happens to a picture that is no square: see `Frame`. ``"crop"``: as published.

    Returns:
        The network in evaluation mode, without a classifier. Its preprocessing is the published
        one. ``source`` says where its weights are from.

    Raises:
        BackboneError: If there is no such network or no such weights, or the file does not fit.
    """
    if name.startswith(TIMM):
        network, preset, source = _load_timm(name, weights)
    else:
        network, preset, source = _load_torchvision(name, weights)
    return Backbone(
        network.eval(),
        image_size=preset.frame.size,
        mean=preset.mean,
        std=preset.std,
        frame=_fitted(preset, fit),
        name=name,
        source=source,
    ).eval()


def make_network(name: str) -> nn.Module:
    """Makes a network with random weights, and without side outputs, for weights from a file.

    Raises:
        BackboneError: If there is no such network.
    """
    check_name(name)
    if name.startswith(TIMM):
        import timm

        model: nn.Module = timm.create_model(name.removeprefix(TIMM), pretrained=False)
        return model
    from torchvision.models import get_model

    network: Any = get_model(name, weights=None, **_AS_PUBLISHED.get(name, {}))
    if name in _AS_PUBLISHED:
        network.aux_logits = False
        for side in _SIDE_OUTPUTS:
            if hasattr(network, side):
                setattr(network, side, None)
    return network  # type: ignore[no-any-return]


def check_name(name: str) -> None:
    """Refuses a name that is no network.

    Raises:
        BackboneError: It says which names are near.
    """
    if name.startswith(TIMM):
        if find_spec("timm") is None:
            raise BackboneError(f"{name} needs the package timm: pip install timm")
        import timm

        known = {f"{TIMM}{model}" for model in timm.list_models()}
        name = name.partition(".")[0]  # what follows names the weights
    else:
        from torchvision import models

        known = set(models.list_models(module=models))
    if name not in known:
        near = difflib.get_close_matches(name, {*known, *PRETRAINED}, n=3)
        hint = f"maybe {' or '.join(near)}" if near else "torchvision.models.list_models() has all"
        raise BackboneError(f"there is no file and no network {name}: {hint}")


def _load_torchvision(
    name: str, weights: str | Path | None
) -> tuple[nn.Module, _Preset, dict[str, Any]]:
    network = make_network(name)
    from torchvision.models import get_model_weights

    published: Any = get_model_weights(name)  # an Enum
    chosen, file = published.DEFAULT, None
    if weights is not None and str(weights) in published.__members__:
        chosen = published[str(weights)]
    elif weights is not None:
        file = Path(weights)
        if not file.is_file():
            names = ", ".join(published.__members__)
            raise BackboneError(
                f"there is no file {file}, and {name} has no such weights, but {names}"
            )
    path = file or _download(name, chosen)
    state, digest = read_state(path)
    load_state(network, state, path, name)
    source = {"weights": str(file or chosen), "sha256": digest}
    if file is None:
        source |= {"url": chosen.url, "licence": LICENCE}
    return network, _torchvision_preset(chosen.transforms()), source


def _torchvision_preset(transforms: Any) -> _Preset:
    """Reads the preset of published weights, an ``ImageClassification``."""
    frame = Frame(
        transforms.crop_size[0], transforms.resize_size[0], transforms.interpolation.value
    )
    return _Preset(frame, tuple(transforms.mean), tuple(transforms.std))


def _download(name: str, weights: Any) -> Path:
    """Returns the file of published weights, in the folder of torch's hub. It may download it."""
    folder: Path = Path(str(torch.hub.get_dir())) / "checkpoints"
    path: Path = folder / weights.url.rpartition("/")[2]
    if path.is_file():
        return path
    size = f"{weights.meta.get('_file_size', 0):.3g} MB"
    prefix = re.search(r"-([a-f0-9]{8,})\.", path.name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(
            weights.url, str(path), prefix[1] if prefix else None, progress=False
        )
    except (OSError, RuntimeError) as error:  # no network, a full disk; a wrong hash
        raise BackboneError(
            f"the weights of {name} are not in {folder} and cannot be downloaded "
            f"({first_line(error)}): put {weights.url} ({size}) there, name a file of weights, or "
            "choose another base"
        ) from error
    return path


def _load_timm(name: str, weights: str | Path | None) -> tuple[nn.Module, _Preset, dict[str, Any]]:
    network = make_network(name)
    import timm

    config = timm.data.resolve_model_data_config(network)
    source: dict[str, Any] = {}
    if weights is None:
        try:
            network = timm.create_model(name.removeprefix(TIMM), pretrained=True)
        except Exception as error:  # whatever a hub raises
            raise BackboneError(
                f"the weights of {name} cannot be had ({first_line(error)}): name a file of "
                "weights, or choose another base"
            ) from error
        digest = hashlib.sha256()
        for tensor in network.state_dict().values():
            digest.update(tensor.contiguous().numpy().tobytes())
        licence = getattr(network, "pretrained_cfg", {}).get("license")
        source = {"weights": "timm's", "sha256_of_tensors": digest.hexdigest()}
        source["licence"] = TIMM_LICENCE + (f": {licence}" if licence else "")
    else:
        path = Path(weights)
        if not path.is_file():
            raise BackboneError(f"there is no file {path}: name a file with the weights of {name}")
        state, sha256 = read_state(path)
        load_state(network, state, path, name)
        source = {"weights": str(path), "sha256": sha256}
    return network, _timm_preset(name, config), source


def _timm_preset(name: str, config: Mapping[str, Any]) -> _Preset:
    """Reads what ``timm.data.create_transform`` would do with a picture to evaluate it."""
    channels, height, width = config["input_size"]
    if (channels, height) != (3, width):
        raise BackboneError(f"{name} takes images of {config['input_size']}: name one for squares")
    part, mode = config["crop_pct"] or 0.875, config["crop_mode"] or "center"
    if mode == "squash" and part == 1:
        frame = Frame(height, None, config["interpolation"], fit="squash")
    elif mode == "center":
        frame = Frame(height, int(height / part), config["interpolation"])
    else:
        raise BackboneError(f"{name} was trained with the crop {mode!r}, which is not known here")
    return _Preset(frame, tuple(config["mean"]), tuple(config["std"]))


def _fitted(preset: _Preset, fit: Fit) -> Frame:
    """Returns the frame as published, or with another fit. Borders have the mean colour."""
    if fit == "crop":
        return preset.frame
    red, green, blue = (round(255 * value) for value in preset.mean)
    return replace(preset.frame, resize=None, fit=fit, padding=(red, green, blue))


def read_state(path: Path) -> tuple[dict[str, Tensor], str]:
    """Reads a file of weights. No code in it is run.

    Returns:
        The tensors by name, and the SHA-256 of the file.

    Raises:
        BackboneError: If it is damaged, or holds something else.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".safetensors":
            if find_spec("safetensors") is None:
                raise BackboneError(
                    f"{path} needs the package safetensors: pip install safetensors"
                )
            from safetensors.torch import load

            state: Any = load(content)
        else:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (BackboneError, MemoryError):
        raise
    except Exception as error:  # damage can raise anything
        raise BackboneError(
            f"{path} is no file of weights, or is damaged: a state_dict that torch.save wrote is"
        ) from error
    for key in ("state_dict", "model", "model_ema"):  # as training programs nest it
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise BackboneError(f"{path} holds no state_dict, tensors by name: save model.state_dict()")
    return state, hashlib.sha256(content).hexdigest()


def load_state(network: nn.Module, state: Mapping[str, Tensor], path: Path, name: str) -> None:
    """Loads weights into a network, but for its last layer, which may have any number of outputs.

    Raises:
        BackboneError: If they are of another network.
    """
    state = {
        key.removeprefix("module."): value  # which DataParallel adds
        for key, value in state.items()
        if key.partition(".")[0] not in _SIDE_OUTPUTS
    }
    if "densenet" in name:
        state = {_OLD_NAME.sub(r"\1\2", key): value for key, value in state.items()}
    last, own = last_layer(network), network.state_dict()
    for key in [key for key in own if key.rpartition(".")[0] == last]:
        if key in state:
            state[key] = own[key]
    counters = {key for key in own if key.endswith("num_batches_tracked")}  # old files lack them
    needed = [key for key in own if key in state or key not in counters]
    wrong = [key for key in needed if key not in state or state[key].shape != own[key].shape]
    if wrong := wrong + [key for key in state if key not in own]:
        raise BackboneError(
            f"{path} does not hold the weights of {name}: {len(wrong)} of {len(own)} tensors "
            f"differ, such as {wrong[0]}"
        )
    network.load_state_dict(state)
