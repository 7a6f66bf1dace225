import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cifar_tl import first_layer
from cifar_tl.data.shapes import draw_shapes
from cifar_tl.first_layer import separate_first_layer, whiten_first_layer
from cifar_tl.network import CifarNet

BOTH = pytest.mark.parametrize("initialize", [whiten_first_layer, separate_first_layer])


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.from_numpy(draw_shapes(150, 10)[0])


def outputs_of(model: CifarNet, images: Tensor) -> Tensor:
    """Outputs of the first layer ``(32, M)``, before its ReLU."""
    with torch.no_grad():
        layer = model.features.get_submodule("conv1")
        outputs: Tensor = layer(model.preprocess(images))
        return outputs.transpose(0, 1).flatten(1)


def test_whitened_outputs_are_uncorrelated_and_of_variance_one(images: Tensor) -> None:
    model = CifarNet(5)
    whiten_first_layer(model, images)
    outputs = outputs_of(model, images)
    moments = outputs @ outputs.t() / outputs.shape[1]
    expected = torch.eye(16).repeat(2, 2)
    expected[:16, 16:] *= -1
    expected[16:, :16] *= -1
    torch.testing.assert_close(moments, expected, atol=1e-3, rtol=0)


def test_separated_outputs_are_uncorrelated_and_of_variance_one(images: Tensor) -> None:
    model = CifarNet(5)
    separate_first_layer(model, images)
    outputs = outputs_of(model, images)
    torch.testing.assert_close(outputs[:16], -outputs[16:])
    moments = outputs[:16] @ outputs[:16].t() / outputs.shape[1]
    # Of all patches; the kernels were found in those that do not overlap.
    torch.testing.assert_close(moments, torch.eye(16), atol=0.2, rtol=0)


def test_mixed_signals_are_separated() -> None:
    """Of sixteen patterns that patches are made of at random, each is found by a kernel."""
    torch.manual_seed(0)
    patterns = torch.linalg.qr(torch.randn(75, 16))[0].t()
    strengths = torch.randn(40, 6, 6, 16) ** 3  # each patch: some are strong, most are weak
    patches = (strengths @ patterns).view(40, 6, 6, 3, 5, 5)
    images = torch.zeros(40, 3, 32, 32)
    images[:, :, :30, :30] = patches.permute(0, 3, 1, 4, 2, 5).reshape(40, 3, 30, 30)
    model = CifarNet(5)
    model.mean, model.std = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    separate_first_layer(model, (images / images.abs().max() + 1) / 2 - 0.5)
    kernels = model.get_parameter("features.conv1.weight").detach()[:16].flatten(1)
    shares = (kernels @ patterns.t()).square()
    shares /= shares.sum(1, keepdim=True)
    assert (shares.max(1).values > 0.8).sum() >= 14
    assert len(shares.argmax(1).unique()) >= 14


def test_colours_count_for_more_than_their_variance(monkeypatch: pytest.MonkeyPatch) -> None:
    """With brightness that varies more than colour, some kernels still look at colour alone."""
    torch.manual_seed(0)
    brightness, colour = torch.randn(60, 1, 32, 32), torch.randn(60, 1, 32, 32)
    smooth = functional.avg_pool2d(brightness, 3, stride=1, padding=1)
    opponent = torch.tensor([1.0, 0.0, -1.0]).view(3, 1, 1)
    images = (0.5 + 0.1 * smooth + 0.03 * colour * opponent).clamp(0, 1)

    def coloured() -> int:
        model = CifarNet(5)
        model.mean, model.std = torch.full((2, 3, 1, 1), 0.5)
        separate_first_layer(model, images)
        kernels = model.get_parameter("features.conv1.weight").detach()[:16]
        return int((kernels.sum(1).square().sum((1, 2)) < kernels.square().sum((1, 2, 3))).sum())

    found = coloured()
    monkeypatch.setattr(first_layer, "COLOUR_WHITENING", 0.0)
    assert found > coloured()


@BOTH
def test_the_first_layer_is_made_of_the_images_alone(images: Tensor, initialize: type) -> None:
    model = CifarNet(5)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    initialize(model, images)
    scale = 1.0 if initialize is whiten_first_layer else 0.5
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, scale * before[name]) is (name != "features.conv1.weight")
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    conv1 = {"features.conv1.weight", "features.conv1.bias"}
    assert frozen == (set() if initialize is whiten_first_layer else conv1)
    again = CifarNet(5)
    initialize(again, images)  # by the images alone
    name = "features.conv1.weight"
    assert torch.equal(again.get_parameter(name), model.get_parameter(name))


@BOTH
def test_of_many_images_it_takes_some_of_all(initialize: type) -> None:
    """Even if they are sorted: here half of them are flat, and all of them come first."""
    torch.manual_seed(0)
    images = torch.full((2_000, 3, 32, 32), 128, dtype=torch.uint8)
    images[1_000:] = torch.randint(256, (1_000, 3, 32, 32), dtype=torch.uint8)
    name = "features.conv1.weight"
    all_, first, fourth = CifarNet(5), CifarNet(5), CifarNet(5)
    initialize(all_, images)
    initialize(fourth, images[::4])
    assert torch.equal(all_.get_parameter(name), fourth.get_parameter(name))
    initialize(all_, images[500:1_400])
    initialize(first, images[500:1_200])
    assert not torch.equal(all_.get_parameter(name), first.get_parameter(name))


@BOTH
@pytest.mark.parametrize("level", [0, 128])
def test_flat_images_stay_finite(initialize: type, level: int) -> None:
    model = CifarNet(5)
    initialize(model, torch.full((3, 3, 32, 32), level, dtype=torch.uint8))
    assert model.get_parameter("features.conv1.weight").abs().max() < 1e8
