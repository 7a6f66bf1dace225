"""The library in other people's frameworks: the real packages, of requirements-ecosystem.txt."""

import copy
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from cifar_tl.data.shapes import draw_shapes
from cifar_tl.evaluation import evaluate, extract_features
from cifar_tl.freezing import freeze, transfer_model
from cifar_tl.network import CifarNet
from cifar_tl.recipe import ORIGINAL
from cifar_tl.training import fit
from tests.forked import PATIENCE, ROOT

pytestmark = pytest.mark.filterwarnings("default")  # of the frameworks themselves

# Others compute in other batches, with other last bits: one of 200 images may be decided otherwise.
ONE_IMAGE = 1.5 / 200


@pytest.fixture(scope="module")
def arrays() -> tuple[Tensor, Tensor]:
    images, labels, _, _ = draw_shapes(200, 0)
    return torch.from_numpy(images), torch.from_numpy(labels)


@pytest.fixture
def model() -> CifarNet:
    torch.manual_seed(0)
    return CifarNet(10)


@pytest.fixture
def loader(arrays: tuple[Tensor, Tensor]) -> Any:
    return DataLoader(TensorDataset(*arrays), batch_size=50)


def frozen_state(model: nn.Module) -> list[Tensor]:
    return [value.clone() for name, value in model.state_dict().items() if "features" in name]


def test_lightning_trains_a_transfer_model_and_unfreezes_it(
    model: CifarNet, loader: Any, tmp_path: Path
) -> None:
    lightning = pytest.importorskip("lightning")
    from lightning.pytorch.callbacks import BaseFinetuning

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.network = transfer_model(model)

        def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            images, labels = batch
            modes.append(self.network.features.training)
            return functional.cross_entropy(self.network(images), labels)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            trainable = filter(lambda p: p.requires_grad, self.network.parameters())
            return torch.optim.SGD(trainable, 0.1)

    class Unfreeze(BaseFinetuning):  # type: ignore[misc]
        def freeze_before_training(self, module: Any) -> None:
            self.freeze(module.network.features)

        def finetune_function(self, module: Any, epoch: int, optimizer: Any) -> None:
            if epoch == 1:
                self.unfreeze_and_add_param_group(module.network.features, optimizer)
                module.network.train()  # Lightning calls it nowhere

    modes: list[bool] = []
    module = Module()
    before = frozen_state(module.network)
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    quiet |= {"enable_progress_bar": False, "enable_model_summary": False}
    quiet["default_root_dir"] = tmp_path
    lightning.Trainer(max_epochs=1, **quiet).fit(module, loader)
    assert modes == [False] * 4
    assert all(map(torch.equal, before, frozen_state(module.network)))
    modes.clear()
    lightning.Trainer(max_epochs=2, callbacks=[Unfreeze()], **quiet).fit(module, loader)
    assert modes == [False] * 4 + [True] * 4
    assert not any(map(torch.equal, before, frozen_state(module.network)))


def test_skorch_trains_and_clones_it(arrays: tuple[Tensor, Tensor]) -> None:
    skorch = pytest.importorskip("skorch")
    net = skorch.NeuralNetClassifier(
        CifarNet,
        module__num_classes=10,
        criterion=nn.CrossEntropyLoss,
        max_epochs=2,
        lr=0.1,
        verbose=0,
    )
    from sklearn.base import clone

    images, labels = arrays[0].numpy(), arrays[1].numpy()
    net = clone(net).fit(images, labels)
    assert net.predict(images).shape == (200,)
    score = evaluate(net.module_, *arrays).accuracy
    assert net.score(images, labels) == pytest.approx(score, abs=ONE_IMAGE)


def test_ignite_trains_and_evaluates_it(
    model: CifarNet, loader: Any, arrays: tuple[Tensor, Tensor]
) -> None:
    pytest.importorskip("ignite")
    from ignite.engine import create_supervised_evaluator, create_supervised_trainer
    from ignite.metrics import Accuracy

    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    create_supervised_trainer(model, optimizer, nn.CrossEntropyLoss()).run(loader, max_epochs=2)
    judge = create_supervised_evaluator(model, metrics={"accuracy": Accuracy()})
    expected = evaluate(model, *arrays).accuracy
    assert judge.run(loader).metrics["accuracy"] == pytest.approx(expected, abs=ONE_IMAGE)


