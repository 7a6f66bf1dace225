"""Trains the models that come with the package again, and writes the text beside them.

    python benchmarks/pretrained.py cifar10.npz

They are base models: the tuned recipe, seed 0, one training each. ``cifar5`` learns classes 0-4,
``cifar10`` all ten.
"""

import argparse
import hashlib
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from cifar_tl import TUNED, StageResult, keep_freed_memory, load_data, run_stage
from cifar_tl.pretrained import FOLDER, PRETRAINED

BASE_CLASSES = {"cifar5": None, "cifar10": "all"}
TEXT = """# The trained models in this folder

Each is [the documented network](../network.py) after the stage base: recipe {recipe}, seed
{seed}, {epochs} epochs. It was not chosen among several. Use it by its name:
`load_model("cifar10")`, `cifar-tl predict photo.jpg --model cifar10`.

- images: {images}
- made by: `python benchmarks/pretrained.py {file}`
- with: torch {torch}, {processor}, {threads} threads

| model | classes | training images | validation accuracy | test accuracy | bytes | SHA-256 |
|---|---|---|---|---|---|---|
{rows}

The validation images are the last 20 % of the training images, in file order. The test images
were used once, and chose nothing. Their temperatures, in `__init__.py`, were fitted on the
validation images by `python benchmarks/calibration.py {file}`.

Each file ends with a SHA-256 of its content, which is checked when the file is read.
"""


def main() -> None:
    """Trains both models, copies them, and writes the text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="a .npz file or a folder with CIFAR-10")
    parser.add_argument("--images", default="CIFAR-10's images", help="in words, for the text")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/pretrained"), metavar="DIR")
    options = parser.parse_args()
    keep_freed_memory()
    rows = []
    for name in PRETRAINED:
        data = load_data(options.data, base_classes=BASE_CLASSES[name])
        result = run_stage("base", data, TUNED, output_dir=options.output_dir, log=print)
        path = FOLDER / f"{name}.pt"
        shutil.copyfile(options.output_dir / data.name / "base" / "model.pt", path)
        rows.append(row(name, result, path))
    environment = result["environment"]
    text = TEXT.format(
        **{key: result[key] for key in ("recipe", "seed", "epochs")},
        images=options.images,
        file=Path(options.data).name,
        torch=torch.__version__,
        processor=environment["processor"],
        threads=environment["threads"],
        rows="\n".join(rows),
    )
    (FOLDER / "README.md").write_text(text, encoding="ascii")
    print(text)


def row(name: str, result: StageResult, path: Path) -> str:
    """Writes the row of a model in the table."""
    classes = f"{result['classes'][0]}-{result['classes'][-1]}"
    cells = [f"`{name}`", classes, f"{result['images_train']:,}"]
    cells += [f"{result['val_accuracy']:.2%}", f"{result['test_accuracy']:.2%}"]
    content = path.read_bytes()
    cells += [f"{len(content):,}", hashlib.sha256(content).hexdigest()]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
