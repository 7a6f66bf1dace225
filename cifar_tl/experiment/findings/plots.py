"""Pictures of finished runs, drawn from their files with matplotlib, an optional extra.

Lines differ in colour, marker and dashes. So they can be told apart in grey, too.
"""

import contextlib
import dataclasses
import io
import json
import math
import statistics
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib
import torch
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from cifar_tl.backbone import Backbone, Network
from cifar_tl.calibration import BINS, reliability
from cifar_tl.checkpoint import read_named_model
from cifar_tl.data.classes import CIFAR10_CLASS_NAMES, NEW_CLASSES
from cifar_tl.data.examples import Data
from cifar_tl.disk import LARGEST_TEXT, locked, read_file, write_atomically
from cifar_tl.experiment import stages
from cifar_tl.experiment.features import Cache, logits_of
from cifar_tl.experiment.findings.layers import dropout_rate
from cifar_tl.experiment.findings.results import training_words
from cifar_tl.experiment.findings.unequal import MEAN, always_words, deciding
from cifar_tl.experiment.folder import HistoryRow, read_history, read_result
from cifar_tl.experiment.frozen import Pictures, pictures_of
from cifar_tl.experiment.stages import BLUE, GREY, ORANGE
from cifar_tl.names import printable
from cifar_tl.outputs import Outputs
from cifar_tl.training import EpochRecord

# Validation accuracy and seconds of the documented run: its transfer, and its base before that. Its
# training images are 80 % of those of CIFAR-10's classes 5-9.
DOCUMENTED_ACCURACY, DOCUMENTED_SECONDS, DOCUMENTED_BASE_SECONDS = 0.7606, 409, 974
DOCUMENTED_IMAGES = 20_000
SAMPLES = (5, 8)  # rows and columns
SHOWN = 112  # pixels, of a picture that a pretrained network sees
MOST_NUMBERS = 20  # classes: numbers in a larger confusion matrix could not be read
DOTS_PER_INCH = 120
Always: TypeAlias = tuple[float, str] | None
SMALL: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8}


def draw_stage(folder: Path, data: Data, cache: Cache) -> None:
    """Draws the pictures of a finished stage into its folder.

    Args:
        folder: The folder of the stage.
        data: Its images.
        cache: What is kept, and where.
    """
    result, rows = _read(folder)
    model, _, outputs = read_named_model(folder / stages.MODEL)
    _, pictures, _ = pictures_of(data, outputs.classes)
    labels = outputs.places(pictures.examples().labels)
    logits = logits_of(model, pictures, result["precision"], cache=cache)
    logits = logits[:, list(outputs.columns)]
    said = logits / model.temperature  # what probabilities are made of
    title = f"{result['stage']} on {printable(result['data'])}"
    seen = training_words(result, dropout_rate(model, result.get("dropout")))
    with _drawing(), locked(folder, wait=True):
        figures = [
            curves(rows, title, seen, always_words(result)),
            confusion(result["val_confusion"], outputs, title),
            samples(_shower(model, pictures), labels, said, outputs.names, title),
            diagram(logits, labels, model.temperature, title, by_class="class_balance" in result),
        ]
        if (kernels := first_kernels(model)) is not None:
            figures.append(filters(kernels, title))
        for name, figure in zip(stages.PICTURES, figures, strict=False):
            save(figure, folder / name)


