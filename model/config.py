"""The decoder's settings. Read next: `decoder.py`.

A layer plan is a list of entries; each stands for `repeat` equal layers, so that the usual shape
(experts early and late, trunk alone in the middle) takes three lines of YAML.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from .attention_backends import BACKENDS
from .errors import ModelError

RouterName = Literal["family", "prior", "topk", "hybrid", "hybrid_published", "domain"]
BALANCED = ("prior", "topk")
"""Routers whose experts can be balanced; the others' choices are given from outside."""
MOST_EXPERTS = 1 << 16
LARGEST = 1_000_000
"""Of weights and strengths: far beyond any use, and far below what float32 overflows at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlan:
    """One entry of the layer plan."""

    repeat: int = 1
    """How many equal layers this entry stands for."""
    trunk_width: int
    """Hidden units of the trunk's SwiGLU."""
    expert_width: int = 0
    """Hidden units of each family's SwiGLU; 0 leaves the layer to the trunk."""
    router: RouterName = "family"
    """Which router decides about this layer's experts (docs/ROUTING.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingConfig:
    """How routers choose, how their load is balanced, and what regularises them.

    Experts, choices and balance are those of the token routers, which is every one but `family`.
    """

    top_k: int = 2
    """Experts a token uses, K."""
    experts_per_family: int = 2
    """Experts of a family that `family_experts` does not name."""
    family_experts: dict[str, int] = field(default_factory=dict)
    """Experts of single families: groups may be of unequal size."""
    shared_experts: int = 0
    """Experts that belong to no family and are open to all."""
    normalised: bool = True
    """Whether a token's weights sum to 1 (softmax over the chosen logits), or are their softmax
    over all experts. `hybrid` and `domain` keep their publications' rule, the latter."""
    prior_strength: float = 1.0
    """beta: how much the language prior moves the logits (prior); 0 is `topk`."""
    prior_smoothing: float = 0.01
    """Share of the prior's probability that is spread over all families (prior); 0 shuts a tagged
    token off from other families' experts."""
    tag_dropout: float = 0.1
    """Share of training sequences whose tag is hidden, so that the head's guess is used (prior)."""
    family_head_loss: float = 0.01
    """Weight of the cross-entropy that trains the head to name the family (prior)."""
    domain_rows: str | None = None
    """safetensors file of family -> embedding [D], the router's first rows (domain)."""
    balance: Literal["none", "bias", "quantile"] = "none"
    """How loads are moved to their target without a loss (prior, topk)."""
    balance_target: Literal["mixture", "uniform"] = "mixture"
    """What balance and balance losses aim at. `mixture`: uniform inside a family, in proportion to
    its tokens between families; `uniform`: alike over all experts."""
    bias_rate: float = 1e-3
    """Step of the selection bias (bias)."""
    quantile_decay: float = 0.9
    """Moving average of the thresholds over steps (quantile)."""
    sequence_loss: float = 0.0
    """Weight of the balance loss within sequences."""
    global_loss: float = 0.0
    """Weight of the balance loss over the global batch."""
    z_loss: float = 0.0
    """Weight of the mean squared log-partition of the router's logits."""
    expert_masking: float = 0.0
    """EOM: share of (token, expert) outputs that are left out in training."""
    output_masking: float = 0.0
    """FOM: share of tokens whose experts' sum is left out in training."""
    gate: bool = False
    """CMR: each token weighs the trunk against its experts; y = (1-g) trunk + g experts."""
    gate_budget: float = 0.8
    """Share of a family's tokens that should go to its experts (gate)."""
    family_budgets: dict[str, float] = field(default_factory=dict)
    """Budgets of single families (gate)."""
    gate_loss: float = 0.1
    """Weight of the mean gate's distance to the budget (gate)."""
    gate_dropout: float = 0.0
    """Share of gates that are shut in training (gate)."""

    def __post_init__(self) -> None:
        for name in ("top_k", "experts_per_family"):
            _between(f"model.routing.{name}", getattr(self, name), 1, MOST_EXPERTS)
        _between("model.routing.shared_experts", self.shared_experts, 0, MOST_EXPERTS)
        for name in (
            "prior_strength", "family_head_loss", "bias_rate", "sequence_loss",
            "global_loss", "z_loss", "gate_loss",
        ):  # fmt: skip
            _between(f"model.routing.{name}", getattr(self, name), 0, LARGEST)
        shares = {f"family_budgets.{name}": budget for name, budget in self.family_budgets.items()}
        for name in ("prior_smoothing", "tag_dropout", "gate_budget"):
            shares[name] = getattr(self, name)
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ModelError(f"model.routing.{name}={share} must be a share between 0 and 1")
        for name in ("quantile_decay", "expert_masking", "output_masking", "gate_dropout"):
            share = getattr(self, name)
            if not 0 <= share < 1:
                raise ModelError(
                    f"model.routing.{name}={share} must be a share from 0 to below 1: the whole "
                    "would leave nothing"
                )
        for name, count in self.family_experts.items():
            _between(f"model.routing.family_experts.{name}", count, 1, MOST_EXPERTS)

    def check_families(self, families: Sequence[str]) -> None:
        """Raises ModelError when a setting names a family that the model does not have."""
        for key, named in (
            ("family_experts", self.family_experts), ("family_budgets", self.family_budgets)
        ):  # fmt: skip
            if unknown := sorted(named.keys() - set(families)):
                raise ModelError(
                    f"model.routing.{key} names {unknown[0]}, which is no family of this model; "
                    f"it has {', '.join(families)}"
                )

    def group_sizes(self, families: Sequence[str]) -> tuple[int, ...]:
        """Experts of each family, in their order, and last the shared ones.

        Raises:
            ModelError: there are fewer experts than a token uses, or than the balance's target
                or an unsmoothed prior would send it to.
        """
        sizes = [self.family_experts.get(name, self.experts_per_family) for name in families]
        total = sum(sizes) + self.shared_experts
        if total < self.top_k:
            raise ModelError(
                f"model.routing.top_k={self.top_k} is more than the {total} experts of a "
                "layer: lower it, or raise experts_per_family or shared_experts"
            )
        for limits, setting, way_out in (
            (self.balances and self.balance_target == "mixture",
             "balance_target=mixture", "set balance_target=uniform"),
            (self.prior_smoothing == 0, "prior_smoothing=0", "raise prior_smoothing"),
        ):  # fmt: skip
            for name, size in zip(families, sizes, strict=True):
                if limits and size + self.shared_experts < self.top_k:
                    raise ModelError(
                        f"model.routing.{setting} gives each token of {name} top_k={self.top_k} "
                        "experts of its family and the shared ones, which are "
                        f"{size + self.shared_experts}: lower top_k, raise the experts, or "
                        f"{way_out}"
                    )
        return (*sizes, self.shared_experts)

    @property
    def balances(self) -> bool:
        """Whether anything pulls loads to their target."""
        return self.balance != "none" or self.sequence_loss > 0 or self.global_loss > 0


