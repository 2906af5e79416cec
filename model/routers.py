"""Which experts a token uses, and with what weight: one code path in training, evaluation, export.

`family` gives each sequence the expert of its family: rows are contiguous, weight 1, no parameters.
The others look at each token: a linear map gives a logit for every expert, families own groups of
experts of unequal size, and a shared group is open to all. docs/ROUTING.md has the formulas.
Shapes: B sequences, T positions, N = B T tokens, D model, E experts, K chosen, F families.
Read next: `balance.py`, which keeps loads at their target; `prior.py`, what `prior` adds;
`feed_forward.py`, which uses a choice.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .balance import balance_losses, quantile_counts
from .collectives import Sharing
from .config import BALANCED, ModelConfig, RouterName, RoutingConfig
from .errors import ModelError


@dataclass(frozen=True, slots=True)
class FamilySegment:
    """Rows [start, stop) of the batch belong to one family; an empty name: none is told."""

    family: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingContext:
    """What a forward pass tells its routers about the batch."""

    segments: Sequence[FamilySegment]
    """Which rows belong to which family, in order."""
    families_B: Tensor
    """Index of each row's family, or -1 where the model is not told; int64."""
    keys_B: Tensor | None = None
    """Random keys of the rows (`noise.row_keys`); None draws nothing, as in evaluation."""
    log_prior_BTF: Tensor | None = None
    """log pi(family) of each token, for `prior`."""
    sharing: Sharing = field(default_factory=Sharing)
    """With whom the sequences are shared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingStatistics:
    """What a router did, summed over the tokens of each row; no gradients."""

    experts_BE: Tensor
    """How many (token, choice) pairs went to each expert, int64."""
    probabilities_BE: Tensor
    """Sum of the full softmax over experts, float32."""
    entropy_B: Tensor
    """Sum of that softmax's entropy, nats."""
    not_finite: Tensor
    """Tokens with a NaN or infinite logit, int64 scalar."""
    quantile_EQ: Tensor | None = None
    """Histogram of what each expert's threshold is read from, int64 (balance=quantile)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenChoice:
    """Experts and weights of every token."""

    experts_NK: Tensor
    """Expert numbers, family by family and the shared ones last, int64; no expert twice."""
    weights_NK: Tensor
    """Weight of each one's output, float32."""
    auxiliary: Tensor
    """Losses of balance and z, times their weights, summed over tokens; scalar float32."""
    statistics: RoutingStatistics


@dataclass(frozen=True, slots=True)
class ExpertChoice:
    """A family's expert for the next `rows` rows of the batch, weight 1."""

    expert: str
    rows: int


class FamilyRouter:
    """The expert of the sequence's family, weight 1."""

    def __init__(self, families: Sequence[str]) -> None:
        self.families = frozenset(families)

    def __call__(self, rows: int, segments: Sequence[FamilySegment]) -> list[ExpertChoice]:
        """One choice a segment.

        Args:
            rows: sequences of the batch, B.
        Raises:
            ModelError: a segment's family has no expert.
            ValueError: the segments do not cover the batch in order.
        """
        check_segments(segments, rows)
        for segment in segments:
            if segment.family not in self.families:
                raise ModelError(
                    f"family {segment.family!r} has no expert in this model, which has "
                    f"{', '.join(sorted(self.families))}: router=family needs a tag of one of them"
                )
        return [ExpertChoice(segment.family, segment.stop - segment.start) for segment in segments]


def check_segments(segments: Sequence[FamilySegment], rows: int) -> None:
    """Raises ValueError when segments do not cover the rows of a batch in order."""
    row = 0
    for segment in segments:
        if segment.start != row or segment.stop < row:
            raise ValueError(f"family segments leave a gap or go back at row {row}")
        row = segment.stop
    if row != rows:
        raise ValueError(f"family segments cover {row} of {rows} rows")


class ExpertRows(nn.Module):
    """The router's rows for one group of experts, and the state of their balance."""

    balance: Tensor
    """What is taken off their logits for the choice."""
    load: Tensor
    """Choices of the step before over those wanted (`balance.relative_load`)."""

    def __init__(self, experts: int, hidden_size: int, *, biased: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, hidden_size))
        self.bias = nn.Parameter(torch.empty(experts)) if biased else None
        self.register_buffer("balance", torch.zeros(experts))
        self.register_buffer("load", torch.zeros(experts))


