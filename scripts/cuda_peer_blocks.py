"""Blocks that only a GPU can run, or that only a GPU makes worth running.

Those of packages follow their published interfaces and are asked for where a package is installed.
Read next: `bench_routing.py`.
"""

from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xylem.model.choices import sort_choices
from xylem.model.experts import ExpertGroup
from xylem.scripts.peer_blocks import Arm, Batch, Case, filled


class _Products:
    """What `products` gives back: its own backward pass, from gradients of the right shapes."""

    def __init__(self, outputs: list[Tensor], gradients: list[Tensor]) -> None:
        self.outputs, self.gradients = outputs, gradients

    def backward(self, _: Tensor) -> None:
        torch.autograd.backward(self.outputs, self.gradients)


def products(case: Case, batch: Batch) -> Arm:
    """The bound: the six products alone, batched over experts of equal load, by cuBLAS."""
    E, rows = case.experts, case.tokens * case.top_k // case.experts
    experts: Any = filled(ExpertGroup(E, case.hidden_size, case.width), batch.x_BTD)
    like: dict[str, Any] = {"device": batch.x_BTD.device, "dtype": batch.x_BTD.dtype}
    x_END = torch.randn(E, rows, case.hidden_size, **like, requires_grad=True)
    hidden_ENF = torch.randn(E, rows, case.width, **like, requires_grad=True)
    gradients = [
        torch.randn(E, rows, 2 * case.width, **like),
        torch.randn(E, rows, case.hidden_size, **like),
    ]

    def run(_: Tensor) -> Any:
        x_END.grad = hidden_ENF.grad = None
        up = torch.bmm(x_END, experts.gate_up.transpose(1, 2))
        return _Products([up, torch.bmm(hidden_ENF, experts.down.transpose(1, 2))], gradients)

    return Arm("products", experts, run)


def padded(case: Case, batch: Batch) -> Arm:
    """Batched products, every expert's tokens padded to the most that one has."""
    E, D, width = case.experts, case.hidden_size, case.width
    experts = filled(ExpertGroup(E, D, width), batch.x_BTD)
    router_ED = nn.Parameter(batch.router_ED.clone())
    experts.register_parameter("router", router_ED)

    def run(x_BTD: Tensor) -> Tensor:
        x_ND = x_BTD.flatten(0, 1)
        weights_NK, experts_NK = (x_ND @ router_ED.T).float().topk(case.top_k)
        choices = sort_choices(experts_NK, E)
        counts_E = choices.ends_E.diff(prepend=choices.ends_E.new_zeros(1))
        longest = int(counts_E.max())
        experts_S = experts_NK.flatten()[choices.places_NK.flatten().argsort()]
        first_E = choices.ends_E - counts_E
        numbers_S = torch.arange(len(experts_S), device=x_ND.device)
        at_S = experts_S * longest + numbers_S - first_E[experts_S]
        x_ED = x_ND.new_zeros(E * longest, D).index_copy(0, at_S, x_ND[choices.tokens_S])
        weights: Any = experts
        gate, up = (x_ED.view(E, longest, D) @ weights.gate_up.transpose(1, 2)).chunk(2, -1)
        out_ED = ((F.silu(gate) * up) @ weights.down.transpose(1, 2)).flatten(0, 1)
        out_NKD = out_ED[at_S[choices.places_NK]]
        shares_NK = weights_NK.softmax(-1).to(x_ND.dtype)
        return (out_NKD * shares_NK[..., None]).sum(1).view_as(x_BTD)

    return Arm("padded bmm", experts, run)


class _Routed(nn.Module):
    """A softmax router before experts that want to be told."""

    def __init__(self, case: Case, experts: nn.Module) -> None:
        super().__init__()
        self.top_k, self.experts = case.top_k, experts
        self.gate = nn.Linear(case.hidden_size, case.experts, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        weights, experts = self.gate(x_BTD).float().flatten(0, 1).topk(self.top_k)
        return self.experts(x_BTD, weights.softmax(-1).to(x_BTD.dtype), experts)


def scattermoe(case: Case, batch: Batch) -> Arm:
    """ScatterMoE's gated experts."""
    experts = import_module("scattermoe.mlp").GLUMLP(
        input_size=case.hidden_size, hidden_size=case.width, num_experts=case.experts,
        top_k=case.top_k, activation=nn.SiLU(),
    )  # fmt: skip
    block: Any = filled(_Routed(case, experts), batch.x_BTD)
    block.gate.weight.data.copy_(batch.router_ED)
    return Arm("ScatterMoE", block, block)


def sonicmoe(case: Case, batch: Batch) -> Arm:
    """SonicMoE's layer."""
    activation = import_module("sonicmoe.enums").ActivationType.SWIGLU
    block = import_module("sonicmoe").MoE(
        num_experts=case.experts, num_experts_per_tok=case.top_k, hidden_size=case.hidden_size,
        intermediate_size=case.width, activation_function=activation, add_bias=False,
        std=0.02,
    )  # fmt: skip
    filled(block, batch.x_BTD)
    block.router.weight.data.copy_(batch.router_ED)
    return Arm("SonicMoE", block, lambda x_BTD: block(x_BTD)[0])


def megablocks(case: Case, batch: Batch) -> Arm:
    """MegaBlocks' dropless layer, with grouped products."""
    settings = import_module("megablocks.layers.arguments").Arguments
    block = import_module("megablocks.layers.dmoe").dMoE(
        settings(
            hidden_size=case.hidden_size, ffn_hidden_size=case.width, bias=False,
            return_bias=False, activation_fn=F.silu, moe_num_experts=case.experts,
            moe_top_k=case.top_k, moe_normalize_expert_weights=1, mlp_type="glu",
            mlp_impl="grouped", fp16=False, bf16=True, device=batch.x_BTD.device,
        )
    )  # fmt: skip
    filled(block, batch.x_BTD)
    block.router.layer.weight.data.copy_(batch.router_ED)
    return Arm("MegaBlocks", block, block)
