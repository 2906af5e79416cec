"""Packing: a language's documents as one line of tokens, cut into sequences of equal length.

Every document is [begin, tokens..., end], so its borders can be read from the tokens themselves and
a sequence is a pure function of its position. A sequence's last target is the next one's first
token; what is left at the end of the line (less than one sequence) is not read.
Read next: `stream.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IGNORED = -100
"""Target of a position whose next token begins another document."""


@dataclass(frozen=True, slots=True)
class Packed:
    """One training sequence of T tokens, or several, in rows."""

    inputs: NDArray[np.int64]
    """Token ids [..., T]."""
    targets: NDArray[np.int64]
    """The next token [..., T]; IGNORED where it begins another document."""
    documents: NDArray[np.int64]
    """Number of each position's document within its sequence [..., T], from 0 or 1."""


def sequences_in(tokens: int, sequence_length: int) -> int:
    """How many sequences a line of tokens holds; each needs one token more, for its last target."""
    return max(0, (tokens - 1) // sequence_length)


def shut_positions(
    shards: Mapping[str, tuple[int, int]], length: int, sequence_length: int
) -> NDArray[np.int64]:
    """Which of a line's `length` sequences, or the token after them, lie in shards to leave out.

    Args:
        shards: shard -> its tokens of the line, [first, last + 1).
    Returns:
        Sorted positions.
    """
    T = sequence_length
    spans = [np.zeros(0, np.int64)]
    for first, stop in shards.values():
        spans.append(np.arange(max(0, -(-first // T) - 1), min(length, -(-stop // T))))
    return np.unique(np.concatenate(spans))


def pack(windows: NDArray[np.int64], bos_id: int) -> Packed:
    """Sequences from their T + 1 tokens each, [..., T + 1]."""
    begins = windows == bos_id
    inputs, targets = windows[..., :-1], windows[..., 1:].copy()
    targets[begins[..., 1:]] = IGNORED
    return Packed(
        inputs=np.ascontiguousarray(inputs),
        targets=targets,
        documents=np.cumsum(begins[..., :-1], axis=-1),
    )
