"""What a run will be, before anything is allocated: parameters, FLOPs, memory, tokens, epochs.

The model lives on the meta device; the data's numbers come from the manifest and the order's own
arithmetic; who holds what is counted as the engines cut the model. A plan refuses what cannot work.
Read next: `layout_plan.py`.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from ..data.hosting import hosted_families
from ..data.ledger import Ledger
from ..data.manifest import Manifest
from ..data.mixture import Capped
from ..data.order import Order
from ..data.repetition import effective_tokens
from ..data.shards import write_atomically
from ..data.stream import build_order, check_slots, first_ledger
from ..model.accounting import (
    ParameterCounts,
    count_parameters,
    forward_flops_per_token,
    training_flops_per_token,
)
from ..model.layout import Layout
from ..model.routers import unreachable_experts
from .config import RunConfig
from .engines.checks import check_engine
from .engines.processes import resolve_precision
from .errors import UserError
from .hardware import hardware_named
from .layout_parts import Work
from .layout_plan import Hosting, LayoutPlan, plan_layout
from .layout_tables import print_layout

GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguagePlan:
    """A language's part in the run."""

    code: str
    family: str
    train_tokens: int
    """Tokens of its training shards."""
    sequences: int
    """Sequences that the run will read."""
    tokens: int
    """Tokens that the run will read."""
    epochs: float
    """How often the run goes through its text."""
    effective_tokens: float
    """What the tokens read are worth once repetition is discounted (`data/repetition.py`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A run's arithmetic."""

    parameters: ParameterCounts
    forward_flops: int
    """FLOPs of a token's forward pass."""
    training_flops: int
    """FLOPs of a token, forward and backward."""
    processes: int
    micro_batches: int
    """Micro-batches of a process a step."""
    tokens_per_step: int
    steps: int
    layout: LayoutPlan
    """Who holds and sends what."""
    checkpoint_bytes: int
    checkpoints_kept: int
    languages: tuple[LanguagePlan, ...]
    held_back: tuple[Capped, ...]
    """Languages that the cap on epochs holds back."""
    unreached: tuple[str, ...]
    """Experts that no data ever reaches, a line each."""
    precision: str


def make_plan(config: RunConfig, manifest: Manifest, ledger: Ledger | None = None) -> Plan:
    """The plan of a run.

    Args:
        ledger: the mixture's decisions; None decides them as a new run would.
    Raises:
        UserError, DataError: it cannot work; says why and what would.
    """
    if config.model.vocab_size != manifest.vocab_size:
        raise UserError(
            f"model.vocab_size={config.model.vocab_size}, but the shards of "
            f"{config.data.prepared} were made with {manifest.vocab_size} tokens: set "
            f"model.vocab_size={manifest.vocab_size}"
        )
    if config.data.languages and set(config.data.languages) != set(manifest.languages):
        apart = sorted(set(config.data.languages) ^ set(manifest.languages))
        raise UserError(
            f"data.languages and the prepared folder {config.data.prepared} differ in "
            f"{', '.join(apart[:5])}: prepare another data.prepared for another set of languages"
        )
    processes = config.cluster.nodes * config.cluster.processes_per_node
    layout = config.engine.layout.resolved(processes)
    T, k = config.data.sequence_length, config.data.slot_sequences
    check_slots(config.data.slots_per_step, layout.readers, config.engine.micro_slots)
    check_engine(config, layout, manifest.families)
    held_back: list[Capped] = []
    if ledger is None:
        ledger = first_ledger(config.data, manifest, config.run.steps, held_back.append)
    order = build_order(ledger, manifest)
    parameters = count_parameters(config.model, manifest.families)
    work = planned_work(config, manifest)
    planned = plan_layout(
        work, layout, hosting_of(order, manifest, config.run.steps),
        hardware_named(config.cluster.hardware), node=config.cluster.processes_per_node,
    )  # fmt: skip
    check_memory(planned, config)
    languages = tuple(language_plans(order, manifest, config.run.steps, T))
    read = {row.family for row in languages if row.sequences}
    return Plan(
        parameters=parameters,
        forward_flops=forward_flops_per_token(config.model, manifest.families, T),
        training_flops=training_flops_per_token(config.model, manifest.families, T),
        processes=processes,
        micro_batches=work.micro_batches(layout),
        tokens_per_step=config.data.slots_per_step * k * T,
        steps=config.run.steps,
        layout=planned,
        checkpoint_bytes=int(4 * (1 + work.states) * parameters.total),
        checkpoints_kept=config.checkpoint.keep,
        languages=languages,
        held_back=tuple(held_back),
        unreached=tuple(unreachable_experts(config.model, manifest.families, read)),
        precision=work.precision,
    )


