"""Experts of token routers: sort the choices by expert, run each expert's tokens, add up.

One stable sort puts every expert's choices side by side; products run on those contiguous rows, on
the groups' own weights (never stacked on CPU); a gather back by the inverse permutation sums each
token's K outputs, times their weights, in a fixed order. The backward pass keeps gate and up alone
and computes the rest again. CUDA has fused kernels (`kernels/routed_swiglu_triton.py`), or, without
Triton, `torch.nn.functional.grouped_mm`.
Shapes: N tokens, K choices of each, S = N K, D model, F hidden units, E experts.
Read next: `routers.py`, which makes the choice; `choices.py`, `swiglu.py`.
"""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .choices import SortedChoices, in_order, sort_choices
from .swiglu import swiglu, swiglu_backward


class ExpertGroup(nn.Module):
    """The SwiGLU weights of one family's experts, or of the shared ones."""

    def __init__(self, experts: int, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(experts, 2 * width, hidden_size))
        self.down = nn.Parameter(torch.empty(experts, hidden_size, width))


@torch.compiler.disable  # type: ignore[untyped-decorator]
def routed_swiglu(
    x_ND: Tensor, experts_NK: Tensor, weights_NK: Tensor, groups: Sequence[ExpertGroup]
) -> Tensor:
    """sum_k weight_k expert_k(x) for every token.

    The parameters of a group that no token chose get no gradient: None, not zeros.

    Args:
        x_ND: tokens.
        experts_NK: expert numbers, counted through the groups in order; int64.
        weights_NK: weights of their outputs, float32; zero leaves a choice out.
        groups: the experts, all of one width.
    Returns:
        y_ND, in the dtype of the products: autocast's, else that of x.
    """
    device = x_ND.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_ND.dtype
    x_ND = x_ND.to(dtype)
    if not len(x_ND):
        return x_ND
    with torch.autocast(device, enabled=False):
        # oneDNN makes and keeps a primitive for every new number of rows: a millisecond each.
        multiple = 32 if device == "cpu" and dtype == torch.bfloat16 else 1
        choices = sort_choices(experts_NK, sum(len(group.gate_up) for group in groups), multiple)
        on_gpu = x_ND.is_cuda and dtype != torch.float64
        if on_gpu and find_spec("triton"):
            from .kernels.routed_swiglu_triton import triton_swiglu

            return triton_swiglu(x_ND, weights_NK, choices, weights_of(groups, dtype))
        used, ends = used_groups(groups, choices.ends_E.tolist())
        matrices = weights_of(used, dtype)
        rows_of_16_bytes = all(m.shape[-1] * m.element_size() % 16 == 0 for m in matrices)
        if on_gpu and rows_of_16_bytes:  # which grouped_mm asks for
            return grouped_swiglu(x_ND, weights_NK, choices, ends, matrices)
        return loop_swiglu(x_ND, weights_NK, choices, ends, matrices)


def weights_of(groups: Sequence[ExpertGroup], dtype: torch.dtype) -> list[Tensor]:
    """gate_up and down of every group in turn."""
    return [matrix.to(dtype) for group in groups for matrix in (group.gate_up, group.down)]


def used_groups(
    groups: Sequence[ExpertGroup], ends: Sequence[int]
) -> tuple[list[ExpertGroup], list[int]]:
    """The groups that some token chose, and where their experts' choices end."""
    used: list[ExpertGroup] = []
    kept: list[int] = []
    first, start = 0, 0
    for group in groups:
        stop = ends[first + len(group.gate_up) - 1]
        if stop > start:
            used.append(group)
            kept += ends[first : first + len(group.gate_up)]
        first, start = first + len(group.gate_up), stop
    return used, kept


def loop_swiglu(
    x_ND: Tensor,
    weights_NK: Tensor,
    choices: SortedChoices,
    ends: Sequence[int],
    matrices: Sequence[Tensor],
) -> Tensor:
    """Expert by expert, each on its own rows and its own weights."""
    y_ND: Tensor = _LoopSwiGLU.apply(  # type: ignore[no-untyped-call]
        x_ND, weights_NK, choices.tokens_S, choices.places_NK, ends, *matrices
    )
    return y_ND


def _experts(ends: Sequence[int], matrices: Sequence[Tensor]) -> Iterator[tuple[int, int, slice]]:
    """Position of its group's gate_up, number in the group, and rows of each expert with any."""
    start, expert = 0, 0
    for position in range(0, len(matrices), 2):
        for number in range(len(matrices[position])):
            if ends[expert] > start:
                yield position, number, slice(start, ends[expert])
            start, expert = ends[expert], expert + 1


