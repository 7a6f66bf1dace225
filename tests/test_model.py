import copy
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from cifar_tl.data.shapes import draw_shapes
from cifar_tl.model import (
    CifarNet,
    Dropout,
    count_parameters,
    freeze,
    layers,
    transfer_model,
    unfreeze,
    whiten_first_layer,
)

DOCUMENTED_LAYERS = [
    ("Conv 5x5 + ReLU", (32, 28, 28), 2_432),
    ("Conv 5x5 + ReLU", (16, 24, 24), 12_816),
    ("MaxPool 2x2", (16, 12, 12), 0),
    ("Conv 3x3 + ReLU", (8, 10, 10), 1_160),
    ("Flatten", (800,), 0),
    ("Dropout 0.42", (800,), 0),
    ("Linear + ReLU", (128,), 102_528),
]


@pytest.fixture
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (200, 3, 32, 32), dtype=torch.uint8, generator=generator)


@pytest.fixture
def model() -> CifarNet:
    torch.manual_seed(0)
    return CifarNet(num_classes=5)


@pytest.mark.parametrize(
    ("num_classes", "head", "total"), [(5, 645, 119_581), (10, 1_290, 120_226)]
)
def test_layers_are_the_documented_ones(num_classes: int, head: int, total: int) -> None:
    model = CifarNet(num_classes)
    expected = [*DOCUMENTED_LAYERS, ("Linear", (num_classes,), head)]
    assert [(row.name, row.shape, row.parameters) for row in layers(model)] == expected
    assert [row.number for row in layers(model)] == list(range(1, 9))
    assert count_parameters(model) == count_parameters(model, trainable_only=True) == total


def test_transfer_model_trains_and_freezes_the_documented_parameters(model: CifarNet) -> None:
    transfer = transfer_model(model)
    assert count_parameters(transfer) == 120_226
    assert count_parameters(transfer, trainable_only=True) == 103_818
    assert count_parameters(transfer.features) == 16_408
    assert [row.trainable for row in layers(transfer)] == [False] * 6 + [True] * 2


def test_layer_order_is_the_documented_one(model: CifarNet, images: torch.Tensor) -> None:
    model.eval()
    conv1, conv2, conv3 = (model.features.get_submodule(f"conv{n}") for n in (1, 2, 3))
    x = images / 255
    x = functional.max_pool2d(conv2(conv1(x).relu()).relu(), 2)
    x = conv3(x).relu().flatten(1)
    torch.testing.assert_close(model.forward_features(images), x)
    linear1, linear2 = (model.classifier.get_submodule(f"linear{n}") for n in (1, 2))
    torch.testing.assert_close(model(images), linear2(linear1(x).relu()))
    torch.testing.assert_close(model.forward_head(x), model(images))


def test_dropout_acts_in_training_only(model: CifarNet) -> None:
    ones = torch.ones(1000, 800)
    dropped = model.train().classifier[0](ones)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.42, abs=0.01)
    assert torch.equal(model.eval().classifier[0](ones), ones)


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.42, 0.999])
def test_dropout_drops_its_part_and_scales_the_rest(probability: float) -> None:
    torch.manual_seed(0)
    dropout = Dropout(probability)
    inputs = torch.full((1_000, 801), 2.0, dtype=torch.float64, requires_grad=True)
    outputs = dropout(inputs)
    kept = outputs != 0
    assert outputs.dtype == torch.float64
    assert set(outputs.unique().tolist()) <= {0.0, 2 / (1 - probability)}
    assert kept.double().mean() == pytest.approx(1 - probability, abs=4 * 0.5 / 801_000**0.5)
    outputs.sum().backward()
    assert inputs.grad is not None
    assert torch.equal(inputs.grad, outputs.detach() / 2)
    # Neighbours share a random number: they must be independent all the same.
    flat = kept.flatten().double() - kept.double().mean()
    for distance in (1, 2, 3, 4, 801):
        covariance = (flat[distance:] * flat[:-distance]).mean()
        assert abs(covariance) < 4 * probability * (1 - probability) / 800_000**0.5 + 1e-12


