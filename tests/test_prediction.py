import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from cifar_tl.backbone import Backbone, Network
from cifar_tl.checkpoint import load_model, save_model
from cifar_tl.errors import CheckpointError, ImageError
from cifar_tl.network import CifarNet
from cifar_tl.prediction import MirrorAverage, predict, predict_each

CLASSES = {"classes": [5, 6, 7], "class_names": ["dog", "frog", "horse"]}


def test_only_known_classes_have_probabilities(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_model(tmp_path / "model.pt", CifarNet(10), CLASSES)
    network = load_model(tmp_path / "model.pt")
    image = torch.randint(256, (3, 32, 32), dtype=torch.uint8)
    predictions = predict(network, image)
    expected = network(image[None])[0, 5:8].softmax(0).tolist()
    assert {p.label: p.name for p in predictions} == {5: "dog", 6: "frog", 7: "horse"}
    for prediction in predictions:
        assert prediction.probability == pytest.approx(expected[prediction.label - 5])
    values = [prediction.probability for prediction in predictions]
    assert values == sorted(values, reverse=True)
    assert sum(values) == pytest.approx(1)
    assert predict(network, image, top=1) == predictions[:1]
    assert predict(network, image, classes={9: "truck"}) == [(9, "truck", 1.0)]
    with pytest.raises(ValueError, match="does not name its outputs: give classes"):
        predict(CifarNet(10), image)


def test_probabilities_are_those_of_the_temperature() -> None:
    torch.manual_seed(0)
    model = CifarNet(3).eval()
    image = torch.randint(256, (3, 32, 32), dtype=torch.uint8)
    names = dict(enumerate("abc"))
    plain = predict(model, image, classes=names)
    model.temperature = 0.1
    found = predict(model, image, classes=names)
    assert [each.label for each in found] == [each.label for each in plain]
    expected = (model(image[None])[0].detach() / 0.1).softmax(0)
    assert found[0].probability == pytest.approx(float(expected.max()))
    assert found[0].probability > plain[0].probability


def test_a_temperature_of_somebody_elses_module_is_its_own_affair() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()
    image = torch.randn(3, 2, 2)
    before = predict(module, image, classes={0: "ash", 1: "oak"})
    module.register_parameter("temperature", nn.Parameter(torch.tensor(5.0)))
    assert predict(module, image, classes={0: "ash", 1: "oak"}) == before


def test_any_module_can_be_asked() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Dropout(0.9)).train()
    image = torch.randn(3, 2, 2)
    found = predict(network, image, classes={0: "ash", 2: "oak"})
    expected = network.eval()(image[None])[0, [0, 2]].softmax(0).tolist()
    assert {p.name: p.probability for p in found} == pytest.approx(
        dict(zip(("ash", "oak"), expected, strict=True))
    )
    with pytest.raises(ValueError, match="does not name its outputs: give classes"):
        predict(network, image)
    with pytest.raises(TypeError, match=r"not str: read_image reads a picture"):
        predict(network, "x.jpg", classes={0: "ash"})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="names by number, below 3"):
        predict(network, image, classes={3: "elm"})


def large_network() -> Backbone:
    module = nn.Sequential(
        nn.Conv2d(3, 6, 5, stride=4), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6 * 9 * 9, 2)
    )
    backbone = Backbone(module, image_size=40, mean=[0.5] * 3, std=[0.2] * 3)
    backbone.reset_classifier(3)
    return backbone


