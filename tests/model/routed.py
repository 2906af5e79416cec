"""What the tests of routing build on: small token-routed decoders and single layers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from xylem.model.config import LayerPlan, ModelConfig, RouterName, RoutingConfig
from xylem.model.decoder import Decoder, build_decoder
from xylem.model.feed_forward import FeedForward
from xylem.model.prior import family_prior
from xylem.model.routers import FamilySegment, RoutingContext, TokenRouter

CLOSE = {"atol": 2e-5, "rtol": 2e-5}
"""Products of another shape round otherwise; what is compared here differs by 0.01 and more."""
FAMILIES = ("alpha", "beta", "gamma")
TOKEN_ROUTERS: tuple[RouterName, ...] = ("prior", "topk", "hybrid", "hybrid_published", "domain")
SEGMENTS = (FamilySegment("alpha", 0, 1), FamilySegment("gamma", 1, 4))
UNTAGGED = (FamilySegment("", 0, 4),)


def config(
    router: RouterName = "prior", plan: Sequence[LayerPlan] = (), **routing: object
) -> ModelConfig:
    """Experts in the first and the last of three layers, or another plan."""
    return ModelConfig(
        vocab_size=97,
        hidden_size=32,
        heads=4,
        kv_heads=2,
        head_dim=8,
        init_std=0.2,
        layer_plan=tuple(plan)
        or (
            LayerPlan(trunk_width=48, expert_width=16, router=router),
            LayerPlan(trunk_width=40),
            LayerPlan(trunk_width=32, expert_width=24, router=router),
        ),
        routing=RoutingConfig(**routing),  # type: ignore[arg-type]
    )


def build(router: RouterName = "prior", seed: int = 1, **routing: object) -> Decoder:
    return build_decoder(config(router, **routing), FAMILIES, seed=seed)


def batch(B: int = 4, T: int = 12) -> tuple[Tensor, Tensor]:
    tokens_BT = torch.randint(0, 97, (B, T), generator=torch.Generator().manual_seed(0))
    return tokens_BT, (torch.arange(T) >= 7).long().expand(B, T)


def token_routers(decoder: Decoder) -> list[TokenRouter]:
    return [module for module in decoder.modules() if isinstance(module, TokenRouter)]


def block(router: RouterName, D: int = 16, **routing: object) -> FeedForward:
    """One layer's feed-forward with every parameter drawn."""
    plan = LayerPlan(trunk_width=24, expert_width=8, router=router)
    made = FeedForward(D, plan, FAMILIES, RoutingConfig(**routing), "layer 0")  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(2)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    return made


def context(B: int = 4, T: int = 6, keys: Tensor | None = None) -> RoutingContext:
    """Rows of alpha, gamma, gamma and untagged, with a smoothed tag as prior."""
    families_B = torch.tensor([0, 2, 2, 1][:B])
    guess_BTF = torch.zeros(B, T, 3).log_softmax(-1)
    return RoutingContext(
        segments=[
            FamilySegment(FAMILIES[int(f)], row, row + 1) for row, f in enumerate(families_B)
        ],
        families_B=families_B,
        keys_B=keys,
        log_prior_BTF=family_prior(families_B, guess_BTF, 0.01),
    )
