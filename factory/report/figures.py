"""Figures of the report, as SVG to be put into a page: for screen readers, print and dark mode.

Text stays text (``svg.fonttype none``) and takes the page's colour; every figure has a title and a
description in words. This module knows figures only, not where they come from.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from itertools import cycle, pairwise
from math import isnan
from typing import Any, TypeVar, cast

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from factory.benchmark.outcome import SIGNIFICANT, STEERED, UNSTEERED, TaskResult
from factory.evaluation.cell import Cell
from factory.evaluation.figures import CellFigures, Reading, StateFigures

INK = "#010203"  # stands for the page's text colour, and is replaced by it
COLORS = ("#3b82c4", "#d9822b", "#4f9d69", "#9a6bc4", "#c4536b", "#7a8a99")
SIZE = (4.4, 2.9)  # inches; small, so that text is readable on a phone

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
Draw = TypeVar("Draw", bound=Callable[..., str])


def _in_style(draw: Draw) -> Draw:
    """Let ``draw`` make its axes and write its SVG in our style; matplotlib's own settings stay as they were."""

    @wraps(draw)
    def drawn(*what: Any, **how: Any) -> str:
        with matplotlib.rc_context(STYLE):
            return draw(*what, **how)

    return cast(Draw, drawn)


def _axes(size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.add_subplot()


def to_svg(figure: Figure, name: str, title: str, description: str) -> str:
    """The figure as an ``<svg>`` element whose ids start with ``name``."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(?::\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{name}-", svg)
    svg = svg.replace("xlink:href", "href").replace(INK, "currentColor")
    svg = re.sub(r'<svg[^>]*?viewBox="([^"]*)"[^>]*>', _open_tag(name, title, description), svg, count=1)
    return re.sub(r">\s+<", "><", svg)


def _open_tag(name: str, title: str, description: str) -> str:
    texts = f"<title id='{name}-title'>{html.escape(title)}</title><desc id='{name}-desc'>{html.escape(description)}"
    labels = f"aria-labelledby='{name}-title {name}-desc'"
    return (rf'<svg role="img" id="{name}" viewBox="\1" {labels}>{texts}</desc>').replace("'", '"')


@_in_style
def sweep_figure(name: str, cells: Sequence[CellFigures], baseline: float) -> str:
    """Share of answers in the style against strength, with intervals, one curve for what else was set.

    ``baseline``: the share without steering.
    """
    figure, axes = _axes()
    curves: dict[str, list[tuple[float, float, float, float, float]]] = {}
    for cell in cells:
        figures = cell.figures
        point = (cell.setting.strength, figures.share, *figures.interval, figures.loops)
        curves.setdefault(f"layers {_row_of(cell.setting)}", []).append(point)
    strengths = sorted({cell.setting.strength for cell in cells})
    sideways = _side_by_side(len(curves), strengths)
    for color, shift, (label, points) in zip(cycle(COLORS[:5]), sideways, sorted(curves.items()), strict=False):
        strength, shares, lows, highs, loops = (list(column) for column in zip(*sorted(points), strict=True))
        at = [x + shift for x in strength]
        errors = [_apart(shares, lows), _apart(highs, shares)]
        axes.errorbar(at, shares, yerr=errors, marker="o", capsize=3, color=color, label=label)
        axes.plot(at, loops, marker="x", linestyle=":", color=color, alpha=0.8)
    axes.axhline(baseline, color=COLORS[5], linestyle="--", linewidth=1, label="unsteered")
    axes.plot([], [], marker="x", linestyle=":", color=COLORS[5], label="answers that loop")
    _percent(axes)
    axes.set_xticks(strengths, [f"{strength:g}" for strength in strengths])
    axes.set_xlabel("strength")
    axes.set_ylabel("answers in the style")
    axes.legend(loc="best")
    lines = [f"{label} at strength {x:g}: {y:.0%}" for label, points in curves.items() for x, y, *_ in sorted(points)]
    description = f"Unsteered {baseline:.0%}. " + "; ".join(lines)
    return to_svg(figure, name, "Sweep: answers in the style by strength", description)


def _side_by_side(n_curves: int, strengths: Sequence[float]) -> list[float]:
    """How far each curve stands beside its strengths, so that no interval hides another."""
    gaps = [above - below for below, above in pairwise(strengths)] or [1.0]
    step = min(0.025 * sum(gaps), 0.4 * min(gaps) / n_curves)
    return [step * (number - (n_curves - 1) / 2) for number in range(n_curves)]


def _apart(above: Sequence[float], below: Sequence[float]) -> list[float]:
    return [max(0.0, high - low) for high, low in zip(above, below, strict=True)]


def _percent(axes: Axes) -> None:
    axes.set_ylim(-0.03, 1.05)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.grid(axis="y", alpha=0.25)


@_in_style
def compared_figure(name: str, measured: Mapping[str, StateFigures]) -> str:
    """Unsteered, prompted, steered and the controls: answers in the style, with intervals."""
    figure, axes = _axes((SIZE[0], 2.4))
    parts = list(measured)
    shares = [figures.share for figures in measured.values()]
    lows, highs = ([figures.interval[end] for figures in measured.values()] for end in (0, 1))
    colors = [COLORS[0] if part == "steered" else COLORS[5] for part in parts]
    errors = [_apart(shares, lows), _apart(highs, shares)]
    axes.barh(parts, shares, xerr=errors, color=colors, ecolor=INK, capsize=3, height=0.6)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.05)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.set_xlabel("answers in the style, with 95 % interval")
    words = [
        f"{part} {share:.0%} ({low:.0%} to {high:.0%})"
        for part, share, low, high in zip(parts, shares, lows, highs, strict=True)
    ]
    return to_svg(figure, name, "Answers in the style", "; ".join(words))


@_in_style
def forest_figure(name: str, result: TaskResult) -> str:
    """Right answers to a task under every condition: a forest plot with Wilson's intervals.

    The dashed line is the unsteered model; ``*`` stands where McNemar's test tells a condition from it.
    """
    outcomes = result.outcomes
    figure, axes = _axes((SIZE[0], 1.1 + 0.3 * len(outcomes)))
    labels = []
    for row, outcome in enumerate(outcomes):
        right, against = outcome.accuracy, result.comparison(outcome.condition, UNSTEERED)
        errors = [[length] for length in (*_apart([right.share], [right.low]), *_apart([right.high], [right.share]))]
        color = COLORS[0] if outcome.role == STEERED else COLORS[5]
        axes.errorbar(right.share, row, xerr=errors, marker="s", markersize=6, capsize=3, color=color)
        labels.append(f"{outcome.condition}{' *' if against and against.p < SIGNIFICANT else ''}")
    axes.axvline(result.outcome(UNSTEERED).accuracy.share, color=COLORS[5], linestyle="--", linewidth=1)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlim(-0.03, 1.03)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.grid(axis="x", alpha=0.25)
    axes.set_xlabel("right answers, with 95 % interval")
    words = [
        f"{label} {one.accuracy.share:.0%} ({one.accuracy.low:.0%} to {one.accuracy.high:.0%})"
        for label, one in zip(labels, outcomes, strict=True)
    ]
    return to_svg(figure, name, f"Right answers to {result.n_items} items of {result.task}", "; ".join(words))


@_in_style
def topic_figure(name: str, measured: Mapping[str, StateFigures]) -> str:
    """Relevance of each state's answers, where it was measured, and how many of its sentences stand in several."""
    figure = Figure(figsize=SIZE, layout="constrained")
    left, right = figure.subplots(1, 2)
    read = {part: figures.relevance for part, figures in measured.items() if figures.relevance is not None}
    repeated = {part: figures.repeated_sentences or 0.0 for part, figures in measured.items() if part in read}
    colors = [COLORS[0] if part == "steered" else COLORS[5] for part in read]
    left.bar(list(read), list(read.values()), color=colors, width=0.6)
    left.axhline(0, color=INK, linewidth=0.8)
    left.set_ylabel("relevance, nats per token")
    right.bar(list(repeated), list(repeated.values()), color=colors, width=0.6)
    right.set_ylabel("repeated sentences")
    _percent(right)
    for axes in (left, right):
        axes.tick_params(axis="x", rotation=35)
    words = "; ".join(f"{part} {read[part]:.2f} nats, {repeated[part]:.0%} repeated" for part in read)
    return to_svg(figure, name, "Relevance and repeated sentences", words)


@_in_style
def probe_figure(name: str, readings: Sequence[Reading]) -> str:
    """The probe: how likely the style's openings become, by layer set and strength."""
    rows = sorted({_row_of(reading.setting) for reading in readings})
    columns = sorted({reading.setting.strength for reading in readings})
    numbers = [[float("nan")] * len(columns) for _ in rows]
    for reading in readings:
        row, column = rows.index(_row_of(reading.setting)), columns.index(reading.setting.strength)
        numbers[row][column] = reading.openings
    figure, axes = _axes((SIZE[0], 1.1 + 0.3 * len(rows)))
    _heat(axes, numbers, rows, [f"{column:g}" for column in columns], "{:.1f}")
    axes.set_xlabel("strength")
    words = [f"{_row_of(r.setting)}, strength {r.setting.strength:g}: {r.openings:.1f}" for r in readings]
    return to_svg(figure, name, "Probe: log-probability of the style's openings (nats)", "; ".join(words))


def _row_of(setting: Cell) -> str:
    keys = f", keys {setting.key_strength:g}" if setting.key_strength else ""
    return f"{setting.layers}, {setting.n_positions} pos.{keys}"


def _heat(axes: Axes, numbers: Any, rows: Sequence[str], columns: Sequence[str], text: str = "") -> None:
    axes.imshow(numbers, cmap="viridis", aspect="auto")
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xticks(range(len(columns)), columns)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0)
    if not text:
        return
    known = [number for line in numbers for number in line if not isnan(number)]
    lowest, highest = min(known), max(known)
    for row, line in enumerate(numbers):
        for column, number in enumerate(line):
            dark = float(number) < lowest + 0.6 * (highest - lowest)
            color = "white" if dark else "black"
            axes.text(column, row, text.format(number), ha="center", va="center", color=color, fontsize=9)


