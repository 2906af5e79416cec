"""The pictures of token routing in a report: where languages part, and who uses which experts.

Heat maps of languages are tables, whose cells the page tints; loads and flows are SVG in the page's
own colours, cells of a tint in one path. Read next: `report_template.html`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape
from matplotlib.ticker import FuncFormatter

from .report_charts import LARGE, Curve, Row, curve_chart, numbers

SCALARS = (
    ("entropy", "Entropy of the router, nats", ""),
    ("max_vio", "MaxVio: the busiest expert over its target", "zero"),
    ("languages_per_expert", "Languages that make up 80% of an expert", "zero"),
    ("gate", "Share of the experts (conditional gate)", "zero"),
)
"""Key of a `train` row's routing, its chart's title and scale."""
TAGS = {"with_tag": "with tag", "without_tag": "without tag"}
"""What the model was told of a sentence's family, and how the page says it."""
TINTS = 12
"""Loads are drawn in so many tints."""
NUMBERED = 18
"""A heat map of at most so many columns has numbers in its cells."""
OPEN_LAYERS = 6
"""Maps of more layers than these are folded away."""
LABEL, CELLS, ROW = 130.0, 340.0, 13.0
"""Width of a row's name, width of all cells, height of a row in maps of load, pixels."""
NODE, GAP, SLOT = 14.0, 4.0, 11.0
"""Height of a family in flows, the gap between two, the least room of a name, pixels."""
LETTERS = 22
"""A longer name is cut."""
THIN = 0.004
"""A smaller share of a family's choices is not drawn in flows."""


def draw_routing(
    train: Sequence[Row], tables: Sequence[Row], family_of: Mapping[str, str]
) -> dict[str, Any]:
    """All that a report shows of token routers and gates; {} where the model has none.

    Args:
        train: rows of kind `train`.
        tables: rows of kind `routing`.
        family_of: language code -> family.
    """
    told = [{**row["routing"], "step": row["step"]} for row in train if row.get("routing")]
    if not told:
        return {}
    last = tables[-1] if tables else {}
    batch, parallel = last.get("batch", {}), last.get("parallel", {})

    def heat(key: str) -> Row | None:
        blocks = [
            (title, parallel[tag]["by_language"].get(key, {}))
            for tag, title in TAGS.items()
            if tag in parallel
        ]
        codes = parallel.get("languages", [])
        return heat_map(blocks, codes, family_of, from_zero=key == "divergence")

    return {
        "charts": _curves(told, tables),
        "layers": _by_layer(told[-1]),
        "last": told[-1],
        "step": last.get("step"),
        "steps": last.get("steps"),
        "parallel": parallel,
        "divergence": heat("divergence"),
        "entropy": heat("entropy")
        or heat_map([("", batch.get("entropy", {}))], batch.get("languages", []), family_of),
        "gate": heat_map([("", batch.get("gate", {}))], batch.get("languages", []), family_of),
        "open": len(batch.get("load", {})) <= OPEN_LAYERS,
        "busiest": max((s for f in batch.get("load", {}).values() for row in f.values()
                        for s in row), default=0.0),
        "loads": _loads(batch),
        "flows": _flows(batch),
    }  # fmt: skip


def _number(layer: str) -> int:
    return int(layer.rpartition("_")[2])


def _by_layer(row: Row) -> list[Row]:
    """The last row's scalars, a line a layer."""
    keys = [key for key, value in row.items() if isinstance(value, dict)]
    layers = sorted({name for key in keys for name in row[key]}, key=_number)
    return [
        {"layer": _number(name), **{key: row[key].get(name) for key in keys}} for name in layers
    ]


def _curves(told: Sequence[Row], tables: Sequence[Row]) -> list[tuple[str, Markup | None]]:
    """Charts over steps: a thin curve a layer, and the mean of them."""
    plain = FuncFormatter(lambda value, _: f"{value:.3g}")
    share = FuncFormatter(lambda value, _: f"{100 * value:.3g}%")
    charts = [
        (title, curve_chart(f"routing/{key}", _of_layers(told, key), plain, LARGE, scale=scale))
        for key, title, scale in SCALARS
    ]
    charts.append(
        ("Tokens whose family the head names", curve_chart(
            "routing/head", [("smooth", *numbers(told, "head_accuracy"))], share, LARGE,
            scale="zero",
        ))
    )  # fmt: skip
    for tag, title in TAGS.items():
        rows = [
            {"step": r["step"], **r["parallel"][tag]}
            for r in tables
            if tag in r.get("parallel", {})
        ]
        curves = _of_layers(rows, "divergence")
        drawing = curve_chart(f"routing/{tag}", curves, plain, LARGE, scale="zero")
        charts.append((f"Routing divergence, mean of languages, {title}", drawing))
    return [entry for entry in charts if entry[1] is not None]


