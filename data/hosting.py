"""Which families can each piece of a step's slots touch? What family parallelism places by.

A step's slots are sorted by family and cut into equal pieces. Counts of slots move by one or more
from step to step, and with them every border, so that the answer is taken from the order's own
arithmetic over the steps that are to come, not from the shares. Read next: `order.py`.
"""

from collections.abc import Sequence

import numpy as np

from .order import Order


def touched_families(order: Order, first: int, last: int, pieces: int) -> list[frozenset[str]]:
    """The families that each piece holds a slot of in some step from `first` to before `last`.

    Args:
        pieces: equal pieces of a step's slots.
    Returns:
        A set a piece.
    """
    touched: list[set[str]] = [set() for _ in range(pieces)]
    for names, counts_SF in order.slot_table(first, last):
        borders_SF = np.cumsum(counts_SF, axis=1)
        slots = int(borders_SF[0, -1])
        piece = slots // pieces
        begins_SF = borders_SF - counts_SF
        for index, name in enumerate(names):
            held = counts_SF[:, index] > 0
            if not held.any():
                continue
            low = begins_SF[held, index] // piece
            high = (borders_SF[held, index] - 1) // piece
            # One number a pair: of many thousand steps a few differ.
            seen = np.unique(low * pieces + high)
            for begin, end in zip(*np.divmod(seen, pieces), strict=True):
                for number in range(begin, end + 1):
                    touched[number].add(name)
    return [frozenset(names) for names in touched]


def hosted_families(
    order: Order, families: Sequence[str], first: int, last: int, *, family: int, data: int
) -> list[frozenset[str]]:
    """The families that each of family x data readers hosts, of a step's slots in equal pieces.

    Neighbours that share a piece of the line host the same; a family that is never read is hosted
    where the fewest are, so that nothing of the model is lost.

    Args:
        families: those of the model.
        first, last: the steps to come, the last not included.
        family: pieces of the line; 1 hosts all families everywhere.
        data: readers of each piece.
    """
    if family == 1:
        return [frozenset(families)] * data
    touched = touched_families(order, first, last, family * data)
    pieces = [set[str]().union(*touched[p * data : (p + 1) * data]) for p in range(family)]
    for name in families:
        if not any(name in held for held in pieces):
            min(pieces, key=len).add(name)
    return [frozenset(held) for held in pieces for _ in range(data)]
