from pathlib import Path

import pytest

from cifar_tl.data.source import SHAPES, has_own_classes


def test_a_folder_train_makes_own_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine/train", "other/test", f"{SHAPES}/train"):
        Path(name).mkdir(parents=True)
    assert has_own_classes("mine")
    assert has_own_classes(Path("mine"))
    assert not has_own_classes("other")
    assert not has_own_classes("none")
    assert not has_own_classes(SHAPES)
    assert has_own_classes(f"./{SHAPES}")
