"""What one process holds of a decoder, and which elements of each canonical tensor those are.

A part is whole layers of the pipeline's stage, the embedding and the head where they are, the
families that it hosts, and of each matrix a share. Views say which ranges of a canonical tensor a
local one holds, which is all that gradients, norms, checkpoints and plans need to know.
Read next: `decoder.py`, which builds a part; `layout.py`, which places it.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
import torch.distributed as dist
from torch import Tensor

from .config import ModelConfig
from .layout import Layout, Place

Range = tuple[int, int]
View = tuple[tuple[Range, ...], ...]
"""For each dimension the ranges [start, stop) that are held, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one process holds."""

    layers: tuple[int, ...]
    """Layer numbers."""
    first: bool = True
    """Whether the embedding (and the family head) is here."""
    last: bool = True
    """Whether the final norm and the head, or the embedding tied to it, are here."""
    families: frozenset[str]
    """Families whose experts are here, in layers with router=family."""
    tensor: Range = (0, 1)
    """(index, size) among the processes that share each product."""
    context: Range = (0, 1)
    """(index, size) among those that share each sequence."""
    expert: Range = (0, 1)
    """(index, size) among those that share the experts of token routers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelGroups:
    """The processes that a part talks with in its forward pass; None where it is alone."""

    tensor: dist.ProcessGroup | None = None
    context: dist.ProcessGroup | None = None
    expert: dist.ProcessGroup | None = None


def whole(config: ModelConfig, families: Sequence[str]) -> Part:
    """Everything."""
    return Part(layers=tuple(range(len(config.layers))), families=frozenset(families))


def part_of(
    layout: Layout,
    place: Place,
    *,
    stages: Sequence[Sequence[int]],
    hosted: Sequence[Collection[str]],
) -> Part:
    """What the rank at a place holds.

    Args:
        stages: layer numbers of each piece of the pipeline, pipeline x virtual of them; a rank has
            every pipeline-th.
        hosted: families that each data index hosts.
    """
    mine = range(place.pipeline, len(stages), layout.pipeline)
    return Part(
        layers=tuple(number for stage in mine for number in stages[stage]),
        first=place.pipeline == 0,
        last=place.pipeline == layout.pipeline - 1,
        families=frozenset(hosted[place.data]),
        tensor=(place.tensor, layout.tensor),
        context=(place.context, layout.context),
        expert=(place.expert, layout.expert),
    )


def share(size: int, index: int, of: int) -> Range:
    """The index-th of so many nearly equal ranges."""
    return index * size // of, (index + 1) * size // of


def shares(sizes: Sequence[int], index: int, of: int) -> tuple[Range, ...]:
    """The same range of each of several blocks that lie one after the other."""
    ranges, begin = [], 0
    for size in sizes:
        start, stop = share(size, index, of)
        ranges.append((begin + start, begin + stop))
        begin += size
    return tuple(ranges)


def experts_here(sizes: Sequence[int], part: Part) -> list[Range]:
    """Of each group of a token router's experts the range that is here; experts are shared out by
    number, through the groups."""
    start, stop = share(sum(sizes), *part.expert)
    ranges, begin = [], 0
    for size in sizes:
        low, high = max(start - begin, 0), min(stop - begin, size)
        ranges.append((low, max(low, high)) if high > low else (0, 0))
        begin += size
    return ranges


def parameter_view(
    name: str, shape: Sequence[int], part: Part, config: ModelConfig, families: Sequence[str]
) -> View | None:
    """What a part holds of a canonical tensor.

    Args:
        name: canonical name.
        shape: canonical shape.
    Returns:
        Its ranges, or None where nothing of it is here.
    """
    view: list[tuple[Range, ...]] = [((0, size),) for size in shape]
    words = name.split(".")
    cut = part.tensor
    if words[0] == "embed" or words[0] == "head":
        embeds = part.first or (part.last and config.tied_embeddings)
        view[0] = (share(shape[0], *cut),)
        return tuple(view) if (part.last if words[0] == "head" else embeds) else None
    if words[0] == "final_norm":
        return tuple(view) if part.last else None
    if words[0] == "family_head":
        return tuple(view) if part.first else None
    number = int(words[1])
    if number not in part.layers:
        return None
    router = config.layers[number].router
    if words[3:4] == ["experts"] and router == "family" and words[4] not in part.families:
        return None
    if words[2] == "attention" and words[3] == "qkv":
        H, G, K = config.heads, config.kv_heads, config.head_dim
        view[0] = shares((H * K, G * K, G * K), *cut)
    elif words[2] == "attention" and words[3] == "out":
        view[1] = (share(shape[1], *cut),)
    elif words[2] == "feed_forward" and words[-1] == "budget_pull":
        pass
    elif words[2] == "feed_forward" and words[3] in ("trunk", "experts", "shared_experts"):
        stacked = words[-1] != "weight"  # of a token router: [experts, rows, columns]
        if stacked:
            sizes = config.routing.group_sizes(families)
            group = len(families) if words[3] == "shared_experts" else families.index(words[4])
            here = experts_here(sizes, part)[group]
            if here[0] == here[1]:
                return None
            view[0] = (here,)
        rows, columns = (1, 2) if stacked else (0, 1)
        if "gate_up" in words:
            view[rows] = shares((shape[rows] // 2,) * 2, *cut)
        else:
            view[columns] = (share(shape[columns], *cut),)
    return tuple(view)


def take(tensor: Tensor, view: View) -> Tensor:
    """The local tensor of a canonical one."""
    for dimension, ranges in enumerate(view):
        if ranges != ((0, tensor.shape[dimension]),):
            pieces = [tensor.narrow(dimension, a, b - a) for a, b in ranges]
            tensor = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dimension)
    return tensor


def local_shape(view: View) -> tuple[int, ...]:
    """The shape of the local tensor."""
    return tuple(sum(stop - start for start, stop in ranges) for ranges in view)


def runs(shape: Sequence[int], view: View, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Where flat elements [start, stop) of a local tensor lie in the flat canonical one.

    Returns:
        (offset, length) pairs, in the local tensor's order.
    """
    # Dimensions after the last one that is cut lie together.
    cut = [d for d, ranges in enumerate(view) if ranges != ((0, shape[d]),)]
    last = cut[-1] if cut else 0
    strides = [1] * len(shape)
    for d in range(len(shape) - 2, -1, -1):
        strides[d] = strides[d + 1] * shape[d + 1]
    if not shape:
        yield from ((0, 1),) if stop > start else ()
        return
    outer = [[i for a, b in view[d] for i in range(a, b)] for d in range(last)]
    at = 0
    for index in product(*outer):
        base = sum(i * stride for i, stride in zip(index, strides, strict=False))
        for a, b in view[last]:
            length = (b - a) * strides[last]
            low, high = max(start - at, 0), min(stop - at, length)
            if high > low:
                yield base + a * strides[last] + low, high - low
            at += length
            if at >= stop:
                return