class _LoopSwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, weights_NK: Tensor, tokens_S: Tensor, places_NK: Tensor,
        ends: Sequence[int], *matrices: Tensor,
    ) -> Tensor:  # fmt: skip
        gate_up_SF = x_ND.new_empty(len(tokens_S), matrices[0].shape[1])
        out_SD = x_ND.new_empty(len(tokens_S), x_ND.shape[1])
        for at, number, rows in _experts(ends, matrices):
            gate_up, down = matrices[at][number], matrices[at + 1][number]
            torch.mm(x_ND.index_select(0, tokens_S[rows]), gate_up.T, out=gate_up_SF[rows])
            torch.mm(swiglu(gate_up_SF[rows]), down.T, out=out_SD[rows])
        ctx.ends = ends
        ctx.save_for_backward(x_ND, weights_NK, tokens_S, places_NK, gate_up_SF, *matrices)
        return F.embedding_bag(
            places_NK, out_SD, mode="sum", per_sample_weights=weights_NK.to(x_ND.dtype)
        )

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, weights_NK, tokens_S, places_NK, gate_up_SF, *matrices = ctx.saved_tensors
        dy_ND = gradients[0]
        weights_S1 = in_order(weights_NK, places_NK, len(tokens_S))[:, None]
        d_weights_S = torch.zeros_like(weights_S1[:, 0])
        dx_SD = x_ND.new_empty(len(tokens_S), x_ND.shape[1])
        d_matrices = [torch.empty_like(matrix) for matrix in matrices]
        idle = {(at, n) for at in range(0, len(matrices), 2) for n in range(len(matrices[at]))}
        for at, number, rows in _experts(ctx.ends, matrices):
            idle.remove((at, number))
            weights_n1 = weights_S1[rows].to(x_ND.dtype)
            dy_nD = dy_ND.index_select(0, tokens_S[rows])
            d_hidden_nF = dy_nD @ matrices[at + 1][number]
            gate_nF, up_nF = gate_up_SF[rows].chunk(2, -1)
            silu_nF = F.silu(gate_nF)
            hidden_nF = silu_nF * up_nF
            torch.sum(d_hidden_nF * hidden_nF, -1, dtype=d_weights_S.dtype, out=d_weights_S[rows])
            torch.mm(dy_nD.T, hidden_nF.mul_(weights_n1), out=d_matrices[at + 1][number])
            d_gate_up = swiglu_backward(d_hidden_nF.mul_(weights_n1), gate_up_SF[rows], silu_nF)
            x_nD = x_ND.index_select(0, tokens_S[rows])
            torch.mm(d_gate_up.T, x_nD, out=d_matrices[at][number])
            torch.mm(d_gate_up, matrices[at][number], out=dx_SD[rows])
        for at, number in idle:
            d_matrices[at][number].zero_()
            d_matrices[at + 1][number].zero_()
        dx_ND = F.embedding_bag(places_NK, dx_SD, mode="sum")
        return dx_ND, d_weights_S[places_NK], None, None, None, *d_matrices


class _Spread(torch.autograd.Function):
    """Each sorted choice's token; its derivative sums a token's choices in a fixed order."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, tokens_S: Tensor, places_NK: Tensor) -> Tensor:
        ctx.save_for_backward(places_NK)
        return x_ND[tokens_S]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (places_NK,) = ctx.saved_tensors
        return gradients[0][places_NK].sum(1), None, None


class _Collect(torch.autograd.Function):
    """The sum of each token's sorted choices."""

    @staticmethod
    def forward(ctx: Any, out_SD: Tensor, tokens_S: Tensor, places_NK: Tensor) -> Tensor:
        ctx.save_for_backward(tokens_S)
        return out_SD[places_NK].sum(1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (tokens_S,) = ctx.saved_tensors
        return gradients[0][tokens_S], None, None


def grouped_swiglu(
    x_ND: Tensor,
    weights_NK: Tensor,
    choices: SortedChoices,
    ends: Sequence[int],
    matrices: Sequence[Tensor],
) -> Tensor:
    """All experts at once, by grouped products on the groups' weights side by side."""
    gate_up_EFD, down_EDF = (
        torch.cat(list(parts)) if len(parts) > 1 else parts[0]
        for parts in (matrices[::2], matrices[1::2])
    )
    ends_E = torch.tensor(ends, dtype=torch.int32, device=x_ND.device)
    tokens_S, places_NK = choices.tokens_S, choices.places_NK
    x_SD = _Spread.apply(x_ND, tokens_S, places_NK)  # type: ignore[no-untyped-call]
    hidden_SF = swiglu(F.grouped_mm(x_SD, gate_up_EFD.transpose(1, 2), offs=ends_E))
    weights_S = weights_NK.flatten()[places_NK.flatten().argsort()]
    hidden_SF = hidden_SF * weights_S[:, None].to(x_ND.dtype)
    out_SD = F.grouped_mm(hidden_SF, down_EDF.transpose(1, 2), offs=ends_E)
    y_ND: Tensor = _Collect.apply(out_SD, tokens_S, places_NK)  # type: ignore[no-untyped-call]
    return y_ND


def reference_routed_swiglu(
    x_ND: Tensor, experts_NK: Tensor, weights_NK: Tensor, groups: Sequence[ExpertGroup]
) -> Tensor:
    """The same written out, expert by expert."""
    y_ND = torch.zeros_like(x_ND, dtype=torch.promote_types(x_ND.dtype, torch.float32))
    first = 0
    for group in groups:
        for e in range(len(group.gate_up)):
            tokens, place = (experts_NK == first + e).nonzero(as_tuple=True)
            if len(tokens) == 0:
                continue
            gate, up = F.linear(x_ND[tokens], group.gate_up[e]).chunk(2, -1)
            out = F.linear(F.silu(gate) * up, group.down[e])
            y_ND = y_ND.index_add(0, tokens, out * weights_NK[tokens, place, None])
        first += len(group.gate_up)
    return y_ND.to(x_ND.dtype)
