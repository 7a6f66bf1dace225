from pathlib import Path

import pytest
import torch
from torch import nn

from cifar_tl.checkpoint import load_model, save_model
from cifar_tl.network import CifarNet
from cifar_tl.prediction import predict

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
