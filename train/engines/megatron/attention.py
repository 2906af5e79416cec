"""Attention's own parts beside Megatron's: the norm, and attention within documents.

Shapes: T positions, B sequences, H query and G key heads, K head size; local ones are those of this
process. Read next: `model.py`, which builds layers with them.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.transformer import TransformerConfig
from torch import Tensor, nn

from ....model.attention_backends import choose_backend
from ....model.collectives import context_positions, gather_dim, scatter_sum_dim
from ....model.norms import RMSNorm


class Norm(RMSNorm):
    """RMSNorm whose gradient is partial under sequence parallelism, and says so.

    Layer norms see a stretch of the positions, query and key norms some of the heads: either way
    the gradients of the tensor ranks must be added up.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__(hidden_size, eps)
        self.weight.data = self.weight.data.to(config.params_dtype)
        cast(Any, self.weight).sequence_parallel = config.sequence_parallel


class _GatherKeys(torch.autograd.Function):
    """Keys or values of all context ranks, one after the other along the positions."""

    @staticmethod
    def forward(ctx: Any, x_TBGK: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return gather_dim(x_TBGK, 0, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return scatter_sum_dim(gradients[0], 0, ctx.group), None


class Prepared:
    """What attention needs of a batch's documents, made once for all layers."""

    def __init__(self) -> None:
        self._starts_BT: Tensor | None = None
        self._made: Any = None

    def of(self, starts_BT: Tensor, make: Callable[[Tensor], Any]) -> Any:
        """What `make` makes of a batch's starts, or has just made."""
        if self._starts_BT is not starts_BT:
            self._starts_BT, self._made = starts_BT, make(starts_BT)
        return self._made


class DocumentAttention(nn.Module):
    """Megatron's core attention, within documents, with sequences shared by context.

    Megatron's attention mask here is int64 [B, T]: the place where each position's document
    begins. Each context rank asks with its own positions and sees everybody's keys.
    """

    def __init__(
        self, config: TransformerConfig, *, backend: str, prepared: Prepared, **others: Any
    ) -> None:
        super().__init__()
        groups = others["pg_collection"]
        self.group, self.context = groups.cp, groups.cp.size()
        self.heads = config.num_attention_heads // groups.tp.size()
        self.kv_heads = config.num_query_groups // groups.tp.size()
        self.backend, self.prepared = backend, prepared

    def forward(
        self, q_TBHK: Tensor, k_TBGK: Tensor, v_TBGK: Tensor, starts_BT: Tensor, **_: Any
    ) -> Tensor:
        """[T, B, H K]."""
        T, B, H, K = q_TBHK.shape
        q_TBHK, k_TBGK = q_TBHK.to(v_TBGK.dtype), k_TBGK.to(v_TBGK.dtype)
        if self.context > 1:
            y_BHTK = self._over_context(q_TBHK, k_TBGK, v_TBGK, starts_BT)
            return y_BHTK.permute(2, 0, 1, 3).reshape(T, B, H * K)
        backend = choose_backend(
            self.backend, device=q_TBHK.device, dtype=q_TBHK.dtype,
            heads=self.heads, kv_heads=self.kv_heads, head_dim=K,
        ).backend  # fmt: skip
        prepared = self.prepared.of(starts_BT, backend.prepare)
        q, k, v = (x.transpose(0, 1).contiguous() for x in (q_TBHK, k_TBGK, v_TBGK))
        y_BTHK = backend.attend(q, k, v, prepared)
        return y_BTHK.transpose(0, 1).reshape(T, B, H * K)

    def _over_context(
        self, q_TBHK: Tensor, k_TBGK: Tensor, v_TBGK: Tensor, starts_BT: Tensor
    ) -> Tensor:
        k, v = (_GatherKeys.apply(x, self.group) for x in (k_TBGK, v_TBGK))  # type: ignore[no-untyped-call]
        return F.scaled_dot_product_attention(
            q_TBHK.permute(1, 2, 0, 3), k.permute(1, 2, 0, 3), v.permute(1, 2, 0, 3),
            attn_mask=self.prepared.of(starts_BT, self._seen_B1TT), enable_gqa=True,
        )  # fmt: skip

    def _seen_B1TT(self, starts_BT: Tensor) -> Tensor:
        """Which of all keys, in the order in which they are gathered, each query here sees."""
        of, whole, device = self.context, starts_BT.shape[1], starts_BT.device
        places = [context_positions(whole, index, of, device) for index in range(of)]
        keys_at, asks_at = torch.cat(places), places[self.group.rank()]
        seen_BTT = keys_at >= starts_BT[:, asks_at, None]
        return (seen_BTT & (keys_at <= asks_at[:, None]))[:, None]
