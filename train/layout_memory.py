"""What a rank allocates: weights, gradients, optimiser state, activations, and its peak.

Counts of parameters are exact; activations follow what the forward pass saves, operation by
operation (`model/accounting.py`). The tests compare the peak with what runs allocate.
Read next: `layout_traffic.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..model.accounting import activation_bytes
from ..model.layout import Layout
from .layout_parts import Held, Inventory, RankClass, Work

BUCKET = 1 << 24
"""Elements that the engine adds up at once over processes."""


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
    interleaved, a piece of the stage for each forward pass that runs ahead.
    """
    ahead = layout.pipeline - stage - 1
    if layout.virtual == 1:
        return min(micro_batches, ahead + 1)
    pieces = 2 * ahead + (layout.virtual - 1) * layout.pipeline + 1
    return min(micro_batches, pieces / layout.virtual)


def rank_memory(
    work: Work, layout: Layout, inventory: Inventory, ranks: RankClass, hosted_by: dict[str, int]
) -> RankMemory:
    """The memory of a class of ranks.

    Args:
        hosted_by: family -> data indices that host it.
    """
    held = inventory.held(ranks.part)
    tokens_apart = layout.readers * layout.context
    sharded = work.shard == "full" and layout.world > 1
    trunk = [each for each in held if each.trunk]
    others = sum(each.elements for each in held if not each.trunk)
    whole = sum(each.elements for each in trunk)
    mine = sum(each.padded(tokens_apart) for each in trunk) if sharded else whole
    micro_batches = work.micro_batches(layout)
    # FSDP2 adds up gradients of micro-batches before the last whole, as wide as it computes.
    waiting = work.value_bytes * whole if sharded and micro_batches > 1 else 0
    return RankMemory(
        parameters=4 * (mine + others),
        gradients=4 * (mine + others) + waiting,
        optimiser=int(4 * work.states * (mine + others)),
        copies=_copies(work, inventory, ranks, held, sharded),
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


def _copies(
    work: Work, inventory: Inventory, ranks: RankClass, held: Sequence[Held], sharded: bool
) -> int:
    """Weights of the layers as products use them."""
    narrow = work.precision == "bf16"
    by_layer: dict[int, int] = dict.fromkeys(ranks.part.layers, 0)
    gathered: dict[int | None, int] = {}
    idle = _families_a_micro_batch_leaves(work, ranks)
    for each in held:
        if each.trunk and sharded:
            gathered[each.layer] = gathered.get(each.layer, 0) + each.elements
        elif narrow and each.layer is not None and len(each.shape) > 1:
            share = 1 - idle if each.by_family else 1
            by_layer[each.layer] += int(2 * each.elements * share)
    kept = [
        size
        for number, size in by_layer.items()
        if not (work.recompute and number % work.recompute == 0)
    ]
    again = [
        size for number, size in by_layer.items() if work.recompute and number % work.recompute == 0
    ]
    layers = sorted((n for key, n in gathered.items() if key is not None), reverse=True)
    # The root's stay from forward to backward; of layers two are there at once.
    whole = work.value_bytes * (gathered.get(None, 0) + sum(layers[:2]))
    return sum(kept) + max(again, default=0) + whole


def _families_a_micro_batch_leaves(work: Work, ranks: RankClass) -> float:
    """The share of hosted families that a micro-batch of few slots cannot hold."""
    hosted = len(ranks.part.families)
    return max(0.0, 1 - work.micro_slots / hosted) if hosted else 0.0


def _largest_bucket(
    layout: Layout, held: Sequence[Held], sharded: bool, hosted_by: dict[str, int]
) -> int:
    """Bytes of the largest copy that is made to add gradients up."""
    groups: dict[tuple[str | None, bool, bool], list[int]] = {}
    for each in held:
        apart = hosted_by.get(each.family or "", 0) if each.by_family else layout.readers
        apart = apart // (layout.expert if each.shared_out else 1) * layout.context
        alone = apart == 1 and (each.cut or layout.tensor == 1)
        if alone or (sharded and each.trunk and (each.cut or layout.tensor == 1)):
            continue
        key = each.family, each.cut, each.shared_out
        groups.setdefault(key, []).append(each.elements)
    largest = 0
    for sizes in groups.values():
        total = 0
        for size in sizes:
            total = size if total + size > BUCKET else total + size
            largest = max(largest, total)
    return 4 * largest
