"""Which backend computes attention within documents, what can it do, and how is one chosen?

What a kernel cannot do is checked here, before it is called: a backend named in the config
refuses, `auto` goes on to the next. Shapes: B sequences, T positions, H query and G key/value
heads, K head size. Read next: `attention_kernels.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from . import attention_kernels as kernels
from .attention_kernels import HALF
from .documents import document_blocks, document_bounds, document_mask, equal_lengths
from .errors import ModelError

Attend = Callable[[Tensor, Tensor, Tensor, Any], Tensor]
"""(q_BTHK, k_BTGK, v_BTGK, what was prepared) -> y_BTHK."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What a backend is asked to do."""

    device: str
    """Type of the device: cpu, cuda, …"""
    capability: tuple[int, int] = (0, 0)
    """CUDA compute capability."""
    dtype: torch.dtype
    """Of queries, keys and values."""
    heads: int
    kv_heads: int
    head_dim: int

    def __str__(self) -> str:
        arch = f" sm_{self.capability[0]}{self.capability[1]}" if self.device == "cuda" else ""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.device}{arch}, {dtype}, head size {self.head_dim}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One way to compute attention within documents."""

    prepare: Callable[[Tensor], Any]
    """starts_BT -> what `attend` needs of the batch."""
    attend: Attend
    refusal: Callable[[Case], str | None]
    """Why it cannot do a case, a clause; None if it can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The backend that was taken, and why."""

    name: str
    why: str
    backend: Backend

    def __str__(self) -> str:
        return f"{self.name} ({self.why})"


def choose_backend(
    name: str, *, device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int
) -> Choice:
    """The backend of a config name, or for `auto` the first that can do it.

    Args:
        name: `auto` or one of BACKENDS.
        device: where the model runs.
        dtype: of queries, keys and values, autocast's where it is on.
        heads, kv_heads, head_dim: the model's.
    Raises:
        ModelError: it is unknown, or cannot do what is asked. Only `auto` falls back.
    """
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    return choose(name, Case(
        device=device.type, capability=capability, dtype=dtype,
        heads=heads, kv_heads=kv_heads, head_dim=head_dim,
    ))  # fmt: skip


@cache
def choose(name: str, case: Case) -> Choice:
    """`choose_backend` for a case."""
    if name != "auto":
        if name not in BACKENDS:
            raise ModelError(f"model.attention={name!r}: known are auto, {', '.join(BACKENDS)}")
        if refusal := BACKENDS[name].refusal(case):
            raise ModelError(
                f"model.attention={name} cannot run ({case}): it {refusal}; "
                "change that, or set model.attention=auto, which takes what can"
            )
        return Choice(name=name, why="named in the config", backend=BACKENDS[name])
    refusals: list[str] = []
    for candidate in preferred(case):
        refusal = BACKENDS[candidate].refusal(case)
        if refusal is None:
            why = "; ".join([f"auto for {case}", *refusals])
            return Choice(name=candidate, why=why, backend=BACKENDS[candidate])
        refusals.append(f"{candidate} {refusal}")
    raise AssertionError("the last candidate runs everywhere")


def preferred(case: Case) -> tuple[str, ...]:
    """The order in which `auto` asks.

    On the CPU `documents` was the fastest for every length measured (scripts/bench_attention.py).
    On CUDA the order was not measured: what is written for the architecture comes first, PyTorch's
    built-in kernel before what needs compiling.
    """
    if case.device == "cpu":
        return ("documents",)
    if case.device != "cuda":
        return ("sdpa",)
    newest = ("flash4", "flash") if case.capability >= (10, 0) else ("flash", "flash4")
    return (*newest, "varlen", "flex", "sdpa")


# What backends cannot do. Each clause follows "it".


def _anywhere(case: Case) -> str | None:
    return None


def _needs_gpu(
    case: Case, capability: tuple[int, int], dtypes: tuple[torch.dtype, ...]
) -> str | None:
    if case.device != "cuda":
        return f"needs a CUDA device, not {case.device}"
    if case.capability < capability:
        return f"needs a GPU of compute capability {capability[0]}.{capability[1]} or newer"
    if case.dtype not in dtypes:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        return f"computes in {names} only: engine.precision=bf16 gives that"
    return None


def _bad_head_dim(case: Case) -> str | None:
    if case.head_dim > 256 or case.head_dim % 8:
        return "has kernels for head sizes that are multiples of 8 up to 256"
    return None


def _flash_refusal(case: Case) -> str | None:
    refusal = _needs_gpu(case, (8, 0), HALF) or _bad_head_dim(case)
    if refusal is None and kernels.flash_kernel(case.capability) is None:
        return "needs flash-attn: pip install 'xylem[flash]'"
    return refusal


def _flash4_refusal(case: Case) -> str | None:
    refusal = _needs_gpu(case, (9, 0), HALF) or _bad_head_dim(case)
    if refusal is None and case.capability >= (10, 0) and 128 < case.head_dim < 256:
        return "has kernels for head sizes up to 128, and 256, on this architecture"
    if refusal is None and kernels.flash4_kernel() is None:
        return "needs flash-attn-4, a pre-release: pip install 'xylem[flash4]'"
    return refusal


def _varlen_refusal(case: Case) -> str | None:
    refusal = _needs_gpu(case, (8, 0), HALF) or _bad_head_dim(case)
    if refusal is None and kernels.varlen_kernel(case.heads != case.kv_heads) is None:
        return "needs torch.nn.attention.varlen with grouped heads: torch 2.12 or newer"
    return refusal


def _flex_refusal(case: Case) -> str | None:
    if case.device == "cpu":
        return "has no backward pass on the CPU"
    refusal = _needs_gpu(case, (8, 0), (*HALF, torch.float32))
    if refusal is None and case.head_dim < 16:
        return "has kernels for head sizes from 16"
    return refusal


def _opaque(attend: Attend) -> Attend:
    """Leaves it out of what torch.compile looks into.

    Packages' kernels have compilers of their own, and documents have other lengths in every batch.
    """
    left_out: Attend = torch.compiler.disable(attend)
    return left_out


BACKENDS: dict[str, Backend] = {
    "flash": Backend(
        prepare=document_bounds, attend=_opaque(kernels.flash_attention), refusal=_flash_refusal
    ),
    "flash4": Backend(
        prepare=document_bounds, attend=_opaque(kernels.flash4_attention), refusal=_flash4_refusal
    ),
    "varlen": Backend(
        prepare=document_bounds, attend=_opaque(kernels.varlen_attention), refusal=_varlen_refusal
    ),
    "flex": Backend(
        prepare=document_blocks, attend=kernels.flex_attention_in_blocks, refusal=_flex_refusal
    ),
    "sdpa": Backend(prepare=document_mask, attend=kernels.sdpa_attention, refusal=_anywhere),
    "documents": Backend(
        prepare=equal_lengths, attend=_opaque(kernels.documents_attention), refusal=_anywhere
    ),
    "reference": Backend(
        prepare=document_mask, attend=kernels.reference_attention, refusal=_anywhere
    ),
}
