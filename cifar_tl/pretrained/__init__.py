"""The trained models that come with the package, by name; benchmarks/pretrained.py makes them."""

from pathlib import Path

from cifar_tl.disk import read_sealed
from cifar_tl.errors import CheckpointError

PRETRAINED = ("cifar5", "cifar10")  # README.md beside this file says what they are
DEFAULT_MODEL = "cifar10"  # the base of classes of one's own, and what predict asks
FOLDER = Path(__file__).parent


def read_model_file(path: str | Path) -> bytes:
    """Reads the content of a ``model.pt``, or of a model that comes with the package by its name.

    Raises:
        CheckpointError: If it is missing, damaged or no checkpoint of this program.
    """
    if not is_pretrained(path):
        return read_sealed(Path(path))
    try:
        return read_sealed(FOLDER / f"{path}.pt")
    except CheckpointError as error:
        raise CheckpointError(
            f"the model {path}, which comes with cifar_tl, is missing or damaged: install it again"
        ) from error


def is_pretrained(path: str | Path) -> bool:
    """Tells whether a model is named that comes with the package; a name goes before a file."""
    return str(path) in PRETRAINED
