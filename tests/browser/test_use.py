"""The page in a real browser, as people use it: all ways in, bad input, both widths, no network."""

import base64
import csv
import io
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cifar_tl.network import CifarNet
from cifar_tl.outputs import Outputs
from cifar_tl.page import write_page
from tests.browser.conftest import classify

Open = Callable[..., Any]
ODD = ["</script>", "=1+1", '"a", b', "<img src=x onerror=alert(1)>", "\u00e9t\u00e9"]


def picture(colour: str = "red", kind: str = "PNG", **options: Any) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(content, kind, **options)
    return content.getvalue()


def given(name: str, content: bytes) -> dict[str, Any]:
    return {"name": name, "mimeType": "", "buffer": content}


def choose(page: Any, *files: dict[str, Any]) -> None:
    page.locator("#files").set_input_files(list(files))


# Drops a number of files, or pastes them.
GIVE = """([kind, count, text]) => {
    const content = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const data = new DataTransfer();
    for (let n = 0; n < count; n++) data.items.add(new File([content], `${n}.png`));
    const event = kind === "drop"
        ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
        : new ClipboardEvent("paste", { clipboardData: data, bubbles: true });
    document.body.dispatchEvent(event);
}"""
TURNED = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x03\0\0\0\0\0\0\0"  # orientation 3
PNG_TEXT = base64.b64encode(picture()).decode()


def wait_for(page: Any, text: str) -> None:
    page.locator("#status").get_by_text(text).wait_for()


def test_pictures_are_chosen_dropped_and_pasted_and_saved_as_a_table(
    open_page: Open, cifar10_page: Path
) -> None:
    page = open_page(cifar10_page)
    choose(page, given("=cmd.png", picture()))
    page.get_by_role("heading", name="=cmd.png").wait_for()
    assert page.locator("#all").is_hidden()
    page.evaluate(GIVE, ["drop", 2, PNG_TEXT])
    wait_for(page, "3 of 3 pictures have an answer.")
    page.evaluate(GIVE, ["paste", 1, PNG_TEXT])
    wait_for(page, "4 of 4 pictures have an answer.")
    choose(page, given("\u00e9, 1.txt", b"no picture"))
    wait_for(page, "4 of 5 pictures have an answer. 1 cannot be read.")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as CSV").click()
    content = Path(download.value.path()).read_bytes()
    assert content.startswith(b"\xef\xbb\xbf")
    head, *rows = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""))
    assert head[:4] == ["file", "class", "probability", "airplane"]
    assert [row[0] for row in rows] == ["'=cmd.png", "0.png", "1.png", "0.png", "\u00e9, 1.txt"]
    for row in rows[:4]:
        figures = [float(cell) for cell in row[3:13]]
        assert sum(figures) == pytest.approx(1, abs=1e-5)
        assert float(row[2]) == max(figures)
        assert head[3 + figures.index(max(figures))] == row[1]
    assert rows[4][1:13] == [""] * 12
    assert "no picture that this browser can read" in rows[4][13]
    page.get_by_role("button", name="1.png").click()
    page.get_by_role("heading", name="1.png").wait_for()
    page.get_by_role("button", name="Start again").click()
    assert page.locator("#rows tr").count() == 0
    assert page.locator("#answer").is_hidden()


def test_2000_files_do_not_freeze_it(open_page: Open, cifar10_page: Path) -> None:
    page = open_page(cifar10_page)
    page.evaluate(GIVE, ["drop", 2000, PNG_TEXT])
    page.get_by_role("heading", name="0.png").wait_for()  # while the others wait
    page.get_by_role("button", name="Stop").click()
    wait_for(page, "were left out when you pressed Stop.")
    assert page.locator("#rows tr").count() == 2000
    choose(page, given("later.png", picture("blue")))
    page.get_by_role("heading", name="later.png").wait_for()


def test_it_shows_what_the_network_sees(open_page: Open, cifar10_page: Path) -> None:
    page = open_page(cifar10_page)
    choose(page, given("a.png", picture()))
    page.get_by_role("img", name="The picture as the network sees it").wait_for()
    seen = page.evaluate("() => [...byId('seen').getContext('2d').getImageData(0, 0, 32, 32).data]")
    assert seen == [255, 0, 0, 255] * 32 * 32
    bars = page.locator("#bars tr")
    assert bars.count() == 10
    maps = page.get_by_role("img", name="convolution")
    assert maps.count() == 0  # folded away
    page.get_by_text("What its layers see").click()
    assert [each.get_attribute("aria-label") for each in maps.all()] == [
        "The first convolution: 32 maps of 28 x 28 values",
        "The second convolution: 16 maps of 24 x 24 values",
        "The third convolution: 8 maps of 10 x 10 values",
    ]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty."),
        (b"hello", "is no picture that this browser can read, or it is damaged."),
        (picture()[:60], "is no picture that this browser can read, or it is damaged."),
        (b"\0\0\0\x20ftypheic" + bytes(40), "is HEIC, which this browser cannot read."),
        (picture(kind="WEBP", exif=b"Exif\0\0" + TURNED), "is WebP that its EXIF data turn."),
        (picture(kind="TIFF"), "is TIFF, which this browser cannot read."),
    ],
    ids=["empty", "text", "cut", "heic", "turned", "tiff"],
)
def test_what_cannot_be_read_is_one_sentence(
    content: bytes, sentence: str, open_page: Open, cifar10_page: Path
) -> None:
    page = open_page(cifar10_page)
    choose(page, given("a.jpg", content))
    page.get_by_text(f"This file {sentence}").first.wait_for()
    assert page.locator("#found").is_hidden()
    choose(page, given("b.png", picture()))
    page.get_by_role("heading", name="b.png").wait_for()
    assert page.locator("#found").is_visible()