@_in_style
def layers_figure(name: str, norms: Sequence[Sequence[float]], layers: Sequence[int], chosen: Sequence[int]) -> str:
    """Norm of the vector's values at each layer and head: ``norms`` is [n_layers][n_kv_heads]."""
    figure, axes = _axes((SIZE[0], 2.0))
    heads = [list(head) for head in zip(*norms, strict=True)]
    image = axes.imshow(heads, cmap="viridis", aspect="auto")
    axes.set_yticks(range(len(heads)), [f"head {head}" for head in range(len(heads))])
    step = max(1, len(layers) // 10)
    axes.set_xticks(range(0, len(layers), step), [str(layer) for layer in layers[::step]])
    axes.set_xlabel("layer")
    marked = [index for index, layer in enumerate(layers) if layer in chosen]
    if marked:
        below = len(heads) - 0.42
        axes.plot([marked[0] - 0.4, marked[-1] + 0.4], [below, below], color=COLORS[1], linewidth=3, clip_on=False)
    figure.colorbar(image, ax=axes, label="norm of values")
    strongest = max(range(len(layers)), key=lambda index: sum(norms[index]))
    steered = f" Steered layers, underlined: {chosen[0]} to {chosen[-1]}." if chosen else ""
    description = f"{len(layers)} layers, {len(heads)} KV heads; the largest values are in layer {layers[strongest]}."
    return to_svg(figure, name, "Where the vector is strong", description + steered)


@_in_style
def convergence_figure(name: str, curve: Sequence[Sequence[float]], enough: float) -> str:
    """Agreement of two halves of the pairs, against how many pairs there are."""
    figure, axes = _axes()
    counts, cosines = [point[0] for point in curve], [point[1] for point in curve]
    axes.plot(counts, cosines, marker="o", color=COLORS[0], label="split-half cosine")
    axes.axhline(enough, color=COLORS[2], linestyle="--", linewidth=1, label=f"enough pairs ({enough:.2f})")
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(int(count)) for count in counts])
    axes.minorticks_off()
    axes.set_ylim(min(0.0, *cosines), 1.05)
    axes.grid(axis="y", alpha=0.25)
    axes.set_xlabel("pairs")
    axes.set_ylabel("split-half cosine")
    axes.legend(loc="lower right")
    words = ", ".join(f"{int(count)} pairs {value:.2f}" for count, value in curve)
    return to_svg(figure, name, "Convergence: are there enough pairs?", words)


