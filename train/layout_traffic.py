"""What a rank sends in a step, by collective and by link, as `engine=torch` sends it.

Bytes are exact: `collective_bytes.py` counts the same in runs, and the tests compare them. All but
those of expert parallelism, which the router's choices decide: they are taken as equal loads.
Read next: `layout_time.py`, which turns them into seconds.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from ..model.accounting import experts_used
from ..model.layout import Layout
from .collective_bytes import Kind, wire_share
from .engines.sums import BUCKET
from .layout_parts import Holdings, Inventory, RankClass, Work, gradient_sums, holders


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Processes that talk with each other."""

    size: int
    """How many."""
    together: int
    """How many of them share a node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Collectives of one kind and purpose in a step of one rank."""

    kind: Kind
    what: str
    """tensor, context, experts, pipeline, loss: in every micro-batch. weights: FSDP2's gathers and
    sums. gradients, family gradients: once a step."""
    group: Group
    bytes: int
    """What this process puts in, in all calls together."""
    calls: int

    @property
    def wire(self) -> float:
        """Bytes that leave the process."""
        return wire_share(self.kind, self.group.size) * self.bytes

    @property
    def across(self) -> float:
        """Of those, what leaves the node: a ring's one edge in so many, or the share of peers."""
        size, together = self.group.size, self.group.together
        if size <= together:
            return 0.0
        if self.kind == "all_to_all":
            return self.bytes * (size - together) / size
        return self.wire / together


