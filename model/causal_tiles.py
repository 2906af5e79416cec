"""How is causal attention over documents of one length computed in half precision on a CPU?

In tiles of queries against the keys up to them, as batched products, which go to the CPU's matrix
units; the backward pass makes a tile's weights again rather than keep them. PyTorch's fused kernel
took longer, forward and backward on 4096 tokens in bfloat16, 4 heads of 64: 2.2 times on documents
of 128 tokens, 1.7 times on 512, 1.2 times on 1024; a single document gains nothing.
Scores are made in float32, as fused kernels keep them: rounding a score of 16 to bfloat16 can
change its weight by 3 %. Shapes: N documents times key heads, L positions of each, R query heads a
key head, K head size, Q queries of a tile, E keys up to them. Read next: `attention_kernels.py`.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

QUERIES = 64
"""Queries of a tile."""
SCORES = 1 << 19
"""Scores of a tile, about: as many as stay in a core's cache."""


def causal_attention(q_BLHK: Tensor, k_BLGK: Tensor, v_BLGK: Tensor) -> Tensor:
    """Causal attention of B documents of L positions, [B, L, H, K]; G divides H."""
    B, L, H, K = q_BLHK.shape
    G = k_BLGK.shape[2]
    q_NRLK = q_BLHK.unflatten(2, (G, H // G)).permute(0, 2, 3, 1, 4).reshape(B * G, H // G, L, K)
    k_NLK, v_NLK = (t.transpose(1, 2).reshape(B * G, L, K) for t in (k_BLGK, v_BLGK))
    y_NRLK: Tensor = _Causal.apply(q_NRLK, k_NLK, v_NLK)  # type: ignore[no-untyped-call]
    return y_NRLK.view(B, G, H // G, L, K).permute(0, 3, 1, 2, 4).reshape(B, L, H, K)


class _Causal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_NRLK: Tensor, k_NLK: Tensor, v_NLK: Tensor) -> Tensor:
        ctx.save_for_backward(q_NRLK, k_NLK, v_NLK)
        y_NRLK = torch.empty_like(q_NRLK)
        for n, first, last in _tiles(q_NRLK):
            weights_NQE = _weights(q_NRLK[n, :, first:last], k_NLK[n, :last])
            y_NQK = weights_NQE @ v_NLK[n, :last]
            y_NRLK[n, :, first:last] = y_NQK.unflatten(1, (-1, last - first))
        return y_NRLK

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q_NRLK, k_NLK, v_NLK = ctx.saved_tensors
        (d_y_NRLK,) = gradients
        d_q_NRLK = torch.empty_like(q_NRLK)
        # Keys and values are read by many tiles: their gradients add up in float32.
        d_k_NLK, d_v_NLK = (torch.zeros_like(t, dtype=torch.float32) for t in (k_NLK, v_NLK))
        scale = q_NRLK.shape[-1] ** -0.5
        for n, first, last in _tiles(q_NRLK):
            q_NQK = q_NRLK[n, :, first:last].flatten(1, 2)
            k_NEK, v_NEK = k_NLK[n, :last], v_NLK[n, :last]
            weights_NQE = _weights(q_NRLK[n, :, first:last], k_NEK)
            d_y_NQK = d_y_NRLK[n, :, first:last].flatten(1, 2)
            d_v_NLK[n, :last] += weights_NQE.transpose(1, 2) @ d_y_NQK
            d_weights_NQE = d_y_NQK @ v_NEK.transpose(1, 2)
            d_scores_NQE = torch._softmax_backward_data(
                d_weights_NQE, weights_NQE, -1, weights_NQE.dtype
            )
            d_q_NQK = (d_scores_NQE @ k_NEK).mul_(scale)
            d_q_NRLK[n, :, first:last] = d_q_NQK.unflatten(1, (-1, last - first))
            d_k_NLK[n, :last] += d_scores_NQE.transpose(1, 2) @ q_NQK
        return d_q_NRLK, d_k_NLK.mul_(scale).to(k_NLK.dtype), d_v_NLK.to(v_NLK.dtype)


def _tiles(q_NRLK: Tensor) -> Iterator[tuple[slice, int, int]]:
    """(documents and key heads, first query, last query + 1) of each tile."""
    N, R, L, _ = q_NRLK.shape
    for first in range(0, L, QUERIES):
        last = min(L, first + QUERIES)
        step = max(1, SCORES // (R * (last - first) * last))
        for n in range(0, N, step):
            yield slice(n, n + step), first, last


def _weights(q_NRQK: Tensor, k_NEK: Tensor) -> Tensor:
    """softmax(q k / sqrt(K)) of a tile's queries, the last of the keys; heads one after another."""
    count, size = q_NRQK.shape[2:]
    q_NQK = (q_NRQK.float() * size**-0.5).flatten(1, 2)
    scores_NQE = q_NQK @ k_NEK.float().transpose(1, 2)
    ahead = torch.ones(count, count, dtype=torch.bool).triu(1)
    scores_NQE.unflatten(1, (-1, count))[..., -count:].masked_fill_(ahead, -math.inf)
    return scores_NQE.softmax(-1).to(k_NEK.dtype)
