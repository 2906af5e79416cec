"""What a rank allocates: weights, gradients, optimiser state, activations, and its peak.

Counts of parameters are exact; activations follow what the forward pass saves, operation by
operation (`model/accounting.py`). The tests compare the peak with what runs allocate.
Read next: `layout_traffic.py`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..model.accounting import activation_bytes
from ..model.layout import Layout
from .engines.sums import BUCKET
from .layout_parts import Holdings, Inventory, RankClass, Work, apart, gradient_sums, holders


@dataclass(frozen=True, slots=True, kw_only=True)
class RankMemory:
    """Bytes of one rank."""

    parameters: int
    gradients: int
    optimiser: int
    copies: int
    """Weights in the precision of products, and what FSDP2 gathers, while they are used."""
    activations: int
    """The most that forward and backward passes hold beside the rest."""
    buckets: int
    """What is copied together to be added up over processes, after the backward pass."""

    @property
    def peak(self) -> int:
        """The most at any time."""
        held = self.parameters + self.gradients + self.optimiser
        return held + max(self.copies + self.activations, self.buckets)

    @property
    def parts(self) -> dict[str, int]:
        """Its bytes by what for, as far as they are there at the peak."""
        named = {
            "parameters": self.parameters,
            "gradients": self.gradients,
            "optimiser": self.optimiser,
        }
        if self.buckets > self.copies + self.activations:
            return {**named, "reduction": self.buckets}
        copies = "bf16 copies and gathered weights"
        return {**named, copies: self.copies, "activations": self.activations}


def in_flight(layout: Layout, stage: int, micro_batches: int) -> float:
    """Micro-batches whose activations a pipeline stage holds, whole stages counted.

    1F1B: as many as stages from here to the end (Narayanan et al. 2021, arXiv 2104.04473);
    interleaved, a piece of the stage for each forward pass that runs ahead. Of fewer than there
    are stages every stage holds all: they are filled in before any is drained.
    """
    if micro_batches < layout.pipeline:
        return micro_batches
    ahead = layout.pipeline - stage - 1
    if layout.virtual == 1:
        return min(micro_batches, ahead + 1)
    pieces = 2 * ahead + (layout.virtual - 1) * layout.pipeline + 1
    return min(micro_batches, pieces / layout.virtual)


def rank_memory(
    work: Work,
    layout: Layout,
    inventory: Inventory,
    ranks: RankClass,
    hosted_by: NDArray[np.int64],
) -> RankMemory:
    """The memory of a class of ranks.

    Args:
        hosted_by: how many data indices host each family.
    """
    held = inventory.held(ranks.part)
    sharded = work.shard == "full" and layout.world > 1
    others = int(held.elements[~held.trunk].sum())
    whole = int(held.elements[held.trunk].sum())
    mine = whole
    if sharded:
        mine = int(held.padded(layout.readers * layout.context)[held.trunk].sum())
    micro_batches = work.micro_batches(layout)
    # FSDP2 adds up gradients of micro-batches before the last whole, as wide as it computes.
    waiting = work.value_bytes * whole if sharded and micro_batches > 1 else 0
    shards = int(np.ceil(held.elements / apart(layout, held, hosted_by)).sum())
    weights, gradients, moved = (
        shards if work.zero >= stage else mine + others for stage in (3, 2, 1)
    )
    return RankMemory(
        parameters=4 * weights,
        gradients=4 * gradients + waiting,
        optimiser=int(4 * work.states * moved),
        copies=_copies(work, ranks, held, sharded),
        activations=activation_bytes(
            work.model,
            work.families,
            sequences=work.micro_slots * work.slot_sequences,
            sequence_length=work.sequence_length,
            bytes_per_value=work.value_bytes,
            recompute=work.recompute,
            layers=ranks.part.layers,
            last=ranks.part.last,
            in_flight=in_flight(layout, ranks.stage, micro_batches),
            tensor=layout.tensor,
            context=layout.context,
            device=work.device,
        ),
        buckets=_largest_bucket(layout, held, sharded, hosted_by),
    )


def _copies(work: Work, ranks: RankClass, held: Holdings, sharded: bool) -> int:
    """Weights of the layers as products use them."""
    layers = np.array(ranks.part.layers)
    size = len(work.model.layers)
    copied: NDArray[Any] = np.zeros(size)
    if work.precision == "bf16":
        # A micro-batch of few slots cannot hold every family that is hosted.
        used = min(1.0, work.micro_slots / max(1, len(ranks.part.families)))
        mine = (held.layer >= 0) & held.matrix & ~(held.trunk & sharded)
        weights = np.where(held.by_family, 2 * used, 2) * held.elements
        copied = np.bincount(held.layer[mine], weights[mine], minlength=size)
    again = np.zeros(size, dtype=bool)
    if work.recompute:
        again[:: work.recompute] = True
    copied, recomputed = copied[layers], again[layers]
    gathered = 0.0
    if sharded:
        trunk = held.trunk & (held.layer >= 0)
        whole = np.sort(np.bincount(held.layer[trunk], held.elements[trunk], minlength=size))
        # The root's stay from forward to backward; of layers two are there at once.
        root = held.elements[held.trunk & (held.layer < 0)].sum()
        gathered = work.value_bytes * float(root + whole[-2:].sum())
    kept = copied[~recomputed].sum() + copied[recomputed].max(initial=0)
    return int(kept + gathered)


def _largest_bucket(
    layout: Layout, held: Holdings, sharded: bool, hosted_by: NDArray[np.int64]
) -> int:
    """Bytes of the largest copy that is made to add gradients up, at most."""
    sizes = holders(layout, held, hosted_by)
    # FSDP2 adds up its own; what tensor parallelism leaves whole is added up after it.
    added = (sizes > 1) & ~(held.trunk & sharded & held.cut)
    if sharded and layout.tensor == 1:
        added &= ~held.trunk
    if not added.any():
        return 0
    held = held.at(added)
    largest = 0
    for _, totals in gradient_sums(held, sizes[added], held.elements):
        largest = max(largest, totals)
    return 4 * min(largest, max(BUCKET, int(held.elements.max())))