def _of_layers(rows: Sequence[Row], key: str) -> list[Curve]:
    layers = sorted({name for row in rows for name in row.get(key, {})}, key=_number)
    curves: list[Curve] = [("rows", *numbers(rows, key, name)) for name in layers]
    means = [
        {"step": row["step"], "mean": sum(row[key].values()) / len(row[key])}
        for row in rows
        if row.get(key)
    ]
    return [*curves, ("smooth", *numbers(means, "mean"))] if layers else []


def heat_map(
    blocks: Sequence[tuple[str, Mapping[str, Sequence[float | None]]]],
    codes: Sequence[str],
    family_of: Mapping[str, str],
    *,
    from_zero: bool = False,
) -> Row | None:
    """A table of languages by layers, a block of columns beside the other; None without numbers.

    Args:
        blocks: title, and layer -> a number a language.
        codes: the languages, in the order of those numbers.
        from_zero: whether 0 has no tint, rather than the least number.
    Returns:
        `blocks`: titles and their layers; `families`: names and their languages' cells, each its
        tint from 0 to 1 and its number; `least` and `most`: what the lightest and the darkest tint
        stand for; `numbered`.
    """
    columns = [
        (_number(layer), values)
        for _, layers in blocks
        for layer, values in sorted(layers.items(), key=lambda item: _number(item[0]))
    ]
    found = [v for _, values in columns for v in values if v is not None and math.isfinite(v)]
    if not found:
        return None
    least, most = 0.0 if from_zero else min(found), max(found)
    families: dict[str, list[tuple[str, list[tuple[float | None, float | None]]]]] = {}
    for index, code in sorted(enumerate(codes), key=lambda item: item[1]):
        cells = [values[index] for _, values in columns]
        if any(value is not None for value in cells):
            tinted = [
                (None if v is None else (v - least) / ((most - least) or 1.0), v) for v in cells
            ]
            families.setdefault(family_of.get(code, ""), []).append((code, tinted))
    return {
        "blocks": [(t, sorted(map(_number, layers))) for t, layers in blocks if layers],
        "families": sorted(families.items()),
        "least": least,
        "most": most,
        "numbered": len(columns) <= NUMBERED,
    }


def _loads(batch: Row) -> list[tuple[int, Markup]]:
    """A map a layer: families by experts."""
    load = batch.get("load", {})
    most = max((s for f in load.values() for row in f.values() for s in row), default=0.0)
    return [
        (_number(layer), _load_map(load[layer], batch["groups"], most or 1.0))
        for layer in sorted(load, key=_number)
    ]


def _ordered(load: Mapping[str, Any], groups: Sequence[tuple[str, int]]) -> list[str]:
    """Families with choices, in the order of their experts."""
    return [name for name, _ in groups if name in load]


def _load_map(
    load: Mapping[str, Sequence[float]], groups: Sequence[tuple[str, int]], most: float
) -> Markup:
    """A row a family, a column an expert; a family's own experts are framed."""
    names = _ordered(load, groups)
    wide = CELLS / sum(size for _, size in groups)
    tints: dict[int, list[str]] = {}
    labels, frames = [], []
    for line, name in enumerate(names):
        y = line * ROW
        labels.append(_text(LABEL - 6, y + ROW / 2, name, "end"))
        for expert, share in enumerate(load[name]):
            tint = round(TINTS * share / most)
            if tint:
                x = LABEL + expert * wide
                cell = f"M{x:.1f} {y + 1:.0f}h{wide:.2f}v{ROW - 2:.0f}h-{wide:.2f}z"
                tints.setdefault(tint, []).append(cell)
    at = 0
    rules = []
    for name, size in groups:
        x = LABEL + at * wide
        if at:
            rules.append(f"M{x:.1f} 0V{len(names) * ROW:.0f}")
        if name in names:
            y = names.index(name) * ROW
            frames.append(f"M{x:.1f} {y + 0.5:.1f}h{size * wide:.1f}v{ROW - 1:.0f}H{x:.1f}z")
        at += size
    cells = "".join(
        f'<path fill="var(--train)" fill-opacity="{tint / TINTS:.2f}" d="{"".join(parts)}"/>'
        for tint, parts in sorted(tints.items())
    )
    lines = f'<path fill="none" stroke="var(--grid)" stroke-width=".7" d="{"".join(rules)}"/>'
    own = f'<path fill="none" stroke="var(--muted)" stroke-width=".7" d="{"".join(frames)}"/>'
    return _drawing(LABEL + CELLS + 1, len(names) * ROW, lines + cells + own + "".join(labels))


