"""A training loop of your own, with class_subset, torch's DataLoader and transforms.

    pip install .
    python train.py --stage base          # once: downloads CIFAR-10 into data/
    python examples/loop.py --root data --epochs 1

Use this if you want torchvision's transforms and workers, or if you have a loop already. Only the
network and the choice of classes are from cifar_tl. It takes about twice as long as ``fit``, which
keeps all images in one tensor.
"""

import argparse

import torch
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision.datasets import CIFAR10
from torchvision.transforms import v2

from cifar_tl import CifarNet, class_subset


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", default="data", help="the folder with CIFAR-10 (default: data)")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()

    transform = v2.Compose([v2.ToImage(), v2.RandomHorizontalFlip(), v2.RandomCrop(32, padding=2)])
    # This reads only the labels. Images are decoded when the loader asks for them.
    train = class_subset(CIFAR10(options.root, train=True, transform=transform), range(5))
    test = class_subset(CIFAR10(options.root, train=False, transform=v2.ToImage()), range(5))
    loader = DataLoader(train, batch_size=100, shuffle=True, num_workers=options.workers)

    torch.manual_seed(0)
    model = CifarNet(num_classes=5)  # takes uint8 images, and does the preprocessing itself
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for epoch in range(1, options.epochs + 1):
        model.train()
        total = 0.0
        for images, labels in loader:
            loss = functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(labels)
        print(f"epoch {epoch}: training loss {total / len(train):.4f}")

    model.eval()
    with torch.inference_mode():
        correct = sum(
            int((model(images).argmax(1) == labels).sum())
            for images, labels in DataLoader(test, batch_size=500)
        )
    print(f"test accuracy {correct / len(test):.2%}")


if __name__ == "__main__":
    main()
