import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from cifar_tl.experiment.findings.layers import layers
from cifar_tl.freezing import count_parameters, freeze, last_layer, transfer_model, unfreeze
from cifar_tl.network import CifarNet, Dropout

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
def labels() -> torch.Tensor:
    return torch.randint(5, (200,), generator=torch.Generator().manual_seed(0))


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
    assert [row.trainable for row in layers(transfer)] == [0] * 6 + [102_528, 1_290]


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


def test_dropout_of_nothing_draws_nothing() -> None:
    features, before = torch.ones(3, 4), torch.get_rng_state()
    assert torch.equal(Dropout(0.0)(features), features)
    assert torch.equal(torch.get_rng_state(), before)


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


# Images that the model was not made for


@pytest.mark.parametrize(
    "change",
    [lambda x: 255 * x, lambda x: (x - 0.45) / 0.2, lambda x: 2 * x - 1.1],
    ids=["from 0 to 255", "normalised", "from -1.1 to 0.9"],
)
def test_floats_of_another_range_are_refused(
    model: CifarNet, images: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    floats = images.float() / 255
    torch.testing.assert_close(model.eval()(floats), model(images))
    with pytest.raises(ValueError, match="floating-point images go from 0 to 1, these from"):
        model(change(floats))
    augmented = 1.5 * floats - 0.2  # a random change of contrast goes a little beyond
    model(augmented)


# What others do with models


@pytest.mark.parametrize("name", ["conv1", "conv2", "pool", "conv3"])
def test_a_hook_sees_what_a_layer_put_out_forward_and_backward(
    model: CifarNet, images: torch.Tensor, name: str
) -> None:
    seen: dict[str, torch.Tensor] = {}
    layer = model.features.get_submodule(name)
    layer.register_forward_hook(lambda _, inputs, output: seen.update(x=inputs[0], y=output))
    layer.register_full_backward_hook(
        lambda _, __, gradients: seen.update(g=gradients[0])  # type: ignore[index]
    )
    pixels = (images / 255).requires_grad_()
    model.eval()(pixels)[:, 0].sum().backward()
    again: torch.Tensor = layer.forward(seen["x"])
    torch.testing.assert_close(again, seen["y"])
    assert (seen["y"] < 0).any()
    following = {"conv1": 1, "conv2": 3, "pool": 4, "conv3": 6}[name]
    start = seen["y"].detach().clone().requires_grad_()
    rest = model.features[following:](start)
    model.forward_head(rest)[:, 0].sum().backward()
    torch.testing.assert_close(start.grad, seen["g"])


@pytest.mark.parametrize("training", [False, True])
def test_per_sample_gradients(
    model: CifarNet, images: torch.Tensor, labels: torch.Tensor, training: bool
) -> None:
    model.train(training)
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(
        parameters: dict[str, torch.Tensor], image: torch.Tensor, label: torch.Tensor
    ) -> torch.Tensor:
        logits = torch.func.functional_call(model, (parameters, buffers), (image[None],))
        return nn.functional.cross_entropy(logits, label[None])

    gradients = torch.func.vmap(
        torch.func.grad(loss), in_dims=(None, 0, 0), randomness="different"
    )(parameters, images[:20], labels[:20])
    found = gradients["classifier.linear2.weight"]
    assert found.shape == (20, *model.get_parameter("classifier.linear2.weight").shape)
    if not training:
        one = nn.functional.cross_entropy(model(images[3:4]), labels[3:4])
        (expected,) = torch.autograd.grad(one, [model.get_parameter("classifier.linear2.weight")])
        torch.testing.assert_close(found[3], expected, rtol=1e-4, atol=1e-6)


def test_an_ensemble_under_vmap(images: torch.Tensor) -> None:
    models = [CifarNet(4).eval() for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(models)

    def run(parameters: dict[str, torch.Tensor], buffers: dict[str, torch.Tensor]) -> torch.Tensor:
        logits: torch.Tensor = torch.func.functional_call(
            models[0], (parameters, buffers), (images / 255,)
        )
        return logits

    found = torch.func.vmap(run)(parameters, buffers)
    for logits, one in zip(found, models, strict=True):
        torch.testing.assert_close(logits, one(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_it_can_be_exported_traced_and_compiled(
    model: CifarNet, images: torch.Tensor, training: bool
) -> None:
    model.train(training)
    exported = torch.export.export(model, (images,)).module()
    traced = torch.fx.symbolic_trace(model)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for other in (exported, traced, compiled):
        torch.manual_seed(0)
        expected = model(images)
        torch.manual_seed(0)
        found = other(images)
        assert found.shape == expected.shape
        if not training:
            torch.testing.assert_close(found, expected)
    assert torch.equal(traced(images), model(images)) or training
    with pytest.raises(ValueError, match="images must be"):
        traced(images[:, :2])


def test_features_of_inner_layers_by_torchvision(model: CifarNet, images: torch.Tensor) -> None:
    from torchvision.models.feature_extraction import create_feature_extractor

    found = create_feature_extractor(model.eval(), ["features.flatten", "classifier.relu4"])(images)
    assert torch.equal(found["features.flatten"], model.forward_features(images))
    assert found["classifier.relu4"].shape == (len(images), 128)


# The head's interface, as timm has it


def test_without_classes_it_puts_out_the_hidden_layer(
    model: CifarNet, images: torch.Tensor
) -> None:
    model.eval()
    features = model.forward_features(images)
    hidden = model.forward_head(features, pre_logits=True)
    assert hidden.shape == (len(images), CifarNet.head_hidden_size)
    assert torch.equal(model.get_classifier()(hidden), model(images))
    model.reset_classifier(0)
    assert torch.equal(model(images), hidden)
    assert (model.num_classes, type(model.get_classifier())) == (0, nn.Identity)
    assert CifarNet(0).eval()(images).shape == hidden.shape
    model.reset_classifier(3)
    assert model(images).shape == (len(images), 3)
    with pytest.raises(ValueError, match="at least 0, not -1"):
        model.reset_classifier(-1)


def test_dropout_can_be_chosen() -> None:
    model = CifarNet(10, dropout=0.1)
    model.reset_classifier(3)
    assert model.classifier.get_submodule("dropout").extra_repr().startswith("p=0.1")


# Transfer models of other networks


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.head(self.body(x))
        return output


def test_a_transfer_model_of_any_network() -> None:
    base = Backbone()
    model = transfer_model(base, 7, classifier="head.1")
    model.train()
    assert model(torch.randn(5, 12)).shape == (5, 7)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trainable == ["head.1.weight", "head.1.bias"]
    assert not any(module.training for module in model.body.modules())
    assert model.head[1].training
    assert base(torch.randn(5, 12)).shape == (5, 4)
    assert all(parameter.requires_grad for parameter in base.parameters())


def test_a_transfer_model_of_a_network_with_a_head_to_reset() -> None:
    class Resettable(Backbone):
        def reset_classifier(self, num_classes: int) -> None:
            self.head[-1] = nn.Linear(6, num_classes)

        def get_classifier(self) -> nn.Module:
            return self.head[1]

    model = transfer_model(Resettable(), 7)
    assert model(torch.randn(5, 12)).shape == (5, 7)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "head.1.weight",
        "head.1.bias",
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fc", "the classifier 'fc' is missing: name a Linear, or a Conv2d of 1x1"),
        ("", "the classifier '' is missing"),
        ("head", "the classifier 'head' is a Sequential: name a Linear"),
    ],
)
def test_a_classifier_that_is_not_there_is_explained(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        transfer_model(Backbone(), 7, classifier=name)


def test_the_last_layer_is_found() -> None:
    assert last_layer(Backbone()) == "head.1"
    assert transfer_model(Backbone(), 7).head[1].out_features == 7
    convolutions = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1))
    assert last_layer(convolutions) == "1"
    assert transfer_model(convolutions, 7)(torch.rand(2, 3, 5, 5)).shape == (2, 7, 1, 1)
    for nothing in (nn.Linear(4, 2), nn.ReLU(), nn.Sequential(nn.Conv2d(3, 8, 3))):
        with pytest.raises(ValueError, match="has no Linear inside, and no Conv2d of 1x1 at its e"):
            transfer_model(nothing, 7)


# Frozen is what has no trainable parameter


def test_what_somebody_else_unfreezes_trains_again() -> None:
    model = nn.Sequential(freeze(make_block()), nn.Linear(4, 2))
    model.train()
    assert not any(module.training for module in model[0].modules())
    for parameter in model[0].parameters():  # as Lightning's BaseFinetuning does it
        parameter.requires_grad = True
    model.train()
    assert all(module.training for module in model.modules())


def test_a_part_without_parameters_follows_the_one_that_holds_it() -> None:
    frozen = freeze(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)))
    free = nn.Sequential(nn.Linear(4, 4), freeze(nn.Dropout(0.5)))
    nn.Sequential(frozen, free).train()
    assert not frozen[1].training
    assert free[1].training
    statistics = freeze(nn.BatchNorm1d(4, affine=False))
    holder = nn.Sequential(nn.Linear(4, 4), statistics).train()
    holder(torch.randn(5, 4) + 5)
    assert not statistics.training
    assert torch.equal(statistics.get_buffer("running_mean"), torch.zeros(4))


