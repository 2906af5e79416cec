"""The feed-forward block: the trunk's SwiGLU, and beside it the experts that the router chose.

y = trunk(x) + sum over the router's choices of weight * expert(x). Two SwiGLU in parallel are one
SwiGLU with concatenated hidden units, which is what makes the dense export exact (docs/EXPORT.md).
In training, expert and output masking and the conditional gate may regularise the experts' part.
Shapes: B sequences, T positions, N = B T tokens, D model, F hidden units, K experts a token.
Read next: `routers.py`; `expert_parallel.py`, where processes share experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from .collectives import Sharing
from .config import LayerPlan, RoutingConfig
from .expert_parallel import expert_parallel_swiglu
from .experts import ExpertGroup, routed_swiglu
from .noise import uniform
from .part import experts_here
from .routers import FamilyRouter, RoutingContext, RoutingStatistics, TokenRouter
from .swiglu import swiglu


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer 2020), with gate and up in one product."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(hidden_size, 2 * width, bias=False)
        self.down = nn.Linear(width, hidden_size, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        return self.down(swiglu(self.gate_up(x_BTD)))


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedForwardExtras:
    """What a layer's experts leave beside their output."""

    auxiliary: Tensor | None = None
    """Losses of the router and the gate, times their weights, summed over tokens; scalar."""
    statistics: RoutingStatistics | None = None
    """What the token router did."""
    gate_B: Tensor | None = None
    """Sum of the conditional gate over each row's tokens, without gradient."""


