"""Experts of token routers on several processes: tokens go to their experts' hosts and come back.

Each process of the expert group holds a range of a layer's experts by number (`part.experts_here`).
A process sorts its tokens' choices by expert, tells every host how many it sends to each of its
experts, sends the rows with their weights, and adds up what comes back. Hosts run the rows of all
processes together, so that an expert's gradient is the sum over the group's tokens. The backward
pass goes the same way with gradients. Every process of the group must call it equally often, also
with no tokens.
Shapes: N tokens, K choices of each, S = N K, R rows received, D model, E experts, P processes.
Read next: `experts.py`, which runs the rows; `choices.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from .choices import SortedChoices, in_order, sort_choices
from .experts import ExpertGroup, routed_swiglu
from .part import share


@dataclass(frozen=True, slots=True)
class Exchange:
    """Which rows go where, for one layer and micro-batch."""

    choices: SortedChoices
    """This process's choices, sorted by expert, and so by host."""
    sent_P: list[int]
    """Rows sent to each process."""
    received_P: list[int]
    """Rows received from each."""
    experts_R: Tensor
    """The expert of each received row, counted from the first that is here."""
    group: dist.ProcessGroup

    def to_hosts(self, rows_S: Tensor) -> Tensor:
        """Sorted choices' rows to their experts' hosts: [S, ...] to [R, ...]."""
        return exchange_rows(rows_S, self.sent_P, self.received_P, self.group)

    def from_hosts(self, rows_R: Tensor) -> Tensor:
        """The way back: [R, ...] to [S, ...]."""
        return exchange_rows(rows_R, self.received_P, self.sent_P, self.group)

    def sum_choices(self, rows_SD: Tensor) -> Tensor:
        """The sum of each token's choices, [N, D]."""
        places_NK = self.choices.places_NK
        if not len(rows_SD):
            return rows_SD.new_zeros(len(places_NK), rows_SD.shape[1])
        return F.embedding_bag(places_NK, rows_SD, mode="sum")


@torch.compiler.disable  # type: ignore[untyped-decorator]
def expert_parallel_swiglu(
    x_ND: Tensor,
    experts_NK: Tensor,
    weights_NK: Tensor | None,
    groups: Sequence[ExpertGroup],
    experts: int,
    group: dist.ProcessGroup,
) -> Tensor:
    """sum_k weight_k expert_k(x) for every token, of experts that the group's processes share.

    As `experts.routed_swiglu`; parameters of a group whose experts here no token of any process
    chose get no gradient.

    Args:
        x_ND: this process's tokens.
        experts_NK: expert numbers, counted through all groups in order; int64.
        weights_NK: weights of their outputs, float32; None is 1 for each.
        groups: the experts that are here, a range by number.
        experts: how many there are on all processes, E.
        group: the processes, in the order of their ranges.
    Returns:
        y_ND, in the dtype of the products: autocast's, else that of x.
    """
    device = x_ND.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_ND.dtype
    with torch.autocast(device, enabled=False):
        exchange = agree_exchange(experts_NK, experts, group)
        # One node for rows and weights: where a host has no row, only the rows reach the output,
        # and every process must still take part in sending both gradients back.
        x_RD, weights_R = _Send.apply(x_ND.to(dtype), weights_NK, exchange)  # type: ignore[no-untyped-call]
        out_RD = routed_swiglu(x_RD, exchange.experts_R[:, None], weights_R[:, None], groups)
        y_ND: Tensor = _Return.apply(out_RD, exchange)  # type: ignore[no-untyped-call]
    return y_ND


def agree_exchange(experts_NK: Tensor, experts: int, group: dist.ProcessGroup) -> Exchange:
    """Sorts choices and tells the group's processes how many rows each of their experts gets.

    Args:
        experts_NK: expert numbers, int64.
        experts: how many there are on all processes, E.
    """
    processes, rank = dist.get_world_size(group), dist.get_rank(group)
    ranges = [share(experts, index, processes) for index in range(processes)]
    sizes = [stop - start for start, stop in ranges]
    here = sizes[rank]
    choices = sort_choices(experts_NK, experts)
    counts_E = choices.ends_E.diff(prepend=choices.ends_E.new_zeros(1))
    told = exchange_rows(counts_E, sizes, [here] * processes, group)
    numbers = torch.arange(here, device=told.device).repeat(processes)
    counts = torch.cat([counts_E, told]).tolist()  # the one wait for the device
    received = counts[experts:]
    received_P = [sum(received[p * here : (p + 1) * here]) for p in range(processes)]
    return Exchange(
        choices=choices,
        sent_P=[sum(counts[start:stop]) for start, stop in ranges],
        received_P=received_P,
        experts_R=numbers.repeat_interleave(told, output_size=sum(received_P)),
        group=group,
    )


def exchange_rows(
    rows: Tensor, sent_P: Sequence[int], received_P: Sequence[int], group: dist.ProcessGroup
) -> Tensor:
    """Sends consecutive rows to each process of a group.

    Args:
        rows: [sum of sent_P, ...].
        sent_P, received_P: rows to and from each process.
    Returns:
        [sum of received_P, ...].
    """
    received = rows.new_empty(sum(received_P), *rows.shape[1:])
    dist.all_to_all_single(received, rows.contiguous(), list(received_P), list(sent_P), group=group)
    return received


class _Send(torch.autograd.Function):
    """Tokens, and the weights of their choices, at the hosts of their experts."""

    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, weights_NK: Tensor | None, exchange: Exchange
    ) -> tuple[Tensor, Tensor]:
        ctx.exchange, ctx.weighted = exchange, weights_NK is not None
        choices = exchange.choices
        x_RD = exchange.to_hosts(x_ND.index_select(0, choices.tokens_S))
        if weights_NK is None:
            weights_R = x_ND.new_ones(len(x_RD), dtype=torch.float32)
            ctx.mark_non_differentiable(weights_R)
        else:
            rows = len(choices.tokens_S)
            weights_R = exchange.to_hosts(in_order(weights_NK, choices.places_NK, rows))
        return x_RD, weights_R

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        exchange, d_weights_NK = ctx.exchange, None
        dx_ND = exchange.sum_choices(exchange.from_hosts(gradients[0]))
        if ctx.weighted:
            d_weights_NK = exchange.from_hosts(gradients[1])[exchange.choices.places_NK]
        return dx_ND, d_weights_NK, None


class _Return(torch.autograd.Function):
    """Each token's sum of what the hosts of its experts send back."""

    @staticmethod
    def forward(ctx: Any, out_RD: Tensor, exchange: Exchange) -> Tensor:
        ctx.exchange = exchange
        # A layer that is computed again begins here on every process, rows received or not: what
        # is saved behind the exchanges asks for all of them before any gradient is sent.
        ctx.save_for_backward(exchange.choices.tokens_S)
        return exchange.sum_choices(exchange.from_hosts(out_RD))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        exchange, (tokens_S,) = ctx.exchange, ctx.saved_tensors
        dy_SD = gradients[0].index_select(0, tokens_S)
        return exchange.to_hosts(dy_SD), None
