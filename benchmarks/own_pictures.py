"""Times this project against its peers on somebody's pictures, from the command to the model.

    pip install -r requirements.txt -r benchmarks/requirements.txt
    python benchmarks/own_pictures.py FOLDER timm/tf_efficientnet_lite0 weights.pth

FOLDER has train/CLASS/* and test/CLASS/*. All peers get the same network of timm with the same
weights, the same split into training and validation pictures, and as many threads. Each is a
process of its own, and they take turns:

- cifar_tl: ``train.py --stage transfer``, and then ``--stage finetune``.
- fastai: ``vision_learner(...)``, then ``fine_tune(4)``: one epoch of a new head, four of all.
- timm: the whole network, four epochs with timm's training transforms and AdamW.
- the plain loop: a new last layer on the frozen network, which runs in each of ten epochs.

fastai and timm run as their documentation shows them first. Nobody has tuned them. Seconds and
memory are those of the process. For Linux and macOS.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

Job = tuple[Path, str, str, int]  # the pictures, timm's name, the file of weights, the seed
BATCH_SIZE, PLAIN_EPOCHS, ALL_EPOCHS = 32, 10, 4


def link_split(folder: Path, to: Path) -> None:
    """Makes a folder of links with ``train``, ``val`` and ``test``, split as this project does."""
    from cifar_tl.data.source import load_data

    data = load_data(folder)
    names = {"train": "train", "validation": "val", "test": "test"}
    for part, name in names.items():
        for file in data.files[part]:
            link = to / name / Path(file).parent.name / Path(file).name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(Path(file).resolve())


def timm_network(job: Job, num_classes: int) -> Any:
    """Makes the network with its weights and a new last layer."""
    import timm
    import torch

    _, name, weights, seed = job
    torch.manual_seed(seed)
    network = timm.create_model(name, num_classes=num_classes)
    state = torch.load(weights, weights_only=True)
    last = network.pretrained_cfg["classifier"]
    kept = {key: value for key, value in state.items() if not key.startswith(f"{last}.")}
    missing, unexpected = network.load_state_dict(kept, strict=False)
    assert not unexpected
    assert all(key.startswith(f"{last}.") for key in missing)
    return network


def loaders(job: Job, network: Any, *, augmented: bool) -> dict[str, Any]:
    """Makes the usual loaders, with timm's transforms, as its documentation shows them."""
    import timm
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    config = timm.data.resolve_model_data_config(network)
    made = {}
    for part in ("train", "val", "test"):
        training = augmented and part == "train"
        transform = timm.data.create_transform(**config, is_training=training)
        dataset = ImageFolder(str(job[0] / part), transform)
        made[part] = DataLoader(dataset, BATCH_SIZE, shuffle=part == "train", num_workers=2)
    return made


def accuracies(network: Any, parts: dict[str, Any]) -> dict[str, float]:
    import torch

    network.eval()
    found = {}
    with torch.no_grad():
        for part in ("val", "test"):
            right = total = 0
            for images, labels in parts[part]:
                right += int((network(images).argmax(1) == labels).sum())
                total += len(labels)
            found[part] = right / total
    return found


def num_classes_of(job: Job) -> int:
    return sum(path.is_dir() for path in (job[0] / "train").iterdir())


def timm_whole(job: Job) -> dict[str, float]:
    import torch

    network = timm_network(job, num_classes_of(job))
    parts = loaders(job, network, augmented=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-4, weight_decay=0.05)
    steps = ALL_EPOCHS * len(parts["train"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-4, total_steps=steps)
    for _ in range(ALL_EPOCHS):
        network.train()
        for images, labels in parts["train"]:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(images), labels).backward()
            optimizer.step()
            schedule.step()
    return accuracies(network, parts)


def plain_loop(job: Job) -> dict[str, float]:
    import torch

    network = timm_network(job, num_classes_of(job))
    parts = loaders(job, network, augmented=False)
    head = network.get_classifier()
    network.requires_grad_(False)
    head.requires_grad_(True)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-3)
    network.eval()  # frozen, with its batch norms
    for _ in range(PLAIN_EPOCHS):
        for images, labels in parts["train"]:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(images), labels).backward()
            optimizer.step()
    return accuracies(network, parts)