def draw_comparison(places: Sequence[stages.Place], names: Iterable[str]) -> None:
    """Draws the comparison of stages, of one seed or several, into the data's folder.

    Args:
        places: A place for each seed.
        names: The stages. Base is not among them if the others used another base.
    """
    read = [{stage: _read(place.of(stage)) for stage in names} for place in places]
    result = read[0][stages.control()][0]
    histories = {
        stage: [found[stage][1] for found in read] for stage in read[0] if stages.way_to(stage)
    }
    base = next((name for name in read[0] if stages.STAGES[name].learns == "base"), None)
    bases = [found[base][0]["seconds_total"] for found in read] if base else []
    is_documented = (
        result["train_fraction"] == 1
        and result["images_train"] == DOCUMENTED_IMAGES
        and result["classes"] == list(NEW_CLASSES)
        and tuple(result["class_names"]) == CIFAR10_CLASS_NAMES[5:]
    )
    seeds = f"seed {result['seed']}" if len(places) == 1 else f"{len(places)} seeds"
    title = (
        f"{printable(result['data'])}, recipe {result['recipe']}, {seeds}, "
        f"{result['images_train']:,} images"
    )
    folder = places[0].comparison
    with _drawing(), locked(folder, wait=True):
        figure = comparison(
            histories,
            statistics.mean(bases) if bases else None,
            title,
            seconds_reading=result.get("seconds_reading", 0.0),  # runs of before lack it
            documented=is_documented,
            always=always_words(result),
        )
        save(figure, folder / stages.COMPARISON_PICTURES[0])


def draw_images(place: stages.Place) -> None:
    """Draws accuracy against the number of images, from the comparison in the data's folder.

    The control in ``place`` says how many classes there are.
    """
    folder, (result, _) = place.comparison, _read(place.of(stages.control()))
    content = json.loads(read_file(folder / stages.COMPARISON[0], LARGEST_TEXT))
    title = f"{printable(content['data'])}, {content['recipe']}"
    with _drawing(), locked(folder, wait=True):
        figure = images(content["sizes"], title, always_words(result))
        save(figure, folder / stages.COMPARISON_PICTURES[1])


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as a PNG file, whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH)
    write_atomically(path, buffer.getvalue())


def curves(records: Sequence[EpochRecord], title: str, seen: str, always: Always = None) -> Figure:
    """Draws loss and accuracy by epoch, training and validation.

    Args:
        records: Of the epochs.
        title: Above all.
        seen: How the training figures were seen, from `training_words`.
        always: Where classes are unequal, from `always_words`.
    """
    key = deciding(map(vars, records))
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(1, 2)
    epochs = [record.epoch for record in records]
    training = {"label": f"training ({seen})", "color": ORANGE, "marker": "^", "linestyle": "--"}
    validation = {"label": "validation", "color": BLUE, "marker": "o"}
    for ax, name, style in (
        (axes[0], "train_loss", training),
        (axes[0], "val_loss", validation),
        (axes[1], "train_accuracy", training),
        (axes[1], key, validation),
    ):
        figures: Sequence[float] = [getattr(record, name) for record in records]
        ax.plot(epochs, figures, markevery=math.ceil(len(epochs) / 20), **style)
    axes[0].set_ylabel("loss (cross-entropy)")
    what = _draw_always(axes[1], key, always)
    label_accuracy(axes[1], f"accuracy{what.replace('(', '(validation: ')}")
    handles, columns = axes[1].get_legend_handles_labels(), 1 if what else 2
    figure.legend(*handles, loc="outside lower center", ncols=columns)
    for ax in axes:
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
        plain(ax)
    return figure


def confusion(counts: Sequence[Sequence[int]], outputs: Outputs, title: str) -> Figure:
    """Draws the confusion matrix, in percent of each class.

    ``counts`` has a row for each class and a column for each output of the model.
    """
    table, names = torch.tensor(counts, dtype=torch.float64), outputs.names
    columns = _short(names, 20)
    shown = table[:, list(outputs.columns)]
    others = table.sum(1, keepdim=True) - shown.sum(1, keepdim=True)
    if others.any():  # outputs that were never trained
        shown, columns = torch.cat([shown, others], 1), [*columns, "another output"]
    shares = 100 * shown / table.sum(1, keepdim=True).clamp_min(1)
    size = min(2.2 + 0.62 * len(names), 12)
    figure = Figure(figsize=(size + 0.5, size), layout="constrained")
    ax = figure.subplots()
    drawn = ax.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=100)
    if len(names) > MOST_NUMBERS:
        figure.colorbar(drawn, label="percent", shrink=0.6, pad=0.02)
    else:
        _write_numbers(ax, shares)
    step = math.ceil(len(columns) / 60)  # more names than that could not be read
    places = range(0, len(columns), step)
    small: dict[str, Any] = {"fontsize": 10 if len(columns) <= MOST_NUMBERS else 6}
    slanted: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    ax.set_xticks(places, columns[::step], **slanted, **small)
    ax.set_yticks(range(0, len(names), step), columns[: len(names) : step], **small)
    ax.set_xlabel("predicted")
    ax.set_ylabel("true")
    ax.set_title(f"{title}\nvalidation, percent of each class", fontsize="medium")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return figure


