"""Counting a model: parameters by owner, FLOPs a token, bytes of training state.

Counts are taken from the model on the meta device, so nothing is allocated. Read next:
`../train/plan.py`, which prints them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .config import LayerPlan, ModelConfig
from .decoder import build_decoder, parameter_family
from .objectives import BLOCK_VALUES, chunk_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterCounts:
    """Parameters by what they belong to."""

    embedding: int
    """Embedding, and the head where it is not tied to it."""
    trunk: int
    """Everything else that all tokens use."""
    shared: int
    """Experts that belong to no family, and the router's rows for them."""
    families: dict[str, int]
    """Each family's experts, and the router's rows for them."""
    active: int
    """Those that a token uses: of the experts, its family's or the K that are chosen."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.embedding + self.trunk + self.shared + sum(self.families.values())


def count_parameters(config: ModelConfig, families: Sequence[str]) -> ParameterCounts:
    """Counts a model without allocating it."""
    embedding = trunk = shared = 0
    by_family = dict.fromkeys(families, 0)
    for name, parameter in build_decoder(
        config, families, seed=0, device="meta"
    ).named_parameters():
        family = parameter_family(name)
        if family is not None:
            by_family[family] += parameter.numel()
        elif name.startswith(("embed.", "head.")):
            embedding += parameter.numel()
        elif ".shared_experts." in name or ".router.shared." in name:
            shared += parameter.numel()
        else:
            trunk += parameter.numel()
    total = embedding + trunk + shared + sum(by_family.values())
    return ParameterCounts(
        embedding=embedding, trunk=trunk, shared=shared, families=by_family,
        active=total - sum(_idle_experts(config, families)),
    )  # fmt: skip


def experts_held(config: ModelConfig, layer: LayerPlan, families: Sequence[str]) -> int:
    """Experts of a layer."""
    if not layer.expert_width:
        return 0
    if layer.router == "family":
        return len(families)
    return sum(config.routing.group_sizes(families))


def experts_used(config: ModelConfig, layer: LayerPlan) -> int:
    """Experts of a layer that a token uses."""
    if not layer.expert_width:
        return 0
    return 1 if layer.router == "family" else config.routing.top_k


def _idle_experts(config: ModelConfig, families: Sequence[str]) -> Iterator[int]:
    """Parameters of each layer's experts that a token does not use."""
    for layer in config.layers:
        idle = max(0, experts_held(config, layer, families) - experts_used(config, layer))
        yield idle * 3 * config.hidden_size * layer.expert_width


def forward_flops_per_token(
    config: ModelConfig, families: Sequence[str], sequence_length: int
) -> int:
    """Floating-point operations of one token's forward pass: two per multiply-add.

    Matrix products of the trunk, the experts it uses, routers, gates, the head, and causal
    attention over half the sequence on average (Chowdhery et al. 2022, appendix B). Norms,
    rotations, sorting and what routers do beside their products are left out.
    """
    D, H, G, K = config.hidden_size, config.heads, config.kv_heads, config.head_dim
    flops = 2 * D * config.vocab_size
    for layer in config.layers:
        flops += 2 * D * (H + 2 * G) * K + 2 * H * K * D
        flops += 2 * 2 * H * K * (sequence_length + 1) // 2
        used = experts_used(config, layer)
        flops += 2 * 3 * D * (layer.trunk_width + used * layer.expert_width)
        if layer.router != "family":
            flops += 2 * D * experts_held(config, layer, families)
        if used and config.routing.gate:
            flops += 2 * D
    if any(layer.router == "prior" for layer in config.layers):
        flops += 2 * D * len(families)
    return flops


def training_flops_per_token(
    config: ModelConfig, families: Sequence[str], sequence_length: int
) -> int:
    """Forward and backward: three times the forward pass; recomputed activations are not work."""
    return 3 * forward_flops_per_token(config, families, sequence_length)


def activation_bytes(
    config: ModelConfig,
    families: Sequence[str],
    *,
    sequences: int,
    sequence_length: int,
    bytes_per_value: int,
    recompute: int = 0,
) -> int:
    """An estimate of what a micro-batch's forward pass keeps for its backward pass.

    Per token and layer: the residual stream (float32) at both norms, their outputs, queries, keys
    and values before and after norm and rotation, attention's output, gate, up and their product in
    the trunk and in a family's expert; for each choice of a token router gate and up, and the
    logits' three float32 arrays over all experts. Then one chunk of logits and the head's gradient,
    in float32 a block at a time. A recomputed layer keeps its input alone; the largest is there
    once while its gradients are made.

    Args:
        recompute: every n-th layer is recomputed; 0 none.
    """
    D, H, G, K = config.hidden_size, config.heads, config.kv_heads, config.head_dim
    kept, again = 0, 0
    for number, layer in enumerate(config.layers):
        values = 2 * D + 3 * (H + 2 * G) * K + H * K + 3 * layer.trunk_width
        used = experts_used(config, layer)
        if layer.router == "family":
            values += 3 * used * layer.expert_width
        else:
            values += used * (2 * layer.expert_width + D)
        of_layer = values * bytes_per_value + 2 * 4 * D
        if layer.router != "family":
            of_layer += 3 * 4 * experts_held(config, layer, families)
        if recompute and number % recompute == 0:
            kept, again = kept + 4 * D, max(again, of_layer)
        else:
            kept += of_layer
    tokens = sequences * sequence_length
    chunk = min(tokens, chunk_rows(config.vocab_size, "cuda")) * config.vocab_size
    head = config.vocab_size * D * (4 + bytes_per_value)
    wide = 2 * 4 * min(chunk, BLOCK_VALUES["gpu"])
    return (kept + again) * tokens + chunk * bytes_per_value + wide + head
