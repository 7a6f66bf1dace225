import errno
import importlib.util
import os
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from cifar_tl.data.pictures.find import (
    FORMATS,
    HEIF_PACKAGE,
    HEIF_SUFFIXES,
    find_classes,
    find_images,
    list_image_files,
    suffixes,
)
from cifar_tl.data.pictures.read import read_images
from cifar_tl.data.source import load_data
from cifar_tl.errors import DataError, DataWarning, ImageError
from tests.data.test_class_folders import COLOURS, add_image


def test_formats_have_every_suffix_that_pillow_registers() -> None:
    Image.init()
    registered: dict[str, set[str]] = {}
    for suffix, name in Image.registered_extensions().items():
        registered.setdefault(name, set()).add(suffix)
    registered["JPEG"] |= registered["MPO"]
    for name, listed in FORMATS.items():
        assert set(listed) >= registered.get(name, set()), name  # an older Pillow has fewer
    if {"AVIF", "MPO"} <= registered.keys():
        assert {name: set(listed) for name, listed in FORMATS.items()} == {
            name: registered[name] for name in FORMATS
        }


def test_what_belongs_to_the_system_is_no_image_of_the_user(folder: Path) -> None:
    before, listed = find_classes(folder), list_image_files([folder])
    for path in (
        "ash/.ipynb_checkpoints/000-checkpoint.png",
        "ash/deep/.Trash-1000/files/a.png",
        "ash/@eaDir/PHOTO/x.jpg",
        "ash/__MACOSX/a.png",
        "ash/deep/$RECYCLE.BIN/a.png",
        "ash/System Volume Information/a.png",
        "ash/._00.png",
        "__MACOSX/ash/a.png",
        ".Trash-1000/a.png",
    ):
        add_image(folder / "train" / path, "red")
    (folder / "train/ash/Thumbs.db").touch()
    assert find_classes(folder) == before
    assert list_image_files([folder]) == listed


def test_every_listed_format_is_found_and_read(tmp_path: Path) -> None:
    for suffix in (".jfif", ".jpe", ".JPG", ".apng", ".PNG", ".webp", ".bmp", ".gif", ".pnm"):
        add_image(tmp_path / f"a{suffix}", "red")
    if ".avif" in Image.registered_extensions():
        add_image(tmp_path / "a.avif", "red")
    found = find_images(tmp_path)
    assert len(found.images) == len(list(tmp_path.iterdir()))
    assert found.others == []
    images = read_images(found.images).images
    assert images[:, 0].min() > 240
    assert images[:, 1:].max() < 15


def test_what_is_left_out_is_counted_by_suffix_with_what_to_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr("cifar_tl.data.pictures.find.find_spec", lambda _: None)
    for name in ("a.heic", "b.HEIC", "c.svg", "raw"):
        (folder / "train/ash" / name).write_bytes(b"content")
    expected = (
        f"{folder}: not used: 4 files (2 .heic, 1 .svg, 1 without suffix); pip install "
        "pillow-heif reads .heic; convert pictures of other formats to PNG or JPEG"
    )
    with pytest.warns(DataWarning) as warned:
        data = load_data(folder)
    assert [str(warning.message) for warning in warned] == [expected]
    assert data.notes == (expected,)
    assert len(data.train.labels) == 32
    files, notes = list_image_files([folder / "train/ash"])
    assert (len(files), notes) == (25, [expected.replace(str(folder), f"{folder / 'train/ash'}")])


def test_heic_is_read_where_its_package_is(tmp_path: Path) -> None:
    heif = pytest.importorskip(HEIF_PACKAGE)
    image = Image.new("RGB", (64, 48), "red")
    image.paste("blue", (0, 24, 64, 48))  # below
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    heif.from_pillow(image).save(tmp_path / "a.heic")
    heif.from_pillow(image).save(tmp_path / "b.HEIF", exif=exif.tobytes())
    found = find_images(tmp_path)
    assert [Path(path).name for path in found.images] == ["a.heic", "b.HEIF"]
    plain, turned = read_images(found.images).images
    assert plain[0, 3, 16] > 240
    assert plain[2, 28, 16] > 240
    assert (plain.flip(1).int() - turned.int()).abs().max() < 8
    assert set(suffixes()) > set(HEIF_SUFFIXES)


def test_heic_without_its_package_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cifar_tl.data.pictures.read.find_spec", lambda _: None)
    path = tmp_path / "a.heic"
    path.write_bytes(b"\x00\x00\x00\x1cftypheic\x00\x00\x00\x00mif1heic" + bytes(100))
    with pytest.raises(ImageError, match=r"a\.heic is no readable image \(HEIC: pip install"):
        read_images([path])


def test_broken_links_stand_in_the_list_of_damaged_files(folder: Path) -> None:
    for number in range(6):
        (folder / f"train/ash/x{number}.png").symlink_to("nowhere.png")
    with pytest.raises(DataError, match=r"^6 of 46 images cannot be read") as error:
        load_data(folder)
    assert f"{folder / 'train/ash/x5.png'} is a link to nowhere" in str(error.value)
    (folder / "train/fig").symlink_to("nowhere")
    with pytest.raises(DataError, match="train/fig is a link to nowhere: repair or delete it"):
        load_data(folder)


def test_a_class_that_is_a_link_is_found_everywhere(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / "train/ash", tmp_path / "elsewhere")
    (folder / "train/ash").symlink_to(tmp_path / "elsewhere")
    assert len(find_classes(folder).images["train"]["ash"]) == 25
    assert len(list_image_files([folder / "train"])[0]) == 40
    assert len(load_data(folder).train.labels) == 32


