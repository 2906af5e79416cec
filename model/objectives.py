"""What a model is trained on: next-token cross-entropy and z-loss, never holding all logits.

Losses are sums, and come back per token too, so that the caller can add them up by language and
divide by the tokens of the whole global batch: an expert's gradient then means the same wherever it
is hosted. Shapes: N tokens, B sequences, T positions, D model, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

IGNORED = -100
"""Target of a position that is not predicted (the first token of a document)."""

CHUNK_VALUES = 1 << 23
"""Logits held at once."""


class _LinearCrossEntropy(torch.autograd.Function):
    """sum(nll) + z_weight * sum(log_partition^2), with its gradient made on the way forward.

    The loss is a sum over tokens, so each chunk of logits can be turned into its gradient and
    dropped: softmax - onehot, and 2 z_weight log_partition softmax.
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
        rows = max(1, CHUNK_VALUES // V)
        with torch.autocast(device, enabled=False):
            for first in range(0, N, rows):
                part = slice(first, first + rows)
                logits_NV = (hidden[part] @ head.T).to(wide)
                top_N1 = logits_NV.amax(-1, keepdim=True)
                picked_N1 = picked_N[part, None]
                target_N1 = logits_NV.gather(-1, picked_N1) - top_N1
                logits_NV.sub_(top_N1).exp_()
                total_N1 = logits_NV.sum(-1, keepdim=True)
                nll_N[part] = (total_N1.log() - target_N1)[:, 0]
                log_partition_N[part] = (total_N1.log() + top_N1)[:, 0]
                if d_hidden is None or d_head is None:
                    continue
                pull_N = (1 + 2 * z_weight * log_partition_N[part]) * kept_N[part]
                d_logits_NV = logits_NV.mul_(pull_N[:, None] / total_N1)
                d_logits_NV.scatter_add_(-1, picked_N1, -kept_N[part, None].to(wide))
                d_logits_NV = d_logits_NV.to(hidden.dtype)
                d_hidden[part] = d_logits_NV @ head
                d_head += d_logits_NV.T @ hidden[part]
        ctx.save_for_backward(d_hidden, d_head)
        ctx.dtypes = hidden_ND.dtype, head_VD.dtype
        nll_N = nll_N * kept_N
        ctx.mark_non_differentiable(nll_N)
        z_N = log_partition_N.square() * kept_N
        return nll_N.sum() + z_weight * z_N.sum(), nll_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        d_hidden, d_head = ctx.saved_tensors
        hidden_dtype, head_dtype = ctx.dtypes
        pull = gradients[0]
        return (d_hidden * pull).to(hidden_dtype), (d_head * pull).to(head_dtype), None, None, None


def next_token_loss(
    hidden_BTD: Tensor, head_weight_VD: Tensor, targets_BT: Tensor, *, z_weight: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Cross-entropy, and z-loss (PaLM, Chowdhery et al. 2022, section 5), summed over tokens.

    Args:
        hidden_BTD: final hidden states.
        head_weight_VD: the output projection; logits are hidden @ head.T, under autocast in its
            dtype, and everything after them in float32 or wider.
        targets_BT: token ids, or IGNORED.
        z_weight: weight of log(sum exp logits)^2.
    Returns:
        (the loss to differentiate, scalar; nll_BT, nats, zero where ignored, no gradient).
    """
    loss, nll_N = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_BTD.flatten(0, 1),
        head_weight_VD,
        targets_BT.flatten(),
        z_weight,
        torch.is_grad_enabled(),
    )
    return loss, nll_N.view_as(targets_BT)