def test_dropout_follows_the_seed_and_takes_any_shape() -> None:
    for shape in ((0,), (1,), (7,), (3, 5, 2)):
        masks = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            masks.append(Dropout(0.42)(torch.ones(shape)))
        assert masks[0].shape == shape
        assert torch.equal(masks[0], masks[1])
        assert len(shape) < 3 or not torch.equal(masks[0], masks[2])
    for probability in (0.999_999, 1.0):
        assert not Dropout(probability)(torch.ones(5)).any()
    inputs = torch.ones(5)
    assert Dropout(0.42, inplace=True)(inputs) is inputs
    assert Dropout(0.42)(torch.ones(5, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_pooling_before_relu_is_the_documented_function(
    model: CifarNet, images: torch.Tensor
) -> None:
    def documented(images: torch.Tensor) -> torch.Tensor:
        conv1, conv2, conv3 = (model.get_submodule(f"features.conv{n}") for n in (1, 2, 3))
        hidden = functional.relu(conv1(model.preprocess(images)))
        hidden = functional.max_pool2d(functional.relu(conv2(hidden)), 2)
        return functional.relu(conv3(hidden)).flatten(1)

    gradients = []
    for forward in (documented, model.forward_features):
        model.zero_grad()
        features = forward(images)
        features.square().sum().backward()
        gradients.append([parameter.grad for parameter in model.features.parameters()])
    assert torch.equal(documented(images), model.forward_features(images))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_weights_are_glorot_uniform_and_biases_zero(model: CifarNet) -> None:
    fans = {"conv1": (75, 800), "conv2": (800, 400), "conv3": (144, 72)}
    for name, (fan_in, fan_out) in fans.items():
        weight = model.get_parameter(f"features.{name}.weight")
        limit = math.sqrt(6 / (fan_in + fan_out))
        assert 0.98 * limit < weight.abs().max().item() <= limit
        assert weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.05)
    biases = [value for name, value in model.named_parameters() if name.endswith("bias")]
    assert len(biases) == 5
    assert not any(bias.any() for bias in biases)


@pytest.mark.parametrize("num_classes", [5, 10])
def test_initial_loss_is_near_the_logarithm_of_the_classes(
    num_classes: int, images: torch.Tensor
) -> None:
    torch.manual_seed(1)
    labels = torch.randint(num_classes, (len(images),))
    loss = functional.cross_entropy(CifarNet(num_classes).eval()(images), labels)
    assert loss.item() == pytest.approx(math.log(num_classes), abs=0.2)


def test_preprocessing_travels_with_the_model(model: CifarNet, images: torch.Tensor) -> None:
    assert torch.equal(model.preprocess(images), images / 255)
    assert torch.equal(model.preprocess(images / 255), images / 255)
    model.mean, model.std = torch.full((3, 1, 1), 0.5), torch.full((3, 1, 1), 0.25)
    expected = (images / 255 - 0.5) / 0.25
    torch.testing.assert_close(model.preprocess(images), expected)
    for other in (transfer_model(model), CifarNet(5)):
        if not torch.equal(other.mean, model.mean):
            other.load_state_dict(model.state_dict())
        torch.testing.assert_close(other.preprocess(images), expected)


def test_preprocessing_lays_images_out_for_fast_convolutions(
    model: CifarNet, images: torch.Tensor
) -> None:
    for inputs in (images, images / 255, images.contiguous(memory_format=torch.channels_last)):
        assert model.preprocess(inputs).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 32, 32, 3), (2, 3, 28, 28)])
def test_images_of_another_shape_are_refused(model: CifarNet, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images must be \(N, 3, 32, 32\), not"):
        model(torch.zeros(shape))


def test_whitened_first_layer_has_uncorrelated_outputs_of_variance_one() -> None:
    torch.manual_seed(0)
    images = torch.from_numpy(draw_shapes(150, 10)[0])
    model = CifarNet(5)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    whiten_first_layer(model, images)
    with torch.no_grad():
        first_layer = model.features.get_submodule("conv1")
        outputs = first_layer(model.preprocess(images)).transpose(0, 1).flatten(1)
    moments = outputs @ outputs.t() / outputs.shape[1]
    expected = torch.eye(16).repeat(2, 2)
    expected[:16, 16:] *= -1
    expected[16:, :16] *= -1
    torch.testing.assert_close(moments, expected, atol=1e-3, rtol=0)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"features.conv1.weight"}


@pytest.mark.parametrize("level", [0, 128])
def test_whitening_flat_images_stays_finite(level: int) -> None:
    model = CifarNet(5)
    whiten_first_layer(model, torch.full((3, 3, 32, 32), level, dtype=torch.uint8))
    assert model.get_parameter("features.conv1.weight").abs().max() < 1e7


def test_transfer_model_copies_the_base_and_leaves_it_alone(
    model: CifarNet, images: torch.Tensor
) -> None:
    before = copy.deepcopy(model.state_dict())
    transfer = transfer_model(model, num_classes=7)
    assert transfer(images).shape == (200, 7)
    assert torch.equal(transfer.forward_features(images), model.forward_features(images))
    assert transfer.features[0].weight is not model.features[0].weight
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.num_classes == 5
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def make_block() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))


def test_frozen_module_has_no_gradients_and_stays_in_evaluation_mode() -> None:
    model = nn.Sequential(make_block(), nn.Linear(4, 2))
    model(torch.randn(8, 4)).sum().backward()
    assert freeze(model[0]) is model[0]
    model.train()
    before = copy.deepcopy(model[0].state_dict())
    model(torch.randn(8, 4)).sum().backward()
    assert model.training
    assert model[1].training
    assert not any(module.training for module in model[0].modules())
    assert all(p.grad is None and not p.requires_grad for p in model[0].parameters())
    assert all(p.grad is not None for p in model[1].parameters())
    assert all(torch.equal(before[key], value) for key, value in model[0].state_dict().items())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_of_a_frozen_module_are_frozen_and_independent(
    copied: Callable[[nn.Module], nn.Module],
) -> None:
    block = freeze(make_block())
    twin = copied(block)
    twin.train()
    assert not any(module.training for module in twin.modules())
    unfreeze(twin).train()
    assert all(module.training for module in twin.modules())
    block.train()
    assert not any(module.training for module in block.modules())


def test_freezing_a_container_leaves_others_in_it_free() -> None:
    model = freeze(nn.Sequential(make_block(), make_block()))
    model[1] = make_block()  # a new head under frozen layers
    for mode in (True, False):
        model.train(mode)
        assert all(module.training is mode for module in model[1].modules())
        assert not any(module.training for module in model[0].modules())
    unfreeze(model[0])
    assert all(module.training for module in model.train()[0].modules())


def test_new_classifier_is_in_the_mode_of_its_model(model: CifarNet) -> None:
    for training in (True, False):
        transfer = transfer_model(model.train(training))
        assert transfer.training is transfer.classifier.training is training
        assert not transfer.features.training
    whole = transfer_model(freeze(model)).eval()
    assert not whole.classifier.training


def test_unfreeze_undoes_freeze() -> None:
    block = freeze(make_block())
    assert unfreeze(block) is block
    assert not block.training
    block.train()
    assert all(module.training for module in block.modules())
    assert all(parameter.requires_grad for parameter in block.parameters())
