import csv
import io
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cifar_tl.checkpoint import save_model
from cifar_tl.command.predict import main, newest_own_model
from cifar_tl.network import CifarNet
from tests.experiment.conftest import make_result
from tests.forked import CLOSED_PIPE, Command, one_line
from tests.hostile import write_result

CLASSES = {"classes": [5, 6, 7], "class_names": ["dog", "frog", "horse"]}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_model(tmp_path / "model.pt", CifarNet(10), CLASSES)
    return tmp_path / "model.pt"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    (folder / "album.png").mkdir()  # a folder all the same
    for name, colour in {"b.png": "red", "a.JPG": "green", "more/c.png": "blue"}.items():
        Image.new("RGB", (50, 40), colour).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_files_and_folders_are_named_a_line_each(
    model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(pictures), str(pictures / "b.png"), "--model", str(model), "--top", "2"]
    assert main(arguments) == 0
    output, errors = capsys.readouterr()
    names = [line.partition(": ")[0] for line in output.splitlines()]
    assert names == [str(pictures / name) for name in ("a.JPG", "b.png", "more/c.png", "b.png")]
    assert all(line.count("%") == 2 for line in output.splitlines())
    assert one_line(errors) == (
        f"cifar-tl predict: warning: {pictures}: not used: 1 file (1 .txt); convert pictures of "
        "other formats to PNG or JPEG\n"
    )


