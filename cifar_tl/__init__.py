"""Transfer learning on CIFAR-10 with a small documented network, in plain PyTorch.

Train a network on classes 0-4, freeze its features, train a new classifier on classes 5-9, and
compare with a control what that saves and costs. The parts, in the order in which data flows:

- data: `load_data` for all sources, classes of your own among them, `download_cifar10`,
  `select_classes`, `split_validation`, `stratified_prefix`, `make_views`, `shift_randomly`,
  `channel_statistics`; `class_subset` for any torchvision-style dataset; `read_image` and
  `read_images` for image files, `Frame` for how any network sees them
- model: `CifarNet`, `whiten_first_layer`, `separate_first_layer`; `Backbone` and `load_backbone`
  for any pretrained network; `transfer_model`, `freeze`, `unfreeze`
- training: `TUNED` and `ORIGINAL` recipes, `Plan`, `Muon`, `extract_features`, `fit`,
  `evaluate`, `confusion_matrix`; of unequal classes `are_unequal`, `balanced_accuracy`,
  `logit_offsets`
- results: `run_stage`, `save_model`, `load_model`, `fit_temperature`, `predict`; `read_each` and
  `predict_each` for many files; `MirrorAverage`; `export_pt2`, `export_onnx`
- speed: `keep_freed_memory` for a program that trains on a CPU with Linux

A whole transfer in a few lines::

    data = load_data("shapes")
    train, validation = data.train_and_validation(data.new_classes)
    model = transfer_model(load_model("runs/shapes/base/model.pt"))
    features = extract_features(model.forward_features, train.images)
    val_features = extract_features(model.forward_features, validation.images)
    plan = TUNED.for_stage("transfer", len(features))
    model.classifier.dropout.p = plan.dropout
    fit(model.classifier, features[None], train.labels, val_features, validation.labels, plan)

Images are uint8 ``(N, 3, 32, 32)``, or of the size of a `Backbone`. Labels are int64 ``(N,)``,
accuracies fractions, times seconds.
Importing the package imports neither torch nor numpy. A name imports its module when it is first
used. All errors are a `CifarTLError`, or an ``OSError`` where the system failed.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if sys.version_info < (3, 10):  # noqa: UP036 - nobody asks pip before a clone is run
    raise ImportError(
        "cifar_tl needs Python 3.10 or newer, and this is "
        f"{sys.version.split()[0]}: install a newer one, or name it, such as python3.12",
        name=__name__,  # so that python -m shows no traceback
    )

from cifar_tl.version import __version__ as __version__

# The public names by module. A name imports its module, and maybe torch, when it is first used.
_NAMES = {
    "backbone": "Backbone",
    "balance": "are_unequal balanced_accuracy logit_offsets",
    "calibration": "fit_temperature",
    "checkpoint": "load_model save_model",
    "data.cifar10": "download_cifar10",
    "data.examples": "Data LabeledImages channel_statistics select_classes split_validation "
    "stratified_prefix",
    "data.pictures.read": "read_each read_image read_images",
    "data.source": "load_data",
    "data.subset": "class_subset",
    "data.views": "make_views shift_randomly",
    "errors": "BackboneError BackboneWarning CheckpointError CifarTLError CifarTLWarning "
    "DataError DataWarning DownloadError ExportError ImageError LockedError MissingDataError "
    "RunError RunWarning TrainingError",
    "evaluation": "Metrics confusion_matrix evaluate extract_features",
    "experiment.findings.results": "StageResult",
    "experiment.run": "run_stage",
    "experiment.stages": "STAGES",
    "export": "export_onnx export_pt2",
    "first_layer": "separate_first_layer whiten_first_layer",
    "frame": "Frame",
    "freezing": "count_parameters freeze transfer_model unfreeze",
    "machine": "keep_freed_memory",
    "muon": "Muon",
    "network": "CifarNet",
    "prediction": "MirrorAverage Prediction predict predict_each",
    "published": "load_backbone",
    "recipe": "ORIGINAL Plan RECIPES Recipe TUNED",
    "training": "EpochRecord fit make_optimizer",
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}

if TYPE_CHECKING:  # type checkers cannot read the table; a test compares both
    from cifar_tl.backbone import Backbone as Backbone
    from cifar_tl.balance import are_unequal as are_unequal
    from cifar_tl.balance import balanced_accuracy as balanced_accuracy
    from cifar_tl.balance import logit_offsets as logit_offsets
    from cifar_tl.calibration import fit_temperature as fit_temperature
    from cifar_tl.checkpoint import load_model as load_model
    from cifar_tl.checkpoint import save_model as save_model
    from cifar_tl.data.cifar10 import download_cifar10 as download_cifar10
    from cifar_tl.data.examples import Data as Data
    from cifar_tl.data.examples import LabeledImages as LabeledImages
    from cifar_tl.data.examples import channel_statistics as channel_statistics
    from cifar_tl.data.examples import select_classes as select_classes
    from cifar_tl.data.examples import split_validation as split_validation
    from cifar_tl.data.examples import stratified_prefix as stratified_prefix
    from cifar_tl.data.pictures.read import read_each as read_each
    from cifar_tl.data.pictures.read import read_image as read_image
    from cifar_tl.data.pictures.read import read_images as read_images
    from cifar_tl.data.source import load_data as load_data
    from cifar_tl.data.subset import class_subset as class_subset
    from cifar_tl.data.views import make_views as make_views
    from cifar_tl.data.views import shift_randomly as shift_randomly
    from cifar_tl.errors import BackboneError as BackboneError
    from cifar_tl.errors import BackboneWarning as BackboneWarning
    from cifar_tl.errors import CheckpointError as CheckpointError
    from cifar_tl.errors import CifarTLError as CifarTLError
    from cifar_tl.errors import CifarTLWarning as CifarTLWarning
    from cifar_tl.errors import DataError as DataError
    from cifar_tl.errors import DataWarning as DataWarning
    from cifar_tl.errors import DownloadError as DownloadError
    from cifar_tl.errors import ExportError as ExportError
    from cifar_tl.errors import ImageError as ImageError
    from cifar_tl.errors import LockedError as LockedError
    from cifar_tl.errors import MissingDataError as MissingDataError
    from cifar_tl.errors import RunError as RunError
    from cifar_tl.errors import RunWarning as RunWarning
    from cifar_tl.errors import TrainingError as TrainingError
    from cifar_tl.evaluation import Metrics as Metrics
    from cifar_tl.evaluation import confusion_matrix as confusion_matrix
    from cifar_tl.evaluation import evaluate as evaluate
    from cifar_tl.evaluation import extract_features as extract_features
    from cifar_tl.experiment.findings.results import StageResult as StageResult
    from cifar_tl.experiment.run import run_stage as run_stage
    from cifar_tl.experiment.stages import STAGES as STAGES
    from cifar_tl.export import export_onnx as export_onnx
    from cifar_tl.export import export_pt2 as export_pt2
    from cifar_tl.first_layer import separate_first_layer as separate_first_layer
    from cifar_tl.first_layer import whiten_first_layer as whiten_first_layer
    from cifar_tl.frame import Frame as Frame
    from cifar_tl.freezing import count_parameters as count_parameters
    from cifar_tl.freezing import freeze as freeze
    from cifar_tl.freezing import transfer_model as transfer_model
    from cifar_tl.freezing import unfreeze as unfreeze
    from cifar_tl.machine import keep_freed_memory as keep_freed_memory
    from cifar_tl.muon import Muon as Muon
    from cifar_tl.network import CifarNet as CifarNet
    from cifar_tl.prediction import MirrorAverage as MirrorAverage
    from cifar_tl.prediction import Prediction as Prediction
    from cifar_tl.prediction import predict as predict
    from cifar_tl.prediction import predict_each as predict_each
    from cifar_tl.published import load_backbone as load_backbone
    from cifar_tl.recipe import ORIGINAL as ORIGINAL
    from cifar_tl.recipe import RECIPES as RECIPES
    from cifar_tl.recipe import TUNED as TUNED
    from cifar_tl.recipe import Plan as Plan
    from cifar_tl.recipe import Recipe as Recipe
    from cifar_tl.training import EpochRecord as EpochRecord
    from cifar_tl.training import fit as fit
    from cifar_tl.training import make_optimizer as make_optimizer
else:
    __all__ = sorted(_MODULES)

    def __getattr__(name):
        """Imports a public name when it is first used (PEP 562)."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        return value

    def __dir__():
        return sorted({*globals(), *_MODULES})
