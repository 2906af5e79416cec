"""The order: which sequences make the global batch of a step, computed and never stored.

The batch is a pure function of (ledger, step): world size, workers and engine do not enter. Slots
are shared out over families, a family's sequences over its languages, a language's over its
sources (`allocation.py`); the reads of a source are a permutation of its positions
(`permutation.py`). Read next: `packing.py`.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .allocation import Allocation
from .errors import DataError
from .ledger import Ledger, LedgerEntry
from .packing import shut_positions
from .permutation import Passes, epoch_key, permute_many, unpermute

Begin = tuple[int, int, int]
"""Where a source stands: (sequences read ever, epoch, index in it of the next read)."""


@dataclass(frozen=True, slots=True)
class SequenceId:
    """A packed sequence: the position-th of its source, read in its epoch-th pass."""

    source: str
    epoch: int
    position: int


@dataclass(frozen=True, slots=True)
class Slot:
    """k sequences of one family; `number` is its place in the step."""

    number: int
    family: str
    sequences: tuple[SequenceId, ...]


class _Stage:
    """One ledger entry's arithmetic, with what was read before it."""

    def __init__(self, ledger: Ledger, entry: LedgerEntry, begins: Mapping[str, Begin]) -> None:
        self.ledger = ledger
        self.entry = entry
        self.begins = begins
        self.families = sorted(entry.families)
        self.languages = {family: sorted(entry.languages[family]) for family in self.families}
        self.sources = {code: sorted(shares) for code, shares in entry.sources.items()}
        self.slots = Allocation([entry.families[f] for f in self.families], entry.slots)
        self._by_family: dict[str, Allocation] = {}
        self._by_language: dict[str, Allocation] = {}

    def of_family(self, family: str) -> Allocation:
        """A family's sequences over its languages, k a slot."""
        if family not in self._by_family:
            shares = self.entry.languages[family]
            self._by_family[family] = Allocation(
                [shares[code] for code in self.languages[family]], self.ledger.slot_sequences
            )
        return self._by_family[family]

    def of_language(self, code: str) -> Allocation:
        """A language's sequences over its sources, one at a time."""
        if code not in self._by_language:
            shares = self.entry.sources[code]
            self._by_language[code] = Allocation([shares[s] for s in self.sources[code]], 1)
        return self._by_language[code]

    def reads(self, step: int) -> dict[str, int]:
        """Sequences of each source that this stage read before `step`."""
        reads: dict[str, int] = {}
        slots = self.slots.counts(step - self.entry.from_step)
        for family, count in zip(self.families, slots, strict=True):
            sequences = self.of_family(family).counts(int(count))
            for code, n in zip(self.languages[family], sequences, strict=True):
                of_sources = self.of_language(code).counts(int(n))
                reads.update(zip(self.sources[code], of_sources.tolist(), strict=True))
        return reads


