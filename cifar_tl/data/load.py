"""A source's name becomes its images."""

from pathlib import Path

from cifar_tl.data.cifar10 import read_cifar10
from cifar_tl.data.class_folders import read_class_folders
from cifar_tl.data.examples import Data
from cifar_tl.data.npz import read_npz
from cifar_tl.data.shapes import read_shapes
from cifar_tl.data.source import SHAPES, has_own_classes
from cifar_tl.errors import DataError


def load_data(source: str | Path, *, progress: bool = False) -> Data:
    """Reads one of the data sources and checks it.

    Args:
        source: ``"shapes"`` for the built-in images; a folder for the official CIFAR-10; a
            ``.npz`` file with ``x_train``, ``y_train``, ``x_test`` and ``y_test`` in the Keras
            layout, images ``(N, 32, 32, 3)`` uint8 and integer labels 0..9, ``(N,)`` or
            ``(N, 1)``; or a folder with classes of your own, image files
            ``train/CLASS/*`` and maybe ``val/CLASS/*`` and ``test/CLASS/*``, each read by
            `read_image`. Without ``val/``, the first 80 % of each class train, in the order of
            their names, and the last 20 % validate.
        progress: Show a bar on standard error while image files are read.

    Returns:
        The images, with every class among the training and the validation images. The test images
        of the first three are read when they are first asked for, and damage to their pixels is
        found then, too.

    Raises:
        MissingDataError: If CIFAR-10 is not in the folder: see `download_cifar10`.
        DataError: If the data is damaged or not of this kind.
    """
    path = Path(source)
    if source == SHAPES:
        return read_shapes()
    if path.suffix == ".npz":
        return read_npz(path)
    if has_own_classes(path):
        return read_class_folders(path, progress=progress)
    if path.is_file():
        raise DataError(f"{path} is neither a folder nor a .npz file: name one of these")
    return read_cifar10(path)
