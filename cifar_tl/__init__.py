"""Transfer learning on CIFAR-10 with a small documented network, in plain PyTorch.

Train a network on classes 0-4, freeze its features, train a new classifier on classes 5-9, and
compare with a control what that saves and costs. The parts, in the order in which data flows:

- data: `load_data` for all sources, classes of your own among them, `download_cifar10`,
  `select_classes`, `split_validation`, `stratified_prefix`, `make_views`, and `class_subset` for
  any torchvision-style dataset
- model: `CifarNet`, `whiten_first_layer`, `transfer_model`, `freeze`, `unfreeze`
- training: `TUNED` and `ORIGINAL` recipes, `Muon`, `extract_features`, `fit`, `evaluate`,
  `confusion_matrix`
- results: `run_stage`, `load_model`
- speed: `keep_freed_memory` for a program that trains on a CPU with Linux

A whole transfer in a few lines, without files::

    data = load_data("shapes")
    train, validation = data.train_and_validation(data.new_classes)
    model = transfer_model(load_model("runs/shapes/base/model.pt"))
    features = extract_features(model.forward_features, train.images)
    val_features = extract_features(model.forward_features, validation.images)
    recipe = TUNED.for_stage("transfer")
    fit(model.classifier, features[None], train.labels, val_features, validation.labels, recipe)

Images are uint8 ``(N, 3, 32, 32)``, labels int64 ``(N,)``, accuracies fractions, times seconds.
Not imported here: `cifar_tl.images` and `cifar_tl.predict` for image files, `cifar_tl.plots` for
pictures with matplotlib, `cifar_tl.export` for ``torch.export`` and ONNX.
"""

from cifar_tl.checkpoint import CheckpointError, load_model
from cifar_tl.data import (
    Data,
    DataError,
    DownloadError,
    MissingDataError,
    class_subset,
    download_cifar10,
    load_data,
    make_views,
    select_classes,
    split_validation,
    stratified_prefix,
)
from cifar_tl.lock import LockedError
from cifar_tl.memory import keep_freed_memory
from cifar_tl.model import (
    CifarNet,
    count_parameters,
    freeze,
    transfer_model,
    unfreeze,
    whiten_first_layer,
)
from cifar_tl.muon import Muon
from cifar_tl.recipe import ORIGINAL, RECIPES, TUNED, Recipe
from cifar_tl.run import RunError
from cifar_tl.stages import STAGES, run_stage
from cifar_tl.training import (
    EpochRecord,
    Metrics,
    TrainingError,
    confusion_matrix,
    evaluate,
    extract_features,
    fit,
    make_optimizer,
)
from cifar_tl.version import __version__

__all__ = [
    "ORIGINAL",
    "RECIPES",
    "STAGES",
    "TUNED",
    "CheckpointError",
    "CifarNet",
    "Data",
    "DataError",
    "DownloadError",
    "EpochRecord",
    "LockedError",
    "Metrics",
    "MissingDataError",
    "Muon",
    "Recipe",
    "RunError",
    "TrainingError",
    "__version__",
    "class_subset",
    "confusion_matrix",
    "count_parameters",
    "download_cifar10",
    "evaluate",
    "extract_features",
    "fit",
    "freeze",
    "keep_freed_memory",
    "load_data",
    "load_model",
    "make_optimizer",
    "make_views",
    "run_stage",
    "select_classes",
    "split_validation",
    "stratified_prefix",
    "transfer_model",
    "unfreeze",
    "whiten_first_layer",
]
