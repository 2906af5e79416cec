"""Transformers' causal language models at equal parameters: what whole training steps are held to.

Every peer has our number of layers, model dimension, heads, vocabulary and tied embeddings; only
the feed-forward differs, and its width is what makes the parameters equal.
Read next: `bench_step.py`.
"""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from ..model.config import ModelConfig

IMPLEMENTATIONS = ("grouped_mm", "eager")
"""Paths of its experts that Transformers can train on any device."""


def qwen3(config: ModelConfig, parameters: int) -> nn.Module:
    """Qwen3ForCausalLM, dense."""

    def build(width: int) -> nn.Module:
        settings = transformers.Qwen3Config(intermediate_size=width, **_shape(config))
        return transformers.Qwen3ForCausalLM(settings)

    return sized(build, parameters)


def mixtral(config: ModelConfig, parameters: int) -> nn.Module:
    """MixtralForCausalLM with its published 8 experts, 2 for each token."""

    def build(width: int) -> nn.Module:
        settings = transformers.MixtralConfig(intermediate_size=width, **_shape(config))
        return transformers.MixtralForCausalLM(settings)

    return sized(build, parameters)


def qwen3_moe(config: ModelConfig, parameters: int) -> nn.Module:
    """Qwen3MoeForCausalLM with 32 experts, 4 for each token.

    Its published 128 experts would be a few hidden units wide at this size.
    """

    def build(width: int) -> nn.Module:
        settings = transformers.Qwen3MoeConfig(
            moe_intermediate_size=width, num_experts=32, num_experts_per_tok=4,
            norm_topk_prob=True, **_shape(config),
        )  # fmt: skip
        return transformers.Qwen3MoeForCausalLM(settings)

    return sized(build, parameters)


def sized(build: Callable[[int], nn.Module], parameters: int) -> nn.Module:
    """The model whose width brings it nearest to so many parameters.

    Widths are multiples of 8, as grouped products want them.

    Raises:
        ValueError: none brings it within 5 %.
    """

    def count(width: int) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in build(width).parameters())

    slope = count(16) - count(8)
    width = max(8, 8 * round((parameters - count(8)) / slope) + 8)
    if abs(count(width) - parameters) > 0.05 * parameters:
        raise ValueError(f"no width gives {parameters:,} parameters: {width} has {count(width):,}")
    return build(width)


def active_parameters(model: Any) -> int:
    """Parameters that a token uses: of the experts, those chosen."""
    total = sum(p.numel() for p in model.parameters())
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    if not experts:
        return total
    config = model.config
    count = getattr(config, "num_local_experts", None) or config.num_experts
    return total - experts + experts * config.num_experts_per_tok // count


def positions_in_documents(documents_BT: Tensor) -> Tensor:
    """Positions that begin anew with every document: so Transformers masks packed documents."""
    places_T = torch.arange(documents_BT.shape[1], device=documents_BT.device)
    begins_BT = torch.ones_like(documents_BT, dtype=torch.bool)
    begins_BT[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
    return places_T - torch.where(begins_BT, places_T, 0).cummax(1).values


def _shape(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": len(config.layers),
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "tie_word_embeddings": config.tied_embeddings,
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": 1 << 16,
        "pad_token_id": None,
        "attn_implementation": "sdpa",
        "use_cache": False,
    }