@pytest.mark.parametrize("make", [lambda: CifarNet(3), large_network])
@pytest.mark.parametrize("number", [1, 4, 75])
def test_many_images_have_the_answers_of_each(make: Callable[[], Network], number: int) -> None:
    torch.manual_seed(0)
    model = make()
    model.class_names = {2: "oak", 0: "ash"}
    images = torch.randint(256, (number, 3, model.image_size, model.image_size), dtype=torch.uint8)
    model.train()
    found = list(predict_each(model, images))
    assert model.training
    assert len(found) == number
    assert len({str(answer) for answer in found}) == number
    for answer, image in zip(found, images, strict=True):
        assert not isinstance(answer, ImageError)
        expected = predict(model, image)
        assert [p.label for p in answer] == [p.label for p in expected]
        values = [prediction.probability for prediction in answer]
        assert values == pytest.approx([p.probability for p in expected], abs=1e-5)
        assert [p.name for p in answer] == [model.class_names[p.label] for p in answer]
    assert len(next(predict_each(model, images, top=1))) == 1  # type: ignore[arg-type]


def test_errors_among_images_stay_in_their_places() -> None:
    model, error = CifarNet(2), ImageError("damaged")
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    for places in ({0}, {3, 4, 39}, {*range(40)}):
        given = [error if place in places else image for place in range(40)]
        found = list(predict_each(model, given, classes={0: "ash", 1: "oak"}))
        assert [place for place, answer in enumerate(found) if answer is error] == sorted(places)
        assert all(answer is error or len(answer) == 2 for answer in found)  # type: ignore[arg-type]
    assert list(predict_each(model, [], classes={0: "ash"})) == []


def test_the_first_answers_do_not_wait_for_all_images() -> None:
    taken = 0

    def images() -> Iterator[torch.Tensor]:
        nonlocal taken
        while True:
            taken += 1
            yield torch.zeros(3, 32, 32, dtype=torch.uint8)

    answers = predict_each(CifarNet(2), images(), classes={0: "ash", 1: "oak"})
    next(answers)
    assert taken == 1
    for _ in range(200):
        next(answers)
    assert taken < 300


def test_many_images_have_the_errors_of_one() -> None:
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    model = CifarNet(2)
    with pytest.raises(ValueError, match="does not name its outputs: give classes"):
        next(predict_each(model, [image]))
    with pytest.raises(ValueError, match="names by number, below 2"):
        next(predict_each(model, [image], classes={2: "elm"}))
    with pytest.raises(TypeError, match=r"not str: read_image reads a picture"):
        next(predict_each(model, ["x.jpg"], classes={0: "ash"}))  # type: ignore[list-item]
    nn.init.constant_(model.classifier[-1].bias, torch.nan)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="no finite numbers"):
        next(predict_each(model, [image], classes={0: "ash"}))


def test_a_temperature_is_found_in_wrappers_and_must_be_a_number() -> None:
    model = load_model("cifar5")
    model.temperature = 2.0
    image = torch.randint(256, (3, 32, 32), dtype=torch.uint8)
    expected = predict(model, image)
    for wrapper in (nn.DataParallel(model), torch.compile(model, backend="eager")):
        found = predict(wrapper, image, classes=model.class_names)  # type: ignore[arg-type]
        assert [each.name for each in found] == [each.name for each in expected]
        assert found[0].probability == pytest.approx(expected[0].probability, abs=1e-5)
    for wrong in (0.0, -1.0, math.nan, math.inf):
        model.temperature = wrong
        with pytest.raises(ValueError, match=r"model\.temperature must be a number above 0"):
            predict(model, image)
    with pytest.raises(ValueError, match="top must be at least 1, not 0"):
        predict(model, image, 0)


def test_the_logits_of_an_image_and_its_mirror_image_are_averaged() -> None:
    model = load_model("cifar5")
    image = torch.randint(256, (3, 32, 32), dtype=torch.uint8)
    averaged = MirrorAverage(model).requires_grad_(False)
    logits = (model(image[None]) + model(image.flip(-1)[None])) / 2
    torch.testing.assert_close(averaged(image[None]), logits)
    expected = (logits[0] / model.temperature).softmax(0).max()
    for found in (predict(averaged, image), *predict_each(averaged, [image, image.flip(-1)])):
        assert not isinstance(found, ImageError)
        assert found[0].probability == pytest.approx(float(expected), abs=1e-5)
