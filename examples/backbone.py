"""Transfer from a torchvision network: a frozen backbone, cached views, and fit.

    pip install .
    python examples/backbone.py --data shapes --backbone mobilenet_v3_small

The backbone computes the features of every image and its mirror image once. Then a head is trained
on these features for ten epochs. By default the weights of the backbone are random, and the
accuracy is little above chance: nothing is downloaded unasked. ``--weights DEFAULT`` downloads the
weights that torchvision trained on ImageNet.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import get_model

from cifar_tl import TUNED, extract_features, fit, load_data, make_views, transfer_model
from cifar_tl.training import EpochRecord

# Of the images that torchvision's models were trained with (ImageNet).
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="data", help="as for cifar-tl train (default: data)")
    parser.add_argument("--backbone", default="mobilenet_v3_small", help="a torchvision model")
    parser.add_argument("--weights", help="such as DEFAULT (default: random)")
    parser.add_argument("--size", type=int, default=64, help="scale images to so many pixels")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--log", type=Path, help="append a JSON object for each epoch to this file")
    options = parser.parse_args()

    data = load_data(options.data)
    train, validation = data.train_and_validation(data.new_classes)
    torch.manual_seed(0)
    network = get_model(options.backbone, weights=options.weights)
    *_, last = (name for name, part in network.named_modules() if isinstance(part, nn.Linear))
    # Frozen: batch normalisation and dropout stay in evaluation mode, even after train().
    backbone = transfer_model(network, len(data.class_names), classifier=last)
    head = backbone.get_submodule(last)
    backbone.set_submodule(last, nn.Identity())  # the features before it are computed once

    def forward(images: Tensor) -> Tensor:
        images = functional.interpolate(images / 255, options.size, mode="bilinear")
        features: Tensor = backbone((images - MEAN) / STD)
        return features.flatten(1)

    views = make_views(train.images, mirror=data.mirror)
    features = extract_features(forward, views.flatten(0, 1), progress="training images")
    features = features.unflatten(0, views.shape[:2])
    val_features = extract_features(forward, validation.images, progress="validation images")
    # Random weights make features of any size. Bring each to mean 0 and standard deviation 1.
    std, mean = torch.std_mean(features, dim=(0, 1))
    std = std.clamp_min(1e-4 * float(std.max()))
    features, val_features = (features - mean) / std, (val_features - mean) / std

    def on_epoch(record: EpochRecord) -> None:
        """Prints the accuracy of an epoch, and writes its record to the log.

        With TensorBoard's SummaryWriter it would be
        ``writer.add_scalar("accuracy", record.val_accuracy, record.epoch)``.
        """
        print(f"epoch {record.epoch}: validation accuracy {record.val_accuracy:.2%}")
        if options.log is not None:
            with options.log.open("a") as file:
                file.write(json.dumps(dataclasses.asdict(record)) + "\n")

    recipe = dataclasses.replace(TUNED, epochs=options.epochs, transfer_lr=0.02)
    plan = recipe.for_stage("transfer", len(train.labels))
    fit(head, features, train.labels, val_features, validation.labels, plan, on_epoch=on_epoch)


if __name__ == "__main__":
    main()
