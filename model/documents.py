"""Where do a batch's documents begin, and in what form does an attention backend want to know?

A document is a run of equal numbers within a row. Its positions see themselves and what stands
before them in it, which one integer per position says: the place where its document begins. All
other forms are made from it; only `document_mask` is quadratic in the row's length.
Shapes: B sequences, T positions, N = B T tokens. Read next: `attention_backends.py`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128
"""Positions of a block of FlexAttention."""


def document_starts(documents_BT: Tensor) -> Tensor:
    """The place in its row where each position's document begins.

    Args:
        documents_BT: the document's number at each position; any integers.
    Returns:
        int64 [B, T], from 0.
    """
    places_T = torch.arange(documents_BT.shape[1], device=documents_BT.device)
    begins_BT = torch.ones_like(documents_BT, dtype=torch.bool)
    begins_BT[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
    return torch.where(begins_BT, places_T, 0).cummax(1).values


def document_mask(starts_BT: Tensor) -> Tensor:
    """True where a position may attend, boolean [B, 1, T, T]."""
    places_T = torch.arange(starts_BT.shape[1], device=starts_BT.device)
    seen_BTT = (places_T >= starts_BT[..., None]) & (places_T <= places_T[:, None])
    return seen_BTT[:, None]


class Bounds(NamedTuple):
    """Documents of the flattened batch, as kernels of variable length want them."""

    cumulative: Tensor
    """First token of each document among all N, and last N; int32 [documents + 1]."""
    longest: int
    """Tokens of the longest document."""


def document_bounds(starts_BT: Tensor) -> Bounds:
    """The documents' bounds; on a GPU this waits for the numbers once."""
    places_T = torch.arange(starts_BT.shape[1], device=starts_BT.device)
    first = (starts_BT == places_T).flatten().nonzero()[:, 0]
    cumulative = torch.cat([first, first.new_tensor([starts_BT.numel()])])
    longest = int(cumulative.diff().max()) if len(first) else 0
    return Bounds(cumulative.to(torch.int32), longest)


@dataclass(frozen=True, slots=True)
class EqualLengths:
    """Documents in groups of equal length, each of which is one dense batch."""

    groups: tuple[tuple[int, int], ...]
    """(documents, tokens of each), in the order of the tokens."""
    order_N: Tensor | None
    """The token at each place, where tokens must be moved for it; else None."""
    places_N: Tensor | None
    """The place of each token: the inverse of `order_N`."""


def equal_lengths(starts_BT: Tensor) -> EqualLengths:
    """Neighbours of equal length together; all of equal length where that saves many groups."""
    cumulative = document_bounds(starts_BT).cumulative.long()
    lengths = cumulative.diff()
    groups = _runs(lengths)
    if len(groups) <= GROUPS_WORTH_MOVING * len(lengths.unique()):
        return EqualLengths(groups, None, None)
    sorted_lengths, by_length = lengths.sort(stable=True)
    # Where each document's tokens go: its place among the sorted, then on from there.
    begins = torch.empty_like(lengths)
    begins[by_length] = sorted_lengths.cumsum(0) - sorted_lengths
    shift = (begins - cumulative[:-1]).repeat_interleave(lengths)
    tokens_N = torch.arange(starts_BT.numel(), device=starts_BT.device)
    places_N = tokens_N + shift
    order_N = torch.empty_like(places_N)
    order_N[places_N] = tokens_N
    return EqualLengths(_runs(sorted_lengths), order_N, places_N)


GROUPS_WORTH_MOVING = 2
"""Times as many groups as lengths from which moving tokens costs less than calling more often."""


def _runs(lengths: Tensor) -> tuple[tuple[int, int], ...]:
    values, counts = lengths.unique_consecutive(return_counts=True)
    return tuple(zip(counts.tolist(), values.tolist(), strict=True))


def document_blocks(starts_BT: Tensor) -> BlockMask:
    """FlexAttention's block mask, made from the starts alone.

    A row of blocks reads from the block in which its first position's document begins to its own.
    Whole are those that begin no earlier than its last position's document and end before it; a
    row that is cut by the end of the sequence has none, as PyTorch's own masks.
    """
    T = starts_BT.shape[1]
    count = -(-T // BLOCK)
    rows = torch.arange(count, device=starts_BT.device)
    first_BR = starts_BT[:, rows * BLOCK] // BLOCK
    latest_BR = starts_BT[:, (rows * BLOCK + BLOCK - 1).clamp_max(T - 1)]
    columns = rows
    full_R = rows * BLOCK + BLOCK <= T
    whole_BRC = (columns * BLOCK >= latest_BR[..., None]) & (columns < rows[:, None])
    whole_BRC &= full_R[:, None]
    read_BRC = (columns >= first_BR[..., None]) & (columns <= rows[:, None])
    starts_BT = starts_BT.to(torch.int32)

    def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k >= starts_BT[b, q]) & (k <= q)

    return BlockMask.from_kv_blocks(
        *_listed(read_BRC & ~whole_BRC), *_listed(whole_BRC),
        BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(T, T),
    )  # fmt: skip


def _listed(wanted_BRC: Tensor) -> tuple[Tensor, Tensor]:
    """How many columns each row wants [B, 1, R], and which, those first [B, 1, R, C]; int32."""
    counts = wanted_BRC.sum(-1, dtype=torch.int32)
    columns = wanted_BRC.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return counts[:, None], columns.to(torch.int32)[:, None].contiguous()
