"""What `scaling_study.py` compares: layouts of family parallelism, and of experts by all-to-all.

All are planned by the same arithmetic (`train/layout_plan.py`); an all-to-all arm is given the
benefit of every doubt: slots lie at random over its groups, tokens are cut over the tensor group
before they are sent, and experts are placed so that loads are as equal as can be.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ..data.hosting import touched_families
from ..data.ledger import SHARE_TOTAL, Ledger, LedgerEntry, integer_shares
from ..data.order import Order
from ..model.config import LayerPlan, ModelConfig
from ..model.errors import ModelError
from ..model.layout import Layout, check_layout
from ..train.hardware import Hardware
from ..train.layout_parts import Inventory, Work
from ..train.layout_plan import LayoutPlan, plan_layout
from ..train.layout_search import KEPT_FREE
from ..train.layout_time import step_time
from ..train.layout_traffic import Traffic, group_of

T, V = 4096, 131_072
STEPS = 1024
"""Steps whose slots say which families a piece hosts."""
GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Families on their line, and their shares of the slots."""

    families: tuple[str, ...]
    shares: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Case:
    """A model, a mixture, a batch and a cluster."""

    model: ModelConfig
    mixture: Mixture
    slots: int
    world: int
    hardware: Hardware


@dataclass(frozen=True, slots=True)
class Outcome:
    """The best that an arm can do."""

    layout: Layout
    work: Work
    seconds: float
    memory: float
    """Bytes of the fullest rank."""
    expert_ranks: int = 1
    """Pieces of the line, or ranks that share out the experts."""
    sent_across: float = 0.0
    """Bytes that a rank sends to other nodes a step."""

    @property
    def tokens_per_second(self) -> float:
        """Of one device."""
        return self.work.tokens / self.seconds / self.layout.world


