"""Pictures: what they show is checked where it is a matter of figures, the rest was looked at."""

import dataclasses
import itertools
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

from cifar_tl.checkpoint import load_model
from cifar_tl.command import train
from cifar_tl.data.source import load_data
from cifar_tl.evaluation import extract_features
from cifar_tl.experiment import findings
from cifar_tl.experiment.findings import plots
from cifar_tl.experiment.findings.results import training_words
from cifar_tl.experiment.findings.uncertainty import difference, spread
from cifar_tl.experiment.folder import HistoryRow, discard, read_history
from cifar_tl.experiment.stages import PICTURES, STAGES, Place
from cifar_tl.machine import autocast
from cifar_tl.network import CifarNet
from cifar_tl.outputs import Outputs
from tests.forked import ROOT
from tests.hostile import write_result

FAST = ["--epochs", "2", "--batch-size", "50", "--finetune-epochs", "1"]


@pytest.fixture(autouse=True)
def _with_matplotlib(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", MATPLOTLIB)
        yield


MATPLOTLIB = sys.modules["matplotlib"]


@pytest.fixture(scope="module")
def drawn(small_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all stages, as the command leaves it."""
    output_dir = tmp_path_factory.mktemp("drawn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", MATPLOTLIB)
        run_all(small_npz, output_dir)
    return output_dir / "small.npz"


@pytest.fixture
def copied(drawn: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to be changed; the command would go on in ``tmp_path``."""
    return Path(shutil.copytree(drawn, tmp_path / "small.npz"))


def run_all(small_npz: Path, output_dir: Path) -> None:
    assert train.main(["--data", str(small_npz), "--output-dir", str(output_dir), *FAST]) == 0


def texts(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text))


def points(line: Line2D) -> list[tuple[float, float]]:
    return [(x, y) for x, y in np.asarray(line.get_xydata()).tolist()]


def row(epoch: int, accuracy: float, total: float, features: float = 0.0) -> HistoryRow:
    return HistoryRow(epoch, 1.0, 0.5, 0.9, accuracy, 1.0, 0.5, features, total)


HISTORIES = {
    "transfer": [row(1, 0.6, 4.0, 2.0), row(2, 0.7, 6.0, 2.0)],
    "finetune": [row(1, 0.8, 5.0)],
    "scratch": [row(1, 0.65, 10.0), row(2, 0.9, 20.0)],
}
ONE_SEED = {stage: [rows] for stage, rows in HISTORIES.items()}


def test_command_leaves_readable_pictures(drawn: Path) -> None:
    for stage in STAGES:
        for name in PICTURES:
            with Image.open(drawn / stage / name) as picture:
                assert picture.format == "PNG"
                pixels = np.asarray(picture.convert("RGB"))
            assert min(pixels.shape[:2]) > 300
            assert 0 < (pixels != 255).any(2).mean() < 1, name  # neither empty nor without margin
    assert (drawn / "comparison.png").stat().st_size < 200_000


def test_missing_and_old_pictures_are_drawn_by_the_same_command_and_the_others_left(
    drawn: Path, copied: Path, small_npz: Path
) -> None:
    (copied / "transfer" / "samples.png").unlink()
    (copied / "base" / "result.json").unlink()
    for name in ("comparison.png", "base/curves.png"):
        (copied / name).write_bytes(b"of the run before")
    kept = copied / "scratch" / "curves.png"
    before = kept.stat().st_mtime_ns
    run_all(small_npz, copied.parent)  # with another total time of base
    assert (copied / "transfer" / "samples.png").exists()
    assert kept.stat().st_mtime_ns == before
    with Image.open(copied / "comparison.png") as picture:
        assert picture.format == "PNG"
    assert (copied / "base" / "curves.png").read_bytes() == (drawn / "base/curves.png").read_bytes()


def test_restart_deletes_pictures(drawn: Path, tmp_path: Path) -> None:
    shutil.copytree(drawn, tmp_path / "runs")
    discard([tmp_path / "runs"], [tmp_path / "runs" / "transfer"])
    assert not list((tmp_path / "runs" / "transfer").iterdir())
    assert not (tmp_path / "runs" / "comparison.png").exists()


def test_damaged_history_costs_pictures_and_nothing_else(
    drawn: Path, small_npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(drawn / "base", tmp_path / "small.npz" / "base")
    (tmp_path / "small.npz" / "base" / "history.csv").unlink()
    (tmp_path / "small.npz" / "base" / "curves.png").unlink()
    arguments = ["--data", str(small_npz), "--output-dir", str(tmp_path), *FAST[:4]]
    assert train.main([*arguments, "--stage", "base"]) == 0
    assert "warning: no pictures in" in capsys.readouterr().err


def test_without_matplotlib_one_line_says_how_to_get_pictures(
    tiny_npz: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert train.main(["--data", str(tiny_npz), "--stage", "base", "--epochs", "1"]) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    assert output.splitlines()[-1].startswith("For pictures of all this: pip install")
    assert not list(Path().rglob("*.png"))


def test_curves_show_every_epoch() -> None:
    figure = plots.curves(HISTORIES["scratch"], "title", "with dropout 0.2")
    lines = {line.get_label(): points(line) for line in figure.axes[1].lines}
    assert lines["validation"] == [(1, 0.65), (2, 0.9)]
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("base", "with shifts, while weights move"),  # of the tuned recipe
        ("transfer", "with dropout 0.2 and shifts, while weights move"),
    ],
)
def test_curves_name_the_dropout_of_the_run(
    stage: str, words: str, drawn: Path, tmp_path: Path
) -> None:
    rows = read_history(drawn / stage / "history.csv", 2)
    plots.save(plots.curves(rows, f"{stage} on small.npz", words), tmp_path / "expected.png")
    expected = (tmp_path / "expected.png").read_bytes()
    assert (drawn / stage / "curves.png").read_bytes() == expected
    assert f"seen in training, {words})" in (drawn / stage / "results.txt").read_text()


def test_where_classes_are_unequal_the_mean_over_classes_is_drawn() -> None:
    rows = {
        stage: [dataclasses.replace(row, val_balanced_accuracy=0.5) for row in rows]
        for stage, rows in HISTORIES.items()
    }
    seen = training_words({"shift": 1, "class_balance": "even"}, 0.2)
    always = (0.25, "always the most frequent class: 25.0% (plain accuracy 90.0%)")
    figure = plots.curves(rows["scratch"], "title", seen, always)
    lines = {line.get_label(): points(line) for line in figure.axes[1].lines}
    assert lines["validation"] == [(1, 0.5), (2, 0.5)]
    assert [y for _, y in lines[f"training ({seen})"]] == [0.5, 0.5]
    assert [y for _, y in lines[always[1]]] == [0.25, 0.25]
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert figure.bbox.containsx(legend.get_window_extent().x0)
    assert figure.bbox.containsx(legend.get_window_extent().x1)
    assert "accuracy\n(validation: mean over classes)" in texts(figure)
    of_seed = {stage: [each] for stage, each in rows.items()}
    figure = plots.comparison(of_seed, None, "title", always=always)
    assert {"scratch: 50.0% in 20 s", always[1]} <= {
        line.get_label() for line in figure.axes[0].lines
    }
    assert "validation accuracy, new classes\n(mean over classes)" in texts(figure)
    figure.draw_without_rendering()
    label = figure.axes[0].yaxis.label.get_window_extent()
    assert 0 <= label.y0 < label.y1 <= figure.bbox.y1  # and not cut off
    equal = plots.curves(HISTORIES["scratch"], "title", "while weights move")
    assert "mean" not in texts(equal)
    older = {**of_seed, "scratch": [HISTORIES["scratch"]]}  # one figure in all lines
    figure = plots.comparison(older, None, "title", always=always)
    assert "mean over" not in texts(figure)
    assert "transfer: 70.0% in 6.0 s" in {line.get_label() for line in figure.axes[0].lines}


def test_the_training_loss_of_unequal_classes_is_said_to_be_another() -> None:
    even = training_words({"shift": 1, "class_balance": "even"}, 0.0)
    assert even == "with shifts, while weights move; the loss has the offsets of balanced training"
    assert training_words({"shift": 1}, 0.0) == "with shifts, while weights move"


def test_confusion_is_in_percent_of_each_class_with_other_outputs_only_if_they_occur() -> None:
    outputs = Outputs((2, 3), ("dog", "frog"), 4)
    figure = plots.confusion([[0, 0, 3, 1], [0, 0, 0, 8]], outputs, "title")
    shares = figure.axes[0].images[0].get_array()
    assert shares is not None
    assert shares.tolist() == [[75, 25], [0, 100]]
    figure = plots.confusion([[2, 0, 1, 1], [0, 0, 0, 8]], outputs, "title")
    shares = figure.axes[0].images[0].get_array()
    assert shares is not None
    assert shares.tolist() == [[25, 25, 50], [0, 100, 0]]
    assert "another output" in texts(figure)


def test_most_confident_mistakes_come_first() -> None:
    logits = torch.tensor([[9.0, 0], [1, 0], [0, 2], [5, 0], [0, 0.5]])
    labels = torch.tensor([0, 1, 0, 1, 1])  # right, wrong, wrong, wrong, right
    images = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 32, 32)
    figure = plots.samples(lambda chosen: images[chosen], labels, logits, ["ash", "oak"], "title")
    shown = [int(np.asarray(image.get_array()).max()) for image in figure.axes[0].images]
    assert shown == [3, 2, 1, 4, 0]
    assert "3 of 5 validation images are mistaken" in texts(figure)
    captions = [text.get_text() for text in figure.axes[0].texts]
    assert captions[0] == "ash 99%\ntrue: oak"
    assert captions[-1] == "ash 100%\ntrue: ash"


