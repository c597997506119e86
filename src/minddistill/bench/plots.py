"""Figures, out of numbers. Each function returns `Figure`s, which `save` writes and `inline_svg` puts in a page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ..files import whole_file

_INK = "#1b2430"
_COLORS = ("#2f81d6", "#e07b39", "#2aa17a", "#9a6bd8", "#d1495b", "#8a8f98", "#b8860b", "#3bb3c3")
_STYLE = {
    "axes.edgecolor": _INK,
    "axes.grid": True,
    "axes.labelcolor": _INK,
    "axes.labelsize": 9,
    "axes.prop_cycle": matplotlib.cycler(color=_COLORS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "axes.linewidth": 0.6,
    "axes.formatter.limits": (-3, 5),
    "axes.formatter.useoffset": False,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "grid.alpha": 0.18,
    "grid.color": _INK,
    "grid.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "savefig.dpi": 160,
    "svg.fonttype": "none",  # text stays text: smaller, and in the page's own font
    "svg.hashsalt": "minddistill",  # the same figure gives the same bytes
    "text.color": _INK,
    "xtick.color": _INK,
    "xtick.labelsize": 8,
    "ytick.color": _INK,
    "ytick.labelsize": 8,
}
_styled = matplotlib.rc_context(_STYLE)
_SMALL = (4.4, 2.7)  # inches: legible where a phone shows one, and a page three side by side
# What `metrics.jsonl` has besides the terms of the loss and the dev metrics.
_NOT_TERMS = {"stage", "epoch", "step", "at", "loss", "overflow", "loss_scale", "learning_rate"}
_NOT_TERMS |= {"sequences_per_second", "tokens_per_second"}
_LAYER = re.compile(r"^encoder\.layers\.(\d+)\.(.+)$")


@_styled
def save(figure: Figure, directory: Path, name: str) -> list[Path]:
    """Write `name.png` and `name.svg`, each whole. Returns their paths."""
    paths = [directory / f"{name}.{kind}" for kind in ("png", "svg")]
    for path in paths:
        metadata = {"Date": None} if path.suffix == ".svg" else None
        with whole_file(path) as part:
            figure.savefig(part, format=path.suffix[1:], metadata=metadata)
    return paths


@_styled
def inline_svg(figure: Figure, prefix: str) -> str:
    """The figure as an `svg` element whose ink is the page's text colour.

    Args:
        prefix: of its ids, which must be its own in a page.
    """
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", text)
    return text.replace("<svg ", '<svg role="img" ', 1)


@_styled
def curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """What happened over the steps of a run: loss, its terms, dev metrics, learning rate, loss scale, speed.

    Args:
        rows: of `metrics.jsonl`, in order: `stage`, `step`, and numbers by name. Stages follow each other on one axis.

    Returns:
        Figures by title; those that the rows have no numbers for are left out.
    """
    placed = list(_placed(rows))
    terms = sorted({name for row in placed for name in row if name not in _NOT_TERMS and not name.startswith("dev_")})
    dev = sorted({name for row in placed for name in row if name.startswith("dev_")})
    found = {
        "Loss": _over_steps(placed, ["loss"], "loss", smooth=True),
        "Terms of the loss": _over_steps(placed, terms, "loss", smooth=True),
        "Dev metrics": _over_steps(placed, dev, "", marker="o"),
        "Learning rate": _over_steps(placed, ["learning_rate"], "learning rate"),
        "Loss scale": _over_steps(placed, ["loss_scale"], "loss scale", finish=_loss_scale),
        "Speed": _over_steps(placed, ["tokens_per_second"], "tokens a second"),
    }
    return {title: figure for title, figure in found.items() if figure is not None}


def _placed(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows with `at`, their step counted on from the stage before."""
    start, last, stage = 0, 0, None
    for row in rows:
        if row["stage"] != stage:
            start, stage = last, row["stage"]
        last = start + row["step"]
        yield {**row, "at": last}


