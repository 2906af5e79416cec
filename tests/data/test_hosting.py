"""Which pieces of a step's slots touch which families: as reading every step says, and no less."""

from fractions import Fraction
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xylem.data.allocation import Allocation
from xylem.data.hosting import hosted_families, touched_families
from xylem.data.ledger import SHARE_TOTAL
from xylem.data.order import Order

FAMILIES = ("alpha", "beta", "gamma", "delta", "epsilon")


def shares_of(weights: list[int]) -> list[int]:
    """Parts of SHARE_TOTAL."""
    exact = [Fraction(w * SHARE_TOTAL, sum(weights)) for w in weights]
    shares = [max(1, int(share)) for share in exact]
    largest = shares.index(max(shares))
    shares[largest] += SHARE_TOTAL - sum(shares)
    return shares


def order_of(stages: list[tuple[int, list[int]]], slots: int) -> Order:
    """An order's slots alone: (from step, weights of the first families) of every ledger entry."""
    made = [(begin, Allocation(shares_of(weights), slots)) for begin, weights in stages]

    def slot_table(first: int, last: int) -> object:
        for (begin, allocation), after in zip(made, [*made[1:], (last, None)], strict=True):
            low, high = max(first, begin), min(last, after[0])
            if low < high:
                counts = [allocation.counts(s - begin) for s in range(low, high + 1)]
                yield list(FAMILIES[: len(allocation.shares)]), np.diff(counts, axis=0)

    return cast(Order, SimpleNamespace(slot_table=slot_table))


def by_reading(order: Order, first: int, last: int, pieces: int) -> list[frozenset[str]]:
    """The families of every piece's slots, one by one."""
    touched: list[set[str]] = [set() for _ in range(pieces)]
    for names, counts_SF in order.slot_table(first, last):
        for counts in counts_SF:
            line = [name for name, n in zip(names, counts, strict=True) for _ in range(n)]
            for slot, name in enumerate(line):
                touched[slot * pieces // len(line)].add(name)
    return [frozenset(names) for names in touched]


@settings(deadline=None, max_examples=60)
@given(
    weights=st.lists(st.integers(1, 400), min_size=2, max_size=5),
    later=st.lists(st.integers(1, 400), min_size=2, max_size=5),
    pieces=st.sampled_from([1, 2, 4, 8]),
    each=st.integers(1, 5),
    first=st.integers(0, 30),
)
def test_a_piece_touches_what_reading_every_step_finds(
    weights: list[int], later: list[int], pieces: int, each: int, first: int
) -> None:
    order = order_of([(0, weights), (23, later)], pieces * each)
    expected = by_reading(order, first, 45, pieces)
    assert touched_families(order, first, 45, pieces) == expected


@pytest.mark.parametrize(("family", "data"), [(2, 1), (4, 1), (2, 2)])
def test_neighbours_host_what_either_of_them_touches(family: int, data: int) -> None:
    order = order_of([(0, [5, 4, 3, 2, 1])], 8)
    hosted = hosted_families(order, FAMILIES, 3, 40, family=family, data=data)
    touched = by_reading(order, 3, 40, family * data)
    assert len(hosted) == family * data
    for piece in range(family):
        mine = slice(piece * data, (piece + 1) * data)
        assert set(hosted[mine]) == {frozenset().union(*touched[mine])}


def test_a_family_that_is_never_read_is_hosted_once_where_the_fewest_are() -> None:
    order = order_of([(0, [4, 3, 1])], 8)
    read = hosted_families(order, FAMILIES[:3], 0, 20, family=2, data=1)
    held = hosted_families(order, FAMILIES, 0, 20, family=2, data=1)
    assert [len(each) for each in read] == [1, 2]
    # delta makes them even, and of equals the first takes epsilon.
    assert held == [read[0] | {"delta", "epsilon"}, read[1]]


def test_one_piece_hosts_all_families_everywhere() -> None:
    order = order_of([(0, [1, 1])], 4)
    assert hosted_families(order, FAMILIES, 0, 9, family=1, data=3) == [frozenset(FAMILIES)] * 3


def test_steps_gone_by_need_no_host() -> None:
    order = order_of([(0, [1, 1, 6]), (10, [6, 1, 1])], 8)
    gamma = ["gamma" in each for each in touched_families(order, 0, 20, 2)]
    assert gamma == [True, True]
    assert ["gamma" in each for each in touched_families(order, 10, 20, 2)] == [False, True]
