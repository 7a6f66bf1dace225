"""The page to show: complete, in one file, whatever names it has to show."""

import base64
import copy
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from cifar_tl.command import train
from cifar_tl.experiment.findings.bases import compare_bases
from cifar_tl.experiment.findings.comparison import compare
from cifar_tl.experiment.findings.report import report_text
from tests.experiment.conftest import make_result

PICTURES = {"comparison.png": b"ways", "transfer/samples.png": b"mistakes"}


class Page(HTMLParser):
    """What is in a page: its tags with their attributes, its text, and what was left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def results(names: list[str] | None = None) -> dict[str, dict[str, Any]]:
    found = {
        "base": make_result("base", 0.75, 100.0),
        "transfer": make_result("transfer", 0.80, 20.0),
        "finetune": make_result("finetune", 0.87, 30.0),
        "scratch": make_result("scratch", 0.86, 110.0),
    }
    for result in found.values():
        if names is not None:
            result["class_names"] = names
    return found


def page(found: dict[str, dict[str, Any]], **changes: Any) -> Page:
    arguments = {
        "comparison": compare({1.0: [found]}),
        "results": found,
        "pictures": PICTURES,
        "command": "cifar-tl train --data 'a & b'",
    }
    return Page(report_text(**(arguments | changes)))


def test_it_says_what_was_asked_what_came_out_and_how() -> None:
    found = page(results())
    assert found.open == []
    for text in (
        "What transfer saves and costs: shapes",
        "transfer is worse than scratch: -6.00 points of validation",
        "It takes 20.0 s, 90.0 s less than scratch.",
        "The transfer model goes on with nothing frozen.",
        "faster than scratch once 2 transfers share that base",
        "103,818",
        "cifar-tl train --data 'a & b'",
        "Recipe tuned: ",
        "are taken for",
        "1 run, seed 0.",
    ):
        assert text in found.text, text
    assert {tag for tag, _ in found.tags} >= {"html", "title", "table", "img", "figcaption"}
    assert ("html", {"lang": "en"}) in found.tags


def test_nothing_is_loaded_from_elsewhere_and_nothing_runs() -> None:
    found = page(results())
    for tag, attributes in found.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form", "a")
        assert not {"href", "srcset", "onload", "onerror", "style"} & set(attributes)
        if source := attributes.get("src"):
            assert source.startswith("data:image/png;base64,")
    style = report_text(compare({1.0: [results()]}), results(), {}, "")
    assert not re.search(r"url\(|@import|https?:|//", style.split("<body>")[0])
    images = [attributes for tag, attributes in found.tags if tag == "img"]
    assert [base64.b64decode(str(image["src"])[22:]) for image in images] == [b"ways", b"mistakes"]
    assert all(len(str(image["alt"])) > 20 for image in images)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("<script>alert(1)</script>", 'a" onerror="b'),
        ("&amp;", "<!--"),
        ("{x}\n\u202etxt", "</td></table>"),
    ],
)
def test_names_are_shown_and_never_taken_for_code(first: str, second: str) -> None:
    found = results([first, second])
    found["scratch"]["data_notes"] = ["<b>left out</b>"]
    for result in found.values():
        result["data"] = "<i>mine</i>"
        result["data_description"] = "</style><script>"
    shown = page(found)
    assert shown.open == []
    assert {"script", "b", "i"}.isdisjoint(tag for tag, _ in shown.tags)
    for name in (first, second, "<b>left out</b>", "<i>mine</i>"):
        assert name.replace("\n\u202e", r"\n\u202e") in shown.text


def test_without_pictures_it_says_how_to_get_them() -> None:
    found = page(results(), pictures={})
    assert "pip install matplotlib" in found.text
    assert "img" not in {tag for tag, _ in found.tags}
    assert "pip install matplotlib" not in page(results()).text


def test_several_seeds_have_a_table_a_size() -> None:
    others = copy.deepcopy(results())
    for result in others.values():
        result["seed"] = 1
        result["val_accuracy"] -= 0.01
    both = [results(), others]
    found = page(results(), comparison=compare({0.1: both, 1.0: both}))
    assert found.open == []
    assert "2 runs, seeds 0 to 1." in found.text
    assert found.text.count("79.50 +- 0.71 %") == 2
    assert "transfer is worse than scratch: -6.00 +- 0.00 points" in found.text


def test_several_bases_have_a_table_and_link_to_each_other() -> None:
    other = copy.deepcopy(results())
    other["transfer"]["val_accuracy"] = 0.95
    bases = compare_bases({"<a>&": compare({1.0: [results()]}), "net": compare({1.0: [other]})})
    found = page(results(), bases=bases, links={"net": "net%20a/report.html"})
    assert found.open == []
    assert "tried other bases, on pages of their own: net." in found.text
    links = [attributes for tag, attributes in found.tags if tag == "a"]
    assert links == [{"href": "net%20a/report.html"}]
    for text in ("<a>&", "95.00 %", "transfer: <a>& is worse than net: -15.00 points"):
        assert text in found.text, text
    assert found.text.count("transfer+finetune: <a>& and net: +0.00 points") == 1
    alone = page(results())
    assert "other bases" not in alone.text


def test_few_images_make_an_accuracy_uncertain() -> None:
    found = results()
    found["transfer"]["images_validation"] = 24
    assert "validation accuracy 80.00% (60% to 91%: 24 images)" in page(found).text


def test_a_base_that_was_there_before_is_named() -> None:
    found = results()
    del found["base"]
    found["transfer"]["parent_path"] = "cifar10"
    assert "a base model of other classes, cifar10 help" in page(found).text


def test_the_command_leaves_it(own_classes: Path) -> None:
    shutil.copytree(own_classes, "mine")
    shutil.copytree("mine/train/ash", "mine/train/<script>")
    assert train.main(["--data", "mine", "--epochs", "1"]) == 0
    path = Path("runs/mine/report.html")
    found = Page(path.read_text(encoding="utf-8"))
    assert found.open == []
    assert "cifar-tl train --data mine --epochs 1" in found.text
    assert "<script>" in found.text
    assert train.main(["--data", "mine", "--stage", "scratch", "--epochs", "2", "--restart"]) == 0
    assert not path.exists()  # it is not of this run
