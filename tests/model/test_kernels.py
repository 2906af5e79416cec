"""The Triton kernels, run by Triton's interpreter where there is no GPU, against float64."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.model.routed_cases import CASES, TOLERANCE, RoutedCase, outcome, truth, weights
from xylem.model.choices import sort_choices
from xylem.model.experts import ExpertGroup, weights_of

if find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from xylem.model.kernels import routed_swiglu_triton as kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = kernels.Tile(rows=16, columns=16, depth=16, warps=1, stages=1)


@pytest.fixture(autouse=True)
def bfloat16_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter multiplies the bits of bfloat16 as integers; here they are widened first."""
    from triton.runtime import interpreter

    plain = interpreter.InterpreterBuilder.create_dot

    def wide(tensor: Any) -> Any:
        if tensor.data.dtype != np.uint16:
            return tensor
        bits = tensor.data.astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), interpreter.tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *more: Any) -> Any:
        return plain(self, wide(a), wide(b), *more)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


def by_kernels(
    x_ND: Tensor, experts_NK: Tensor, weights_NK: Tensor, groups: Sequence[ExpertGroup]
) -> Tensor:
    """What CUDA does with Triton."""
    choices = sort_choices(experts_NK, sum(len(group.gate_up) for group in groups))
    return kernels.triton_swiglu(x_ND, weights_NK, choices, weights_of(groups, x_ND.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_output_and_gradients_are_the_float64_references(
    case: RoutedCase, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "tile_of", lambda dtype: SMALL)
    assert (
        outcome(by_kernels, case, dtype, device=DEVICE).worst(truth(case, dtype)) < TOLERANCE[dtype]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_tiles_of_a_gpu_are_right_too(dtype: torch.dtype) -> None:
    case = CASES[0]  # smaller than one tile in every direction
    assert (
        outcome(by_kernels, case, dtype, device=DEVICE).worst(truth(case, dtype)) < TOLERANCE[dtype]
    )


def test_under_autocast_an_unused_group_has_no_gradient() -> None:
    case = CASES[1]
    groups = [group.to(DEVICE) for group in weights(case, torch.float32)]
    x_ND = torch.randn(len(case.experts_NK), case.hidden_size, device=DEVICE)
    choices = sort_choices(case.experts_NK.to(DEVICE), 8)
    matrices = weights_of(groups, torch.bfloat16)
    weights_NK = torch.rand(case.experts_NK.shape, device=DEVICE)
    kernels.triton_swiglu(x_ND.bfloat16(), weights_NK, choices, matrices).float().sum().backward()
    found = [p.grad for group in groups for p in group.parameters()]
    assert [g is None for g in found] == [False] * 4 + [True] * 2 + [False] * 2
    assert {g.dtype for g in found if g is not None} == {torch.float32}


@pytest.mark.parametrize("counts", [[0, 33, 1, 0, 16], [0, 0, 0], [5], [16, 16]])
def test_tiles_cover_every_row_once_and_no_two_experts(counts: list[int]) -> None:
    ends_E = torch.tensor(counts).cumsum(0)
    tiles = kernels.cover(ends_E, sum(counts), 16)
    covered: list[int] = []
    for expert, row in zip(tiles.experts_T.tolist(), tiles.rows_T.tolist(), strict=True):
        if expert == len(counts):
            continue
        start = int(ends_E[expert]) - counts[expert]
        assert start <= row < ends_E[expert] and (row - start) % 16 == 0
        covered += range(row, min(row + 16, int(ends_E[expert])))
    assert covered == list(range(sum(counts)))


def test_matrices_that_begin_between_16_bytes_are_told() -> None:
    device, any_like = torch.device("cpu"), torch.zeros(2, 4, 4)
    addresses, aligned = kernels.addresses([any_like], device)
    assert aligned and int(addresses[1] - addresses[0]) == 64
    odd: Any = torch.zeros(2, 3, 3)
    assert not kernels.addresses([odd], device)[1]
