"""What several test files need: small images in the two file formats, and untouched settings."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cifar_tl.shapes import draw_shapes

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # for train.py, which is no part of the package


@pytest.fixture(scope="session")
def small_npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 training and 100 test images in the Keras layout."""
    x_train, y_train, x_test, y_test = draw_shapes(400, 100)
    path = tmp_path_factory.mktemp("data") / "small.npz"
    np.savez(
        path,
        x_train=x_train.transpose(0, 2, 3, 1),
        y_train=y_train,
        x_test=x_test.transpose(0, 2, 3, 1),
        y_test=y_test[:, None],
    )
    return path


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
