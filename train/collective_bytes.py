"""Counting what a process really sends: every collective of a stretch of code, by kind and group.

Counted below PyTorch's Python functions, at the operations that reach the process group, so that
FSDP2, DTensor, pipelines, DeepSpeed and Megatron-core are all seen. Benchmarks and the plan's tests
compare it with what `layout_traffic.py` predicts.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import _resolve_process_group
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

Kind = str
"""all_reduce, all_gather, reduce_scatter, all_to_all, send, broadcast, reduce, gather, scatter."""

_KINDS: dict[str, tuple[Kind, int]] = {
    # Operation -> its kind, and which argument holds what this process puts in.
    "c10d.allreduce_": ("all_reduce", 0),
    "c10d.allreduce_coalesced_": ("all_reduce", 0),
    "c10d.allgather_": ("all_gather", 1),
    "c10d._allgather_base_": ("all_gather", 1),
    "c10d.allgather_coalesced_": ("all_gather", 1),
    "c10d.allgather_into_tensor_coalesced_": ("all_gather", 1),
    "c10d.reduce_scatter_": ("reduce_scatter", 1),
    "c10d._reduce_scatter_base_": ("reduce_scatter", 1),
    "c10d.reduce_scatter_tensor_coalesced_": ("reduce_scatter", 1),
    "c10d.alltoall_": ("all_to_all", 1),
    "c10d.alltoall_base_": ("all_to_all", 1),
    "c10d.send": ("send", 0),
    "c10d.broadcast_": ("broadcast", 0),
    "c10d.reduce_": ("reduce", 0),
    "c10d.gather_": ("gather", 1),
    "c10d.scatter_": ("scatter", 1),
    "_c10d_functional.all_reduce": ("all_reduce", 0),
    "_c10d_functional.all_reduce_": ("all_reduce", 0),
    "_c10d_functional.all_reduce_coalesced": ("all_reduce", 0),
    "_c10d_functional.all_gather_into_tensor": ("all_gather", 0),
    "_c10d_functional.all_gather_into_tensor_coalesced": ("all_gather", 0),
    "_c10d_functional.reduce_scatter_tensor": ("reduce_scatter", 0),
    "_c10d_functional.reduce_scatter_tensor_coalesced": ("reduce_scatter", 0),
    "_c10d_functional.all_to_all_single": ("all_to_all", 0),
    "_c10d_functional.broadcast": ("broadcast", 0),
}


@dataclass(frozen=True, slots=True)
class Collective:
    """One call, as this process made it."""

    kind: Kind
    group: tuple[int, ...]
    """Ranks that took part."""
    bytes: int
    """What this process put in: the whole tensor for all_reduce and reduce_scatter, its own piece
    for all_gather, everything it sends, its own share included, for all_to_all."""
    data: bool
    """Whether floating-point numbers were sent; the rest are counts, names and barriers."""

    @property
    def wire(self) -> int:
        """Bytes that leave this process when a ring carries the collective."""
        return round(wire_share(self.kind, len(self.group)) * self.bytes)


def wire_share(kind: Kind, processes: int) -> float:
    """Bytes that leave a process, for each byte that it puts into a ring of so many (each puts in
    equally much; rings are optimal in bytes: Patarasuk and Yuan 2009)."""
    if processes < 2:
        return 0.0
    others = (processes - 1) / processes
    shares = {
        "all_reduce": 2 * others,
        "all_gather": float(processes - 1),
        "send": 1.0,
        "broadcast": 1.0,
    }
    return shares.get(kind, others)


@dataclass(slots=True)
class CollectiveBytes:
    """What was counted."""

    calls: list[Collective] = field(default_factory=list)

    def total(
        self, kind: Kind | None = None, *, wire: bool = False, group: Iterable[int] | None = None
    ) -> int:
        """Bytes of floating-point data that this process put in.

        Args:
            kind: only these.
            wire: the bytes that leave it in a ring instead.
            group: only collectives of exactly these ranks.
        """
        ranks = None if group is None else tuple(sorted(group))
        return sum(
            call.wire if wire else call.bytes
            for call in self.calls
            if call.data
            and kind in (None, call.kind)
            and (ranks is None or call.group == ranks)
            and len(call.group) > 1
        )

    def by_kind(self, *, wire: bool = False) -> dict[Kind, int]:
        """Bytes of floating-point data by kind, of the kinds that occurred between processes."""
        kinds = {call.kind for call in self.calls if call.data and len(call.group) > 1}
        return {kind: self.total(kind, wire=wire) for kind in sorted(kinds)}


@contextmanager
def count_collectives() -> Iterator[CollectiveBytes]:
    """`with count_collectives() as counted:` counts what this process sends inside."""
    counting = _Counting()
    with counting:
        yield counting.counted


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counted = CollectiveBytes()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if any(issubclass(each, DTensor) for each in types):
            return NotImplemented  # its own dispatch runs first, and calls what is counted
        name = str(func).rpartition(".")[0]
        if name in _KINDS:
            kind, position = _KINDS[name]
            tensors = list(_tensors(args[position]))
            self.counted.calls.append(
                Collective(
                    kind,
                    _group_ranks(name, args),
                    sum(tensor.numel() * tensor.element_size() for tensor in tensors),
                    any(tensor.is_floating_point() for tensor in tensors),
                )
            )
        return func(*args, **(kwargs or {}))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


def _group_ranks(name: str, args: tuple[Any, ...]) -> tuple[int, ...]:
    if name.startswith("c10d."):
        boxed = next(arg for arg in args if isinstance(arg, torch.ScriptObject))
        group = dist.ProcessGroup.unbox(boxed)
    else:
        said: Any = [arg for arg in args if isinstance(arg, str)][-1]
        group = _resolve_process_group(said)
    return tuple(sorted(dist.get_process_group_ranks(group)))
