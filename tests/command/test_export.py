import json
from pathlib import Path

import pytest
import torch

from cifar_tl.checkpoint import save_model
from cifar_tl.command.export import main
from cifar_tl.network import CifarNet

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
    never = ", ".join(str(label) for label in (0, 1, 2, 3, 4, 7, 8, 9))
    assert output.endswith(f"outputs: 5 dog, 6 \u00e9t\u00e9\\n; never trained: {never}\n")
    extra = {"classes.json": ""}
    torch.export.load(tmp_path / "my.net.pt2", extra_files=extra)
    assert json.loads(extra["classes.json"])["classes"] == {"5": "dog", "6": "\u00e9t\u00e9\n"}
    exported = torch.export.load(tmp_path / "my.net.pt2").module()
    images = torch.randint(256, (7, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(exported(images), model(images))
    assert {path.name for path in tmp_path.iterdir()} == {"model.pt", "my.net.pt2"}


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