class FeedForward(nn.Module):
    """A layer's trunk and its experts; without expert width, the trunk alone."""

    def __init__(
        self, hidden_size: int, plan: LayerPlan, families: Sequence[str], routing: RoutingConfig,
        purpose: str, sharing: Sharing | None = None,
    ) -> None:  # fmt: skip
        """
        Args:
            purpose: a name that no other layer has, for its random numbers.
            sharing: what of it is here; None is all.
        Raises:
            ModelError: the routing settings name an unknown family, or too few experts.
        """
        super().__init__()
        routing.check_families(families)
        self.routing, self.purpose, self.families = routing, purpose, tuple(families)
        self.sharing = Sharing() if sharing is None else sharing
        part = self.sharing.part
        self.trunk = SwiGLU(hidden_size, plan.trunk_width // part.tensor[1])
        self.router: FamilyRouter | TokenRouter | None = None
        self.shared_experts: ExpertGroup | None = None
        experts: dict[str, nn.Module] = {}
        width = plan.expert_width // part.tensor[1]
        if width and plan.router == "family":
            self.router = FamilyRouter(families)
            hosted = [name for name in families if sharing is None or name in part.families]
            experts = {name: SwiGLU(hidden_size, width) for name in hosted}
        elif width:
            self.router = TokenRouter(hidden_size, families, plan.router, routing)
            sizes = routing.group_sizes(families)
            here = [stop - start for start, stop in experts_here(sizes, part)]
            for name, size in zip(families, here[:-1], strict=True):
                if size:
                    experts[name] = ExpertGroup(size, hidden_size, width)
            if here[-1]:
                self.shared_experts = ExpertGroup(here[-1], hidden_size, width)
        self.experts = nn.ModuleDict(experts)
        self.gate = nn.Linear(hidden_size, 1, bias=False) if routing.gate and self.router else None
        if self.gate is not None:
            # With the family's experts, so that it comes and goes with its files.
            for group in self.experts.values():
                group.register_buffer("budget_pull", torch.zeros(()))

    @property
    def budget_pull_F(self) -> Tensor:
        """The sign of each family's mean gate less its budget in the step before; 0 at first, and
        of families that are not hosted here."""
        assert self.gate is not None
        none = self.gate.weight.new_zeros(())
        hosted = dict(self.experts.named_children())
        pulls = [hosted[n].budget_pull if n in hosted else none for n in self.families]
        return torch.stack(cast(list[Tensor], pulls))

    @torch.no_grad()
    def set_budget_pull(self, pull_F: Tensor) -> None:
        """Takes over the signs that a step's gates give."""
        for name, pull in zip(self.families, pull_F, strict=True):
            if name in self.experts:
                cast(Tensor, self.experts[name].budget_pull).copy_(pull)

    def forward(self, x_BTD: Tensor, context: RoutingContext) -> tuple[Tensor, FeedForwardExtras]:
        """[B, T, D] to [B, T, D], and what the experts leave beside it."""
        # Token routers and gates read in float32.
        rounded = self.gate is None and not isinstance(self.router, TokenRouter)
        entered_BTD = self.sharing.enter(x_BTD, rounded=rounded)
        y_BTD, extras = self._products(entered_BTD, context)
        return self.sharing.leave(y_BTD), extras

    def _products(self, x_BTD: Tensor, context: RoutingContext) -> tuple[Tensor, FeedForwardExtras]:
        y_BTD = self.trunk(x_BTD)
        if self.router is None:
            return y_BTD, FeedForwardExtras()
        auxiliary = statistics = None
        if isinstance(self.router, TokenRouter):
            choice = self.router(x_BTD, context)
            weights_NK = self._masked(choice.weights_NK, context)
            routed_BTD = self._token_experts(x_BTD.flatten(0, 1), choice.experts_NK, weights_NK)
            routed_BTD = routed_BTD.view_as(x_BTD)
            auxiliary, statistics = choice.auxiliary, choice.statistics
        else:
            routed_BTD = self._family_experts(self.router, x_BTD, context)
        routed_BTD = self._output_masked(routed_BTD, context)
        if self.gate is None:
            return y_BTD + routed_BTD, FeedForwardExtras(auxiliary=auxiliary, statistics=statistics)
        gate_BT, budget = self._gate(x_BTD, context)
        auxiliary = budget if auxiliary is None else auxiliary + budget
        gate_BT1 = gate_BT[..., None].to(y_BTD.dtype)
        return (1 - gate_BT1) * y_BTD + gate_BT1 * routed_BTD, FeedForwardExtras(
            auxiliary=auxiliary, statistics=statistics, gate_B=gate_BT.detach().sum(1)
        )

    def _token_experts(self, x_ND: Tensor, experts_NK: Tensor, weights_NK: Tensor) -> Tensor:
        groups, shared_by = self._groups(), self.sharing.groups.expert
        if shared_by is None:
            return routed_swiglu(x_ND, experts_NK, weights_NK, groups)
        experts = sum(self.routing.group_sizes(self.families))
        return expert_parallel_swiglu(x_ND, experts_NK, weights_NK, groups, experts, shared_by)

    def _groups(self) -> list[ExpertGroup]:
        groups = [self.experts[name] for name in self.families if name in self.experts]
        shared = [] if self.shared_experts is None else [self.shared_experts]
        return cast(list[ExpertGroup], groups + shared)

    def _family_experts(
        self, router: FamilyRouter, x_BTD: Tensor, context: RoutingContext
    ) -> Tensor:
        # Slots are pure and sorted by family, so an expert's rows are one piece: no gather.
        choices = router(len(x_BTD), context.segments)
        pieces = x_BTD.split([choice.rows for choice in choices]) if len(choices) > 1 else [x_BTD]
        parts = [
            self.experts[choice.expert](piece)
            for choice, piece in zip(choices, pieces, strict=True)
        ]
        if self.routing.expert_masking:
            mask_BT1 = self._mask(x_BTD, context, self.routing.expert_masking, "expert masking", 1)
            return (parts[0] if len(parts) == 1 else torch.cat(parts)) * mask_BT1
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _masked(self, weights_NK: Tensor, context: RoutingContext) -> Tensor:
        """EOM on the weights (NLLB, section 6.2): an output times zero is an output left out."""
        share, K = self.routing.expert_masking, weights_NK.shape[-1]
        if not share:
            return weights_NK
        return weights_NK * self._mask(weights_NK, context, share, "expert masking", K).view(-1, K)

    def _output_masked(self, y_BTD: Tensor, context: RoutingContext) -> Tensor:
        """FOM: the same on the experts' sum."""
        share = self.routing.output_masking
        if not share:
            return y_BTD
        return y_BTD * self._mask(y_BTD, context, share, "output masking", 1)

    def _mask(
        self, like: Tensor, context: RoutingContext, share: float, what: str, choices: int
    ) -> Tensor:
        """[B, T, choices]: zeros with probability `share`; without keys their expectation."""
        B = len(context.families_B)
        T = like.numel() // like.shape[-1] // B
        if context.keys_B is None:
            return like.new_full((B, T, choices), 1 - share)
        return (self._drawn(context.keys_B, what, T, choices) >= share).to(like.dtype)

    def _drawn(self, keys_B: Tensor, what: str, T: int, choices: int) -> Tensor:
        """Random numbers of this process's T positions, the same however sequences are cut."""
        whole = T * self.sharing.part.context[1]
        drawn = uniform(keys_B, f"{self.purpose}/{what}", whole * choices)
        return self.sharing.here(drawn.view(len(keys_B), whole, choices))

    def _gate(self, x_BTD: Tensor, context: RoutingContext) -> tuple[Tensor, Tensor]:
        """CMR: each token's gate, and the loss that holds a family's mean gate to its budget.

        NLLB's |mean g - budget| for each family, times the family's share of the batch's tokens.
        Its sign is that of the step before (`budget_pull_F`, zeros at first), so that no process
        waits for another's sum.
        """
        assert self.gate is not None
        with torch.autocast(x_BTD.device.type, enabled=False):
            gate_BT = self.gate(x_BTD.float())[..., 0].sigmoid()
        share = self.routing.gate_dropout
        if share:
            T = gate_BT.shape[1]
            if context.keys_B is None:
                gate_BT = gate_BT * (1 - share)
            else:
                drawn_BT = self._drawn(context.keys_B, "gate dropout", T, 1)[..., 0]
                gate_BT = gate_BT * (drawn_BT >= share)
        tagged_B = context.families_B >= 0
        pull_B = torch.where(tagged_B, self.budget_pull_F[context.families_B.clamp_min(0)], 0.0)
        return gate_BT, self.routing.gate_loss * (gate_BT * pull_B[:, None]).sum()
