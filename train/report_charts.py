"""The charts of a report: curves over steps as inline SVG, in the page's own colours.

Names of families and languages stand in the page and not in the drawings, so nothing that a run
folder holds but its numbers is drawn. Read next: `report_template.html`.
"""

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import (
    EngFormatter,
    Formatter,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullLocator,
)

from .console import progress

Row = dict[str, Any]
Curve = tuple[str, Sequence[float], Sequence[float]]

COLOURS = {
    "#010101": "var(--ink)",
    "#020202": "var(--muted)",
    "#030303": "var(--grid)",
    "#040404": "var(--train)",
    "#050505": "var(--heldout)",
}
"""What charts are drawn in, and the style sheet's colour that each stands for."""
CURVES: dict[str, dict[str, Any]] = {
    "rows": {"color": "#040404", "linewidth": 0.7, "alpha": 0.35},
    "smooth": {"color": "#040404", "linewidth": 1.5},
    "whole": {"color": "#020202", "linewidth": 1.0, "alpha": 0.8},
    "heldout": {"color": "#050505", "linewidth": 0.9, "marker": "o", "markersize": 2.6},
}
"""How each kind of curve looks."""
LARGE, SMALL = (4.6, 2.3), (2.1, 1.35)
"""Width and height of charts, inches; the page scales them."""
MARGINS = {LARGE: (0.42, 0.2, 0.1, 0.08), SMALL: (0.24, 0.18, 0.08, 0.06)}
"""Room for a chart's labels, inches: left, bottom, right, top."""
MARKED = 25
"""A held-out curve of more points is drawn without dots."""
BEGINNING = 0.1
"""This part of the steps may leave the frame of small charts, or it would flatten the rest."""
POINTS = 300
"""A curve has at most so many, the lowest and the highest of each stretch."""
SMOOTHING = 40
"""A smooth curve is a moving mean over this part of its rows."""


def numbers(rows: Iterable[Row], *keys: str) -> tuple[list[float], list[float]]:
    """Steps and the finite numbers at a nested key."""
    steps, values = [], []
    for row in rows:
        value: Any = row
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, int | float) and math.isfinite(value):
            steps.append(float(row["step"]))
            values.append(float(value))
    return steps, values


