"""The experts' path is the written-out reference, whatever the choices, and SwiGLU its formula."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.model.routed_cases import CASES, TOLERANCE, Path, RoutedCase, outcome, truth, weights
from xylem.model.choices import in_order, sort_choices
from xylem.model.experts import (
    ExpertGroup,
    grouped_swiglu,
    loop_swiglu,
    routed_swiglu,
    used_groups,
    weights_of,
)
from xylem.model.swiglu import swiglu


def by_grouped_products(
    x_ND: Tensor, experts_NK: Tensor, weights_NK: Tensor, groups: Sequence[ExpertGroup]
) -> Tensor:
    """What CUDA does without Triton."""
    choices = sort_choices(experts_NK, sum(len(group.gate_up) for group in groups))
    used, ends = used_groups(groups, choices.ends_E.tolist())
    return grouped_swiglu(x_ND, weights_NK, choices, ends, weights_of(used, x_ND.dtype))


@pytest.mark.parametrize("path", [routed_swiglu, by_grouped_products])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_output_and_gradients_are_the_float64_references(
    case: RoutedCase, dtype: torch.dtype, path: Path
) -> None:
    assert outcome(path, case, dtype).worst(truth(case, dtype)) < TOLERANCE[dtype]


@pytest.mark.parametrize("multiple", [1, 4])
def test_the_derivative_is_the_numeric_one(multiple: int) -> None:
    sizes, experts_NK = (2, 1), torch.tensor([[0, 2], [2, 1], [0, 1]])
    groups = weights(RoutedCase("", sizes, experts_NK, 4, 3), torch.float64)
    matrices = [matrix.detach().requires_grad_() for matrix in weights_of(groups, torch.float64)]
    x_ND = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    weights_NK = torch.rand(3, 2, dtype=torch.float64)
    weights_NK[0, 1] = 0.0  # a masked choice
    choices = sort_choices(experts_NK, 3, multiple)
    ends = choices.ends_E.tolist()

    def path(x_ND: Tensor, weights_NK: Tensor, *matrices: Tensor) -> Tensor:
        return loop_swiglu(x_ND, weights_NK, choices, ends, matrices)

    assert torch.autograd.gradcheck(path, (x_ND, weights_NK.requires_grad_(), *matrices))


def test_a_group_that_no_token_chose_has_no_gradient() -> None:
    case = CASES[1]
    assert case.name == "empty experts and groups"
    found = outcome(routed_swiglu, case, torch.float32).gradients[2:]
    assert [g is None for g in found] == [False] * 4 + [True] * 2 + [False] * 2
    idle = found[0]  # an expert without tokens in a group that has some: zeros
    assert idle is not None and not idle[1].any() and idle[0].any()


def test_a_choice_of_weight_zero_is_left_out() -> None:
    groups = weights(RoutedCase("", (3,), torch.empty(0, 2)), torch.float32)
    x_ND, experts_NK = torch.randn(7, 24), torch.tensor([[0, 2]]).expand(7, 2)
    weights_NK = torch.tensor([[0.7, 0.0]]).expand(7, 2)
    masked = routed_swiglu(x_ND, experts_NK, weights_NK, groups)
    alone = routed_swiglu(x_ND, experts_NK[:, :1], weights_NK[:, :1], groups)
    assert torch.equal(masked, alone)


def test_an_empty_batch_has_an_empty_output_and_no_gradients() -> None:
    groups = weights(RoutedCase("", (2, 1), torch.empty(0, 2)), torch.float32)
    x_ND = torch.empty(0, 24, requires_grad=True)
    y_ND = routed_swiglu(x_ND, torch.empty(0, 2, dtype=torch.int64), torch.empty(0, 2), groups)
    assert y_ND.shape == (0, 24)
    y_ND.sum().backward()
    assert all(p.grad is None for group in groups for p in group.parameters())


def test_under_autocast_products_are_half_and_gradients_whole() -> None:
    case = CASES[1]
    groups = weights(case, torch.float32)
    x_ND = torch.randn(len(case.experts_NK), case.hidden_size, requires_grad=True)
    weights_NK = torch.rand(case.experts_NK.shape, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y_ND = routed_swiglu(x_ND, case.experts_NK, weights_NK, groups)
    assert y_ND.dtype == torch.bfloat16
    y_ND.float().square().sum().backward()
    whole = routed_swiglu(x_ND, case.experts_NK, weights_NK, groups)
    assert F.mse_loss(y_ND.float(), whole) < 1e-4 * whole.square().mean()
    found = [p.grad for group in groups for p in group.parameters()]
    assert {g.dtype for g in (x_ND.grad, weights_NK.grad, *found) if g is not None} == {
        torch.float32
    }
    assert found[4] is None and found[5] is None


def test_equal_runs_are_equal_to_the_bit() -> None:
    first, second = (outcome(routed_swiglu, CASES[0], torch.float32) for _ in range(2))
    assert torch.equal(first.y_ND, second.y_ND)
    for a, b in zip(first.gradients, second.gradients, strict=True):
        assert a is not None and b is not None and torch.equal(a, b)


def test_choices_are_sorted_by_expert_and_then_by_token() -> None:
    choices = sort_choices(torch.tensor([[2, 0], [0, 3], [2, 3]]), 5)
    assert choices.tokens_S.tolist() == [0, 1, 0, 2, 1, 2]
    assert choices.ends_E.tolist() == [2, 2, 4, 6, 6]
    assert choices.places_NK.tolist() == [[2, 0], [1, 4], [3, 5]]


def test_filled_up_rows_read_a_token_that_nothing_reads_back() -> None:
    choices = sort_choices(torch.tensor([[2, 0], [0, 3], [2, 3]]), 5, multiple=4)
    assert choices.ends_E.tolist() == [4, 4, 8, 12, 12]
    assert choices.places_NK.tolist() == [[4, 0], [1, 8], [5, 9]]
    assert choices.tokens_S.tolist() == [0, 1, 0, 0, 0, 2, 0, 0, 1, 2, 0, 0]
    weights_S = in_order(torch.ones(3, 2), choices.places_NK, 12)
    assert weights_S.tolist() == [1, 1, 0, 0] * 3


def test_compiled_code_leaves_the_experts_as_they_are() -> None:
    case = CASES[0]
    groups = weights(case, torch.float32)
    x_ND = torch.randn(len(case.experts_NK), case.hidden_size)
    weights_NK = torch.rand(case.experts_NK.shape)

    def block(x_ND: Tensor) -> Tensor:
        return 2 * routed_swiglu(x_ND, case.experts_NK, weights_NK, groups)

    assert torch.equal(torch.compile(block, backend="eager")(x_ND), block(x_ND))


# SwiGLU


def test_swiglu_is_its_formula_and_its_derivative_the_numeric_one() -> None:
    gate_up = torch.randn(2, 3, 10, dtype=torch.float64, requires_grad=True)
    gate, up = gate_up.chunk(2, -1)
    assert torch.equal(swiglu(gate_up), F.silu(gate) * up)
    assert torch.autograd.gradcheck(swiglu, (gate_up,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swiglus_gradient_is_that_of_the_plain_form_to_the_bit(dtype: torch.dtype) -> None:
    gate_up, d_hidden = torch.randn(7, 32, dtype=dtype), torch.randn(7, 16, dtype=dtype)
    mine, plain = gate_up.clone().requires_grad_(), gate_up.clone().requires_grad_()
    swiglu(mine).backward(d_hidden)
    gate, up = plain.chunk(2, -1)
    (F.silu(gate) * up).backward(d_hidden)
    assert mine.grad is not None and plain.grad is not None
    assert torch.equal(mine.grad, plain.grad)


def test_compiled_swiglu_is_one_graph_and_the_same() -> None:
    gate_up = torch.randn(5, 12, requires_grad=True)
    compiled = torch.compile(swiglu, backend="eager", fullgraph=True)(gate_up)
    assert torch.equal(compiled, swiglu(gate_up))


def test_swiglu_keeps_gate_and_up_and_nothing_else() -> None:
    kept: list[Tensor] = []
    gate_up = torch.randn(4, 6, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda x: x):
        swiglu(gate_up)
    assert [tensor.shape for tensor in kept] == [(4, 6)]
