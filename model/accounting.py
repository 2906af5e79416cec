"""Counting a model: parameters by owner, FLOPs a token, bytes of training state.

Counts are taken from the model on the meta device, so nothing is allocated. Read next:
`../train/plan.py`, which prints them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .config import ModelConfig
from .decoder import build_decoder, parameter_family
from .objectives import CHUNK_VALUES


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterCounts:
    """Parameters by what they belong to."""

    embedding: int
    """Embedding, and the head where it is not tied to it."""
    trunk: int
    """Everything else that all tokens use."""
    families: dict[str, int]
    """Each family's experts."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.embedding + self.trunk + sum(self.families.values())

    @property
    def active(self) -> int:
        """Those that a token of one family uses."""
        return self.embedding + self.trunk + max(self.families.values(), default=0)


def count_parameters(config: ModelConfig, families: Sequence[str]) -> ParameterCounts:
    """Counts a model without allocating it."""
    embedding = trunk = 0
    by_family = dict.fromkeys(families, 0)
    for name, parameter in build_decoder(
        config, families, seed=0, device="meta"
    ).named_parameters():
        family = parameter_family(name)
        if family is not None:
            by_family[family] += parameter.numel()
        elif name.startswith(("embed.", "head.")):
            embedding += parameter.numel()
        else:
            trunk += parameter.numel()
    return ParameterCounts(embedding=embedding, trunk=trunk, families=by_family)


def forward_flops_per_token(config: ModelConfig, sequence_length: int) -> int:
    """Floating-point operations of one token's forward pass: two per multiply-add.

    Matrix products of the trunk, one family's experts, the head, and causal attention over half
    the sequence on average (Chowdhery et al. 2022, appendix B). Norms and rotations are left out.
    """
    D, H, G, K = config.hidden_size, config.heads, config.kv_heads, config.head_dim
    flops = 2 * D * config.vocab_size
    for layer in config.layers:
        flops += 2 * D * (H + 2 * G) * K + 2 * H * K * D
        flops += 2 * 2 * H * K * (sequence_length + 1) // 2
        flops += 2 * 3 * D * (layer.trunk_width + layer.expert_width)
    return flops


def training_flops_per_token(config: ModelConfig, sequence_length: int) -> int:
    """Forward and backward: three times the forward pass."""
    return 3 * forward_flops_per_token(config, sequence_length)


def activation_bytes(
    config: ModelConfig, *, sequences: int, sequence_length: int, bytes_per_value: int
) -> int:
    """An estimate of what a micro-batch's forward pass keeps for its backward pass.

    Per token and layer: the residual stream and both norms' inputs and outputs, queries, keys,
    values, attention output, and four values a hidden unit of each SwiGLU (gate, up, silu,
    product); then one chunk of logits, and the head's gradient, in float32.
    """
    D, H, G, K = config.hidden_size, config.heads, config.kv_heads, config.head_dim
    per_token = 0
    for layer in config.layers:
        values = 6 * D + 2 * (H + 2 * G) * K + H * K
        values += 4 * (layer.trunk_width + layer.expert_width)
        per_token += values * bytes_per_value
    tokens = sequences * sequence_length
    chunk = min(tokens * config.vocab_size, max(CHUNK_VALUES, config.vocab_size))
    head = config.vocab_size * D * (4 + bytes_per_value)
    return per_token * tokens + chunk * (2 * 4 + bytes_per_value) + head
