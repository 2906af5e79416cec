"""What processes that share a forward pass send each other, each with its derivative.

Tensor parallelism here is always sequence parallel (Korthikanti et al. 2022, arXiv 2205.05198):
between the products each process holds a stretch of the positions; before a product they are
gathered, after it the partial sums are added and cut again. Both are the other's derivative.
Context parallelism cuts sequences: each process has two pieces of 2n, one early and one late, so
that causal attention is equal work, and gathers keys and values.
Shapes: B sequences, T positions, D model. Read next: `part.py`.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .part import ParallelGroups, Part, Range, share

ALONE = Part(layers=(), families=frozenset())


_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
"""Their names before PyTorch 2.13, and since."""


def gather_dim(x: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    """All processes' tensors one after the other along a dimension; equal shapes."""
    n = dist.get_world_size(group)
    whole = x.new_empty(n, *x.shape)
    _all_gather(whole.flatten(0, 1), x.contiguous(), group=group)
    return whole.movedim(0, dim).flatten(dim, dim + 1)


def scatter_sum_dim(x: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    """This process's piece, along a dimension, of the sum of all processes' tensors."""
    n = dist.get_world_size(group)
    pieces = x.unflatten(dim, (n, -1)).movedim(dim, 0).contiguous()
    mine = torch.empty_like(pieces[0])
    _reduce_scatter(mine, pieces.flatten(0, 1), group=group)
    return mine


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return gather_dim(x, dim, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return scatter_sum_dim(gradients[0], ctx.dim, ctx.group), None, None


class _ScatterSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return scatter_sum_dim(x, dim, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gather_dim(gradients[0], ctx.dim, ctx.group), None, None


# The compiler takes what stands between them, so that all processes call them in the same order.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _gathered(x: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    whole: Tensor = _Gather.apply(x, dim, group)  # type: ignore[no-untyped-call]
    return whole


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _summed(x: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    mine: Tensor = _ScatterSum.apply(x, dim, group)  # type: ignore[no-untyped-call]
    return mine


class _Attach(torch.autograd.Function):
    """x as it is; a loss is differentiated when x is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor) -> Tensor:
        ctx.like = loss
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        return gradients[0], torch.ones_like(ctx.like)


def attach_loss(x: Tensor, loss: Tensor) -> Tensor:
    """x, whose backward pass is also the loss's, with weight 1.

    A loss that arises on a stage of a pipeline needs no way to the last one.
    """
    attached: Tensor = _Attach.apply(x, loss)  # type: ignore[no-untyped-call]
    return attached


@dataclass(frozen=True, slots=True)
class Sharing:
    """How a module's forward pass is shared with other processes."""

    part: Part = ALONE
    groups: ParallelGroups = field(default_factory=ParallelGroups)
    vocab_size: int = 0
    """Tokens of the whole vocabulary; 0 where all who share it have equally many."""

    def rows_here(self, rows: int) -> tuple[Range, int]:
        """Which of the vocabulary's tokens are this process's, and how many there are in all.

        Args:
            rows: how many are this process's.
        """
        index, of = self.part.tensor
        vocab_size = self.vocab_size or rows * of
        here = share(vocab_size, index, of)
        assert here[1] - here[0] == rows, f"{rows} of {vocab_size} tokens on {index} of {of}"
        return here, vocab_size

    def enter(self, x_BTD: Tensor, *, rounded: bool = False) -> Tensor:
        """Before products that are shared: all positions of this process's sequences.

        Args:
            rounded: whether nothing but products under autocast reads them, so that they may be
                sent in its dtype.
        """
        group = self.groups.tensor
        if group is None:
            return x_BTD
        device = x_BTD.device.type
        if rounded and torch.is_autocast_enabled(device) and x_BTD.dtype == torch.float32:
            x_BTD = x_BTD.to(torch.get_autocast_dtype(device))
        return _gathered(x_BTD, 1, group)

    def leave(self, y_BTD: Tensor) -> Tensor:
        """After them: the sum of the partial products, at this process's positions."""
        group = self.groups.tensor
        return y_BTD if group is None else _summed(y_BTD, 1, group)

    def over_context(self, x_BT: Tensor) -> Tensor:
        """All positions in the context's order (`positions`), from each process's own; dim 1."""
        group = self.groups.context
        return x_BT if group is None else _gathered(x_BT, 1, group)

    def in_order(self, x_BT: Tensor) -> Tensor:
        """All positions of the sequences in order, from this process's stretch of its own; dim 1.

        The derivative sums what all processes make of each position.
        """
        x_BT = self.over_context(self.enter(x_BT))
        places = self.places(x_BT.shape[1], x_BT.device)
        return x_BT if places is None else x_BT[:, places]

    def sum_over_context(self, counts: Tensor) -> Tensor:
        """The sum over the processes that share each sequence; no derivative."""
        if self.groups.context is None:
            return counts
        summed = counts.detach().clone()
        dist.all_reduce(summed, group=self.groups.context)
        return summed

    def positions(self, T: int, device: torch.device) -> Tensor | None:
        """The positions of the sequence that are this process's by context; None for all, in order.

        Args:
            T: positions of a whole sequence; a multiple of twice the context's size.
        """
        index, of = self.part.context
        return None if of == 1 else context_positions(T, index, of, device)

    def all_positions(self, T: int, device: torch.device) -> Tensor | None:
        """The order in which `over_context` gathers them."""
        of = self.part.context[1]
        if of == 1:
            return None
        return torch.cat([context_positions(T, i, of, device) for i in range(of)])

    def places(self, T: int, device: torch.device) -> Tensor | None:
        """Where each position is in the order of `over_context`; None for their own order."""
        order = self.all_positions(T, device)
        return None if order is None else order.argsort()

    def here(self, x_BT: Tensor) -> Tensor:
        """A whole sequence's values at this process's positions by context."""
        positions = self.positions(x_BT.shape[1], x_BT.device)
        return x_BT if positions is None else x_BT[:, positions]


def context_positions(T: int, index: int, of: int, device: torch.device) -> Tensor:
    """Pieces index and 2 of - 1 - index of the 2 of equal pieces of T positions."""
    pieces = torch.arange(T, device=device).view(2 * of, -1)
    return torch.cat([pieces[index], pieces[2 * of - 1 - index]])
