"""Features of pictures: what they are, when they are computed, and when they are read."""

import contextlib
import dataclasses
import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from cifar_tl.backbone import Backbone, digest_of
from cifar_tl.checkpoint import load_checkpoint
from cifar_tl.data.examples import Data, LabeledImages, prefix_rows
from cifar_tl.data.pictures.read import read_image, read_images
from cifar_tl.data.source import load_data
from cifar_tl.disk import warn_once
from cifar_tl.errors import ImageError, RunWarning
from cifar_tl.evaluation import extract_features
from cifar_tl.experiment import passes
from cifar_tl.experiment.features import Cache, PictureFeatures, features_of_pictures, logits_of
from cifar_tl.experiment.findings.results import StageResult
from cifar_tl.experiment.frozen import Frozen, pictures_of
from cifar_tl.experiment.passes import ABOUT
from cifar_tl.experiment.run import run_stage
from cifar_tl.frame import Fit, Frame
from cifar_tl.machine import autocast
from cifar_tl.network import CifarNet
from cifar_tl.recipe import Plan, Precision
from tests.experiment.conftest import SMALL
from tests.forked import Command, run_forked
from tests.test_distributed import in_groups

white_is_said = pytest.mark.filterwarnings("ignore:grey images of more than 8 bits")
needs_fork = pytest.mark.skipif(sys.platform == "win32", reason="forks")


PLAIN = dataclasses.replace(SMALL, mirror=False)


class Tiny(nn.Module):
    """A network of somebody else's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 5, stride=4)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.fc = nn.Linear(24, 3)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.fc(self.pool(self.conv(images).relu()).flatten(1))
        return outputs


def tiny(seed: int = 0, fit: Fit = "crop") -> Backbone:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        module = Tiny()
    frame = Frame(40, 44 if fit == "crop" else None, "bilinear", fit)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    return Backbone(module, image_size=40, mean=mean, std=std, frame=frame).eval()


@contextlib.contextmanager
def counted(at: int = 0, act: Callable[[], object] = lambda: None) -> Iterator[list[int]]:
    """Collects the sizes of the batches that go through `Tiny`; acts before one of them."""
    sizes: list[int] = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(module, Tiny) and len(inputs[0]) > 1:  # 1: a check, or the layer table
            sizes.append(len(inputs[0]))
            if len(sizes) == at:
                act()

    handle = register_module_forward_pre_hook(count)
    try:
        yield sizes
    finally:
        handle.remove()


def transfer(data: Data, **values: Any) -> StageResult:
    values = {"output_dir": "runs", "base": tiny(), **values}
    return run_stage("transfer", data, PLAIN, **values)


def interrupt() -> None:
    raise KeyboardInterrupt


# Of classes 5-9: 560 training images in files of 256, 256 and 48; 140 for validation, 30 for test.
PASSES = [*[32] * 17, 16, *[32] * 4, 12, 30]


@pytest.fixture(scope="session")
def whole(drawn_data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never interrupted."""
    output_dir = tmp_path_factory.mktemp("whole")
    transfer(drawn_data, output_dir=output_dir)
    return output_dir / "drawn.npz"


