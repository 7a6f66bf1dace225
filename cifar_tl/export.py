"""Export a trained model for programs without this package: ``torch.export`` and ONNX."""

import copy
import io
import json
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from cifar_tl.backbone import Network
from cifar_tl.disk import write_atomically
from cifar_tl.errors import ExportError
from cifar_tl.evaluation import evaluating
from cifar_tl.frame import Frame, fill, in_words, scale
from cifar_tl.scaling import scale_pictures

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
CLASSES_FILE = "classes.json"  # among the extra files of a .pt2
BATCH = {0: torch.export.Dim("batch")}  # batches of any size
ANY_SIZE = {**BATCH, 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}


def export_pt2(
    model: Network,
    path: str | Path,
    classes: Mapping[int, str] | None = None,
    *,
    any_size: bool = False,
) -> None:
    """Writes a model for ``torch.export.load``. The file is kept only if it computes the same.

    The exported model takes uint8 images ``(N, 3, S, S)`` with any N, where S is ``image_size``. It
    does the normalisation and returns logits. It refuses images of another type. The extra file
    ``classes.json`` says what `describe_input` says, the names of the outputs, and the temperature:
    probabilities are the softmax of the trained outputs' logits, divided by it.

    Args:
        model: It is exported in evaluation mode.
        path: The file.
        classes: The names of the trained outputs, by number. None: the names that the model has.
        any_size: The exported model takes uint8 pictures ``(N, 3, H, W)`` of any size, and scales
            them as `read_image` does, with the pixels of Pillow 13.

    Raises:
        ExportError: If the exported model computes something else; or for ``any_size``, if its
            frame takes nearest neighbours.
        TypeError: If it is neither a `CifarNet` nor a `Backbone`.
        OSError: If the file cannot be written.
    """
    _check(model, any_size)
    content = io.BytesIO()  # torch's writers abort the process if the disk is full
    with evaluating(model), torch.no_grad():
        program = torch.export.export(
            _Uint8(_AnySize(model) if any_size else model),
            (_pictures(2, *_shapes(model, any_size)[-1][1:]),),
            dynamic_shapes=(ANY_SIZE if any_size else BATCH,),
        )
    described = json.dumps(_describe(model, classes, any_size))
    with warnings.catch_warnings():  # of weights with the channels last: they are saved well
        warnings.filterwarnings("ignore", "No complete tensor found", UserWarning)
        torch.export.save(program, content, extra_files={CLASSES_FILE: described})
    exported = content.getvalue()
    run = torch.export.load(io.BytesIO(exported)).module()
    _write_if_equal(model, Path(path), exported, run, any_size)