def test_accelerate_prepares_it_and_makes_it_without_memory(model: CifarNet, loader: Any) -> None:
    accelerate = pytest.importorskip("accelerate")
    with accelerate.init_empty_weights():
        empty = CifarNet(10)
    assert {parameter.device.type for parameter in empty.parameters()} == {"meta"}
    accelerator = accelerate.Accelerator(cpu=True)
    transfer = transfer_model(model)
    before = frozen_state(transfer)
    optimizer = torch.optim.SGD(transfer.classifier.parameters(), 0.1)
    prepared, optimizer, loader = accelerator.prepare(transfer, optimizer, loader)
    prepared.train()
    for images, labels in loader:
        optimizer.zero_grad()
        accelerator.backward(functional.cross_entropy(prepared(images), labels))
        optimizer.step()
    assert all(map(torch.equal, before, frozen_state(accelerator.unwrap_model(prepared))))


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "vit_tiny_patch16_224"])
def test_timm_models_become_transfer_models(name: str) -> None:
    timm = pytest.importorskip("timm")
    size = {"img_size": 32} if name.startswith("vit") else {}
    base = timm.create_model(name, pretrained=False, num_classes=3, **size)
    model = transfer_model(base, 7).train()
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 7)
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    assert trainable == {id(p) for p in model.get_classifier().parameters()}
    features = extract_features(model.forward_features, torch.rand(4, 3, 32, 32))
    assert features.shape[0] == 4


@pytest.mark.parametrize(
    ("name", "classifier"), [("resnet18", "fc"), ("mobilenet_v3_small", "classifier.3")]
)
def test_torchvision_models_become_transfer_models(name: str, classifier: str) -> None:
    from torchvision.models import get_model

    model = transfer_model(get_model(name, weights=None), 7, classifier=classifier).train()
    before = copy.deepcopy(model.state_dict())
    images, labels = torch.rand(4, 3, 64, 64), torch.tensor([0, 1, 2, 6])
    fit(model, images[None], labels, None, None, ORIGINAL)
    moved = [
        key for key, value in model.state_dict().items() if not torch.equal(value, before[key])
    ]
    assert moved == [f"{classifier}.weight", f"{classifier}.bias"]


def test_captum_attributes_the_same_for_bytes_and_floats(
    model: CifarNet, arrays: tuple[Tensor, Tensor]
) -> None:
    pytest.importorskip("captum")
    from captum.attr import IntegratedGradients, LayerGradCam

    images = arrays[0][:4] / 255
    model.eval()
    attributions, delta = IntegratedGradients(model).attribute(
        images, target=1, n_steps=100, return_convergence_delta=True
    )
    assert attributions.shape == images.shape
    assert delta.abs().max() < 0.05
    with pytest.raises(ValueError, match="floating-point images go from 0 to 1"):
        IntegratedGradients(model).attribute(arrays[0][:4].float(), target=1)
    found = LayerGradCam(model, model.features.conv3).attribute(images, target=1)
    activation = model.features[:6](model.preprocess(images)).detach().requires_grad_()
    model.forward_head(model.features[6:](activation))[:, 1].sum().backward()
    assert activation.grad is not None
    weights = activation.grad.mean((2, 3), keepdim=True)
    torch.testing.assert_close(found, (weights * activation).sum(1, keepdim=True))


def test_torchmetrics_agree(model: CifarNet, arrays: tuple[Tensor, Tensor]) -> None:
    pytest.importorskip("torchmetrics")
    from torchmetrics.functional import accuracy

    images, labels = arrays
    with torch.no_grad():
        logits = model.eval()(images)
    theirs = accuracy(logits, labels, task="multiclass", num_classes=10, average="micro")
    assert evaluate(model, images, labels).accuracy == pytest.approx(float(theirs), abs=ONE_IMAGE)


