"""A trained model for programs without this package: ``python -m cifar_tl.export MODEL OUT``."""

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from cifar_tl.checkpoint import CheckpointError, load_model, write_atomically
from cifar_tl.model import CifarNet
from cifar_tl.shapes import draw_shapes

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class ExportError(RuntimeError):
    """An exported model does not compute what the original computes; it was not kept."""


def export_pt2(model: CifarNet, path: Path) -> None:
    """Writes a model as ``torch.export.load`` reads it, checked before it is kept.

    Args:
        model: In evaluation mode; its preprocessing goes with it.
        path: The file to write. The exported model takes ``(N, 3, 32, 32)`` uint8 images, any N,
            and returns logits.

    Raises:
        ExportError: If the exported model computes something else.
        OSError: If the file cannot be written.
    """

    def write(temporary: Path, images: Tensor) -> None:
        batch = torch.export.Dim("batch")
        program = torch.export.export(model, (images,), dynamic_shapes=({0: batch},))
        torch.export.save(program, temporary)

    def run(temporary: Path, images: Tensor) -> Tensor:
        logits: Tensor = torch.export.load(temporary).module()(images)
        return logits

    _export(model, path, write, run)


def export_onnx(model: CifarNet, path: Path) -> None:
    """Writes a model as ONNX, checked with onnxruntime before it is kept; else as `export_pt2`.

    Raises:
        ExportError: If the exported model computes something else.
        ImportError: If a package of `ONNX_PACKAGES` is missing.
        OSError: If the file cannot be written.
    """
    import onnxruntime

    def write(temporary: Path, images: Tensor) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's exporter warns of itself
            torch.onnx.export(
                model,
                (images,),
                temporary,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                external_data=False,
                dynamo=True,
                verbose=False,
            )

    def run(temporary: Path, images: Tensor) -> Tensor:
        session = onnxruntime.InferenceSession(temporary)
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    _export(model, path, write, run)


def _export(
    model: CifarNet,
    path: Path,
    write: Callable[[Path, Tensor], None],
    run: Callable[[Path, Tensor], Tensor],
) -> None:
    images = torch.from_numpy(draw_shapes(20, 1)[0])
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / path.name
        write(temporary, images[:2])
        for batch in (images[:1], images):
            difference = float((run(temporary, batch) - model(batch)).abs().max())
            if not difference < 1e-3:
                raise ExportError(f"{path} would differ by {difference:g} from the model: not kept")
        write_atomically(path, temporary.read_bytes())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: The arguments; by default those of the process.

    Returns:
        The exit code: 0 done, 1 if something could not be read, written or exported.
    """
    parser = argparse.ArgumentParser(
        prog="python -m cifar_tl.export",
        description="Writes a trained model as OUT.pt2 for torch.export.load and, if the packages "
        f"{', '.join(ONNX_PACKAGES)} are installed, as OUT.onnx. Both take uint8 images.",
    )
    parser.add_argument("model", metavar="MODEL", type=Path, help="a model.pt")
    parser.add_argument("out", metavar="OUT", type=Path, help="the files' path without suffix")
    options = parser.parse_args(argv)
    out: Path = options.out
    if out.suffix in (".pt2", ".onnx"):
        out = out.with_suffix("")
    try:
        model = load_model(options.model)
        export_pt2(model, out.with_name(out.name + ".pt2"))
        print(f"{out}.pt2: for torch.export.load")
        if all(find_spec(package) for package in ONNX_PACKAGES):
            export_onnx(model, out.with_name(out.name + ".onnx"))
            print(f"{out}.onnx: for any ONNX runtime")
        else:
            print(f"no {out}.onnx: pip install {' '.join(ONNX_PACKAGES)}")
    except OSError as error:
        print(f"export: {error.filename or out}: {error.strerror or error}", file=sys.stderr)
        return 1
    except (CheckpointError, ExportError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