def test_filters_show_every_kernel_with_grey_as_zero() -> None:
    model = CifarNet(5)
    with torch.no_grad():
        model.get_parameter("features.conv1.weight")[3].zero_()
    images = (
        plots.filters(model.get_parameter("features.conv1.weight").detach(), "title").axes[0].images
    )
    assert len(images) == 32
    arrays = [np.asarray(image.get_array()) for image in images]
    assert (arrays[3] == 0.5).all()
    for array in arrays[:3] + arrays[4:]:
        assert abs(array - 0.5).max() == pytest.approx(0.5)


def test_comparison_counts_what_came_before() -> None:
    figure = plots.comparison(ONE_SEED, 30.0, "title", documented=True)
    lines = {str(line.get_label()): points(line) for line in figure.axes[0].lines}
    assert lines["scratch: 90.0% in 20 s"] == [(10, 0.65), (20, 0.9)]
    assert lines["transfer: 70.0% in 6.0 s"] == [(4, 0.6), (6, 0.7)]
    assert lines["transfer+finetune: 80.0% in 11 s"] == [(6, 0.7), (11, 0.8)]
    assert lines["transfer, and its base before: 36 s"] == [(34, 0.6), (36, 0.7)]
    assert lines["transfer+finetune, and its base before: 41 s"] == [(36, 0.7), (41, 0.8)]
    features = lines["transfer's features, computed once: 2.0 s"]
    assert [seconds for seconds, _ in features] == [0.5, 2.5]
    assert "documented transfer: 76.1%\nin 409 s, 1,383 s with its base" in texts(figure)
    # Reading is in the time of each stage, and counts once.
    figure = plots.comparison(ONE_SEED, 30.0, "title", seconds_reading=1.5)
    lines = {str(line.get_label()): points(line) for line in figure.axes[0].lines}
    assert lines["transfer+finetune: 80.0% in 9.5 s"] == [(6, 0.7), (9.5, 0.8)]
    assert lines["transfer, and its base before: 34 s"] == [(32.5, 0.6), (34.5, 0.7)]
    assert lines["transfer+finetune, and its base before: 38 s"] == [(34.5, 0.7), (38, 0.8)]
    alone = plots.comparison(ONE_SEED, None, "title")
    assert len(alone.axes[0].lines) == 4
    assert "documented" not in texts(alone)


