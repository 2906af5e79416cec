"""The baseline that family experts must beat: Megatron-core's own expert layer, told the family.

The same decoder, but a layer's family experts are Megatron's `MoELayer`: tokens are dispatched to
the rank that holds their family's expert and back. The router is Megatron's top-1, whose logits
are the family that it is told. For benchmarks; read next: `bench_engines.py`.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.moe.moe_utils import get_default_pg_collection
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor, nn

from ..model.config import LayerPlan
from ..model.layout import Layout, check_layout
from ..train.config import RunConfig
from ..train.engines.megatron.checks import check_run
from ..train.engines.megatron.engine import MegatronEngine
from ..train.engines.megatron.model import SharedSwiGLU
from ..train.engines.processes import Processes
from ..train.errors import UserError

CERTAIN = 1e4
"""A logit beside which all others have the probability 0 in float32."""


class ToldRouter(TopKRouter):
    """Megatron's top-1 router, whose logits are the family that it is told."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.weight.requires_grad_(False)
        self.told_B = torch.zeros(0, dtype=torch.int64)
        """Index of each row's family."""

    def gating(self, input: Tensor) -> Tensor:
        """Logits [T, B, experts]."""
        one_hot_BE = nn.functional.one_hot(self.told_B.to(input.device), self.num_experts)
        return (CERTAIN * one_hot_BE.float()).repeat(input.shape[0], 1, 1)


class FamilyMoE(nn.Module):
    """A layer's trunk, and beside it Megatron's expert layer, one expert a family."""

    def __init__(self, config: TransformerConfig, *, plan: LayerPlan, **_: Any) -> None:
        super().__init__()
        self.trunk = SharedSwiGLU(config, plan.trunk_width)
        own = copy.copy(config)
        own.ffn_hidden_size = own.moe_ffn_hidden_size = plan.expert_width
        linears = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
        self.moe = MoELayer(
            own,
            MoESubmodules(
                experts=ModuleSpec(module=SequentialMLP, submodules=linears), router=ToldRouter
            ),
            pg_collection=get_default_pg_collection(),
        )

    def forward(self, x_TBD: Tensor, padding_mask: Tensor) -> tuple[Tensor, None]:
        """The block's output and no bias.

        Args:
            padding_mask: the index of each row's family, int64 [B].
        """
        self.moe.router.told_B = padding_mask
        return self.trunk(x_TBD) + self.moe(x_TBD)[0], None


class MegatronMoeArm(MegatronEngine):
    """`engine=megatron` with Megatron's expert layer; experts are shared out by layout.expert."""

    def __init__(
        self, processes: Processes, layout: Layout,
        dispatcher: Literal["allgather", "alltoall"] = "alltoall",
    ) -> None:  # fmt: skip
        """
        Args:
            layout: resolved; `expert` divides the data ranks and the families.
            dispatcher: how Megatron sends tokens.
        """
        super().__init__(processes, layout)
        self.dispatcher = dispatcher

    def check(self, config: RunConfig, families: Sequence[str]) -> None:
        """Raises UserError when the experts cannot be shared out."""
        layout = self.layout
        length = config.data.sequence_length
        check_layout(config.model, families, replace(layout, expert=1), length)
        if len(families) % layout.expert:
            raise UserError(
                f"engine.layout.expert={layout.expert} does not divide the {len(families)} "
                "families: Megatron's expert layer gives every rank as many experts"
            )
        if layout.tensor > 1 or layout.context > 1:
            raise UserError("the baseline is built for data, pipeline and expert parallelism")
        check_run(config, layout)

    def hosted(self, families: Sequence[str]) -> frozenset[str]:
        """Families whose experts are here."""
        return frozenset(self._local(families))

    def _local(self, families: Sequence[str]) -> Sequence[str]:
        each = len(families) // self.layout.expert
        index = parallel_state.get_expert_model_parallel_rank()
        return families[index * each : (index + 1) * each]

    def feed_forward(
        self, config: RunConfig, plan: LayerPlan, families: Sequence[str]
    ) -> ModuleSpec:
        """Megatron's expert layer where the plan has experts."""
        if not plan.expert_width:
            return super().feed_forward(config, plan, families)
        return ModuleSpec(module=FamilyMoE, params={"plan": plan})

    def core_config(
        self, config: RunConfig, families: Sequence[str], stages: Sequence[Sequence[int]]
    ) -> TransformerConfig:
        """Megatron's settings, with experts."""
        core = super().core_config(config, families, stages)
        for name, value in {
            "num_moe_experts": len(families),
            "expert_model_parallel_size": self.layout.expert,
            "expert_tensor_parallel_size": 1,
            "moe_router_topk": 1,
            "moe_router_pre_softmax": True,
            "moe_router_load_balancing_type": "none",
            "moe_router_dtype": "fp32",
            "moe_token_dispatcher_type": self.dispatcher,
        }.items():
            setattr(core, name, value)
        return core

    def renamed(self, name: str, families: Sequence[str]) -> str:
        """`mlp.moe.experts.local_experts.2.linear_fc1.weight` is a family's gate and up."""
        before, found, after = name.partition("mlp.moe.experts.local_experts.")
        if not found:
            return name
        number, matrix, kind = after.split(".")
        part = {"linear_fc1": "gate_up", "linear_fc2": "down"}[matrix]
        return f"{before}mlp.experts.{self._local(families)[int(number)]}.{part}.{kind}"
