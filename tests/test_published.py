import gc
import hashlib
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models import MobileNet_V3_Small_Weights as Weights

from cifar_tl.checkpoint import load_model, save_model
from cifar_tl.errors import BackboneError, BackboneWarning
from cifar_tl.frame import Frame
from cifar_tl.freezing import last_layer, transfer_model
from cifar_tl.published import hash_in, load_backbone, load_state, make_network, read_state
from tests.conftest import Malicious
from tests.forked import one_line, run_forked

NAME = "mobilenet_v3_small"


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """With random weights, and statistics as after training."""
    torch.manual_seed(0)
    network: nn.Module = models.get_model(NAME, weights=None).eval()
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
    return network


@pytest.fixture
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (1, 3, 224, 224), dtype=torch.uint8, generator=generator)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of torch's hub with published weights, which is still missing."""
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch home"))
    return tmp_path / "torch home" / "hub" / "checkpoints"


def features_of(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Computes the features as torchvision's page says."""
    inputs = (images / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    model: Any = network
    features: torch.Tensor = model.classifier[:3](model.avgpool(model.features(inputs)).flatten(1))
    return features


def save(content: object) -> Path:
    torch.save(content, "weights.pth")
    return Path("weights.pth")


# Files of weights


def without_counters(state: Any) -> Any:
    """Leaves out the counters of batches; the versions of the modules stay in the file."""
    for key in [key for key in state if key.endswith("num_batches_tracked")]:
        del state[key]
    assert vars(state)["_metadata"]
    return state


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "model_ema": {}},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
        lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
        lambda state: without_counters(state),
        lambda state: {k: v for k, v in state.items() if not k.startswith("classifier.3")},
        lambda state: state | {"classifier.3.weight": torch.zeros(7, 1024)},
    ],
)
def test_a_file_of_weights(
    network: nn.Module, images: torch.Tensor, change: Callable[[Any], Any]
) -> None:
    path = save(change(network.state_dict()))
    model = load_backbone(NAME, path)
    torch.testing.assert_close(model(images), features_of(network, images))
    assert not any(module.training for module in model.modules())
    assert model.source == {
        "weights": str(path),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "preset": "IMAGENET1K_V1",
    }
    assert (model.name, model.num_features, model.num_classes) == (NAME, 1024, 0)
    assert model.frame == Frame(224, 256, "bilinear")


def test_weights_of_half_precision(network: nn.Module, images: torch.Tensor) -> None:
    state = {key: value.half() for key, value in network.state_dict().items()}
    model = load_backbone(NAME, save(state))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    expected = features_of(network, images)
    assert 0 < (model(images) - expected).abs().max() < 0.01 * expected.abs().max()


def test_weights_of_safetensors(network: nn.Module, images: torch.Tensor) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(network.state_dict(), "weights.safetensors")
    model = load_backbone(NAME, "weights.safetensors")
    torch.testing.assert_close(model(images), features_of(network, images))


