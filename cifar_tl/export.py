"""Export a trained model for programs without this package: ``torch.export`` and ONNX."""

import copy
import io
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cifar_tl.backbone import Network
from cifar_tl.disk import write_atomically
from cifar_tl.errors import ExportError
from cifar_tl.evaluation import evaluating

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
CLASSES_FILE = "classes.json"  # among the extra files of a .pt2
BATCH = ({0: torch.export.Dim("batch")},)  # batches of any size


def export_pt2(model: Network, path: str | Path, classes: Mapping[int, str] | None = None) -> None:
    """Writes a model for ``torch.export.load``. The file is kept only if it computes the same.

    The exported model takes uint8 images ``(N, 3, S, S)`` with any N, where S is ``image_size``. It
    does the normalisation and returns logits. It refuses images of another type. Probabilities are
    the softmax of the trained outputs' logits, divided by the ``temperature`` of the extra file
    ``classes.json``.

    Args:
        model: It is exported in evaluation mode.
        path: The file.
        classes: The names of the trained outputs, by number. None: the names that the model has.
            They are in that extra file, too.

    Raises:
        ExportError: If the exported model computes something else.
        TypeError: If it is neither a `CifarNet` nor a `Backbone`.
        OSError: If the file cannot be written.
    """
    _check_kind(model)
    content = io.BytesIO()  # torch's writers abort the process if the disk is full
    with evaluating(model), torch.no_grad():
        program = torch.export.export(
            _Uint8(model), (_pictures(2, model.image_size),), dynamic_shapes=BATCH
        )
    described = json.dumps(_describe(model, classes))
    with warnings.catch_warnings():  # of weights with the channels last: they are saved well
        warnings.filterwarnings("ignore", "No complete tensor found", UserWarning)
        torch.export.save(program, content, extra_files={CLASSES_FILE: described})
    exported = content.getvalue()
    run = torch.export.load(io.BytesIO(exported)).module()
    _write_if_equal(model, Path(path), exported, run)


def export_onnx(model: Network, path: str | Path, classes: Mapping[int, str] | None = None) -> None:
    """Writes a model as ONNX. The file is kept only if it computes the same in onnxruntime.

    Arguments and errors are those of `export_pt2`. The classes are in the metadata.

    Raises:
        ImportError: If one of `ONNX_PACKAGES` is missing.
    """
    _check_kind(model)
    import onnxruntime

    with evaluating(model), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns about itself
        program = torch.onnx.export(
            model,
            (_pictures(2, model.image_size),),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=BATCH,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    for key, value in _describe(model, classes).items():
        proto.metadata_props.add(key=key, value=json.dumps(value))
    exported: bytes = proto.SerializeToString()
    session = onnxruntime.InferenceSession(exported)

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    _write_if_equal(model, Path(path), exported, run)


def _check_kind(model: object) -> None:
    if not isinstance(model, Network):
        raise TypeError(
            f"only a CifarNet or a Backbone is exported, not {type(model).__name__}: make a "
            "Backbone of it"
        )


class _Uint8(nn.Module):
    """A model that takes uint8 only. Without it, the exported model would take floats for uint8."""

    def __init__(self, model: Network) -> None:
        super().__init__()
        # torch.export.save warns of weights that lie in memory in another order.
        self.model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)

    def forward(self, images: Tensor) -> Tensor:
        torch.ops.aten._assert_tensor_metadata.default(images, dtype=torch.uint8)
        logits: Tensor = self.model(images)
        return logits


def _pictures(number: int, size: int) -> Tensor:
    """Draws up to 20 smooth images, which look more like photos than noise does."""
    coarse = torch.rand(20, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return (255 * nn.functional.interpolate(coarse, size, mode="bilinear")).byte()[:number]


def _describe(model: Network, classes: Mapping[int, str] | None) -> dict[str, Any]:
    """Lists the names of the outputs, which of them were never trained, and the temperature."""
    classes = classes or model.class_names
    untrained = [label for label in range(model.num_classes) if label not in classes]
    named = {str(label): name for label, name in classes.items()}
    return {
        "classes": named,
        "untrained_outputs": untrained if classes else None,
        "temperature": model.temperature,
    }


def _write_if_equal(
    model: Network, path: Path, exported: bytes, run: Callable[[Tensor], Tensor]
) -> None:
    with evaluating(model), torch.no_grad():
        for images in (_pictures(1, model.image_size), _pictures(20, model.image_size)):
            difference = float((run(images) - model(images)).abs().max())
            if not difference < 1e-3:
                raise ExportError(f"{path} would differ by {difference:g} from the model: not kept")
    write_atomically(path, exported)
