"""The decoder's settings. Read next: `decoder.py`.

A layer plan is a list of entries; each stands for `repeat` equal layers, so that the usual shape
(experts early and late, trunk alone in the middle) takes three lines of YAML.
"""

from dataclasses import dataclass
from typing import Literal

from .attention import BACKENDS
from .errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlan:
    """One entry of the layer plan."""

    repeat: int = 1
    """How many equal layers this entry stands for."""
    trunk_width: int
    """Hidden units of the trunk's SwiGLU."""
    expert_width: int = 0
    """Hidden units of each family's SwiGLU; 0 leaves the layer to the trunk."""
    router: Literal["family"] = "family"
    """Which router decides about this layer's experts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder of Qwen3's block, with family experts beside the trunk's feed-forward."""

    vocab_size: int
    """Tokens of the vocabulary, V; the tokenizer's."""
    hidden_size: int
    """Model dimension, D."""
    heads: int
    """Query heads, H."""
    kv_heads: int
    """Key and value heads, G; divides `heads`."""
    head_dim: int
    """Dimension of a head, K; even, for rotary embeddings."""
    layer_plan: tuple[LayerPlan, ...]
    """The layers from the first to the last."""
    rope_theta: float = 10_000.0
    """Base of the rotary embedding."""
    norm_eps: float = 1e-6
    """Epsilon of every RMSNorm."""
    tied_embeddings: bool = True
    """Whether the head is the transposed embedding."""
    init_std: float = 0.02
    """Standard deviation of initial weights; output projections are scaled by 1/sqrt(2 layers)."""
    attention: Literal["auto", "sdpa", "reference"] = "auto"
    """Attention backend; what `auto` chose stands in the metrics' start rows."""

    def __post_init__(self) -> None:
        if not self.layer_plan:
            raise ModelError("model.layer_plan is empty: a decoder needs at least one layer")
        if self.heads % self.kv_heads:
            raise ModelError(
                f"model.heads={self.heads} is not a multiple of model.kv_heads={self.kv_heads}: "
                "each key head serves an equal number of query heads"
            )
        if self.head_dim % 2:
            raise ModelError(f"model.head_dim={self.head_dim} is odd: rotary embeddings need pairs")
        for name in ("vocab_size", "hidden_size", "heads", "kv_heads", "head_dim"):
            if getattr(self, name) < 1:
                raise ModelError(f"model.{name}={getattr(self, name)} must be at least 1")
        for i, entry in enumerate(self.layer_plan):
            if entry.repeat < 1 or entry.trunk_width < 1 or entry.expert_width < 0:
                raise ModelError(
                    f"model.layer_plan[{i}] has repeat={entry.repeat}, trunk_width="
                    f"{entry.trunk_width}, expert_width={entry.expert_width}: repeat and "
                    "trunk_width must be at least 1, expert_width at least 0"
                )
        if self.attention not in ("auto", *BACKENDS):
            raise ModelError(
                f"model.attention={self.attention!r}: known are auto, {', '.join(BACKENDS)}"
            )

    @property
    def layers(self) -> tuple[LayerPlan, ...]:
        """The plan written out, one entry a layer."""
        return tuple(entry for entry in self.layer_plan for _ in range(entry.repeat))
