"""Expert and output masking and the conditional gate: expectations, ends, budgets."""

import dataclasses

import pytest
import torch

from xylem.model.config import RouterName
from xylem.model.noise import row_keys

from .routed import (
    block,
    context,
)


@pytest.mark.parametrize("router", ["family", "prior"])
@pytest.mark.parametrize(
    "routing",
    [
        {"expert_masking": 0.3},
        {"output_masking": 0.3},
        {"expert_masking": 0.2, "output_masking": 0.2},
        {"gate": True, "gate_dropout": 0.3},
        {"gate": True, "expert_masking": 0.3},
    ],
    ids=["EOM", "FOM", "EOM and FOM", "gate dropout", "gate and EOM"],
)
@torch.no_grad()
def test_the_mean_over_keys_is_what_evaluation_computes(
    router: RouterName, routing: dict[str, object]
) -> None:
    made = block(router, **routing)
    x_BTD = torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(0))
    evaluated = made(x_BTD, context())[0].double()
    draws, total, squares = 400, torch.zeros(4, 6, 16).double(), torch.zeros(4, 6, 16).double()
    for draw in range(draws):
        keys = row_keys(0, draw, torch.arange(4))
        difference = made(x_BTD, context(keys=keys))[0].double() - evaluated
        total, squares = total + difference, squares + difference.square()
    deviation = (squares / draws).sqrt()
    assert deviation.mean() > 0.05 * evaluated.abs().mean()
    # Each mean over standard error is about normal; 24 tokens draw apart from each other.
    scores = total / draws / (deviation / draws**0.5)
    assert scores.square().mean().sqrt() < 1.5


@torch.no_grad()
def test_masks_hit_their_share() -> None:
    made = block("prior", expert_masking=0.3)
    keys = row_keys(0, 0, torch.arange(400))
    ctx = dataclasses.replace(context(), families_B=torch.zeros(400), keys_B=keys)
    mask = made._mask(torch.ones(400 * 50, 2), ctx, 0.3, "expert masking", 2)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert abs(mask.mean().item() - 0.7) < 3.3 * (0.3 * 0.7 / mask.numel()) ** 0.5


@pytest.mark.parametrize("router", ["family", "prior"])
@torch.no_grad()
def test_a_shut_gate_is_the_trunk_and_an_open_one_the_experts(router: RouterName) -> None:
    made, plain = block(router, gate=True), block(router)
    plain.load_state_dict(made.state_dict(), strict=False)
    x_BTD = torch.rand(4, 6, 16, generator=torch.Generator().manual_seed(0)) + 0.5
    trunk = made.trunk(x_BTD)
    for part in plain.trunk.parameters():
        part.zero_()
    experts = plain(x_BTD, context())[0]
    assert made.gate is not None
    made.gate.weight.fill_(-1e4)
    assert torch.equal(made(x_BTD, context())[0], trunk)
    made.gate.weight.fill_(1e4)
    assert torch.equal(made(x_BTD, context())[0], experts)


def test_the_gates_loss_pulls_each_familys_mean_to_its_budget() -> None:
    made = block("family", gate=True, gate_budget=0.3, family_budgets={"gamma": 0.8})
    assert made.gate is not None
    optimiser = torch.optim.Adam([made.gate.weight], lr=0.01)
    generator = torch.Generator().manual_seed(0)
    offsets_BD = torch.randn(3, 16, generator=generator)[[0, 2, 2, 1]]
    budgets_F = torch.tensor([0.3, 0.3, 0.8])
    for _ in range(400):
        x_BTD = torch.randn(4, 6, 16, generator=generator) + offsets_BD[:, None]
        _, left = made(x_BTD, context())
        assert left.auxiliary is not None and left.gate_B is not None
        optimiser.zero_grad()
        left.auxiliary.backward()
        optimiser.step()
        gate_B = left.gate_B / 6
        mean_F = torch.stack([gate_B[0], gate_B[3], gate_B[1:3].mean()])
        made.set_budget_pull(torch.sign(mean_F - budgets_F))
    x_BTD = torch.randn(4, 600, 16, generator=generator) + offsets_BD[:, None]
    _, left = made(x_BTD, context(T=600))
    assert left.gate_B is not None
    gate_B = left.gate_B / 600
    mean_F = torch.stack([gate_B[0], gate_B[3], gate_B[1:3].mean()])
    torch.testing.assert_close(mean_F, budgets_F, atol=0.05, rtol=0)
