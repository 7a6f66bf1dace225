import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models

from cifar_tl.backbone import Backbone, digest_of
from cifar_tl.checkpoint import load_checkpoint, load_model, save_checkpoint, save_model
from cifar_tl.errors import CheckpointError
from cifar_tl.export import ONNX_PACKAGES, export_onnx, export_pt2
from cifar_tl.frame import Frame
from cifar_tl.freezing import count_parameters, last_layer, transfer_model
from cifar_tl.prediction import predict
from cifar_tl.published import make_network
from tests.forked import one_line

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class Small(nn.Module):
    """Somebody's network for images of 16x16, or of any size from 4."""

    def __init__(
        self, width: int = 8, classes: int = 5, last: Callable[[], nn.Module] = nn.Identity
    ):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(width, classes)
        self.last = last()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pooled = self.pool(self.body(images)).flatten(1)
        outputs: torch.Tensor = self.last(self.head(self.dropout(pooled)))
        return outputs


def make_backbone(module: nn.Module | None = None, **changes: Any) -> Backbone:
    torch.manual_seed(0)
    options: dict[str, Any] = {"image_size": 16, "mean": MEAN, "std": STD} | changes
    return Backbone(Small() if module is None else module, **options).eval()


@pytest.fixture
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8, generator=generator)


