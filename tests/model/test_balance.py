"""Balance: targets, losses with their minima and gradients, and loads that reach the target."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from xylem.model.balance import (
    BINS,
    SPAN,
    balance_losses,
    move_bias,
    move_quantile,
    quantile_counts,
    relative_load,
)
from xylem.model.config import RouterName, RoutingConfig
from xylem.model.routers import RoutingContext, TokenChoice, TokenRouter

FAMILIES = ("alpha", "beta", "gamma")


def router(name: RouterName = "topk", D: int = 8, **settings: object) -> TokenRouter:
    made = TokenRouter(D, FAMILIES, name, RoutingConfig(**settings))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    for part in made.groups:
        torch.nn.init.normal_(part.weight, std=0.5, generator=generator)
    return made


def losses(config: RoutingConfig, z_BTE: Tensor, counts_BE: Tensor, load_E: Tensor, t_BE: Tensor):  # type: ignore[no-untyped-def]
    return balance_losses(
        config, z_BTE.flatten(0, 1), z_BTE.softmax(-1), counts_BE, load_E, t_BE
    )  # fmt: skip


def skewed(steps: int = 40, B: int = 12, T: int = 16) -> list[tuple[Tensor, Tensor]]:
    """Batches of alpha (2/3), beta (1/4), gamma (1/12) whose vectors share one direction."""
    generator = torch.Generator().manual_seed(0)
    families_B = torch.tensor([0] * 8 + [1] * 3 + [2])
    centre_D = torch.randn(8, generator=generator)
    centres_FD = torch.randn(3, 8, generator=generator)
    return [
        (
            torch.randn(B, T, 8, generator=generator) + centre_D + centres_FD[families_B][:, None],
            families_B,
        )
        for _ in range(steps)
    ]


def step(
    made: TokenRouter, x_BTD: Tensor, families_B: Tensor
) -> tuple[TokenChoice, Tensor, Tensor]:
    """A forward pass; counts and targets of its batch."""
    prior_BTF = None
    if made.name == "prior":
        tag_BF = (0.99 * F.one_hot(families_B, 3) + 0.01 / 3).log()
        prior_BTF = tag_BF[:, None].expand(*x_BTD.shape[:2], 3)
    choice = made(
        x_BTD, RoutingContext(segments=(), families_B=families_B, log_prior_BTF=prior_BTF)
    )
    wanted = x_BTD.shape[1] * made.config.top_k
    targets_E = (made.targets_BE(families_B) * wanted).sum(0)
    return choice, choice.statistics.experts_BE.sum(0), targets_E


@pytest.mark.parametrize("target", ["uniform", "mixture"])
def test_targets_are_shares_that_sum_to_one(target: str) -> None:
    made = router(family_experts={"alpha": 3, "beta": 1}, shared_experts=2, balance_target=target)
    shares_BE = made.targets_BE(torch.tensor([0, 1, 2, -1]))
    torch.testing.assert_close(shares_BE.sum(1), torch.ones(4, dtype=torch.float64))
    if target == "uniform":
        assert (shares_BE == 1 / 8).all()
    else:  # alpha 3, beta 1, gamma 2, shared 2
        third, fifth, quarter, eighth = 1 / 3, 1 / 5, 1 / 4, 1 / 8
        expected = [
            [fifth, fifth, fifth, 0, 0, 0, fifth, fifth],
            [0, 0, 0, third, 0, 0, third, third],
            [0, 0, 0, 0, quarter, quarter, quarter, quarter],
            [eighth] * 8,
        ]
        torch.testing.assert_close(shares_BE, torch.tensor(expected, dtype=torch.float64))


def test_z_loss_is_the_mean_squared_log_partition() -> None:
    z_BTE = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0)) * 4
    config, zeros = RoutingConfig(z_loss=0.25), torch.zeros(3, 7)
    ours = losses(config, z_BTE, zeros, torch.zeros(7), torch.full((3, 7), 1 / 7))
    exact = 0.25 * z_BTE.double().exp().sum(-1).log().square().sum()
    torch.testing.assert_close(ours.double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["sequence_loss", "global_loss"])
def test_at_uniform_loads_a_balance_loss_is_one_and_pulls_nowhere(kind: str) -> None:
    """E sum f P = 1 a token, whatever P: nothing is gained by moving."""
    B, T, E = 2, 6, 6
    z_BTE = torch.randn(B, T, E, generator=torch.Generator().manual_seed(0), requires_grad=True)
    config = RoutingConfig(**{kind: 0.5})  # type: ignore[arg-type]
    counts_BE, targets_BE = torch.full((B, E), 2), torch.full((B, E), 1 / E)
    loss = losses(config, z_BTE, counts_BE, torch.ones(E), targets_BE)
    torch.testing.assert_close(loss / (B * T), torch.tensor(0.5))
    assert torch.autograd.grad(loss, z_BTE)[0].abs().max() < 1e-7


@pytest.mark.parametrize("kind", ["sequence_loss", "global_loss"])
def test_a_balance_loss_pushes_the_overloaded_down_and_the_idle_up(kind: str) -> None:
    z_BTE = torch.zeros(1, 4, 3, requires_grad=True)
    counts_BE, targets_BE = torch.tensor([[6, 2, 0]]), torch.full((1, 3), 1 / 3)
    load_E = relative_load(counts_BE[0], torch.full((3,), 8 / 3, dtype=torch.float64))
    loss = losses(RoutingConfig(**{kind: 1.0}), z_BTE, counts_BE, load_E, targets_BE)  # type: ignore[arg-type]
    # E sum f P over 4 tokens, and p_e (f_e / t_e - mean) for each of them.
    torch.testing.assert_close(loss, torch.tensor(4.0))
    pull_E = torch.autograd.grad(loss, z_BTE)[0][0, 0]
    torch.testing.assert_close(pull_E, (torch.tensor([2.25, 0.75, 0.0]) - 1) / 3)


def test_the_loss_within_sequences_does_not_reward_leaving_the_family() -> None:
    """With a mixture target, probability moved to foreign experts changes nothing."""
    targets_BE = torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    config, counts_BE = RoutingConfig(sequence_loss=1.0), torch.tensor([[3, 1, 4, 0]])
    z_BTE = torch.tensor([[[1.0, 0.0, 0.5, -1.0]] * 4], requires_grad=True)
    loss = losses(config, z_BTE, counts_BE, torch.zeros(4), targets_BE)
    moved = losses(
        config, z_BTE + torch.tensor([0.0, 0.0, 3.0, 2.0]), counts_BE, torch.zeros(4), targets_BE
    )
    torch.testing.assert_close(loss, moved)
    pull_E = torch.autograd.grad(loss, z_BTE)[0][0, 0]
    assert pull_E[0] > 0 > pull_E[1] and pull_E[2:].abs().max() < 1e-6


def test_the_global_loss_compares_with_the_step_before() -> None:
    made = router(global_loss=1.0, top_k=2)
    x_BTD, families_B = skewed(1)[0]
    first, counts_E, targets_E = step(made, x_BTD, families_B)
    assert first.auxiliary.item() == 0.0
    made.set_state(made.balance_E, relative_load(counts_E, targets_E))
    second, _, _ = step(made, x_BTD, families_B)
    probabilities_E = made.logits(x_BTD.flatten(0, 1)).softmax(-1).sum(0)
    expected = (probabilities_E * (counts_E / targets_E)).sum()
    torch.testing.assert_close(second.auxiliary.double(), expected.double())


def test_an_expert_of_which_nothing_is_wanted_has_a_neutral_load_and_keeps_its_balance() -> None:
    counts_E, targets_E = torch.tensor([6, 2, 3]), torch.tensor([4.0, 4.0, 0.0]).double()
    assert relative_load(counts_E, targets_E).tolist() == [1.5, 0.5, 1.0]
    bias_E = torch.tensor([0.0, 0.0, 0.3])
    move_bias(bias_E, counts_E, targets_E, 0.1)
    torch.testing.assert_close(bias_E, torch.tensor([0.1, -0.1, 0.3]))
    histogram_EQ = torch.zeros(3, BINS, dtype=torch.int64)
    histogram_EQ[:, BINS // 2] = 11
    beta_E = torch.tensor([0.0, 0.0, 0.3])
    move_quantile(beta_E, histogram_EQ, targets_E, 0.0)
    assert beta_E[2].item() == pytest.approx(0.3) and beta_E[0] != 0


def test_the_bias_moves_by_its_rate_and_stands_still_at_the_target() -> None:
    bias_E = torch.zeros(3)
    move_bias(bias_E, torch.tensor([5, 3, 1]), torch.full((3,), 3.0).double(), 0.01)
    torch.testing.assert_close(bias_E, torch.tensor([0.01, 0.0, -0.01]))


def test_quantile_thresholds_are_the_order_statistics_to_a_bin() -> None:
    generator = torch.Generator().manual_seed(0)
    z_NE = torch.randn(500, 6, generator=generator) + torch.arange(6)
    beta_E = torch.randn(6, generator=generator) * 0.1
    wanted_NE = z_NE - beta_E
    targets_E = torch.tensor([50.0, 250, 300, 100, 200, 100]).double()
    histogram_EQ = quantile_counts(z_NE, wanted_NE, 2)
    assert histogram_EQ.sum(1).tolist() == [500] * 6
    alpha_N1 = wanted_NE.sort(-1, descending=True).values[:, 2:3]
    exact = [
        (z_NE - alpha_N1)[:, e].sort(descending=True).values[int(targets_E[e])].item()
        for e in range(6)
    ]
    moved_E = beta_E.clone()
    move_quantile(moved_E, histogram_EQ, targets_E, 0.0)
    torch.testing.assert_close(moved_E, torch.tensor(exact), atol=SPAN / BINS + 1e-6, rtol=0)
    half_E = beta_E.clone()
    move_quantile(half_E, histogram_EQ, targets_E, 0.5)
    torch.testing.assert_close(half_E, (beta_E + moved_E) / 2)


@pytest.mark.parametrize("name", ["topk", "prior"])
@pytest.mark.parametrize("target", ["uniform", "mixture"])
@pytest.mark.parametrize("balance", ["bias", "quantile"])
def test_a_skewed_stream_reaches_its_target(name: RouterName, target: str, balance: str) -> None:
    """The first steps are far from the target; the last ones are at it, on batches not seen."""
    made = router(
        name, balance=balance, balance_target=target, bias_rate=0.05, quantile_decay=0.5,
        family_experts={"alpha": 3}, shared_experts=1,
    )  # fmt: skip
    far, batches = [], skewed(160 if balance == "bias" else 40)
    for x_BTD, families_B in batches:
        choice, counts_E, targets_E = step(made, x_BTD, families_B)
        far.append((counts_E - targets_E).abs().sum().item() / counts_E.sum().item())
        balance_E = made.balance_E
        if balance == "bias":
            move_bias(balance_E, counts_E, targets_E, 0.05)
        else:
            assert choice.statistics.quantile_EQ is not None
            move_quantile(balance_E, choice.statistics.quantile_EQ, targets_E, 0.5)
        made.set_state(balance_E, relative_load(counts_E, targets_E))
    assert sum(far[:1]) > 0.3
    assert sum(far[-10:]) / 10 < 0.15, far[-10:]


def test_one_quantile_step_on_the_same_batch_is_near_the_target() -> None:
    made = router(balance="quantile", balance_target="uniform", top_k=2)
    x_BTD, families_B = skewed(1)[0]
    far = []
    for _ in range(6):
        choice, counts_E, targets_E = step(made, x_BTD, families_B)
        far.append((counts_E - targets_E).abs().max().item() / targets_E[0].item())
        balance_E = made.balance_E
        assert choice.statistics.quantile_EQ is not None
        move_quantile(balance_E, choice.statistics.quantile_EQ, targets_E, 0.0)
        made.set_state(balance_E, made.load_E)
    assert far[0] > 0.5 and far[-1] < 0.1, far