def test_a_base_that_was_not_used_is_in_no_comparison(own_classes: Path, tmp_path: Path) -> None:
    """A folder of one's own may have made a base, for other folders."""
    arguments = ["--data", str(own_classes), "--epochs", "2", "--output-dir", str(tmp_path)]
    assert train.main(arguments) == 0
    folder = tmp_path / own_classes.name
    before = {name: (folder / name).read_bytes() for name in ("comparison.png", "report.html")}
    assert train.main([*arguments, "--stage", "base"]) == 0
    assert train.main(arguments) == 0
    assert {name: (folder / name).read_bytes() for name in before} == before


@pytest.mark.parametrize(("images", "is_marked"), [(20_000, True), (19_999, False)])
def test_only_the_documented_images_are_compared_with_the_documented_run(
    images: int, is_marked: bool, drawn: Path, tmp_path: Path
) -> None:
    shutil.copytree(drawn, tmp_path / "runs")
    path, picture = (tmp_path / "runs" / name for name in ("scratch/result.json", "comparison.png"))
    text = path.read_text().replace('"images_train": 80', f'"images_train": {images}')
    drawings = []
    for name in ("dog", "wolf"):  # no title has the names: only the mark can make a difference
        write_result(path, json.loads(text.replace('"dog"', f'"{name}"')))
        plots.draw_comparison([Place(tmp_path / "runs")], STAGES)
        drawings.append(picture.read_bytes())
    assert (drawings[0] != drawings[1]) is is_marked


