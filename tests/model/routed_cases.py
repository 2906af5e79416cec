"""Choices of every awkward shape, and what a float64 run of the reference makes of them."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from xylem.model.experts import ExpertGroup, reference_routed_swiglu

Path = Callable[[Tensor, Tensor, Tensor, Sequence[ExpertGroup]], Tensor]
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}
"""Largest error, over the largest value."""


@dataclass(frozen=True)
class RoutedCase:
    """Groups of experts, and which expert each token chose."""

    name: str
    sizes: tuple[int, ...]
    experts_NK: Tensor
    hidden_size: int = 24
    width: int = 16


def drawn(tokens: int, choices: int, allowed: Sequence[int], seed: int = 0) -> Tensor:
    """Distinct experts for every token."""
    draw = torch.Generator().manual_seed(seed)
    order = torch.rand(tokens, len(allowed), generator=draw).argsort(-1)[:, :choices]
    return torch.tensor(allowed)[order]


def single_tokens() -> Tensor:
    """One token for each of three experts, and the rest for the fourth."""
    experts_NK = torch.full((20, 1), 3)
    experts_NK[[4, 9, 17], 0] = torch.tensor([2, 0, 1])
    return experts_NK


CASES = [
    RoutedCase("ragged groups", (2, 3, 1, 2), drawn(53, 3, range(8))),
    RoutedCase("empty experts and groups", (2, 3, 1, 2), drawn(37, 2, [0, 2, 7])),
    RoutedCase("single tokens", (1, 2, 1), single_tokens()),
    RoutedCase("all tokens to one expert", (2, 2), torch.full((33, 1), 2)),
    RoutedCase("one token", (3,), torch.tensor([[2, 0]])),
    RoutedCase("sizes no tile divides", (2, 2), drawn(45, 2, range(4)), 40, 24),
]


def weights(case: RoutedCase, dtype: torch.dtype) -> list[ExpertGroup]:
    """Groups with random weights."""
    draw = torch.Generator().manual_seed(1)
    groups = [ExpertGroup(size, case.hidden_size, case.width) for size in case.sizes]
    for group in groups:
        for parameter in group.parameters():
            parameter.data = torch.randn(parameter.shape, generator=draw).to(dtype) / 4
    return groups


@dataclass(frozen=True)
class Outcome:
    """The output and every gradient."""

    y_ND: Tensor
    gradients: list[Tensor | None]

    def worst(self, true: "Outcome") -> float:
        """The largest error of any tensor over its largest value; None must meet None."""
        assert [g is None for g in self.gradients] == [g is None for g in true.gradients]
        pairs = zip([self.y_ND, *self.gradients], [true.y_ND, *true.gradients], strict=True)
        return max(
            float((mine.double() - theirs).abs().max() / theirs.abs().max())
            for mine, theirs in pairs
            if mine is not None and theirs is not None
        )


def outcome(
    path: Path, case: RoutedCase, dtype: torch.dtype, *, exact: bool = False, device: str = "cpu"
) -> Outcome:
    """A forward and a backward pass; `exact` computes in float64 what `dtype` can hold."""
    draw = torch.Generator().manual_seed(2)
    N, K = case.experts_NK.shape
    x_ND = torch.randn(N, case.hidden_size, generator=draw).to(dtype)
    dy_ND = torch.randn(N, case.hidden_size, generator=draw).to(dtype)
    weights_NK = torch.rand(N, K, generator=draw)
    groups = weights(case, dtype)
    if exact:
        x_ND, dy_ND, weights_NK = x_ND.double(), dy_ND.double(), weights_NK.double()
        groups = [deepcopy(group).double() for group in groups]
    x_ND, weights_NK = (t.to(device).requires_grad_() for t in (x_ND, weights_NK))
    groups = [group.to(device) for group in groups]
    y_ND = path(x_ND, case.experts_NK.to(device), weights_NK, groups)
    y_ND.backward(dy_ND.to(device))
    parameters = [parameter for group in groups for parameter in group.parameters()]
    gradients = [t.grad for t in (x_ND, weights_NK, *parameters)]
    return Outcome(y_ND.detach().cpu(), [g if g is None else g.cpu() for g in gradients])


def truth(case: RoutedCase, dtype: torch.dtype) -> Outcome:
    """The reference in float64."""
    return outcome(reference_routed_swiglu, case, dtype, exact=True)