def planned_work(config: RunConfig, manifest: Manifest) -> Work:
    """What a step of the run asks of its processes."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    of_gpu = config.cluster.hardware != "cpu" or device.type == "cuda"
    auto = "bf16" if of_gpu and config.engine.precision == "auto" else config.engine.precision
    return Work(
        model=config.model, families=tuple(manifest.families),
        sequence_length=config.data.sequence_length, slot_sequences=config.data.slot_sequences,
        slots=config.data.slots_per_step, micro_slots=config.engine.micro_slots,
        precision=resolve_precision(auto, device), recompute=config.engine.recompute,
        shard=config.engine.shard, zero=zero_stage(config),
        states=2.0 if config.optim.name == "adamw" else 1.5,
        device="gpu" if of_gpu else "cpu",
    )  # fmt: skip


def zero_stage(config: RunConfig) -> int:
    """What the engine's optimiser cuts over processes."""
    engine = config.engine
    if engine.name == "deepspeed":
        return engine.zero.stage
    return 1 if engine.name == "megatron" else 0


def hosting_of(order: Order, manifest: Manifest, steps: int) -> Hosting:
    """The families that each piece of the line hosts, by the order's own arithmetic."""
    known: dict[tuple[int, int], list[frozenset[str]]] = {}

    def pieces(layout: Layout) -> list[frozenset[str]]:
        sizes = layout.family, layout.data
        if sizes not in known:
            hosted = hosted_families(
                order, manifest.families, 0, steps, family=layout.family, data=layout.data
            )
            known[sizes] = hosted[:: layout.data]
        return known[sizes]

    return pieces


def check_memory(plan: LayoutPlan, config: RunConfig) -> None:
    """Whether the fullest rank fits into `cluster.memory_gib`, or the hardware's memory.

    Raises:
        UserError: it does not; names what most of it goes to.
    """
    memory = plan.fullest.memory
    asked, hardware = config.cluster.memory_gib, config.cluster.hardware
    held = asked or hardware_named(hardware).memory_gib
    if memory.peak <= held * GIB:
        return
    has = f"cluster.memory_gib={asked:g}" if asked else f"{hardware} has {held:g}"
    worst = max(memory.parts, key=lambda name: memory.parts[name])
    ways_out = (
        "engine.micro_slots, data.slot_sequences or the model's widths, or set engine.recompute=1"
        if worst == "activations"
        else "the model's widths or its experts"
    )
    raise UserError(
        f"a process would need {memory.peak / GIB:.1f} GiB, {has}: most goes to {worst} "
        f"({memory.parts[worst] / GIB:.1f} GiB); lower {ways_out}, or take another layout "
        "(xylem plan --search)"
    )


