"""The pretrained networks of torchvision and timm: their weights and their preprocessing."""

import difflib
import hashlib
import io
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cifar_tl.backbone import FRESH, Backbone
from cifar_tl.disk import LARGEST_CHECKPOINT, read_file
from cifar_tl.errors import BackboneError, BackboneWarning, first_line, is_out_of_memory
from cifar_tl.frame import Fit, Frame
from cifar_tl.freezing import last_layer
from cifar_tl.names import count
from cifar_tl.pretrained import PRETRAINED, TIMM

# Torchvision makes these in another way for published weights: without side outputs, and with a
# change of the normalised images.
_AS_PUBLISHED: dict[str, dict[str, Any]] = {
    name: {"transform_input": True, "init_weights": False, "aux_logits": False}
    for name in ("googlenet", "inception_v3")
}
_SIDE_OUTPUTS = ("aux1", "aux2", "AuxLogits")
# densenet's files are older than its present names: "norm.1" is "norm1".
_OLD_NAME = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")
_WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod)(?:\.|$))+")  # DataParallel and torch.compile

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


def load_backbone(
    name: str, weights: str | Path | None = None, *, fit: Fit = "crop", progress: bool = False
) -> Backbone:
    """Makes a pretrained network.

    Args:
        name: A classification model of torchvision, such as ``"resnet50"``, or one of timm after
            ``timm/``.
        weights: A file with its ``state_dict``: ``torch.save`` or safetensors wrote it. Or the name
            of published weights, such as ``"IMAGENET1K_V1"``. None: the default ones. Published
            weights are downloaded once. `FRESH`: random ones, drawn by torch's global generator.
        fit: What happens to a picture that is no square: see `Frame`. ``"crop"``: as published.
        progress: Show a bar on standard error while weights are downloaded.

    Returns:
        The network in evaluation mode, without a classifier. Its preprocessing is that of the
        published weights. A file of other weights gets that of the default ones; of timm, that of
        the name, which may have a tag: ``timm/NAME.TAG``. ``source`` says where the weights are
        from, and which preset was taken.

    Raises:
        BackboneError: If there is no such network or no such weights, or the file does not fit.
    """
    load = _load_timm if name.startswith(TIMM) else _load_torchvision
    with torch.random.fork_rng([]):  # random weights leave no trace
        network, preset, source = load(name, weights, progress=progress)
    try:
        return Backbone(
            network.eval(),
            image_size=preset.frame.size,
            mean=preset.mean,
            std=preset.std,
            frame=_fitted(preset, fit),
            name=name,
            source=source,
        ).eval()
    except ValueError as error:  # such as two last layers
        raise BackboneError(f"{name} cannot be a base: {error}") from error


def make_network(name: str, image_size: int) -> nn.Module:
    """Makes a network with random weights, and without side outputs, for weights from a file.

    Args:
        name: As `load_backbone` takes it.
        image_size: The height and width of its images: the weights of torchvision's vision
            transformers depend on it.

    Raises:
        BackboneError: If there is no such network.
    """
    check_name(name)
    if name.startswith(TIMM):
        return _create_timm(name, pretrained=False)
    from torchvision.models import get_model

    special = {"image_size": image_size} if name.startswith("vit_") else _AS_PUBLISHED.get(name, {})
    network: nn.Module = get_model(name, weights=None, **special)
    return network


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
    name: str, weights: str | Path | None, *, progress: bool
) -> tuple[nn.Module, _Preset, dict[str, Any]]:
    check_name(name)
    from torchvision.models import get_model_weights

    published: Any = get_model_weights(name)  # an Enum
    chosen, file = published.DEFAULT, None
    if str(weights) in published.__members__:
        chosen = published[str(weights)]
    elif weights not in (None, FRESH):
        file = Path(str(weights))
        if not file.is_file():
            names = ", ".join(published.__members__)
            raise BackboneError(
                f"there is no file {file}, and {name} has no such weights, but {names}"
            )
    if weights == FRESH:
        preset = _torchvision_preset(chosen.transforms())
        network = make_network(name, preset.frame.size)
        return network, preset, {"weights": FRESH, "preset": chosen.name}
    path = file or _download(name, chosen, progress=progress)
    state, digest = read_state(path)
    if file is None and not digest.startswith(hash_in(path.name) or ""):
        warnings.warn(
            f"{path} does not hold the published weights: delete it to download them again",
            BackboneWarning,
            stacklevel=3,
        )
    if file is not None:
        chosen = _recognized(published, file, digest)
    network = make_network(name, chosen.transforms().crop_size[0])
    load_state(network, state, path, name)
    source = {"weights": str(file or chosen.name), "sha256": digest, "preset": chosen.name}
    if file is None:
        source |= {"url": chosen.url, "licence": LICENCE}
    return network, _torchvision_preset(chosen.transforms()), source


def _recognized(published: Any, file: Path, digest: str) -> Any:
    """Finds which published weights a file holds, by its content or its name.

    Weights of one's own are taken to be trained on images as those of the default ones are.
    """
    for member in published:
        start = hash_in(member.url)
        if member.url.endswith(f"/{file.name}") or (start and digest.startswith(start)):
            return member
    return published.DEFAULT


def _torchvision_preset(transforms: Any) -> _Preset:
    """Reads the preset of published weights, an ``ImageClassification``."""
    frame = Frame(
        transforms.crop_size[0], transforms.resize_size[0], transforms.interpolation.value
    )
    return _Preset(frame, tuple(transforms.mean), tuple(transforms.std))


