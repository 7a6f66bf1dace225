"""What a page says of its model."""

import datetime
import json
import re
import shutil
from pathlib import Path

from cifar_tl.checkpoint import read_named_model
from cifar_tl.experiment.findings.about import About, about_model, pages_in
from cifar_tl.experiment.findings.uncertainty import wilson_interval
from cifar_tl.page import page_text, write_page
from tests.forked import ROOT

DAY = datetime.date(2026, 1, 2)


def about(path: Path) -> About:
    _, settings, outputs = read_named_model(path)
    return about_model(path, settings, outputs, DAY)


def test_it_has_the_result_beside_the_model(finished: Path) -> None:
    folder = finished / "transfer"
    result = json.loads((folder / "result.json").read_text())
    made, learned, validation, test, _ = about(folder / "model.pt").sentences
    assert made.startswith("Made on 2026-01-02 by cifar_tl ")
    assert learned == (
        f"It is the transfer model of small.npz. It learned from {result['images_train']} images."
    )
    images = result["images_validation"]
    low, high = wilson_interval(result["val_accuracy"], images)
    assert validation == (
        f"Accuracy on {images} validation images: {result['val_accuracy']:.1%} "
        f"({low:.1%} to {high:.1%})."
    )
    assert test.startswith(f"Accuracy on {result['images_test']} test images: ")
    head, *rows = about(folder / "model.pt").rows
    assert head == ("Class", "Validation images", "Accuracy", "Range")
    assert [row[0] for row in rows] == result["class_names"]
    assert sum(int(row[1]) for row in rows) == images


def test_without_its_own_result_it_says_that_it_does_not_know(
    finished: Path, tmp_path: Path
) -> None:
    model = shutil.copy(finished / "transfer" / "model.pt", tmp_path)
    assert "does not know: no result.json" in about(Path(model)).sentences[1]
    for content in ((finished / "scratch" / "result.json").read_bytes(), b"{}"):
        (tmp_path / "result.json").write_bytes(content)
        assert "does not know: no result.json" in about(Path(model)).sentences[1]
        assert about(Path(model)).rows == []


def test_it_finds_the_pages_in_a_folder(tmp_path: Path) -> None:
    model, _, outputs = read_named_model("cifar10")
    write_page(tmp_path / "b.html", model, outputs)  # type: ignore[arg-type]
    (tmp_path / "report.html").write_text("<p>a report</p>")
    (tmp_path / "c.html").mkdir()
    assert pages_in(tmp_path) == ["b.html"]


def test_the_demonstration_is_current() -> None:
    """CONTRIBUTING.md says how it is made again."""
    text = (ROOT / "docs" / "cifar10.html").read_text(encoding="utf-8")
    day = re.search("Made on ([0-9-]+) by", text)
    assert day is not None
    model, settings, outputs = read_named_model("cifar10")
    known = about_model(Path("cifar10"), settings, outputs, datetime.date.fromisoformat(day[1]))
    assert "It learned from 40,000 images of CIFAR-10." in known.sentences[1]
    assert text == page_text(model, outputs, *known)  # type: ignore[arg-type]