def _write_numbers(ax: Axes, shares: Tensor) -> None:
    """Writes percentages ``(rows, columns)`` into the fields of a matrix, but no zeros."""
    for row, values in enumerate(shares.tolist()):
        for column, share in enumerate(values):
            text = f"{share:.0f}" if share >= 0.5 else ""
            color = "white" if share > 55 else "black"
            ax.text(column, row, text, ha="center", va="center", color=color)


def samples(
    images: Callable[[list[int]], Tensor],
    labels: Tensor,
    logits: Tensor,
    names: Sequence[str],
    title: str,
) -> Figure:
    """Draws images with predicted and true names: mistakes in orange, the most confident first.

    If there is room, the least certain of the right answers follow in blue.

    Args:
        images: Returns the images at some places, ``(n, 3, size, size)`` uint8.
        labels: ``(N,)``, columns of the logits.
        logits: ``(N, K)``, divided by the temperature.
        names: Of the K classes.
        title: Above all.
    """
    confidences, predicted = logits.double().softmax(1).max(1)
    mistaken = predicted != labels
    order = torch.where(mistaken, -1 - confidences, confidences).argsort()
    columns = SAMPLES[1]
    shown = _short(names)
    centred: dict[str, Any] = {"ha": "center", "va": "bottom"}
    centred["fontsize"] = 8 if max(map(len, shown)) <= 11 else 6.5  # so that no captions overlap
    chosen = order[: SAMPLES[0] * columns].tolist()
    rows = math.ceil(len(chosen) / columns)
    figure = Figure(figsize=(1.15 * columns, 1.5 * rows + 0.6))
    counted = f"{int(mistaken.sum()):,} of {len(labels):,} validation images are mistaken"
    figure.suptitle(f"{title}: {counted}\n(predicted class, its probability, true class)")
    ax = figure.add_axes((0.01, 0, 0.98, 1 - 0.6 / figure.get_figheight()))
    corners = _tiles(ax, images(chosen), columns, gap=0.08, gap_above=0.4)
    for (left, top), number in zip(corners, chosen, strict=True):
        name, truth = (shown[int(which[number])] for which in (predicted, labels))
        text = f"{name} {confidences[number]:.0%}\ntrue: {truth}"
        color = ORANGE if mistaken[number] else BLUE
        ax.text(left + 0.5, top - 0.04, text, color=color, **centred)
    return figure


def diagram(
    logits: Tensor, labels: Tensor, temperature: float, title: str, *, by_class: bool
) -> Figure:
    """Draws how often a model is right against how sure it is: a reliability diagram.

    The arguments are those of `reliability`. Larger points and the bars have more images.
    """
    figure = Figure(figsize=(5.2, 6.2), layout="constrained")
    ax, bars = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    ax.plot((0, 1), (0, 1), color=GREY, linestyle=":", linewidth=1)
    ways = [(1.0, ORANGE, "^", "--")] if temperature != 1 else []
    ways.append((temperature, BLUE, "o", "-"))
    width = 1 / BINS / len(ways)
    for place, (divisor, colour, marker, line) in enumerate(ways):
        found = reliability(logits, labels, divisor, by_class=by_class)
        there = found.shares > 0
        points = found.confidences[there].tolist(), found.accuracies[there].tolist()
        label = f"temperature {divisor:g}: error {found.error:.1%} (by chance {found.chance:.1%})"
        ax.plot(*points, color=colour, linestyle=line, linewidth=1, alpha=0.5)
        sizes = (15 + 300 * found.shares[there]).tolist()  # few images say little
        ax.scatter(*points, sizes, color=colour, marker=marker, alpha=0.8, label=label)
        lefts = [number / BINS + place * width for number in range(BINS)]
        bars.bar(lefts, found.shares.tolist(), width=width, align="edge", color=colour)
    ax.set_title(f"{title}\nabove the dotted line it is too modest, below too sure", fontsize=10)
    figure.legend(loc="outside lower center", frameon=False)
    ax.set_ylabel("share that is right (validation images)")
    bars.set_ylabel("images")
    bars.set_xlabel("probability of the predicted class")
    for each in (ax, bars):
        each.yaxis.set_major_formatter(ticker.PercentFormatter(1))
        plain(each)
    bars.xaxis.set_major_formatter(ticker.PercentFormatter(1))
    return figure


