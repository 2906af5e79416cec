"""The decoder: embeddings, layers of attention and feed-forward, head.

Canonical parameter names, the same in every engine and checkpoint: `embed`, `layers.N.attention.*`,
`layers.N.feed_forward.trunk.*`, `layers.N.feed_forward.experts.FAMILY.*`, `final_norm`, `head`;
with token routers also `layers.N.feed_forward.router.experts.FAMILY.*` and `family_head`.
Shapes: B sequences, T positions, D model, V vocabulary, F families. Read next: `objectives.py`.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Attention, document_mask, rotary_tables
from .config import LayerPlan, ModelConfig
from .feed_forward import FeedForward, FeedForwardExtras
from .noise import uniform
from .norms import RMSNorm
from .routers import FamilySegment, RoutingContext, family_prior


@dataclass(slots=True)
class DecoderExtras:
    """What a forward pass leaves beside its hidden states, for training and telemetry."""

    auxiliary: Tensor | None = None
    """Losses of routers, gates and the family head, times their weights, summed over tokens."""
    layers: dict[int, FeedForwardExtras] = field(default_factory=dict)
    """Of the layers with token routers or gates."""
    families_B: Tensor | None = None
    """Index of each row's family; -1 without a tag."""
    head_right: Tensor | None = None
    """Tokens whose family the head named, of each row."""

    def add(self, auxiliary: Tensor | None) -> None:
        """Adds a loss."""
        if auxiliary is not None:
            self.auxiliary = auxiliary if self.auxiliary is None else self.auxiliary + auxiliary


