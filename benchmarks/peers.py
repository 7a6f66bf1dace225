"""Times this project against Keras and against the usual PyTorch loop, all in turn.

    pip install -r requirements.txt -r benchmarks/requirements.txt
    python benchmarks/peers.py cifar10.npz

Every peer trains the documented network with the documented recipe on the same images; this project
does so with its tuned recipe, too, as the command runs it by default. Each is in a process of its
own, and all others wait while one works: what slows the machine down for a while slows all of them.
A turn is two epochs, and the second counts: the first brings back what the system has put away
meanwhile. Ten epochs of base come first. In ten epochs of transfer the peers run the frozen layers
every time; what this project does twice in a turn is its whole transfer stage, ten epochs of the
tuned recipe's, frozen features of both views, and validation included.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
EPOCHS = 10  # of each stage
EPOCHS_IN_A_TURN = 2
TURNS = EPOCHS // EPOCHS_IN_A_TURN
BATCH_SIZE = 100
ORIGINAL, TUNED = "cifar_tl, original", "cifar_tl, tuned"
KERAS = "Keras on TensorFlow"

# Called by a peer with the seconds and the validation accuracy of each epoch (this project: of each
# transfer stage); it returns when it is the peer's turn again.
Report = Callable[[float, float], None]


class Half(NamedTuple):
    """The images of five classes in the Keras layout, as everybody has them in memory."""

    x: np.ndarray[Any, Any]  # (N, 32, 32, 3) uint8
    y: np.ndarray[Any, Any]  # (N,) int64
    val_x: np.ndarray[Any, Any]
    val_y: np.ndarray[Any, Any]


def read_half(path: Path, classes: range) -> Half:
    with np.load(path) as archive:
        x, y = archive["x_train"], archive["y_train"].reshape(-1).astype(np.int64)
    chosen = np.isin(y, classes)
    x, y = x[chosen], y[chosen]
    boundary = len(y) * 4 // 5
    return Half(x[:boundary], y[:boundary], x[boundary:], y[boundary:])


def run_cifar_tl(path: Path, report: Report, *, recipe_name: str) -> None:
    sys.path.insert(0, str(ROOT))
    import torch

    from cifar_tl import (
        RECIPES,
        CifarNet,
        extract_features,
        fit,
        keep_freed_memory,
        load_data,
        make_views,
        transfer_model,
        whiten_first_layer,
    )
    from cifar_tl.data.examples import channel_statistics
    from cifar_tl.data.views import shift_randomly
    from cifar_tl.machine import autocast
    from cifar_tl.network import DROPOUT

    keep_freed_memory()  # as the command does
    data = load_data(path)
    recipe = replace(RECIPES[recipe_name], epochs=EPOCHS).for_stage(
        "base", 20_000, mirror=data.mirror
    )
    assert recipe.first_layer != "separated"  # as many epochs train all layers
    shift = recipe.shift
    torch.manual_seed(0)

    train, validation = data.train_and_validation(data.base_classes)
    base = CifarNet(5, DROPOUT if recipe.dropout is None else recipe.dropout)
    if recipe.normalize:
        base.mean, base.std = channel_statistics(train.images)
    if recipe.first_layer == "whitened":
        whiten_first_layer(base, train.images)
    fit(
        base,
        make_views(train.images, mirror=recipe.mirror),
        train.labels,
        validation.images,
        validation.labels,
        recipe,
        transform=(lambda x, y: (shift_randomly(x, shift), y)) if shift else None,
        on_epoch=lambda record: report(
            record.seconds_train + record.seconds_validation, record.val_accuracy
        ),
    )

    train, validation = data.train_and_validation(data.new_classes)
    head = RECIPES["tuned"].for_stage("transfer", 20_000)
    head = replace(head, epochs=EPOCHS, precision=recipe.precision)
    base.dropout = DROPOUT if head.dropout is None else head.dropout  # of classifiers to come
    for _ in range(EPOCHS):  # as often as the peers run an epoch
        start = time.perf_counter()
        model = transfer_model(base)
        views = make_views(train.images, mirror=True)
        with autocast(head.precision, views.device):
            features = extract_features(model.forward_features, views.flatten(0, 1))
            val_features = extract_features(model.forward_features, validation.images)
        records = fit(
            model.classifier,
            features.unflatten(0, views.shape[:2]),
            train.labels,
            val_features,
            validation.labels,
            head,
        )
        report(time.perf_counter() - start, records[-1].val_accuracy)


def run_keras(path: Path, report: Report) -> None:
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras
    from keras import layers

    class Clock(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, *_: Any) -> None:
            self.start = time.perf_counter()

        def on_epoch_end(self, _: int, logs: Any = None) -> None:  # after validation
            report(time.perf_counter() - self.start, logs["val_accuracy"])

    def train(model: Any, half: Half) -> None:
        model.compile(
            optimizer=keras.optimizers.Adam(1e-3),
            loss="sparse_categorical_crossentropy",
            metrics=["accuracy"],
        )
        model.fit(
            half.x.astype(np.float32) / 255,
            half.y,
            batch_size=BATCH_SIZE,
            epochs=EPOCHS,
            validation_data=(half.val_x.astype(np.float32) / 255, half.val_y),
            callbacks=[Clock()],
            verbose=0,
        )

    keras.utils.set_random_seed(0)
    features = [
        layers.Conv2D(32, 5, activation="relu"),
        layers.Conv2D(16, 5, activation="relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(8, 3, activation="relu"),
        layers.Flatten(),
        layers.Dropout(0.42),
    ]
    for classes, outputs in ((range(5), 5), (range(5, 10), 10)):
        head = [layers.Dense(128, activation="relu"), layers.Dense(outputs, activation="softmax")]
        train(
            keras.Sequential([layers.Input((32, 32, 3)), *features, *head]),
            read_half(path, classes),
        )
        for layer in features:
            layer.trainable = False


def run_dataloader(path: Path, report: Report, *, num_workers: int = 0) -> None:
    sys.path.insert(0, str(ROOT / "examples"))
    import torch
    from documented import make_network
    from PIL import Image
    from torch import Tensor, nn
    from torch.utils.data import DataLoader, Dataset
    from torchvision.transforms import ToTensor

    class Images(Dataset[tuple[Tensor, int]]):
        """Does for an item what torchvision.datasets.CIFAR10 does."""

        def __init__(self, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> None:
            self.data, self.targets, self.transform = x, y.tolist(), ToTensor()

        def __len__(self) -> int:
            return len(self.data)

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return self.transform(Image.fromarray(self.data[index])), self.targets[index]

    def train(model: nn.Module, half: Half) -> None:
        loader = DataLoader(Images(half.x, half.y), BATCH_SIZE, True, num_workers=num_workers)
        val_loader = DataLoader(Images(half.val_x, half.val_y), BATCH_SIZE, num_workers=num_workers)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(parameters, lr=1e-3, eps=1e-7)
        loss_function = nn.CrossEntropyLoss()
        for _ in range(EPOCHS):
            start = time.perf_counter()
            model.train()
            for images, labels in loader:
                optimizer.zero_grad()
                loss_function(model(images), labels).backward()
                optimizer.step()
            model.eval()
            correct = 0
            with torch.no_grad():
                for images, labels in val_loader:
                    correct += int((model(images).argmax(1) == labels).sum())
            report(time.perf_counter() - start, correct / len(half.val_y))

    torch.manual_seed(0)
    base = make_network(outputs=5)
    train(base, read_half(path, range(5)))
    features = base[0].requires_grad_(False)
    _, classifier = make_network(outputs=10)
    train(nn.Sequential(features, classifier), read_half(path, range(5, 10)))


PEERS: dict[str, Callable[[Path, Report], None]] = {
    ORIGINAL: partial(run_cifar_tl, recipe_name="original"),
    TUNED: partial(run_cifar_tl, recipe_name="tuned"),
    KERAS: run_keras,
    "PyTorch, DataLoader": run_dataloader,
    "PyTorch, DataLoader, 2 workers": partial(run_dataloader, num_workers=2),
}


def work(name: str, path: Path) -> None:
    """Runs a peer in this process; a turn begins with each line that comes in."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints must not be taken for an answer
    calls = itertools.count(1)

    def report(seconds: float, accuracy: float) -> None:
        print(json.dumps([seconds, accuracy]), file=answers, flush=True)
        if next(calls) % EPOCHS_IN_A_TURN == 0 and not sys.stdin.readline():
            os._exit(0)

    sys.stdin.readline()
    PEERS[name](path, report)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="a .npz file in the Keras layout")
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)  # what a process is
    options = parser.parse_args()
    if options.peer:
        work(options.peer, options.data)
    else:
        print(table(take_turns(options.data)))


