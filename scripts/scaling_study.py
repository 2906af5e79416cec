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
from math import prod
from pathlib import Path

from ..data.config import FamilyConfig
from ..data.errors import DataError
from ..data.families import build_family_map
from ..model.config import ModelConfig
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


Row = tuple[Case, str, Outcome | None, Outcome | None, Outcome | None, Outcome | None]
"""Case, its name; family parallelism, replicated, told all-to-all, balanced all-to-all."""


def compared(case: Case, inventory: Inventory) -> Row:
    """All arms of a case."""
    ours, replicated = family_arms(case, inventory)
    of_family, balanced = exchange_arms(case, inventory)
    name = f"{parameters(inventory) / 1e9:.0f} B, {len(case.mixture.families)} families"
    return case, name, ours, replicated, of_family, balanced


def scale_table(rows: Sequence[Row]) -> str:
    """The main table."""
    cells = []
    for case, name, ours, replicated, of_family, balanced in rows:
        cells.append([
            name, f"{case.world:,}", f"{case.slots:,}", told(ours),
            f"{ours.tokens_per_second:,.0f}" if ours else "",
            f"{ours.memory / GIB:.0f}" if ours else "",
            gain(ours, replicated), gain(ours, of_family), gain(ours, balanced),
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
    names = list(dict.fromkeys(row[1] for row in rows))
    for index, name in enumerate(names):
        mine = [row for row in rows if row[1] == name and row[2]]
        for arm, style, label in ((4, "-o", "real loads"), (5, "--s", "equal loads")):
            points = [
                (row[0].world, theirs.seconds / row[2].seconds)
                for row in mine
                if row[2] and (theirs := row[4] if arm == 4 else row[5])
            ]
            if points:
                axes.plot(*zip(*points, strict=True), style, color=f"C{index}",
                          label=f"{name}, {label}")  # fmt: skip
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set_xscale("log", base=2)
    ticks = sorted({row[0].world for row in rows})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_xlabel("H100 devices")
    axes.set_ylabel("time of all-to-all / time of family parallelism")
    axes.legend(fontsize=7, frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
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
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def inventory_of(model: ModelConfig, mixture: Mixture) -> Inventory:
    """Of a model with the mixture's families."""
    return Inventory(model, mixture.families)


def main() -> None:
    """Prints the tables and draws the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=Path, required=True, help="FineWeb-2's sizes: code, bytes")
    parser.add_argument("--figures", type=Path, help="folder to draw into")
    parser.add_argument("--quick", action="store_true", help="the smallest scale alone")
    arguments = parser.parse_args()
    started = time.perf_counter()
    h100 = hardware_named("h100")
    read = read_sizes(arguments.sizes)
    print("## Mixtures\n\n" + mixture_table(read))
    rows: list[Row] = []
    other: list[list[str]] = []
    for hidden, layers, languages, families, sizes in SCALES[: 1 if arguments.quick else None]:
        bytes_of = family_sizes(read, languages, families)
        mixture = mixture_of(bytes_of, 2.0)
        model = model_of(hidden, layers)
        inventory = inventory_of(model, mixture)
        rows += [
            compared(Case(model, mixture, slots, world, h100), inventory) for world, slots in sizes
        ]
        world, slots = sizes[1]
        base = Case(model, mixture, slots, world, h100)
        natural, flat = (
            dataclasses.replace(base, mixture=mixture_of(bytes_of, t)) for t in (1.0, float("inf"))
        )
        changes = {
            "temperature 1": natural,
            "equal shares": flat,
            "a quarter of the slots": dataclasses.replace(base, slots=slots // 4),
            "H200": dataclasses.replace(base, hardware=hardware_named("h200")),
            "A100": dataclasses.replace(base, hardware=hardware_named("a100")),
            "GH200": dataclasses.replace(base, hardware=hardware_named("gh200")),
        }
        if hidden != 4096:
            changes = dict(list(changes.items())[:3])
        for name, case in changes.items():
            _, scale, ours, replicated, real, equal = compared(case, inventory)
            other.append([
                f"{scale}, {world:,}", name, told(ours),
                f"{ours.tokens_per_second:,.0f}" if ours else "", gain(ours, replicated),
                gain(ours, real), gain(ours, equal),
            ])  # fmt: skip
        ours = rows[-2][2]
        _, hidden_half = exchange_arms(base, inventory, hidden=0.5)
        other.append([
            f"{rows[-2][1]}, {world:,}", "half of the all-to-all hidden", told(ours),
            f"{ours.tokens_per_second:,.0f}" if ours else "", "", "", gain(ours, hidden_half),
        ])  # fmt: skip
    print("## Scales\n\n" + scale_table(rows))
    print("## Changes\n\n" + table(
        ["model, devices", "changed", "best layout with family parallelism", "tokens/s a device",
         "against replicated", "against all-to-all, real loads",
         "against all-to-all, equal loads"], other,
    ))  # fmt: skip
    print("## Hosting\n\n" + hosting_table(mixture, sizes[0][1]))
    if arguments.figures:
        figure_gains(rows, arguments.figures / "scaling_gains.svg")
        figure_hosting(mixture, sizes[0][1], 16, arguments.figures / "scaling_hosting.svg")
    print(f"({time.perf_counter() - started:.0f} s)")


if __name__ == "__main__":
    main()
