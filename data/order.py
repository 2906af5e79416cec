"""The order: which sequences make the global batch of a step, computed and never stored.

The batch is a pure function of (ledger, step): world size, workers and engine do not enter. Slots
are shared out over families, and a family's sequences over its languages, by proportionate
scheduling: after every step each count is its exact target rounded down or up. That is Pfair
(Baruah, Cohen, Plaxton, Varvel 1996, "Proportionate progress") with unit jobs: the i-th unit of
share p may run from target time (i-1)/p and must have run by i/p; earliest deadline first meets
all windows whenever the shares sum to 1. Counts never fall, which rounding borders on a line
(floor(t S P_f) - floor(t S P_{f-1})) does not give for families with less than a slot a step.
Read next: `packing.py`.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .ledger import SHARE_TOTAL, Ledger, LedgerEntry

ANCHOR_STEPS = 1024
"""Counts are remembered every so many steps, to reach any step from the nearest one before it."""

Counts = NDArray[np.int64]


class Allocation:
    """How many units each share has received after t steps: within 1 of its target, at every t."""

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
        self._anchors: dict[int, Counts] = {0: np.zeros(len(self.shares), dtype=np.int64)}
        self._last = (0, self._anchors[0])

    def counts(self, step: int) -> Counts:
        """Units received by each share in the first `step` steps; they sum to step * units."""
        if len(self.shares) == 1:
            return np.array([step * self.units], dtype=np.int64)
        cycles, inside = divmod(step, self.period)
        per_cycle = self.shares * (self.period * self.units // SHARE_TOTAL)
        return cycles * per_cycle + self._counts_in_cycle(inside)

    def remember(self, step: int, counts: Sequence[int]) -> None:
        """Makes a known state reachable at once, so that a resume need not count from 0."""
        cycles, inside = divmod(step, self.period)
        per_cycle = self.shares * (self.period * self.units // SHARE_TOTAL)
        if len(counts) != len(self.shares):
            raise ValueError(f"{len(counts)} counts for {len(self.shares)} shares")
        known = np.asarray(counts, dtype=np.int64) - cycles * per_cycle
        off = np.abs(known * SHARE_TOTAL - inside * self.units * self.shares)
        if known.sum() != inside * self.units or (off >= SHARE_TOTAL).any():
            raise ValueError(f"counts {list(counts)} cannot be those after {step} steps")
        self._anchors[inside] = known

    def _counts_in_cycle(self, step: int) -> Counts:
        at, counts = self._last
        if at > step or step - at > ANCHOR_STEPS:
            at = max(anchor for anchor in list(self._anchors) if anchor <= step)
            counts = self._anchors[at]
        while at < step:
            at, counts = at + 1, self._advance(at + 1, counts)
            if at % ANCHOR_STEPS == 0:
                self._anchors[at] = counts
        self._last = (at, counts)
        return counts.copy()

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


def permute(index: int, size: int, key: bytes) -> int:
    """A keyed permutation of range(size), one index at a time (Feistel network, cycle walking).

    Args:
        index: in range(size).
        key: at least 48 bytes, eight a round.
    """
    bits = max(2, (size - 1).bit_length())
    low = bits // 2
    low_mask, high_mask = (1 << low) - 1, (1 << (bits - low)) - 1
    keys = _round_keys(key)
    while True:
        high, rest = index >> low, index & low_mask
        for i in range(0, 6, 2):
            high ^= _mix(rest ^ keys[i]) & high_mask
            rest ^= _mix(high ^ keys[i + 1]) & low_mask
        index = high << low | rest
        if index < size:
            return index


@lru_cache(maxsize=4096)
def _round_keys(key: bytes) -> tuple[int, ...]:
    return tuple(int.from_bytes(key[8 * i : 8 * i + 8], "little") for i in range(6))


def _mix(x: int) -> int:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014)."""
    mask = 0xFFFFFFFFFFFFFFFF
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & mask
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & mask
    return x ^ (x >> 31)


@lru_cache(maxsize=4096)
def _epoch_key(seed: int, language: str, epoch: int) -> bytes:
    return hashlib.sha512(f"{seed}/{language}/{epoch}".encode()).digest()


@dataclass(frozen=True, slots=True)
class SequenceId:
    """A packed sequence: the position-th of its language, read in its epoch-th pass."""

    language: str
    epoch: int
    position: int


@dataclass(frozen=True, slots=True)
class Slot:
    """k sequences of one family; `number` is its place in the step."""

    number: int
    family: str
    sequences: tuple[SequenceId, ...]


