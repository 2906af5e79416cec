"""The decoder: embeddings, layers of attention and feed-forward, head.

Canonical parameter names, the same in every engine and checkpoint: `embed`, `layers.N.attention.*`,
`layers.N.feed_forward.trunk.*`, `layers.N.feed_forward.experts.FAMILY.*`, `final_norm`, `head`.
Shapes: B sequences, T positions, D model, V vocabulary. Read next: `objectives.py`.
"""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .attention import Attention, document_mask, rotary_tables
from .config import LayerPlan, ModelConfig
from .feed_forward import FeedForward
from .norms import RMSNorm
from .routers import FamilySegment


class Layer(nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig, plan: LayerPlan, families: Sequence[str]) -> None:
        super().__init__()
        D, eps = config.hidden_size, config.norm_eps
        self.attention_norm = RMSNorm(D, eps)
        self.attention = Attention(
            D, config.heads, config.kv_heads, config.head_dim, eps, config.attention
        )
        self.feed_forward_norm = RMSNorm(D, eps)
        self.feed_forward = FeedForward(D, plan.trunk_width, plan.expert_width, families)

    def forward(
        self,
        x_BTD: Tensor,
        cos_sin_2TK: Tensor,
        mask_B1TT: Tensor,
        segments: Sequence[FamilySegment],
    ) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), cos_sin_2TK, mask_B1TT)
        return x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD), segments)


class Decoder(nn.Module):
    """A causal decoder with a trunk for all languages and experts for each family."""

    def __init__(self, config: ModelConfig, families: Sequence[str]) -> None:
        super().__init__()
        self.config = config
        self.families = tuple(families)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, plan, families) for plan in config.layers)
        self.final_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.head = (
            None
            if config.tied_embeddings
            else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        )

    @property
    def head_weight_VD(self) -> Tensor:
        """The output projection: the head's, or the embedding where they are tied."""
        return self.embed.weight if self.head is None else self.head.weight

    def forward(
        self, tokens_BT: Tensor, documents_BT: Tensor, segments: Sequence[FamilySegment]
    ) -> Tensor:
        """Final hidden states.

        Args:
            tokens_BT: token ids.
            documents_BT: the number of each position's document in its sequence.
            segments: which rows belong to which family, in order.
        Returns:
            hidden_BTD, normed; logits are its product with `head_weight_VD`.
        """
        x_BTD = self.embed(tokens_BT)
        mask_B1TT = document_mask(documents_BT)
        cos_sin_2TK = rotary_tables(
            tokens_BT.shape[1], self.config.head_dim, self.config.rope_theta, tokens_BT.device
        )
        for layer in self.layers:
            x_BTD = layer(x_BTD, cos_sin_2TK, mask_B1TT, segments)
        return self.final_norm(x_BTD)

    def logits(
        self, tokens_BT: Tensor, documents_BT: Tensor, segments: Sequence[FamilySegment]
    ) -> Tensor:
        """Next-token logits [B, T, V]; for evaluation and export checks, not for training."""
        return self(tokens_BT, documents_BT, segments) @ self.head_weight_VD.T


@torch.no_grad()
def initialise(decoder: Decoder, seed: int) -> None:
    """Fills every parameter from a generator of its own, keyed by the seed and its name.

    So a parameter's first value does not depend on which other families exist or are hosted here.
    """
    config = decoder.config
    residual_std = config.init_std / math.sqrt(2 * len(config.layers))
    for name, parameter in decoder.named_parameters():
        if name.endswith("norm.weight"):
            parameter.fill_(1.0)
            continue
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        residual = name.endswith(("out.weight", "down.weight"))
        std = residual_std if residual else config.init_std
        values = torch.empty(parameter.shape, dtype=torch.float32).normal_(
            0.0, std, generator=generator
        )
        parameter.copy_(values)


def build_decoder(
    config: ModelConfig, families: Sequence[str], *, seed: int, device: torch.device | str = "cpu"
) -> Decoder:
    """A freshly initialised decoder; on the meta device nothing is allocated."""
    with torch.device(device):
        decoder = Decoder(config, families)
    if torch.device(device).type != "meta":
        initialise(decoder, seed)
    return decoder


def parameter_family(name: str) -> str | None:
    """The family a canonical parameter name belongs to; None for the trunk."""
    parts = name.split(".")
    return parts[parts.index("experts") + 1] if "experts" in parts else None
