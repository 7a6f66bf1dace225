"""How fast frozen features come, beside the limits: the forward passes alone, the reading alone.

    python benchmarks/extraction.py FOLDER --base mobilenet_v3_small [--weights FILE]

FOLDER holds pictures, as for ``cifar-tl train --data``. The three are measured in turn, and the
medians are printed in pictures a second. Reading and computing share the cores, so features cannot
reach the slower of both. The last figure compares with all of the reading first, then the passes.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from cifar_tl import Backbone, Data, load_backbone, load_data
from cifar_tl.data.pictures.read import stream_images
from cifar_tl.data.views import versions_of
from cifar_tl.experiment.frozen import BATCH, Frozen, pictures_of
from cifar_tl.experiment.passes import Pass, frozen_features
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
    compare(load_data(options.folder), load_backbone(options.base, options.weights))


def compare(data: Data, model: Backbone) -> None:
    """Measures in turn, and prints medians."""
    pictures, _, _ = pictures_of(data, data.new_classes)
    number = len(pictures.rows) // BATCH * BATCH
    pictures = pictures._replace(rows=pictures.rows[:number])
    files = [data.files["train"][row] for row in pictures.rows.tolist()]
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
        work = Pass(Frozen(model, precision), pictures, plain)
        frozen_features(work, torch.arange(number))

    measured: dict[Callable[[], None], list[float]] = {forward: [], read: [], features: []}
    for turn in range(ROUNDS + 1):
        for function, rates in measured.items():
            start = time.perf_counter()
            function()
            if turn:  # the first one makes room
                rates.append(number / (time.perf_counter() - start))
    threads = torch.get_num_threads()
    computed, reading, found = (statistics.median(rates) for rates in measured.values())
    print(
        f"{model.name}, {number} pictures, {precision}, {threads} threads, pictures "
        f"a second: forward passes alone {computed:.1f}, reading alone {reading:.1f}, features "
        f"{found:.1f}; features / the slower of both {found / min(computed, reading):.2f}, / one "
        f"after the other {found * (1 / computed + 1 / reading):.2f}"
    )


if __name__ == "__main__":
    main()