class TokenRouter(nn.Module):
    """Chooses K of E experts for every token.

    A family's rows and the state of their balance bear its name (`experts.FAMILY.weight`), so that
    they come and go with its files.
    """

    groups_E: Tensor
    """The group of each expert: a family's index, or F for the shared ones."""

    def __init__(
        self, hidden_size: int, families: Sequence[str], name: RouterName, config: RoutingConfig
    ) -> None:
        super().__init__()
        self.name, self.config, self.families = name, config, tuple(families)
        self.group_sizes = config.group_sizes(families)
        self.normalised = name in BALANCED and config.normalised
        self.balance_rule = config.balance if name in BALANCED else "none"
        biased = name == "domain"
        self.experts = nn.ModuleDict(
            {
                family: ExpertRows(size, hidden_size, biased=biased)
                for family, size in zip(families, self.group_sizes[:-1], strict=True)
            }
        )
        shared = self.group_sizes[-1]
        self.shared = ExpertRows(shared, hidden_size, biased=False) if shared else None
        groups_E = torch.tensor([g for g, size in enumerate(self.group_sizes) for _ in range(size)])
        self.register_buffer("groups_E", groups_E, persistent=False)

    @property
    def groups(self) -> list[ExpertRows]:
        """The families' rows in their order, and last the shared ones, if there are any."""
        parts = [self.experts[family] for family in self.families]
        return cast(list[ExpertRows], parts if self.shared is None else [*parts, self.shared])

    @property
    def rows_always_learn(self) -> bool:
        """Whether rows have a gradient also in a step in which none of their experts was chosen."""
        config = self.config
        alike = config.sequence_loss > 0 and config.balance_target == "uniform"
        return not self.normalised or config.z_loss > 0 or config.global_loss > 0 or alike

    @property
    def balance_E(self) -> Tensor:
        """What is taken off each logit for the choice."""
        return torch.cat([part.balance for part in self.groups])

    @property
    def load_E(self) -> Tensor:
        """Each expert's choices of the step before over those wanted; zeros at first."""
        return torch.cat([part.load for part in self.groups])

    @torch.no_grad()
    def set_state(self, balance_E: Tensor, load_E: Tensor) -> None:
        """Takes over what a step's counts moved."""
        sizes = [len(part.balance) for part in self.groups]
        for part, balance, load in zip(
            self.groups, balance_E.split(sizes), load_E.split(sizes), strict=True
        ):
            part.balance.copy_(balance)
            part.load.copy_(load)

    @torch.no_grad()
    def limit_biases(self) -> None:
        """Brings biases of `domain` back to 0 where a step raised them above it.

        Above 0 a bias has no effect, and so no gradient that could bring it back.
        """
        for part in self.groups:
            if part.bias is not None:
                part.bias.clamp_(max=0.0)

    def logits(self, x_ND: Tensor) -> Tensor:
        """z_NE = x W^T in float32, and for `domain` the negative bias of the families' experts."""
        with torch.autocast(x_ND.device.type, enabled=False):
            z_NE = F.linear(x_ND.float(), torch.cat([part.weight for part in self.groups]).float())
            if self.name == "domain":
                none = z_NE.new_zeros(self.group_sizes[-1])
                biases = [part.bias for part in self.groups if part.bias is not None]
                z_NE = z_NE + torch.cat([*biases, none]).clamp(max=0.0)
        return z_NE

    def forward(self, x_BTD: Tensor, context: RoutingContext) -> TokenChoice:
        """The choice for every token of a batch."""
        B, T, D = x_BTD.shape
        config = self.config
        K = config.top_k
        z_NE = self.logits(x_BTD.reshape(B * T, D))
        not_finite = (~z_NE.detach().isfinite()).any(-1).sum()
        if self.name == "prior" and self.config.prior_strength:
            z_NE = z_NE + self.config.prior_strength * self._prior(context).reshape(z_NE.shape)
        probabilities_NE = z_NE.softmax(-1)
        wanted_NE = z_NE.detach() - self.balance_E
        experts_NK = wanted_NE.topk(K, sorted=True).indices
        if self.name == "hybrid" or (self.name == "hybrid_published" and self.training):
            experts_NK = self._with_own(experts_NK, z_NE.detach(), context.families_B, T)
        if self.normalised:
            weights_NK = z_NE.gather(-1, experts_NK).softmax(-1)
        else:
            weights_NK = probabilities_NE.gather(-1, experts_NK)
        with torch.no_grad():
            counts_BE = z_NE.new_zeros(B, z_NE.shape[1], dtype=torch.int64)
            counts_BE.scatter_add_(
                1, experts_NK.view(B, -1), torch.ones_like(experts_NK).view(B, -1)
            )
            detached = probabilities_NE.detach()
            entropy_B = torch.special.entr(detached).sum(-1).view(B, T).sum(1)
            statistics = RoutingStatistics(
                experts_BE=counts_BE,
                probabilities_BE=detached.view(B, T, -1).sum(1),
                entropy_B=entropy_B,
                not_finite=not_finite,
                quantile_EQ=quantile_counts(z_NE.detach(), wanted_NE, K)
                if self.balance_rule == "quantile" and self.training
                else None,
            )
        rows_BE = context.sharing.sum_over_context(counts_BE) if config.sequence_loss else counts_BE
        auxiliary = balance_losses(
            config, z_NE, probabilities_NE.view(B, T, -1), rows_BE, self.load_E,
            self.targets_BE(context.families_B).float(),
        )  # fmt: skip
        return TokenChoice(
            experts_NK=experts_NK, weights_NK=weights_NK, auxiliary=auxiliary, statistics=statistics
        )

    def targets_BE(self, families_B: Tensor) -> Tensor:
        """Share of each row's choices that every expert should have, float64; rows sum to 1.

        `uniform`: 1/E. `mixture`: alike over the experts of the row's family and the shared ones;
        a row without a family is spread over all.
        """
        if self.config.balance_target == "uniform":
            E = len(self.groups_E)
            alike_BE = torch.ones(len(families_B), E, dtype=torch.float64, device=families_B.device)
            return alike_BE / E
        shared_E = self.groups_E == len(self.families)
        open_BE = (self.groups_E == families_B[:, None]) | shared_E | (families_B[:, None] < 0)
        return open_BE.double() / open_BE.sum(-1, keepdim=True)

    def _prior(self, context: RoutingContext) -> Tensor:
        """log pi of each expert's family, 0 for the shared ones: [B, T, E]."""
        if context.log_prior_BTF is None:
            raise ValueError("router=prior needs the decoder's log_prior_BTF")
        shared_BT1 = context.log_prior_BTF.new_zeros(*context.log_prior_BTF.shape[:2], 1)
        return torch.cat([context.log_prior_BTF, shared_BT1], -1)[..., self.groups_E]

    def _with_own(self, experts_NK: Tensor, z_NE: Tensor, families_B: Tensor, T: int) -> Tensor:
        """Apollo's hybrid-k: the family's best expert takes the last place if it is not chosen."""
        families_N = families_B.repeat_interleave(T)
        foreign_NE = self.groups_E != families_N[:, None]
        own_N = z_NE.masked_fill(foreign_NE, float("-inf")).argmax(-1)
        missing_N = (experts_NK != own_N[:, None]).all(-1) & (families_N >= 0)
        last_N = torch.where(missing_N, own_N, experts_NK[:, -1])
        return torch.cat([experts_NK[:, :-1], last_N[:, None]], -1)


