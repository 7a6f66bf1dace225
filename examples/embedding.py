"""The features of a base model as an embedding, for other classifiers on new classes.

    pip install .
    python train.py --stage base --data shapes
    python examples/embedding.py runs/shapes/base/model.pt --data shapes

The base model has never seen these classes. Its features are computed once. Three classifiers use
them, each a few lines and without gradients: nearest class mean, nearest neighbours, least squares.
"""

import argparse

import torch
from torch import Tensor
from torch.nn import functional

from cifar_tl import extract_features, load_data, load_model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a model.pt of the base stage")
    parser.add_argument("--data", default="data", help="as for cifar-tl train (default: data)")
    options = parser.parse_args()

    data = load_data(options.data)
    train, validation = data.train_and_validation(data.new_classes)
    model = load_model(options.model)
    features = extract_features(model.forward_features, train.images, progress="training")
    queries = extract_features(model.forward_features, validation.images, progress="validation")

    # By mean and deviation of the training images. So no feature counts more than another.
    mean, std = features.mean(0), features.std(0).clamp_min(1e-6)
    features, queries = (features - mean) / std, (queries - mean) / std

    for classify in (nearest_class_mean, nearest_neighbours, least_squares):
        predicted = classify(features, train.labels, queries)
        accuracy = (predicted == validation.labels).double().mean()
        print(f"{classify.__name__.replace('_', ' ')}: validation accuracy {accuracy:.2%}")


def nearest_class_mean(features: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
    """Returns the class with the nearest mean."""
    classes: Tensor = torch.unique(labels)
    means = torch.stack([features[labels == label].mean(0) for label in classes])
    nearest: Tensor = torch.cdist(queries, means).argmin(1)
    return classes[nearest]


def nearest_neighbours(features: Tensor, labels: Tensor, queries: Tensor, k: int = 15) -> Tensor:
    """Returns the most frequent class of the k nearest images, by the angle between features."""
    features, queries = functional.normalize(features), functional.normalize(queries)
    batches = [
        (batch @ features.t()).topk(min(k, len(labels))).indices for batch in queries.split(500)
    ]
    return labels[torch.cat(batches)].mode(1).values


def least_squares(
    features: Tensor, labels: Tensor, queries: Tensor, penalty: float = 100.0
) -> Tensor:
    """Classifies by ridge regression to one-hot labels."""
    classes: Tensor = torch.unique(labels)
    one_hot = functional.one_hot(torch.searchsorted(classes, labels)).to(features.dtype)
    gram = features.t() @ features + penalty * torch.eye(features.shape[1])
    weights = torch.linalg.solve(gram, features.t() @ (one_hot - one_hot.mean(0)))
    scores: Tensor = queries @ weights + one_hot.mean(0)
    return classes[scores.argmax(1)]


if __name__ == "__main__":
    main()