def fastai(job: Job) -> dict[str, float]:
    import timm
    import torch
    from fastai.vision.all import (
        ImageDataLoaders,
        Normalize,
        Resize,
        accuracy,
        get_image_files,
        set_seed,
        vision_learner,
    )

    folder, name, weights, seed = job
    set_seed(seed, reproducible=True)
    config = timm.data.resolve_model_data_config(timm.create_model(name))
    normalize = Normalize.from_stats(config["mean"], config["std"])
    size = config["input_size"][1]
    dls = ImageDataLoaders.from_folder(
        folder, train="train", valid="val", item_tfms=Resize(size), batch_tfms=[normalize]
    )
    learner = vision_learner(dls, name, pretrained=False, normalize=False, metrics=accuracy)
    body = learner.model[0].model
    state = torch.load(weights, weights_only=True)
    missing, _ = body.load_state_dict(state, strict=False)
    assert not missing
    learner.fine_tune(4)
    val = float(learner.validate()[1])
    test = dls.test_dl(get_image_files(folder / "test"), with_labels=True)
    return {"val": val, "test": float(learner.validate(dl=test)[1])}


def cifar_tl(job: Job, stages: tuple[str, ...]) -> dict[str, float]:
    """Runs the command as a person types it, in this process."""
    from cifar_tl.__main__ import main

    folder, name, weights, seed = job
    with tempfile.TemporaryDirectory() as output_dir:
        words = ["train", "--data", str(folder), "--base", f"timm/{name}", "--weights", weights]
        words += ["--output-dir", output_dir, "--seed", str(seed), "--quiet"]
        for stage in stages:
            assert main([*words, "--stage", stage]) == 0
        (path,) = Path(output_dir).glob(f"*/*/{stages[-1]}/result.json")
        result = json.loads(path.read_text())
    return {"val": result["val_accuracy"], "test": result["test_accuracy"]}


PEERS: dict[str, Callable[[Job], dict[str, float]]] = {
    "cifar_tl, transfer": lambda job: cifar_tl(job, ("transfer",)),
    "cifar_tl, transfer and finetune": lambda job: cifar_tl(job, ("transfer", "finetune")),
    "fastai, fine_tune(4)": fastai,
    "timm, whole network, 4 epochs": timm_whole,
    "plain loop, frozen, 10 epochs": plain_loop,
}


def measure(peer: str, job: Job) -> dict[str, float]:
    """Runs a peer in a process of its own, and measures that."""
    start = time.perf_counter()
    words = [sys.executable, __file__, *map(str, job[:3]), "--seed", str(job[3]), "--peer", peer]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if os.waitstatus_to_exitcode(status) != 0:
        sys.exit(f"{peer} failed: run it with --peer to see why")
    found: dict[str, float] = json.loads(output.splitlines()[-1])
    memory = usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3 / 1.024)
    return {**found, "seconds": seconds, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("base", help="timm/NAME")
    parser.add_argument("weights")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peer", choices=PEERS, help="run this one alone, in this process")
    options = parser.parse_args()
    name, weights = options.base.removeprefix("timm/"), str(Path(options.weights).resolve())
    if options.peer:
        job = (options.folder.resolve(), name, weights, options.seed)
        print(json.dumps(PEERS[options.peer](job)))
        return
    measured: dict[str, list[dict[str, float]]] = {peer: [] for peer in PEERS}
    with tempfile.TemporaryDirectory() as links:
        link_split(options.folder, Path(links))
        for seed in range(options.seed, options.seed + options.seeds):
            for peer, found in measured.items():
                found.append(measure(peer, (Path(links), name, weights, seed)))
                print(peer, found[-1], file=sys.stderr, flush=True)
    print("| | seconds | validation | test | MB |\n|---|---|---|---|---|")
    for peer, found in measured.items():
        seconds, val, test, memory = (
            statistics.median(each[key] for each in found)
            for key in ("seconds", "val", "test", "memory")
        )
        print(f"| {peer} | {seconds:.0f} | {val:.1%} | {test:.1%} | {memory:.0f} |")


if __name__ == "__main__":
    main()
