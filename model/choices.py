"""A batch's choices of experts, sorted: every expert's tokens side by side, and the way back.

Shapes: N tokens, K choices of each, S = N K, E experts. Read next: `experts.py`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class SortedChoices:
    """The batch's choices, sorted by expert; equal experts stay in the tokens' order."""

    tokens_S: Tensor
    """The token of each sorted choice."""
    places_NK: Tensor
    """Where each token's choices stand among the sorted ones."""
    ends_E: Tensor
    """Where each expert's choices end."""


def sort_choices(experts_NK: Tensor, experts: int) -> SortedChoices:
    """Sorts choices by expert, without waiting for the device."""
    sorted_S, order_S = experts_NK.flatten().sort(stable=True)
    places_S = torch.empty_like(order_S)
    places_S[order_S] = torch.arange(len(order_S), device=order_S.device)
    numbers_E = torch.arange(experts, device=order_S.device)
    return SortedChoices(
        tokens_S=order_S // experts_NK.shape[-1],
        places_NK=places_S.view_as(experts_NK),
        ends_E=torch.searchsorted(sorted_S, numbers_E, right=True),
    )


def in_order(weights_NK: Tensor, places_NK: Tensor) -> Tensor:
    """The weights of the sorted choices, [S]."""
    weights_S = torch.empty_like(weights_NK.flatten())
    weights_S[places_NK.flatten()] = weights_NK.flatten()
    return weights_S