def test_wrong_files_are_refused(network: nn.Module, tmp_path: Path) -> None:
    state = network.state_dict()
    whole = save(state).read_bytes()

    def write(content: bytes) -> Path:
        Path("weights.pth").write_bytes(content)
        return Path("weights.pth")

    wide = {
        key: value.repeat(2, *[1] * (value.dim() - 1))
        for key, value in state.items()
        if value.dim()
    }
    for make, message in (
        (lambda: write(whole[: len(whole) // 2]), "is damaged, or holds more than tensors"),
        (lambda: write(b""), "is damaged"),
        (lambda: write(b"<html>404</html>"), "is damaged"),
        (
            lambda: save(network),
            "is damaged, or holds more than tensors and plain values: save mod",
        ),
        (lambda: save(Malicious(tmp_path / "hacked")), "is damaged, or holds more"),
        (lambda: save({"state_dict": Malicious(tmp_path / "hacked")}), "is damaged"),
        (lambda: save(torch.zeros(3)), r"holds no state_dict, tensors by name: save model\.state"),
        (lambda: save({"a": 3}), "holds no state_dict"),
        (lambda: save({1: torch.zeros(3)}), "holds no state_dict"),
        (lambda: save({}), r"does not hold the weights of mobilenet_v3_small: \d+ tensors missing"),
        (
            lambda: save(models.squeezenet1_1().state_dict()),
            "tensors missing or too many, such as ",
        ),
        (
            lambda: save(state | {"more": torch.zeros(3)}),
            "1 tensor missing or too many, such as more",
        ),
        (lambda: save(wide), "small: size mismatch for .*"),
        (
            lambda: tmp_path / "missing.pth",
            "and mobilenet_v3_small has no such weights, but IMAGENET1K",
        ),
        (lambda: tmp_path, "there is no file"),
        (lambda: "IMAGENET1K_V9", "there is no file IMAGENET1K_V9, and mobilenet_v3_small has no"),
    ):
        path = make()
        with pytest.raises(BackboneError, match=message) as caught:
            load_backbone(NAME, path)
        assert str(path) in one_line(str(caught.value))
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("densenet121", "denselayer1.norm.1.", "denselayer1.norm1."),
        ("vit_b_16", "encoder_layer_0.mlp.linear_1.", "encoder_layer_0.mlp.0."),
        ("mnasnet0_5", "layers.0.", "layers.0."),
    ],
)
@pytest.mark.parametrize("versions", [True, False])
def test_published_files_may_have_older_names(
    name: str, old: str, new: str, versions: bool
) -> None:
    network = _narrow(name)
    state = network.state_dict()
    written = type(state)((key.replace(new, old), value) for key, value in state.items())
    if versions:
        vars(written)["_metadata"] = {
            key: {"version": 1} if "mlp" in key else value
            for key, value in vars(state)["_metadata"].items()
        }
    path = save(written)
    other = _narrow(name)
    load_state(other, read_state(path)[0], path, name)
    last = last_layer(network)
    for key, value in other.state_dict().items():
        assert torch.equal(value, state[key]) or key.rpartition(".")[0] == last, key


def _narrow(name: str) -> nn.Module:
    """Makes a small network of this family: its layers have the names of the large ones."""
    network: nn.Module
    if name == "densenet121":
        network = models.DenseNet(growth_rate=2, block_config=(1, 1), num_init_features=4)
    elif name == "vit_b_16":
        network = models.VisionTransformer(
            image_size=32, patch_size=16, num_layers=1, num_heads=1, hidden_dim=8, mlp_dim=8
        )
    else:
        network = make_network(name, 224)
    return network


def test_side_outputs_of_a_file_are_left_out() -> None:
    for name in ("googlenet", "inception_v3"):
        whole = models.get_model(name, weights=None, init_weights=False).state_dict()
        assert any(key.startswith(("aux1.", "AuxLogits.")) for key in whole)
        network: Any = make_network(name, 299)
        load_state(network, whole, Path("weights.pth"), name)
        assert (network.transform_input, network.aux_logits) == (True, False)
        first = next(key for key in whole if key.endswith("conv.weight"))
        assert torch.equal(network.state_dict()[first], whole[first])


def test_the_preset_of_a_published_file_in_any_folder() -> None:
    weights = models.MobileNet_V3_Large_Weights
    content = save(models.mobilenet_v3_large().state_dict()).read_bytes()
    for file, resize in (
        (weights.IMAGENET1K_V1.url.rpartition("/")[2], 256),
        (weights.IMAGENET1K_V2.url.rpartition("/")[2], 232),
        ("mine.pth", 232),  # of the default weights
    ):
        Path(file).write_bytes(content)
        assert load_backbone("mobilenet_v3_large", file).frame.resize == resize


def test_a_vision_transformer_for_larger_images() -> None:
    with torch.device("meta"):
        for size, places in ((224, 14**2 + 1), (384, 24**2 + 1)):
            network = make_network("vit_b_16", size)
            assert network.state_dict()["encoder.pos_embedding"].shape == (1, places, 768)


@pytest.mark.slow
def test_a_vision_transformer_for_larger_images_comes_back(hub: Path) -> None:
    weights = models.ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1
    hub.mkdir(parents=True)
    network = models.vit_b_16(image_size=384)
    torch.save(network.state_dict(), hub / weights.url.rpartition("/")[2])
    model = load_backbone("vit_b_16", "IMAGENET1K_SWAG_E2E_V1")
    assert model.frame == Frame(384, 384, "bicubic")
    save_model("model.pt", model)
    images = torch.rand(1, 3, 384, 384)
    assert torch.equal(load_model("model.pt")(images), model(images))


# Names, and published weights


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet5O", "there is no file and no network resnet5O: maybe resnet50"),
        ("mobilenetv3_small", "maybe mobilenet_v3_small"),
        ("cifar1", "maybe cifar10 or cifar5|maybe cifar5 or cifar10"),
        ("fasterrcnn_resnet50_fpn", "there is no file and no network fasterrcnn_resnet50_fpn"),
        ("zzz", r"network zzz: torchvision\.models\.list_models\(\) has all"),
        ("", "there is no file and no network"),
    ],
)
def test_wrong_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(BackboneError, match=message) as caught:
        load_backbone(name)
    one_line(str(caught.value))


