"""The decoder: embeddings, layers of attention and feed-forward, head.

Canonical parameter names, the same in every engine and checkpoint: `embed`, `layers.N.attention.*`,
`layers.N.feed_forward.trunk.*`, `layers.N.feed_forward.experts.FAMILY.*`, `final_norm`, `head`;
with token routers also `layers.N.feed_forward.router.experts.FAMILY.*` and
`family_head.rows.FAMILY`.
Shapes: B sequences, T positions, D model, V vocabulary, F families. Read next: `objectives.py`.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import Attend, Attention, document_attention, rotary_tables
from .collectives import Sharing
from .config import LayerPlan, ModelConfig
from .errors import ModelError
from .feed_forward import FeedForward, FeedForwardExtras
from .norms import RMSNorm
from .part import View, parameter_view, share, take, whole
from .prior import FamilyHead, family_loss, family_prior, shown_tags
from .routers import FamilySegment, RoutingContext, check_segments


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
    """Tokens whose family the head named, of each row; none of a row without a tag."""

    def add(self, auxiliary: Tensor | None) -> None:
        """Adds a loss."""
        if auxiliary is not None:
            self.auxiliary = auxiliary if self.auxiliary is None else self.auxiliary + auxiliary


class Layer(nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(
        self,
        config: ModelConfig,
        plan: LayerPlan,
        families: Sequence[str],
        number: int,
        sharing: Sharing,
    ) -> None:
        super().__init__()
        D, eps = config.hidden_size, config.norm_eps
        self.attention_norm = RMSNorm(D, eps)
        self.attention = Attention(D, config.heads, config.kv_heads, config.head_dim, eps, sharing)
        self.feed_forward_norm = RMSNorm(D, eps)
        self.feed_forward = FeedForward(
            D, plan, families, config.routing, f"layer {number}", sharing
        )

    def forward(
        self,
        x_BTD: Tensor,
        cos_sin_2TK: Tensor,
        attend: Attend,
        context: RoutingContext,
    ) -> tuple[Tensor, FeedForwardExtras]:
        """[B, T, D] to [B, T, D], and what the experts leave beside it."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), cos_sin_2TK, attend)
        y_BTD, extras = self.feed_forward(self.feed_forward_norm(x_BTD), context)
        return x_BTD + y_BTD, extras


