"""Where does family parallelism win over experts reached by all-to-all, and where does it lose?

Arithmetic alone, no run: `python -m xylem.scripts.scaling_study --sizes fineweb2_sizes.tsv` prints
the tables of `docs/SCALING.md` and draws its figures. Read next: `scaling_arms.py`.
"""

import argparse
import csv
import dataclasses
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path

from ..data.config import FamilyConfig
from ..data.errors import DataError
from ..data.families import build_family_map
from ..train.hardware import hardware_named
from ..train.layout_parts import Inventory
from .scaling_arms import (
    GIB,
    STEPS,
    Case,
    Mixture,
    Outcome,
    exchange_arms,
    expected_skew,
    family_arms,
    hosted_pieces,
    model_of,
)

SCALES: tuple[tuple[int, int, int, int, tuple[tuple[int, int], ...]], ...] = (
    # Hidden size, layers, languages, families, (devices, slots a step).
    (2048, 24, 10, 8, ((8, 256), (64, 512), (512, 1024))),
    (4096, 32, 40, 16, ((64, 512), (512, 1024), (2048, 2048))),
    (6144, 48, 100, 24, ((512, 1024), (2048, 2048), (8192, 4096))),
    (7168, 60, 200, 40, ((2048, 2048), (8192, 4096), (16384, 8192))),
)
SPLIT = (
    "indo_european", "indo_iranian", "austronesian", "sino_tibetan", "afro_asiatic", "turkic",
    "uralic", "dravidian", "atlantic_congo",
)  # fmt: skip
LARGEST = 400
"""Languages of the file that are looked at."""


def read_sizes(path: Path) -> dict[str, dict[str, float]]:
    """Family -> language -> UTF-8 bytes, by genealogy."""
    sizes: dict[str, dict[str, float]] = defaultdict(dict)
    with path.open(encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file, delimiter="\t"), key=lambda r: -float(r["utf8_bytes"]))
    for row in rows[:LARGEST]:
        code = row["code"]
        try:
            family = build_family_map([code], FamilyConfig(split=SPLIT)).family_of[code]
        except DataError:
            continue  # macro codes that no genealogy places
        sizes[family][code] = float(row["utf8_bytes"])
    return dict(sizes)


def family_sizes(
    sizes: dict[str, dict[str, float]], languages: int, families: int
) -> dict[str, float]:
    """Bytes of the largest families: of each its largest language, then the largest that are left.

    Raises:
        DataError: there are fewer families.
    """
    largest = sorted(sizes, key=lambda name: -sum(sizes[name].values()))[:families]
    if len(largest) < families:
        raise DataError(f"the file of sizes has {len(largest)} families, not {families}")
    chosen = {name: max(sizes[name].values()) for name in largest}
    left = sorted(
        ((size, name) for name in largest for size in sorted(sizes[name].values())[:-1]),
        reverse=True,
    )
    for size, name in left[: languages - families]:
        chosen[name] += size
    return chosen


def mixture_of(sizes: dict[str, float], temperature: float) -> Mixture:
    """Shares by temperature, in the order of names, as a run's line has them."""
    powers = {
        name: (size / max(sizes.values())) ** (1 / temperature) for name, size in sizes.items()
    }
    names = sorted(powers)
    total = sum(powers.values())
    return Mixture(families=tuple(names), shares=tuple(powers[name] / total for name in names))