def test_several_seeds_are_a_mean_with_its_spread() -> None:
    others = {
        stage: [dataclasses.replace(row, val_accuracy=row.val_accuracy - 0.2) for row in rows]
        for stage, rows in HISTORIES.items()
    }
    histories = {stage: [rows, others[stage]] for stage, rows in HISTORIES.items()}
    figure = plots.comparison(histories, None, "title")
    lines = {str(line.get_label()): points(line) for line in figure.axes[0].lines}
    deviation = statistics.stdev([0.9, 0.7])
    scratch = lines[f"scratch: 80.0% +- {100 * deviation:.1f} in 20 s"]
    assert np.array(scratch) == pytest.approx(np.array([(10, 0.55), (20, 0.8)]))
    bands = [np.asarray(band.get_paths()[0].vertices) for band in figure.axes[0].collections]
    assert len(bands) == 3
    assert max(float(band[:, 1].max()) for band in bands) == pytest.approx(0.8 + deviation)


def size(images: int, *accuracies: list[float]) -> dict[str, Any]:
    """What `compare` says of a number of images, of the ways transfer, finetune and scratch."""
    ways = dict(zip(("transfer", "transfer+finetune", "scratch"), accuracies, strict=True))
    return {
        "images_train": images,
        "ways": {way: {"val_accuracy": spread(values)._asdict()} for way, values in ways.items()},
        "differences": [
            {"way": way, "other": other, "val_accuracy": found._asdict()}
            for way, other in itertools.combinations(ways, 2)
            for found in [difference(ways[way], ways[other], 1000)]
        ],
    }


def test_several_sizes_are_points_with_their_spread() -> None:
    sizes = [size(200, [0.7, 0.8], [0.7, 0.7], [0.5, 0.5]), size(2000, [0.9], [1], [0])]
    figure = plots.images(sizes, "title")
    lines = [points(line) for line in figure.axes[0].lines]
    assert [(200, 0.75), (2000, 0.9)] in lines
    assert [(200, 0.5), (2000, 0)] in lines
    assert "2,000" in texts(figure)


def test_all_sizes_show_one_figure() -> None:
    """A size of which an earlier version said no mean makes all lines those of plain accuracy."""
    sizes = [size(200, [0.7], [0.7], [0.5]), size(2000, [0.9], [0.8], [0.6])]
    always = (0.5, "always the most frequent class: 50.0% (plain accuracy 90.0%)")

    def add_means(found: dict[str, Any]) -> None:
        for each in (*found["ways"].values(), *found["differences"]):
            each["val_balanced_accuracy"] = {**each["val_accuracy"], "mean": 0.55}

    add_means(sizes[1])
    figure = plots.images(sizes, "title", always)
    assert [(200, 0.5), (2000, 0.6)] in [points(line) for line in figure.axes[0].lines]
    assert "mean over classes" not in texts(figure)
    add_means(sizes[0])
    figure = plots.images(sizes, "title", always)
    lines = [points(line) for line in figure.axes[0].lines]
    assert [(200, 0.55), (2000, 0.55)] in lines
    assert [y for _, y in lines[-1]] == [0.5, 0.5]
    assert "validation accuracy\n(mean over classes)" in texts(figure)
    assert always[1] in texts(figure)