def language_plans(order: Order, manifest: Manifest, steps: int, T: int) -> list[LanguagePlan]:
    """Tokens and epochs of every language after so many steps: its exact share, to a sequence."""
    targets = order.ledger.targets(steps)
    rows = []
    for code, held in manifest.languages.items():
        of_sources = {s.name: targets.get(s.name, 0.0) for s in held.sources}
        read = round(sum(of_sources.values()))
        copies = {s.name: s.copies for s in held.sources}
        # An epoch as `data.mixture.max_epochs` counts it.
        length = sum(order.epoch_length[name] * copies[name] for name, n in of_sources.items() if n)
        rows.append(
            LanguagePlan(
                code=code,
                family=held.family,
                train_tokens=held.train_tokens,
                sequences=read,
                tokens=read * T,
                epochs=read / length if length else 0.0,
                effective_tokens=sum(
                    effective_tokens(number * T, order.epoch_length[name] * T)
                    for name, number in of_sources.items()
                ),
            )
        )
    return rows


def print_plan(plan: Plan, config: RunConfig, console: Console) -> None:
    """The plan as tables for people."""
    p = plan.parameters
    sizes = Table(title=f"{config.run.name}: parameters", title_justify="left")
    sizes.add_column("what")
    sizes.add_column("parameters", justify="right")
    sizes.add_row("embedding and head", f"{p.embedding:,}")
    sizes.add_row("trunk", f"{p.trunk:,}")
    if p.shared:
        sizes.add_row("shared experts", f"{p.shared:,}")
    for family, count in p.families.items():
        sizes.add_row(f"family {family}", f"{count:,}")
    sizes.add_row("active a token", f"{p.active:,}", style="bold")
    sizes.add_row("total", f"{p.total:,}", style="bold")
    console.print(sizes)

    total = plan.tokens_per_step * plan.steps
    run = Table(title="run", title_justify="left", show_header=False)
    run.add_row("steps", f"{plan.steps:,} of {plan.tokens_per_step:,} tokens = {total:,} tokens")
    run.add_row(
        "work",
        f"{plan.forward_flops / 1e6:,.1f} MFLOP a token forward, "
        f"{plan.training_flops / 1e6:,.1f} in training, "
        f"{plan.training_flops * total / 1e15:,.3f} PFLOP in all",
    )
    run.add_row(
        "processes",
        f"{plan.processes}, {plan.micro_batches} micro-batch(es) each a step, {plan.precision}",
    )
    run.add_row(
        "checkpoints",
        f"{plan.checkpoint_bytes / GIB:.2f} GiB each, {plan.checkpoints_kept} kept",
    )
    console.print(run)
    print_layout(plan.layout, config.cluster.hardware, console)
    if config.engine.name != "torch":
        console.print(
            f"note: bytes and time are those of engine=torch; engine={config.engine.name} sends "
            "otherwise, and its buffers are not counted"
        )

    mixture = Table(title="languages over the run", title_justify="left")
    for name in ("language", "family"):
        mixture.add_column(name)
    for name in ("tokens held", "tokens read", "epochs", "effective", "share"):
        mixture.add_column(name, justify="right")
    for row in sorted(plan.languages, key=lambda r: (r.family, r.code)):
        mixture.add_row(
            row.code,
            row.family,
            f"{row.train_tokens:,}",
            f"{row.tokens:,}",
            f"{row.epochs:.2f}",
            f"{row.effective_tokens / row.tokens:.0%}" if row.tokens else "",
            f"{row.tokens / total:.2%}",
        )
    console.print(mixture)
    for row in plan.languages:
        if row.sequences == 0:
            console.print(f"note: {row.code} is never read in {plan.steps} steps")
        elif row.epochs > 4:
            console.print(
                f"note: {row.code} is read {row.epochs:.1f} times over: its {row.tokens:,} tokens "
                f"are worth {row.effective_tokens:,.0f} fresh ones"
            )
    for capped in plan.held_back:
        console.print(f"note: {capped}")
    for line in plan.unreached:
        console.print(f"note: {line}")


def write_plan(plan: Plan, config: RunConfig, path: Path) -> None:
    """The same tables as plain text."""
    text = io.StringIO()
    print_plan(plan, config, Console(file=text, width=110))
    write_atomically(path, text.getvalue().encode())
