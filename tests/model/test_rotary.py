"""Rotary embeddings: exact rotations, of which attention sees the differences only."""

import pytest
import torch
from torch import Tensor

from xylem.model.attention import apply_rotary, rotary_tables


@pytest.mark.parametrize("head_dim", [2, 8, 64])
def test_rotary_and_its_gradient_are_complex_rotations(head_dim: int) -> None:
    T, theta = 40, 10_000.0
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, T, 3, head_dim, generator=generator).requires_grad_()
    pull = torch.randn(x.shape, generator=generator)
    tables = rotary_tables(T, head_dim, theta, torch.device("cpu"))
    y = apply_rotary(x, tables)
    (gradient,) = torch.autograd.grad(y, x, pull)

    frequencies = theta ** (-torch.arange(head_dim // 2, dtype=torch.float64) * 2 / head_dim)
    turn = torch.polar(
        torch.ones(T, 1, head_dim // 2, dtype=torch.float64),
        (torch.arange(T).double()[:, None] * frequencies)[:, None],
    )

    def rotated(value: Tensor, turn: Tensor) -> Tensor:
        first, second = value.double().chunk(2, dim=-1)
        pair = torch.complex(first, second) * turn
        return torch.cat([pair.real, pair.imag], dim=-1)

    torch.testing.assert_close(y.double(), rotated(x, turn), atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(gradient.double(), rotated(pull, turn.conj()), atol=2e-5, rtol=1e-5)


def test_rotary_sees_differences_of_positions_only() -> None:
    tables = rotary_tables(30, 16, 10_000.0, torch.device("cpu"))
    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(0)).double()
    at = [apply_rotary(t.expand(1, 30, 1, 16), tables)[0, :, 0] for t in (q, k)]
    products = at[0] @ at[1].T
    for ahead in (0, 3, 17):
        line = products.diagonal(-ahead)
        torch.testing.assert_close(line, line[:1].expand_as(line), atol=1e-5, rtol=1e-5)