class Layers(nn.Module):
    """Some of a decoder's layers, under their numbers."""

    def __init__(self, layers: Mapping[int, Layer]) -> None:
        super().__init__()
        self.numbers = tuple(layers)
        for number, layer in layers.items():
            self.add_module(str(number), layer)

    def __getitem__(self, number: int) -> Layer:
        return cast(Layer, getattr(self, str(number)))

    def __iter__(self) -> Iterator[Layer]:
        return (self[number] for number in self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def items(self) -> Iterator[tuple[int, Layer]]:
        """Number and layer, in order."""
        return ((number, self[number]) for number in self.numbers)


class Decoder(nn.Module):
    """A causal decoder with a trunk for all languages and experts for each family.

    It may be a part of one (`part.py`): some layers, some families' experts, a share of each
    matrix; names stay those of the whole.
    """

    def __init__(
        self, config: ModelConfig, families: Sequence[str], sharing: Sharing | None = None
    ) -> None:
        """
        Args:
            sharing: what of it is here, and with whom its forward pass is shared; None is all.
        """
        super().__init__()
        self.config = config
        self.families = tuple(families)
        sharing = Sharing(whole(config, families)) if sharing is None else sharing
        self.sharing = replace(sharing, vocab_size=config.vocab_size)
        part = self.sharing.part
        self.recompute = 0
        """Every n-th layer, from the first, computes its activations again in the backward
        pass instead of keeping them; 0 is none."""
        self.vocabulary = share(config.vocab_size, *part.tensor)
        V, D = self.vocabulary[1] - self.vocabulary[0], config.hidden_size
        embeds = part.first or (part.last and config.tied_embeddings)
        self.embed = nn.Embedding(V, D) if embeds else None
        plans = config.layers
        self.layers = Layers(
            {n: Layer(config, plans[n], families, n, self.sharing) for n in part.layers}
        )
        self.final_norm = RMSNorm(D, config.norm_eps) if part.last else None
        self._index = {name: i for i, name in enumerate(self.families)}
        prior = part.first and any(plan.router == "prior" for plan in plans)
        self.family_head = FamilyHead(D, families, self.sharing) if prior else None
        heads = part.last and not config.tied_embeddings
        self.head = nn.Linear(D, V, bias=False) if heads else None

    @property
    def head_weight_VD(self) -> Tensor:
        """The output projection: the head's, or the embedding where they are tied; with tensor
        parallelism the rows of `vocabulary`."""
        module = self.embed if self.head is None else self.head
        assert module is not None, "only the last stage of a pipeline has a head"
        return module.weight

    def forward(
        self,
        tokens_BT: Tensor,
        documents_BT: Tensor,
        segments: Sequence[FamilySegment],
        *,
        keys_B: Tensor | None = None,
        extras: DecoderExtras | None = None,
        hidden_BTD: Tensor | None = None,
        layers: Sequence[int] | None = None,
    ) -> Tensor:
        """Final hidden states, or those after this part's layers.

        Args:
            tokens_BT: token ids of whole sequences.
            documents_BT: the number of each position's document in its sequence.
            segments: which rows belong to which family, in order; for token routers the family may
                be empty, a row without a tag.
            keys_B: random keys of the rows in training; without them nothing is drawn.
            extras: filled with losses and statistics of routers, if given.
            hidden_BTD: what the layer before gave, on a later stage of a pipeline.
            layers: those to run, of this part's; None runs them all.
        Returns:
            hidden_BTD at this process's positions, normed after the last layer; logits are its
            product with `head_weight_VD`.
        """
        extras = DecoderExtras() if extras is None else extras
        layers = self.layers.numbers if layers is None else layers
        sharing = self.sharing
        x_BTD = self._embedded(tokens_BT) if hidden_BTD is None else hidden_BTD
        attend = document_attention(self.config, x_BTD, documents_BT, sharing)
        cos_sin_2TK = rotary_tables(
            tokens_BT.shape[1], self.config.head_dim, self.config.rope_theta, tokens_BT.device
        )
        positions = sharing.positions(tokens_BT.shape[1], tokens_BT.device)
        if positions is not None:
            cos_sin_2TK = cos_sin_2TK[:, positions]
        context = self._context(x_BTD, documents_BT, segments, keys_B, extras)
        for number in layers:
            layer = self.layers[number]
            # Nothing is drawn from a generator: masks and dropouts come from `keys_B`.
            run = (
                partial(checkpoint, layer, use_reentrant=False, preserve_rng_state=False)
                if self.recompute and number % self.recompute == 0
                else layer
            )
            x_BTD, left = run(x_BTD, cos_sin_2TK, attend, context)
            if left.statistics is not None or left.gate_B is not None:
                extras.layers[number] = left
            extras.add(left.auxiliary)
        if layers and layers[-1] == len(self.config.layers) - 1 and self.final_norm is not None:
            return self.final_norm(x_BTD)
        return x_BTD

    def _embedded(self, tokens_BT: Tensor) -> Tensor:
        """Embeddings of this process's positions; each process looks up its own vocabulary."""
        assert self.embed is not None, "only the first stage of a pipeline embeds"
        tokens_BT = self.sharing.here(tokens_BT)
        if self.sharing.groups.tensor is None:
            return self.embed(tokens_BT)
        start, stop = self.vocabulary
        mine_BT = (tokens_BT >= start) & (tokens_BT < stop)
        x_BTD = self.embed((tokens_BT - start).clamp(0, stop - start - 1)) * mine_BT[..., None]
        return self.sharing.leave(x_BTD)

    def _context(
        self,
        x_BTD: Tensor,
        documents_BT: Tensor,
        segments: Sequence[FamilySegment],
        keys_B: Tensor | None,
        extras: DecoderExtras,
    ) -> RoutingContext:
        if not x_BTD.numel():
            raise ModelError(
                f"an empty batch of {x_BTD.shape[0]} sequences of {x_BTD.shape[1]} tokens: a "
                "forward pass needs at least one token"
            )
        check_segments(segments, len(x_BTD))
        families = [self._family_index(s.family) for s in segments for _ in range(s.start, s.stop)]
        families_B = torch.tensor(families, dtype=torch.int64).to(x_BTD.device)
        extras.families_B = families_B
        log_prior_BTF = None
        if self.family_head is not None:
            routing = self.config.routing
            guess_BTF = self.family_head(x_BTD, documents_BT)
            loss, extras.head_right = family_loss(guess_BTF, families_B)
            extras.add(routing.family_head_loss * loss)
            shown_B = shown_tags(families_B, keys_B, routing.tag_dropout)
            log_prior_BTF = family_prior(shown_B, guess_BTF.detach(), routing.prior_smoothing)
        return RoutingContext(
            segments=segments,
            families_B=families_B,
            keys_B=keys_B,
            log_prior_BTF=log_prior_BTF,
            sharing=self.sharing,
        )

    def _family_index(self, family: str) -> int:
        """The family's number; -1 for no tag."""
        if family and family not in self._index:
            raise ModelError(
                f"family {family!r} has no expert in this model, which has "
                f"{', '.join(self.families)}; an empty name stands for text without a tag"
            )
        return self._index.get(family, -1)

    def logits(
        self, tokens_BT: Tensor, documents_BT: Tensor, segments: Sequence[FamilySegment]
    ) -> Tensor:
        """Next-token logits [B, T, V]; for evaluation and export checks, not for training."""
        return self(tokens_BT, documents_BT, segments) @ self.head_weight_VD.T


@torch.no_grad()
def initialise(decoder: Decoder, seed: int) -> None:
    """Fills every parameter from a generator of its own, keyed by the seed and its name.

    So a parameter's first value does not depend on which other families exist or are hosted here,
    nor on how it is cut.
    """
    config = decoder.config
    residual_std = config.init_std / math.sqrt(2 * len(config.layers))
    views = canonical_views(decoder)
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
        shape, view = views[name]
        values = torch.empty(shape, dtype=torch.float32).normal_(0.0, std, generator=generator)
        parameter.copy_(take(values, view))


def canonical_shapes(config: ModelConfig, families: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of everything a checkpoint holds: parameters, and the state of
    routers that no gradient moves."""
    with torch.device("meta"):
        decoder = Decoder(config, families)
    return {name: tuple(tensor.shape) for name, tensor in saved_tensors(decoder).items()}


def canonical_views(decoder: Decoder) -> dict[str, tuple[tuple[int, ...], View]]:
    """Canonical name -> (canonical shape, what of it is here), of everything that is here."""
    held: dict[str, tuple[tuple[int, ...], View]] = {}
    for name, shape in canonical_shapes(decoder.config, decoder.families).items():
        view = parameter_view(name, shape, decoder.sharing.part, decoder.config, decoder.families)
        if view is not None:
            held[name] = shape, view
    return held


def saved_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Name -> tensor: parameters, and the state of routers that no gradient moves."""
    transient = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        for name in module._non_persistent_buffers_set
    }
    buffers = {name: b for name, b in model.named_buffers() if name not in transient}
    return dict(model.named_parameters()) | buffers


def build_decoder(
    config: ModelConfig,
    families: Sequence[str],
    *,
    seed: int,
    device: torch.device | str = "cpu",
    sharing: Sharing | None = None,
) -> Decoder:
    """A freshly initialised decoder; on the meta device nothing is allocated."""
    with torch.device(device):
        decoder = Decoder(config, families, sharing)
    if torch.device(device).type != "meta":
        initialise(decoder, seed)
    return decoder


def parameter_family(name: str) -> str | None:
    """The family a canonical parameter name belongs to; None for the trunk."""
    parts = name.split(".")
    if parts[0] == "family_head":
        return parts[-1]
    return parts[parts.index("experts") + 1] if "experts" in parts else None


def is_trunk(name: str) -> bool:
    """Whether every token uses a parameter, so that every step moves it."""
    routed = ".shared_experts." in name or ".feed_forward.router." in name
    return parameter_family(name) is None and not routed