def test_a_transfer_model_is_in_the_mode_of_its_base_and_knows_its_classes() -> None:
    for training in (True, False):
        base = Backbone().train(training)
        base.num_classes = 4  # type: ignore[assignment]
        model = transfer_model(base, 7, classifier="head.1")
        assert model.head.get_submodule("1").training is model.training is training
        found: list[Any] = [base.num_classes, model.num_classes]
        assert found == [4, 7]
    with pytest.raises(ValueError, match="num_classes must be at least 1, not 0"):
        transfer_model(Backbone(), 0, classifier="head.1")


def test_a_head_of_two_layers_is_trained_as_a_whole() -> None:
    class Distilled(Backbone):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Linear(6, 4)

        def reset_classifier(self, num_classes: int) -> None:
            self.head[-1], self.other = nn.Linear(6, num_classes), nn.Linear(6, num_classes)

        def get_classifier(self) -> tuple[nn.Module, nn.Module]:
            return self.head[-1], self.other

    model = transfer_model(Distilled(), 7)
    assert {name.rpartition(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {
        "head.1",
        "other",
    }


@pytest.mark.parametrize("classifier", [None, "classifier.linear2"])
def test_a_transfer_model_knows_nothing_of_what_its_base_was_trained_on(
    model: CifarNet, classifier: str | None
) -> None:
    model.class_names, model.white = {0: "cat"}, {"integers": 4095.0}
    transfer = transfer_model(model, 3, classifier=classifier)
    assert (transfer.num_classes, transfer.class_names, transfer.white) == (3, {}, {})
    assert (model.class_names, model.white) == ({0: "cat"}, {"integers": 4095.0})