def _download(name: str, weights: Any, *, progress: bool) -> Path:
    """Returns the file of published weights, in the folder of torch's hub. It may download it."""
    folder: Path = Path(str(torch.hub.get_dir())) / "checkpoints"
    path: Path = folder / weights.url.rpartition("/")[2]
    if path.is_file():
        return path
    size = f"{weights.meta.get('_file_size', 0):.3g} MB"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        start = hash_in(path.name)
        torch.hub.download_url_to_file(weights.url, str(path), start, progress=progress)
    # No network, a full disk; a wrong hash; an answer that is no HTTP
    except (OSError, RuntimeError, HTTPException) as error:
        raise BackboneError(
            f"the weights of {name} are not in {folder} and cannot be downloaded "
            f"({first_line(error)}): put {weights.url} ({size}) there, name a file of weights, or "
            "choose another base"
        ) from error
    return path


def hash_in(file: str) -> str | None:
    """Finds the start of the SHA-256 in the name of a published file: ``alexnet-7be5be79.pth``."""
    found = re.search(r"-([a-f0-9]{8,})\.", file)
    return found[1] if found else None


def _load_timm(
    name: str, weights: str | Path | None, *, progress: bool
) -> tuple[nn.Module, _Preset, dict[str, Any]]:
    del progress  # timm shows a bar of its own
    check_name(name)
    import timm

    network = _create_timm(name, pretrained=weights is None)
    config = timm.data.resolve_model_data_config(network)
    published = getattr(network, "pretrained_cfg", {})
    source: dict[str, Any] = {"weights": FRESH}
    if weights is None:
        digest = hashlib.sha256()
        for tensor in network.state_dict().values():
            digest.update(tensor.contiguous().numpy().tobytes())
        licence = published.get("license")
        where = published.get("hf_hub_id") or published.get("url") or ""
        source = {"weights": f"timm's {where}", "sha256_of_tensors": digest.hexdigest()}
        source["licence"] = TIMM_LICENCE + (f": {licence}" if licence else "")
    elif weights != FRESH:
        path = Path(weights)
        if not path.is_file():
            raise BackboneError(f"there is no file {path}: name a file with the weights of {name}")
        state, sha256 = read_state(path)
        load_state(network, state, path, name)
        source = {"weights": str(path), "sha256": sha256}
    source["preset"] = str(published.get("tag") or "default")
    return network, _timm_preset(name, config), source


def _create_timm(name: str, *, pretrained: bool) -> nn.Module:
    import timm

    name_there = name.removeprefix(TIMM)
    try:
        network: Any = timm.create_model(name_there, pretrained=pretrained)
        if not network.num_classes:  # published without a last layer: one shows where it belongs
            network = timm.create_model(name_there, pretrained=pretrained, num_classes=1)
    except Exception as error:  # whatever a hub raises
        where = ""
        if pretrained and (published := timm.models.get_pretrained_cfg(name_there)):
            hub = published.hf_hub_id
            where = f" from {f'https://huggingface.co/{hub}' if hub else published.url}"
        raise BackboneError(
            f"{name} cannot be had ({first_line(error)}): name a file of its weights{where}, or "
            "choose another base"
        ) from error
    return network  # type: ignore[no-any-return]


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
    if fit == "squash":
        return replace(preset.frame, resize=None, fit=fit)
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
        content = read_file(path, LARGEST_CHECKPOINT)
    except OSError as error:
        raise BackboneError(f"cannot read {path}: {error.strerror}") from error
    try:
        if path.suffix == ".safetensors":
            if find_spec("safetensors") is None:
                raise BackboneError(
                    f"{path} needs the package safetensors: pip install safetensors"
                )
            from safetensors.torch import load

            state: Any = load(content)
        else:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except BackboneError:
        raise
    except Exception as error:  # damage can raise anything
        if is_out_of_memory(error):
            raise
        raise BackboneError(
            f"{path} is damaged, or holds more than tensors and plain values: save "
            "model.state_dict() alone"
        ) from error
    for key in ("state_dict", "model", "model_ema"):  # as training programs nest it
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise BackboneError(f"{path} holds no state_dict, tensors by name: save model.state_dict()")
    return state, hashlib.sha256(content).hexdigest()


def load_state(network: nn.Module, state: Mapping[str, Tensor], path: Path, name: str) -> None:
    """Loads weights into a network, but for its last layer, which may have any number of outputs.

    Raises:
        BackboneError: If they are of another network.
    """
    # Networks know the old names of their weights by the version that is in the file.
    versions = getattr(state, "_metadata", None) or {"": {"version": network._version}}
    last = last_layer(network)
    loaded: OrderedDict[str, Tensor] = OrderedDict()
    for key, value in state.items():
        key = _WRAPPERS.sub("", key)
        key = _OLD_NAME.sub(r"\1\2", key) if "densenet" in name else key
        if key.partition(".")[0] not in _SIDE_OUTPUTS and key.rpartition(".")[0] != last:
            loaded[key] = value
    vars(loaded)["_metadata"] = {_WRAPPERS.sub("", key): value for key, value in versions.items()}
    try:
        missing, unexpected = network.load_state_dict(loaded, strict=False)
    except (RuntimeError, ValueError) as error:  # torch's last line is about one of the tensors
        if is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[-1].strip()
        raise BackboneError(f"{path} does not hold the weights of {name}: {reason}") from error
    wrong = [
        key
        for key in missing  # old files have no counters
        if key.rpartition(".")[0] != last and not key.endswith("num_batches_tracked")
    ]
    if wrong := wrong + unexpected:
        raise BackboneError(
            f"{path} does not hold the weights of {name}: {count(len(wrong), 'tensor')} "
            f"missing or too many, such as {wrong[0]}"
        )