def test_mirror_images_are_averaged_where_the_model_knows_them(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    for name, image in (("a.png", pixels), ("b.png", pixels[:, ::-1])):
        Image.fromarray(image).save(tmp_path / name)
    save_model(model, CifarNet(10), {**CLASSES, "mirror": True})
    words = [str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--model", str(model), "--json"]

    def probabilities(*options: str) -> list[list[float]]:
        assert main([*words, "--top", "3", *options]) == 0
        lines = map(json.loads, capsys.readouterr().out.splitlines())
        named = [{p["name"]: p["probability"] for p in line["classes"]} for line in lines]
        return [[found[name] for name in ("dog", "frog", "horse")] for found in named]

    a, b = probabilities()
    assert a != pytest.approx(b, rel=1e-4)
    of_both = probabilities("--mirror-average")
    assert of_both[0] == pytest.approx(of_both[1], rel=1e-4)
    means = torch.tensor([a, b]).log().mean(0).softmax(0).tolist()
    assert of_both[0] == pytest.approx(means, rel=1e-3)
    save_model(model, CifarNet(10), CLASSES)
    assert main([*words, "--mirror-average"]) == 1
    message = "model.pt was not trained on mirror images: leave out --mirror-average"
    assert message in one_line(capsys.readouterr().err)


def test_json_is_an_object_a_line(
    model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(pictures), "--model", str(model), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(line["file"]).name for line in lines] == ["a.JPG", "b.png", "c.png"]
    for line in lines:
        assert sum(found["probability"] for found in line["classes"]) == pytest.approx(1)
        assert {found["name"] for found in line["classes"]} == {"dog", "frog", "horse"}


def rows(text: str) -> list[list[str]]:
    assert text.startswith("\ufeff")
    return list(csv.reader(io.StringIO(text[1:], newline="")))


def test_csv_has_a_column_for_each_class_or_for_each_place(
    model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(pictures), "--model", str(model)]
    assert main([*arguments, "--json"]) == 0
    expected = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert main([*arguments, "--csv"]) == 0
    head, *found = rows(capsys.readouterr().out)
    assert head == ["file", "class", "probability", "dog", "frog", "horse", "problem"]
    assert main([*arguments, "--csv", "--top", "2"]) == 0
    head, *places = rows(capsys.readouterr().out)
    assert head == ["file", "class", "probability", "class 2", "probability 2", "problem"]
    for wanted, row, of_places in zip(expected, found, places, strict=True):
        assert row[0] == of_places[0] == wanted["file"]
        cells = [(c["name"], f"{c['probability']:.6f}") for c in wanted["classes"]]
        assert dict(zip(("dog", "frog", "horse"), row[3:6], strict=True)) == dict(cells)
        assert (row[1], row[2]) == (of_places[1], of_places[2]) == cells[0]
        assert (of_places[3], of_places[4]) == cells[1]


def test_no_name_is_a_formula_and_none_is_lost(
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    odd = ["a,b", '"q"', "new\nline", "\r", "café 🦊", "=1+1", "+1", "-1", "@x", "\t", "it's"]
    names = odd + [f"class {number}" for number in range(len(odd), 200)]
    save_model("odd.pt", CifarNet(200), class_names=names)
    files = ["=cmd.png", "-1.png", 'a,"b"\n.png', "é.png"]
    for name in files:
        Image.new("RGB", (40, 40), "red").save(name)
    assert main(["--model", "odd.pt", "--csv", "--", *files]) == 0
    head, *found = rows(capsysbinary.readouterr().out.decode())
    assert all(len(row) == 204 for row in [head, *found])
    assert [row[0] for row in found] == ["'=cmd.png", "'-1.png", *files[2:]]
    assert [name.removeprefix("'") for name in head[3:-1]] == names
    assert not any(cell.startswith(tuple("=+-@\t\r\n")) for row in [head, *found] for cell in row)


def test_an_output_is_written_whole_or_not_at_all(
    model: Path,
    pictures: Path,
    zygote: subprocess.Popen[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [str(pictures), "--model", str(model)]
    for name, option in (("a.csv", "--csv"), ("b.json", "--json")):
        assert main([*arguments, option]) == 0
        printed = capsys.readouterr().out
        for more in ([], [option]):
            assert main([*arguments, "--output", name, *more]) == 0
            assert capsys.readouterr().out == f"{name}: 3 pictures\n"
            assert Path(name).read_bytes().decode() == printed
            Path(name).write_text(older := "\ufefffile,an older one")
    (pictures / "notes.txt").unlink()
    (pictures / "damaged").mkdir()
    (pictures / "damaged/one.png").write_bytes(b"damaged")
    command = [str(pictures / "damaged"), "--model", str(model), "--output", "a.csv"]
    assert main(command) == 1  # nothing could be read
    assert "one.png" in one_line(capsys.readouterr().err)
    assert Path("a.csv").read_text() == older
    (pictures / "damaged/one.png").unlink()
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))"
    command = ["predict", str(pictures), *arguments, "--output", "a.csv"]
    errors = Command(zygote, command, before=full).end(1)
    assert errors == "cifar-tl predict: a.csv: File too large\n"
    assert Path("a.csv").read_text() == older
    Path("mine.csv").write_text("a,b\n")
    assert main([*arguments, "--output", "mine.csv"]) == 2
    assert "mine.csv: is there, and holds no answers" in one_line(capsys.readouterr().err)


def test_an_output_that_cannot_be_is_refused_before_anything_is_done(
    model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        (["--csv", "--json"], "--csv and --json exclude each other: choose one"),
        (["--output", "a.txt"], "--output a.txt: add --csv or --json"),
        (["--output", "none/a.csv"], "there is no folder none: make it first"),
        (["--csv", "--output", str(pictures)], "names a folder: add the name of a file"),
        (["--csv", "--output", "/dev/null"], "is a device or a pipe: write > /dev/null instead"),
        (["--csv", "--output", str(pictures / "b.png")], "b.png: looks like an image or a model"),
        (["--csv", "--output", str(model)], "model.pt: looks like an image or a model"),
    ):
        assert main([str(pictures), "--model", str(model), *arguments]) == 2
        output, errors = capsys.readouterr()
        assert output == ""
        assert message in one_line(errors)


@pytest.mark.parametrize("form", ["--csv", "--json"])
def test_a_full_disk_and_a_closed_pipe_are_one_line(
    model: Path, pictures: Path, zygote: subprocess.Popen[str], form: str
) -> None:
    (pictures / "notes.txt").unlink()
    arguments = ["predict", str(pictures), "--model", str(model), form]
    errors = Command(zygote, arguments, output=CLOSED_PIPE).end(1)
    assert errors == "cifar-tl predict: nobody reads the output any more\n"
    if Path("/dev/full").exists():
        errors = Command(zygote, arguments, output="/dev/full").end(1)
        assert errors == "cifar-tl predict: No space left on device\n"


def test_csv_is_utf_8_whatever_the_terminal_is(model: Path, zygote: subprocess.Popen[str]) -> None:
    Image.new("RGB", (40, 40)).save("é.png")
    arguments = ["predict", "é.png", "--model", str(model), "--csv"]
    assert Command(zygote, arguments, encoding="ascii").exit_code() == 0
    assert rows(Path("out.txt").read_bytes().decode())[1][0] == "é.png"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("more", [[], ["--output", "a.csv"]])
def test_a_bar_is_shown_where_no_answers_are(
    model: Path, pictures: Path, zygote: subprocess.Popen[str], more: list[str]
) -> None:
    import fcntl
    import pty
    import termios

    (pictures / "b.png").write_bytes(b"damaged")
    reader, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 200, 0, 0))
    name = os.ttyname(terminal)
    before = f"sys.stderr = open({name!r}, 'w')"
    before += "" if more else f"; sys.stdout = open({name!r}, 'w')"
    arguments = ["predict", str(pictures), "--model", str(model), *more]
    assert Command(zygote, arguments, before=before).exit_code() == 1
    shown = os.read(reader, 100_000).decode()
    os.close(terminal)
    os.close(reader)
    assert ("\rpictures:   0%|  " in shown) == bool(more)
    damaged = next(line for line in shown.splitlines() if "b.png" in line)
    assert damaged.startswith("cifar-tl predict: ")


def test_below_a_probability_the_answer_is_unsure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, colour in enumerate(("red", "green", "white")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{number}.png")
    arguments = [str(tmp_path), "--model", "cifar10"]

    def answers(*more: str) -> list[str]:
        assert main([*arguments, *more]) == 0
        return capsys.readouterr().out.splitlines()

    found = [json.loads(line)["classes"][0] for line in answers("--json")]
    limit = str(sorted(each["probability"] for each in found)[1])  # the one in the middle has it
    wanted = [each["probability"] < float(limit) for each in found]
    assert sum(wanted) == 1
    assert [json.loads(line)["unsure"] for line in answers("--json", "--unsure", limit)] == wanted
    both = zip(wanted, found, strict=True)
    names = ["unsure" if is_unsure else each["name"] for is_unsure, each in both]
    for more in ([], ["--top", "1"], ["--top", "2"]):
        table = answers("--csv", "--unsure", limit, *more)
        rows = list(csv.DictReader([table[0].removeprefix("\ufeff"), *table[1:]]))
        assert [row["class"] for row in rows] == [each["name"] for each in found]
        assert [row["unsure"] for row in rows] == ["yes" if each else "no" for each in wanted]
    lines = answers("--unsure", limit, "--top", "1")
    for line, name, each in zip(lines, names, found, strict=True):
        text = f"{each['name']} {each['probability']:.1%}"
        assert line.endswith(f": unsure ({text})" if name == "unsure" else f": {text}")


def test_doubtful_answers_come_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "colours").mkdir()
    for number in range(40):
        path = tmp_path / f"colours/{number:02}.png"
        colour = (number * 90 % 256, number * 50 % 256, number * 6)
        Image.new("RGB", (8, 8), colour).save(path)
    (tmp_path / "colours/07.png").write_bytes(b"damaged")
    arguments = [str(tmp_path / "colours"), "--model", "cifar10", "--json"]
    found = {}
    for sort in ([], ["--sort", "class"], ["--sort", "probability"]):
        assert main([*arguments, *sort]) == 1
        output, errors = capsys.readouterr()
        assert "07.png" in one_line(errors)
        found[sort[-1] if sort else None] = [json.loads(line) for line in output.splitlines()]
    first = [(each["classes"][0], each["file"]) for each in found[None]]
    assert [name for _, name in first] == sorted(name for _, name in first)
    assert len({answer["label"] for answer, _ in first}) > 1
    for by in ("class", "probability"):
        first.sort(key=lambda each: (by == "class" and each[0]["label"], each[0]["probability"]))
        assert [each["file"] for each in found[by]] == [name for _, name in first]


def test_what_cannot_be_read_is_reported_and_the_rest_is_done(
    model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "b.png").write_bytes(b"damaged")
    arguments = [str(pictures), str(pictures / "notes.txt"), "none.png", "--model", str(model)]
    assert main(arguments) == 1
    output, errors = capsys.readouterr()
    assert len(output.splitlines()) == 2
    assert len(errors.splitlines()) == 4
    assert all(line.startswith("cifar-tl predict: ") for line in errors.splitlines())
    for name in ("b.png", "notes.txt", "none.png"):
        assert sum(name in line for line in errors.splitlines()) == 1
    assert main([*arguments, "--csv"]) == 1
    table = csv.DictReader(io.StringIO(capsys.readouterr().out.removeprefix("\ufeff")))
    problems = {Path(row["file"]).name: (row["class"], row["problem"]) for row in table}
    assert len(problems) == 5
    for name, (found, problem) in problems.items():
        is_bad = name in ("b.png", "notes.txt", "none.png")
        assert (found == "", name in problem) == (is_bad, is_bad)


def test_a_missing_model_and_empty_folders_are_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, code, message in (
        (["--model", "none.pt"], 2, "there is no model none.pt: name another, or make one with"),
        (["--model", str(model)], 1, "there are no images"),
        (["--model", str(model), "--top", "0"], 2, "--top: must be a whole number from 1"),
    ):
        assert main([str(tmp_path / "empty"), *arguments]) == code
        output, errors = capsys.readouterr()
        assert output == ""
        assert errors.startswith("cifar-tl predict: ")
        assert message in errors
        assert len(errors.splitlines()) == 1


@pytest.mark.filterwarnings("always::UserWarning")
def test_names_that_break_lines_do_not(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a\nb\x1b[31m.png"
    Image.new("RGB", (50, 40), "red").save(path)
    assert main([str(path), "--model", str(model)]) == 0
    assert f"{tmp_path}/a\\nb\\x1b[31m.png: " in one_line(capsys.readouterr().out)


def test_an_address_is_no_file(
    model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = "https://example.org/cat.jpg"
    for arguments in (
        [address, "--model", str(model)],
        [str(pictures), address, "--model", str(model)],
        [str(pictures), "--model", address],
    ):
        assert main(arguments) == 2
        assert f": {address} is an address: download it first" in one_line(capsys.readouterr().err)


def finish(path: Path, accuracy: float, outputs: int = 2, **figures: Any) -> None:
    """Writes a model and its result, of a stage with two classes."""
    path.mkdir(parents=True)
    save_model(path / "model.pt", CifarNet(2), {})
    result = make_result("base", accuracy, 1.0) | {"precision": "float32", "stage": path.name}
    result |= {"classes": [0, 1], "class_names": ["ash", "oak"], "num_classes": outputs}
    result |= {"val_confusion": [[10] + [0] * (outputs - 1)] * 2, "images_validation": 20}
    write_result(path / "result.json", result | figures)


def test_the_hint_goes_by_the_mean_over_unequal_classes(tmp_path: Path) -> None:
    for stage, accuracy, mean in (("transfer", 0.9, 0.8), ("scratch", 0.97, 0.5)):
        figures: dict[str, Any] = {}
        for part in ("val", "test"):
            figures |= {f"{part}_balanced_accuracy": mean, f"{part}_majority": 0.5}
            figures |= {f"{part}_balanced_interval": [0.1, 0.9]}
        finish(tmp_path / "runs/parts" / stage, accuracy, **figures)
    assert newest_own_model(tmp_path / "runs") == tmp_path / "runs/parts/transfer/model.pt"


def test_the_hint_names_models_that_know_all_classes_and_no_base(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    finish(runs / "divided.npz/base", 0.99, reading_rules=1)  # it knows two of four classes
    finish(runs / "divided.npz/transfer", 0.98, outputs=4, reading_rules=1)
    finish(runs / "mine-all/base", 0.97)
    assert newest_own_model(runs) is None
    finish(runs / "two.npz/transfer", 0.6)  # as of a .npz file of 32x32 pixels: it has no rules
    assert newest_own_model(runs) == runs / "two.npz/transfer/model.pt"
