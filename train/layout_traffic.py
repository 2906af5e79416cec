"""What a rank sends in a step, by collective and by link, as `engine=torch` sends it.

Bytes are exact: `collective_bytes.py` counts the same in runs, and the tests compare them.
Read next: `layout_time.py`, which turns them into seconds.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from math import ceil

from ..model.accounting import experts_used
from ..model.layout import Layout
from .collective_bytes import Kind, wire_share
from .layout_parts import Held, Inventory, RankClass, Work


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
    hosted_by: dict[str, int],
    *,
    node: int,
    present: Collection[str] | None = None,
) -> list[Traffic]:
    """All that a rank sends in a step.

    Args:
        hosted_by: family -> data indices that host it.
        node: processes a node.
        present: families that have a slot in the step; None for all.
    """
    held = inventory.held(ranks.part)
    return [
        *_forward_backward(work, layout, ranks, node),
        *_weights(work, layout, held, node),
        *_gradients(work, layout, held, hosted_by, node, present),
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
        # Before the products float32 norms are gathered, after them sums leave as they are.
        gathers = 2 * layers * (4 + w) + (4 if part.first else 0) + 2 * 4 * len(again)
        scatters = 2 * layers * (4 + w) + (4 if part.first else 0) + w * len(again)
        calls = (4 * layers + int(part.first) + 2 * len(again)) * m
        yield Traffic(
            kind="all_gather", what="tensor", group=group, bytes=m * N // t * D * gathers,
            calls=calls,
        )  # fmt: skip
        yield Traffic(
            kind="reduce_scatter", what="tensor", group=group, bytes=m * N * D * scatters,
            calls=calls,
        )  # fmt: skip
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
        # There and back, forward and backward.
        yield Traffic(
            kind="all_to_all", what="experts", group=group, bytes=m * 4 * N * D * w * chosen,
            calls=4 * m * len(routed),
        )  # fmt: skip
    if layout.pipeline > 1:
        stride = t * c * layout.readers
        sends = 2 * layout.virtual
        sends -= int(part.first) + int(part.last)
        yield Traffic(
            kind="send", what="pipeline", group=group_of(layout.pipeline, stride, node),
            bytes=m * sends * 4 * N // t * D, calls=m * sends,
        )  # fmt: skip


def _weights(work: Work, layout: Layout, held: Collection[Held], node: int) -> Iterator[Traffic]:
    """What FSDP2 gathers before a layer's passes, and adds up after the last micro-batch's."""
    apart = layout.readers * layout.context
    if work.shard != "full" or apart == 1:
        return
    m, group = work.micro_batches(layout), group_of(apart, layout.tensor, node)
    root = sum(each.padded(apart) for each in held if each.trunk and each.layer is None)
    layers = sum(each.padded(apart) for each in held if each.trunk and each.layer is not None)
    count = len({each.layer for each in held if each.trunk})
    yield Traffic(
        kind="all_gather", what="weights", group=group,
        bytes=m * work.value_bytes * (root + 2 * layers), calls=m * (2 * count - bool(root)),
    )  # fmt: skip
    yield Traffic(
        kind="reduce_scatter", what="weights", group=group,
        bytes=work.value_bytes * apart * (root + layers), calls=count,
    )  # fmt: skip


def _gradients(
    work: Work,
    layout: Layout,
    held: Collection[Held],
    hosted_by: dict[str, int],
    node: int,
    present: Collection[str] | None,
) -> Iterator[Traffic]:
    """What is added up after the last micro-batch, over all who hold the same piece."""
    t, c, e = layout.tensor, layout.context, layout.expert
    sharded = work.shard == "full" and layout.world > 1
    sums: dict[tuple[str, int, int], int] = {}
    for each in held:
        if present is not None and each.family is not None and each.family not in present:
            continue
        data = hosted_by[each.family or ""] if each.by_family else layout.readers
        data = data // e if each.shared_out else data
        stride = t * (e if each.shared_out else 1)
        elements, size = each.elements, data * c
        if sharded and each.trunk:
            elements, size = each.padded(layout.readers * c), 1
        if not each.cut:
            size, stride = size * t, 1
        # A tied embedding is on the first stage and on the last.
        if layout.pipeline > 1 and each.name.startswith("embed.") and work.model.tied_embeddings:
            size *= 2
        what = "family gradients" if each.by_family else "gradients"
        key = what, size, stride
        sums[key] = sums.get(key, 0) + elements
    for (what, size, stride), elements in sums.items():
        if size > 1:
            yield Traffic(
                kind="all_reduce", what=what, group=group_of(size, stride, node),
                bytes=4 * elements, calls=ceil(elements / (1 << 24)),
            )  # fmt: skip
    if layout.world > 1:
        yield Traffic(
            kind="all_reduce", what="norm", group=group_of(layout.world, 1, node), bytes=8, calls=1
        )