def test_safetensors_keep_the_weights(model: CifarNet, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    from safetensors.torch import load_model, save_model

    save_model(model, str(tmp_path / "weights.safetensors"))
    other = CifarNet(10)
    load_model(other, str(tmp_path / "weights.safetensors"))
    assert all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))


def test_onnx_of_a_model_in_training_mode(model: CifarNet, arrays: tuple[Tensor, Tensor]) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    import onnxruntime

    images = arrays[0][:2]
    program = torch.onnx.export(
        transfer_model(model).train(), (images,), dynamo=True, verbose=False
    )
    assert program is not None
    exported = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(exported)
    (name,) = (given.name for given in session.get_inputs())
    assert session.run(None, {name: images.numpy()})[0].shape == (2, 10)


@pytest.mark.parametrize("training", [False, True])
def test_inductor_compiles_it(
    model: CifarNet, arrays: tuple[Tensor, Tensor], training: bool
) -> None:
    model.train(training)
    compiled = torch.compile(model, fullgraph=True)
    logits = compiled(arrays[0][:8])
    logits.sum().backward()
    if not training:
        torch.testing.assert_close(logits, model(arrays[0][:8]), rtol=1e-3, atol=1e-4)


def test_a_quantised_head_can_be_judged(model: CifarNet, arrays: tuple[Tensor, Tensor]) -> None:
    images, labels = arrays
    features = extract_features(model.forward_features, images)
    head = torch.ao.quantization.quantize_dynamic(model.classifier.eval(), {nn.Linear})
    quantised = evaluate(head, features, labels)
    assert quantised.loss == pytest.approx(evaluate(model, images, labels).loss, rel=0.05)


def test_pruning_keeps_working(model: CifarNet, arrays: tuple[Tensor, Tensor]) -> None:
    from torch.nn.utils import prune

    prune.l1_unstructured(model.classifier.linear1, "weight", amount=0.5)
    fit(model, arrays[0][None], arrays[1], None, None, ORIGINAL)
    weight: Any = model.get_submodule("classifier.linear1").weight
    assert (weight == 0).float().mean() == pytest.approx(0.5, abs=0.01)


DDP = """
import os, sys, torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from cifar_tl import CifarNet, transfer_model
distributed.init_process_group("gloo", init_method=sys.argv[1], rank=int(sys.argv[2]), world_size=2)
torch.manual_seed(0)
model = DistributedDataParallel(transfer_model(CifarNet(5)).train())
assert not model.module.features.training
images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)
optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
model(images[4 * int(sys.argv[2]):][:4]).sum().backward()
optimizer.step()
weight = model.module.get_parameter("classifier.linear1.weight").detach()
both = [torch.zeros_like(weight) for _ in range(2)]
distributed.all_gather(both, weight.contiguous())
assert torch.equal(*both)
distributed.barrier()
os._exit(0)  # with torch 2.14 and DistributedDataParallel, one exit of ten is an abort
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs gloo over a file")
def test_ddp_keeps_processes_equal(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", DDP, f"file://{tmp_path}/meeting", str(rank)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for rank in range(2)
    ]
    assert [process.wait(PATIENCE) for process in processes] == [0, 0]


def test_a_frozen_backbone_survives_a_copy_and_a_pickle(tmp_path: Path) -> None:
    backbone = freeze(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
    torch.save(backbone, tmp_path / "backbone.pt")
    back = torch.load(tmp_path / "backbone.pt", weights_only=False)
    assert not any(module.training for module in back.train().modules())


def test_tensorboard_logs_every_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of docs/ecosystem.md."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "ecosystem.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    exec(example, {"__name__": "__main__"})
    events = accumulator.EventAccumulator("logs").Reload()
    assert set(events.Tags()["scalars"]) == {
        f"{part}/{value}" for part in ("train", "val") for value in ("loss", "accuracy")
    }
    assert [event.step for event in events.Scalars("val/loss")] == [1, 2, 3]
