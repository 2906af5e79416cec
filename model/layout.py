"""How many processes share a model, and how: the sizes of a layout, and each rank's place in it.

Ranks are numbered with tensor parallelism fastest, then context, data and family, and the pipeline
last, so that those that talk most are neighbours. Read next: `part.py`, what a rank holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from .config import ModelConfig
from .errors import ModelError

SIZES = ("data", "family", "tensor", "context", "pipeline")
"""Whose product is the number of processes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A rank's indices in a layout."""

    data: int
    """Which piece of a step's slots it reads, 0 to data x family - 1."""
    tensor: int
    context: int
    pipeline: int
    expert: int
    """Its index among the neighbours that share out the experts of token routers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The sizes with which an engine runs."""

    data: int = 0
    """Processes that read different slots and hold the same; 0 is what the others leave."""
    family: int = 1
    """Pieces that a step's line of slots is cut into: a process holds the experts of the families
    that its piece can touch."""
    tensor: int = 1
    """Processes that share each matrix product, and the positions between the products."""
    context: int = 1
    """Processes that share each sequence."""
    pipeline: int = 1
    """Stages that the layers are cut into."""
    virtual: int = 1
    """Pieces of the layers on each stage: more than 1 is the interleaved schedule."""
    stages: tuple[int, ...] = ()
    """Layers of each piece of the pipeline, pipeline x virtual numbers; none splits by cost."""
    expert: int = 1
    """Processes, of those that read different slots, that share the experts of token routers."""

    def __post_init__(self) -> None:
        for name in (*SIZES[1:], "virtual", "expert"):
            if getattr(self, name) < 1:
                raise ModelError(f"engine.layout.{name}={getattr(self, name)} must be at least 1")
        if self.data < 0:
            raise ModelError(
                f"engine.layout.data={self.data} must be at least 1, or 0 for the rest"
            )
        if self.virtual > 1 and self.pipeline == 1:
            raise ModelError(
                f"engine.layout.virtual={self.virtual} has no effect without a pipeline: set "
                "engine.layout.pipeline=2 or more, or engine.layout.virtual=1"
            )
        pieces = self.pipeline * self.virtual
        if self.stages and (len(self.stages) != pieces or min(self.stages) < 1):
            raise ModelError(
                f"engine.layout.stages={list(self.stages)} must be {pieces} numbers of layers, 1 "
                f"at least, for pipeline={self.pipeline} x virtual={self.virtual}; leave it out to "
                "split by cost"
            )

    @property
    def readers(self) -> int:
        """Pieces that a step's slots are cut into: data x family."""
        return self.data * self.family

    @property
    def world(self) -> int:
        """Processes in all."""
        return prod(getattr(self, name) for name in SIZES)

    def __str__(self) -> str:
        named = {**{n: getattr(self, n) for n in SIZES}, "expert": self.expert}
        told = " x ".join(f"{name} {size}" for name, size in named.items() if size > 1)
        return (told or "one process") + (f", virtual {self.virtual}" if self.virtual > 1 else "")

    def resolved(self, world: int) -> "Layout":
        """The same with `data` filled in.

        Raises:
            ModelError: it does not fit that many processes.
        """
        others = prod(getattr(self, name) for name in SIZES[1:])
        data = self.data or max(1, world // others)
        layout = replace(self, data=data)
        if layout.world != world:
            told = " x ".join(
                f"{name}={getattr(layout, name)}"
                for name in SIZES
                if getattr(layout, name) > 1 or (name == "data" and self.data)
            )
            needs = "a multiple of " if not self.data else ""
            below, above = world // others * others, -(-world // others) * others
            near = " or ".join(f"{n}" for n in dict.fromkeys((below, above)) if n)
            fits = str(layout.world) if self.data else near
            raise ModelError(
                f"engine.layout {told} needs {needs}{layout.world if self.data else others} "
                f"processes, and there are {world}: start {fits}, or change the layout"
            )
        if layout.readers % self.expert:
            nearest = max(n for n in range(1, self.expert) if layout.readers % n == 0)
            raise ModelError(
                f"engine.layout.expert={self.expert} does not divide the {layout.readers} "
                f"processes that read different slots (data x family): take {nearest}"
            )
        return layout

    def place(self, rank: int) -> Place:
        """Where a rank stands.

        Args:
            rank: 0 to world - 1, of a resolved layout.
        """
        rest, tensor = divmod(rank, self.tensor)
        rest, context = divmod(rest, self.context)
        pipeline, data = divmod(rest, self.readers)
        return Place(
            data=data, tensor=tensor, context=context, pipeline=pipeline, expert=data % self.expert
        )

    def rank(self, *, data: int, tensor: int, context: int, pipeline: int) -> int:
        """The rank at a place."""
        return ((pipeline * self.readers + data) * self.context + context) * self.tensor + tensor


def check_layout(
    config: ModelConfig, families: Sequence[str], layout: Layout, sequence_length: int
) -> None:
    """Whether a model can be cut so.

    Args:
        layout: resolved.
    Raises:
        ModelError: it cannot; names the rule and the nearest that can.
    """
    n = layout.tensor
    widths = [w for layer in config.layers for w in (layer.trunk_width, layer.expert_width)]
    if config.kv_heads % n:
        raise ModelError(
            f"engine.layout.tensor={n} cannot cut model.kv_heads={config.kv_heads}: every process "
            f"takes whole heads; take {_divisor(n, config.kv_heads, *widths)}"
        )
    for number, layer in enumerate(config.layers):
        for name in ("trunk_width", "expert_width"):
            if getattr(layer, name) % n:
                raise ModelError(
                    f"engine.layout.tensor={n} cannot cut {name}={getattr(layer, name)} of layer "
                    f"{number}: it must be a multiple; take {_divisor(n, config.kv_heads, *widths)}"
                )
    if n > config.vocab_size:
        raise ModelError(f"engine.layout.tensor={n} is more than model.vocab_size")
    pieces = n * (2 * layout.context if layout.context > 1 else 1)
    if sequence_length % pieces:
        raise ModelError(
            f"engine.layout.tensor={n} and context={layout.context} cut sequences into {pieces} "
            f"equal pieces, and data.sequence_length={sequence_length} is no multiple of that: "
            f"take {-(-sequence_length // pieces) * pieces}"
        )
    stages = layout.pipeline * layout.virtual
    if stages > len(config.layers):
        raise ModelError(
            f"engine.layout.pipeline={layout.pipeline} x virtual={layout.virtual} is more than the "
            f"{len(config.layers)} layers: every piece holds one at least"
        )
    if layout.stages and sum(layout.stages) != len(config.layers):
        raise ModelError(
            f"engine.layout.stages={list(layout.stages)} has {sum(layout.stages)} layers, the "
            f"model {len(config.layers)}: their sum must be that"
        )
    routers = {layer.router for layer in config.layers if layer.expert_width}
    if layout.family > 1:
        if "family" not in routers:
            raise ModelError(
                f"engine.layout.family={layout.family} has no effect: no layer has router=family; "
                f"set engine.layout.family=1 (expert={layout.family} shares out token routers')"
            )
        if layout.family > len(families):
            raise ModelError(
                f"engine.layout.family={layout.family} is more than the {len(families)} families: "
                f"take family={len(families)} or fewer; what repeats them is engine.layout.data"
            )
    if layout.expert > 1:
        if not config.routes_tokens:
            raise ModelError(
                f"engine.layout.expert={layout.expert} has no effect: no layer has a token router; "
                "set engine.layout.expert=1 (family=N shares out family experts)"
            )
        held = sum(config.routing.group_sizes(families))
        if layout.expert > held:
            raise ModelError(
                f"engine.layout.expert={layout.expert} is more than the {held} experts of a layer"
            )
        if config.routing.gate:
            raise ModelError(
                f"engine.layout.expert={layout.expert} cannot run with model.routing.gate=true, "
                "whose budgets stay with each family's experts: set engine.layout.expert=1"
            )
    if layout.pipeline > 1 and "prior" in routers:
        raise ModelError(
            f"engine.layout.pipeline={layout.pipeline} cannot run with router=prior, which reads "
            "the embeddings in every layer: set engine.layout.pipeline=1"
        )
    if layout.context > 1 and config.attention not in ("auto", "sdpa"):
        raise ModelError(
            f"model.attention={config.attention} cannot run with engine.layout.context="
            f"{layout.context}, whose queries see other processes' keys: set model.attention=auto"
        )


def _divisor(wanted: int, *sizes: int) -> int:
    """The largest number up to `wanted` that divides all sizes."""
    return max(n for n in range(1, wanted + 1) if not any(size % n for size in sizes))
