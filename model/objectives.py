"""What a model is trained on: next-token cross-entropy and z-loss, never holding all logits.

Losses are sums, and come back per token too, so that the caller can add them up by language and
divide by the tokens of the whole global batch: an expert's gradient then means the same wherever it
is hosted. Liger's fused kernel does not serve here: with its `sum` no token's loss comes back, with
its `none` the logits are made a second time in the backward pass, and a token's z-loss, which must
be subtracted to compare languages, comes back rounded to the activations' dtype.
Processes that share the vocabulary have some of its rows each, and exchange three numbers a token.
Shapes: N tokens, B sequences, T positions, D model, V vocabulary (of this process, where shared).
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .collectives import Sharing, gather_dim

IGNORED = -100
"""Target of a position that is not predicted (the first token of a document)."""

CHUNK_VALUES = 1 << 23
"""Logits held at once, unless CHUNK_ROWS rows are more."""

CHUNK_ROWS = {"cpu": 512, "gpu": 4096}
"""Rows of logits held at once, at least: each chunk adds to the whole head's gradient, [V, D],
which with fewer rows costs as much as the products (131072 tokens of vocabulary: 2.3 times)."""

BLOCK_VALUES = {"cpu": 1 << 18, "gpu": 1 << 26}
"""Logits that are turned into their gradient at once, in float32: as fit into a core's cache."""