def test_pictures_show_the_validation_images_and_known_outputs(
    drawn: Path, small_npz: Path, tmp_path: Path
) -> None:
    model = load_model(drawn / "transfer" / "model.pt")
    _, validation = load_data(small_npz).train_and_validation(range(5, 10))
    precision = json.loads((drawn / "transfer" / "result.json").read_text())["precision"]
    with autocast(precision, torch.device("cpu")):  # else the images in doubt may be others
        logits = extract_features(model, validation.images)[:, 5:].float() / model.temperature
    names = list(model.class_names.values())
    figure = plots.samples(
        lambda chosen: validation.images[chosen],
        validation.labels - 5,
        logits,
        names,
        "transfer on small.npz",
    )
    plots.save(figure, tmp_path / "expected.png")
    expected = (tmp_path / "expected.png").read_bytes()
    assert (drawn / "transfer" / "samples.png").read_bytes() == expected


def test_a_diagram_shows_how_right_it_is_where_it_is_how_sure() -> None:
    logits = torch.tensor([[2.0, 0], [2, 0], [2, 0], [2, 0], [0, 0.5], [0, 0.5]])
    labels = torch.tensor([0, 0, 0, 1, 1, 1])  # three of four are right, two of two
    figure = plots.diagram(logits, labels, 2.0, "title", by_class=False)
    ax, bars = figure.axes
    of_one, of_two = ((1 / (1 + math.exp(-2 / t)), 1 / (1 + math.exp(-0.5 / t))) for t in (1, 2))
    _, before, after = ax.get_lines()
    for line, (sure, unsure) in ((before, of_one), (after, of_two)):
        (x, y), (other_x, other_y) = points(line)
        assert (x, other_x) == pytest.approx((unsure, sure))
        assert (y, other_y) == (1, 0.75)
    heights = [bar.get_height() for bar in bars.patches if isinstance(bar, Rectangle)]
    assert sorted(height for height in heights if height) == pytest.approx(
        [1 / 3] * 2 + [2 / 3] * 2
    )
    error = (2 * (1 - of_two[1]) + 4 * (0.75 - of_two[0])) / 6
    assert f"temperature 2: error {error:.1%}" in texts(figure)
    assert "temperature 1: error" in texts(figure)
    alone = plots.diagram(logits, labels, 1.0, "title", by_class=False)
    assert len(alone.axes[0].get_lines()) == 2  # the dotted one, and one


def test_many_classes_and_long_names_stay_readable(tmp_path: Path) -> None:
    names = [f"class {number} with a very long name indeed" for number in range(300)]
    figure = plots.confusion(
        torch.eye(300).tolist(), Outputs(tuple(range(300)), tuple(names), 300), "title"
    )
    assert max(figure.get_size_inches()) < 15
    assert len(figure.axes[0].get_xticks()) <= 60
    assert "class 0 with a very\u2026" in texts(figure)
    counts = torch.ones(120, 240).tolist()  # as of the new half of 240 classes
    half = Outputs(tuple(range(120, 240)), tuple(names[:120]), 240)
    figure = plots.confusion(counts, half, "title")
    assert len(figure.axes[0].get_xticks()) == len(figure.axes[0].get_yticks()) + 1 == 41
    plots.save(figure, tmp_path / "confusion.png")


