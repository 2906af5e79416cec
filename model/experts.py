"""Experts of token routers: sort the choices by expert, run each expert's tokens, add up.

Shapes: N tokens, K choices of each, D model, F hidden units, E experts of one group.
Read next: `routers.py`, which makes the choice.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ExpertGroup(nn.Module):
    """The SwiGLU weights of one family's experts, or of the shared ones."""

    def __init__(self, experts: int, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(experts, 2 * width, hidden_size))
        self.down = nn.Parameter(torch.empty(experts, hidden_size, width))


def routed_swiglu(
    x_ND: Tensor, experts_NK: Tensor, weights_NK: Tensor, groups: Sequence[ExpertGroup]
) -> Tensor:
    """sum_k weight_k expert_k(x) for every token.

    Args:
        x_ND: tokens.
        experts_NK: expert numbers, counted through the groups in order; int64.
        weights_NK: weights of their outputs, float32; zero leaves a choice out.
        groups: the experts.
    Returns:
        y_ND, in the dtype of the products.
    """
    return reference_routed_swiglu(x_ND, experts_NK, weights_NK, groups)


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
