"""What each rank of a layout holds: parameters by owner and layer, families, layers, data.

Counts come from `model/part.py`, by which engines cut the model, so that a plan cannot disagree
with a run. Ranks that hold equally much are one class. Read next: `layout_memory.py`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

from ..model.config import ModelConfig
from ..model.decoder import build_decoder, parameter_family
from ..model.layout import Layout
from ..model.part import Part, local_shape, parameter_view


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


@dataclass(frozen=True, slots=True)
class Held:
    """A parameter as a rank holds it."""

    name: str
    layer: int | None
    """None for the embedding, the head, the final norm and the family head."""
    family: str | None
    """Whose it is; None for what all tokens use and for shared experts."""
    by_family: bool
    """Whether only those hold it that host its family."""
    trunk: bool
    """Whether every step moves it: what FSDP2 may shard."""
    shape: tuple[int, ...]
    """Of the local tensor."""
    cut: bool
    """Whether tensor parallelism cuts it; else every rank of a tensor group holds all of it."""
    shared_out: bool
    """Whether expert parallelism shares it out."""

    @property
    def elements(self) -> int:
        """Of the local tensor."""
        return prod(self.shape)

    def padded(self, processes: int) -> int:
        """Elements of one FSDP2 shard of it: rows are shared out, the last may be filled up."""
        rows, rest = (self.shape[0], prod(self.shape[1:])) if self.shape else (1, 1)
        return -(-rows // processes) * rest


class Inventory:
    """The parameters of a model, as the ranks of any layout hold them."""

    def __init__(self, config: ModelConfig, families: Sequence[str]) -> None:
        self.config, self.families = config, tuple(families)
        decoder = build_decoder(config, families, seed=0, device="meta")
        self.shapes = {name: tuple(p.shape) for name, p in decoder.named_parameters()}
        self._whole: dict[tuple[int, int], tuple[Held, ...]] = {}
        self._held: dict[Part, tuple[Held, ...]] = {}

    def held(self, part: Part) -> tuple[Held, ...]:
        """The parameters of a part."""
        part = replace(part, context=(0, 1), tensor=(0, part.tensor[1]))
        if part not in self._held:
            self._held[part] = tuple(self._of(part))
        return self._held[part]

    def _of(self, part: Part) -> Iterator[Held]:
        config, families = self.config, self.families
        again = replace(part, tensor=(part.tensor[1] - 1, part.tensor[1]))
        alone = replace(part, expert=(0, 1))
        for name, shape in self.shapes.items():
            view = parameter_view(name, shape, part, config, families)
            if view is None:
                continue
            words, family = name.split("."), parameter_family(name)
            layer = int(words[1]) if words[0] == "layers" else None
            routed = ".shared_experts." in name or ".feed_forward.router." in name
            yield Held(
                name=name,
                layer=layer,
                family=family,
                by_family=layer is not None
                and words[3] == "experts"
                and config.layers[layer].router == "family",
                trunk=family is None and not routed,
                shape=local_shape(view),
                cut=part.tensor[1] > 1
                and view != parameter_view(name, shape, again, config, families),
                shared_out=view != parameter_view(name, shape, alone, config, families),
            )


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


def hosts(layout: Layout, pieces: Sequence[frozenset[str]], family: str) -> int:
    """How many data indices host a family."""
    return layout.data * sum(family in families for families in pieces)


def even_stages(layers: int, pieces: int) -> list[tuple[int, ...]]:
    """Layer numbers in nearly equal pieces."""
    return [tuple(range(i * layers // pieces, (i + 1) * layers // pieces)) for i in range(pieces)]
