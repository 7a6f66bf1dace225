"""The page in a real browser gives the answers of `predict`, of more than 100 pictures."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cifar_tl.checkpoint import load_model, read_named_model, save_model
from cifar_tl.data.pictures.read import read_image
from cifar_tl.frame import Fit, cifar_frame
from cifar_tl.page import write_page
from cifar_tl.prediction import predict
from tests.browser.conftest import classify
from tests.browser.pictures import Picture, pictures


def test_it_answers_as_predict_does(open_page: Callable[..., Any], cifar10_page: Path) -> None:
    compare(open_page(cifar10_page), load_model("cifar10"), list(pictures()))


@pytest.mark.parametrize("fit", ["squash", "pad"])
def test_it_scales_as_the_model_was_trained(
    fit: Fit, open_page: Callable[..., Any], tmp_path: Path
) -> None:
    model, _, outputs = read_named_model("cifar10")
    model.frame = cifar_frame(fit)
    write_page(tmp_path / "page.html", model, outputs)  # type: ignore[arg-type]
    some = [picture for picture in pictures() if picture.name.startswith(("RGB-", "turned"))]
    assert len(some) > 20
    compare(open_page(tmp_path / "page.html"), model, some)


def compare(page: Any, model: Any, of: list[Picture]) -> None:
    """Compares pixels and probabilities of the page with those of `read_image` and `predict`."""
    worst = {True: [0.0, 0.0], False: [0.0, 0.0]}
    for picture in of:
        image = read_image(picture.content, model.white, model.frame)
        expected = {each.name: each.probability for each in predict(model, image, 10)}
        found = classify(page, picture.content)
        assert "problem" not in found, (picture.name, found)
        pixels = np.array(found["pixels"]).reshape(32, 32, 3).transpose(2, 0, 1)
        levels = float(np.abs(pixels - image.numpy().astype(int)).max())
        answers = {each["name"]: each["probability"] for each in found["answers"]}
        assert answers.keys() == expected.keys()
        assert list(answers.values()) == sorted(answers.values(), reverse=True)
        points = 100 * max(abs(answers[name] - expected[name]) for name in expected)
        limit = 0.5 if picture.is_exact else 3
        assert points <= limit, (picture.name, points)
        assert levels <= 1 or not picture.is_exact, (picture.name, levels)
        first, second, *_ = expected
        if 100 * (expected[first] - expected[second]) > limit:
            assert next(iter(answers)) == first, picture.name
        kind = worst[picture.is_exact]
        kind[:] = max(kind[0], points), max(kind[1], levels)
    for is_exact, (points, levels) in worst.items():
        count = sum(picture.is_exact == is_exact for picture in of)
        print(f"exact {is_exact}: {count} pictures, {points:.3f} points, {levels:.0f} levels")


def test_a_very_large_picture_is_answered_or_refused_as_by_predict(
    open_page: Callable[..., Any], cifar10_page: Path
) -> None:
    page = open_page(cifar10_page)
    model = load_model("cifar10")
    generator = np.random.default_rng(0)
    small = Image.fromarray(generator.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    for size in ((12_000, 700), (900, 12_000)):
        content = io.BytesIO()
        small.resize(size).save(content, "PNG")
        compare(page, model, [Picture("large", content.getvalue(), True)])
    content = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(content, "PNG")
    found = classify(page, content.getvalue())
    assert found == {"problem": "has too many pixels. Make it smaller."}


def test_white_of_grey_pictures_of_16_bits(open_page: Callable[..., Any], tmp_path: Path) -> None:
    model, settings, outputs = read_named_model("cifar10")
    save_model(tmp_path / "model.pt", model, {**settings, "white": {"integers": 4095}})
    write_page(tmp_path / "page.html", load_model(tmp_path / "model.pt"), outputs)  # type: ignore[arg-type]
    page = open_page(tmp_path / "page.html")
    content = io.BytesIO()
    Image.fromarray(np.full((40, 40), 4000, np.uint16)).save(content, "PNG")
    problem = "has 16 bits, and to this model 4095 is white. Save it with 8 bits."
    assert classify(page, content.getvalue()) == {"problem": problem}
