"""A trained model for programs without this package: ``torch.export`` and ONNX."""

import io
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cifar_tl.disk import write_atomically
from cifar_tl.errors import ExportError
from cifar_tl.evaluation import evaluating
from cifar_tl.network import CifarNet

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
CLASSES_FILE = "classes.json"  # among the extra files of a .pt2


def export_pt2(model: CifarNet, path: str | Path, classes: Mapping[int, str] | None = None) -> None:
    """Writes a model as ``torch.export.load`` reads it, checked before it is kept.

    It takes ``(N, 3, 32, 32)`` uint8 images, any N, and returns logits: the preprocessing goes with
    it. Images of another type are refused.

    Args:
        model: It is exported in evaluation mode.
        path: The file to write.
        classes: The names of the outputs that were trained, by default those that the model has;
            they go with it, in JSON, in the extra file ``classes.json``.

    Raises:
        ExportError: If the exported model computes something else.
        OSError: If the file cannot be written.
    """
    described = describe_classes(model, classes or model.class_names)

    def convert(images: Tensor) -> bytes:
        buffer, batch = io.BytesIO(), torch.export.Dim("batch")
        program = torch.export.export(_Uint8(model), (images,), dynamic_shapes=({0: batch},))
        torch.export.save(program, buffer, extra_files={CLASSES_FILE: json.dumps(described)})
        return buffer.getvalue()

    def run(exported: bytes, images: Tensor) -> Tensor:
        logits: Tensor = torch.export.load(io.BytesIO(exported)).module()(images)
        return logits

    _export(model, Path(path), convert, run)


def describe_classes(model: CifarNet, classes: Mapping[int, str]) -> dict[str, Any]:
    """Says, as plain values, what the model's outputs mean: names, and which were never trained."""
    untrained = [label for label in range(model.num_classes) if label not in classes]
    named = {str(label): name for label, name in classes.items()}
    return {"classes": named, "untrained_outputs": untrained if classes else None}


def export_onnx(
    model: CifarNet, path: str | Path, classes: Mapping[int, str] | None = None
) -> None:
    """Writes a model as ONNX, checked with onnxruntime before it is kept; else as `export_pt2`.

    The classes are two entries of the metadata, each in JSON.

    Raises:
        ImportError: If a package of `ONNX_PACKAGES` is missing.
    """
    import onnxruntime

    def convert(images: Tensor) -> bytes:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's exporter warns of itself
            program = torch.onnx.export(
                model,
                (images,),
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                verbose=False,
            )
        assert program is not None
        proto = program.model_proto
        for key, value in describe_classes(model, classes or model.class_names).items():
            proto.metadata_props.add(key=key, value=json.dumps(value))
        exported: bytes = proto.SerializeToString()
        return exported

    def run(exported: bytes, images: Tensor) -> Tensor:
        session = onnxruntime.InferenceSession(exported)
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    _export(model, Path(path), convert, run)


class _Uint8(nn.Module):
    """A model that refuses what is no uint8: exported, it would take floats for 0 to 255."""

    def __init__(self, model: CifarNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        torch.ops.aten._assert_tensor_metadata.default(images, dtype=torch.uint8)
        logits: Tensor = self.model(images)
        return logits


def _export(
    model: CifarNet,
    path: Path,
    convert: Callable[[Tensor], bytes],
    run: Callable[[bytes, Tensor], Tensor],
) -> None:
    """Converts in memory: torch's own writers abort the process where a disk is full."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(20, 3, 4, 4, generator=generator)  # smooth, as pictures are
    images = (255 * nn.functional.interpolate(coarse, 32, mode="bilinear")).byte()
    with evaluating(model), torch.no_grad():
        exported = convert(images[:2])
        for batch in (images[:1], images):
            difference = float((run(exported, batch) - model(batch)).abs().max())
            if not difference < 1e-3:
                raise ExportError(f"{path} would differ by {difference:g} from the model: not kept")
    write_atomically(path, exported)
