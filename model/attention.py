"""Causal self-attention that never looks across a document's border.

Shapes: B sequences, T positions, D model, H query heads, G key/value heads, K head dimension.
Positions count within the sequence; rotary embeddings see differences only, so a document's place
in its sequence does not matter. Read next: `decoder.py`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .norms import RMSNorm


def document_mask(documents_BT: Tensor) -> Tensor:
    """True where a position may attend: not ahead of itself, and in its own document.

    Args:
        documents_BT: the document's number at each position; any integers.
    Returns:
        Boolean [B, 1, T, T].
    """
    T = documents_BT.shape[1]
    same_BTT = documents_BT[:, :, None] == documents_BT[:, None, :]
    causal_TT = torch.ones(T, T, dtype=torch.bool, device=documents_BT.device).tril()
    return (same_BTT & causal_TT)[:, None]


def sdpa_attention(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, mask_B1TT: Tensor) -> Tensor:
    """PyTorch's scaled_dot_product_attention with a boolean mask."""
    grouped = q_BHTK.shape[1] != k_BGTK.shape[1]
    return F.scaled_dot_product_attention(
        q_BHTK, k_BGTK, v_BGTK, attn_mask=mask_B1TT, enable_gqa=grouped
    )


def reference_attention(
    q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, mask_B1TT: Tensor
) -> Tensor:
    """Attention written out (Vaswani et al. 2017, eq. 1) in float32 or wider."""
    groups = q_BHTK.shape[1] // k_BGTK.shape[1]
    wide = torch.promote_types(q_BHTK.dtype, torch.float32)
    q, k, v = (t.to(wide) for t in (q_BHTK, k_BGTK, v_BGTK))
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores_BHTT = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    weights_BHTT = scores_BHTT.masked_fill(~mask_B1TT, float("-inf")).softmax(dim=-1)
    return (weights_BHTT @ v).to(q_BHTK.dtype)


Backend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
BACKENDS: dict[str, Backend] = {"sdpa": sdpa_attention, "reference": reference_attention}


def choose_backend(name: str, device: torch.device) -> tuple[str, Backend]:
    """The backend of a config name; `auto` takes sdpa, which every device has."""
    chosen = "sdpa" if name == "auto" else name
    return chosen, BACKENDS[chosen]


def rotary_tables(positions: int, head_dim: int, theta: float, device: torch.device) -> Tensor:
    """Cosines and sines of rotary embeddings (Su et al. 2021), half-split, float32 [2, T, K]."""
    half = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32)
    frequencies = 1.0 / theta ** (half / head_dim)
    angles = torch.outer(torch.arange(positions, device=device, dtype=torch.float32), frequencies)
    angles = torch.cat([angles, angles], dim=-1)
    return torch.stack([angles.cos(), angles.sin()])


def apply_rotary(x_BHTK: Tensor, cos_sin_2TK: Tensor) -> Tensor:
    """Rotates each head's (first half, second half) pairs by their position's angles."""
    cos_TK, sin_TK = cos_sin_2TK.to(x_BHTK.dtype)
    first, second = x_BHTK.chunk(2, dim=-1)
    return x_BHTK * cos_TK + torch.cat([-second, first], dim=-1) * sin_TK


class Attention(nn.Module):
    """Grouped-query attention with per-head RMSNorm on queries and keys (Qwen3's)."""

    def __init__(
        self, hidden_size: int, heads: int, kv_heads: int, head_dim: int, eps: float, backend: str
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.backend = backend
        self.qkv = nn.Linear(hidden_size, (heads + 2 * kv_heads) * head_dim, bias=False)
        self.q_norm = RMSNorm(head_dim, eps)
        self.k_norm = RMSNorm(head_dim, eps)
        self.out = nn.Linear(heads * head_dim, hidden_size, bias=False)

    def forward(self, x_BTD: Tensor, cos_sin_2TK: Tensor, mask_B1TT: Tensor) -> Tensor:
        """Attends within documents; [B, T, D] to [B, T, D]."""
        B, T, _ = x_BTD.shape
        qkv = self.qkv(x_BTD).view(B, T, self.heads + 2 * self.kv_heads, self.head_dim)
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=2)
        q_BHTK = apply_rotary(self.q_norm(q).transpose(1, 2), cos_sin_2TK)
        k_BGTK = apply_rotary(self.k_norm(k).transpose(1, 2), cos_sin_2TK)
        v_BGTK = v.transpose(1, 2)
        _, attend = choose_backend(self.backend, x_BTD.device)
        y_BHTK = attend(q_BHTK.to(v.dtype), k_BGTK.to(v.dtype), v_BGTK, mask_B1TT)
        return self.out(y_BHTK.transpose(1, 2).reshape(B, T, self.heads * self.head_dim))
