"""silu(gate) * up, the middle of every SwiGLU, and its derivative, in few passes over memory.

Kept for the backward pass is the product before it and nothing else: silu is computed again, and
gate's and up's gradients are written side by side, where autograd would store silu and copy both
gradients together. Shapes: [..., 2F] is gate and then up, F hidden units each.
Read next: `experts.py`, `feed_forward.py`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up: [..., 2F] to [..., F]."""
    if torch.compiler.is_compiling():  # the compiler fuses the plain form, forward and backward
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate) * up
    hidden: Tensor = _SwiGLU.apply(gate_up)  # type: ignore[no-untyped-call]
    return hidden


def swiglu_backward(d_hidden: Tensor, gate_up: Tensor, silu: Tensor) -> Tensor:
    """The gradient of gate and up, [..., 2F].

    d up = d_hidden silu(gate), d gate = d_hidden up silu'(gate).

    Args:
        silu: silu(gate), computed again.
    """
    gate, up = gate_up.chunk(2, -1)
    d_gate_up = torch.empty_like(gate_up)
    d_gate, d_up = d_gate_up.chunk(2, -1)
    torch.mul(d_hidden, silu, out=d_up)
    torch.ops.aten.silu_backward.grad_input(d_hidden * up, gate, grad_input=d_gate)
    return d_gate_up


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate).mul_(up)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        silu = F.silu(gate_up.chunk(2, -1)[0])
        return swiglu_backward(gradients[0], gate_up, silu)