def model_of(hidden: int, layers: int) -> ModelConfig:
    """A decoder with experts as wide as the model in its first and last thirds."""
    third = layers // 3
    outer = LayerPlan(repeat=third, trunk_width=5 * hidden // 2, expert_width=hidden)
    inner = LayerPlan(repeat=layers - 2 * third, trunk_width=7 * hidden // 2)
    return ModelConfig(
        vocab_size=V, hidden_size=hidden, heads=hidden // 128, kv_heads=8, head_dim=128,
        layer_plan=(outer, inner, outer), tied_embeddings=hidden <= 2048,
    )  # fmt: skip


def order_of(mixture: Mixture, slots: int) -> Order:
    """The order of a run that reads such a mixture."""
    # Names are numbered, so that the line keeps the mixture's sequence.
    names = [f"{i:03d}" for i in range(len(mixture.families))]
    entry = LedgerEntry(
        from_step=0, slots=slots, manifest_hash="",
        families=integer_shares(dict(zip(names, mixture.shares, strict=True))),
        languages={name: {name: SHARE_TOTAL} for name in names},
        sources={name: {name: SHARE_TOTAL} for name in names},
    )  # fmt: skip
    ledger = Ledger(seed=0, sequence_length=T, slot_sequences=1, entries=(entry,))
    return Order(ledger, dict.fromkeys(names, 1 << 40))


@cache
def touched_by_slots(mixture: Mixture, slots: int, steps: int = STEPS) -> list[frozenset[str]]:
    """The families that each place of a step's line of slots holds in some step."""
    touched = touched_families(order_of(mixture, slots), 0, steps, slots)
    known = {f"{i:03d}": name for i, name in enumerate(mixture.families)}
    return [frozenset(known[name] for name in held) for held in touched]


@cache
def hosted_pieces(
    mixture: Mixture, slots: int, pieces: int, steps: int = STEPS
) -> tuple[frozenset[str], ...]:
    """The families that each of some equal pieces of the line hosts."""
    touched, each = touched_by_slots(mixture, slots, steps), slots // pieces
    return tuple(frozenset[str]().union(*touched[i * each : (i + 1) * each]) for i in range(pieces))


def placed_experts(mixture: Mixture, ranks: int) -> list[list[int]]:
    """Families by rank, heaviest first to the least loaded; equal numbers, as memory asks."""
    most = -(-len(mixture.families) // ranks)
    placed: list[list[int]] = [[] for _ in range(ranks)]
    for family in np.argsort(mixture.shares)[::-1].tolist():
        free = [rank for rank in range(ranks) if len(placed[rank]) < most]
        least = min(free, key=lambda rank: sum(mixture.shares[f] for f in placed[rank]))
        placed[least].append(family)
    return placed


@cache
def expected_skew(mixture: Mixture, ranks: int, slots: int) -> float:
    """The most loaded rank's tokens over the mean, when a group draws so many slots together."""
    host = np.zeros(len(mixture.families), dtype=np.int64)
    for rank, families in enumerate(placed_experts(mixture, ranks)):
        host[families] = rank
    draws = np.random.default_rng(0).multinomial(slots, mixture.shares, size=200)
    loads: NDArray[np.float64] = np.zeros((200, ranks))
    for family, rank in enumerate(host.tolist()):
        loads[:, rank] += draws[:, family]
    return float(loads.max(axis=1).mean() * ranks / slots)


def structures(case: Case) -> Iterator[Layout]:
    """Layouts with tensor and pipeline parallelism, all other processes reading data."""
    for tensor in (1, 2, 4, 8):
        for pipeline in (1, 2, 4, 8, 16):
            readers, left = divmod(case.world, tensor * pipeline)
            if left or not readers or case.slots % readers or tensor > case.hardware.node:
                continue
            layout = Layout(data=readers, tensor=tensor, pipeline=pipeline)
            try:
                check_layout(case.model, case.mixture.families, layout, T)
            except ModelError:
                continue
            yield layout


def works(case: Case, layout: Layout) -> Iterator[Work]:
    """The settings that go with a layout."""
    for micro_slots in (1, 2):
        if case.slots // layout.readers % micro_slots:
            continue
        for shard in ("none", "full"):
            if shard == "full" and (layout.pipeline > 1 or layout.readers == 1):
                continue
            for recompute in (0, 1):
                yield Work(
                    model=case.model, families=case.mixture.families, sequence_length=T,
                    slot_sequences=1, slots=case.slots, micro_slots=micro_slots, shard=shard,
                    recompute=recompute,
                )  # fmt: skip


def pieces_of(readers: int, families: int) -> list[int]:
    """Numbers of pieces worth trying: the largest three that divide the readers."""
    return [n for n in range(2, families + 1) if readers % n == 0][-3:]


def family_arms(case: Case, inventory: Inventory) -> tuple[Outcome | None, Outcome | None]:
    """The best of family parallelism, and of experts replicated on every reader."""
    best: dict[bool, Outcome] = {}
    for base in structures(case):
        for pieces in (1, *pieces_of(base.readers, len(case.mixture.families))):
            layout = dataclasses.replace(base, data=base.readers // pieces, family=pieces)
            hosted = [frozenset(case.mixture.families)]
            if pieces > 1:
                hosted = list(hosted_pieces(case.mixture, case.slots, pieces))
            for work in works(case, layout):
                plan = _planned(case, layout, work, inventory, hosted)
                _keep(best, pieces > 1, _outcome(plan, pieces), case)
    return best.get(True), best.get(False)


def exchange_arms(
    case: Case, inventory: Inventory, *, hidden: float = 0.0
) -> tuple[Outcome | None, Outcome | None]:
    """The best of all-to-all told the family, and of one whose loads were always equal.

    Args:
        hidden: the share of the all-to-all that runs beside products.
    """
    best: dict[bool, Outcome] = {}
    names = case.mixture.families
    for base in structures(case):
        for ranks in pieces_of(base.readers, len(names)):
            layout = dataclasses.replace(base, data=base.readers // ranks, family=ranks)
            placed = placed_experts(case.mixture, ranks)
            hosted = [frozenset(names[f] for f in families) for families in placed]
            for work in works(case, layout):
                plan = _planned(case, layout, work, inventory, hosted)
                skew = expected_skew(case.mixture, ranks, ranks * work.micro_slots)
                for told, factor in ((True, skew), (False, 1.0)):
                    outcome = _exchanged(case, plan, inventory, ranks, factor, hidden)
                    _keep(best, told, outcome, case)
    return best.get(True), best.get(False)


def _keep(best: dict[bool, Outcome], arm: bool, outcome: Outcome, case: Case) -> None:
    fits = outcome.memory <= case.hardware.memory_gib * GIB * (1 - KEPT_FREE)
    if fits and (arm not in best or outcome.seconds < best[arm].seconds):
        best[arm] = outcome


def _planned(
    case: Case, layout: Layout, work: Work, inventory: Inventory, hosted: Sequence[frozenset[str]]
) -> LayoutPlan:
    return plan_layout(
        work, layout, lambda _: hosted, case.hardware, node=case.hardware.node,
        inventory=inventory, extremes=True,
    )  # fmt: skip


def _outcome(plan: LayoutPlan, expert_ranks: int) -> Outcome:
    return Outcome(
        plan.layout, plan.work, plan.step_seconds, plan.fullest.memory.peak, expert_ranks,
        sum(traffic.across for traffic in plan.slowest.traffic),
    )  # fmt: skip


def _exchanged(
    case: Case, plan: LayoutPlan, inventory: Inventory, ranks: int, skew: float, hidden: float
) -> Outcome:
    """A plan whose experts are reached by all-to-all instead."""
    layout, work, model = plan.layout, plan.work, case.model
    node, t, m = case.hardware.node, layout.tensor, work.micro_batches(layout)
    stages = inventory.stages(layout, work.sequence_length)
    seconds, memory, across = 0.0, 0.0, 0.0
    for each in plan.classes:
        layers = [n for n in each.ranks.part.layers if model.layers[n].expert_width]
        sent = 4 * work.micro_tokens // t * model.hidden_size * work.value_bytes
        again = 1.5 if work.recompute else 1.0
        exchange = Traffic(
            kind="all_to_all", what="experts", group=group_of(ranks, t, node),
            bytes=int(m * sent * len(layers) * skew * again * (1 - hidden)),
            calls=int(m * 4 * len(layers) * again),
        )  # fmt: skip
        traffic = [exchange]
        for old in each.traffic:
            if old.what == "family gradients":
                # An expert's replicas are as far apart as the groups are large.
                apart = group_of(old.group.size, t * ranks, node)
                old = dataclasses.replace(old, group=apart)
            traffic.append(old)
        time = step_time(work, layout, stages, traffic, each.memory.parameters, case.hardware)
        width = model.hidden_size
        expert_flops = (4 if work.recompute else 3) * 2 * 3 * model.hidden_size * width
        tokens = work.micro_tokens / t
        extra = m * (skew - 1) * expert_flops * len(layers) * tokens
        extra /= case.hardware.flops(work.precision)
        extra *= 1 + (layout.pipeline - 1) / m
        seconds = max(seconds, time.total + extra)
        kept = (skew - 1) * 3 * width + skew * model.hidden_size
        live = 1 if work.recompute else len(layers) * min(layout.pipeline - each.ranks.stage, m)
        memory = max(memory, each.memory.peak + work.value_bytes * kept * tokens * live)
        across = max(across, sum(one.across for one in traffic))
    return Outcome(layout, work, seconds, memory, ranks, across)
