import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cifar_tl.backbone import Backbone
from cifar_tl.checkpoint import save_model
from cifar_tl.command.export import main
from cifar_tl.data.pictures.read import read_image
from cifar_tl.experiment.findings.report import with_links
from cifar_tl.network import CifarNet
from cifar_tl.published import make_network

SETTINGS = {"classes": [5, 6], "class_names": ["dog", "\u00e9t\u00e9\n"]}


@pytest.fixture
def model() -> CifarNet:
    torch.manual_seed(0)
    return CifarNet(10).eval()


def test_command_writes_what_computes_the_same(
    model: CifarNet,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cifar_tl.export.ONNX_PACKAGES", ("no_such_package",))
    save_model(tmp_path / "model.pt", model, SETTINGS)
    assert main([str(tmp_path / "model.pt"), str(tmp_path / "my.net")]) == 0
    output = capsys.readouterr().out
    assert "my.net.pt2: for torch.export.load" in output
    assert "no " in output
    assert "my.net.onnx: pip install no_such_package" in output
    assert "\ninput: uint8 (N, 3, 32, 32), " in output
    never = ", ".join(str(label) for label in (0, 1, 2, 3, 4, 7, 8, 9))
    assert output.endswith(f"outputs: 5 dog, 6 \u00e9t\u00e9\\n; never trained: {never}\n")
    extra = {"classes.json": ""}
    torch.export.load(tmp_path / "my.net.pt2", extra_files=extra)
    assert json.loads(extra["classes.json"])["classes"] == {"5": "dog", "6": "\u00e9t\u00e9\n"}
    exported = torch.export.load(tmp_path / "my.net.pt2").module()
    images = torch.randint(256, (7, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(exported(images), model(images))
    assert {path.name for path in tmp_path.iterdir()} == {"model.pt", "my.net.pt2"}


def test_command_exports_for_pictures_of_any_size(
    model: CifarNet,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cifar_tl.export.ONNX_PACKAGES", ("no_such_package",))
    save_model(tmp_path / "model.pt", model, SETTINGS)
    assert main([str(tmp_path / "model.pt"), str(tmp_path / "any"), "--any-size"]) == 0
    assert "input: uint8 (N, 3, H, W), " in capsys.readouterr().out
    exported = torch.export.load(tmp_path / "any.pt2").module()
    file = Path(__file__).parent.parent / "cifar10.png"
    with Image.open(file) as image:
        picture = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]
    assert picture.shape[2:] != (32, 32)
    torch.testing.assert_close(exported(picture), model(read_image(file)[None]))


def test_what_cannot_be_read_or_written_is_one_line(
    model: CifarNet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "model.pt", model, SETTINGS)
    (tmp_path / "damaged.pt").write_bytes(b"no checkpoint")
    (tmp_path / "folder.pt2").mkdir()
    for arguments, code, message in (
        (["none.pt", "out"], 2, "there is no model none.pt: name another, or make one with"),
        (["model.pt", "none/out"], 2, "none/out: there is no folder none: make it first"),
        (["damaged.pt", "out"], 1, "damaged.pt is damaged"),
        (["model.pt", "folder.pt2"], 1, "folder.pt2: Is a directory"),
    ):
        assert main(arguments) == code
        output, errors = capsys.readouterr()
        assert output == ""
        assert errors.startswith("cifar-tl export: ")
        assert message in errors
        assert len(errors.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"model.pt", "damaged.pt", "folder.pt2"}


def test_command_writes_one_page_and_the_report_beside_it_links_to_it(
    model: CifarNet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "model.pt", model, SETTINGS)
    report = tmp_path / "report.html"
    report.write_text("<p>a</p>\n<!-- pages that predict --><!-- end --><p>b</p>")
    for name in ("b & c.html", "a.html", "a.html"):  # the same page may be written again
        assert main([str(tmp_path / "model.pt"), str(tmp_path / name)]) == 0
        assert f"{tmp_path / name}: open it in a browser" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {
        *("model.pt", "report.html", "a.html", "b & c.html")
    }
    linked = report.read_text()
    assert re.findall('<a href="(.*?)">(.*?)</a>', linked) == [
        ("a.html", "a.html"),
        ("b%20%26%20c.html", "b &amp; c.html"),
    ]
    assert with_links(linked, []) == "<p>a</p>\n<!-- pages that predict --><!-- end --><p>b</p>"
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    assert main([str(tmp_path / "model.pt"), str(tmp_path / "mine.html")]) == 1
    assert "mine.html is there, and no page of this program" in capsys.readouterr().err
    assert (tmp_path / "mine.html").read_text() == "<p>mine</p>"


def test_no_page_of_a_pretrained_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "mobilenet_v3_small"
    mean = std = (0.5, 0.5, 0.5)
    backbone = Backbone(make_network(name, 64), image_size=64, mean=mean, std=std, name=name)
    backbone.reset_classifier(2)
    save_model(tmp_path / "model.pt", backbone, class_names=["a", "b"])
    assert main([str(tmp_path / "model.pt"), str(tmp_path / "out.html")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"mobilenet_v3_small has [\d,]+ parameters and sees 64x64 pixels", line)
    assert "plain JavaScript" in line
    assert line.endswith(f"export {tmp_path / 'out.onnx'}")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
