"""The trained models that come with the package. benchmarks/pretrained.py makes them."""

from pathlib import Path

from cifar_tl.disk import checksum, read_sealed
from cifar_tl.errors import CheckpointError

PRETRAINED = ("cifar5", "cifar10")  # README.md in this folder describes them
_TEMPERATURES = {  # by checksum. They are not in the files, whose bytes runs know
    "105bb41d73b9a9d4487df94255596ce15939b18d838a270240fb7883460fe493": 1.002,
    "2d5bf2d7059e9fa313906e9a7c4fce51510e6b5a14ea84cc593bfa8ab066c1da": 0.916,
}
DEFAULT_MODEL = "cifar10"  # the base for own classes, and the model of predict
TIMM = "timm/"  # before the names of timm's networks
FOLDER = Path(__file__).parent


def read_model_file(path: str | Path) -> bytes:
    """Reads the content of a ``model.pt``.

    Args:
        path: The file, or the name of a model that comes with the package.

    Raises:
        CheckpointError: If the file is missing or damaged, or another program wrote it.
    """
    if not is_pretrained(path):
        return read_sealed(Path(path))
    try:
        return read_sealed(FOLDER / f"{path}.pt")
    except CheckpointError as error:
        raise CheckpointError(
            f"the model {path}, which comes with cifar_tl, is missing or damaged: install it again"
        ) from error


def known_temperature(sealed: bytes) -> float:
    """Returns the temperature of a model whose file does not say it: 1, or that of `PRETRAINED`."""
    return _TEMPERATURES.get(checksum(sealed), 1.0)


def is_backbone(base: str | Path | None) -> bool:
    """Returns whether this names a pretrained network, and not a file or a model of the package.

    The name of a network has no suffix, and no folder but ``timm/``. Whether there is such a
    network is not looked for: that would need torch.
    """
    if base is None or is_pretrained(base) or Path(base).is_file():
        return False
    folder, name = Path(base).parent.as_posix(), Path(base).name
    return folder == "timm" or (folder == "." and name.isidentifier())


def is_pretrained(path: str | Path) -> bool:
    """Returns whether this is the name of a model that comes with the package.

    A file of the same name is not looked for.
    """
    return str(path) in PRETRAINED
