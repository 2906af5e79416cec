"""What a model is trained on: next-token cross-entropy and z-loss, token by token.

Losses come back per token, so that the caller can sum them by language and divide by the tokens of
the whole global batch: an expert's gradient then means the same wherever it is hosted.
Shapes: B sequences, T positions, D model, V vocabulary, N tokens (B*T).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

IGNORED = -100
"""Target of a position that is not predicted (the first token of a document)."""


@dataclass(frozen=True, slots=True)
class TokenLosses:
    """Losses of every position; zero where the target is ignored."""

    nll_BT: Tensor
    """-log p(target), nats, float32."""
    z_BT: Tensor
    """Squared log-partition (z-loss; PaLM, Chowdhery et al. 2022, sec. 5), float32."""


def token_losses(hidden_BTD: Tensor, head_weight_VD: Tensor, targets_BT: Tensor) -> TokenLosses:
    """Cross-entropy and z-loss at every position.

    Args:
        hidden_BTD: final hidden states.
        head_weight_VD: the output projection.
        targets_BT: token ids, or IGNORED.
    """
    logits_BTV = torch.nn.functional.linear(hidden_BTD, head_weight_VD).float()
    kept_BT = targets_BT != IGNORED
    log_partition_BT = torch.logsumexp(logits_BTV, dim=-1)
    picked_BT = logits_BTV.gather(-1, targets_BT.clamp_min(0)[..., None])[..., 0]
    return TokenLosses(
        nll_BT=(log_partition_BT - picked_BT) * kept_BT,
        z_BT=log_partition_BT.square() * kept_BT,
    )
