"""Causal self-attention that never looks across a document's border.

Shapes: B sequences, T positions, D model, H query heads, G key/value heads, K head dimension.
Positions count within the sequence; rotary embeddings see differences only, so a document's place
in its sequence does not matter. Read next: `attention_backends.py`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .attention_backends import Backend, Choice, choose_backend
from .attention_kernels import sdpa_attention
from .collectives import Sharing
from .config import ModelConfig
from .documents import document_mask, document_starts
from .norms import RMSNorm

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q_BTHK, k_BTGK, v_BTGK) -> y_BTHK."""


class DocumentAttention:
    """Attention over one batch's documents: made once a forward pass, used by every layer."""

    def __init__(self, backend: Backend, documents_BT: Tensor) -> None:
        self.backend = backend
        self.prepared: Any = backend.prepare(document_starts(documents_BT))

    def __call__(self, q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor) -> Tensor:
        """[B, T, H, K], from queries and as many or fewer heads of keys and values."""
        return self.backend.attend(q_BTHK, k_BTGK, v_BTGK, self.prepared)


def attention_choice(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Choice:
    """The backend of forward passes whose hidden states have this dtype, under this autocast.

    Raises:
        ModelError: the config names one that cannot run here.
    """
    if torch.is_autocast_enabled(device.type) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device.type)
    return choose_backend(
        config.attention, device=device, dtype=dtype,
        heads=config.heads, kv_heads=config.kv_heads, head_dim=config.head_dim,
    )  # fmt: skip


class ContextAttention:
    """The same where this process has some of the queries, and all keys in the context's order.

    Its queries are two stretches of the sequence, an early and a late one, each of which sees the
    keys up to its end: both together are equally many on every process.
    """

    def __init__(self, documents_BT: Tensor, sharing: Sharing) -> None:
        T, device = documents_BT.shape[1], documents_BT.device
        self.places_T = sharing.places(T, device)
        mask_B1TT = document_mask(document_starts(documents_BT))
        index, of = sharing.part.context
        length = T // (2 * of)
        ends = [(index + 1) * length, T - index * length]
        self.length, self.masks_B1TT = length, [mask_B1TT[:, :, e - length : e, :e] for e in ends]

    def __call__(self, q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor) -> Tensor:
        """[B, this process's T, H, K]."""
        k_BTGK, v_BTGK = k_BTGK[:, self.places_T], v_BTGK[:, self.places_T]
        attended = []
        for q, mask in zip(q_BTHK.split(self.length, dim=1), self.masks_B1TT, strict=True):
            end = mask.shape[-1]
            attended.append(sdpa_attention(q, k_BTGK[:, :end], v_BTGK[:, :end], mask))
        return torch.cat(attended, dim=1)


def document_attention(
    config: ModelConfig, x_BTD: Tensor, documents_BT: Tensor, sharing: Sharing | None = None
) -> "DocumentAttention | ContextAttention":
    """Attention of the forward pass whose hidden states are x_BTD.

    Args:
        documents_BT: of whole sequences.
    Raises:
        ModelError: the config names a backend that cannot run here.
    """
    if sharing is not None and sharing.groups.context is not None:
        return ContextAttention(documents_BT, sharing)
    choice = attention_choice(config, x_BTD.device, x_BTD.dtype)
    return DocumentAttention(choice.backend, documents_BT)


def rotary_tables(positions: int, head_dim: int, theta: float, device: torch.device) -> Tensor:
    """Cosines and sines of rotary embeddings (Su et al. 2021), half-split, float32 [2, T, K].

    The first half's sines are negative, as `apply_rotary` adds. Angles are made in float32, as in
    every published Qwen3: they are exact to one rounding of the position's angle.
    """
    half = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32)
    frequencies = 1.0 / theta ** (half / head_dim)
    angles = torch.outer(torch.arange(positions, device=device, dtype=torch.float32), frequencies)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)])


class _Rotary(torch.autograd.Function):
    """x cos + (halves exchanged) sin. A rotation's gradient is the rotation back."""

    @staticmethod
    def forward(ctx: Any, x_BTHK: Tensor, cos_T1K: Tensor, sin_T1K: Tensor) -> Tensor:
        ctx.save_for_backward(cos_T1K, sin_T1K)
        return torch.addcmul(x_BTHK * cos_T1K, x_BTHK.roll(x_BTHK.shape[-1] // 2, -1), sin_T1K)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cos_T1K, sin_T1K = ctx.saved_tensors
        pull = gradients[0]
        exchanged = pull.roll(pull.shape[-1] // 2, -1)
        return torch.addcmul(pull * cos_T1K, exchanged, sin_T1K, value=-1), None, None


def apply_rotary(x_BTHK: Tensor, cos_sin_2TK: Tensor) -> Tensor:
    """Rotates each head's (first half, second half) pairs by their position's angles."""
    cos_T1K, sin_T1K = cos_sin_2TK.to(x_BTHK.dtype)[:, :, None]
    rotated: Tensor = _Rotary.apply(x_BTHK, cos_T1K, sin_T1K)  # type: ignore[no-untyped-call]
    return rotated


class Attention(nn.Module):
    """Grouped-query attention with per-head RMSNorm on queries and keys (Qwen3's)."""

    def __init__(
        self,
        hidden_size: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        eps: float,
        sharing: Sharing | None = None,
    ) -> None:
        super().__init__()
        self.sharing = Sharing() if sharing is None else sharing
        of = self.sharing.part.tensor[1]
        heads, kv_heads = heads // of, kv_heads // of
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.qkv = nn.Linear(hidden_size, (heads + 2 * kv_heads) * head_dim, bias=False)
        self.q_norm = RMSNorm(head_dim, eps)
        self.k_norm = RMSNorm(head_dim, eps)
        self.out = nn.Linear(heads * head_dim, hidden_size, bias=False)

    def forward(self, x_BTD: Tensor, cos_sin_2TK: Tensor, attend: Attend) -> Tensor:
        """Attends within documents; [B, T, D] to [B, T, D]."""
        x_BTD = self.sharing.enter(x_BTD, rounded=True)
        B, T, _ = x_BTD.shape
        qkv = self.qkv(x_BTD).view(B, T, self.heads + 2 * self.kv_heads, self.head_dim)
        q, k, v_BTGK = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=2)
        q_BTHK = apply_rotary(self.q_norm(q), cos_sin_2TK)
        k_BTGK = apply_rotary(self.k_norm(k), cos_sin_2TK)
        q_BTHK, k_BTGK = q_BTHK.to(v_BTGK.dtype), k_BTGK.to(v_BTGK.dtype)
        k_BTGK, v_BTGK = self.sharing.over_context(k_BTGK), self.sharing.over_context(v_BTGK)
        y_BTHK = attend(q_BTHK, k_BTGK, v_BTGK)
        return self.sharing.leave(self.out(y_BTHK.reshape(B, T, self.heads * self.head_dim)))
