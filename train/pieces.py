"""Pieces of canonical tensors: what a process writes into a checkpoint, and reads from it.

FSDP's shards, ZeRO's partitions and Megatron's distributed optimiser are all flat stretches of a
local tensor, which is itself a view of the canonical one. Read next: `tensor_files.py`.
"""

from dataclasses import dataclass
from math import prod
from typing import Protocol

from torch import Tensor

from ..model.part import View, local_shape

WEIGHTS, OPTIMIZER = "", "optimizer-"
"""Kinds of tensors, which begin the names of their files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Flat elements [start, stop) of the local view of a canonical tensor."""

    kind: str
    """WEIGHTS or OPTIMIZER."""
    name: str
    """Canonical name; of optimiser state `parameter/state`."""
    shape: tuple[int, ...]
    """Canonical shape."""
    view: View
    """The ranges that the local tensor holds."""
    start: int
    stop: int
    tensor: Tensor
    """Their values, of any shape with that many elements."""


def whole_piece(kind: str, name: str, tensor: Tensor) -> Piece:
    """All of a tensor."""
    shape = tuple(tensor.shape)
    view = tuple(((0, size),) for size in shape)
    return Piece(
        kind=kind, name=name, shape=shape, view=view, start=0, stop=prod(shape), tensor=tensor
    )


def elements(view: View) -> int:
    """How many elements a view holds."""
    return prod(local_shape(view))


class Reader(Protocol):
    """Where pieces are read from."""

    def read(
        self, kind: str, name: str, shape: tuple[int, ...], view: View, start: int, stop: int
    ) -> Tensor | None:
        """A piece's values, flat, on the CPU; None where there is no such tensor."""