def group_of(size: int, stride: int, node: int) -> Group:
    """A group of every stride-th rank, on nodes of so many."""
    together = min(size, max(1, node // stride))
    return Group(size=size, together=together)


def rank_traffic(
    work: Work,
    layout: Layout,
    inventory: Inventory,
    ranks: RankClass,
    hosted_by: NDArray[np.int64],
    *,
    node: int,
    present: Collection[str] | None = None,
) -> list[Traffic]:
    """All that a rank sends in a step.

    Args:
        hosted_by: how many data indices host each family.
        node: processes a node.
        present: families that have a slot in the step; None for all.
    """
    held = inventory.held(ranks.part)
    here = np.array([present is None or name in present for name in work.families])
    return [
        *_forward_backward(work, layout, ranks, node),
        *_weights(work, layout, held, node),
        *_gradients(work, layout, held, hosted_by, node, here),
    ]


def _forward_backward(work: Work, layout: Layout, ranks: RankClass, node: int) -> Iterator[Traffic]:
    """Of the micro-batches: what the layers' products, attention and pieces ask for."""
    model, part, w = work.model, ranks.part, work.value_bytes
    t, c, m = layout.tensor, layout.context, work.micro_batches(layout)
    N, D = work.micro_tokens // c, model.hidden_size
    again = [n for n in part.layers if work.recompute and n % work.recompute == 0]
    if t > 1:
        group = group_of(t, 1, node)
        layers = len(part.layers)
        # Norms are gathered in the products' dtype, but where routers and gates read them; sums
        # leave as they are.
        wide = [
            n for n in part.layers
            if model.layers[n].expert_width
            and (model.layers[n].router != "family" or model.routing.gate)
        ]  # fmt: skip
        entering = 2 * w * layers + (4 - w) * len(wide)
        entered_again = 2 * w * len(again) + (4 - w) * len(set(wide) & set(again))
        both = entering + 2 * w * layers + (4 if part.first else 0)
        gathers, scatters = both + entered_again, both + w * len(again)
        calls = (4 * layers + int(part.first) + 2 * len(again)) * m
        yield Traffic(
            kind="all_gather", what="tensor", group=group, bytes=m * N // t * D * gathers,
            calls=calls,
        )  # fmt: skip
        yield Traffic(
            kind="reduce_scatter", what="tensor", group=group, bytes=m * N * D * scatters,
            calls=calls,
        )  # fmt: skip
        if part.last:
            # Hidden states before the head, and three numbers a token of each one's vocabulary.
            yield Traffic(
                kind="all_gather", what="loss", group=group, bytes=m * (N // t * D * 4 + 12 * N),
                calls=2 * m,
            )  # fmt: skip
            yield Traffic(
                kind="reduce_scatter", what="loss", group=group, bytes=m * N * D * 4, calls=m
            )
    if c > 1:
        group = group_of(c, t, node)
        values = 2 * N * model.kv_heads * model.head_dim // t * w
        forward = len(part.layers) + len(again)
        yield Traffic(
            kind="all_gather", what="context", group=group, bytes=m * forward * values,
            calls=2 * forward * m,
        )  # fmt: skip
        yield Traffic(
            kind="reduce_scatter", what="context", group=group,
            bytes=m * len(part.layers) * c * values, calls=2 * len(part.layers) * m,
        )  # fmt: skip
    routed = [n for n in part.layers if model.layers[n].router != "family"]
    if layout.expert > 1 and routed:
        group = group_of(layout.expert, t * c, node)
        chosen = sum(experts_used(model, model.layers[n]) for n in routed)
        chosen_again = sum(experts_used(model, model.layers[n]) for n in routed if n in again)
        # There and back, forward and backward, with each choice's weight; what comes back is as
        # much as was received, here taken as equal loads. Forward passes tell the counts first.
        yield Traffic(
            kind="all_to_all", what="experts", group=group,
            bytes=m * N * (2 * chosen + chosen_again) * (2 * D * w + 4),
            calls=m * (7 * len(routed) + 4 * len(set(routed) & set(again))),
        )  # fmt: skip
    if layout.pipeline > 1:
        stride = t * c * layout.readers
        sends = 2 * layout.virtual
        sends -= int(part.first) + int(part.last)
        yield Traffic(
            kind="send", what="pipeline", group=group_of(layout.pipeline, stride, node),
            bytes=m * sends * 4 * N // t * D, calls=m * sends,
        )  # fmt: skip


def _weights(work: Work, layout: Layout, held: Holdings, node: int) -> Iterator[Traffic]:
    """What FSDP2 gathers before a layer's passes, and adds up after the last micro-batch's."""
    apart = layout.readers * layout.context
    if work.shard != "full" or apart == 1:
        return
    m, group = work.micro_batches(layout), group_of(apart, layout.tensor, node)
    shards, layered = held.padded(apart), held.layer >= 0
    root = int(shards[held.trunk & ~layered].sum())
    layers = int(shards[held.trunk & layered].sum())
    count = len(np.unique(held.layer[held.trunk & layered]))
    yield Traffic(
        kind="all_gather", what="weights", group=group,
        bytes=m * work.value_bytes * (root + 2 * layers), calls=m * (2 * count + 1),
    )  # fmt: skip
    yield Traffic(
        kind="reduce_scatter", what="weights", group=group,
        bytes=4 * apart * (root + layers), calls=count + 1,
    )  # fmt: skip


def _gradients(
    work: Work,
    layout: Layout,
    held: Holdings,
    hosted_by: NDArray[np.int64],
    node: int,
    present: NDArray[np.bool_],
) -> Iterator[Traffic]:
    """What is added up after the last micro-batch, over all who hold the same piece."""
    t = layout.tensor
    sizes, elements = holders(layout, held, hosted_by), held.elements
    if work.shard == "full" and layout.world > 1:
        sizes = np.where(held.trunk, np.where(held.cut, 1, t), sizes)
        elements = np.where(held.trunk, held.padded(layout.readers * layout.context), elements)
    if layout.pipeline > 1 and work.model.tied_embeddings:
        # It is on the first stage and on the last.
        sizes = np.where(held.names == "embed.weight", 2 * sizes, sizes)
    moved = (sizes > 1) & ((held.family < 0) | present[held.family])
    held, sizes, elements = held.at(moved), sizes[moved], elements[moved]
    sums: dict[tuple[str, int, int], int] = {}
    for at, total in gradient_sums(held, sizes, elements):
        stride = t * (layout.expert if held.shared_out[at] else 1) if held.cut[at] else 1
        what = "family gradients" if held.by_family[at] else "gradients"
        key = what, int(sizes[at]), stride
        sums[key] = sums.get(key, 0) + total
    for (what, size, stride), total in sums.items():
        yield Traffic(
            kind="all_reduce", what=what, group=group_of(size, stride, node),
            bytes=4 * total, calls=ceil(total / BUCKET),
        )  # fmt: skip
    if layout.world > 1:
        yield Traffic(
            kind="all_reduce", what="norm", group=group_of(layout.world, 1, node), bytes=8, calls=1
        )
