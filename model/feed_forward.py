"""The feed-forward block: the trunk's SwiGLU, and beside it one SwiGLU a family.

y = trunk(x) + sum over the router's choices of weight * expert(x). Two SwiGLU in parallel are one
SwiGLU with concatenated hidden units, which is what makes the dense export exact (docs/EXPORT.md).
Shapes: B sequences, T positions, D model, F hidden units. Read next: `routers.py`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .routers import FamilyRouter, FamilySegment


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer 2020), with gate and up in one product."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(hidden_size, 2 * width, bias=False)
        self.down = nn.Linear(width, hidden_size, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        gate_BTF, up_BTF = self.gate_up(x_BTD).chunk(2, dim=-1)
        return self.down(F.silu(gate_BTF) * up_BTF)


class FeedForward(nn.Module):
    """A layer's trunk and its family experts; without expert width, the trunk alone."""

    def __init__(
        self, hidden_size: int, trunk_width: int, expert_width: int, families: Sequence[str]
    ) -> None:
        super().__init__()
        self.trunk = SwiGLU(hidden_size, trunk_width)
        hosted = families if expert_width else ()
        self.experts = nn.ModuleDict({name: SwiGLU(hidden_size, expert_width) for name in hosted})
        self.router = FamilyRouter(families)

    def forward(self, x_BTD: Tensor, segments: Sequence[FamilySegment]) -> Tensor:
        """[B, T, D] to [B, T, D]; `segments` says which rows belong to which family."""
        y_BTD = self.trunk(x_BTD)
        if not self.experts:
            return y_BTD
        # Slots are pure and sorted by family, so an expert's rows are one piece: no gather.
        choices = self.router(x_BTD, segments)
        pieces = x_BTD.split([choice.rows for choice in choices]) if len(choices) > 1 else [x_BTD]
        parts = [
            choice.scale(self.experts[choice.expert](piece))
            for choice, piece in zip(choices, pieces, strict=True)
        ]
        return y_BTD + (parts[0] if len(parts) == 1 else torch.cat(parts))
