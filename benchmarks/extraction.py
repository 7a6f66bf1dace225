"""How fast frozen features come, beside the limits: the forward passes alone, the reading alone.

    python benchmarks/extraction.py FOLDER --base mobilenet_v3_small [--weights FILE]

FOLDER holds pictures, as for ``cifar-tl train --data``. The three are measured in turn, and the
medians are printed in pictures a second. On few cores reading and computing share them, so features
cannot reach the slower of both: the last line says what is left of it.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from cifar_tl import load_backbone, load_data
from cifar_tl.data.pictures.read import stream_images
from cifar_tl.data.views import versions_of
from cifar_tl.experiment.features import (
    BATCH,
    Cache,
    Frozen,
    Kept,
    Pass,
    frozen_features,
    pictures_of,
)
from cifar_tl.machine import autocast, choose_precision

ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder")
    parser.add_argument("--base", default="mobilenet_v3_small")
    parser.add_argument("--weights")
    options = parser.parse_args()
    data = load_data(options.folder)
    pictures, _, _ = pictures_of(data, data.new_classes)
    number = len(pictures.rows) // BATCH * BATCH
    files, places = data.files["train"][:number], torch.arange(number)
    pictures = pictures._replace(rows=pictures.rows[:number])
    model = load_backbone(options.base, options.weights)
    precision = choose_precision("auto", torch.device("cpu"))
    batch = torch.randint(256, (BATCH, 3, model.image_size, model.image_size)).byte()

    def forward() -> None:
        with torch.no_grad(), autocast(precision, torch.device("cpu")):
            for _ in range(number // BATCH):
                model.forward_features(batch)

    def read() -> None:
        for _ in stream_images(files, model.frame, white=data.reading.get("white", {})):
            pass

    def features() -> None:
        plain = versions_of(mirror=False)
        work = Pass(Frozen(model, precision), pictures, plain, Kept(Cache(None), {}))
        frozen_features(work, places)

    measured: dict[Callable[[], None], list[float]] = {forward: [], read: [], features: []}
    for _ in range(ROUNDS):
        for function, rates in measured.items():
            start = time.perf_counter()
            function()
            rates.append(number / (time.perf_counter() - start))
    medians = {f.__name__: statistics.median(rates) for f, rates in measured.items()}
    threads = torch.get_num_threads()
    print(f"{options.base}, {number} pictures, {precision}, {threads} threads, pictures a second:")
    for name, rate in medians.items():
        print(f"{name:9} {rate:7.1f}")
    part = medians["features"] / min(medians["forward"], medians["read"])
    print(f"features / the slower of both: {part:.2f}")


if __name__ == "__main__":
    main()
