"""What sources of images are called, and where a folder keeps classes of one's own."""

from pathlib import Path

SHAPES = "shapes"  # the source with the built-in images, and the folder of their results
OFFICIAL = "cifar10"  # the folder of the official data's results
DEFAULT_SOURCE = "data"  # the folder of the official data itself

TRAIN, VALIDATION, TEST = PARTS = ("train", "val", "test")  # folders with a folder for each class


def has_own_classes(source: str | Path) -> bool:
    """Tells whether a source is a folder with classes of the user's own: it has ``train``."""
    return source != SHAPES and (Path(source) / TRAIN).is_dir()