def _over_steps(
    rows: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    label: str,
    *,
    smooth: bool = False,
    marker: str = "",
    finish: Callable[[Axes, Sequence[Mapping[str, Any]]], None] | None = None,
) -> Figure | None:
    """Lines of some numbers over all steps, a colour for each name and stage; None where no row has them."""
    stages = list(dict.fromkeys(row["stage"] for row in rows if row.keys() & set(names)))
    figure = Figure(_SMALL)
    axes = figure.subplots()
    drawn = []
    for stage in stages:
        for name in names:
            points = [(row["at"], row[name]) for row in rows if row["stage"] == stage and name in row]
            if points:
                title = name.removeprefix("dev_").replace("_", " ")
                title = title if len(stages) == 1 else stage if len(names) == 1 else f"{stage} {title}"
                drawn.append(_line(axes, np.array(points, float), title, smooth, marker))
    if not drawn:
        return None
    values = np.concatenate(drawn)
    if smooth and values.size and values.min() > 0 and values.max() > 30 * values.min():
        axes.set_yscale("log")
    if len(drawn) > 1 or names[0].startswith("dev_"):
        axes.legend()
    axes.set(xlabel="step", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if finish is not None:
        finish(axes, rows)
    return figure


def _line(axes: Axes, points: np.ndarray, title: str, smooth: bool, marker: str) -> np.ndarray:
    """Draw points (N, 2), long ones faint under their running mean; returns the finite values."""
    steps, values = points.T
    window = len(values) // 15 if smooth else 0
    if window > 1:
        kernel = np.ones(window)
        mean = np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")
        (line,) = axes.plot(steps, mean, label=title)
        axes.plot(steps, values, color=line.get_color(), alpha=0.25, linewidth=0.8)
    else:
        axes.plot(steps, values, label=title, marker=marker or ("." if len(values) < 3 else None), markersize=4)
    return values[np.isfinite(values)]


def _loss_scale(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    axes.set_yscale("log", base=2)
    over = [(row["at"], row["loss_scale"]) for row in rows if row.get("overflow")]
    if over:
        axes.plot(*zip(*over, strict=True), "v", color=_COLORS[4], markersize=5, label="overflow: step skipped")
        axes.legend()


@dataclass(frozen=True)
class Spot:
    """A model on the scatter plot."""

    name: str
    accuracy: float
    milliseconds: float
    megabytes: float


@_styled
def trade_off(spots: Sequence[Spot], current: str, metric: str = "accuracy") -> Figure:
    """Accuracy over latency, a disc's area the size on disk; the current model has a dashed circle around it."""
    figure = Figure((5.2, 3.8))
    axes = figure.subplots()
    most = max(spot.megabytes for spot in spots)
    for index, spot in enumerate(spots):
        area = max(1600 * spot.megabytes / most, 12)
        color = _COLORS[index % len(_COLORS)]
        place = spot.milliseconds, 100 * spot.accuracy
        axes.scatter(
            *place, s=area, color=color, alpha=0.6, linewidth=0, label=f"{spot.name} ({spot.megabytes:.3g} MB)"
        )
        if spot.name == current:
            wide = (np.sqrt(area) + 12) ** 2
            axes.scatter(*place, s=wide, facecolor="none", edgecolor=_INK, linestyle="--", linewidth=1.2)
    axes.margins(0.18)
    axes.set_xlim(left=0)
    axes.set(xlabel="latency of one sentence, ms", ylabel=f"{metric}, %")
    handles, labels = axes.get_legend_handles_labels()
    dots = [Line2D([], [], marker="o", linestyle="", color=h.get_facecolor()[0]) for h in handles]
    figure.legend(dots, labels, loc="outside lower center", ncols=2)
    return figure


@_styled
def search_history(values: Sequence[float | None], metric: str) -> Figure:
    """What every trial of a search reached, and the best up to it; None for a trial that was pruned or refused."""
    figure = Figure(_SMALL)
    axes = figure.subplots()
    reached = np.array([np.nan if value is None else value for value in values], float)
    trials = np.arange(1, len(values) + 1)
    axes.plot(trials, reached, "o", markersize=4, label="trial")
    best = np.fmax.accumulate(reached)
    axes.step(trials, best, where="post", label="best")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="trial", ylabel=metric)
    axes.legend(loc="lower right")
    return figure


@_styled
def search_importance(shares: Mapping[str, float]) -> Figure:
    """The share of the metric's variance that each flag of a search explains."""
    figure = Figure((_SMALL[0], 0.8 + 0.32 * len(shares)))
    axes = figure.subplots()
    axes.barh(list(shares), list(shares.values()))
    axes.invert_yaxis()
    axes.set(xlabel="share of the variance (fANOVA)", xlim=(0, 1))
    return figure


@_styled
def weight_histograms(
    before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], names: Sequence[str]
) -> Figure:
    """Histograms of matrices before and after a change, one over the other.

    Args:
        before: arrays by path; `after` has the same, and may have more.
        names: of the two models.
    """
    paths, columns = list(before), 6
    lines = -(-len(paths) // columns)
    height = 1.55 * lines + 0.7
    figure = Figure((2.0 * columns, height), layout="none")  # a grid needs no solver, which is slow with many panels
    figure.subplots_adjust(0.04, 0.35 / height, 0.99, 1 - 0.7 / height, 0.35, 0.5)
    for place, path in enumerate(paths):
        axes = figure.add_subplot(lines, columns, place + 1)
        values = [np.ravel(before[path]), np.ravel(after[path])]
        edges = np.linspace(min(v.min() for v in values), max(v.max() for v in values), 81)
        axes.hist(values[0], edges, color=_COLORS[0], alpha=0.45, label=names[0])
        axes.hist(values[1], edges, color=_COLORS[1], histtype="step", linewidth=0.9, label=names[1])
        axes.set_yscale("log")
        axes.minorticks_off()
        axes.set_title(_short(path), fontsize=7)
        axes.tick_params(labelsize=6)
        axes.xaxis.set_major_locator(MaxNLocator(3))
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="upper center", ncols=2)
    return figure