def random_page(path: Path, names: list[str], size: int | None = None) -> Path:
    torch.manual_seed(0)
    outputs = Outputs(tuple(range(len(names))), tuple(names), size or len(names))
    write_page(path, CifarNet(outputs.size), outputs)
    return path


def test_names_of_classes_are_text_and_nothing_else(open_page: Open, tmp_path: Path) -> None:
    page = open_page(random_page(tmp_path / "odd.html", ODD, size=8))
    found = classify(page, picture())["answers"]
    assert {each["name"] for each in found} == {*ODD}  # untrained outputs are left out
    assert sum(each["probability"] for each in found) == pytest.approx(1)
    choose(page, given("<b>.png", picture()), given("c.png", picture()))
    wait_for(page, "2 of 2 pictures have an answer.")
    assert {*page.locator("#bars th").all_inner_texts()} == {*ODD}
    assert page.locator("#rows button").first.inner_text() == "<b>.png"
    assert page.locator("main img, main b").count() == 0
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as CSV").click()
    text = Path(download.value.path()).read_bytes().decode("utf-8-sig")
    head = next(csv.reader(io.StringIO(text, newline="")))
    assert head[3:8] == ["</script>", "'=1+1", *ODD[2:]]


def test_200_classes_are_folded(open_page: Open, tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(200)]
    page = open_page(random_page(tmp_path / "many.html", names))
    choose(page, given("a.png", picture()))
    page.get_by_text("190 more classes").wait_for()
    assert page.locator("#bars tr").count() == 10
    assert page.locator("#rest-bars tr").first.is_hidden()
    page.get_by_text("190 more classes").click()
    assert page.locator("#rest-bars tr").last.is_visible()


def test_a_picture_from_the_camera(open_page: Open, cifar10_page: Path) -> None:
    page = open_page(cifar10_page)
    page.get_by_role("button", name="Take a picture").click()
    page.get_by_role("button", name="Take it").click()
    page.get_by_role("heading", name="photo.png").wait_for()
    assert page.locator("#found").is_visible()
    assert page.evaluate("() => document.getElementById('video').srcObject") is None


def test_without_a_camera_it_says_so(launch: Callable[..., Any], cifar10_page: Path) -> None:
    browser = launch("--deny-permission-prompts")
    page = browser.new_page()
    page.goto(cifar10_page.as_uri())
    page.get_by_role("button", name="Take a picture").click()
    wait_for(page, "Choose a picture instead.")
    browser.close()


def test_nothing_is_requested(open_page: Open, cifar10_page: Path) -> None:
    page = open_page(cifar10_page)
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.reload()
    choose(page, given("a.png", picture()), given("b.png", picture()))
    wait_for(page, "2 of 2 pictures have an answer.")
    assert [url for url in requested if not url.startswith("data:")] == [cifar10_page.as_uri()]


def test_its_policy_forbids_connections_and_other_scripts(browser: Any, cifar10_page: Path) -> None:
    page = browser.new_page()
    page.goto(cifar10_page.as_uri())
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.setblocking(False)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/"
        refused = page.evaluate(
            """async (address) => {
                const found = [];
                await fetch(address).catch(() => found.push("fetch"));
                await new Promise((go) => {
                    const image = new Image();
                    image.onerror = () => go(found.push("image"));
                    image.src = address;
                });
                const script = document.createElement("script");
                script.textContent = "window.ran = true";
                document.body.append(script);
                if (!window.ran) found.push("script");
                return found;
            }""",
            address,
        )
        assert refused == ["fetch", "image", "script"]
        with pytest.raises(BlockingIOError):
            server.accept()
    page.close()


@pytest.mark.parametrize("width", [360, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_the_screen_in_both_schemes(
    width: int, scheme: str, open_page: Open, tmp_path: Path
) -> None:
    names = ["a" * 60, "b " * 40, *"cdef"]
    viewport = {"width": width, "height": 800}
    path = random_page(tmp_path / "page.html", names)
    page = open_page(path, viewport=viewport, color_scheme=scheme)
    choose(page, given(f"{'long' * 20}.png", picture()), given("b.png", picture()))
    wait_for(page, "2 of 2 pictures have an answer.")
    page.get_by_text("What its layers see").click()
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    colours = page.evaluate(
        """() => [getComputedStyle(document.body).color, getComputedStyle(document.documentElement)
            .colorScheme, matchMedia("(prefers-color-scheme: dark)").matches]"""
    )
    bright = colours[0] == "rgb(255, 255, 255)"
    assert (bright, colours[2]) == (scheme == "dark",) * 2, json.dumps(colours)


def test_the_keyboard_reaches_everything(open_page: Open, cifar10_page: Path) -> None:
    page = open_page(cifar10_page)
    choose(page, given("a.png", picture()), given("b.png", picture()))
    wait_for(page, "2 of 2 pictures have an answer.")
    reached = []
    for _ in range(8):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("() => document.activeElement.id || document.activeElement.textContent")
        )
    assert reached[:2] == ["files", "open-camera"]
    assert {"What its layers see", "save", "clear", "a.png", "b.png"} <= {*reached}