class _Stage:
    """One ledger entry's arithmetic, with the cursors that were reached before it."""

    def __init__(self, entry: LedgerEntry, slot_sequences: int, base: dict[str, int]) -> None:
        self.entry = entry
        self.base = base
        self.families = sorted(entry.families)
        self.languages = {family: sorted(entry.languages[family]) for family in self.families}
        self.slots = Allocation([entry.families[f] for f in self.families], entry.slots)
        self.sequences = {
            family: Allocation([entry.languages[family][code] for code in codes], slot_sequences)
            for family, codes in self.languages.items()
        }

    def cursors(self, step: int) -> dict[str, int]:
        """Sequences of each language read before `step`."""
        cursors = dict(self.base)
        slots = self.slots.counts(step - self.entry.from_step)
        for family, count in zip(self.families, slots, strict=True):
            read = self.sequences[family].counts(int(count))
            for code, n in zip(self.languages[family], read, strict=True):
                cursors[code] = cursors.get(code, 0) + int(n)
        return cursors


class Order:
    """The global batch of every step."""

    def __init__(self, ledger: Ledger, sequences: dict[str, int]) -> None:
        """
        Args:
            ledger: the mixture's decisions.
            sequences: packed sequences of each language, an epoch's length.
        """
        self.ledger = ledger
        self.epoch_length = sequences
        self.stages: list[_Stage] = []
        for entry in ledger.entries:
            base = self.stages[-1].cursors(entry.from_step) if self.stages else {}
            self.stages.append(_Stage(entry, ledger.slot_sequences, base))

    def _stage(self, step: int) -> _Stage:
        return next(stage for stage in reversed(self.stages) if stage.entry.from_step <= step)

    def cursors(self, step: int) -> dict[str, int]:
        """Sequences of each language that the steps before `step` read."""
        return self._stage(step).cursors(step)

    def slot_counts(self, step: int) -> dict[str, int]:
        """Slots of each family in a step, zeros included."""
        stage = self._stage(step)
        inside = step - stage.entry.from_step
        before = stage.slots.counts(inside)
        counts = stage.slots.counts(inside + 1) - before
        return {family: int(n) for family, n in zip(stage.families, counts, strict=True)}

    def step(self, step: int) -> list[Slot]:
        """The slots of a step, families in their fixed order."""
        stage = self._stage(step)
        inside = step - stage.entry.from_step
        before, after = stage.slots.counts(inside), stage.slots.counts(inside + 1)
        slots: list[Slot] = []
        for family, first, last in zip(stage.families, before, after, strict=True):
            for number in range(int(first), int(last)):
                slots.append(Slot(len(slots), family, self._sequences(stage, family, number)))
        return slots

    def _sequences(self, stage: _Stage, family: str, slot: int) -> tuple[SequenceId, ...]:
        allocation = stage.sequences[family]
        before, after = allocation.counts(slot), allocation.counts(slot + 1)
        return tuple(
            self.sequence(code, stage.base.get(code, 0) + i)
            for code, first, last in zip(stage.languages[family], before, after, strict=True)
            for i in range(int(first), int(last))
        )

    def sequence(self, language: str, index: int) -> SequenceId:
        """The index-th sequence ever read of a language; each epoch has its own permutation."""
        length = self.epoch_length[language]
        epoch, inside = divmod(index, length)
        key = _epoch_key(self.ledger.seed, language, epoch)
        return SequenceId(language, epoch, permute(inside, length, key))

    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint keeps: O(languages) integers, equal on every rank."""
        stage = self._stage(step)
        return {
            "step": step,
            "ledger_hash": self.ledger.hash,
            "family_slots": stage.slots.counts(step - stage.entry.from_step).tolist(),
            "cursors": self.cursors(step),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes a checkpoint's state as a starting point for counting.

        Raises:
            ValueError: the state is not this order's.
        """
        step, slots, cursors = state["step"], state["family_slots"], state["cursors"]
        stage = self._stage(step)
        stage.slots.remember(step - stage.entry.from_step, slots)
        for family, count in zip(stage.families, slots, strict=True):
            read = [cursors[code] - stage.base.get(code, 0) for code in stage.languages[family]]
            stage.sequences[family].remember(count, read)
        if state["ledger_hash"] != self.ledger.hash or cursors != self.cursors(step):
            raise ValueError(f"the stream's state at step {step} is not that of this ledger")


def fingerprint(order: Order, ids: int = 1000) -> str:
    """sha256 over the first sequence ids: what two equal runs must agree on before they begin."""
    digest, step, seen = hashlib.sha256(), 0, 0
    while seen < ids:
        for slot in order.step(step):
            for sequence in slot.sequences[: ids - seen]:
                digest.update(
                    f"{sequence.language}/{sequence.epoch}/{sequence.position}\n".encode()
                )
                seen += 1
        step += 1
    return digest.hexdigest()