def _short(path: str) -> str:
    """`0 query` for `encoder.layers.0.query.weight`."""
    return path.removeprefix("encoder.").removeprefix("layers.").removesuffix(".weight").replace(".", " ", 1)


@_styled
def sparsity(models: Mapping[str, Mapping[str, float]]) -> Figure:
    """The share of zeros in every matrix: a panel a model, a column a layer, a row a kind of matrix.

    Args:
        models: share of zeros by path, by the model's name.
    """
    cells = {name: {_cell(path): share for path, share in shares.items()} for name, shares in models.items()}
    kinds = list(dict.fromkeys(kind for found in cells.values() for kind, _ in found))
    layers = sorted({layer for found in cells.values() for _, layer in found})
    shape = len(kinds), len(layers)
    figure = Figure((1.9 + (0.55 * shape[1] + 0.3) * len(models), 0.9 + 0.28 * shape[0]))
    for axes, (name, found) in zip(np.ravel(figure.subplots(1, len(models), sharey=True)), cells.items(), strict=True):
        grid = np.array([[found.get((kind, layer), np.nan) for layer in layers] for kind in kinds])
        mesh = axes.pcolormesh(grid, cmap="Blues", vmin=0, vmax=1, edgecolors="white", linewidth=1)
        for (row, column), share in np.ndenumerate(grid):
            if np.isfinite(share):
                ink = "white" if share > 0.6 else _INK
                axes.text(
                    column + 0.5, row + 0.5, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=ink
                )
        axes.grid(False)
        axes.set_title(name)
        axes.set_xticks(np.arange(shape[1]) + 0.5, ["-" if layer < 0 else str(layer) for layer in layers])
        axes.set_yticks(np.arange(shape[0]) + 0.5, kinds)
        axes.set_xlabel("layer")
    figure.axes[0].invert_yaxis()
    figure.colorbar(mesh, ax=figure.axes, label="zeros", format=lambda share, _: f"{100 * share:.0f} %")
    return figure


def _cell(path: str) -> tuple[str, int]:
    """Kind and layer of a matrix; -1 where it is in none."""
    match = _LAYER.match(path)
    kind = match[2] if match else path.removeprefix("encoder.")
    return kind.removesuffix(".weight").replace("_", " "), int(match[1]) if match else -1


@_styled
def attention_maps(
    tokens: Sequence[str],
    teacher: Sequence[np.ndarray],
    student: Sequence[np.ndarray],
    layers: Sequence[int],
    title: str,
) -> Figure:
    """Attention of both models for one sentence, each student layer under the teacher layer it is compared with.

    Args:
        tokens: S of them.
        teacher, student: weights (S, S) by student layer; a row says where a token looks.
        layers: the teacher's layer of each student layer, 0-based.
    """
    size = min(max(0.17 * len(tokens) + 0.9, 2.0), 5.0)
    figure = Figure((size * len(layers) + 0.6, 2 * size + 0.3))
    panels = figure.subplots(2, len(layers), sharex=True, sharey=True, squeeze=False)
    places = np.arange(len(tokens)) + 0.5
    top = max(float(weights.max()) for weights in (*teacher, *student))
    for row, (name, maps, numbers) in enumerate(
        (("teacher", teacher, layers), ("student", student, range(len(layers))))
    ):
        for axes, weights, layer in zip(panels[row], maps, numbers, strict=True):
            mesh = axes.pcolormesh(weights, cmap="Blues", vmin=0, vmax=top, rasterized=True)
            axes.set_title(f"{name}, layer {layer}")
            axes.grid(False)
            axes.set_aspect("equal")
            axes.set_xticks(places, tokens, rotation=90, fontsize=7, parse_math=False)
            axes.set_yticks(places, tokens, fontsize=7, parse_math=False)
    panels[0, 0].invert_yaxis()
    figure.suptitle(title, fontsize=10)
    figure.colorbar(mesh, ax=panels, label="attention", shrink=0.6)
    return figure
