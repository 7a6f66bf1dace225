"""Makes the trained models that come with the package anew, and the text beside them.

    python benchmarks/pretrained.py cifar10.npz

They are base models of the tuned recipe, seed 0, not the best of several: ``cifar5`` of classes 0-4
and ``cifar10`` of all ten.
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

Of [the documented network](../model.py), trained as a base model: stage base, recipe {recipe}, seed
{seed}, {epochs} epochs, not the best of several. Use them by their names: `load_model("cifar10")`,
`cifar-tl predict photo.jpg --model cifar10`.

- images: {images}
- made by: `python benchmarks/pretrained.py {file}`
- with: torch {torch}, {processor}, {threads} threads

| model | classes | training images | validation accuracy | test accuracy | bytes | SHA-256 |
|---|---|---|---|---|---|---|
{rows}

Validation images are the last 20 % of the training images, in file order; the test images were
used once and chose nothing. Each file carries a SHA-256 of its content, verified when it is read.
"""


def main() -> None:
    """Trains both, copies them and writes the text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="a .npz file or a folder with CIFAR-10")
    parser.add_argument("--images", default="CIFAR-10's images", help="what they are, in words")
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
    """Writes a model's line of the table."""
    classes = f"{result['classes'][0]}-{result['classes'][-1]}"
    cells = [f"`{name}`", classes, f"{result['images_train']:,}"]
    cells += [f"{result['val_accuracy']:.2%}", f"{result['test_accuracy']:.2%}"]
    content = path.read_bytes()
    cells += [f"{len(content):,}", hashlib.sha256(content).hexdigest()]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
