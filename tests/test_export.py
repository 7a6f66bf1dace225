import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cifar_tl.errors import ExportError
from cifar_tl.export import ONNX_PACKAGES, export_onnx, export_pt2
from cifar_tl.freezing import transfer_model
from cifar_tl.network import CifarNet


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
    }
    export_pt2(model, tmp_path / "model.pt2")
    torch.export.load(tmp_path / "model.pt2", extra_files=extra)
    assert json.loads(extra["classes.json"])["untrained_outputs"] is None


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
    with pytest.raises(Exception, match="float"):
        session.run(None, {"images": (images / 255).numpy()})
    for batch in (images[:1], images):
        (logits,) = session.run(None, {"images": batch.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), model(batch), atol=1e-4, rtol=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


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