def _flows(batch: Row) -> list[tuple[int, Markup]]:
    """The first and the last routed layer: from families to the owners of the chosen experts."""
    load = batch.get("load", {})
    layers = sorted(load, key=_number)
    picked = layers[:1] + layers[-1:] if len(layers) > 1 else layers
    return [(_number(layer), _flow(load[layer], batch["groups"])) for layer in picked]


def _flow(load: Mapping[str, Sequence[float]], groups: Sequence[tuple[str, int]]) -> Markup:
    """Ribbons as thick as the share of a family's choices that an owner's experts get."""
    names = _ordered(load, groups)
    owners = [name for name, _ in groups]
    shares: dict[tuple[str, str], float] = {}
    for name in names:
        at = 0
        for owner, size in groups:
            shares[name, owner] = sum(load[name][at : at + size])
            at += size
    incoming = {owner: NODE * sum(shares[name, owner] for name in names) for owner in owners}
    left = {name: line * (NODE + GAP) for line, name in enumerate(names)}
    right, y = {}, 0.0
    for owner in owners:
        room = max(incoming[owner], SLOT)
        right[owner] = y + (room - incoming[owner]) / 2
        y += room + GAP
    height = max(y, len(names) * (NODE + GAP)) - GAP
    left_x, right_x = LABEL, LABEL + CELLS - LABEL
    middle = (left_x + right_x) / 2
    parts: dict[str, list[str]] = {"train": [], "muted": [], "heldout": []}
    used = dict.fromkeys(owners, 0.0)
    for name in names:
        from_y = left[name]
        for owner in owners:
            thick = NODE * shares[name, owner]
            to_y = right[owner] + used[owner]
            if shares[name, owner] >= THIN:
                kind = "muted" if not owner else "train" if owner == name else "heldout"
                parts[kind].append(
                    f"M{left_x} {from_y:.1f}C{middle} {from_y:.1f} {middle} {to_y:.1f} {right_x} "
                    f"{to_y:.1f}v{thick:.2f}C{middle} {to_y + thick:.1f} {middle} "
                    f"{from_y + thick:.1f} {left_x} {from_y + thick:.1f}z"
                )
            from_y += thick
            used[owner] += thick
    ribbons = "".join(
        f'<path fill="var(--{kind})" fill-opacity=".45" d="{"".join(paths)}"/>'
        for kind, paths in (("heldout", parts["heldout"]), ("muted", parts["muted"]),
                            ("train", parts["train"]))
        if paths
    )  # fmt: skip
    labels = [_text(left_x - 6, left[name] + NODE / 2, name, "end") for name in names]
    for owner in owners:
        y = right[owner] + incoming[owner] / 2
        labels.append(_text(right_x + 6, y, owner or "shared", "start"))
    bars = "".join(
        f"M{x:.1f} {y:.1f}h3v{tall:.1f}h-3z"
        for x, y, tall in [(left_x - 3, left[name], NODE) for name in names]
        + [(right_x, right[owner], max(incoming[owner], 0.5)) for owner in owners]
    )
    nodes = f'<path fill="var(--muted)" d="{bars}"/>'
    return _drawing(right_x + LABEL, height, ribbons + nodes + "".join(labels))


def _text(x: float, y: float, name: str, anchor: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" dominant-baseline="central" '
        f'font-size="9.5" fill="var(--ink)">{escape(_short(name))}</text>'
    )


def _short(name: str) -> str:
    return name if len(name) <= LETTERS else name[: LETTERS - 1] + "…"


def _drawing(width: float, height: float, inner: str) -> Markup:
    return Markup(
        f'<svg viewBox="0 0 {width:.0f} {height + 2:.0f}" role="img" '
        f'xmlns="http://www.w3.org/2000/svg"><g transform="translate(0 1)">{inner}</g></svg>'
    )