def normalised(images: torch.Tensor) -> torch.Tensor:
    return (images / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


# Networks of torchvision

FAMILIES = {  # by the name of a small one: its last layer, the number of features, its image size
    "alexnet": ("classifier.6", 4096, 64),
    "convnext_tiny": ("classifier.2", 768, 32),
    "densenet121": ("classifier", 1024, 32),
    "efficientnet_b0": ("classifier.1", 1280, 32),
    "googlenet": ("fc", 1024, 32),
    "inception_v3": ("fc", 2048, 75),
    "mnasnet0_5": ("classifier.1", 1280, 32),
    "mobilenet_v3_small": ("classifier.3", 1024, 32),
    "resnet18": ("fc", 512, 32),
    "shufflenet_v2_x0_5": ("fc", 1024, 32),
    "squeezenet1_1": ("classifier.1", 512, 32),
    "swin_t": ("head", 768, 32),
    "vgg11_bn": ("classifier.6", 4096, 32),
    "vit_b_16": ("heads.head", 768, 32),
}
SLOW = {
    "efficientnet_v2_s": "classifier.1",
    "maxvit_t": "classifier.5",
    "mobilenet_v2": "classifier.1",
    "resnext50_32x4d": "fc",
    "swin_v2_t": "head",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_features_of_every_family(name: str) -> None:
    last, size, image_size = FAMILIES[name]
    with torch.device("meta"):  # shapes, but no numbers: so it takes little time
        network = make_network(name, image_size)
    assert last_layer(network) == last
    model = Backbone(network, image_size=image_size, mean=MEAN, std=STD)
    assert (model.num_features, model.mean.device.type) == (size, "meta")
    images = torch.rand(2, 3, image_size, image_size, device="meta")
    assert model.train()(images).shape == (2, size)  # and no side outputs


def test_the_last_layer_of_slow_families() -> None:
    for name, last in SLOW.items():
        with torch.device("meta"):
            assert last_layer(make_network(name, 224)) == last
    assert last_layer(make_network("regnet_y_400mf", 224)) == "fc"  # needs numbers


def test_features_and_the_last_layer_are_the_network_again(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    network = models.mobilenet_v3_small(num_classes=7).eval()
    logits = network.classifier[3](make_backbone(network)(images))
    torch.testing.assert_close(logits, network(normalised(images)))


def test_the_convolution_of_squeezenet_is_its_last_layer() -> None:
    torch.manual_seed(0)
    network = models.squeezenet1_1(num_classes=7).eval()
    model = make_backbone(network, image_size=32)
    images = torch.rand(2, 3, 32, 32)
    features = network.features(normalised(255 * images)).relu().mean((2, 3))
    torch.testing.assert_close(model(images), features)


# Its interface is that of CifarNet


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_it_normalises(images: torch.Tensor, dtype: torch.dtype) -> None:
    given = images if dtype == torch.uint8 else images.to(dtype) / 255
    before = given.clone()
    inputs = make_backbone().preprocess(given)
    assert torch.equal(given, before)
    assert inputs.dtype == torch.float32
    torch.testing.assert_close(inputs, normalised(images))


def test_wrong_images_are_refused(images: torch.Tensor) -> None:
    model = make_backbone()
    for wrong, message in (
        (images[:, :2], r"images must be \(N, 3, 16, 16\), not \(4, 2, 16, 16\)"),
        (images[..., :8], "images must be"),
        (images[0], "images must be"),
        (images.float(), "floating-point images go from 0 to 1, these from 0 to 255"),
        (normalised(images), "the model normalises"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            model(wrong)
        one_line(str(caught.value))


def test_the_module_does_not_change(images: torch.Tensor) -> None:
    module = Small().train()
    before = copy.deepcopy(module.state_dict())
    model = transfer_model(make_backbone(module), 3).train()
    model(images).sum().backward()
    assert module.training
    assert isinstance(module.head, nn.Linear)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in module.parameters())


def test_its_classifier_can_be_reset(images: torch.Tensor) -> None:
    model = make_backbone()
    features = model.forward_features(images)
    assert torch.equal(model(images), features)
    assert (model.num_classes, model.num_features, model.image_size) == (0, 8, 16)
    assert isinstance(model.get_classifier(), nn.Identity)
    model.class_names = {0: "cat"}
    model.reset_classifier(3, dropout=0.2)
    assert model.classifier.get_submodule("dropout").p == 0.2
    assert (model.num_classes, model.class_names) == (3, {})
    assert not any(module.training for module in model.modules())
    assert torch.equal(model.forward_head(features), model(images))
    hidden = model.forward_head(features, pre_logits=True)
    assert hidden.shape == (len(images), 128)
    assert torch.equal(model.get_classifier()(hidden), model(images))
    with pytest.raises(ValueError, match="at least 0, not -1"):
        model.reset_classifier(-1)


def test_a_transfer_model_has_frozen_features(images: torch.Tensor) -> None:
    base = make_backbone()
    base.reset_classifier(5)
    base.class_names, base.white = {0: "old"}, {"integers": 4095.0}
    model = transfer_model(base, 3).train()
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert names == [f"classifier.linear{n}.{part}" for n in (1, 2) for part in ("weight", "bias")]
    assert count_parameters(model, trainable_only=True) == (8 + 1) * 128 + (128 + 1) * 3
    assert not any(module.training for module in model.features.modules())
    assert model.classifier.training
    model(images).sum().backward()
    assert (model.class_names, model.white, model.frame) == ({}, {}, base.frame)
    assert (base.num_classes, base.class_names) == (5, {0: "old"})
    assert all(parameter.requires_grad for parameter in base.parameters())
    assert digest_of(base) == digest_of(model)


def test_it_can_be_copied_and_pickled(images: torch.Tensor) -> None:
    model = transfer_model(make_backbone(), 3)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(images), model(images))
        assert digest_of(other) == digest_of(model)
        assert not any(parameter.requires_grad for parameter in other.features.parameters())


def test_the_digest_is_of_all_that_decides_the_features() -> None:
    model = make_backbone()
    digest = digest_of(model)
    model.reset_classifier(3)
    assert digest_of(model) == digest
    others = [
        make_backbone(mean=(0.4, 0.5, 0.7)),
        make_backbone(std=(0.2, 0.25, 0.4)),
        make_backbone(frame=Frame(16, 20)),
        make_backbone(),
        make_backbone(),
    ]
    others[-2].features.get_parameter("body.0.bias").data[0] += 1
    others[-1].features.get_buffer("body.1.running_mean")[0] += 1
    assert len({digest_of(other) for other in [model, *others]}) == 6


def test_the_digest_knows_buffers_that_are_not_saved() -> None:
    def of(gain: float) -> str:
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            module = Small()
        module.register_buffer("gain", torch.tensor(gain), persistent=False)
        return digest_of(Backbone(module, image_size=16, mean=(0.5,) * 3, std=(0.5,) * 3))

    assert of(1.0) == of(1.0) != of(2.0)


def test_the_modes_inside_a_module_stay() -> None:
    module = Small().train()
    norm = module.get_submodule("body.1").eval()  # somebody has frozen its statistics
    model = Backbone(module, image_size=16, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert module.training
    assert not norm.training
    assert not model.features.get_submodule("body.1").training


def test_a_compiled_module_is_taken_out_of_its_wrapper() -> None:
    compiled: Any = torch.compile(Small().eval(), backend="eager")
    model = Backbone(compiled, image_size=16, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert not [name for name in model.state_dict() if "_orig_mod" in name]
    assert model.name == "Small"


class Tuples(Small):
    def forward(self, images: torch.Tensor) -> Any:
        return super().forward(images), images


class OtherOrder(Small):
    """Its last Linear is not its last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 8)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pooled = self.pool(self.body(images)).flatten(1)
        outputs: torch.Tensor = self.head(self.gate(pooled).sigmoid() * pooled)
        return outputs


class Headed(Small):
    """With two last layers, as timm's distilled networks."""

    def get_classifier(self) -> tuple[nn.Module, nn.Module]:
        return self.head, self.head


def broken() -> Small:
    module = Small()
    with torch.no_grad():
        module.head.weight.fill_(1.0)
        next(module.body.parameters()).fill_(float("nan"))
    return module


@pytest.mark.parametrize(
    ("module", "changes", "message"),
    [
        (Small(), {"classifier": "fc"}, "the last layer 'fc' is missing: name a Linear, or a Conv"),
        (Small(), {"classifier": "body"}, "the last layer 'body' is a Sequential"),
        (Small(), {"classifier": ""}, "the last layer '' is missing"),
        (Small().body, {}, "has no Linear inside, and no Conv2d of 1x1 at its end: name its last"),
        (nn.Linear(3, 2), {}, "has no Linear inside"),
        (
            OtherOrder(),
            {},
            r"without its last layer 'gate', OtherOrder gives \(1, 5\) and not \(1,",
        ),
        (Tuples(), {}, "Tuples gives tuple and not"),
        (
            Small(last=nn.Softmax),
            {},
            "after its last layer 'head', Small changes the outputs, as b",
        ),
        (Small(last=nn.LogSoftmax), {}, "changes the outputs"),
        (Small(), {"image_size": 2}, "Small takes no images of 2x2: "),
        (
            Small().half(),
            {},
            r"the weights of Small must be float32: module\.float\(\) makes them so",
        ),
        (broken(), {}, "Small gives outputs that are no finite numbers: its weights are damaged"),
        (Headed(), {}, "Headed has several last layers: give a module with one"),
        (Small(), {"name": ".."}, "the name '..' cannot be that of a folder: give another"),
        (Small(), {"name": "a\nb"}, "cannot be that of a folder"),
        (Small(), {"mean": (123.0, 117.0, 104.0)}, "for pixels from 0 to 1: divide those of 255"),
        (Small(), {"frame": Frame(32)}, "a frame of 32 pixels is not image_size 16"),
        (Small(), {"mean": (0.5,)}, "mean and std are three numbers each"),
        (Small(), {"std": (1, 0, 1)}, "those of std are above 0"),
    ],
)
@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
def test_what_cannot_be_a_backbone_is_explained(
    module: nn.Module, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make_backbone(module, **changes)
    one_line(str(caught.value))


def test_the_last_layer_can_be_named(images: torch.Tensor) -> None:
    assert make_backbone(OtherOrder(), classifier="head")(images).shape == (4, 8)


# What is made of it


def test_it_predicts(images: torch.Tensor) -> None:
    model = transfer_model(make_backbone(), 3)
    model.class_names = {0: "cat", 2: "fox"}
    found = predict(model, images[0])
    assert {prediction.name for prediction in found} == {"cat", "fox"}
    expected = model(images[:1])[0, [0, 2]].softmax(0).detach()
    assert found[0].probability == pytest.approx(float(expected.max()))


def test_it_is_exported(images: torch.Tensor, tmp_path: Path) -> None:
    model = transfer_model(make_backbone(), 3)
    export_pt2(model, tmp_path / "model.pt2")
    exported = torch.export.load(tmp_path / "model.pt2").module()
    for batch in (images[:1], images):
        torch.testing.assert_close(exported(batch), model(batch))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_is_exported_to_onnx(images: torch.Tensor, tmp_path: Path) -> None:
    for package in ONNX_PACKAGES:
        pytest.importorskip(package)
    import onnxruntime

    model = transfer_model(make_backbone(), 3)
    export_onnx(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (logits,) = session.run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), model(images), atol=1e-4, rtol=1e-4)


# Its file


def save_small(path: Path) -> Backbone:
    model = transfer_model(make_backbone(frame=Frame(16, 20, "bilinear")), 3)
    model.classifier.dropout.p = 0.2  # type: ignore[union-attr]
    model.features.get_buffer("body.1.running_mean").fill_(0.1)
    save_model(path, model, class_names=["cat", "dog", "fox"])
    return model


def test_a_module_of_ones_own_comes_back(images: torch.Tensor, tmp_path: Path) -> None:
    path = tmp_path / "mine.pt"
    model, module = save_small(path), Small()
    before = copy.deepcopy(module.state_dict())
    state = torch.get_rng_state()
    back = load_model(path, module)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert torch.equal(back(images), model.eval()(images))
    assert not back.training
    assert all(parameter.requires_grad for parameter in back.parameters())
    assert back.describe() == model.describe()
    assert (back.frame, back.class_names) == (model.frame, {0: "cat", 1: "dog", 2: "fox"})
    assert digest_of(back) == digest_of(model)
    other = tmp_path / "again.pt"
    save_model(other, back)
    assert other.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("module", [Small(9), Small().body, models.squeezenet1_1(), None])
def test_another_module_is_refused(tmp_path: Path, module: nn.Module | None) -> None:
    save_small(tmp_path / "mine.pt")
    with pytest.raises(CheckpointError, match=r"mine\.pt: .*give load_model (the|such a) module"):
        load_model(tmp_path / "mine.pt", module)


FRAME = {"size": 16, "resize": None, "interpolation": "bicubic", "fit": "crop", "padding": [0] * 3}


@pytest.mark.parametrize(
    "changes",
    [
        {"frame": FRAME | {"size": 10**6}},
        {"frame": FRAME | {"resize": 10**6}},
        {"frame": FRAME | {"size": -1}},
        {"frame": FRAME | {"size": 17.5}},
        {"frame": FRAME | {"size": "16"}},
        {"frame": FRAME | {"resize": 20.5}},
        {"frame": FRAME | {"fit": ["crop"]}},
        {"frame": FRAME | {"padding": 3}},
        {"frame": FRAME | {"colour": 3}},
        {"frame": 16},
        {"num_classes": 4},
        {"num_classes": 10**12},
        {"num_classes": None},
        {"taken_off": "body.0"},
        {"taken_off": "fc"},
        {"taken_off": ["head"]},
        {"taken_off": None, "source": 3},
        {"source": "here"},
        {"network": None},
        {"dropout": 2.0},
        {"dropout": "half"},
        {"state_dict": {}},
        {"state_dict": 3},
        {"settings": 3},
    ],
)
def test_senseless_files_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "mine.pt"
    save_small(path)
    save_checkpoint(path, load_checkpoint(path) | changes)
    for module in (Small(), None):
        with pytest.raises(CheckpointError, match=f"^{path}") as caught:
            load_model(path, module)
        one_line(str(caught.value))


@pytest.mark.parametrize("name", ["frame", "source", "taken_off", "state_dict", "num_classes"])
def test_files_without_a_part_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "mine.pt"
    save_small(path)
    content = load_checkpoint(path)
    del content[name]
    save_checkpoint(path, content)
    with pytest.raises(CheckpointError, match=f"^{path}"):
        load_model(path, Small())


def test_files_with_other_tensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.pt"
    save_small(path)
    content = load_checkpoint(path)
    state = content["state_dict"]
    for name, value in (
        ("std", torch.zeros(3, 1, 1)),
        ("mean", torch.zeros(4)),
        ("mean", 3),
        ("mean", torch.zeros(3, 1, 1).half()),
        ("classifier.linear1.weight", torch.zeros(128, 9)),
        ("classifier.linear2.bias", torch.zeros(1).expand(3)),
        ("features.body.0.weight", torch.zeros(8, 3, 3, 3).half()),
        ("features.more", torch.zeros(1)),
    ):
        save_checkpoint(path, content | {"state_dict": state | {name: value}})
        if name == "classifier.linear2.bias":  # save_checkpoint has made it contiguous
            assert load_model(path, Small()).num_classes == 3
            continue
        with pytest.raises(CheckpointError, match=f"^{path}"):
            load_model(path, Small())


def test_what_could_not_be_loaded_again_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="other weights than a Backbone in float32"):
        save_model(tmp_path / "model.pt", make_backbone().half())
    large = make_backbone(frame=Frame(16, 4096))
    with pytest.raises(ValueError, match="loaded again: resize is not from 1 to 2048"):
        save_model(tmp_path / "model.pt", large)
    assert not list(tmp_path.iterdir())


def test_a_module_of_ones_own_may_have_any_name(images: torch.Tensor, tmp_path: Path) -> None:
    model = transfer_model(make_backbone(name="CifarNet"), 3)
    save_model(tmp_path / "mine.pt", model, class_names=["cat", "dog", "fox"])
    again = load_model(tmp_path / "mine.pt", Small())
    torch.testing.assert_close(again(images), model.eval()(images))
