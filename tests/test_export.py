import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cifar_tl.errors import ExportError
from cifar_tl.export import ONNX_PACKAGES, describe_input, export_onnx, export_pt2
from cifar_tl.frame import Frame
from cifar_tl.freezing import transfer_model
from cifar_tl.network import CifarNet
from cifar_tl.scaling import scale_pictures
from tests.test_scaling import draw_pictures, scaled_by_pillow


@pytest.fixture
def model() -> CifarNet:
    torch.manual_seed(0)
    model = CifarNet(10)
    model.mean, model.std = torch.rand(3, 1, 1), torch.rand(3, 1, 1) + 0.5
    return model.eval()


@pytest.fixture
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (7, 3, 32, 32), dtype=torch.uint8, generator=generator)


def test_pt2_computes_the_same(model: CifarNet, images: torch.Tensor, tmp_path: Path) -> None:
    export_pt2(model, tmp_path / "model.pt2")
    exported = torch.export.load(tmp_path / "model.pt2").module()
    for batch in (images[:1], images):
        torch.testing.assert_close(exported(batch), model(batch))
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]


def test_pt2_refuses_what_would_be_taken_for_other_pixels(
    model: CifarNet, images: torch.Tensor, tmp_path: Path
) -> None:
    export_pt2(model, tmp_path / "model.pt2")
    exported = torch.export.load(tmp_path / "model.pt2").module()
    for wrong in (images / 255, images.to(torch.int64), images.half()):
        with pytest.raises(RuntimeError, match=r"dtype|type"):
            exported(wrong)


def test_a_model_in_training_mode_is_exported_in_evaluation_mode(
    model: CifarNet, images: torch.Tensor, tmp_path: Path
) -> None:
    transfer = transfer_model(model).train()
    export_pt2(transfer, tmp_path / "model.pt2")
    assert transfer.training
    exported = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(exported(images), transfer.eval()(images))


def test_pt2_says_what_its_outputs_mean(model: CifarNet, tmp_path: Path) -> None:
    extra = {"classes.json": ""}
    model.temperature = 1.5  # for whoever computes probabilities: the outputs stay logits
    export_pt2(model, tmp_path / "model.pt2", dict(enumerate("abcdefg", start=2)))
    torch.export.load(tmp_path / "model.pt2", extra_files=extra)
    assert json.loads(extra["classes.json"]) == {
        "classes": {"2": "a", "3": "b", "4": "c", "5": "d", "6": "e", "7": "f", "8": "g"},
        "untrained_outputs": [0, 1, 9],
        "temperature": 1.5,
        "input": describe_input(model),
    }
    export_pt2(model, tmp_path / "model.pt2")
    torch.export.load(tmp_path / "model.pt2", extra_files=extra)
    described = json.loads(extra["classes.json"])
    assert (described["classes"], described["untrained_outputs"]) == ({}, None)


def test_the_input_is_described_in_words_and_values(model: CifarNet) -> None:
    fixed = describe_input(model)
    assert fixed["in_words"] == (
        "uint8 (N, 3, 32, 32), red, green, blue from 0 to 255; turned as EXIF says; white where "
        "transparent; you scale: the largest square in the middle to 32x32, with Pillow's bicubic "
        "filter (a = -0.5) and antialiasing; the model normalises"
    )
    assert (fixed["shape"], fixed["scaled_by_the_model"]) == (["N", 3, 32, 32], False)
    model.frame = Frame(64, resize=72, interpolation="bilinear")
    described = describe_input(model, any_size=True)
    assert "(N, 3, H, W)" in described["in_words"]
    assert "the model scales: the shorter side to 72, then the middle" in described["in_words"]
    values = {"size": 64, "resize": 72, "interpolation": "bilinear", "fit": "crop"}
    assert described.items() >= {**values, "scaled_by_the_model": True}.items()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_onnx_computes_the_same(model: CifarNet, images: torch.Tensor, tmp_path: Path) -> None:
    for package in ONNX_PACKAGES:
        pytest.importorskip(package)
    import onnxruntime

    export_onnx(model, tmp_path / "model.onnx", {9: "truck"})
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == {"9": "truck"}
    assert json.loads(metadata["untrained_outputs"]) == list(range(9))
    assert json.loads(metadata["input"]) == describe_input(model)
    with pytest.raises(Exception, match="float"):
        session.run(None, {"images": (images / 255).numpy()})
    for batch in (images[:1], images):
        (logits,) = session.run(None, {"images": batch.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), model(batch), atol=1e-4, rtol=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


class Seen(CifarNet):
    """Its outputs are the pixels that it sees."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).float()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
def test_pictures_of_any_size_give_the_pixels_of_pillow(suffix: str, tmp_path: Path) -> None:
    model, path, run = Seen(10), tmp_path / f"seen.{suffix}", run_pt2
    if suffix == "onnx":
        for package in ONNX_PACKAGES:
            pytest.importorskip(package)
        run = run_onnx
    (export_pt2 if suffix == "pt2" else export_onnx)(model, path, any_size=True)
    exported, most = run(path), 0
    for picture in draw_pictures(100):
        expected = model(scaled_by_pillow(picture, model.frame))
        most = max(most, int((exported(picture) - expected).abs().max()))
    assert most == 0, f"pixels differ by up to {most} levels"
    with pytest.raises(Exception, match=r"dtype|float"):
        exported(picture / 255)


def run_pt2(path: Path) -> Any:
    return torch.export.load(path).module()


def run_onnx(path: Path) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def test_nearest_neighbours_are_refused_for_any_size(model: CifarNet, tmp_path: Path) -> None:
    model.frame = Frame(interpolation="nearest")
    with pytest.raises(ExportError, match="nearest neighbours cannot be exported"):
        export_pt2(model, tmp_path / "model.pt2", any_size=True)
    export_pt2(model, tmp_path / "model.pt2")


def test_other_scaling_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bilinear = Frame(interpolation="bilinear")
    monkeypatch.setattr(
        "cifar_tl.export.scale_pictures", lambda pictures, _: scale_pictures(pictures, bilinear)
    )
    with pytest.raises(ExportError, match=r"model\.pt2 would differ by .*: not kept"):
        export_pt2(CifarNet(10), tmp_path / "model.pt2", any_size=True)
    assert not list(tmp_path.iterdir())


def test_what_computes_something_else_is_not_kept(tmp_path: Path) -> None:
    class Restless(CifarNet):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images) + torch.rand(())

    with pytest.raises(ExportError, match=r"model\.pt2 would differ by .*: not kept"):
        export_pt2(Restless(10).eval(), tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


def test_a_network_of_somebody_elses_is_refused_with_what_to_do(tmp_path: Path) -> None:
    other: Any = torch.nn.Linear(3, 2)
    for write in (export_pt2, export_onnx):
        with pytest.raises(TypeError, match=r"is exported, not Linear: make a Backbone of it"):
            write(other, tmp_path / "model")
    assert not list(tmp_path.iterdir())
