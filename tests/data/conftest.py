"""A folder of classes that tests may change."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def folder(own_classes: Path, tmp_path: Path) -> Path:
    """A copy of three classes of image files."""
    return Path(shutil.copytree(own_classes, tmp_path / "own"))
