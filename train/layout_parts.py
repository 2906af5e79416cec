"""What each rank of a layout holds: parameters by owner and layer, families, layers, data.

Counts come from `model/part.py`, by which engines cut the model, so that a plan cannot disagree
with a run. Ranks that hold equally much are one class. Read next: `layout_memory.py`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..model.config import ModelConfig
from ..model.decoder import build_decoder, is_trunk, parameter_family
from ..model.layout import Layout
from ..model.part import Part, local_shape, parameter_view, whole
from .stages import Stages, planned_stages


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a step asks of the processes, whatever their layout."""

    model: ModelConfig
    families: tuple[str, ...]
    sequence_length: int
    """Tokens a sequence, T."""
    slot_sequences: int
    """Sequences a slot, k."""
    slots: int
    """Slots a step, S."""
    micro_slots: int = 1
    """Slots of a micro-batch."""
    precision: str = "bf16"
    """`bf16` or `fp32`, of matrix products; weights, gradients and states are float32."""
    recompute: int = 0
    """Every n-th layer is computed again in the backward pass; 0 none."""
    shard: str = "none"
    """`full` shards the trunk over the processes that read different tokens."""
    zero: int = 0
    """What ZeRO or a distributed optimiser cuts over the holders of each piece: 1 the optimiser's
    state, 2 also gradients, 3 also weights; 0 nothing."""
    states: float = 2.0
    """Values that the optimiser keeps for each parameter: 2 for AdamW."""
    device: str = "gpu"
    """`gpu` or `cpu`."""

    @property
    def value_bytes(self) -> int:
        """Of an activation."""
        return 2 if self.precision == "bf16" else 4

    @property
    def tokens(self) -> int:
        """Of a step's global batch."""
        return self.slots * self.slot_sequences * self.sequence_length

    @property
    def micro_tokens(self) -> int:
        """Of a micro-batch, whole sequences."""
        return self.micro_slots * self.slot_sequences * self.sequence_length

    def micro_batches(self, layout: Layout) -> int:
        """A process's micro-batches a step."""
        return self.slots // (layout.readers * self.micro_slots)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """Parameters as a rank holds them, one a place of every array."""

    names: NDArray[np.object_]
    layer: NDArray[np.int64]
    """-1 for the embedding, the head, the final norm and the family head."""
    family: NDArray[np.int64]
    """Whose it is, among the model's; -1 for what all tokens use, and for shared experts."""
    by_family: NDArray[np.bool_]
    """Whether only those hold it that host its family."""
    trunk: NDArray[np.bool_]
    """Whether every step moves it: what FSDP2 may shard."""
    rows: NDArray[np.int64]
    """Of the local tensor."""
    elements: NDArray[np.int64]
    """Of the local tensor."""
    matrix: NDArray[np.bool_]
    cut: NDArray[np.bool_]
    """Whether tensor parallelism cuts it; else every rank of a tensor group holds all of it."""
    shared_out: NDArray[np.bool_]
    """Whether expert parallelism shares it out, where there is any."""

    def at(self, chosen: NDArray[np.bool_]) -> "Holdings":
        """Some of them."""
        return Holdings(**{f.name: getattr(self, f.name)[chosen] for f in fields(self)})

    def padded(self, processes: int) -> NDArray[np.int64]:
        """Elements of one FSDP2 shard of each: rows are shared out, the last may be filled up."""
        shards: NDArray[np.int64] = -(-self.rows // processes) * (self.elements // self.rows)
        return shards


class Inventory:
    """The parameters of a model, as the ranks of any layout hold them."""

    def __init__(self, config: ModelConfig, families: Sequence[str]) -> None:
        self.config, self.families = config, tuple(families)
        decoder = build_decoder(config, families, seed=0, device="meta")
        self.shapes = {name: tuple(p.shape) for name, p in decoder.named_parameters()}
        self._tables: dict[tuple[int, int], Holdings] = {}
        self._held: dict[Part, Holdings] = {}
        self._stages: dict[tuple[int, tuple[int, ...], int], Stages] = {}

    def stages(self, layout: Layout, sequence_length: int) -> Stages:
        """Layer numbers of each piece of the pipeline, by counted products."""
        key = layout.pipeline * layout.virtual, layout.stages, sequence_length
        if key not in self._stages:
            self._stages[key] = planned_stages(self.config, self.families, layout, sequence_length)
        return self._stages[key]

    def held(self, part: Part) -> Holdings:
        """The parameters of a part."""
        if part not in self._held:
            table = self._table(part.tensor[1], part.expert[1])
            names = table.names
            hosted = np.array([name in part.families for name in self.families])
            embed = np.array([name.startswith("embed.") for name in names])
            opens = np.array([name.startswith("family_head.") for name in names])
            inside = np.isin(table.layer, part.layers)
            inside &= ~table.by_family | hosted[table.family]
            tied = part.last and self.config.tied_embeddings
            outside = np.where(embed, part.first or tied, np.where(opens, part.first, part.last))
            self._held[part] = table.at(np.where(table.layer < 0, outside, inside))
        return self._held[part]

    def _table(self, tensor: int, expert: int) -> Holdings:
        """Of a part that has all layers and families."""
        if (tensor, expert) not in self._tables:
            everything = whole(self.config, self.families)
            # The last of those that share out experts holds as many as any.
            part = replace(everything, tensor=(0, tensor), expert=(expert - 1, expert))
            rows = [row for name in self.shapes if (row := self._row(name, part)) is not None]
            columns = list(zip(*rows, strict=True))
            self._tables[tensor, expert] = Holdings(
                **{
                    field.name: np.array(column, dtype=object if field.name == "names" else None)
                    for field, column in zip(fields(Holdings), columns, strict=True)
                }
            )
        return self._tables[tensor, expert]

    def _row(self, name: str, part: Part) -> tuple[Any, ...] | None:
        config, families, shape = self.config, self.families, self.shapes[name]
        view = parameter_view(name, shape, part, config, families)
        if view is None:
            return None
        last = part.tensor[1] - 1, part.tensor[1]
        elsewhere = parameter_view(name, shape, replace(part, tensor=last), config, families)
        words, family = name.split("."), parameter_family(name)
        layer = int(words[1]) if words[0] == "layers" else -1
        local = local_shape(view)
        experts = layer >= 0 and words[3] in ("experts", "shared_experts")
        by_family = experts and config.layers[layer].router == "family"
        return (
            name, layer, -1 if family is None else families.index(family), by_family,
            is_trunk(name), local[0], prod(local), len(shape) > 1,
            view != elsewhere, experts and not by_family,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class RankClass:
    """Ranks that hold equally much, but for one expert of a token router."""

    part: Part
    """Of one of them."""
    stage: int
    """Pipeline stage."""
    data: tuple[int, ...]
    """Data indices; all indices of tensor and context go with each."""

    def ranks(self, layout: Layout) -> list[int]:
        """Their numbers."""
        inner = layout.tensor * layout.context
        begins = (layout.rank(data=d, tensor=0, context=0, pipeline=self.stage) for d in self.data)
        return [rank for begin in begins for rank in range(begin, begin + inner)]


def rank_classes(
    layout: Layout, pieces: Sequence[frozenset[str]], stages: Sequence[Sequence[int]]
) -> list[RankClass]:
    """The ranks of a layout by what they hold.

    Args:
        pieces: families that each piece of the line of slots hosts; layout.family of them, each
            shared by layout.data neighbours.
        stages: layer numbers of each piece of the pipeline.
    """
    members: dict[frozenset[str], list[int]] = {}
    for number, families in enumerate(pieces):
        first = number * layout.data
        members.setdefault(families, []).extend(range(first, first + layout.data))
    return [
        RankClass(
            part=Part(
                layers=tuple(
                    n for i in range(stage, len(stages), layout.pipeline) for n in stages[i]
                ),
                first=stage == 0,
                last=stage == layout.pipeline - 1,
                families=families,
                tensor=(0, layout.tensor),
                # The last of those that share out experts holds as many as any.
                expert=(layout.expert - 1, layout.expert),
            ),
            stage=stage,
            data=tuple(data),
        )
        for stage in range(layout.pipeline)
        for families, data in members.items()
    ]


def holders(layout: Layout, held: Holdings, hosted_by: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many ranks hold the same piece of each parameter.

    Args:
        hosted_by: how many data indices host each family.
    """
    return apart(layout, held, hosted_by) * np.where(held.cut, 1, layout.tensor)


def apart(layout: Layout, held: Holdings, hosted_by: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many of them read different tokens."""
    data = np.where(held.by_family, hosted_by[held.family], layout.readers)
    data = np.where(held.shared_out, data // layout.expert, data)
    return data * layout.context


def gradient_sums(
    held: Holdings, sizes: NDArray[np.int64], elements: NDArray[np.int64]
) -> Iterator[tuple[int, int]]:
    """(a parameter's place, elements) of what is added up over the same ranks, families apart.

    Args:
        sizes: ranks that hold each.
        elements: of each that are added up.
    """
    owner = 2 * (held.family + 1) + held.by_family
    kinds = ((2 * owner + held.cut) * 2 + held.shared_out) * (int(sizes.max(initial=0)) + 1) + sizes
    _, first, kind = np.unique(kinds, return_index=True, return_inverse=True)
    totals = np.bincount(kind, elements)
    yield from zip(first.tolist(), totals.astype(np.int64).tolist(), strict=True)


def hosts(
    layout: Layout, pieces: Sequence[frozenset[str]], families: Sequence[str]
) -> NDArray[np.int64]:
    """How many data indices host each family."""
    counts = [layout.data * sum(name in held for held in pieces) for name in families]
    return np.array(counts, dtype=np.int64)