@_in_style
def learning_figure(name: str, curve: Sequence[Mapping[str, Any]], best_round: int) -> str:
    """Loss of each round's pairs, and of those that validate; ``curve`` is that of the vector's metadata."""
    figure, axes = _axes()
    taught = [(entry["round"], entry["loss"]) for entry in curve if entry["loss"] is not None]
    validated = [(entry["round"], entry["validation"]) for entry in curve if entry["validation"] is not None]
    axes.plot([x for x, _ in taught], [y for _, y in taught], color=COLORS[0], alpha=0.6, label="pairs of the round")
    if validated:
        xs, ys = zip(*validated, strict=True)
        axes.plot(xs, ys, marker="o", color=COLORS[1], label="pairs that validate")
    axes.axvline(best_round, color=COLORS[2], linestyle="--", linewidth=1, label=f"kept: before round {best_round}")
    axes.grid(axis="y", alpha=0.25)
    axes.set_xlabel("round")
    axes.set_ylabel("loss, nats per token")
    axes.legend(loc="best")
    words = ", ".join(f"before round {number} {loss:.3f}" for number, loss in validated or taught)
    description = f"Kept is the vector before round {best_round}. Loss: {words}"
    return to_svg(figure, name, "Learning: loss by round", description)


@_in_style
def agreement_figure(name: str, bins: Sequence[int]) -> str:
    """How many pairs agree how well with the mean: a histogram of cosines from -1 to 1."""
    figure, axes = _axes()
    width = 2 / len(bins)
    lefts = [-1 + width * index for index in range(len(bins))]
    axes.bar(lefts, bins, width=width * 0.92, align="edge", color=COLORS[0])
    axes.set_xlim(min(-0.02, *(left for left, count in zip(lefts, bins, strict=True) if count)), 1)
    axes.set_xlabel("cosine of a pair with the vector")
    axes.set_ylabel("pairs")
    words = [f"{left:.1f} to {left + width:.1f}: {count}" for left, count in zip(lefts, bins, strict=True) if count]
    return to_svg(figure, name, "Agreement of single pairs with the vector", "; ".join(words))


@_in_style
def matrix_figure(name: str, title: str, rows: Sequence[str], columns: Sequence[str], numbers: Any) -> str:
    """A table of numbers as a heat map, each number written into its cell."""
    figure, axes = _axes((SIZE[0], 1.2 + 0.45 * len(rows)))
    _heat(axes, numbers, [_short(row) for row in rows], [_short(column) for column in columns], "{:.2f}")
    pairs = [(r, c, numbers[i][j]) for i, r in enumerate(rows) for j, c in enumerate(columns)]
    return to_svg(figure, name, title, "; ".join(f"{row} by {column}: {value:.2f}" for row, column, value in pairs))


def _short(name: str) -> str:
    return name.replace("_", " ").replace(" reasoning", "").replace(" style", "").replace(" explorer", "")
