"""How many units has each share received after t steps? Within one of its target, at every t.

Proportionate scheduling, Pfair (Baruah, Cohen, Plaxton, Varvel 1996, "Proportionate progress") with
unit jobs: the i-th unit of share p may run from target time (i-1)/p and must have run by i/p;
earliest deadline first meets all windows whenever the shares sum to 1. Counts never fall, which
rounding borders on a line (floor(t S P_f) - floor(t S P_{f-1})) does not give for shares of less
than a unit a step. Read next: `order.py`.
"""

import math
import threading
from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .ledger import SHARE_TOTAL

Counts = NDArray[np.int64]

ANCHOR_STEPS = 1024
"""Counts are remembered every so many steps at first, to reach a step from one before it."""
_ANCHORS = 64
"""Remembered counts at most: with more, every second is forgotten."""
_RECENT_STEPS, _RECENT = 16, 128
"""Beside them, the last counts are remembered closely, for a step a little behind the newest."""


class Allocation:
    """Units of integer shares, step by step."""

    def __init__(self, shares: Sequence[int], units: int) -> None:
        """
        Args:
            shares: positive parts of SHARE_TOTAL, summing to it.
            units: units given out a step.
        """
        self.shares = np.asarray(shares, dtype=np.int64)
        self.units = units
        if self.shares.sum() != SHARE_TOTAL or (self.shares < 1).any():
            raise ValueError("shares must be positive and sum to SHARE_TOTAL")
        # After `period` steps every target is whole, and the pattern begins anew.
        self.period = SHARE_TOTAL // math.gcd(SHARE_TOTAL, units)
        self._per_cycle = self.shares * (self.period * units // SHARE_TOTAL)
        self._spacing = ANCHOR_STEPS
        self._anchors: dict[int, Counts] = {0: np.zeros(len(self.shares), dtype=np.int64)}
        self._kept: set[int] = set()
        self._recent: deque[tuple[int, Counts]] = deque(maxlen=_RECENT)
        # The stream's reader runs ahead of who asks for the state of a step.
        self._lock = threading.Lock()
        self._last = (0, self._anchors[0])

    def counts(self, step: int) -> Counts:
        """Units received by each share in the first `step` steps; they sum to step * units."""
        if len(self.shares) == 1:
            return np.array([step * self.units], dtype=np.int64)
        cycles, inside = divmod(step, self.period)
        with self._lock:
            return cycles * self._per_cycle + self._counts_in_cycle(inside)

    def given(self, step: int) -> list[tuple[int, int, int]]:
        """What the step after the first `step` ones gives: (share, count before, count after)."""
        if len(self.shares) == 1:
            return [(0, step * self.units, (step + 1) * self.units)]
        before, after = self.counts(step), self.counts(step + 1)
        return [(int(i), int(before[i]), int(after[i])) for i in np.flatnonzero(after - before)]

    def remember(self, step: int, counts: Sequence[int]) -> None:
        """Makes a known state reachable at once, so that a resume need not count from 0."""
        cycles, inside = divmod(step, self.period)
        if len(counts) != len(self.shares):
            raise ValueError(f"{len(counts)} counts for {len(self.shares)} shares")
        known = np.asarray(counts, dtype=np.int64) - cycles * self._per_cycle
        off = np.abs(known * SHARE_TOTAL - inside * self.units * self.shares)
        if known.sum() != inside * self.units or (off >= SHARE_TOTAL).any():
            raise ValueError(f"counts {list(counts)[:8]} cannot be those after {step} steps")
        self._anchors[inside] = known
        self._kept.add(inside)

    def _counts_in_cycle(self, step: int) -> Counts:
        at, counts = self._last
        if not 0 <= step - at <= 1:
            known = {**self._anchors, **dict(self._recent)}
            near = max(each for each in known if each <= step)
            if near > at or at > step:
                at, counts = near, known[near]
        while at < step:
            at, counts = at + 1, self._advance(at + 1, counts)
            if at % _RECENT_STEPS == 0:
                self._recent.append((at, counts))
            if at % self._spacing == 0:
                self._anchor(at, counts)
        self._last = (at, counts)
        return counts

    def _anchor(self, step: int, counts: Counts) -> None:
        self._anchors[step] = counts
        if len(self._anchors) > _ANCHORS:
            self._spacing *= 2
            for at in [at for at in self._anchors if at % self._spacing and at not in self._kept]:
                del self._anchors[at]

    def _advance(self, step: int, before: Counts) -> Counts:
        given = step * self.units
        target, remainder = np.divmod(given * self.shares, SHARE_TOTAL)
        counts = np.maximum(before, target)
        missing = given - int(counts.sum())
        if missing:
            may_lead = np.flatnonzero((counts == target) & (remainder > 0))
            deadlines = -(-(counts[may_lead] + 1) * SHARE_TOTAL // self.shares[may_lead])
            counts[may_lead[np.argsort(deadlines, kind="stable")[:missing]]] += 1
        return counts
