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


def layer_flops_per_token(
    config: ModelConfig, layer: LayerPlan, families: Sequence[str], sequence_length: int
) -> int:
    """Floating-point operations of a token in a layer; see `forward_flops_per_token`."""
    D, H, G, K = config.hidden_size, config.heads, config.kv_heads, config.head_dim
    flops = 2 * D * (H + 2 * G) * K + 2 * H * K * D
    flops += 2 * 2 * H * K * (sequence_length + 1) // 2
    used = experts_used(config, layer)
    flops += 2 * 3 * D * (layer.trunk_width + used * layer.expert_width)
    if layer.router != "family":
        flops += 2 * D * experts_held(config, layer, families)
    if used and config.routing.gate:
        flops += 2 * D
    return flops


def forward_flops_per_token(
    config: ModelConfig, families: Sequence[str], sequence_length: int
) -> int:
    """Floating-point operations of one token's forward pass: two per multiply-add.

    Matrix products of the trunk, the experts it uses, routers, gates, the head, and causal
    attention over half the sequence on average (Chowdhery et al. 2022, appendix B). Norms,
    rotations, sorting and what routers do beside their products are left out.
    """
    flops = 2 * config.hidden_size * config.vocab_size
    for layer in config.layers:
        flops += layer_flops_per_token(config, layer, families, sequence_length)
    if any(layer.router == "prior" for layer in config.layers):
        flops += 2 * config.hidden_size * len(families)
    return flops


def training_flops_per_token(
    config: ModelConfig, families: Sequence[str], sequence_length: int
) -> int:
    """Forward and backward: three times the forward pass; recomputed activations are not work."""
    return 3 * forward_flops_per_token(config, families, sequence_length)


def layer_activation_bytes(
    config: ModelConfig,
    layer: LayerPlan,
    families: Sequence[str],
    *,
    bytes_per_value: int,
    tensor: int = 1,
    context: int = 1,
) -> float:
    """What a layer keeps for its backward pass, of each of a process's tokens.

    The residual stream (float32) at both norms; the norms' outputs, which tensor parallelism
    gathers; queries, keys and values before norm and rotation, queries and keys after them, keys
    and values of the whole sequence where context parallelism gathers them; attention's output;
    gate, up and their product in the trunk and in a family's expert, whose input is cast a second
    time; for each choice of a token router gate and up, and the logits' three float32 arrays over
    all experts. Norms' scales and attention's log-sum-exp are float32.
    """
    D, H, G, K = config.hidden_size, config.heads, config.kv_heads, config.head_dim
    used = experts_used(config, layer)
    whole, cut = 2 * D, (2 * H + 3 * G) * K + H * K + 3 * layer.trunk_width
    wide = (2 * D + 2) / tensor + (2 * H + G) / tensor
    if context > 1:
        cut += 2 * context * G * K
    if layer.router == "family":
        cut += 3 * used * layer.expert_width
        whole += D if used and bytes_per_value < 4 else 0
    else:
        cut += used * 2 * layer.expert_width
        whole += used * D
        wide += 3 * experts_held(config, layer, families)
    return bytes_per_value * (whole + cut / tensor) + 4 * wide


def loss_bytes(
    config: ModelConfig, *, tokens: int, bytes_per_value: int, tensor: int = 1, device: str = "gpu"
) -> int:
    """The most that the loss holds beside what it is given (`objectives.py`).

    The hidden states' gradient and their cast, the head's gradient and its cast, a chunk of logits,
    and the float32 arrays of two blocks of it; on a CPU a cast one has another.
    """
    D, V = config.hidden_size, config.vocab_size // tensor
    narrow = bytes_per_value < 4
    logits = min(tokens, chunk_rows(V, device)) * V
    block = min(logits, max(1, BLOCK_VALUES[device] // V) * V)
    arrays = min(2 * block, logits) + (min(block, max(logits - block, block)) if narrow else 0)
    hidden = tokens * D * (2 * bytes_per_value if narrow or tensor > 1 else bytes_per_value)
    head = V * D * (4 + (bytes_per_value if narrow else 0))
    return hidden + head + logits * bytes_per_value + 4 * arrays


def activation_bytes(
    config: ModelConfig,
    families: Sequence[str],
    *,
    sequences: int,
    sequence_length: int,
    bytes_per_value: int,
    recompute: int = 0,
    layers: Sequence[int] | None = None,
    last: bool = True,
    in_flight: float = 1.0,
    tensor: int = 1,
    context: int = 1,
    device: str = "gpu",
) -> int:
    """The most that forward and backward passes hold beside weights, gradients and states.

    Kept activations of the micro-batches that a pipeline has in flight; of the newest, the larger
    of all with the loss on top, and of what the backward pass of some layer still has, with that
    layer's gradients on top. A recomputed layer keeps its input alone until its backward pass.

    Args:
        sequences: of a micro-batch.
        recompute: every n-th layer is recomputed; 0 none.
        layers: numbers of those that are here; None for all.
        last: whether the loss is made here.
        in_flight: micro-batches whose backward pass has not begun.
        tensor, context: how many processes share the products and the sequences.
        device: `gpu` or `cpu`, whose loss works in smaller blocks.
    """
    D = config.hidden_size
    plans = config.layers
    numbers = range(len(plans)) if layers is None else layers
    tokens = sequences * sequence_length / context
    kept, backward = 0.0, 0.0
    for number in numbers:
        layer = plans[number]
        size = layer_activation_bytes(
            config, layer, families,
            bytes_per_value=bytes_per_value, tensor=tensor, context=context,
        )  # fmt: skip
        width = max(layer.trunk_width, experts_used(config, layer) * layer.expert_width)
        moving = 4 * D / tensor + bytes_per_value * (D + 3 * width / tensor)
        recomputed = recompute and number % recompute == 0
        kept += 4 * D / tensor if recomputed else size
        # Later layers' are gone by then.
        backward = max(backward, kept + (size if recomputed else 0) + moving)
    loss = 0
    if last:
        kept += 4 * (D + 1) / tensor
        loss = loss_bytes(
            config, tokens=int(tokens), bytes_per_value=bytes_per_value, tensor=tensor,
            device=device,
        )  # fmt: skip
    waiting = (in_flight - 1) * kept * tokens
    return int(waiting + max(kept * tokens + loss, backward * tokens))