def _between(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise ModelError(f"{name}={value} must be at least {least} and at most {most:,}")


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
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    """How tokens find their experts."""
    rope_theta: float = 10_000.0
    """Base of the rotary embedding."""
    norm_eps: float = 1e-6
    """Epsilon of every RMSNorm."""
    tied_embeddings: bool = True
    """Whether the head is the transposed embedding."""
    init_std: float = 0.02
    """Standard deviation of initial weights; output projections are scaled by 1/sqrt(2 layers)."""
    attention: Literal[
        "auto", "flash", "flash4", "varlen", "flex", "sdpa", "documents", "reference"
    ] = "auto"
    """Attention backend; what `auto` chose, and why, stands in the metrics' start rows."""

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
            if entry.router != "family" and not entry.expert_width:
                raise ModelError(
                    f"model.layer_plan[{i}] has router={entry.router} and expert_width=0: a layer "
                    "without experts has nothing to route; give it a width, or leave the router out"
                )
        routers: set[str] = {layer.router for layer in self.layer_plan if layer.expert_width}
        self._check_effect(routers)
        if self.attention not in ("auto", *BACKENDS):
            raise ModelError(
                f"model.attention={self.attention!r}: known are auto, {', '.join(BACKENDS)}"
            )

    @property
    def layers(self) -> tuple[LayerPlan, ...]:
        """The plan written out, one entry a layer."""
        return tuple(entry for entry in self.layer_plan for _ in range(entry.repeat))

    @property
    def routes_tokens(self) -> bool:
        """Whether some layer's experts are chosen token by token."""
        return any(layer.router != "family" for layer in self.layer_plan)

    def _check_effect(self, routers: set[str]) -> None:
        """A setting without effect is a mistake, and so is a router that cannot learn."""
        plain, routing = RoutingConfig(), self.routing
        tokens = routers - {"family"}
        for active, needs, names in (
            ("prior" in routers, "a layer with router=prior",
             ("prior_strength", "prior_smoothing", "tag_dropout", "family_head_loss")),
            ("domain" in routers, "a layer with router=domain", ("domain_rows",)),
            (routers & {*BALANCED}, f"a layer with router={' or '.join(BALANCED)}",
             ("balance", "normalised")),
            (tokens, "a layer with a router other than family",
             ("top_k", "experts_per_family", "family_experts", "shared_experts", "sequence_loss",
              "global_loss", "z_loss")),
            (routing.balances, "a balance or a balance loss", ("balance_target",)),
            (routing.balance == "bias", "balance=bias", ("bias_rate",)),
            (routing.balance == "quantile", "balance=quantile", ("quantile_decay",)),
            (routers, "a layer with experts", ("expert_masking", "output_masking", "gate")),
            (routing.gate, "gate=true",
             ("gate_budget", "family_budgets", "gate_loss", "gate_dropout")),
        ):  # fmt: skip
            for name in names:
                if not active and getattr(routing, name) != getattr(plain, name):
                    raise ModelError(
                        f"model.routing.{name}={getattr(routing, name)} has no effect without "
                        f"{needs}: leave it out, or add that"
                    )
        if routers & {*BALANCED} and routing.top_k == 1 and routing.normalised:
            raise ModelError(
                "model.routing.top_k=1 with normalised=true gives every chosen expert the weight "
                "1, so that the router learns nothing from the text: set normalised=false, or "
                "top_k=2"
            )
