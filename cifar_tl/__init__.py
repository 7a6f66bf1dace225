"""Transfer learning on CIFAR-10 with a small documented network, in plain PyTorch.

Train a network on classes 0-4, freeze its features, train a new classifier on classes 5-9, and
compare with a control what that saves and costs. The parts, in the order in which data flows:

- data: `load_data` for all sources, classes of your own among them, `download_cifar10`,
  `select_classes`, `split_validation`, `stratified_prefix`, `make_views`, `shift_randomly`,
  `channel_statistics`; `class_subset` for any torchvision-style dataset, `read_image` for one image
  file
- model: `CifarNet`, `whiten_first_layer`, `separate_first_layer`, `transfer_model`, `freeze`,
  `unfreeze`
- training: `TUNED` and `ORIGINAL` recipes, `Muon`, `extract_features`, `fit`, `evaluate`,
  `confusion_matrix`
- results: `run_stage`, `save_model`, `load_model`, `predict`, `export_pt2`, `export_onnx`
- speed: `keep_freed_memory` for a program that trains on a CPU with Linux

A whole transfer in a few lines, without files::

    data = load_data("shapes")
    train, validation = data.train_and_validation(data.new_classes)
    model = transfer_model(load_model("runs/shapes/base/model.pt"))
    features = extract_features(model.forward_features, train.images)
    val_features = extract_features(model.forward_features, validation.images)
    recipe = TUNED.for_stage("transfer", len(features))
    model.classifier.dropout.p = recipe.dropout
    fit(model.classifier, features[None], train.labels, val_features, validation.labels, recipe)

Images are uint8 ``(N, 3, 32, 32)``, labels int64 ``(N,)``, accuracies fractions, times seconds.
Importing the package imports neither torch nor numpy: a name brings what it needs when it is first
used. All errors are a `CifarTLError`.
"""

import functools
from typing import TYPE_CHECKING

from cifar_tl.version import __version__ as __version__

if TYPE_CHECKING:  # the one list of the public names, which type checkers follow and Python reads
    from cifar_tl.checkpoint import load_model as load_model
    from cifar_tl.checkpoint import save_model as save_model
    from cifar_tl.data.cifar10 import download_cifar10 as download_cifar10
    from cifar_tl.data.examples import Data as Data
    from cifar_tl.data.examples import LabeledImages as LabeledImages
    from cifar_tl.data.examples import channel_statistics as channel_statistics
    from cifar_tl.data.examples import select_classes as select_classes
    from cifar_tl.data.examples import split_validation as split_validation
    from cifar_tl.data.examples import stratified_prefix as stratified_prefix
    from cifar_tl.data.pictures.read import read_image as read_image
    from cifar_tl.data.source import load_data as load_data
    from cifar_tl.data.subset import class_subset as class_subset
    from cifar_tl.data.views import make_views as make_views
    from cifar_tl.data.views import shift_randomly as shift_randomly
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
    from cifar_tl.freezing import count_parameters as count_parameters
    from cifar_tl.freezing import freeze as freeze
    from cifar_tl.freezing import transfer_model as transfer_model
    from cifar_tl.freezing import unfreeze as unfreeze
    from cifar_tl.machine import keep_freed_memory as keep_freed_memory
    from cifar_tl.muon import Muon as Muon
    from cifar_tl.network import CifarNet as CifarNet
    from cifar_tl.prediction import Prediction as Prediction
    from cifar_tl.prediction import predict as predict
    from cifar_tl.recipe import ORIGINAL as ORIGINAL
    from cifar_tl.recipe import RECIPES as RECIPES
    from cifar_tl.recipe import TUNED as TUNED
    from cifar_tl.recipe import Recipe as Recipe
    from cifar_tl.training import EpochRecord as EpochRecord
    from cifar_tl.training import fit as fit
    from cifar_tl.training import make_optimizer as make_optimizer
else:

    def __getattr__(name):
        """Imports a public name when it is first used (PEP 562)."""
        import importlib

        modules = _modules()
        if name == "__all__":
            value = sorted(modules)
        elif name in modules:
            value = getattr(importlib.import_module(modules[name]), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__():
        return sorted({*globals(), *_modules()})

    @functools.cache
    def _modules():
        """Finds in the imports above which module has each public name."""
        import ast

        tree = ast.parse(__spec__.loader.get_source(__name__))
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        own = [node for node in imports if node.module.startswith(f"{__name__}.")]
        names = {alias.name: node.module for node in own for alias in node.names}
        return {name: module for name, module in names.items() if not name.startswith("_")}
