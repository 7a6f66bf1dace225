"""The text of the page that predicts. tests/browser has it in a browser."""

import base64
import hashlib
import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from cifar_tl.errors import ExportError
from cifar_tl.frame import Frame
from cifar_tl.network import CifarNet
from cifar_tl.outputs import Outputs
from cifar_tl.page import is_page, page_text, write_page

ODD = ("</script><script>alert(1)</script>", "<!--", "a\n&")


@pytest.fixture
def model() -> CifarNet:
    torch.manual_seed(0)
    return CifarNet(10)


def outputs(*names: str, size: int = 10) -> Outputs:
    return Outputs(tuple(range(5, 5 + len(names))), names, size)


def test_it_holds_the_model_and_is_small(model: CifarNet) -> None:
    text = page_text(model, outputs("dog", "frog"))
    assert len(text.encode()) < 1_000_000
    found = json.loads(text.split('id="model">')[1].split("</script>")[0])
    assert (found["names"], found["outputs"]) == (["dog", "frog"], [5, 6])
    assert found["frame"] == {"size": 32, "fit": "crop", "padding": [0, 0, 0]}
    stored = found["tensors"]["features.conv2"]
    weight = np.frombuffer(base64.b64decode(stored["weight"]), "<f4").reshape(stored["shape"])
    np.testing.assert_array_equal(weight, model.state_dict()["features.conv2.weight"].numpy())
    assert "8 of them never learned a class" in text


def test_names_cannot_leave_their_place(model: CifarNet) -> None:
    text = page_text(model, outputs(*ODD), ["a <b>"], [("Class", "n"), (ODD[0], "1")])
    assert text.count("<script") == text.count("</script>") == 2
    assert "alert(1)</script>" not in text
    assert "<!--" not in text
    assert "a &lt;b&gt;" in text
    found = json.loads(text.split('id="model">')[1].split("</script>")[0])
    assert tuple(found["names"]) == ODD


def test_its_policy_allows_its_own_script_and_style_and_no_connection(model: CifarNet) -> None:
    text = page_text(model, outputs("a", "b"))
    policy = re.search('Content-Security-Policy" content="(.*?)"', text)
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in html.unescape(policy[1]).split(";"))
    assert rules["default-src"] == "'none'"
    for rule, tag in (("script-src", "<script>"), ("style-src", "<style>")):
        content = text.split(tag)[1].split(tag.replace("<", "</"))[0]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    assert {*rules} == {
        *("default-src", "script-src", "style-src", "img-src", "base-uri", "form-action")
    }
    assert not re.search(r"https?:|//[a-z]", text.split('id="model"')[0])


def test_a_model_that_a_page_cannot_compute_is_refused(model: CifarNet, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    model.frame = Frame(interpolation="bilinear")
    with pytest.raises(ExportError, match="this model differs"):
        write_page(path, model, outputs("a"))
    model.frame = Frame()
    model.state_dict()["features.conv1.bias"][0] = torch.nan
    with pytest.raises(ExportError, match="no finite numbers"):
        write_page(path, model, outputs("a"))
    assert not path.exists()


def test_another_page_is_not_overwritten(model: CifarNet, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_page(path, model, outputs("a"))
    write_page(path, model, outputs("b"))
    assert is_page(path)
    path.write_text("mine")
    with pytest.raises(ExportError, match=r"page\.html is there, and no page of this program"):
        write_page(path, model, outputs("a"))
    assert path.read_text() == "mine"