@pytest.fixture
def flowers() -> Path:
    """17 pictures of two classes: of all shapes and depths, and smaller than the network sees."""
    folder, generator = Path("flowers"), np.random.default_rng(0)

    def save(name: str, *shape: int, high: int = 256, kind: type = np.uint8) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse: Any = generator.integers(0, high, (3, 4, *shape[2:])).astype(kind)
        pixels = coarse.repeat(-(-shape[0] // 3), 0).repeat(-(-shape[1] // 4), 1)
        Image.fromarray(pixels[: shape[0], : shape[1]]).save(path)

    for number in range(5):
        save(f"train/daisy/{number}.png", 50 + 9 * number, 70, 3)
        save(f"train/rose/{number}.jpg", 300, 90 + 50 * number, 3)
    save("train/daisy/deep.png", 60, 90, high=4096, kind=np.uint16)
    save("train/rose/deep.png", 90, 60, high=3000, kind=np.uint16)
    save("train/rose/grey.png", 45, 45)
    save("train/rose/small.png", 9, 14, 3)
    for name in ("daisy", "rose"):
        save(f"test/{name}/1.png", 41, 80, 3)
    save("test/rose/small.png", 5, 5)
    return folder


def digests(found: PictureFeatures) -> list[bytes]:
    return [tensor.numpy().tobytes() for tensor in found.tensors]


def features(data: Data, base: Backbone, **values: Any) -> PictureFeatures:
    """Features of all images of the new classes, kept in ``kept`` unless told otherwise."""
    plan_values: dict[str, Any] = {"mirror": False, "precision": "float32"}
    plan_values |= {name: values.pop(name) for name in list(values) if name in plan_values}
    plan: Plan = dataclasses.replace(SMALL.for_stage("transfer", 9999, mirror=False), **plan_values)
    rows, _ = data.train_and_validation_rows(data.new_classes)
    values = {"places": torch.arange(len(rows)), "cache": Cache(Path("kept")), **values}
    frozen = Frozen(base, plan.precision)
    return features_of_pictures(frozen, data, data.new_classes, plan=plan, **values)


def as_files(examples: LabeledImages) -> list[str]:
    """Writes images to files, so that they can be read as pictures are."""
    Path("files").mkdir(exist_ok=True)
    paths = []
    for number, image in enumerate(examples.images):
        paths.append(f"files/{number}.png")
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(paths[-1])
    return paths


def mirrored_and_shifted(images: Tensor, shift: int) -> Tensor:
    """All 18 views, by other means."""
    views = []
    for mirrored in (images, images.flip(-1)):
        padded = nn.functional.pad(mirrored.float(), (shift,) * 4, mode="reflect").byte()
        for down in (0, -shift, shift):
            for right in (0, -shift, shift):
                top, left = shift - down, shift - right
                views.append(padded[:, :, top : top + 40, left : left + 40])
    return torch.stack(views)


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
@white_is_said
def test_features_are_those_of_the_pictures_in_their_order(flowers: Path, fit: Fit) -> None:
    data, base = load_data(flowers), tiny(fit=fit)
    assert data.reading["white"] == {"integers": 4095}
    train = [*data.files["train"], *data.files["validation"], *data.files["test"]]
    images = read_images(train, base.frame).images  # together, so that the same is white
    expected = extract_features(base.forward_features, images)
    parts = expected.split([len(data.files[part]) for part in ("train", "validation", "test")])
    for folder in (None, Path("kept"), Path("kept")):  # computed, computed and kept, read
        found = features(data, base, cache=Cache(folder))
        for tensor, part in zip((found.tensors[0][0], *found.tensors[1:]), parts, strict=True):
            torch.testing.assert_close(tensor, part)
    assert len({tuple(row.tolist()) for row in expected}) == 17  # no two pictures are the same


@white_is_said
def test_logits_are_averaged_with_those_of_mirror_images(flowers: Path) -> None:
    data, base = load_data(flowers), tiny()
    (pictures, *_) = pictures_of(data, range(3))
    paths = [data.files["train"][row] for row in pictures.rows.tolist()]
    images = torch.stack([read_image(path, data.reading["white"], base.frame) for path in paths])
    plain, averaged = (
        logits_of(base, pictures, "float32", mirror_average=each) for each in (False, True)
    )
    mirrored = extract_features(base, images.flip(-1))
    torch.testing.assert_close(averaged, (plain + mirrored) / 2)
    assert not averaged.equal(plain)


def test_chosen_classes_fractions_and_views_take_the_right_rows(drawn: Path) -> None:
    data, base = load_data(drawn, new_classes="2,5,9", base_classes="0,1"), tiny()
    train, validation = data.train_and_validation((2, 5, 9))
    places = prefix_rows(train.labels, 0.3)
    plan = dataclasses.replace(
        SMALL.for_stage("transfer", 9999, mirror=True), view_shift=2, precision="float32"
    )
    chosen = LabeledImages(train.images[places], train.labels[places])
    assert len(places) not in (0, len(train.labels))
    views = mirrored_and_shifted(read_images(as_files(chosen), base.frame).images, 2)
    expected = extract_features(base.forward_features, views.flatten(0, 1)).unflatten(0, (18, -1))
    for _ in range(2):  # computed, then read
        frozen = Frozen(base, "float32")
        found = features_of_pictures(frozen, data, (2, 5, 9), places, plan, Cache(Path("kept")))
        torch.testing.assert_close(found.tensors[0], expected)
        assert found.tensors[1].shape == (len(validation.labels), 24)
    images = read_images(as_files(validation), base.frame).images
    torch.testing.assert_close(found.tensors[1], extract_features(base.forward_features, images))
    test = data.test.images[torch.isin(data.test.labels, torch.tensor((2, 5, 9)))]
    images = read_images(as_files(LabeledImages(test, test)), base.frame).images
    torch.testing.assert_close(found.tensors[2], extract_features(base.forward_features, images))


@white_is_said
def test_without_test_images_there_are_no_features_of_them(flowers: Path) -> None:
    shutil.rmtree(flowers / "test")
    assert features(load_data(flowers), tiny()).tensors[2].shape == (0, 24)
    result = transfer(load_data(flowers))
    assert (result["images_test"], result["test_accuracy"]) == (0, None)


def test_a_library_run_learns_on_features_and_leaves_its_base_as_it_was(
    drawn_data: Data, whole: Path
) -> None:
    base = tiny()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    with counted() as sizes:
        result = transfer(drawn_data, base=base)
    assert sizes == PASSES
    names = kept_files(whole / "features")  # validation images are images of train here, too
    chunks = ["test-1-views-0-00000", *(f"train-1-views-0-{n:05}" for n in range(3))]
    assert names == [f"{name}.pt" for name in (*chunks, "validation-1-views-0-00000")]
    assert result["backbone"] == "Tiny"
    assert result["fit"] == "crop"
    assert result["parameters_trainable"] == (24 + 1) * 128 + (128 + 1) * 10
    assert all(torch.equal(before[name], value) for name, value in base.state_dict().items())
    assert base.num_classes == 0
    for name in ("model.pt", "last.pt"):
        path = Path("Tiny/transfer") / name
        assert (Path("runs/drawn.npz") / path).read_bytes() == (whole / path).read_bytes()
    last = torch.load(whole / "Tiny/transfer/last.pt", weights_only=True)
    trained = {f"linear{n}.{part}" for n in (1, 2) for part in ("weight", "bias")}
    assert set(last["model"]) == trained
    with counted() as sizes:
        again = transfer(drawn_data, base=base)
    assert (again, sizes) == (result, [])


def test_the_stage_base_refuses_a_backbone(drawn_data: Data) -> None:
    with pytest.raises(ValueError, match=r"^only a transfer .* not base$"):
        run_stage("base", drawn_data, SMALL, output_dir="runs", base=tiny())
    assert not Path("runs").exists()


def kept_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*/*.pt"))


@pytest.mark.parametrize("at", [1, 12, 20])
def test_an_interrupted_pass_goes_on_after_the_last_whole_file(
    drawn_data: Data, whole: Path, at: int
) -> None:
    with pytest.raises(KeyboardInterrupt), counted(at, interrupt):
        transfer(drawn_data)
    done = {1: 0, 12: 8, 20: 18}[at]
    check_it_goes_on(drawn_data, whole, done)


@needs_fork
def test_a_killed_pass_goes_on_after_the_last_whole_file(
    zygote: subprocess.Popen[str], drawn: Path, drawn_data: Data, whole: Path
) -> None:
    program = f"""
import os, signal
from tests.experiment.test_features import *
with counted(12, lambda: os.kill(os.getpid(), signal.SIGKILL)):
    transfer(load_data({str(drawn)!r}))
"""
    assert Command(zygote, [], program=program).exit_code() == -signal.SIGKILL
    check_it_goes_on(drawn_data, whole, 8)


def check_it_goes_on(data: Data, whole: Path, done: int) -> None:
    kept = Path("runs/drawn.npz/features")
    assert kept_files(kept) == [f"train-1-views-0-{n:05}.pt" for n in range(-(-done // 8))]
    with counted() as sizes:
        transfer(data)
    assert sizes == PASSES[done:]
    assert kept_files(kept) == kept_files(whole / "features")
    for path in (whole / "features").glob("*/*.pt"):
        own, other = (
            torch.load(folder / path.relative_to(whole / "features"), weights_only=True)
            for folder in (whole / "features", kept)
        )
        assert torch.equal(own["features"], other["features"])
    for name in ("model.pt", "last.pt"):
        path = Path("Tiny/transfer") / name
        assert (Path("runs/drawn.npz") / path).read_bytes() == (whole / path).read_bytes()


def test_other_seeds_and_fractions_read_what_is_kept(drawn_data: Data, whole: Path) -> None:
    shutil.copytree(whole / "features", "runs/drawn.npz/features")
    lines: list[str] = []
    with counted() as sizes:
        for seed, fraction in ((0, 1.0), (1, 1.0), (0, 0.1), (0, 0.8)):
            transfer(
                drawn_data, seed=seed, seed_folder=True, train_fraction=fraction, log=lines.append
            )
    assert sizes == []
    said = [line for line in lines if "frozen features" in line]
    assert len(said) == 4
    pattern = (
        r"transfer: frozen features of all these images in \d+\.\d\d s, kept in "
        r"runs/drawn.npz/features \(0\.1 MB in all\); computing what was there before took "
        r"\d+\.\d s"
    )
    assert re.fullmatch(pattern, said[0])


def test_a_fraction_computes_the_files_that_it_needs(drawn_data: Data) -> None:
    with counted() as sizes:
        transfer(drawn_data, train_fraction=0.1)
    assert sizes == [*PASSES[:8], *PASSES[18:]]
    with counted() as sizes:
        transfer(drawn_data)
    assert sizes == PASSES[8:18]


def test_features_need_not_be_kept(drawn_data: Data, whole: Path) -> None:
    with counted() as sizes:
        transfer(drawn_data, keep_features=False)
    assert sizes == PASSES
    assert [path.name for path in Path("runs/drawn.npz").iterdir()] == ["Tiny"]
    path = "Tiny/transfer/model.pt"
    assert (Path("runs/drawn.npz") / path).read_bytes() == (whole / path).read_bytes()


@white_is_said
def test_decoded_pictures_serve_other_networks_and_passes(flowers: Path) -> None:
    data = load_data(flowers)
    expected = [digests(features(data, tiny(seed), cache=Cache())) for seed in (0, 1)]
    cache = Cache(Path("kept"), Path("kept"))
    assert digests(features(data, tiny(0), cache=cache)) == expected[0]
    shutil.rmtree(flowers)
    assert digests(features(data, tiny(1), cache=cache)) == expected[1]
    with pytest.raises(ImageError, match="there is no file"):
        features(data, tiny(1, fit="squash"), cache=cache)


@white_is_said
def test_a_disk_without_room_for_decoded_pictures_stops_nothing(flowers: Path) -> None:
    data, expected = load_data(flowers), digests(features(load_data(flowers), tiny()))
    Path("full").write_bytes(b"a file")
    with pytest.warns(RunWarning, match=r"^decoded pictures are not kept in full \(.*\): the next"):
        found = features(data, tiny(), cache=Cache(None, Path("full")))
    assert digests(found) == expected


@white_is_said
def test_decoded_pictures_leave_the_disk_to_features(
    flowers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, cache = load_data(flowers), Cache(Path("kept"), Path("kept"))
    expected = digests(features(data, tiny(), cache=Cache()))
    monkeypatch.setattr(passes, "SPARE", 1e18)
    warn_once.cache_clear()
    with pytest.warns(RunWarning, match=r"not kept in kept \(the disk is almost full\): the next"):
        assert digests(features(data, tiny(), cache=cache)) == expected
    found = list(Path("kept").glob("*/*.pt"))
    assert len(found) == 3
    assert not any("frame" in about(path) for path in found)


@white_is_said
def test_decoded_pictures_count_the_time_of_decoding(flowers: Path) -> None:
    data, cache = load_data(flowers), Cache(Path("kept"), Path("kept"))
    features(data, tiny(0), cache=cache)
    decoded = [path for path in Path("kept").glob("*/*.pt") if "frame" in about(path)]
    seconds = sum(load_checkpoint(path)["seconds"] for path in decoded)
    assert seconds > 0
    assert features(data, tiny(1), cache=cache).cost.seconds_before == pytest.approx(seconds)
    of_both = [path for path in Path("kept").glob("*/*.pt") if "frame" not in about(path)]
    in_all = sum(load_checkpoint(path)["seconds"] for path in of_both)
    assert in_all > 2 * seconds
    before = [features(data, tiny(n), cache=cache).cost.seconds_before for n in (0, 1)]
    assert sum(before) == pytest.approx(in_all)


def about(path: Path) -> str:
    return path.with_name(ABOUT).read_text()


@white_is_said
def test_a_damaged_file_of_decoded_pictures_is_made_anew(flowers: Path) -> None:
    data, cache = load_data(flowers), Cache(Path("kept"), Path("kept"))
    expected = digests(features(data, tiny(1), cache=Cache()))
    features(data, tiny(0), cache=cache)
    path = next(p for p in Path("kept").glob("*/train-1*.pt") if "frame" in about(p))
    before = load_checkpoint(path)["features"]
    damage(path, "damaged")
    with pytest.warns(RunWarning, match="is damaged or foreign: it is made anew"):
        assert digests(features(data, tiny(1), cache=cache)) == expected
    assert torch.equal(load_checkpoint(path)["features"], before)


def test_pictures_are_kept_when_all_of_their_file_were_decoded(tmp_path: Path) -> None:
    for number in range(304):  # of 300: two files of features, two of decoded pictures
        part = "train" if number < 300 else "val"
        path = tmp_path / "many" / part / "ab"[number % 2] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 3), (number % 256, number // 256, 0)).save(path)
    data, cache = load_data(tmp_path / "many"), Cache(Path("kept"), Path("kept"))

    def decoded() -> list[str]:
        found = [path for path in Path("kept").glob("*/train*.pt") if "frame" in about(path)]
        return sorted(path.name for path in found)

    expected = features(data, tiny(), cache=Cache()).tensors[0]
    assert features(data, tiny(1), cache=cache, places=torch.arange(40)).cost.seconds_before == 0
    assert decoded() == ["train-1-views-0-00000.pt"]
    for number in range(256):
        (tmp_path / "many/train" / "ab"[number % 2] / f"{number:03}.png").unlink()
    assert torch.equal(features(data, tiny(), cache=cache).tensors[0], expected)
    assert decoded() == ["train-1-views-0-00000.pt", "train-1-views-0-00001.pt"]


def damage(path: Path, kind: str) -> None:
    content = path.read_bytes()
    if kind == "damaged":
        path.write_bytes(content[:500] + bytes([content[500] ^ 1]) + content[501:])
    elif kind == "truncated":
        path.write_bytes(content[:-1])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "another model":
        shutil.copy(path.parents[2] / "Tiny/transfer/model.pt", path)
    else:  # features of as many other images
        shutil.copy(path.with_name("train-1-views-0-00000.pt"), path)


@pytest.mark.parametrize("kind", ["damaged", "truncated", "empty", "another model", "moved"])
def test_a_file_that_is_not_what_it_should_be_is_named_and_made_anew(
    drawn_data: Data, whole: Path, kind: str
) -> None:
    shutil.copytree(whole, "runs/drawn.npz")
    (path,) = Path("runs/drawn.npz/features").glob("*/train-1-views-0-00001.pt")
    before = torch.load(path, weights_only=True)["features"]
    damage(path, kind)
    with pytest.warns(RunWarning) as warned, counted() as sizes:
        transfer(drawn_data, seed=1, seed_folder=True)
    assert [str(w.message) for w in warned] == [f"{path} is damaged or foreign: it is made anew"]
    assert sizes == PASSES[8:16]
    assert torch.equal(torch.load(path, weights_only=True)["features"], before)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        transfer(drawn_data, seed=2, seed_folder=True)


@white_is_said
def test_what_features_depend_on_makes_other_ones(flowers: Path) -> None:
    def keys() -> int:
        return len(list(Path("kept").iterdir()))

    features(load_data(flowers), tiny())
    features(load_data(flowers), tiny())  # the same, of another object
    assert keys() == 1
    (about,) = Path("kept").glob(f"*/{ABOUT}")
    assert '"network": "Tiny"' in about.read_text()
    precisions: list[Precision] = ["float32", "bf16"]
    for number, (seed, fit, precision) in enumerate(
        [(1, "crop", precisions[0]), (0, "pad", precisions[0]), (0, "crop", precisions[1])], 2
    ):
        base = tiny(seed, fit)  # type: ignore[arg-type]
        found = features(load_data(flowers), base, precision=precision)
        assert keys() == number
        paths = load_data(flowers).files["validation"]
        images = read_images(paths, base.frame, white={"integers": 4095}).images
        with autocast(precision, torch.device("cpu")):
            expected = extract_features(base.forward_features, images).float()
        torch.testing.assert_close(found.tensors[1], expected)
    with Image.open(flowers / "train/rose/grey.png") as image:
        image.point(lambda value: 255 - value).save(flowers / "train/rose/grey.png")
    features(load_data(flowers), tiny())
    assert keys() == 5
    mirrored = features(load_data(flowers), tiny(), mirror=True)  # in other files
    assert mirrored.tensors[0].shape[0] == 2
    assert keys() == 5


def test_layers_without_weights_decide_features_too() -> None:
    other = tiny()
    assert digest_of(other) == digest_of(tiny())
    other.features.pool = nn.AdaptiveMaxPool2d(2)
    assert digest_of(other) != digest_of(tiny())


@white_is_said
def test_a_picture_that_vanishes_is_named(flowers: Path) -> None:
    data = load_data(flowers)
    path = data.files["train"][4]
    Path(path).unlink()
    with pytest.raises(ImageError) as error:
        transfer(data)
    assert str(error.value) == f"there is no file {path}: check the path"


@needs_fork
def test_a_group_shares_the_work_and_finds_what_one_process_finds(
    zygote: subprocess.Popen[str], drawn: Path, drawn_data: Data
) -> None:
    alone = features(drawn_data, tiny(), cache=Cache())
    program = f"""
import hashlib, time
from tests.experiment.test_features import *

def shared(group):
    data, results = load_data({str(drawn)!r}), []
    size, rank = group.size(), group.rank()
    time.sleep(0.3 * (rank == 1))  # the others could have made files before it looks
    for folder in ("one-disk", f"disk{{rank}}", f"disk{{rank}}", f"disk{{1 - rank}}", None):
        folder = folder and Path(f"{{size}}-{{folder}}")
        with counted() as sizes:
            found = features(data, tiny(), cache=Cache(folder), group=group)
        digest = hashlib.sha256(b"".join(digests(found))).hexdigest()
        results.append([digest, sizes, len(kept_files(folder)) if folder else 0])
        distributed.barrier()
    return results
"""
    expected = hashlib.sha256(b"".join(digests(alone))).hexdigest()
    found = in_groups(zygote, program, "shared", (2, 3))
    for size, of_ranks in found.items():
        assert {call[0] for of_rank in of_ranks for call in of_rank} == {expected}
        for number in range(5):
            sizes = sorted(n for of_rank in of_ranks for n in of_rank[number][1])
            made_before = number == 2 or (number == 3 and size == 2)
            if number != 3 or size == 2:
                assert sizes == ([] if made_before else sorted(PASSES))
        assert len(kept_files(Path(f"{size}-one-disk"))) == 5
    first, second = found[2]
    assert first[0][1] == [*PASSES[:8], *PASSES[16:18], *PASSES[18:]]  # every other file
    assert second[0][1] == PASSES[8:16]
    assert (first[1][2], second[1][2]) == (4, 1)  # each machine has its own files


@needs_fork
def test_two_programs_at_once_compute_features_once(
    zygote: subprocess.Popen[str], drawn: Path, whole: Path
) -> None:
    program = f"""
import json, os
from tests.experiment.test_features import *

pids = []
for seed in range(2):
    pids.append(os.fork())
    if pids[-1] == 0:
        with counted() as sizes:
            transfer(load_data({str(drawn)!r}), seed=seed, seed_folder=True)
        Path(f"{{seed}}.json").write_text(json.dumps(sizes))
        os._exit(0)
assert not any(os.waitpid(pid, 0)[1] for pid in pids)
"""
    run_forked(zygote, program)
    sizes = [n for seed in range(2) for n in json.loads(Path(f"{seed}.json").read_text())]
    assert sorted(sizes) == sorted(PASSES)
    names = kept_files(Path("runs/drawn.npz/features"))
    assert names == kept_files(whole / "features")


def test_kept_features_count_in_every_run_with_the_time_that_they_took(drawn_data: Data) -> None:
    transfer(drawn_data, seed_folder=True)
    files = Path("runs").glob("*/features/*/*.pt")
    computed = sum(load_checkpoint(path)["seconds"] for path in files)
    assert computed > 0
    read = transfer(drawn_data, seed=1, seed_folder=True)
    assert read["seconds_features"] > computed
    assert read["seconds_total"] > read["seconds_features"]


def test_a_base_is_a_file_a_name_or_a_backbone(drawn_data: Data) -> None:
    wrong: Any = CifarNet(5)
    with pytest.raises(TypeError, match="base is a file, a name or a Backbone"):
        transfer(drawn_data, base=wrong)
    assert not Path("runs").exists()