def take_turns(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Starts the peers; returns the seconds and the accuracy of the epochs that count."""
    names = [name for name in PEERS if name != KERAS or find_spec("tensorflow")]
    processes = {
        name: subprocess.Popen(
            [sys.executable, __file__, str(path), "--peer", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for name in names
    }
    counted: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for turn in range(2 * TURNS):
        stage = "base" if turn < TURNS else "transfer"
        for name, process in processes.items():
            assert process.stdin is not None
            assert process.stdout is not None
            print("go", file=process.stdin, flush=True)
            answers = [process.stdout.readline() for _ in range(EPOCHS_IN_A_TURN)]
            if not all(answers):
                sys.exit(f"{name} failed; why: yes | python {__file__} {path} --peer '{name}'")
            (first, _), (seconds, accuracy) = map(json.loads, answers)
            counted[name].append((seconds, accuracy))
            line = f"{first:.2f} s, {seconds:.2f} s, validation accuracy {accuracy:.2%}"
            print(f"{stage}, turn {turn % TURNS + 1}: {name}: {line}", flush=True)
    for process in processes.values():
        process.communicate()
    return counted


def table(counted: dict[str, list[tuple[float, float]]]) -> str:
    """Medians, ranges and ratios; a ratio is the median of those of the single turns."""
    lines = [
        "| | s | range | original / this row | tuned / this row | validation accuracy |",
        "|---|---|---|---|---|---|",
    ]
    for stage, part, epochs in (
        ("base epoch", slice(0, TURNS), 1),
        ("transfer, 10 epochs", slice(TURNS, None), EPOCHS),
    ):
        ours = [[seconds for seconds, _ in counted[name][part]] for name in (ORIGINAL, TUNED)]
        for name, answers in counted.items():
            units = 1 if name in (ORIGINAL, TUNED) else epochs  # what those count is a whole stage
            times = [seconds * units for seconds, _ in answers[part]]
            ratios = [
                statistics.median(our / their for our, their in zip(one, times, strict=True))
                for one in ours
            ]
            lines.append(
                f"| {stage}: {name} | {statistics.median(times):.2f} "
                f"| {min(times):.2f}-{max(times):.2f} | {ratios[0]:.2f} | {ratios[1]:.2f} "
                f"| {answers[part][-1][1]:.2%} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
