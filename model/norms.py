"""RMSNorm (Zhang and Sennrich 2019): PyTorch's kernel on CUDA, a backward of our own elsewhere.

PyTorch differentiates its CPU version operation by operation, some twenty passes over the
activations; the closed form needs five. On CUDA it has one kernel each way, but only where weight
and activations have one dtype: queries and keys under autocast take the closed form there too.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _RMSNorm(torch.autograd.Function):
    """y = x r w with r = (mean(x^2) + eps)^-1/2; float32 inside, x's dtype outside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = scale.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return ((wide * scale) * weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        wide, gradient = x.to(scale.dtype), gradients[0].to(scale.dtype)
        normed = wide * scale
        along = gradient * normed
        d_weight = along.flatten(0, -2).sum(0)
        dtype, weight = weight.dtype, weight.to(scale.dtype)
        inner = (along @ weight / x.shape[-1]).unsqueeze(-1)
        d_x = (gradient * weight).sub_(normed.mul_(inner)).mul_(scale)
        return d_x.to(x.dtype), d_weight.to(dtype), None


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] to [..., size]."""
        if x.is_cuda and x.dtype == self.weight.dtype:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        normed: Tensor = _RMSNorm.apply(  # type: ignore[no-untyped-call]
            x, self.weight, self.eps
        )
        return normed
