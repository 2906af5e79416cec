"""Feed-forward blocks of others and our own, at one size and under one load, ready to be timed.

Every block has the same router rows and sees the same tokens, in which the choices are planted: a
chosen expert's row is added to the token, so that each block's own router finds it and all carry
the same load. Weights are in the dtype of the tokens. Read next: `cuda_peer_blocks.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from xylem.model.choices import sort_choices
from xylem.model.config import LayerPlan, RouterName, RoutingConfig
from xylem.model.experts import (
    ExpertGroup,
    grouped_swiglu,
    routed_swiglu,
    used_groups,
    weights_of,
)
from xylem.model.feed_forward import FeedForward, SwiGLU
from xylem.model.prior import family_prior
from xylem.model.routers import FamilySegment, RoutingContext, TokenRouter

Load = Literal["uniform", "zipf", "one family"]
LOADS: tuple[Load, ...] = get_args(Load)
PLANTED = 20.0
"""Logit of a planted choice; the others' are of unit variance."""
ROWS = 32
"""Sequences of a batch."""


@dataclass(frozen=True, slots=True)
class Case:
    """Sizes of one layer of experts."""

    tokens: int
    hidden_size: int
    width: int
    experts: int
    top_k: int

    @property
    def families(self) -> tuple[str, ...]:
        """As many as there are disjoint choices, so that a family's experts are one choice."""
        return tuple(f"family_{i}" for i in range(self.experts // self.top_k))

    @property
    def flops(self) -> int:
        """Of the experts' products, forward and backward: 18 T I H K."""
        return 18 * self.tokens * self.width * self.hidden_size * self.top_k


@dataclass(frozen=True, slots=True)
class Batch:
    """Tokens with planted choices."""

    x_BTD: Tensor
    router_ED: Tensor
    segments: Sequence[FamilySegment]

    @property
    def families_B(self) -> Tensor:
        """Index of each row's family, which the names of families end in."""
        counts = [(int(s.family.split("_")[1]), s.stop - s.start) for s in self.segments]
        families, rows = (torch.tensor(column) for column in zip(*counts, strict=True))
        return families.repeat_interleave(rows).to(self.x_BTD.device)


def make_batch(case: Case, load: Load, dtype: torch.dtype, device: str, seed: int = 0) -> Batch:
    """Tokens under a load: of experts for token routers, of families for the `family` router."""
    draw = torch.Generator().manual_seed(seed)
    N, D, E, K = case.tokens, case.hidden_size, case.experts, case.top_k
    shares_E, shares_F = torch.ones(E), torch.ones(len(case.families))
    if load == "zipf":
        shares_E, shares_F = (1 / torch.arange(1, len(s) + 1) for s in (shares_E, shares_F))
    elif load == "one family":
        shares_E, shares_F = torch.eye(1, E)[0], torch.eye(1, len(shares_F))[0]
        shares_E[:K] = 1
    chosen_NK = torch.multinomial(shares_E.expand(N, E), K, generator=draw)
    router_ED = torch.linalg.qr(torch.randn(D, E, generator=draw)).Q.T
    x_ND = torch.randn(N, D, generator=draw)
    for k in range(K):
        x_ND += PLANTED * router_ED[chosen_NK[:, k]]
    edges = (ROWS * (shares_F / shares_F.sum()).cumsum(0)).round().int().tolist()
    starts = [0, *edges[:-1]]
    segments = [
        FamilySegment(family, start, stop)
        for family, start, stop in zip(case.families, starts, edges, strict=True)
        if stop > start
    ]
    x_BTD = x_ND.view(ROWS, N // ROWS, D)
    return Batch(x_BTD.to(device, dtype), router_ED.to(device, dtype), segments)


@dataclass(frozen=True, slots=True)
class Arm:
    """A block under its name."""

    name: str
    module: nn.Module
    run: Callable[[Tensor], Tensor]


def filled(module: nn.Module, like: Tensor) -> nn.Module:
    """Random weights, in the tokens' dtype and on their device."""
    module.to(like.device, like.dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, 0.02)
    return module


def dense(case: Case, batch: Batch) -> Arm:
    """The limit: one SwiGLU of the active width."""
    block = filled(SwiGLU(case.hidden_size, case.top_k * case.width), batch.x_BTD)
    return Arm("dense", block, block)


class PlainSwiGLU(SwiGLU):
    """The same, differentiated operation by operation."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        gate, up = self.gate_up(x_BTD).chunk(2, -1)
        return self.down(F.silu(gate) * up)


def plain_dense(case: Case, batch: Batch) -> Arm:
    """The limit as PyTorch alone has it."""
    block = filled(PlainSwiGLU(case.hidden_size, case.top_k * case.width), batch.x_BTD)
    return Arm("dense, plain", block, block)


def family(case: Case, batch: Batch) -> Arm:
    """Our `family`: an expert of the active width for each family."""
    plan = LayerPlan(trunk_width=1, expert_width=case.top_k * case.width)
    block = FeedForward(case.hidden_size, plan, case.families, RoutingConfig(), "bench")
    filled(block, batch.x_BTD)
    context = RoutingContext(segments=batch.segments, families_B=batch.families_B)
    router: Any = block.router
    return Arm("family", block, lambda x_BTD: block._family_experts(router, x_BTD, context))


def token_router(case: Case, batch: Batch, name: RouterName, *, grouped: bool = False) -> Arm:
    """Our `prior` or `topk`, router included; `grouped` takes grouped_mm alone for the products."""
    routing = RoutingConfig(top_k=case.top_k, experts_per_family=case.top_k)
    plan = LayerPlan(trunk_width=1, expert_width=case.width, router=name)
    block = FeedForward(case.hidden_size, plan, case.families, routing, "bench")
    filled(block, batch.x_BTD)
    router: Any = block.router
    assert isinstance(router, TokenRouter)
    with torch.no_grad():
        parts = batch.router_ED.split([len(part.weight) for part in router.groups])
        for part, rows in zip(router.groups, parts, strict=True):
            part.weight.copy_(rows)
    guess_BTF = batch.x_BTD.new_zeros(*batch.x_BTD.shape[:2], len(case.families)).float()
    context = RoutingContext(
        segments=batch.segments,
        families_B=batch.families_B,
        log_prior_BTF=family_prior(batch.families_B, guess_BTF, 0.01),
    )
    groups = block._groups()
    product = grouped_product if grouped else routed_swiglu

    def run(x_BTD: Tensor) -> Tensor:
        choice = router(x_BTD, context)
        y_ND = product(x_BTD.flatten(0, 1), choice.experts_NK, choice.weights_NK, groups)
        return y_ND.view_as(x_BTD)

    return Arm(f"{name}, grouped_mm" if grouped else name, block, run)


def grouped_product(
    x_ND: Tensor, experts_NK: Tensor, weights_NK: Tensor, groups: Sequence[ExpertGroup]
) -> Tensor:
    """What CUDA does without Triton."""
    choices = sort_choices(experts_NK, sum(len(group.gate_up) for group in groups))
    used, ends = used_groups(groups, choices.ends_E.tolist())
    return grouped_swiglu(x_ND, weights_NK, choices, ends, weights_of(used, x_ND.dtype))


def transformers_block(case: Case, batch: Batch, name: str, implementation: str) -> Arm:
    """Mixtral's, Qwen3-MoE's or Glm4Moe's block; the last without its shared experts."""
    sizes: dict[str, Any] = {
        "hidden_size": case.hidden_size,
        "num_experts_per_tok": case.top_k,
        "experts_implementation": implementation,
    }
    library: Any = transformers.models
    block: Any
    if name == "Mixtral":
        mixtral = library.mixtral.modeling_mixtral
        block = mixtral.MixtralSparseMoeBlock(
            mixtral.MixtralConfig(
                **sizes, intermediate_size=case.width, num_local_experts=case.experts
            )
        )
    elif name == "Qwen3-MoE":
        qwen = library.qwen3_moe.modeling_qwen3_moe
        block = qwen.Qwen3MoeSparseMoeBlock(
            qwen.Qwen3MoeConfig(
                **sizes, moe_intermediate_size=case.width, num_experts=case.experts,
                norm_topk_prob=True,
            )
        )  # fmt: skip
    else:
        glm = library.glm4_moe.modeling_glm4_moe
        block = glm.Glm4MoeMoE(
            glm.Glm4MoeConfig(
                **sizes, moe_intermediate_size=case.width, n_routed_experts=case.experts,
                n_shared_experts=1, n_group=1, topk_group=1,
            )
        )  # fmt: skip
        block.shared_experts = Nothing()
    filled(block, batch.x_BTD)
    with torch.no_grad():
        block.gate.weight.copy_(batch.router_ED)
    return Arm(f"{name}, {implementation}", block, block)


class Nothing(nn.Module):
    """In place of shared experts, which the others have not."""

    def forward(self, x: Tensor) -> float:
        """Nothing to add."""
        return 0.0


def megatron_block(case: Case, batch: Batch) -> Arm:
    """Megatron-core's SequentialMLP between its own permutation and the way back, in one process.

    Its router and dispatcher ask for CUDA; the router here is a softmax over the chosen logits.
    """
    core = "megatron.core."
    state = import_module(core + "parallel_state")
    layers = import_module(core + "tensor_parallel.layers")
    experts = import_module(core + "transformer.moe.experts")
    moe = import_module(core + "transformer.moe.moe_utils")
    if not torch.distributed.is_initialized():
        store = import_module("torch.distributed").HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        state.initialize_model_parallel()
    on_gpu = batch.x_BTD.is_cuda
    config = import_module(core + "transformer.transformer_config").TransformerConfig(
        num_layers=1, hidden_size=case.hidden_size, num_attention_heads=1,
        ffn_hidden_size=case.width, moe_ffn_hidden_size=case.width, num_moe_experts=case.experts,
        moe_router_topk=case.top_k, gated_linear_unit=True, activation_func=F.silu,
        add_bias_linear=False, bias_activation_fusion=False, use_cpu_initialization=not on_gpu,
        perform_initialization=False, params_dtype=batch.x_BTD.dtype, moe_router_pre_softmax=True,
    )  # fmt: skip
    parts = import_module(core + "transformer.mlp").MLPSubmodules(
        linear_fc1=layers.ColumnParallelLinear, linear_fc2=layers.RowParallelLinear
    )
    groups = import_module(core + "process_groups_config").ProcessGroupCollection
    block = experts.SequentialMLP(case.experts, config, parts, groups.use_mpu_process_groups())
    filled(block, batch.x_BTD)
    router_ED = nn.Parameter(batch.router_ED.clone())
    block.register_parameter("router", router_ED)

    def run(x_BTD: Tensor) -> Tensor:
        x_ND = x_BTD.flatten(0, 1)
        values_NK, experts_NK = (x_ND @ router_ED.T).float().topk(case.top_k)
        weights_NE = values_NK.new_zeros(len(x_ND), case.experts).scatter(
            1, experts_NK, values_NK.softmax(-1)
        )
        chosen_NE = torch.zeros_like(weights_NE, dtype=torch.bool).scatter(1, experts_NK, True)
        x_SD, weights_S, order_S = moe.permute(
            x_ND, chosen_NE, weights_NE.to(x_ND.dtype), experts_NK.numel()
        )
        out_SD, _ = block(x_SD, chosen_NE.sum(0), weights_S)
        return moe.unpermute(out_SD, order_S, x_ND.shape, routing_map=chosen_NE).view_as(x_BTD)

    return Arm("Megatron-core, SequentialMLP", block, run)