def smoothing_window(count: int) -> int:
    """Over how many rows of so many a smooth curve is a mean; odd."""
    return 2 * (count // SMOOTHING // 2) + 1


def _smooth(values: Sequence[float]) -> list[float]:
    """A centred moving mean; at the ends over as many as there are."""
    if not values:
        return []
    window = np.ones(smoothing_window(len(values)))
    means = np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")
    return [float(mean) for mean in means]


def _thin(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    if len(values) <= POINTS:
        return list(steps), list(values)
    kept: list[int] = []
    for stretch in np.array_split(np.arange(len(values)), POINTS // 2):
        low = min(stretch, key=lambda i: values[i])
        high = max(stretch, key=lambda i: values[i])
        kept += sorted({int(low), int(high)})
    return [steps[i] for i in kept], [values[i] for i in kept]


def _trained(rows: Sequence[Row], *keys: str) -> list[Curve]:
    steps, values = numbers(rows, *keys)
    return [("rows", steps, values), ("smooth", steps, _smooth(values))] if values else []


def _smoothed(rows: Sequence[Row], key: str) -> list[Curve]:
    """What needs no smoothing."""
    return [("smooth", *numbers(rows, key))]


def draw_charts(
    train: Sequence[Row], heldout: Sequence[Row], family_of: Mapping[str, str]
) -> dict[str, Any]:
    """All charts of a run.

    Args:
        train, heldout: rows of metrics.jsonl.
        family_of: language code -> family.
    Returns:
        Name -> (title, SVG), and `families` and `languages` -> list of (name, SVG); None stands
        for an SVG where there is nothing to draw.
    """
    if not train and not heldout:
        return {}
    heldout = [{**row, "families": _pooled(row, family_of)} for row in heldout]
    steps, values = numbers(train, "loss")
    whole: Curve = ("whole", steps, _smooth(values))
    compact = FuncFormatter(lambda value, _: f"{value:.3g}")
    share = FuncFormatter(lambda value, _: f"{100 * value:.3g}%")
    counts = EngFormatter(sep="")
    mean: Curve = ("heldout", *numbers(heldout, "mean_bpb"))
    plain: list[tuple[str, str, list[Curve], Formatter, str]] = [
        ("loss", "Loss, nats a token", _trained(train, "loss"), compact, ""),
        ("bpb", "Bits per byte", [*_trained(train, "bpb"), mean], compact, ""),
        ("rate", "Learning rate", _smoothed(train, "learning_rate"), compact, "zero"),
        ("norm", "Gradient norm, before clipping", _trained(train, "gradient_norm"), compact,
         "log"),
        ("speed", "Tokens a second", _trained(train, "tokens_per_second"), counts, "zero"),
        ("mfu", "Model FLOP utilisation", _trained(train, "mfu"), share, "zero"),
        ("wait", "Time spent waiting for data", _trained(train, "data_wait_share"), share, "zero"),
        ("memory", "Memory, GiB", _smoothed(train, "memory_gib"), compact, "zero"),
    ]  # fmt: skip
    small: list[tuple[str, str, list[Curve]]] = [
        (
            part,
            name,
            [
                whole,
                *_trained(train, part, name, "loss"),
                ("heldout", *numbers(heldout, part, name, "loss")),
            ],
        )
        for part in ("families", "languages")
        for name in sorted({name for row in [*train, *heldout] for name in row.get(part, {})})
    ]
    limits = _shared_limits([curve for _, _, curves in small for curve in curves])
    drawn: dict[str, Any] = {"families": [], "languages": []}
    with progress("charts of the report", len(plain) + len(small)) as advance:
        for key, title, curves, style, scale in plain:
            drawn[key] = (title, curve_chart(key, curves, style, LARGE, scale=scale))
            advance()
        for part, name, curves in small:
            drawing = curve_chart(f"{part}/{name}", curves, compact, SMALL, limits=limits)
            drawn[part].append((name, drawing))
            advance()
    return drawn


def _pooled(row: Row, family_of: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """A held-out row's loss by family."""
    sums: dict[str, list[float]] = {}
    for code, scored in row["languages"].items():
        held = sums.setdefault(family_of.get(code, ""), [0.0, 0.0])
        held[0] += scored["loss"] * scored["tokens"]
        held[1] += scored["tokens"]
    return {name: {"loss": nll / tokens} for name, (nll, tokens) in sums.items() if name and tokens}


def _shared_limits(curves: Sequence[Curve]) -> tuple[float, float] | None:
    last = max((steps[-1] for _, steps, _ in curves if steps), default=0.0)
    values = [
        value
        for kind, steps, points in curves
        for step, value in zip(steps, points, strict=True)
        if kind in ("smooth", "heldout") and step > BEGINNING * last
    ]
    if not values:
        return None
    low, high = min(values), max(values)
    room = 0.08 * (high - low or 1)
    return low - room, high + room


def curve_chart(
    key: str,
    curves: Sequence[Curve],
    style: Formatter,
    inches: tuple[float, float],
    *,
    limits: tuple[float, float] | None = None,
    scale: str = "",
) -> Markup | None:
    """A chart as inline SVG in the page's own colours; None where there is nothing to draw."""
    if not any(values for kind, _, values in curves if kind != "whole"):
        return None
    # Chart ids must differ, or one chart would be clipped by another's frame.
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": key, "font.size": 8}
    with rc_context(settings):
        width, height = inches
        left, bottom, right, top = MARGINS[inches]
        figure = Figure(figsize=inches)
        # A layout engine would take two thirds of the time; the labels are all of a kind.
        axes = figure.add_axes((
            left / width, bottom / height,
            1 - (left + right) / width, 1 - (bottom + top) / height,
        ))  # fmt: skip
        for kind, steps, values in curves:
            marks = {"markersize": 0} if len(values) > MARKED and kind == "heldout" else {}
            axes.plot(*_thin(steps, values), **CURVES[kind] | marks)
        drawn = [value for _, _, values in curves for value in values]
        if scale == "log" and min(drawn) > 0 and max(drawn) > 10 * min(drawn):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
            axes.yaxis.set_minor_locator(NullLocator())
        else:
            axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        if limits:
            axes.set_ylim(*limits)
        elif scale == "zero":
            axes.set_ylim(0, 1.08 * max(drawn) or 1)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.yaxis.set_major_formatter(style)
        axes.tick_params(length=0, labelcolor="#020202")
        axes.grid(color="#030303", linewidth=0.6)
        axes.spines[:].set_visible(False)
        axes.patch.set_visible(False)
        figure.patch.set_visible(False)
        return _inline(figure)


def _inline(figure: Figure) -> Markup:
    text = io.StringIO()
    canvas: Any = FigureCanvasSVG(figure)
    canvas.print_svg(text, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r' id="(figure|axes|patch|matplotlib|xtick|ytick|line2d|text)[^"]*"', "", svg)
    svg = re.sub(r' d="[^"]*"', lambda d: re.sub(r"(\.\d)\d+", r"\1", d[0]), svg)
    for sentinel, colour in COLOURS.items():
        svg = svg.replace(sentinel, colour)
    return Markup(svg)