def ordered(mixture: Mixture, how: str) -> Mixture:
    """The same families in another order on the line."""
    rising = sorted(range(len(mixture.shares)), key=lambda i: mixture.shares[i])
    order = {
        "by name": list(range(len(rising))),
        "by share": rising,
        "heavy and light in turn": [
            rising[i // 2] if i % 2 else rising[-1 - i // 2] for i in range(len(rising))
        ],
    }[how]
    return Mixture(
        families=tuple(mixture.families[i] for i in order),
        shares=tuple(mixture.shares[i] for i in order),
    )


def parameters(inventory: Inventory) -> float:
    """Of the whole model."""
    return float(sum(prod(shape) for shape in inventory.shapes.values()))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def told(outcome: Outcome | None) -> str:
    """An arm's best layout."""
    if outcome is None:
        return "does not fit"
    layout, work = outcome.layout, outcome.work
    parts = [f"{layout.readers} readers", f"t{layout.tensor}", f"p{layout.pipeline}"]
    parts += [f"{outcome.expert_ranks} pieces"] if outcome.expert_ranks > 1 else []
    parts += ["shard"] if work.shard == "full" else []
    return " ".join([*parts, *(["recompute"] if work.recompute else [])])


def gain(ours: Outcome | None, theirs: Outcome | None) -> str:
    """How much faster ours is."""
    if ours is None or theirs is None:
        return "only ours fits" if ours else ("only theirs fits" if theirs else "")
    return f"{theirs.seconds / ours.seconds:.2f}"


@dataclass(frozen=True, slots=True)
class Row:
    """A case and the best of each arm."""

    case: Case
    name: str
    ours: Outcome | None
    replicated: Outcome | None
    real: Outcome | None
    """All-to-all with the mixture's loads."""
    equal: Outcome | None
    """All-to-all whose loads were always equal."""


def compared(case: Case) -> Row:
    """All arms of a case."""
    inventory = Inventory(case.model, case.mixture.families)
    ours, replicated = family_arms(case, inventory)
    real, equal = exchange_arms(case, inventory)
    name = f"{parameters(inventory) / 1e9:.0f} B, {len(case.mixture.families)} families"
    return Row(case, name, ours, replicated, real, equal)


def half_hidden(case: Case) -> Outcome | None:
    """All-to-all with equal loads, half of it beside products."""
    return exchange_arms(case, Inventory(case.model, case.mixture.families), hidden=0.5)[1]


def scale_table(rows: Sequence[Row]) -> str:
    """The main table."""
    cells = []
    for row in rows:
        ours = row.ours
        cells.append([
            row.name, f"{row.case.world:,}", f"{row.case.slots:,}", told(ours),
            f"{ours.tokens_per_second:,.0f}" if ours else "",
            f"{ours.memory / GIB:.0f}" if ours else "",
            gain(ours, row.replicated), gain(ours, row.real), gain(ours, row.equal),
        ])  # fmt: skip
    return table(
        ["model", "devices", "slots", "best layout with family parallelism", "tokens/s a device",
         "GiB", "against replicated", "against all-to-all, real loads",
         "against all-to-all, equal loads"], cells,
    )  # fmt: skip


def hosting_table(mixture: Mixture, slots: int) -> str:
    """What orders on the line, pieces and time do to what pieces host."""
    cells = []
    for pieces in (4, 8, 16, 32):
        for how in ("by name", "by share", "heavy and light in turn"):
            line = ordered(mixture, how)
            hosted = [len(held) for held in hosted_pieces(line, slots, pieces)]
            longer = [len(held) for held in hosted_pieces(line, slots, pieces, 8 * STEPS)]
            cells.append([
                how, f"{pieces}", f"{sum(hosted) / pieces:.1f}", f"{max(hosted)}",
                f"{max(longer)}", f"{sum(hosted) / len(mixture.families):.1f}",
                f"{expected_skew(mixture, pieces, 2 * pieces):.2f}",
            ])  # fmt: skip
    return table(
        ["order on the line", "pieces", "families hosted, mean", f"most, {STEPS:,} steps",
         f"most, {8 * STEPS:,} steps", "copies of a family, mean",
         "all-to-all's most loaded rank over the mean"], cells,
    )  # fmt: skip


def mixture_table(read: dict[str, dict[str, float]]) -> str:
    """Shares of the families."""
    cells = []
    for _, _, languages, families, sizes in SCALES:
        bytes_of = family_sizes(read, languages, families)
        for temperature in (1.0, 2.0, float("inf")):
            shares = sorted(mixture_of(bytes_of, temperature).shares)
            slots = sizes[0][1]
            cells.append([
                f"{languages} languages, {families} families", f"{temperature:g}",
                f"{shares[-1]:.1%}", f"{shares[0]:.3%}",
                f"{sum(share * slots < 1 for share in shares)} of {families}",
            ])  # fmt: skip
    return table(
        ["languages", "temperature", "largest share", "smallest", "families below one slot a step"],
        cells,
    )


def figure_gains(rows: Sequence[Row], path: Path) -> None:
    """Speed against both all-to-all arms, over devices."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.2))
    names = list(dict.fromkeys(row.name for row in rows))
    for index, name in enumerate(names):
        for style, label in (("-o", "real loads"), ("--s", "equal loads")):
            points = [
                (row.case.world, theirs.seconds / row.ours.seconds)
                for row in rows
                if row.name == name
                and row.ours
                and (theirs := row.real if label == "real loads" else row.equal)
            ]
            if points:
                axes.plot(*zip(*points, strict=True), style, color=f"C{index}",
                          label=f"{name}, {label}")  # fmt: skip
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set_xscale("log", base=2)
    ticks = sorted({row.case.world for row in rows})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_xlabel("H100 devices")
    axes.set_ylabel("time of all-to-all / time of family parallelism")
    axes.legend(fontsize=7, frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def figure_hosting(mixture: Mixture, slots: int, pieces: int, path: Path) -> None:
    """Families that each piece hosts, under three orders on the line."""
    import matplotlib.pyplot as plt

    figure, rows = plt.subplots(3, 1, figsize=(7.5, 5.2), sharex=True, sharey=True)
    for axes, how in zip(rows, ("by name", "by share", "heavy and light in turn"), strict=True):
        hosted = [len(held) for held in hosted_pieces(ordered(mixture, how), slots, pieces)]
        axes.bar(range(pieces), hosted, color="C0")
        axes.axhline(sum(hosted) / pieces, color="C1", linewidth=1)
        axes.set_title(f"{how}: {sum(hosted) / pieces:.1f} on average, {max(hosted)} at most",
                       fontsize=9, loc="left")  # fmt: skip
        axes.set_ylabel("families")
    rows[-1].set_xlabel("piece of the line")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def changed_cases(case: Case, bytes_of: dict[str, float]) -> dict[str, Case]:
    """The same with another mixture, batch or hardware."""
    other = {"temperature 1": 1.0, "equal shares": float("inf")}
    changes = {
        name: dataclasses.replace(case, mixture=mixture_of(bytes_of, t))
        for name, t in other.items()
    }
    changes["a quarter of the slots"] = dataclasses.replace(case, slots=case.slots // 4)
    if case.model.hidden_size == 4096:
        for name in ("h200", "a100", "gh200"):
            changes[name.upper()] = dataclasses.replace(case, hardware=hardware_named(name))
    return changes


def change_table(
    rows: Sequence[tuple[str, Row]], hidden: Sequence[tuple[Row, Outcome | None]]
) -> str:
    """What a change does to the comparison."""
    cells = []
    for changed, row in rows:
        cells.append([
            f"{row.name}, {row.case.world:,}", changed, told(row.ours),
            f"{row.ours.tokens_per_second:,.0f}" if row.ours else "",
            gain(row.ours, row.replicated), gain(row.ours, row.real), gain(row.ours, row.equal),
        ])  # fmt: skip
    for row, half in hidden:
        cells.append([
            f"{row.name}, {row.case.world:,}", "half of the all-to-all hidden", told(row.ours),
            f"{row.ours.tokens_per_second:,.0f}" if row.ours else "", "", "", gain(row.ours, half),
        ])  # fmt: skip
    return table(
        ["model, devices", "changed", "best layout with family parallelism", "tokens/s a device",
         "against replicated", "against all-to-all, real loads",
         "against all-to-all, equal loads"], cells,
    )  # fmt: skip


def main() -> None:
    """Prints the tables and draws the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=Path, required=True, help="FineWeb-2's sizes: code, bytes")
    parser.add_argument("--figures", type=Path, help="folder to draw into")
    parser.add_argument("--quick", action="store_true", help="the smallest scale alone")
    parser.add_argument("--processes", type=int, default=2, help="cases worked on at once")
    arguments = parser.parse_args()
    started = time.perf_counter()
    read = read_sizes(arguments.sizes)
    print("## Mixtures\n\n" + mixture_table(read), flush=True)
    cases: list[Case] = []
    changes: list[tuple[str, Case]] = []
    middle: list[int] = []
    for hidden, layers, languages, families, sizes in SCALES[: 1 if arguments.quick else None]:
        bytes_of = family_sizes(read, languages, families)
        mixture, model = mixture_of(bytes_of, 2.0), model_of(hidden, layers)
        middle.append(len(cases) + 1)
        h100 = hardware_named("h100")
        cases += [Case(model, mixture, slots, world, h100) for world, slots in sizes]
        changes += changed_cases(cases[middle[-1]], bytes_of).items()
    print("## Hosting\n\n" + hosting_table(mixture, sizes[0][1]), flush=True)
    with ProcessPoolExecutor(arguments.processes) as pool:
        halves = pool.map(half_hidden, [cases[i] for i in middle])
        scales = pool.map(compared, cases)
        others = pool.map(compared, [case for _, case in changes])
        rows = list(scales)
        print("## Scales\n\n" + scale_table(rows), flush=True)
        if arguments.figures:
            figure_gains(rows, arguments.figures / "scaling_gains.svg")
            figure_hosting(mixture, sizes[0][1], 16, arguments.figures / "scaling_hosting.svg")
        changed = list(others)
        named = list(zip([name for name, _ in changes], changed, strict=True))
        hidden_rows = list(zip([rows[i] for i in middle], halves, strict=True))
    print("## Changes\n\n" + change_table(named, hidden_rows))
    print(f"({time.perf_counter() - started:.0f} s)")


if __name__ == "__main__":
    main()
