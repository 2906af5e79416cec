"""How do the kernels compute attention within documents, and what do they need of a batch?

Each function takes queries [B, T, H, K], keys and values [B, T, G, K] (G divides H) and one form of
the documents' bounds, made once a forward pass for all layers; it returns [B, T, H, K].
Shapes: B sequences, T positions, N = B T tokens, H query and G key/value heads, K head size.
Read next: `documents.py`, which makes the forms.
"""

import inspect
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from .causal_tiles import causal_attention
from .documents import Bounds, EqualLengths

HALF = (torch.float16, torch.bfloat16)
Kernel = Callable[..., Any]


def _imported(module: str, name: str) -> Kernel | None:
    try:
        kernel: Kernel = getattr(import_module(module), name)
    except (ImportError, OSError, AttributeError):
        return None
    return kernel


@cache
def flash_kernel(capability: tuple[int, int]) -> Kernel | None:
    """FlashAttention 3 (Shah et al. 2024) on Hopper, else 2 (Dao 2023); None if not installed."""
    newest = None
    if capability[0] == 9:
        newest = _imported("flash_attn_interface", "flash_attn_varlen_func")
    return newest or _imported("flash_attn", "flash_attn_varlen_func")


@cache
def flash4_kernel() -> Kernel | None:
    """FlashAttention 4 in CuTe-DSL, of the package flash-attn-4; None if not installed."""
    return _imported("flash_attn.cute", "flash_attn_varlen_func")


@cache
def varlen_kernel(grouped: bool) -> Kernel | None:
    """PyTorch's own FlashAttention for variable lengths; None if it lacks what is needed."""
    kernel = _imported("torch.nn.attention.varlen", "varlen_attn")
    needed = {"window_size", "enable_gqa"} if grouped else {"window_size"}
    if kernel is None or not needed <= inspect.signature(kernel).parameters.keys():
        return None
    return kernel


def flash_attention(q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, bounds: Bounds) -> Tensor:
    """FlashAttention 2 or 3."""
    kernel = flash_kernel(torch.cuda.get_device_capability(q_BTHK.device))
    assert kernel is not None, "choose_backend checks that it is installed"
    return packed_flash(kernel, q_BTHK, k_BTGK, v_BTGK, bounds)


def flash4_attention(q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, bounds: Bounds) -> Tensor:
    """FlashAttention 4."""
    kernel = flash4_kernel()
    assert kernel is not None, "choose_backend checks that it is installed"
    return packed_flash(kernel, q_BTHK, k_BTGK, v_BTGK, bounds)


def packed_flash(
    kernel: Kernel, q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, bounds: Bounds
) -> Tensor:
    """One call of a `flash_attn_varlen_func`; 2, 3 and 4 share these names of arguments."""
    y = kernel(
        q_BTHK.flatten(0, 1), k_BTGK.flatten(0, 1), v_BTGK.flatten(0, 1),
        cu_seqlens_q=bounds.cumulative, cu_seqlens_k=bounds.cumulative,
        max_seqlen_q=bounds.longest, max_seqlen_k=bounds.longest, causal=True,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip
    y_NHK: Tensor = y[0] if isinstance(y, tuple) else y  # some return the log-sum-exp beside it
    return y_NHK.view_as(q_BTHK)


def varlen_attention(q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, bounds: Bounds) -> Tensor:
    """PyTorch's own."""
    kernel = varlen_kernel(q_BTHK.shape[2] != k_BTGK.shape[2])
    assert kernel is not None, "choose_backend checks that it is there"
    return packed_varlen(kernel, q_BTHK, k_BTGK, v_BTGK, bounds)


def packed_varlen(
    kernel: Kernel, q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, bounds: Bounds
) -> Tensor:
    """One call of PyTorch's `varlen_attn`; a window of (-1, 0) is causal.

    Where `torch.use_deterministic_algorithms` only warns, its backward pass adds up in any order.
    """
    grouped = {"enable_gqa": True} if q_BTHK.shape[2] != k_BTGK.shape[2] else {}
    y_NHK: Tensor = kernel(
        q_BTHK.flatten(0, 1), k_BTGK.flatten(0, 1), v_BTGK.flatten(0, 1),
        bounds.cumulative, bounds.cumulative, bounds.longest, bounds.longest,
        window_size=(-1, 0), **grouped,
    )  # fmt: skip
    return y_NHK.view_as(q_BTHK)


@cache
def _compiled_flex() -> Kernel:
    compiled: Kernel = torch.compile(flex_attention)
    return compiled


def flex_attention_in_blocks(
    q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, blocks: BlockMask
) -> Tensor:
    """FlexAttention (Dong et al. 2024) over the blocks in which a document lies."""
    # Inside a compiled model it is traced with it; by itself it would run its slow reference.
    attend = cast(Kernel, flex_attention) if torch.compiler.is_compiling() else _compiled_flex()
    q, k, v = _heads_first(q_BTHK, k_BTGK, v_BTGK)
    y_BHTK: Tensor = attend(q, k, v, block_mask=blocks, enable_gqa=q.shape[1] != k.shape[1])
    return y_BHTK.transpose(1, 2)


def sdpa_attention(q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, mask_B1TT: Tensor) -> Tensor:
    """PyTorch's scaled_dot_product_attention with a boolean mask."""
    q, k, v = _heads_first(q_BTHK, k_BTGK, v_BTGK)
    grouped = q.shape[1] != k.shape[1]
    y_BHTK = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_B1TT, enable_gqa=grouped)
    return y_BHTK.transpose(1, 2)


