import pytest
import torch
from torch.nn import functional

from cifar_tl.data.classes import BASE_CLASSES, NEW_CLASSES
from cifar_tl.data.examples import (
    LabeledImages,
    channel_statistics,
    select_classes,
    split_validation,
    stratified_prefix,
)
from cifar_tl.data.shapes import draw_shapes
from cifar_tl.data.source import load_data
from cifar_tl.data.views import make_views


def test_halves_have_the_documented_labels_and_sizes() -> None:
    data = load_data("shapes")
    assert data.name == "shapes"
    for classes, labels in ((BASE_CLASSES, range(5)), (NEW_CLASSES, range(5, 10))):
        half = select_classes(data.train, classes)
        train, validation = split_validation(half)
        assert (len(train.labels), len(validation.labels)) == (4800, 1200)
        assert torch.equal(torch.cat([train.images, validation.images]), half.images)
        assert set(train.labels.tolist()) == set(validation.labels.tolist()) == set(labels)
        assert train.images.dtype == torch.uint8
        assert train.labels.dtype == torch.int64
        test = select_classes(data.test, classes)
        assert len(test.labels) == 1250
        assert set(test.labels.tolist()) == set(labels)


def test_cifar10_splits_as_documented() -> None:
    half = LabeledImages(torch.zeros(25_000, 0), torch.arange(25_000))
    train, validation = split_validation(half)
    assert train.labels.tolist() == list(range(20_000))
    assert validation.labels.tolist() == list(range(20_000, 25_000))


def test_stratified_prefix_keeps_the_first_of_each_class() -> None:
    labels = torch.tensor([5, 5, 6, 5, 6, 5, 7, 5, 5, 5, 6, 6])  # seven, four and one of a class
    images = torch.arange(12, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 32, 32)
    half = stratified_prefix(LabeledImages(images, labels), 0.5)
    assert half.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert half.labels.tolist() == [5, 5, 6, 5, 6, 5, 7]
    whole = stratified_prefix(LabeledImages(images, labels), 1)
    assert torch.equal(whole.images, images)
    least = stratified_prefix(LabeledImages(images, labels), 1e-6)
    assert least.labels.tolist() == [5, 6, 7]
    for fraction in (0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            stratified_prefix(LabeledImages(images, labels), fraction)


def test_select_classes_keeps_order_and_pairs() -> None:
    labels = torch.tensor([3, 7, 1, 7, 0])
    examples = LabeledImages(labels.view(5, 1, 1, 1), labels)
    selected = select_classes(examples, [7, 1])
    assert selected.labels.tolist() == selected.images.flatten().tolist() == [7, 1, 7]


def test_views_are_the_image_and_its_mirror_image() -> None:
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
    assert torch.equal(make_views(images, mirror=False), images[None])
    views = make_views(images, mirror=True)
    assert views.shape == (2, 2, 3, 4, 4)
    assert torch.equal(views[0], images)
    assert views[1, 0, 0, 0].tolist() == [3, 2, 1, 0]
    assert views[1, 0, 0, :, 0].tolist() == images[0, 0, :, 3].tolist()


def test_views_are_images_and_mirror_images_shifted_in_eight_directions() -> None:
    images = torch.randint(256, (1_100, 3, 5, 6), dtype=torch.uint8)
    padded = functional.pad(images.float(), [2] * 4, mode="reflect").to(torch.uint8)
    expected = [padded[:, :, y : y + 5, x : x + 6] for y in (0, 2, 4) for x in (0, 2, 4)]
    views = make_views(images, mirror=False, shift=2)
    assert views.shape == (9, *images.shape)
    assert torch.equal(views[0], images)
    assert all(any(torch.equal(view, shifted) for view in views) for shifted in expected)
    both = make_views(images, mirror=True, shift=2)
    assert torch.equal(both[:9], views)
    mirrored = make_views(images.flip(-1), mirror=False, shift=2)
    assert torch.equal(both[9:], mirrored)


def test_channel_statistics_are_mean_and_standard_deviation() -> None:
    images = torch.from_numpy(draw_shapes(1500, 0)[0])
    mean, std = channel_statistics(images)
    pixels = images.double() / 255
    assert mean.shape == std.shape == (3, 1, 1)
    torch.testing.assert_close(mean.flatten().double(), pixels.mean((0, 2, 3)), atol=1e-7, rtol=0)
    expected = pixels.std((0, 2, 3), correction=0)
    torch.testing.assert_close(std.flatten().double(), expected, atol=1e-7, rtol=0)
    assert (channel_statistics(torch.zeros(4, 3, 32, 32, dtype=torch.uint8))[1] > 0).all()
