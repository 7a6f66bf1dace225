"""A real browser, and pages in it. All is skipped where Chromium or Playwright is missing."""

import base64
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cifar_tl.checkpoint import read_named_model
from cifar_tl.page import write_page

FAKE_CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")


@pytest.fixture(scope="session")
def launch() -> Iterator[Callable[..., Any]]:
    """Starts Chromium with some arguments."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as started:
        yield lambda *arguments: started.chromium.launch(
            executable_path=path, args=["--no-sandbox", *arguments]
        )


@pytest.fixture(scope="session")
def browser(launch: Callable[..., Any]) -> Iterator[Any]:
    started = launch(*FAKE_CAMERA)
    yield started
    started.close()


@pytest.fixture(scope="session")
def cifar10_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "cifar10.html"
    model, _, outputs = read_named_model("cifar10")
    write_page(path, model, outputs)  # type: ignore[arg-type]
    return path


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page. The test fails if the page has an error, or says something in the console."""
    opened, said = [], []

    def open_it(path: Path, **options: Any) -> Any:
        page = browser.new_page(**options)
        opened.append(page)
        page.set_default_timeout(120_000)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("console", lambda message: said.append(message.text))
        page.goto(path.as_uri())
        return page

    yield open_it
    for page in opened:
        page.close()
    assert not said


def classify(page: Any, content: bytes) -> Any:
    """Asks the page as other pages would. Returns answers and pixels, or what is wrong."""
    return page.evaluate(
        """async (text) => {
            const blob = new Blob([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))]);
            try {
                const answers = await window.cifarTl.classify(blob);
                return { answers, pixels: Array.from((await look(blob)).pixels) };
            } catch (error) {
                return { problem: error.message };
            }
        }""",
        base64.b64encode(content).decode(),
    )