@pytest.mark.parametrize("target", [".", "../ash", "deep/.."])
def test_every_real_folder_is_entered_once(folder: Path, target: str) -> None:
    (folder / "train/ash/deep").mkdir()
    add_image(folder / "train/ash/deep/z.png", "red")
    (folder / "train/ash/loop").symlink_to(target)
    (folder / "train/ash/deep/again").symlink_to("..")
    assert len(find_classes(folder).images["train"]["ash"]) == 26
    assert len(list_image_files([folder / "train/ash"])[0]) == 26


@pytest.mark.parametrize(
    ("link", "target"),
    [("train/oak", "ash"), ("train/ash/more", "../Birch"), ("train/ash/all", "..")],
)
def test_two_classes_that_are_one_folder_are_refused(folder: Path, link: str, target: str) -> None:
    (folder / link).symlink_to(target)
    with pytest.raises(DataError, match="are one folder in two classes: unlink one") as error:
        load_data(folder)
    assert str(folder / link) in str(error.value)


def test_folders_beside_the_parts_are_named_if_they_hold_images(folder: Path) -> None:
    for name in ("Val", "Test", "testing", "eval", "more/deep"):
        add_image(folder / name / "ash" / "a.png", "red")
    for name in ("labels", "empty", ".git", "@eaDir"):
        (folder / name).mkdir()
    add_image(folder / "@eaDir" / "a.png", "red")
    (folder / "labels" / "a.txt").write_text("ash")
    add_image(folder / "labels" / ".ipynb_checkpoints" / "a.png", "red")
    found = find_classes(folder)
    unused = ", ".join(str(folder / name) for name in ("Test", "Val", "eval", "more", "testing"))
    line = f"images in {unused} are not used: only train, val, test are"
    assert found.notes == [line]
    with pytest.warns(DataWarning, match=re.escape(line)):
        load_data(folder)


def test_one_image_needs_another_or_held_out_ones(folder: Path) -> None:
    add_image(folder / "train/fig/a.png", "red")
    with pytest.raises(
        DataError, match="fig has 1 image for train, and needs one to train and another to validate"
    ):
        load_data(folder)
    for number, name in enumerate(("ash", "Birch", "cedar tree", "fig")):
        add_image(folder / "val" / name / "a.png", f"#{number}00000")
    assert len(load_data(folder).train.labels) == 41


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_no_image(folder: Path) -> None:
    os.mkfifo(folder / "train/ash/pipe.png")
    found = find_classes(folder)
    assert len(found.images["train"]["ash"]) == 25
    assert found.notes == [
        f"{folder}: not used: 1 file (1 .png); convert pictures of other formats to PNG or JPEG"
    ]


def test_a_folder_that_cannot_be_read_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "train/ash/locked").mkdir()
    scan = os.scandir

    def refuse(path: str) -> object:  # root may read whatever the permissions say
        if str(path).endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"ash/locked: cannot be read \(Permission denied\)"):
        find_classes(folder)


def test_images_are_in_the_order_of_image_folder(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    for name in ("b", "a/x", "a-b", "a", "a/x/y", "B"):
        add_image(tmp_path / "all/class" / name / "1.png", "red")
        add_image(tmp_path / "all/class" / name / "0.png", "red")
    expected = [path for path, _ in ImageFolder(tmp_path / "all").samples]
    assert find_images(tmp_path / "all/class").images == expected


@pytest.mark.parametrize("name", ["BIRCH", "Birch ", " birch"])
def test_classes_that_sound_alike_are_named(folder: Path, name: str) -> None:
    add_image(folder / "train" / name / "a.png", "red")
    add_image(folder / "train" / name / "b.png", "blue")
    (note,) = find_classes(folder).notes
    assert "differ only in their spelling: if they are one, move their images together" in note
    assert repr(name) in note
    assert "'Birch'" in note


def test_a_class_that_is_spelled_otherwise_in_another_part_is_named(folder: Path) -> None:
    composed, decomposed = "\u00e9t\u00e9", "e\u0301te\u0301"  # macOS unzips to the second
    (folder / "train/ash").rename(folder / "train" / composed)
    add_image(folder / "val" / decomposed / "a.png", "red")
    with pytest.raises(DataError, match=f"which has '{composed}', spelled otherwise: rename one"):
        load_data(folder)


def test_classes_within_a_class_are_named(folder: Path) -> None:
    for name in ("oak", "elm"):
        add_image(folder / "train/tree" / name / f"{name}.png", "red" if name == "oak" else "blue")
    (note,) = find_classes(folder).notes
    assert (
        "images in elm, oak are all of the class tree; if these folders are classes, move" in note
    )
    add_image(folder / "train/tree/a.png", "green")  # sorted into folders, but one class
    assert find_classes(folder).notes == []


def test_a_part_that_is_a_link_to_nowhere_or_a_file_is_refused(folder: Path) -> None:
    (folder / "val").symlink_to("/nowhere/at/all")
    with pytest.raises(DataError, match="val is no folder, or a link to nowhere: repair or"):
        find_classes(folder)
    (folder / "val").unlink()
    (folder / "test").touch()
    with pytest.raises(DataError, match="test is no folder, or a link to nowhere: repair or"):
        find_classes(folder)


def test_what_lies_beside_the_parts_stops_nothing(folder: Path) -> None:
    for name, colour in COLOURS.items():
        add_image(folder / "Val" / name / "a.png", colour)
    (folder / "val").symlink_to("Val")  # as a disk would have it that does not tell case apart
    (folder / "up").symlink_to("..")
    (folder / "itself").symlink_to(".")
    found = find_classes(folder)
    assert [len(paths) for paths in found.images["val"].values()] == [1, 1, 1]
    assert [note for note in found.notes if "Val" in note.split(" are not used")[0]] == []
