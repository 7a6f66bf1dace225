"""The whole experiment on one page: transfer learning on CIFAR-10 in plain PyTorch.

    python examples/documented.py                 # downloads CIFAR-10 (170 MB) into the folder data
    python examples/documented.py cifar10.npz 3   # reads a file in the Keras layout; 3 epochs

One small network is trained three times:
- base: it learns classes 0-4 (airplane, automobile, bird, cat, deer).
- transfer: it keeps the convolutional layers of base. They are frozen: they no longer change.
  A new classifier on top of them learns classes 5-9 (dog, frog, horse, ship, truck).
- scratch: it learns classes 5-9 from fresh weights. This is the control: what does transfer save?
"""

import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.datasets import CIFAR10

Half = list[tuple[Tensor, Tensor]]  # images and labels: for training, for validation, for the test
Shuffle = Callable[[int], Tensor]  # takes a number n; returns 0 to n - 1 in some order


def read_half(source: str, classes: range) -> Half:
    """Reads the images of half of the classes. Their labels stay 0 to 9."""
    parts = []
    for part in ("train", "test"):
        if source.endswith(".npz"):
            file = np.load(source)
            x, y = file[f"x_{part}"], file[f"y_{part}"].flatten()
        else:
            official = CIFAR10(source, train=part == "train", download=True)
            x, y = official.data, np.array(official.targets)
        chosen = np.isin(y, classes)
        images = torch.tensor(x[chosen]).permute(0, 3, 1, 2) / 255  # (N, 3, 32, 32), from 0 to 1
        parts.append((images, torch.tensor(y[chosen]).long()))
    (images, labels), test = parts
    end = len(labels) * 4 // 5  # in file order: the first 80 % train, the last 20 % validate
    return [(images[:end], labels[:end]), (images[end:], labels[end:]), test]


def make_network(outputs: int) -> nn.Sequential:
    """Makes two parts: layers that turn an image into 800 features, and a classifier of these."""
    conv1, conv2, conv3 = nn.Conv2d(3, 32, 5), nn.Conv2d(32, 16, 5), nn.Conv2d(16, 8, 3)
    relu, pool, flatten = nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
    features = nn.Sequential(conv1, relu, conv2, relu, pool, conv3, relu, flatten)
    classifier = nn.Sequential(nn.Dropout(0.42), nn.Linear(800, 128), relu, nn.Linear(128, outputs))
    network = nn.Sequential(features, classifier)
    for weights in network.parameters():  # Glorot's uniform distribution; biases start at zero
        nn.init.xavier_uniform_(weights) if weights.dim() > 1 else nn.init.zeros_(weights)
    return network


def train(name: str, model: nn.Module, half: Half, epochs: int, shuffle: Shuffle) -> list[float]:
    """Trains a model and prints how well it does. Returns the loss of each batch."""
    (inputs, labels), validation, test = half
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-7)  # eps of Keras, not 1e-8
    losses = []
    for epoch in range(1, epochs + 1):
        start = time.perf_counter()
        model.train()  # dropout is on
        for batch in shuffle(len(labels)).split(100):
            loss = nn.functional.cross_entropy(model(inputs[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        accuracy, seconds = measure_accuracy(model, *validation), time.perf_counter() - start
        print(f"{name}, epoch {epoch}: {seconds:.1f} s, validation accuracy {accuracy:.2%}")
    print(f"{name}: test accuracy {measure_accuracy(model, *test):.2%}")  # once, and at the end
    return losses


@torch.no_grad()
def compute(model: nn.Module, inputs: Tensor) -> Tensor:
    """Computes the outputs of a model, for 100 inputs at a time."""
    model.eval()  # dropout is off
    return torch.cat([model(batch) for batch in inputs.split(100)])


def measure_accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Computes how often the largest output is that of the right class, from 0 to 1."""
    return (compute(model, inputs).argmax(1) == labels).float().mean().item()


def main(source: str, epochs: int) -> list[nn.Sequential]:
    """Trains base, transfer and scratch, and returns them."""
    torch.manual_seed(0)
    half = read_half(source, range(5))
    base = make_network(outputs=5)
    train("base", base, half, epochs, torch.randperm)

    half = read_half(source, range(5, 10))
    features = base[0].requires_grad_(False)  # frozen
    classifier = make_network(outputs=10)[1]  # outputs 0-4 exist, as documented, and are not used
    start = time.perf_counter()
    # Frozen layers put out the same in every epoch, so it is enough to run them once.
    computed = [(compute(features, images), labels) for images, labels in half]
    print(f"transfer, features of all images: {time.perf_counter() - start:.1f} s")
    train("transfer", classifier, computed, epochs, torch.randperm)

    scratch = make_network(outputs=10)
    train("scratch", scratch, half, epochs, torch.randperm)
    return [base, nn.Sequential(features, classifier), scratch]


if __name__ == "__main__":
    main(sys.argv[1] if sys.argv[1:] else "data", int(sys.argv[2]) if sys.argv[2:] else 10)