def export_onnx(
    model: Network,
    path: str | Path,
    classes: Mapping[int, str] | None = None,
    *,
    any_size: bool = False,
) -> None:
    """Writes a model as ONNX. The file is kept only if it computes the same in onnxruntime.

    Arguments and errors are those of `export_pt2`. What is in its extra file is in the metadata.

    Raises:
        ImportError: If one of `ONNX_PACKAGES` is missing.
    """
    _check(model, any_size)
    import onnxruntime

    with evaluating(model), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns about itself
        program = torch.onnx.export(
            _AnySize(model) if any_size else model,
            (_pictures(2, *_shapes(model, any_size)[-1][1:]),),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=(ANY_SIZE if any_size else BATCH,),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    for key, value in _describe(model, classes, any_size).items():
        proto.metadata_props.add(key=key, value=json.dumps(value))
    exported: bytes = proto.SerializeToString()
    session = onnxruntime.InferenceSession(exported)

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    _write_if_equal(model, Path(path), exported, run, any_size)


def describe_input(model: Network, any_size: bool = False) -> dict[str, Any]:
    """Says, as plain values, how a picture becomes the input of an exported model.

    Returns:
        The fields of `Frame`, more values, and all of it in a sentence, ``"in_words"``.
    """
    shape = ["N", 3, *(("H", "W") if any_size else 2 * (model.image_size,))]
    scaling = f"{'the model scales' if any_size else 'you scale'}: {in_words(model.frame)}"
    return {
        "in_words": f"uint8 ({', '.join(map(str, shape))}), red, green, blue from 0 to 255; turned "
        f"as EXIF says; white where transparent; {scaling}; the model normalises",
        "type": "uint8",
        "shape": shape,
        "channels": "RGB",
        "range": [0, 255],
        "turned_as_exif_says": True,
        "transparent_is": [255, 255, 255],
        "scaled_by_the_model": any_size,
        "normalised_by_the_model": True,
        "antialiasing": model.frame.interpolation != "nearest",
        **asdict(model.frame),
        "padding": list(model.frame.padding),
    }


def _check(model: object, any_size: bool) -> None:
    if not isinstance(model, Network):
        raise TypeError(
            f"only a CifarNet or a Backbone is exported, not {type(model).__name__}: make a "
            "Backbone of it"
        )
    if not 0 < model.temperature < math.inf:
        raise ValueError(f"model.temperature must be a number above 0, not {model.temperature}")
    if any_size and model.frame.interpolation == "nearest":
        raise ExportError(
            "nearest neighbours cannot be exported for pictures of any size, since Pillow adds up "
            f"rounded steps: export for {model.image_size}x{model.image_size} pixels"
        )


class _Uint8(nn.Module):
    """A model that takes uint8 only. Without it, the exported model would take floats for uint8."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        # torch.export.save warns of weights that lie in memory in another order.
        self.model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)

    def forward(self, images: Tensor) -> Tensor:
        torch.ops.aten._assert_tensor_metadata.default(images, dtype=torch.uint8)
        logits: Tensor = self.model(images)
        return logits


class _AnySize(nn.Module):
    """A model that scales pictures of any size itself."""

    def __init__(self, model: Network) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(scale_pictures(images, self.model.frame))
        return logits


def _shapes(model: Network, any_size: bool) -> list[tuple[int, int, int]]:
    """Lists shapes ``(N, H, W)`` to try. Of tall ones, Pillow before 13 sees other pixels."""
    own = model.image_size
    if any_size:
        return [(1, 9, 7), (3, own // 2, 200), (2, 2 * own, 3 * own)]
    return [(1, own, own), (20, own, own)]


def _pictures(number: int, height: int, width: int) -> Tensor:
    """Draws up to 20 smooth images, which look more like photos than noise does."""
    coarse = torch.rand(20, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    smooth = nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (255 * smooth).byte()[:number]


def _seen(images: Tensor, frame: Frame) -> Tensor:
    """Scales images ``(N, 3, H, W)`` with Pillow, as files are scaled."""
    pictures = [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).numpy()]
    seen = [fill(np.array(scale(picture, frame)), frame) for picture in pictures]
    return torch.from_numpy(np.stack(seen)).permute(0, 3, 1, 2)


def _describe(model: Network, classes: Mapping[int, str] | None, any_size: bool) -> dict[str, Any]:
    """Lists the names of the outputs, which were never trained, and what the input is."""
    classes = classes or model.class_names
    untrained = [label for label in range(model.num_classes) if label not in classes]
    return {
        "classes": {str(label): name for label, name in classes.items()},
        "untrained_outputs": untrained if classes else None,
        "temperature": model.temperature,
        "input": describe_input(model, any_size),
    }


def _write_if_equal(
    model: Network, path: Path, exported: bytes, run: Callable[[Tensor], Tensor], any_size: bool
) -> None:
    with evaluating(model), torch.no_grad():
        for shape in _shapes(model, any_size):
            images = _pictures(*shape)
            expected = model(_seen(images, model.frame) if any_size else images)
            difference = float((run(images) - expected).abs().max())
            if not difference < 1e-3:
                raise ExportError(f"{path} would differ by {difference:g} from the model: not kept")
    write_atomically(path, exported)