class Order:
    """The global batch of every step."""

    def __init__(self, ledger: Ledger, sequences: Mapping[str, int]) -> None:
        """
        Args:
            ledger: the mixture's decisions.
            sequences: packed sequences of each source, an epoch's length.
        Raises:
            DataError: a quarantine leaves nothing of a source.
        """
        self.ledger = ledger
        self.epoch_length = sequences
        self._stages: dict[int, _Stage] = {}
        self._passes: dict[tuple[int, str], Passes] = {}
        for entry in ledger.entries:
            for source in entry.quarantine:
                if len(self._bad(entry, source)) == sequences[source]:
                    raise DataError(
                        f"the quarantine from step {entry.from_step} leaves nothing of {source}: "
                        f"take the source out with data.mixture.sources.{source}=0"
                    )

    def _stage(self, index: int) -> _Stage:
        if index not in self._stages:
            begins: Mapping[str, Begin] = {}
            entry = self.ledger.entries[index]
            if index:
                begins = self._begins(index - 1, entry.from_step)
            self._stages[index] = _Stage(self.ledger, entry, begins)
        return self._stages[index]

    def _at(self, step: int) -> tuple[int, _Stage]:
        index = self.ledger.index_at(step)
        return index, self._stage(index)

    def _begins(self, index: int, step: int) -> dict[str, Begin]:
        """Where every source stands before `step`, by the arithmetic of a stage."""
        stage = self._stage(index)
        begins = dict(stage.begins)
        for source, number in stage.reads(step).items():
            epoch, inside = self._reads(index, source).locate(number)
            before = begins[source][0] if source in begins else 0
            begins[source] = (before + number, epoch, inside)
        return begins

    def _reads(self, index: int, source: str) -> Passes:
        key = (index, source)
        if key not in self._passes:
            stage = self._stage(index)
            begin = stage.begins.get(source)
            bad = self._bad(stage.entry, source) if source in stage.entry.quarantine else None
            self._passes[key] = Passes(
                self.ledger.seed,
                source,
                self.epoch_length[source],
                begin=begin[1:] if begin else (0, 0),
                bad=bad,
            )
        return self._passes[key]

    def _bad(self, entry: LedgerEntry, source: str) -> NDArray[np.int64]:
        return shut_positions(
            entry.quarantine[source], self.epoch_length[source], self.ledger.sequence_length
        )

    def cursors(self, step: int) -> dict[str, int]:
        """Sequences of each source that the steps before `step` read."""
        _, stage = self._at(step)
        return self._cursors(stage, step)

    def _cursors(self, stage: _Stage, step: int) -> dict[str, int]:
        cursors = {source: begin[0] for source, begin in stage.begins.items()}
        for source, number in stage.reads(step).items():
            cursors[source] = cursors.get(source, 0) + number
        return cursors

    def position_of(self, step: int, source: str) -> tuple[int, int]:
        """(epoch, index in it) of a source's next read at `step`."""
        index, stage = self._at(step)
        reads = stage.reads(step)
        if source in reads:
            return self._reads(index, source).locate(reads[source])
        begin = stage.begins.get(source)
        return begin[1:] if begin else (0, 0)

    def readable(self, step: int, source: str) -> int:
        """Sequences that an epoch of a source holds at a step, without those in quarantine."""
        return self._reads(self._at(step)[0], source).readable

    def slot_counts(self, step: int) -> dict[str, int]:
        """Slots of each family in a step, zeros included."""
        _, stage = self._at(step)
        counts = dict.fromkeys(stage.families, 0)
        for i, before, after in stage.slots.given(step - stage.entry.from_step):
            counts[stage.families[i]] = after - before
        return counts

    def slot_table(self, first: int, last: int) -> Iterator[tuple[list[str], NDArray[np.int64]]]:
        """Slots of each family in the steps from `first` to before `last`, a table a ledger entry.

        Returns:
            (families in their fixed order, counts [steps, families]).
        """
        entries = self.ledger.entries
        for index, entry in enumerate(entries):
            until = entries[index + 1].from_step if index + 1 < len(entries) else last
            begin, end = max(first, entry.from_step), min(last, until)
            if begin < end:
                stage = self._stage(index)
                counts = [stage.slots.counts(s - entry.from_step) for s in range(begin, end + 1)]
                table = np.stack(counts)
                yield stage.families, table[1:] - table[:-1]

    def step(self, step: int) -> list[Slot]:
        """The slots of a step, families in their fixed order."""
        index, stage = self._at(step)
        families: list[str] = []
        reads: list[tuple[Passes, int]] = []
        for i, first, last in stage.slots.given(step - stage.entry.from_step):
            family = stage.families[i]
            for number in range(first, last):
                families.append(family)
                reads.extend(self._slot(index, stage, family, number))
        sequences = self._sequence_ids(reads)
        k = self.ledger.slot_sequences
        return [
            Slot(number, family, tuple(sequences[number * k : number * k + k]))
            for number, family in enumerate(families)
        ]

    def _sequence_ids(self, reads: Sequence[tuple[Passes, int]]) -> list[SequenceId]:
        """The sequences that some reads of sources are, all permuted at once."""
        places = [passes.locate(number) for passes, number in reads]
        positions = permute_many(
            [index for _, index in places],
            [passes.length for passes, _ in reads],
            [
                epoch_key(passes.seed, passes.source, epoch)
                for (passes, _), (epoch, _) in zip(reads, places, strict=True)
            ],
        )
        return [
            SequenceId(passes.source, epoch, position)
            for (passes, _), (epoch, _), position in zip(reads, places, positions, strict=True)
        ]

    def _slot(
        self, index: int, stage: _Stage, family: str, slot: int
    ) -> Iterator[tuple[Passes, int]]:
        """A slot's reads: of which source, and the number of the read in this stage."""
        languages = stage.languages[family]
        for i, first, last in stage.of_family(family).given(slot):
            code = languages[i]
            sources = stage.sources[code]
            if len(sources) == 1:
                passes = self._reads(index, sources[0])
                for number in range(first, last):
                    yield passes, number
                continue
            for number in range(first, last):
                ((which, before, _),) = stage.of_language(code).given(number)
                yield self._reads(index, sources[which]), before

    def times_read(self, step: int, source: str, position: int) -> int:
        """How often the steps before `step` read a position of a source."""
        seed, length = self.ledger.seed, self.epoch_length[source]
        here = np.array([position])
        times = 0
        for index in range(self.ledger.index_at(step) + 1):
            stage = self._stage(index)
            entries = self.ledger.entries
            later = index + 1 < len(entries) and entries[index + 1].from_step < step
            until = entries[index + 1].from_step if later else step
            if source in stage.entry.quarantine and position in self._bad(stage.entry, source):
                continue
            number = stage.reads(until).get(source, 0)
            passes = self._reads(index, source)
            (first, begin), (last, end) = passes.begin, passes.locate(number)
            for epoch in range(first, last + 1):
                at = int(unpermute(here, length, epoch_key(seed, source, epoch))[0])
                lowest = begin if epoch == first else 0
                highest = end if epoch == last else length
                times += lowest <= at < highest
        return times

    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint keeps: O(sources) integers, equal on every rank."""
        # The stage of the last step that ran: a later edit may begin at this very step.
        index, stage = self._at(max(0, step - 1))
        return {
            "step": step,
            "ledger_hash": self.ledger.before(step).hash,
            "stage": index,
            "begins": {source: list(begin) for source, begin in sorted(stage.begins.items())},
            "family_slots": stage.slots.counts(step - stage.entry.from_step).tolist(),
            "cursors": dict(sorted(self._cursors(stage, step).items())),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes a checkpoint's state as a starting point for counting.

        The ledger may have been edited since, from the state's step on.

        Raises:
            ValueError: the state is not this order's.
        """
        step, index, cursors = state["step"], state["stage"], state["cursors"]
        begins = {source: (n, epoch, at) for source, (n, epoch, at) in state["begins"].items()}
        if state["ledger_hash"] != self.ledger.before(step).hash:
            raise ValueError(f"the stream's state at step {step} is not that of this ledger")
        entry = self.ledger.entries[index]
        stage = _Stage(self.ledger, entry, begins)
        slots = state["family_slots"]
        stage.slots.remember(step - entry.from_step, slots)
        for family, count in zip(stage.families, slots, strict=True):
            in_family: list[int] = []
            for code in stage.languages[family]:
                reads = [
                    cursors[source] - (begins[source][0] if source in begins else 0)
                    for source in stage.sources[code]
                ]
                stage.of_language(code).remember(sum(reads), reads)
                in_family.append(sum(reads))
            stage.of_family(family).remember(count, in_family)
        self._stages[index] = stage
        self._passes = {key: p for key, p in self._passes.items() if key[0] != index}
        if self._cursors(stage, step) != cursors:
            raise ValueError(f"the stream's state at step {step} is not that of this ledger")


def fingerprint(order: Order, ids: int = 1000) -> str:
    """sha256 over the first sequence ids: what two equal runs must agree on before they begin."""
    digest, step, seen = hashlib.sha256(), 0, 0
    while seen < ids:
        for slot in order.step(step):
            for sequence in slot.sequences[: ids - seen]:
                digest.update(f"{sequence.source}/{sequence.epoch}/{sequence.position}\n".encode())
                seen += 1
        step += 1
    return digest.hexdigest()