class Layer(nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(
        self, config: ModelConfig, plan: LayerPlan, families: Sequence[str], number: int
    ) -> None:
        super().__init__()
        D, eps = config.hidden_size, config.norm_eps
        self.attention_norm = RMSNorm(D, eps)
        self.attention = Attention(
            D, config.heads, config.kv_heads, config.head_dim, eps, config.attention
        )
        self.feed_forward_norm = RMSNorm(D, eps)
        self.feed_forward = FeedForward(D, plan, families, config.routing, f"layer {number}")

    def forward(
        self,
        x_BTD: Tensor,
        cos_sin_2TK: Tensor,
        mask_B1TT: Tensor,
        context: RoutingContext,
    ) -> tuple[Tensor, FeedForwardExtras]:
        """[B, T, D] to [B, T, D], and what the experts leave beside it."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), cos_sin_2TK, mask_B1TT)
        y_BTD, extras = self.feed_forward(self.feed_forward_norm(x_BTD), context)
        return x_BTD + y_BTD, extras


class Decoder(nn.Module):
    """A causal decoder with a trunk for all languages and experts for each family."""

    def __init__(self, config: ModelConfig, families: Sequence[str]) -> None:
        super().__init__()
        self.config = config
        self.families = tuple(families)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            Layer(config, plan, families, number) for number, plan in enumerate(config.layers)
        )
        self.final_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self._index = {name: i for i, name in enumerate(self.families)}
        routers = {plan.router for plan in config.layers}
        self.family_head = (
            nn.Linear(config.hidden_size, len(self.families), bias=False)
            if "prior" in routers
            else None
        )
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
        self,
        tokens_BT: Tensor,
        documents_BT: Tensor,
        segments: Sequence[FamilySegment],
        *,
        keys_B: Tensor | None = None,
        extras: DecoderExtras | None = None,
    ) -> Tensor:
        """Final hidden states.

        Args:
            tokens_BT: token ids.
            documents_BT: the number of each position's document in its sequence.
            segments: which rows belong to which family, in order; for token routers the family may
                be empty, a row without a tag.
            keys_B: random keys of the rows in training; without them nothing is drawn.
            extras: filled with losses and statistics of routers, if given.
        Returns:
            hidden_BTD, normed; logits are its product with `head_weight_VD`.
        """
        extras = DecoderExtras() if extras is None else extras
        x_BTD = self.embed(tokens_BT)
        mask_B1TT = document_mask(documents_BT)
        cos_sin_2TK = rotary_tables(
            tokens_BT.shape[1], self.config.head_dim, self.config.rope_theta, tokens_BT.device
        )
        context = self._context(x_BTD, documents_BT, segments, keys_B, extras)
        for number, layer in enumerate(self.layers):
            x_BTD, left = layer(x_BTD, cos_sin_2TK, mask_B1TT, context)
            if left.statistics is not None or left.gate_B is not None:
                extras.layers[number] = left
            extras.add(left.auxiliary)
        return self.final_norm(x_BTD)

    def _context(
        self,
        x_BTD: Tensor,
        documents_BT: Tensor,
        segments: Sequence[FamilySegment],
        keys_B: Tensor | None,
        extras: DecoderExtras,
    ) -> RoutingContext:
        families = [self._family_index(s.family) for s in segments for _ in range(s.start, s.stop)]
        families_B = torch.tensor(families, dtype=torch.int64).to(x_BTD.device)
        extras.families_B = families_B
        log_prior_BTF = None
        if self.family_head is not None:
            # A detached bag of words: the head is trained to read, not the trunk to be read.
            bag_BTD = document_means(x_BTD.detach().float(), documents_BT)
            with torch.autocast(x_BTD.device.type, enabled=False):
                guess_BTF = self.family_head(F.rms_norm(bag_BTD, bag_BTD.shape[-1:])).log_softmax(
                    -1
                )
            tagged_B = families_B >= 0
            nll_BT = -guess_BTF.gather(
                -1, families_B.clamp_min(0)[:, None, None].expand(*guess_BTF.shape[:2], 1)
            )[..., 0]
            weight = self.config.routing.family_head_loss
            extras.add(weight * (nll_BT * tagged_B[:, None]).sum())
            extras.head_right = (
                (guess_BTF.argmax(-1) == families_B[:, None]) & tagged_B[:, None]
            ).sum(1)
            told_B = families_B
            if keys_B is not None and self.config.routing.tag_dropout:
                drawn_B = uniform(keys_B, "tag dropout", 1)[:, 0]
                told_B = torch.where(drawn_B < self.config.routing.tag_dropout, -1, families_B)
            smoothing = self.config.routing.prior_smoothing
            log_prior_BTF = family_prior(told_B, guess_BTF.detach(), smoothing)
        return RoutingContext(
            segments=segments, families_B=families_B, keys_B=keys_B, log_prior_BTF=log_prior_BTF
        )

    def _family_index(self, family: str) -> int:
        """The family's number; -1 for no tag, or one that no token router knows."""
        return self._index.get(family, -1)

    def logits(
        self, tokens_BT: Tensor, documents_BT: Tensor, segments: Sequence[FamilySegment]
    ) -> Tensor:
        """Next-token logits [B, T, V]; for evaluation and export checks, not for training."""
        return self(tokens_BT, documents_BT, segments) @ self.head_weight_VD.T


def document_means(x_BTD: Tensor, documents_BT: Tensor) -> Tensor:
    """The mean of each document's positions up to and including each one."""
    sums_BTD = x_BTD.cumsum(1)
    T = x_BTD.shape[1]
    places_T = torch.arange(T, device=x_BTD.device)
    begins_BT = torch.ones_like(documents_BT, dtype=torch.bool)
    begins_BT[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
    first_BT = torch.where(begins_BT, places_T, 0).cummax(1).values
    before_BTD = (sums_BTD - x_BTD).gather(1, first_BT[..., None].expand_as(x_BTD))
    return (sums_BTD - before_BTD) / (places_T - first_BT + 1)[..., None]


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
        if name.endswith(".bias"):
            parameter.zero_()
            continue
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        residual = name.endswith(("out.weight", "down.weight", ".down"))
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
