"""How fast is each attention backend that runs here, and does `auto` take the fastest?

    python -m xylem.scripts.bench_attention [--quick] [--json]

Measured is one layer's attention, forward and backward, on what a forward pass has made of the
documents once; making it is timed beside it. Arms alternate in one process; medians are told.
Documents are of 100 to 2000 tokens, with rows of one document and of many short ones as the ends.
"""

import argparse
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ..model.attention_backends import BACKENDS, Choice, choose_backend
from ..model.documents import document_starts
from ..model.errors import ModelError
from .goals import Goal, print_goals

ARMS = tuple(name for name in BACKENDS if name != "reference")
LENGTHS = {"documents of 100-2000": (100, 2000), "documents of 1-60": (1, 60), "whole rows": None}
"""Shortest and longest document; None is one of a row's length."""
TYPICAL = next(iter(LENGTHS))
LONG = 2048
"""Positions from which a full mask should lose twice. In shorter rows documents of these lengths
nearly fill the row, and leave a mask its own half of the square to waste and little more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One batch."""

    lengths: str
    rows: int
    positions: int
    dtype: torch.dtype
    heads: int
    kv_heads: int
    head_dim: int

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.lengths}, {self.rows} x {self.positions}, {dtype}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Seconds of each arm in one setting."""

    attend: dict[str, float]
    """Forward and backward."""
    prepare: dict[str, float]
    auto: str
    """What `auto` takes."""

    @property
    def auto_over_fastest(self) -> float:
        """At least 1."""
        return self.attend[self.auto] / min(self.attend.values())


def settings(device: torch.device, quick: bool) -> list[Setting]:
    """From the typical to the ends; equally many tokens in each on the CPU."""
    if device.type == "cuda":
        sizes = [(8, 4096)] if quick else [(8, 4096), (4, 8192), (2, 16384), (1, 32768)]
        heads, kv_heads, head_dim = 16, 4, 128
        dtypes = [torch.bfloat16]
    else:
        sizes = [(2, 2048)] if quick else [(4, 1024), (2, 2048), (1, 4096)]
        heads, kv_heads, head_dim = 4, 2, 64
        dtypes = [torch.bfloat16, torch.float32]
    return [
        Setting(
            lengths=lengths,
            rows=rows,
            positions=positions,
            dtype=dtype,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
        )
        for dtype in dtypes
        for lengths in LENGTHS
        for rows, positions in (sizes if lengths == TYPICAL else sizes[-1:])
    ]


def documents_of(setting: Setting) -> Tensor:
    """Document numbers [B, T]; lengths are drawn evenly on a logarithmic scale."""
    generator = random.Random(0)
    bounds = LENGTHS[setting.lengths]
    rows = []
    for _ in range(setting.rows):
        numbers: list[int] = []
        while len(numbers) < setting.positions:
            low, high = bounds or (setting.positions, setting.positions)
            length = round(math.exp(generator.uniform(math.log(low), math.log(high))))
            numbers += [len(numbers)] * length
        rows.append(numbers[: setting.positions])
    return torch.tensor(rows)


def choice_for(name: str, setting: Setting, device: torch.device) -> Choice:
    """The backend of this name for this batch."""
    return choose_backend(
        name, device=device, dtype=setting.dtype,
        heads=setting.heads, kv_heads=setting.kv_heads, head_dim=setting.head_dim,
    )  # fmt: skip


def measure(setting: Setting, device: torch.device, repeats: int) -> Measured:
    """Times every backend that can do it."""
    backends = {}
    for name in ARMS:
        try:
            backends[name] = choice_for(name, setting, device).backend
        except ModelError:
            continue
    starts = document_starts(documents_of(setting).to(device))
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(setting.rows, setting.positions, heads, setting.head_dim, generator=generator)
        .to(device, setting.dtype)
        .requires_grad_()
        for heads in (setting.heads, setting.kv_heads, setting.kv_heads)
    )
    pull = torch.ones_like(q)
    prepared = {name: backend.prepare(starts) for name, backend in backends.items()}

    def attend(name: str) -> None:
        y = backends[name].attend(q, k, v, prepared[name])
        torch.autograd.grad(y, (q, k, v), pull)

    def prepare(name: str) -> None:
        backends[name].prepare(starts)

    return Measured(
        attend=alternate(attend, list(backends), device, repeats),
        prepare=alternate(prepare, list(backends), device, min(repeats, 5)),
        auto=choice_for("auto", setting, device).name,
    )


def alternate(
    work: Callable[[str], None], arms: Sequence[str], device: torch.device, repeats: int
) -> dict[str, float]:
    """Median seconds of each arm; each round runs all of them, from another one on."""
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    for arm in arms:
        work(arm)
    for i in range(repeats):
        for arm in (*arms[i % len(arms) :], *arms[: i % len(arms)]):
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            started = time.perf_counter()
            work(arm)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times[arm].append(time.perf_counter() - started)
    return {arm: statistics.median(seconds) for arm, seconds in times.items()}


def goals_of(measured: dict[Setting, Measured], device: torch.device) -> list[Goal]:
    """The worst of `auto`, and the gain over a full mask on typical documents; one device's."""
    worst = max(m.auto_over_fastest for m in measured.values())
    gains = [
        m.attend["sdpa"] / m.attend[m.auto]
        for setting, m in measured.items()
        if setting.lengths == TYPICAL and setting.positions >= LONG
    ]
    goals = []
    for where in ("cpu", "gpu"):
        here = (where == "gpu") == (device.type == "cuda")
        goals += [
            Goal(f"{where}_auto_over_the_fastest", worst if here else None, 1.05, "x"),
            Goal(
                f"{where}_auto_faster_than_a_full_mask_from_{LONG}_positions",
                min(gains, default=None) if here else None,
                2.0,
                "x",
                at_least=True,
            ),
        ]
    return goals


def print_times(measured: dict[Setting, Measured], console: Console) -> None:
    """One row a setting, one column a backend."""
    table = Table(
        title="milliseconds, forward and backward (preparing a pass)", title_justify="left"
    )
    table.add_column("batch")
    arms = [arm for arm in ARMS if any(arm in m.attend for m in measured.values())]
    for arm in (*arms, "auto"):
        table.add_column(arm, justify="right")
    for setting, m in measured.items():
        cells = [
            f"{1e3 * m.attend[arm]:.1f} ({1e3 * m.prepare[arm]:.1f})" if arm in m.attend else "-"
            for arm in arms
        ]
        table.add_row(str(setting), *cells, f"{m.auto}, {m.auto_over_fastest:.2f} x")
    console.print(table)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one length of rows, fewer repeats")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    arguments = parser.parse_args()
    console = Console(stderr=arguments.json)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = settings(device, arguments.quick)
    repeats = 3 if arguments.quick else 7
    measured = {setting: measure(setting, device, repeats) for setting in chosen}
    print_times(measured, console)
    if device.type != "cuda":
        console.print("no CUDA device: the GPU's backends are not measured")
    print_goals(goals_of(measured, device), console, as_json=arguments.json)


if __name__ == "__main__":
    main()