@pytest.mark.filterwarnings("ignore:.* does not hold the published weights")
@pytest.mark.parametrize("weights", [None, "IMAGENET1K_V1"])
def test_published_weights_that_are_there(
    network: nn.Module, images: torch.Tensor, hub: Path, weights: str | None
) -> None:
    hub.mkdir(parents=True)
    file = hub / Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    torch.save(network.state_dict(), file)
    with pytest.warns(BackboneWarning, match=f"^{file} does not hold the published weights"):
        model = load_backbone(NAME, weights)
    torch.testing.assert_close(model(images), features_of(network, images))
    assert model.source["weights"] == "IMAGENET1K_V1"
    assert model.source["url"] == Weights.IMAGENET1K_V1.url
    assert model.source["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert "licenses" in model.source["licence"]
    state = torch.get_rng_state()
    load_backbone(NAME, weights)
    assert torch.equal(torch.get_rng_state(), state)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(BackboneError, match=f"^{file} is damaged"):
        load_backbone(NAME, weights)


def test_every_published_file_has_a_hash_in_its_name() -> None:
    for name in models.list_models(module=models):
        for weights in models.get_model_weights(name):
            assert hash_in(weights.url.rpartition("/")[2]) is not None, weights.url


def set_url(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(Weights.IMAGENET1K_V1.value, "url", url)


def test_a_refused_download_is_explained(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "http://127.0.0.1:9/small-01234567.pth"  # the discard port
    set_url(monkeypatch, url)
    with pytest.raises(BackboneError) as caught:
        load_backbone(NAME)
    message = one_line(str(caught.value))
    for part in (NAME, str(hub), url, "9.83 MB", "refused", "name a file of weights"):
        assert part in message
    assert not list(hub.iterdir())


class Server(ThreadingHTTPServer):
    """Serves the files of a folder, and notes what was asked for."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(SimpleHTTPRequestHandler):
    server: Server

    def log_message(self, *arguments: Any) -> None:
        if "GET" in str(arguments):
            self.server.asked.append(self.path)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "served").mkdir()
    with Server(tmp_path / "served") as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
    with warnings.catch_warnings():  # torch leaves its connections to the garbage collection
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def test_published_weights_are_downloaded_once(
    network: nn.Module,
    images: torch.Tensor,
    hub: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = save(network.state_dict()).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    Path(f"served/small-{digest[:8]}.pth").write_bytes(content)
    set_url(monkeypatch, f"{server.url}/small-{digest[:8]}.pth")
    for _ in range(2):
        model = load_backbone(NAME)
        assert model.source["sha256"] == digest
    torch.testing.assert_close(model(images), features_of(network, images))
    assert server.asked == [f"/small-{digest[:8]}.pth"]
    assert [path.name for path in hub.iterdir()] == [f"small-{digest[:8]}.pth"]


def test_a_download_that_is_another_file_is_not_kept(
    hub: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("served/small-01234567.pth").write_bytes(b"<html>sign in</html>")
    for file, message in (("small-01234567.pth", "invalid hash"), ("gone-01234567.pth", "404")):
        set_url(monkeypatch, f"{server.url}/{file}")
        with pytest.raises(BackboneError, match=f"cannot be downloaded .*{message}") as caught:
            load_backbone(NAME)
        one_line(str(caught.value))
    assert not list(hub.iterdir())


# How pictures become its images


def test_pictures_that_are_no_squares(network: nn.Module) -> None:
    path = save(network.state_dict())
    mean = (124, 116, 104)  # 255 times 0.485, 0.456 and 0.406
    assert load_backbone(NAME, path, fit="pad").frame == Frame(
        224, None, "bilinear", fit="pad", padding=mean
    )
    squash = load_backbone(NAME, path, fit="squash").frame
    assert (squash.fit, squash.resize, squash.size) == ("squash", None, 224)


# Its file


def test_a_file_needs_neither_the_weights_nor_a_module(
    network: nn.Module, images: torch.Tensor, zygote: subprocess.Popen[str]
) -> None:
    path = save(network.state_dict())
    torch.manual_seed(0)
    model = transfer_model(load_backbone(NAME, path), 3)
    save_model("model.pt", model, class_names=["cat", "dog", "fox"])
    torch.save((images, model(images)), "expected.pt")
    path.unlink()
    program = """
import sys, torch
from cifar_tl import load_model
def forbid(event, arguments):
    if event in ("socket.connect", "urllib.Request"):
        raise AssertionError(f"asks the network: {arguments}")
sys.addaudithook(forbid)
model = load_model("model.pt")
images, expected = torch.load("expected.pt")
assert torch.equal(model(images), expected)
assert model.class_names == {0: "cat", 1: "dog", 2: "fox"}
assert model.source["weights"] == "weights.pth"
"""
    run_forked(zygote, program)


# timm


def test_a_network_of_timm(images: torch.Tensor) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = timm.create_model("mobilenetv3_small_050", pretrained=False).eval()
    path = save(network.state_dict())
    model = load_backbone("timm/mobilenetv3_small_050", path)
    config = timm.data.resolve_model_data_config(network)
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    inputs = (images / 255 - mean) / std
    expected = network.forward_head(network.forward_features(inputs), pre_logits=True)
    torch.testing.assert_close(model(images), expected)
    assert model.frame == Frame(224, 256, "bicubic")
    save_model("model.pt", transfer_model(model, 3))
    assert load_model("model.pt").name == "timm/mobilenetv3_small_050"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/resnet5O", "maybe timm/resnet50"),
        ("timm/resnet50.nobody", "timm/resnet50.nobody cannot be had"),
    ],
)
def test_wrong_names_of_timm_are_refused(name: str, message: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(BackboneError, match=message) as caught:
        load_backbone(name, "weights.pth")
    one_line(str(caught.value))


def test_what_two_last_layers_have_is_refused() -> None:
    timm = pytest.importorskip("timm")
    name = "deit_tiny_distilled_patch16_224"
    path = save(timm.create_model(name, pretrained=False).state_dict())
    with pytest.raises(BackboneError, match=f"^timm/{name} cannot be a base: ") as caught:
        load_backbone(f"timm/{name}", path)
    one_line(str(caught.value))


def test_timm_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(BackboneError, match="timm/resnet50 needs the package timm: pip install"):
        load_backbone("timm/resnet50")


def test_the_preset_is_that_of_the_content_whatever_the_name_of_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = models.ResNet50_Weights.IMAGENET1K_V1, models.ResNet50_Weights.IMAGENET1K_V2
    torch.manual_seed(0)
    path = save(models.resnet50().state_dict())
    assert load_backbone("resnet50", path).source["preset"] == "IMAGENET1K_V2"  # the default
    start = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    monkeypatch.setattr(first.value, "url", f"http://127.0.0.1:9/resnet50-{start}.pth")
    model = load_backbone("resnet50", path)
    assert model.source["preset"] == "IMAGENET1K_V1"
    assert (model.frame.resize, second.transforms().resize_size) == (256, [232])


def test_a_network_of_timm_without_a_last_layer_is_one_already() -> None:
    timm = pytest.importorskip("timm")
    name = "vit_tiny_patch16_224"
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=0).eval()
    path = save(network.state_dict())
    model = load_backbone(f"timm/{name}", path)
    assert model.num_features == network.num_features == 192
    images = torch.randint(256, (1, 3, 224, 224)).byte()
    torch.testing.assert_close(model(images), network((images / 255 - model.mean) / model.std))


def test_fresh_weights_follow_torchs_generator_and_need_no_file(hub: Path) -> None:
    def fresh(seed: int) -> tuple[dict[str, torch.Tensor], float]:
        torch.manual_seed(seed)
        base = load_backbone(NAME, "fresh")
        assert base.source == {"weights": "fresh", "preset": "IMAGENET1K_V1"}
        assert (base.frame.size, base.frame.resize) == (224, 256)
        return base.state_dict(), float(torch.rand(1))

    (first, after), (again, _), (other, _) = fresh(0), fresh(0), fresh(1)
    torch.manual_seed(0)
    assert after == float(torch.rand(1))  # the caller's generator is as before
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not torch.equal(
        first["features.features.0.0.weight"], other["features.features.0.0.weight"]
    )
    assert not hub.exists()
