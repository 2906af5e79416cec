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


def sort_choices(experts_NK: Tensor, experts: int, multiple: int = 1) -> SortedChoices:
    """Sorts choices by expert, without waiting for the device where nothing is padded.

    Args:
        experts_NK: each token's experts.
        experts: how many there are, E.
        multiple: every expert's rows are filled up to a multiple of this with rows of token 0 that
            no place points to and whose weight is 0; S then counts them too.
    """
    sorted_S, order_S = experts_NK.flatten().sort(stable=True)
    numbers_E = torch.arange(experts, device=order_S.device)
    ends_E = torch.searchsorted(sorted_S, numbers_E, right=True)
    places, rows = torch.arange(len(order_S), device=order_S.device), len(order_S)
    if multiple > 1:
        counts_E = ends_E.diff(prepend=ends_E.new_zeros(1))
        filled_E = (counts_E + multiple - 1) // multiple * multiple
        stops_E = filled_E.cumsum(0)
        places += ((stops_E - filled_E) - (ends_E - counts_E))[sorted_S]
        ends_E, rows = stops_E, int(stops_E[-1])
    tokens_S = order_S.new_zeros(rows)
    tokens_S[places] = order_S // experts_NK.shape[-1]
    places_NK = torch.empty_like(order_S)
    places_NK[order_S] = places
    return SortedChoices(tokens_S=tokens_S, places_NK=places_NK.view_as(experts_NK), ends_E=ends_E)


def in_order(weights_NK: Tensor, places_NK: Tensor, rows: int) -> Tensor:
    """The weights of the sorted choices, [S] of so many rows; 0 for rows that fill up."""
    weights_S = weights_NK.new_zeros(rows)
    weights_S[places_NK.flatten()] = weights_NK.flatten()
    return weights_S