@pytest.mark.parametrize(
    ("name", "eighth"),
    [
        ("{} is the number of this kind of flower", "7 is the number of \u2026"),
        ("photographs of the kind of flower number {}", "photograp\u2026r number 7"),
        ("photographs of the flower {} as seen in the field", "photographs of t\u2026 #8"),
        ("kind {}", "kind 7"),
    ],
)
def test_names_that_begin_alike_stay_different_in_every_picture(name: str, eighth: str) -> None:
    names = [name.format(number) for number in range(30)]
    outputs = Outputs(tuple(range(30)), tuple(names), 30)
    figure = plots.confusion(torch.eye(30).tolist(), outputs, "title")
    for labels in (figure.axes[0].get_xticklabels(), figure.axes[0].get_yticklabels()):
        shown = [label.get_text() for label in labels]
        assert len(set(shown)) == 30
        assert max(map(len, shown)) <= 20
        assert shown[7] == eighth
    images = torch.zeros(30, 3, 32, 32, dtype=torch.uint8)
    labels_of_all = torch.arange(30)
    figure = plots.samples(lambda chosen: images[chosen], labels_of_all, torch.eye(30), names, "x")
    captions = {text.get_text().partition("true: ")[2] for text in figure.axes[0].texts}
    assert len(captions) == 30
    figure.draw_without_rendering()  # now the captions have places
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    for box, right in itertools.pairwise(boxes):
        assert box.x1 < right.x0 or box.y0 > right.y1  # not over the next one, or in another row


def test_where_numbers_are_left_out_a_scale_says_what_the_colours_mean() -> None:
    for many, axes in ((20, 1), (21, 2)):
        names = tuple(map(str, range(many)))
        outputs = Outputs(tuple(range(many)), names, many)
        figure = plots.confusion((4 * torch.eye(many)).tolist(), outputs, "title")
        assert len(figure.axes) == axes
        assert ("100" in [text.get_text() for text in figure.axes[0].texts]) is (axes == 1)
    assert figure.axes[1].get_ylabel() == "percent"
    assert figure.axes[1].get_ylim() == (0, 100)


def test_names_may_be_no_utf_8_and_hold_line_breaks_and_dollar_signs(
    own_classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strange = (os.fsdecode(b"\xe9t\xe9"), "$a\nb$", "\u6728\t")  # the first as of old archives
    folder = tmp_path / os.fsdecode(b"\xe9")
    for new, old in zip(strange, ("ash", "Birch", "cedar tree"), strict=True):
        shutil.copytree(own_classes / "train" / old, folder / "train" / new)
    command = ["--stage", "scratch", "--epochs", "1", "--output-dir", str(tmp_path / "runs")]
    command += ["--data", str(folder)]
    assert train.main(command) == 0
    run = tmp_path / "runs" / folder.name / "scratch"
    assert {name for name in PICTURES if (run / name).exists()} == {*PICTURES}
    text = (run / "results.txt").read_text("ascii")
    assert "\nClasses 0 $a\\nb$, 1 \\u6728\\t, 2 \\udce9t\\udce9\n" in text
    assert [line.split()[0] for line in text.splitlines() if line.endswith("%")][-3:] == [
        *("$a\\nb$", "\\u6728\\t", "\\udce9t\\udce9")
    ]
    assert load_model(run / "model.pt").class_names[2] == strange[0]
    assert train.main(command) == 0
    assert capsys.readouterr().err == ""


def test_accents_where_nothing_is_utf_8(own_classes: Path, tmp_path: Path) -> None:
    shutil.copytree(own_classes, tmp_path / "pictures")
    (tmp_path / "pictures/train/ash").rename(tmp_path / "pictures/train/\u00e9t\u00e9")
    command = [sys.executable, str(ROOT / "train.py"), "--stage", "scratch", "--epochs", "1"]
    process = subprocess.run(
        [*command, "--data", "pictures"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONUTF8": "0", "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (process.returncode, process.stderr) == (0, "")
    assert (tmp_path / "runs/pictures/scratch/confusion.png").exists()


def test_broken_matplotlib_costs_pictures_and_nothing_else(
    tiny_npz: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("matplotlib.py").write_text("raise ImportError('numpy is too new\\nfor this')")
    monkeypatch.syspath_prepend(Path.cwd())
    monkeypatch.delitem(sys.modules, "matplotlib")
    monkeypatch.delitem(sys.modules, plots.__name__)
    monkeypatch.delattr(findings, "plots")
    assert train.main(["--data", str(tiny_npz), "--stage", "base", "--epochs", "1"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("tiny.npz/base: numpy is too new")