def _shower(model: Network, pictures: Pictures) -> Callable[[list[int]], Tensor]:
    """Returns what reads some pictures for people, in the frame of the model."""
    if not isinstance(model, Backbone):
        return lambda chosen: pictures.examples().images[chosen]
    frame = model.frame
    resize = frame.resize and round(frame.resize * SHOWN / frame.size)
    small = dataclasses.replace(frame, size=SHOWN, resize=resize)
    return lambda chosen: torch.cat(list(pictures.stream(chosen, small)))


def first_kernels(model: nn.Module) -> Tensor | None:
    """Returns the kernels ``(K, 3, H, W)`` of the first convolution, at most 64. None: no such."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and layer.in_channels == 3:
            return layer.weight.detach()[:64]
    return None


def filters(kernels: Tensor, title: str) -> Figure:
    """Draws kernels ``(K, 3, H, W)``; grey is zero, the largest weight has full colour."""
    scaled = 0.5 + kernels / kernels.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-12) / 2
    columns = 8
    figure = Figure(figsize=(columns, math.ceil(len(kernels) / columns) + 0.5))
    figure.suptitle(f"{title}: first-layer kernels, grey is zero")
    ax = figure.add_axes((0.01, 0.01, 0.98, 0.98 - 0.5 / figure.get_figheight()))
    _tiles(ax, scaled, columns, gap=0.1)
    return figure


def comparison(
    histories: Mapping[str, Sequence[Sequence[HistoryRow]]],
    seconds_base: float | None,
    title: str,
    *,
    seconds_reading: float = 0.0,
    documented: bool = False,
    always: Always = None,
) -> Figure:
    """Draws validation accuracy against time for transfer, transfer and finetuning, and scratch.

    Args:
        histories: For each stage on the new classes, the epochs of each seed.
        seconds_base: How long the base model took. None: it was there before.
        title: The title.
        seconds_reading: How long reading took. It is in the time of each stage, and counts once.
        documented: Mark the documented result.
        always: Where classes are unequal, from `always_words`.
    """
    key = deciding(vars(row) for seeds in histories.values() for rows in seeds for row in rows)
    figure = Figure(figsize=(8.5, 5), layout="constrained")
    ax = figure.subplots()
    ways: dict[str, list[tuple[float, float]]] = {}  # to each stage, on from the one before it
    for stage, of_seeds in histories.items():
        rows = _mean(of_seeds)
        before = [ways[other][-1] for other in stages.way_to(stage)[-2:-1]]
        start = before[0][0] - seconds_reading if before else 0.0
        ways[stage] = before + [
            (row.seconds_total_so_far + start, getattr(row, key)) for row in rows
        ]
    names = {stage: stages.way_name(stage) for stage in ways}
    styles: dict[str, dict[str, Any]] = {}
    for stage, points in ways.items():
        accuracy = f"{points[-1][1]:.1%}{_draw_spread(ax, stage, points, histories[stage], key)}"
        last = f"{accuracy} in {_seconds(points[-1][0])}"
        styles[stage] = {**_style(stage), "markevery": math.ceil(len(points) / 20)}
        ax.plot(*zip(*points, strict=True), label=f"{names[stage]}: {last}", **styles[stage])
    low = min(accuracy for points in ways.values() for _, accuracy in points)
    for stage in (name for name in histories if stages.STAGES[name].trains == stages.HEAD):
        first = _mean(histories[stage])[0]
        end = first.seconds_total_so_far - first.seconds_train - first.seconds_validation
        computed = f"{stage}'s features, computed once: {_seconds(first.seconds_features_so_far)}"
        bar: dict[str, Any] = {"color": stages.STAGES[stage].colour, "linewidth": 6, "alpha": 0.4}
        begin = end - first.seconds_features_so_far
        ax.plot((begin, end), (low, low), label=computed, **bar, solid_capstyle="butt")
    if seconds_base is not None:
        ax.axvline(seconds_base, color=GREY, linestyle=":", linewidth=1)
        trained = f"base trained: {_seconds(seconds_base)}"
        at_foot = (seconds_base, ax.get_ylim()[0])
        ax.annotate(trained, at_foot, xytext=(-11, 4), **SMALL, color=GREY, rotation=90)
        for stage in (stage for stage in ways if stages.takes_base(stages.way_to(stage)[0])):
            start = seconds_base - seconds_reading
            later = [(start + seconds, accuracy) for seconds, accuracy in ways[stage]]
            label = f"{names[stage]}, and its base before: {_seconds(later[-1][0])}"
            hollow: dict[str, Any] = {"linestyle": "--", "markerfacecolor": "white"}
            ax.plot(*zip(*later, strict=True), label=label, **styles[stage], **hollow)
    ax.set_xlim(0)
    if documented:
        _mark_documented(ax)
    ax.set_xlabel("seconds to the end of each epoch, from the start, reading and features included")
    what = _draw_always(ax, key, always)
    label_accuracy(ax, f"validation accuracy, new classes{what}")
    ax.set_title(f"What transfer saves and costs: {title}")
    plain(ax)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def _style(stage: str) -> dict[str, Any]:
    return {"color": stages.STAGES[stage].colour, "marker": stages.STAGES[stage].marker}


def _mean(histories: Sequence[Sequence[HistoryRow]]) -> list[HistoryRow]:
    """Averages the epochs of several seeds."""
    names = [field.name for field in dataclasses.fields(HistoryRow)]
    return [
        HistoryRow(**{name: statistics.mean(getattr(row, name) for row in rows) for name in names})
        for rows in zip(*histories, strict=True)
    ]


def _draw_spread(
    ax: Axes,
    stage: str,
    points: Sequence[tuple[float, float]],
    histories: Sequence[Sequence[HistoryRow]],
    key: str,
) -> str:
    """Draws a band of the standard deviation over seeds. Returns the last deviation in words."""
    if len(histories) == 1:
        return ""
    spreads = [
        statistics.stdev(getattr(row, key) for row in rows) for rows in zip(*histories, strict=True)
    ]
    own = points[-len(spreads) :]  # the first may be the end of the stage before it
    seconds = [second for second, _ in own]
    low, high = (
        [accuracy + sign * spread for (_, accuracy), spread in zip(own, spreads, strict=True)]
        for sign in (-1, 1)
    )
    colour = stages.STAGES[stage].colour
    ax.fill_between(seconds, low, high, alpha=0.15, linewidth=0, color=colour)
    return f" +- {100 * spreads[-1]:.1f}"


def _draw_always(ax: Axes, key: str, always: Always) -> str:
    """Draws what always saying the most frequent class gives, if the mean over classes is drawn.

    Returns what the label of the axis says then.
    """
    if always is not None and key == "val_balanced_accuracy":
        ax.axhline(always[0], label=always[1], color=GREY, linestyle=":", linewidth=1)
    return f"\n({MEAN})" if key == "val_balanced_accuracy" else ""


def images(sizes: Sequence[Mapping[str, Any]], title: str, always: Always = None) -> Figure:
    """Draws validation accuracy against the number of labelled training images.

    ``sizes`` are those of `compare`. Means and standard deviations are drawn. ``always`` is from
    `always_words`.
    """
    key = deciding(way for size in sizes for way in size["ways"].values())
    figure = Figure(figsize=(7, 4.3), layout="constrained")
    ax = figure.subplots()
    numbers = [size["images_train"] for size in sizes]
    for stage in stages.STAGES:
        if (way := stages.way_name(stage)) not in sizes[0]["ways"]:
            continue
        found = [size["ways"][way][key] for size in sizes]
        spreads = [accuracy["deviation"] or 0 for accuracy in found]
        means = [accuracy["mean"] for accuracy in found]
        ax.errorbar(numbers, means, spreads, label=way, capsize=3, **_style(stage))
    ax.set_xscale("log")
    ax.set_xticks(numbers, [f"{number:,}" for number in numbers])
    ax.xaxis.set_minor_locator(ticker.NullLocator())
    ax.set_xlabel("labelled training images of the new classes (logarithmic)")
    what = _draw_always(ax, key, always)
    label_accuracy(ax, f"validation accuracy{what}")
    ax.set_title(title)
    if what:  # the dotted line is at the bottom
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    else:
        ax.legend(frameon=False, loc="lower right")
    plain(ax)
    return figure


def _mark_documented(ax: Axes) -> None:
    """Marks the documented result. If it is beyond the right edge, the mark is at the edge."""
    seconds = min(DOCUMENTED_SECONDS, ax.get_xlim()[1])
    marker = "*" if seconds == DOCUMENTED_SECONDS else ">"
    place = (seconds, DOCUMENTED_ACCURACY)
    ax.plot(*place, color=BLUE, marker=marker, markersize=9, clip_on=False)
    total = DOCUMENTED_SECONDS + DOCUMENTED_BASE_SECONDS
    mark = (
        f"documented transfer: {DOCUMENTED_ACCURACY:.1%}\n"
        f"in {DOCUMENTED_SECONDS} s, {total:,} s with its base"
    )
    ax.annotate(mark, place, xytext=(-8, 0), **SMALL, color=BLUE, ha="right", va="center")


def _read(folder: Path) -> tuple[dict[str, Any], list[HistoryRow]]:
    result, _ = read_result(folder / stages.RESULT)
    return result, read_history(folder / stages.HISTORY, result["epochs"])


def _tiles(
    ax: Axes, images: Tensor, columns: int, *, gap: float, gap_above: float | None = None
) -> list[tuple[float, float]]:
    """Shows images ``(N, 3, height, width)`` in rows, one unit wide. Returns their corners."""
    above = gap if gap_above is None else gap_above
    corners = [
        (place % columns * (1 + gap), place // columns * (1 + above))
        for place in range(len(images))
    ]
    for (left, top), image in zip(corners, images, strict=True):
        ax.imshow(image.permute(1, 2, 0).numpy(), extent=(left, left + 1, top + 1, top))
    rows = math.ceil(len(images) / columns)
    ax.set_xlim(0, columns * (1 + gap) - gap)
    ax.set_ylim(rows * (1 + above) - above, gap - above)
    ax.set_axis_off()
    return corners


def _seconds(seconds: float) -> str:
    return f"{seconds:.{0 if seconds >= 9.95 else 1}f} s"


def _short(names: Sequence[str], most: int = 14) -> list[str]:
    """Cuts long names: at the end, or in the middle where names that differ would not differ."""
    texts = [printable(name) for name in names]
    for end in (0, most // 2):
        short = [
            text
            if len(text) <= most
            else f"{text[: most - 1 - end]}\u2026{text[len(text) - end :]}"
            for text in texts
        ]
        if len({*short}) == len({*texts}):
            return short
    return [
        text if len(text) <= most else f"{text[: most - 3 - len(str(place))]}\u2026 #{place}"
        for place, text in enumerate(texts, 1)
    ]


def label_accuracy(ax: Axes, label: str) -> None:
    """Labels the vertical axis, which ends at 100 %. The data must be drawn before."""
    ax.set_ylabel(label)
    ax.yaxis.set_major_formatter(ticker.PercentFormatter(1))
    ax.set_ylim(top=min(1.01, ax.get_ylim()[1]))


def plain(ax: Axes) -> None:
    """Leaves two axes and a light grid of the frame."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)


@contextlib.contextmanager
def _drawing() -> Iterator[None]:
    """Sets matplotlib up for names with any character, such as dollar signs."""
    with matplotlib.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # shown as boxes
        yield