def chunk_rows(vocab_size: int, device: str) -> int:
    """How many tokens' logits are held at once."""
    return max(CHUNK_VALUES // vocab_size, CHUNK_ROWS[_kind(device)])


def _kind(device: str) -> str:
    return "cpu" if device == "cpu" else "gpu"


def _add_products(
    d_logits_nV: Tensor, hidden_nD: Tensor, head_VD: Tensor, d_hidden_nD: Tensor, d_head_VD: Tensor
) -> None:
    """What a chunk's logits pull on: its hidden states, filled in, and the head, added up."""
    torch.mm(d_logits_nV, head_VD, out=d_hidden_nD)
    if d_head_VD.dtype == hidden_nD.dtype:
        d_head_VD.addmm_(d_logits_nV.T, hidden_nD)
    else:
        d_head_VD += d_logits_nV.T @ hidden_nD


def _summed(nll_N: Tensor, log_partition_N: Tensor, kept_N: Tensor, z_weight: float) -> Tensor:
    """The loss of the kept tokens."""
    return nll_N.sum() + z_weight * (log_partition_N.square() * kept_N).sum()


class _LinearCrossEntropy(torch.autograd.Function):
    """sum(nll) + z_weight * sum(log_partition^2), with its gradient made on the way forward.

    The loss is a sum over tokens, so each chunk of logits can be turned into its gradient, in its
    place, and dropped: softmax - onehot, and 2 z_weight log_partition softmax.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        head_VD: Tensor,
        targets_N: Tensor,
        z_weight: float,
        wants_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        device = hidden_ND.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        hidden, head = (t.to(dtype) if dtype else t for t in (hidden_ND, head_VD))
        N, V = len(hidden), len(head)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        nll_N = torch.empty(N, dtype=wide, device=hidden.device)
        log_partition_N = torch.empty_like(nll_N)
        kept_N = targets_N != IGNORED
        picked_N = targets_N.clamp_min(0)
        d_hidden = torch.empty_like(hidden) if wants_gradient else None
        d_head = torch.zeros(head.shape, dtype=wide, device=head.device) if wants_gradient else None
        rows = min(N, chunk_rows(V, device))
        block = max(1, BLOCK_VALUES[_kind(device)] // V)
        chunk_NV = hidden.new_empty(rows, V)
        with torch.autocast(device, enabled=False):
            for first in range(0, N, max(1, rows)):
                part = slice(first, min(first + rows, N))
                logits_NV = torch.mm(hidden[part], head.T, out=chunk_NV[: part.stop - first])
                for start in range(first, part.stop, block):
                    some = slice(start, min(start + block, part.stop))
                    values_NV = logits_NV[start - first : some.stop - first]
                    picked_N1 = picked_N[some, None]
                    log_p_NV = values_NV.log_softmax(-1, dtype=wide)
                    nll_N1 = -log_p_NV.gather(-1, picked_N1)
                    nll_N[some] = nll_N1[:, 0]
                    log_partition_N[some] = (values_NV.gather(-1, picked_N1) + nll_N1)[:, 0]
                    if not wants_gradient:
                        continue
                    pull_N = (1 + 2 * z_weight * log_partition_N[some]) * kept_N[some]
                    d_logits_NV = log_p_NV.exp_().mul_(pull_N[:, None])
                    d_logits_NV.scatter_add_(-1, picked_N1, -kept_N[some, None].to(wide))
                    values_NV.copy_(d_logits_NV)
                if d_hidden is not None and d_head is not None:
                    _add_products(logits_NV, hidden[part], head, d_hidden[part], d_head)
        ctx.save_for_backward(d_hidden, d_head)
        ctx.dtypes = hidden_ND.dtype, head_VD.dtype
        nll_N = nll_N * kept_N
        ctx.mark_non_differentiable(nll_N)
        return _summed(nll_N, log_partition_N, kept_N, z_weight), nll_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return (*_pulled(ctx, gradients[0]), None, None, None)


class _SharedCrossEntropy(torch.autograd.Function):
    """The same where each process of a group has some rows of the head.

    All have all tokens and return the same loss. The gradient of the head is that of the rows, that
    of the hidden states this process's summand.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        head_VD: Tensor,
        targets_N: Tensor,
        z_weight: float,
        wants_gradient: bool,
        first_row: int,
        vocab_size: int,
        group: dist.ProcessGroup,
    ) -> tuple[Tensor, Tensor]:
        device = hidden_ND.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        hidden, head = (t.to(dtype) if dtype else t for t in (hidden_ND, head_VD))
        N, V = len(hidden), len(head)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        kept_N = targets_N != IGNORED
        picked_N = targets_N.clamp_min(0) - first_row
        mine_N = (picked_N >= 0) & (picked_N < V)
        picked_N = picked_N.clamp(0, V - 1)
        nll_N = torch.empty(N, dtype=wide, device=hidden.device)
        log_partition_N = torch.empty_like(nll_N)
        d_hidden = torch.empty_like(hidden) if wants_gradient else None
        d_head = torch.zeros(head.shape, dtype=wide, device=head.device) if wants_gradient else None
        # By the largest share, so that every process cuts the tokens alike.
        largest = -(-vocab_size // dist.get_world_size(group))
        rows = max(1, min(N, chunk_rows(largest, device)))
        block = max(1, BLOCK_VALUES[_kind(device)] // largest)
        chunk_NV = hidden.new_empty(rows, V)
        with torch.autocast(device, enabled=False):
            for first in range(0, N, rows):
                part = slice(first, min(first + rows, N))
                logits_NV = torch.mm(hidden[part], head.T, out=chunk_NV[: part.stop - first])
                blocks = list(zip(
                    logits_NV.split(block), picked_N[part, None].split(block),
                    mine_N[part, None].split(block), strict=True,
                ))  # fmt: skip
                told_3N = [_of_my_rows(*each, wide) for each in blocks]
                nll_N[part], log_partition_N[part] = _combined(torch.cat(told_3N, 1), group)
                if d_hidden is None or d_head is None:
                    continue
                pull_N = (1 + 2 * z_weight * log_partition_N[part]) * kept_N[part]
                for (values_NV, picked_N1, mine_N1), log_p_N, pull, kept in zip(
                    blocks, log_partition_N[part].split(block), pull_N.split(block),
                    kept_N[part].split(block), strict=True,
                ):  # fmt: skip
                    d_logits_NV = values_NV.to(wide).sub(log_p_N[:, None]).exp_()
                    d_logits_NV.mul_(pull[:, None])
                    d_logits_NV.scatter_add_(-1, picked_N1, -(mine_N1 & kept[:, None]).to(wide))
                    values_NV.copy_(d_logits_NV)
                _add_products(logits_NV, hidden[part], head, d_hidden[part], d_head)
        ctx.save_for_backward(d_hidden, d_head)
        ctx.dtypes = hidden_ND.dtype, head_VD.dtype
        nll_N = nll_N * kept_N
        ctx.mark_non_differentiable(nll_N)
        return _summed(nll_N, log_partition_N, kept_N, z_weight), nll_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return (*_pulled(ctx, gradients[0]), None, None, None, None, None, None)


def _of_my_rows(values_NV: Tensor, picked_N1: Tensor, mine_N1: Tensor, wide: torch.dtype) -> Tensor:
    """Of each token's logits here the largest, the sum of exponentials less it, and the target's,
    or -infinity where another process has it: [3, N]."""
    values_NV = values_NV.to(wide)
    largest_N1 = values_NV.amax(-1, keepdim=True)
    sum_N = (values_NV - largest_N1).exp_().sum(-1)
    target_N1 = values_NV.gather(-1, picked_N1).masked_fill(~mine_N1, float("-inf"))
    return torch.stack([largest_N1[:, 0], sum_N, target_N1[:, 0]])


def _combined(told_3N: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """nll_N and log_partition_N, from what each process has of the vocabulary; the same on all."""
    largest_SN, sum_SN, target_SN = gather_dim(told_3N, 1, group).unflatten(
        1, (dist.get_world_size(group), -1)
    )
    largest_N = largest_SN.amax(0)
    log_sum_N = (sum_SN * (largest_SN - largest_N).exp()).sum(0).log()
    return log_sum_N + (largest_N - target_SN.amax(0)), largest_N + log_sum_N


def _pulled(ctx: Any, pull: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients made on the way forward, times the loss's."""
    d_hidden, d_head = ctx.saved_tensors
    hidden_dtype, head_dtype = ctx.dtypes
    return (d_hidden * pull).to(hidden_dtype), (d_head * pull).to(head_dtype)


def next_token_loss(
    hidden_BTD: Tensor,
    head_weight_VD: Tensor,
    targets_BT: Tensor,
    *,
    z_weight: float = 0.0,
    sharing: Sharing | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy, and z-loss (PaLM, Chowdhery et al. 2022, section 5), summed over tokens.

    Args:
        hidden_BTD: final hidden states; where the vocabulary is shared, at this process's stretch
            of the positions.
        head_weight_VD: the output projection, or this process's rows of it; logits are
            hidden @ head.T, under autocast in its dtype, and everything after them in float32 or
            wider.
        targets_BT: token ids, or IGNORED; at all the positions of those who share the vocabulary.
        z_weight: weight of log(sum exp logits)^2.
        sharing: with whom the vocabulary is shared, if with anyone.
    Returns:
        (the loss to differentiate, scalar; nll_BT, nats, zero where ignored, no gradient): of all
        positions of targets_BT, the same on all who share the vocabulary.
    """
    group = None if sharing is None else sharing.groups.tensor
    if sharing is None or group is None:
        loss, nll_N = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden_BTD.flatten(0, 1),
            head_weight_VD,
            targets_BT.flatten(),
            z_weight,
            torch.is_grad_enabled(),
        )
        return loss, nll_N.view_as(targets_BT)
    (first_row, _), vocab_size = sharing.rows_here(len(head_weight_VD))
    loss, nll_N = _SharedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        sharing.enter(hidden_BTD).flatten(0, 1),
        head_weight_VD,
        targets_BT.flatten(),
        z_weight,
        torch.is_grad_enabled(),
        first_row,
        vocab_size,
        group,
    )
    return loss, nll_N.view_as(targets_BT)
