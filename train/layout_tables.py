"""A layout's plan as tables for people: who hosts what, memory, bytes, time.

Ranks that hold equally much stand in one row. Read next: `plan.py`.
"""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from .layout_plan import LayoutPlan, RankPlan

GIB, MIB = 2**30, 2**20
MOST_ROWS = 24


def print_layout(plan: LayoutPlan, hardware: str, console: Console) -> None:
    """Placement, memory, what a step sends, and how long it is predicted to take."""
    _print_placement(plan, console)
    _print_memory(plan, console)
    if plan.layout.world > 1:
        _print_traffic(plan.slowest, console)
    time = plan.step_seconds
    parts = plan.slowest.time
    told = ", ".join(
        f"{name} {seconds / time:.0%}"
        for name, seconds in (
            ("products", parts.compute), ("collectives inside passes", parts.passes),
            ("gathered weights", parts.weights), ("gradients", parts.gradients),
            ("pipeline bubble", parts.bubble), ("optimiser", parts.optimiser),
        )
        if seconds / time >= 0.005
    )  # fmt: skip
    console.print(
        f"predicted step on {hardware}: {time:.3g} s, {plan.tokens_per_second:,.0f} tokens/s "
        f"({told}); from datasheets, not measured"
    )


def _print_placement(plan: LayoutPlan, console: Console) -> None:
    layout = plan.layout
    table = Table(title=f"who holds what ({layout})", title_justify="left")
    table.add_column("ranks")
    for name in ("families", "layers", "parameters"):
        table.add_column(name)
    rows = plan.classes[:MOST_ROWS]
    for each in rows:
        part = each.ranks.part
        families = ", ".join(sorted(part.families))
        if part.families == set(plan.work.families) and len(part.families) > 4:
            families = f"all {len(part.families)}"
        ends = ["embedding"] * part.first + ["head"] * part.last
        table.add_row(
            numbers(each.ranks.ranks(layout)),
            families,
            "; ".join([numbers(part.layers), *ends]),
            f"{each.parameters:,}" + (f" (1/{layout.tensor} of products)" * (layout.tensor > 1)),
        )
    console.print(table)
    if len(plan.classes) > len(rows):
        console.print(f"and {len(plan.classes) - len(rows)} more kinds of ranks")


def _print_memory(plan: LayoutPlan, console: Console) -> None:
    table = Table(title="memory a process, GiB", title_justify="left")
    fullest = plan.fullest
    emptiest = min(plan.classes, key=lambda each: each.memory.peak)
    shown = [fullest] if emptiest.memory.peak == fullest.memory.peak else [fullest, emptiest]
    table.add_column("what")
    for label, each in zip(("fullest", "emptiest"), shown, strict=False):
        table.add_column(f"{label}: {numbers(each.ranks.ranks(plan.layout))}", justify="right")
    names = dict.fromkeys(name for each in shown for name in each.memory.parts)
    for name in names:
        table.add_row(name, *(gib(each.memory.parts.get(name, 0)) for each in shown))
    table.add_row("peak", *(gib(each.memory.peak) for each in shown), style="bold")
    console.print(table)


def gib(size: float) -> str:
    """Bytes as GiB, small ones too."""
    return f"{size / GIB:.2f}" if size >= GIB / 10 else f"{size / GIB:.4f}"


def _print_traffic(rank: RankPlan, console: Console) -> None:
    table = Table(title="sent by a process a step, MiB", title_justify="left")
    for name in ("what", "collective", "processes"):
        table.add_column(name, no_wrap=name == "collective")
    for name in ("put in", "leaves it", "leaves the node"):
        table.add_column(name, justify="right")
    for each in rank.traffic:
        table.add_row(
            each.what,
            each.kind,
            f"{each.group.size:,}, {each.group.together} a node",
            f"{each.bytes / MIB:,.2f}",
            f"{each.wire / MIB:,.2f}",
            f"{each.across / MIB:,.2f}",
        )
    console.print(table)
    console.print(
        "put in: what a process of the slowest kind hands to the collective; leaves it: what a "
        "ring sends on of that; gradients have a row for each set of processes that add them up"
    )


def numbers(values: Sequence[int]) -> str:
    """`0-3, 8`: whole numbers in rising order, runs joined."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    told = [f"{a}" if a == b else f"{a}-{b}" for a, b in runs]
    return ", ".join(told[:6]) + (f", … ({len(values):,} in all)" if len(told) > 6 else "")
