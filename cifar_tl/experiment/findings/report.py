"""The page ``report.html``: the comparison and its pictures, in one file."""

import base64
import html
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from cifar_tl.experiment.findings import comparison as words
from cifar_tl.experiment.findings.bases import base_legend, base_rows, base_sentences
from cifar_tl.experiment.findings.results import (
    class_rows,
    confused_lines,
    doubt,
    learning_words,
    recipe_line,
)
from cifar_tl.experiment.findings.unequal import beside
from cifar_tl.experiment.stages import STAGES, control, takes_base
from cifar_tl.names import count, printable
from cifar_tl.outputs import outputs_of

# Nothing may be loaded from elsewhere, and nothing can run.
_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --line: #ccc; --soft: #f3f3f3; }}
@media (prefers-color-scheme: dark) {{ :root {{ --line: #555; --soft: #2a2a2a; }} }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }}
h1, h2, h3 {{ line-height: 1.2; margin: 1.6em 0 0.5em; break-after: avoid; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; margin: 0.5em 0; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 0.2em 0.7em; border-bottom: 1px solid var(--line); text-align: right;
 white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; white-space: normal; overflow-wrap: anywhere;
 min-width: 6em; position: sticky; left: 0; background: Canvas; }}
img {{ max-width: 100%; height: auto; background: white; break-inside: avoid; }}
figure {{ margin: 1em 0; break-inside: avoid; }}
figcaption, small {{ opacity: 0.8; }}
code {{ background: var(--soft); padding: 0.1em 0.3em; overflow-wrap: anywhere; }}
p, li, dd {{ overflow-wrap: anywhere; }}
dt {{ font-weight: bold; }}
@media print {{ body {{ max-width: none; font-size: 11px; }} .wide {{ overflow: visible; }} }}
</style>
</head>
<body>
"""

_LINKS = "<!-- pages that predict -->", "<!-- end -->"  # between these, `with_links` writes

_PICTURES = {  # what each shows, for those who cannot see it
    "comparison.png": "Validation accuracy against seconds of training, for transfer, transfer and "
    "finetuning, and training from scratch",
    "images.png": "Validation accuracy against the number of labelled training images, for the "
    "same three ways",
    "curves.png": "Loss and accuracy by epoch, on training and validation images",
    "confusion.png": "Which class is taken for which, in percent of each class's validation images",
    "samples.png": "Validation images with predicted and true class, the most confident mistakes "
    "first",
    "reliability.png": "How often the model is right, against how sure it is, as trained and with "
    "its temperature",
}


def report_text(
    comparison: Mapping[str, Any],
    results: Mapping[str, Mapping[str, Any]],
    pictures: Mapping[str, bytes],
    command: str,
    *,
    bases: Mapping[str, Any] | None = None,
    links: Mapping[str, str] | None = None,
    predicting: Sequence[str] = (),
) -> str:
    """Writes the page. To be shown, it needs no other file, no network and no script.

    Args:
        comparison: The content of ``comparison.json``, from `compare`.
        results: The content of ``result.json`` of each stage, of the first of several seeds and
            the largest of several fractions.
        pictures: PNG files by name: ``comparison.png``, ``images.png``, ``transfer/samples.png``
            and the like, as far as there are any.
        command: What made all this.
        bases: The content of ``bases.json``. None: the command tried one base.
        links: By the name of each other base, the relative address of its page.
        predicting: The names of pages that predict, in the same folder.
    """
    title = f"What transfer saves and costs: {printable(comparison['data'])}"
    parts = [
        _HEAD.format(title=html.escape(title)),
        f"<h1>{html.escape(title)}</h1>\n",
        *_question(comparison, results),
        with_links("".join(_LINKS), predicting),
        *_comparison(comparison),
        *(_figure(pictures, name, name) for name in ("comparison.png", "images.png")),
        *(_bases(bases, links or {}) if bases else ()),
    ]
    if not pictures:
        parts.append(
            "<p>There are no pictures: <code>pip install matplotlib</code>, then the same command "
            "again.</p>\n"
        )
    for stage, result in results.items():
        parts += _stage(stage, result, pictures)
    parts += _circumstances(results, command)
    return "".join(parts) + "</body>\n</html>\n"


def with_links(report: str, names: Sequence[str]) -> str:
    """Puts links to the pages that predict into the text of a report, in place of earlier ones."""
    links = ", ".join(f'<a href="{html.escape(quote(name))}">{_text(name)}</a>' for name in names)
    line = f"<p>Try it with your own pictures: {links}.</p>\n" if names else ""
    start, end = _LINKS
    return re.sub(f"{start}.*?{end}", lambda _: start + line + end, report, flags=re.DOTALL)


def _question(comparison: Mapping[str, Any], results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    scratch = results[control()]
    names = _text(", ".join(scratch["class_names"]))
    seeds = comparison["sizes"][0]["seeds"]
    base = next((name for name in results if STAGES[name].learns == "base"), None)
    path = next(result.get("parent_path") for name, result in results.items() if takes_base(name))
    start = "a base model of other classes" + (f", <code>{_text(path)}</code>" if path else "")
    if base:
        start = f"a small network that knows {_text(', '.join(results[base]['class_names']))}"
    if backbone := comparison["backbone"]:
        start = f"a pretrained network, <code>{_text(backbone['name'])}</code>,"
    notes = "".join(f"<li>{_text(note)}</li>\n" for note in scratch.get("data_notes", ()))
    return [
        f"<p>How much does {start} help to learn new classes: {names}? Data: "
        f"{_text(comparison['data_description'])}, {scratch['images_train']:,} training, "
        f"{scratch['images_validation']:,} validation and "
        f"{count(scratch['images_test'], 'test image')} of the new classes. "
        f"{count(len(seeds), 'run')}, {words.seed_words(seeds)}.</p>\n",
        f"<p>About the data:</p>\n<ul>\n{notes}</ul>\n" if notes else "",
    ]


def _comparison(comparison: Mapping[str, Any]) -> list[str]:
    parts = []
    for size in comparison["sizes"]:
        sentences = words.way_sentences(comparison, size)
        parts += [
            f"<h2>{_text(words.size_words(size))}</h2>\n",
            _table(words.stage_rows(size)),
            _paragraphs([" ".join(lines) for lines in sentences]),
            _paragraphs(words.notes(size)),
        ]
        if len(size["seeds"]) > 1:
            parts.append(_table(words.seed_rows(comparison, size)))
    return [*parts, f"<p><small>{_text(' '.join(words.legend(comparison)))}</small></p>\n"]


def _bases(bases: Mapping[str, Any], links: Mapping[str, str]) -> list[str]:
    linked = ", ".join(
        f'<a href="{html.escape(url)}">{_text(name)}</a>' for name, url in links.items()
    )
    parts = [
        "<h2>The bases side by side</h2>\n<p>The same command tried other bases, on pages of their "
        f"own: {linked}.</p>\n"
    ]
    for size in bases["sizes"]:
        parts += [
            f"<h3>{_text(words.size_words(size))}</h3>\n" if len(bases["sizes"]) > 1 else "",
            _table(base_rows(bases, size)),
            _paragraphs(base_sentences(bases, size)),
        ]
    return [*parts, f"<p><small>{_text(' '.join(base_legend(bases)))}</small></p>\n"]


def _stage(stage: str, result: Mapping[str, Any], pictures: Mapping[str, bytes]) -> list[str]:
    outputs = outputs_of(result, result["num_classes"])
    assert outputs is not None  # of a result that a stage has just written or read
    tested = result["test_accuracy"]
    did = STAGES[stage].words
    if "learns_from" in result:
        did = f"The {STAGES[stage].parent} model goes on: {learning_words(result)}."
    return [
        f"<h2>{_text(stage)}</h2>\n<p>{_text(did)} Seed {result['seed']}: "
        f"validation accuracy {result['val_accuracy']:.2%}{doubt(result)}{beside(result, 'val')}"
        + ("" if tested is None else f", test accuracy {tested:.2%}{beside(result, 'test')}")
        + f", {result['seconds_total']:.1f} s in all.</p>\n",
        _table(class_rows(result["val_confusion"], outputs)),
        _paragraphs(["; ".join(confused_lines(result["val_confusion"], outputs))]),
        *(
            _figure(pictures, f"{stage}/{name}", name)
            for name in ("curves.png", "confusion.png", "samples.png", "reliability.png")
        ),
    ]


def _circumstances(results: Mapping[str, Mapping[str, Any]], command: str) -> list[str]:
    environment = results[control()]["environment"]
    settings = {stage: recipe_line(result) for stage, result in results.items()}
    machine = ", ".join(f"{key} {value}" for key, value in environment.items())
    listed = {**settings, "machine and versions": machine}
    return [
        f"<h2>How it was made</h2>\n<p><code>{_text(command)}</code></p>\n<dl>\n",
        *(f"<dt>{_text(key)}</dt>\n<dd>{_text(value)}</dd>\n" for key, value in listed.items()),
        "</dl>\n<p><small>Validation images choose, test images are used once, at the end. Times "
        "compare only if nothing else ran on the machine.</small></p>\n",
    ]


def _figure(pictures: Mapping[str, bytes], path: str, name: str) -> str:
    if path not in pictures:
        return ""
    encoded = base64.b64encode(pictures[path]).decode("ascii")
    stage = path.partition("/")[0] if path != name else ""
    alt = f"{stage}: {_PICTURES[name]}" if stage in STAGES else _PICTURES[name]
    return (
        f'<figure><img alt="{_text(alt)}" src="data:image/png;base64,{encoded}">'
        f"<figcaption>{_text(alt)}</figcaption></figure>\n"
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = ["".join(f"<th>{_text(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{_text(cell)}</td>" for cell in row) for row in body]
    inner = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table>\n{inner}\n</table></div>\n'


def _paragraphs(lines: Sequence[str]) -> str:
    return "".join(f"<p>{_text(line)}</p>\n" for line in lines)


def _text(text: object) -> str:
    return html.escape(printable(str(text)))
