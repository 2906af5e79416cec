"""Who holds what: each rank's part of the model, and the processes that hold the same pieces.

Every process computes the same answer from the config, the layout and the families that each data
index hosts; nothing is asked. Read next: `torch.py`, `../../model/part.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from ...model.config import ModelConfig
from ...model.decoder import Decoder, canonical_shapes
from ...model.layout import Layout
from ...model.part import ParallelGroups, Part, View, parameter_view, part_of
from ..pieces import elements
from .processes import Processes


@dataclass(frozen=True, slots=True)
class Holding:
    """A tensor that this process holds a piece of."""

    group: dist.ProcessGroup | None
    """Over which its gradient is added up here; None where nobody else holds the piece."""
    holders: int
    """Processes that hold the same piece, shards of it apart."""
    writes: bool
    """Whether this process writes it into checkpoints."""
    writes_scalars: bool
    """Whether it writes what belongs to the tensor as a whole, such as its step."""


class Placement:
    """Each rank's part."""

    def __init__(
        self,
        config: ModelConfig,
        families: Sequence[str],
        layout: Layout,
        hosted: Sequence[frozenset[str]],
        stages: Sequence[Sequence[int]],
    ) -> None:
        """
        Args:
            layout: resolved.
            hosted: families of each data index.
            stages: layer numbers of each piece of the pipeline.
        """
        self.config, self.families, self.layout = config, tuple(families), layout
        self.stages = tuple(tuple(stage) for stage in stages)
        self.parts = [
            part_of(layout, layout.place(rank), stages=self.stages, hosted=hosted)
            for rank in range(layout.world)
        ]

    def groups(self, processes: Processes) -> ParallelGroups:
        """The processes that this one shares its forward pass with."""
        layout = self.layout
        return ParallelGroups(
            tensor=self._group(processes, "tensor") if layout.tensor > 1 else None,
            context=self._group(processes, "context") if layout.context > 1 else None,
            expert=self._group(processes, "expert") if layout.expert > 1 else None,
        )

    def pipeline_group(self, processes: Processes) -> dist.ProcessGroup:
        """The stages that this process's micro-batches go through."""
        return self._group(processes, "pipeline")

    def shard_mesh(self, processes: Processes) -> DeviceMesh:
        """The processes that the trunk is sharded over: those that read different tokens."""
        group = self._group(processes, "data", "expert", "context")
        return DeviceMesh.from_group(group, processes.device.type, mesh_dim_names=("shard",))

    def stage_group(self, processes: Processes) -> dist.ProcessGroup | None:
        """The processes that hold the same layers as this one, which see all tokens together."""
        if processes.world == 1:
            return None
        return self._group(processes, "data", "expert", "context", "tensor")

    def sum_groups(
        self, decoder: Decoder, processes: Processes, sharded: bool
    ) -> dict[str, Holding]:
        """How each canonical tensor that is here is held.

        Args:
            sharded: whether FSDP2 shards the trunk, and adds up its gradients itself.
        """
        rank = processes.rank
        sharded_names = {n for n, p in decoder.named_parameters() if isinstance(p, DTensor)}
        shared_out = self._shared_out()
        every: set[tuple[int, ...]] = set()
        result: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        for name, shape in canonical_shapes(self.config, self.families).items():
            pieces = self._holders(name, shape, shared_out)
            first = min(ranks[0] for ranks in pieces) if pieces else 0
            for ranks in pieces:
                parts = [ranks]
                if sharded and name in sharded_names:
                    parts = self._same_tokens(ranks)
                every.update(parts)
                if rank in ranks:
                    result[name] = (first,), next(part for part in parts if rank in part)
        made = self._new_groups([ranks for ranks in sorted(every) if len(ranks) > 1], processes)
        return {
            name: Holding(
                group=made.get(ranks) if len(ranks) > 1 else None,
                holders=len(ranks),
                writes=rank == ranks[0],
                writes_scalars=rank == all_ranks[0],
            )
            for name, (all_ranks, ranks) in result.items()
        }

    def _same_tokens(self, ranks: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Those of some ranks that read the same tokens, and so hold equal shards."""
        parts: dict[tuple[int, int], list[int]] = {}
        for rank in ranks:
            place = self.layout.place(rank)
            parts.setdefault((place.data, place.context), []).append(rank)
        return [tuple(part) for part in parts.values()]

    def _shared_out(self) -> list[tuple[Part, list[int]]]:
        """Distinct parts, but for the positions they work on, and their ranks."""
        distinct: dict[Part, list[int]] = {}
        for rank, part in enumerate(self.parts):
            distinct.setdefault(replace(part, context=(0, 1)), []).append(rank)
        return list(distinct.items())

    def _holders(
        self, name: str, shape: tuple[int, ...], parts: list[tuple[Part, list[int]]]
    ) -> list[tuple[int, ...]]:
        """The ranks that hold each piece of a tensor, in order."""
        by_view: dict[View, list[int]] = {}
        for part, ranks in parts:
            view = parameter_view(name, shape, part, self.config, self.families)
            if view is not None:
                by_view.setdefault(view, []).extend(ranks)
        return [tuple(sorted(ranks)) for ranks in by_view.values()]

    def _group(self, processes: Processes, *varying: str) -> dist.ProcessGroup:
        """The processes that stand where this one does but for some indices of their place."""
        by_place: dict[tuple[int, ...], list[int]] = {}
        for rank in range(self.layout.world):
            place = self.layout.place(rank)
            indices = {name: getattr(place, name) for name in ("tensor", "context", "pipeline")}
            # A data index is that of a group of experts' hosts, and the place among them.
            indices |= {"data": place.data // self.layout.expert, "expert": place.expert}
            fixed = tuple(index for name, index in indices.items() if name not in varying)
            by_place.setdefault(fixed, []).append(rank)
        made = self._new_groups([tuple(ranks) for ranks in by_place.values()], processes)
        return next(group for ranks, group in made.items() if processes.rank in ranks)

    def _new_groups(
        self, all_ranks: list[tuple[int, ...]], processes: Processes
    ) -> dict[tuple[int, ...], dist.ProcessGroup]:
        """Groups of processes; every process makes all of them, in one order."""
        made: dict[tuple[int, ...], dist.ProcessGroup] = {}
        for ranks in all_ranks:
            if len(ranks) == processes.world:
                group = dist.group.WORLD
            else:
                group = dist.new_group(list(ranks), timeout=processes.timeout)
            assert group is not None
            made[ranks] = group
        return made


def local_stretch(tensor: Tensor, view: View) -> tuple[int, int]:
    """The flat elements of a view that this process's shard of it holds."""
    if not isinstance(tensor, DTensor):
        return 0, elements(view)
    shape, offset = compute_local_shape_and_global_offset(
        tensor.shape, tensor.device_mesh, tensor.placements
    )
    row = prod(tensor.shape[1:])
    return offset[0] * row, (offset[0] + shape[0]) * row