def _heads_first(*tensors_BTHK: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.transpose(1, 2) for t in tensors_BTHK)


def documents_attention(
    q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, lengths: EqualLengths
) -> Tensor:
    """Causal attention for each group of equally long documents.

    Its work is that of the documents' own triangles; that of a mask is the whole square.
    """
    half_on_cpu = q_BTHK.device.type == "cpu" and q_BTHK.dtype in HALF
    attend = _causal_half_on_cpu if half_on_cpu else _causal_sdpa
    if not lengths.groups:
        return q_BTHK
    tensors = [t.flatten(0, 1) for t in (q_BTHK, k_BTGK, v_BTGK)]
    if lengths.order_N is not None:
        tensors = [_Moved.apply(t, lengths.order_N, lengths.places_N) for t in tensors]  # type: ignore[no-untyped-call]
    sizes = [count * length for count, length in lengths.groups]
    outputs = []
    for group, *parts in zip(lengths.groups, *(t.split(sizes) for t in tensors), strict=True):
        q, k, v = (t.unflatten(0, group) for t in parts)
        outputs.append(attend(q, k, v).flatten(0, 1))
    y_NHK = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    if lengths.order_N is not None:
        y_NHK = _Moved.apply(y_NHK, lengths.places_N, lengths.order_N)  # type: ignore[no-untyped-call]
    return y_NHK.view_as(q_BTHK)


def _causal_half_on_cpu(q_BLHK: Tensor, k_BLGK: Tensor, v_BLGK: Tensor) -> Tensor:
    """The fastest of three, as measured: PyTorch's kernel is slow in half precision when short.

    Backward above all: on 16 documents of 16 tokens it takes three times as long as in float32.
    """
    count, length = q_BLHK.shape[:2]
    if count >= 4 and length >= 64:
        return causal_attention(q_BLHK, k_BLGK, v_BLGK)
    if length < 512:
        return _causal_sdpa(q_BLHK.float(), k_BLGK.float(), v_BLGK.float()).to(q_BLHK.dtype)
    return _causal_sdpa(q_BLHK, k_BLGK, v_BLGK)


def _causal_sdpa(q_BLHK: Tensor, k_BLGK: Tensor, v_BLGK: Tensor) -> Tensor:
    q, k, v = _heads_first(q_BLHK, k_BLGK, v_BLGK)
    grouped = q.shape[1] != k.shape[1]
    y_BHLK = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    return y_BHLK.transpose(1, 2)


class _Moved(torch.autograd.Function):
    """Rows in another order; the gradient's are gathered back rather than added up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order_N: Tensor, places_N: Tensor) -> Tensor:
        ctx.save_for_backward(places_N)
        return x.index_select(0, order_N)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (places_N,) = ctx.saved_tensors
        return gradients[0].index_select(0, places_N), None, None


def reference_attention(
    q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, mask_B1TT: Tensor
) -> Tensor:
    """Attention written out (Vaswani et al. 2017, eq. 1) in float32 or wider."""
    wide = torch.promote_types(q_BTHK.dtype, torch.float32)
    q, k, v = (t.to(wide).transpose(1, 2) for t in (q_BTHK, k_BTGK, v_BTGK))
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores_BHTT = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    weights_BHTT = scores_BHTT.masked_fill(~mask_B1TT, float("-inf")).softmax(dim=-1)
    return (weights_BHTT @ v).transpose(1, 2).to(q_BTHK.dtype)
