"""Experts shared over processes, a group of one; `distributed/` has more."""

from collections.abc import Iterator, Sequence
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.model.routed_cases import CASES, TOLERANCE, RoutedCase, outcome, truth, weights
from xylem.model.expert_parallel import agree_exchange, expert_parallel_swiglu
from xylem.model.experts import ExpertGroup, routed_swiglu


@pytest.fixture(scope="module")
def alone() -> Iterator[dist.ProcessGroup]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    assert dist.group.WORLD is not None
    yield dist.group.WORLD
    dist.destroy_process_group()


def through(
    x_ND: Tensor, experts_NK: Tensor, weights_NK: Tensor, groups: Sequence[ExpertGroup],
    group: dist.ProcessGroup,
) -> Tensor:  # fmt: skip
    experts = sum(len(each.gate_up) for each in groups)
    return expert_parallel_swiglu(x_ND, experts_NK, weights_NK, groups, experts, group)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_output_and_gradients_are_the_float64_references(
    case: RoutedCase, dtype: torch.dtype, alone: dist.ProcessGroup
) -> None:
    path = partial(through, group=alone)
    assert outcome(path, case, dtype).worst(truth(case, dtype)) < TOLERANCE[dtype]


def test_without_weights_each_is_one(alone: dist.ProcessGroup) -> None:
    case = CASES[0]
    groups, x_ND = weights(case, torch.float32), torch.randn(53, 24, requires_grad=True)
    ones_NK = torch.ones(case.experts_NK.shape)
    expected = routed_swiglu(x_ND, case.experts_NK, ones_NK, groups)
    found = expert_parallel_swiglu(x_ND, case.experts_NK, None, groups, 8, alone)
    assert torch.allclose(found, expected, atol=1e-5)
    (dx,) = torch.autograd.grad(found.square().sum(), x_ND)
    (expected_dx,) = torch.autograd.grad(expected.square().sum(), x_ND)
    assert torch.allclose(dx, expected_dx, atol=1e-4)


def test_autocast_decides_what_is_sent_and_returned(alone: dist.ProcessGroup) -> None:
    case = CASES[0]
    groups, x_ND = weights(case, torch.float32), torch.randn(53, 24)
    with torch.autocast("cpu", torch.bfloat16):
        y_ND = expert_parallel_swiglu(x_ND, case.experts_NK, None, groups, 8, alone)
    assert y_ND.dtype == torch.bfloat16


def test_no_tokens_give_no_rows(alone: dist.ProcessGroup) -> None:
    groups = weights(RoutedCase("", (2, 1), torch.empty(0, 2)), torch.float32)
    x_ND, none_NK = torch.empty(0, 24, requires_grad=True), torch.empty(0, 2, dtype=torch.int64)
    exchange = agree_exchange(none_NK, 3, alone)
    assert exchange.sent_P == exchange.received_P == [0]
    y_ND = expert_parallel_swiglu(x_ND, none_NK, torch.empty(0, 2), groups, 3, alone)
    y_ND.sum().backward()
    assert y_ND.shape == (0, 24) and x_ND.grad is not None and groups[0].down.grad is None
