"""One page that predicts: an HTML file with a model, that needs no network and no server.

``scaling.js`` makes of a picture what the network sees, ``network.js`` computes its answer, and
``page.js`` is what people use. Here they are put together with the weights.
"""

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

from torch import Tensor

from cifar_tl.disk import read_beginning, write_atomically
from cifar_tl.errors import ExportError
from cifar_tl.names import count, printable
from cifar_tl.network import CifarNet
from cifar_tl.outputs import Outputs

FOLDER = Path(__file__).parent
SCRIPTS = ("scaling.js", "network.js", "page.js")
_MARK = b'<meta name="generator" content="cifar_tl page">'
_LAYERS = (
    *("features.conv1", "features.conv2", "features.conv3"),
    *("classifier.linear1", "classifier.linear2"),
)
_MOST_NAMED = 20  # classes in the first sentence
_FITS = {
    "crop": "Of a picture that is no square, it sees the middle.",
    "squash": "It sees all of a picture. One that is no square loses its shape.",
    "pad": "It sees all of a picture. One that is no square gets borders.",
}


def write_page(
    path: str | Path,
    model: CifarNet,
    outputs: Outputs,
    sentences: Sequence[str] = (),
    rows: Sequence[Sequence[str]] = (),
) -> None:
    """Writes a page that classifies pictures in a browser, as `predict` does.

    Args:
        path: The file.
        model: The documented network.
        outputs: Its classes.
        sentences: What the page says of the model.
        rows: A table of the classes below them, its head first.

    Raises:
        ExportError: If no page can be made of this model, or the file is some other page.
        OSError: If the file cannot be written. An old file is then still there.
    """
    path = Path(path)
    if path.exists() and not is_page(path):
        raise ExportError(f"{path} is there, and no page of this program: name another file")
    text = page_text(model, outputs, sentences, rows)
    write_atomically(path, text.encode("utf-8", "backslashreplace"))


def is_page(path: Path) -> bool:
    """Returns whether a file is a page that `write_page` wrote."""
    try:
        return _MARK in read_beginning(path, 1000)
    except OSError:
        return False


def page_text(
    model: CifarNet,
    outputs: Outputs,
    sentences: Sequence[str] = (),
    rows: Sequence[Sequence[str]] = (),
) -> str:
    """Makes the text of the page. Arguments and errors are those of `write_page`."""
    script = '"use strict";\n' + "".join(_read(name) for name in SCRIPTS)
    style = _read("page.css")
    model_text = json.dumps(_describe(model, outputs)).replace("<", "\\u003c")
    return Template(_read("page.html")).substitute(
        title=html.escape(_title(outputs.names)),
        classes=html.escape(_listed(outputs.names)),
        size=model.frame.size,
        about=_about(model, outputs, sentences, rows),
        model=model_text,
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
    )


def _describe(model: CifarNet, outputs: Outputs) -> dict[str, Any]:
    """Lists what the scripts need of a model, as plain values."""
    frame = model.frame
    if (frame.interpolation, frame.resize) != ("bicubic", None):
        raise ExportError("a page scales pictures as CifarNet does, bicubic: this model differs")
    if not all(value.isfinite().all() for value in model.state_dict().values()):
        raise ExportError("the weights of the model are no finite numbers: use another model")
    return {
        "names": list(outputs.names),
        "outputs": list(outputs.columns),
        "temperature": model.temperature,
        "frame": {"size": frame.size, "fit": frame.fit, "padding": frame.padding},
        "white": model.white.get("integers", 65535),
        "mean": model.mean.flatten().tolist(),
        "std": model.std.flatten().tolist(),
        "tensors": {name: _layer(model, name) for name in _LAYERS},
    }


def _layer(model: CifarNet, name: str) -> dict[str, Any]:
    layer = model.get_submodule(name)
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    assert isinstance(bias, Tensor)
    return {"shape": list(weight.shape), "weight": _encode(weight), "bias": _encode(bias)}


def _encode(values: Tensor) -> str:
    """Writes numbers as little-endian float32 in base64."""
    numbers = values.detach().cpu().float().contiguous().numpy().astype("<f4")
    return base64.b64encode(numbers.tobytes()).decode("ascii")


def _title(names: Sequence[str]) -> str:
    if len(names) > 5:
        return f"Which of {len(names):,} classes is it?"
    *first, last = map(printable, names)
    return f"{', '.join(first)} or {last}?" if first else f"{last}?"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(printable, names[:_MOST_NAMED]))
    rest = len(names) - _MOST_NAMED
    return f"{count(len(names), 'class')}: {shown}" + (f" and {rest:,} more" if rest > 0 else "")


def _about(
    model: CifarNet, outputs: Outputs, sentences: Sequence[str], rows: Sequence[Sequence[str]]
) -> str:
    never = len(outputs.untrained)
    limits = [
        "It knows only its classes. It gives one of them to every picture, also to a picture of "
        "something else. A high probability means nothing there.",
        f"It sees {model.frame.size} x {model.frame.size} pixels. {_FITS[model.frame.fit]}",
    ]
    if never:
        limits.append(
            f"The network has {count(outputs.size, 'output')}. {never:,} of them never learned a "
            "class. The page leaves them out."
        )
    paragraphs = "".join(f"<p>{_text(sentence)}</p>\n" for sentence in (*sentences, *limits))
    return f'<div class="about">\n{paragraphs}{_table(rows)}</div>'


def _table(rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    head, *body = rows
    number = ' class="number"'
    lines = [
        f'<tr><th scope="row">{_text(first)}</th>'
        + "".join(f"<td{number}>{_text(cell)}</td>" for cell in cells)
        + "</tr>"
        for first, *cells in body
    ]
    heads = "".join(
        f'<th scope="col"{number if place else ""}>{_text(cell)}</th>'
        for place, cell in enumerate(head)
    )
    return (
        "<details><summary>Each class</summary>\n"
        f'<div class="wide"><table><thead><tr>{heads}</tr></thead>\n<tbody>\n'
        + "\n".join(lines)
        + "\n</tbody></table></div></details>\n"
    )


def _text(text: str) -> str:
    return html.escape(printable(text))


def _hash(text: str) -> str:
    """Computes the hash by which the page's content security policy allows a script or a style."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")
