"""A program of somebody who uses the package with types: mypy --strict must understand it."""

from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

import cifar_tl
from cifar_tl import (
    TUNED,
    Backbone,
    CifarNet,
    Data,
    EpochRecord,
    Prediction,
    evaluate,
    extract_features,
    fit,
    freeze,
    load_backbone,
    load_data,
    load_model,
    make_views,
    predict,
    read_images,
    transfer_model,
)

Checked = TypeVar("Checked")


def is_a(kind: type[Checked], value: Checked) -> Checked:
    """Makes mypy compare a type, and an Any fail under --strict where it is returned."""
    assert isinstance(value, kind)
    return value


def train_head(base: CifarNet) -> list[EpochRecord]:
    data: Data = load_data("shapes")
    train, validation = data.train_and_validation(data.new_classes)
    model: CifarNet = transfer_model(base, num_classes=10)
    views: Tensor = make_views(train.images, mirror=False)
    features: Tensor = extract_features(model.forward_features, views[0])
    val_features = extract_features(model.forward_features, validation.images)
    recipe = TUNED.for_stage("transfer", 100)
    records = fit(
        model.classifier, features[None], train.labels, val_features, validation.labels, recipe
    )
    accuracy: float = evaluate(model, validation.images, validation.labels).accuracy
    print(accuracy + records[-1].seconds_train)
    return records


def features(paths: list[Path]) -> Tensor:
    model: Backbone = transfer_model(load_backbone("resnet18"), num_classes=3)
    images: Tensor = read_images(paths, model.frame).images
    found: Tensor = extract_features(model.forward_features, images)
    return found


def name(path: Path, image: Tensor) -> Prediction:
    model = load_model(path)
    frozen: nn.Module = freeze(model.features)
    print(frozen, is_a(str, model.class_names[5]), is_a(str, cifar_tl.__version__))
    return predict(model, image)[0]
