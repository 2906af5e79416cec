"""Identities of entropy, Jensen-Shannon divergence and the routing divergence D_HJS."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from xylem.model.divergence import entropy, jensen_shannon, routing_divergence


def distributions(count: int, experts: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, experts, generator=generator, dtype=torch.float64).softmax(-1)


def one_hot(expert: int, experts: int) -> Tensor:
    return F.one_hot(torch.tensor(expert), experts).double()


@pytest.mark.parametrize("experts", [2, 7, 128])
def test_entropy_is_log_e_of_a_uniform_and_0_of_a_certain_choice(experts: int) -> None:
    assert entropy(torch.full((experts,), 1 / experts, dtype=torch.float64)).item() == (
        pytest.approx(math.log(experts), abs=1e-12)
    )
    assert entropy(one_hot(1, experts)).item() == 0


def test_the_divergence_of_equal_routing_is_0() -> None:
    p = distributions(50, 16)
    assert routing_divergence(p, p).abs().max() < 1e-12
    uniform = torch.full((16,), 1 / 16)
    assert routing_divergence(uniform, uniform).item() == 0
    certain = one_hot(3, 16)
    assert routing_divergence(certain, certain).item() == 0


@pytest.mark.parametrize("experts", [2, 3, 8, 128])
def test_two_distinct_experts_are_log_2_over_log_e_apart(experts: int) -> None:
    # H((p+q)/2) = log 2, H(p) = H(q) = 0, and the most that could be is log E.
    p, q = one_hot(0, experts), one_hot(experts - 1, experts)
    assert jensen_shannon(p, q).item() == pytest.approx(math.log(2), abs=1e-12)
    expected = math.log(2) / math.log(experts)
    assert routing_divergence(p, q).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("experts", [2, 8, 128])
def test_two_halves_of_the_experts_are_1_apart(experts: int) -> None:
    # JSD = log 2, H(p) = H(q) = log(E/2), so that the most is log 2 too: their mean is uniform.
    p = torch.zeros(experts, dtype=torch.float64)
    p[: experts // 2] = 2 / experts
    assert routing_divergence(p, p.flip(0)).item() == pytest.approx(1, abs=1e-12)


def test_disjoint_groups_of_g_experts_are_log_2_over_log_e_over_g_apart() -> None:
    p, q = torch.zeros(2, 12, dtype=torch.float64)
    p[:3], q[3:6] = 1 / 3, 1 / 3
    expected = math.log(2) / math.log(12 / 3)
    assert routing_divergence(p, q).item() == pytest.approx(expected, abs=1e-12)


def test_the_divergence_is_the_published_formula_on_a_case_worked_by_hand() -> None:
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.25, 0.5])
    h = 1.5 * math.log(2)
    mixed = -(0.75 * math.log(0.375) + 0.25 * math.log(0.25))
    expected = (mixed - h) / (math.log(3) - h)
    assert routing_divergence(p, q).item() == pytest.approx(expected, abs=1e-12)


def test_the_divergence_is_symmetric_and_lies_between_0_and_1() -> None:
    p, q = distributions(500, 9, 1), distributions(500, 9, 2)
    forth, back = routing_divergence(p, q), routing_divergence(q, p)
    assert torch.equal(forth, back)
    assert (forth > 0).all() and (forth <= 1).all()


def test_the_divergence_does_not_depend_on_the_order_of_experts() -> None:
    p, q = distributions(100, 9, 1), distributions(100, 9, 2)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    moved = routing_divergence(p[:, order], q[:, order])
    assert torch.allclose(moved, routing_divergence(p, q), rtol=0, atol=1e-12)


def test_the_divergence_of_sums_over_tokens_is_that_of_their_means() -> None:
    p, q = distributions(20, 9, 1), distributions(20, 9, 2)
    expected = routing_divergence(p, q)
    assert torch.allclose(routing_divergence(p * 31, q * 7), expected, rtol=0, atol=1e-12)


def test_a_float32_sum_that_is_no_longer_exactly_1_gives_no_divergence() -> None:
    # An untrained router is near uniform, where the denominator is as small as rounding.
    p = (torch.randn(1000, 64) * 1e-5).softmax(-1)
    assert (routing_divergence(p, p) < 1e-6).all()
    assert routing_divergence(p, p.flip(0)).isfinite().all()