def load_domain_rows(model: nn.Module, path: Path) -> None:
    """FlexOlmo's first rows for every `domain` router: an embedding of each family's documents.

    Args:
        path: safetensors of family -> embedding [D], and `shared`, if there are such experts; as
            `scripts/domain_embeddings.py` writes it.
    Raises:
        ModelError: the file is missing or damaged, lacks a family, is of another size, or holds
            what is no number.
    """
    setting = f"model.routing.domain_rows={path}"
    try:
        rows = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{setting} cannot be read ({error}): write it with "
            "`python -m xylem.scripts.domain_embeddings RUN FILE`, or set it to null"
        ) from error
    for router in model.modules():
        if not isinstance(router, TokenRouter) or router.name != "domain":
            continue
        for name, part in zip((*router.families, "shared"), router.groups, strict=False):
            if name not in rows:
                raise ModelError(
                    f"{setting} has no embedding of {name!r}; it has {', '.join(sorted(rows))}"
                )
            if rows[name].shape != part.weight.shape[1:]:
                raise ModelError(
                    f"{setting} holds {list(rows[name].shape)} values for {name!r}, the model "
                    f"needs {list(part.weight.shape[1:])}: write it from a run of "
                    f"model.hidden_size={part.weight.shape[1]}"
                )
            if not rows[name].isfinite().all():
                raise ModelError(
                    f"{setting} holds NaN or infinite values for {name!r}: write it anew from a "
                    "run whose losses are numbers"
                )
            with torch.no_grad():
                part.weight.copy_(rows[name].expand_as(part.weight))


def unreachable_experts(
    config: ModelConfig, families: Sequence[str], read: Collection[str]
) -> list[str]:
    """A line for each family whose experts a run's data never reaches; for the plan to print.

    Args:
        families: those of the model.
        read: those whose languages the run reads.
    """
    fates = {"family": "are never trained"}
    fates |= dict.fromkeys(("prior", "hybrid", "hybrid_published"), "see no text of their own")
    told = []
    for family in families:
        for router, fate in fates.items():
            layers = [
                str(number)
                for number, layer in enumerate(config.layers)
                if layer.expert_width and layer.router == router
            ]
            if layers and family not in read:
                told.append(
                    f"the experts of {family} in layer{'s' * (len(layers) > 1)} "
                    f"{', '.join(layers)} {fate} (router={router}): the run reads none of its "
                    "languages"
                )
    return told
