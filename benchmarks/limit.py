"""Compares the time of training with the time of its arithmetic alone.

    python benchmarks/limit.py

Kernels are the convolutions and matrix products of a training step, forward and backward. They run
one after the other, on tensors of the same shapes and layout. All that is compared takes turns in
one process. The images are random, since no time depends on their content.
"""

import argparse
import dataclasses
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import extraction
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from cifar_tl import (
    ORIGINAL,
    TUNED,
    CifarNet,
    Recipe,
    extract_features,
    fit,
    keep_freed_memory,
    load_backbone,
    load_data,
    make_views,
    transfer_model,
)
from cifar_tl.recipe import epochs_for

BATCH = 100
TRAIN, VALIDATION = 20_000, 5_000
STEPS = 20  # of a base training, in a round
ROUNDS = 15
TRANSFER_ROUNDS = 5
PICTURES = 400
NETWORKS = ("mobilenet_v3_small", "efficientnet_b0", "resnet18", "vit_b_32")
SIZES = (2_500, 5_000, 10_000, 20_000)


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    images = torch.randint(256, (TRAIN + VALIDATION, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(5, (TRAIN + VALIDATION,))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.platform()}")
    compare_steps(images, labels)
    compare_transfer(images, labels + 5)
    compare_sizes(images, labels)
    compare_networks()


def compare_steps(images: Tensor, labels: Tensor) -> None:
    model, kernels = CifarNet(num_classes=5), make_step_kernels()
    left, right = torch.randn(2, 2048, 2048)

    def steps() -> float:
        return train_seconds(model, images[: STEPS * BATCH], labels[: STEPS * BATCH], ORIGINAL)

    times = take_turns(
        ROUNDS,
        {
            "base training step": lambda: steps() / STEPS,
            "its kernels alone": lambda: seconds(kernels, STEPS) / STEPS,
            "matrix product of 2048 x 2048": lambda: seconds(lambda: left @ right),
        },
    )
    show(times, "ms", 1e3)
    print(f"matrix products: {2 * 2048**3 / median(list(times.values())[2]) / 1e9:.0f} GFLOP/s")
    print(f"base training step / its kernels: {ratio(times):.2f}\n")


def compare_transfer(images: Tensor, labels: Tensor) -> None:
    """Compares the transfer stage, without files, with its inference and the head's products."""
    model = transfer_model(CifarNet(num_classes=5))
    train, validation = images.split([TRAIN, VALIDATION])
    train_labels, val_labels = labels.split([TRAIN, VALIDATION])
    recipe = dataclasses.replace(TUNED.for_stage("transfer", TRAIN), precision="float32")
    model.dropout = recipe.dropout or 0.0  # of the next classifiers
    batch = model.preprocess(train[:BATCH])
    train_step, _ = make_head_kernels(TUNED.transfer_batch_size)
    _, val_step = make_head_kernels()

    def stage() -> None:
        views = make_views(train, mirror=True)
        features = extract_features(model.forward_features, views.flatten(0, 1))
        val_features = extract_features(model.forward_features, validation)
        model.reset_classifier(10)
        fit(
            model.classifier,
            features.unflatten(0, views.shape[:2]),
            train_labels,
            val_features,
            val_labels,
            recipe,
        )

    def inference() -> None:
        with torch.inference_mode():
            model.features(batch)

    def floor() -> float:
        return (
            seconds(inference, (2 * TRAIN + VALIDATION) // BATCH)
            + seconds(train_step, epochs_for(TRAIN) * TRAIN // TUNED.transfer_batch_size)
            + seconds(val_step, epochs_for(TRAIN) * VALIDATION // BATCH)
        )

    times = take_turns(
        TRANSFER_ROUNDS,
        {"transfer stage, 10 epochs": lambda: seconds(stage), "its floor": floor},
    )
    show(times, "s")
    print(f"transfer stage / its floor: {ratio(times):.2f}\n")


def compare_sizes(images: Tensor, labels: Tensor) -> None:
    model = CifarNet(num_classes=5)
    functions = {
        f"base training, {size:,} images, per image": partial(
            train_seconds, model, images[:size], labels[:size], ORIGINAL
        )
        for size in SIZES
    }
    times = take_turns(3, functions)
    for values, size in zip(times.values(), SIZES, strict=True):
        values[:] = [value / size for value in values]
    show(times, "us", 1e6)
    medians = [median(values) for values in times.values()]
    print(f"slowest size / fastest size: {max(medians) / min(medians):.2f}")


def compare_networks() -> None:
    """Compares features of picture files with the forward passes, and with the reading."""
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(PICTURES):
            coarse: Any = random.integers(256, size=(15, 20, 3)).astype(np.uint8)
            path = Path(folder, "pictures/train", "ab"[number % 2], f"{number}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(coarse).resize((400, 300)).save(path, quality=90)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = load_data(path.parents[2])
        for name in NETWORKS:
            extraction.compare(data, load_backbone(name, "fresh"))


def train_seconds(model: CifarNet, images: Tensor, labels: Tensor, recipe: Recipe) -> float:
    """Trains one epoch. Returns its seconds without validation."""
    recipe = dataclasses.replace(recipe, epochs=1)
    return fit(model, images[None], labels, images[:1], labels[:1], recipe)[0].seconds_train


def make_step_kernels() -> Callable[[], None]:
    """Makes a function that runs the kernels of one base training step, and nothing else."""
    images, pooled = channels_last(BATCH, 3, 32, 32), channels_last(BATCH, 16, 12, 12)
    grad2, grad3 = channels_last(BATCH, 16, 24, 24), channels_last(BATCH, 8, 10, 10)
    weight1, weight2 = channels_last(32, 3, 5, 5), channels_last(16, 32, 5, 5)
    weight3 = channels_last(8, 16, 3, 3)
    bias1, bias2, bias3 = torch.zeros(32), torch.zeros(16), torch.zeros(8)
    head, _ = make_head_kernels(num_classes=5, input_gradient=True)

    def backward(grad: Tensor, inputs: Tensor, weight: Tensor, input_gradient: bool) -> Tensor:
        gradients: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
            grad,
            inputs,
            weight,
            bias_sizes=[len(weight)],
            stride=[1, 1],
            padding=[0, 0],
            dilation=[1, 1],
            transposed=False,
            output_padding=[0, 0],
            groups=1,
            output_mask=[input_gradient, True, True],
        )
        return gradients[0]

    def step() -> None:
        hidden = functional.conv2d(images, weight1, bias1)
        functional.conv2d(hidden, weight2, bias2)
        functional.conv2d(pooled, weight3, bias3)
        head()
        backward(grad3, pooled, weight3, True)
        grad1 = backward(grad2, hidden, weight2, True)
        backward(grad1, images, weight1, False)

    return step


def make_head_kernels(
    batch_size: int = BATCH, num_classes: int = 10, input_gradient: bool = False
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Makes two functions: the matrix products of a training step of a head, and of validation."""
    features, hidden, logits = (torch.randn(batch_size, size) for size in (800, 128, num_classes))
    weight1, weight2 = torch.randn(128, 800), torch.randn(num_classes, 128)
    bias1, bias2 = torch.zeros(128), torch.zeros(num_classes)

    def forward() -> None:
        functional.linear(features, weight1, bias1)
        functional.linear(hidden, weight2, bias2)

    def step() -> None:
        forward()
        _ = logits.t() @ hidden, logits @ weight2, hidden.t() @ features
        if input_gradient:
            _ = hidden @ weight1

    return step, forward


def channels_last(*shape: int) -> Tensor:
    """Draws a tensor in the memory layout that is fastest for convolutions."""
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


def seconds(function: Callable[[], object], times: int = 1) -> float:
    """Returns the seconds of several calls in a row."""
    start = time.perf_counter()
    for _ in range(times):
        function()
    return time.perf_counter() - start


def take_turns(rounds: int, functions: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Calls functions in turn, after one round that does not count. Returns their results."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name, function in functions.items():
            result = function()
            if number > 0:
                times[name].append(result)
    return times


def ratio(times: dict[str, list[float]]) -> float:
    """Returns the median over the rounds of the first time divided by the second."""
    first, second, *_ = times.values()
    return median(a / b for a, b in zip(first, second, strict=True))


def show(times: dict[str, list[float]], unit: str, factor: float = 1) -> None:
    for name, values in times.items():
        low, high = min(values) * factor, max(values) * factor
        print(f"{name}: {median(values) * factor:.2f} {unit} ({low:.2f}-{high:.2f})")


if __name__ == "__main__":
    main()
