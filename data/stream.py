"""The stream: a rank's micro-batches of any step, read from shards in the order's sequence.

A rank takes an equal, contiguous piece of the step's slots. Slots come sorted by family, so that a
micro-batch's rows of one family are contiguous. The next steps are read ahead by a thread, which
reads a step's sequences with several where the storage is far away.
Read next: `inspection.py` to look at a batch.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .config import DataConfig
from .errors import DataError
from .ledger import Ledger
from .manifest import Manifest
from .mixture import Capped, decide_ledger, epoch_lengths
from .order import Order, SequenceId, Slot
from .packing import Packed, pack
from .storage import Storage, as_storage
from .token_line import TokenLine


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Some slots of a step, as one rank runs them together."""

    inputs_BT: Tensor
    """Token ids, int64."""
    targets_BT: Tensor
    """Next tokens, int64; IGNORED where the next token begins another document."""
    documents_BT: Tensor
    """Document numbers within each sequence, int64."""
    languages_B: Tensor
    """Index of each sequence's language in `Stream.languages`, int64."""
    segments: tuple[tuple[str, int, int], ...]
    """(family, first row, row after the last), in order."""
    slots: tuple[Slot, ...]
    """Where the rows come from."""


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One rank's share of a step."""

    micro_batches: list[MicroBatch]
    """In the order in which they are run."""
    families: tuple[str, ...]
    """Families that have a slot somewhere in the global batch."""


def first_ledger(
    config: DataConfig, manifest: Manifest, steps: int, warn: Callable[[Capped], None] | None = None
) -> Ledger:
    """The ledger a run of so many steps begins with.

    Args:
        warn: told of every language that `data.mixture.max_epochs` holds back.
    Raises:
        DataError: a mixture that cannot be.
    """
    return decide_ledger(
        config.mixture,
        manifest,
        steps=steps,
        seed=config.seed,
        slots=config.slots_per_step,
        slot_sequences=config.slot_sequences,
        sequence_length=config.sequence_length,
        warn=warn or (lambda _: None),
    )


def build_order(ledger: Ledger, manifest: Manifest) -> Order:
    """The order of a ledger over a manifest's training shards.

    Raises:
        DataError: the ledger was written for another manifest, or a language is too short.
    """
    known = {manifest.hash, *manifest.parents}
    for entry in ledger.entries:
        if entry.manifest_hash not in known:
            raise DataError(
                f"the run's mixture from step {entry.from_step} was decided over manifest "
                f"{entry.manifest_hash[:12]}, the prepared folder holds {manifest.hash[:12]}: "
                "prepare the same text again, or begin a new run"
            )
    T = ledger.sequence_length
    lengths = epoch_lengths(manifest, T)
    for entry in ledger.entries:
        for shares in entry.sources.values():
            for name in shares:
                if lengths[name] < 1:
                    tokens = manifest.sources[name].shards.tokens
                    raise DataError(
                        f"{name} has {tokens} training tokens, less than one sequence of "
                        f"data.sequence_length={T}: shorten it, or leave the language out with "
                        "data.languages"
                    )
    return Order(ledger, lengths)


class Stream:
    """Reads a rank's share of each step."""

    def __init__(
        self,
        prepared: Storage | Path,
        manifest: Manifest,
        ledger: Ledger,
        *,
        rank: int = 0,
        world: int = 1,
        micro_slots: int = 1,
        read_ahead: int = 2,
        threads: int | None = None,
    ) -> None:
        """
        Args:
            prepared: what `xylem prepare` wrote.
            rank, world: this process among those that share the global batch.
            micro_slots: slots a micro-batch.
            read_ahead: steps read before they are asked for.
            threads: how many read a step's sequences at once; None leaves it to the storage.
        Raises:
            DataError: the slots of a step cannot be cut into equal pieces.
        """
        self.manifest, self.ledger = manifest, ledger
        self.rank, self.world, self.micro_slots = rank, world, micro_slots
        self.order = build_order(ledger, manifest)
        self.languages = tuple(sorted(manifest.languages))
        self.wait_seconds = 0.0
        for entry in ledger.entries:
            check_slots(entry.slots, world, micro_slots)
        self._index = {code: i for i, code in enumerate(self.languages)}
        self.storage = as_storage(prepared)
        self.lines = {
            name: TokenLine(self.storage, source.shards)
            for name, source in manifest.sources.items()
        }
        self._language_of = {name: s.language for name, s in manifest.sources.items()}
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="stream")
        threads = self.storage.readers if threads is None else threads
        self._readers = ThreadPoolExecutor(threads, "read") if threads > 1 else None
        self._read_ahead = read_ahead
        self._ahead: dict[int, Future[StepBatch]] = {}

    def batch(self, step: int) -> StepBatch:
        """This rank's share of a step; adds the time it had to wait to `wait_seconds`."""
        for ahead in range(step, step + 1 + self._read_ahead):
            if ahead not in self._ahead:
                self._ahead[ahead] = self._reader.submit(self.read, ahead)
        started = time.perf_counter()
        batch = self._ahead.pop(step).result()
        self.wait_seconds += time.perf_counter() - started
        return batch

    def read(self, step: int) -> StepBatch:
        """This rank's share of a step, read now."""
        slots = self.order.step(step)
        share = len(slots) // self.world
        mine = slots[self.rank * share : (self.rank + 1) * share]
        return StepBatch(
            micro_batches=[
                self._micro_batch(mine[i : i + self.micro_slots])
                for i in range(0, len(mine), self.micro_slots)
            ],
            families=tuple(sorted({slot.family for slot in slots})),
        )

    def sequences(self, which: Sequence[SequenceId]) -> Packed:
        """Tokens, targets and document bounds of some sequences, a row each."""
        T = self.ledger.sequence_length
        windows = np.empty((len(which), T + 1), np.int64)

        def read(row: int) -> None:
            sequence = which[row]
            self.lines[sequence.source].read_into(sequence.position * T, windows[row])

        if self._readers:
            list(self._readers.map(read, range(len(which))))
        else:
            for row in range(len(which)):
                read(row)
        return pack(windows, self.manifest.bos_id)

    def close(self) -> None:
        """Stops reading ahead."""
        self._reader.shutdown(wait=True, cancel_futures=True)
        if self._readers:
            self._readers.shutdown(wait=True, cancel_futures=True)

    def _micro_batch(self, slots: Sequence[Slot]) -> MicroBatch:
        which = [s for slot in slots for s in slot.sequences]
        packed = self.sequences(which)
        codes = [self._language_of[s.source] for s in which]
        segments: list[tuple[str, int, int]] = []
        row = 0
        for slot in slots:
            stop = row + len(slot.sequences)
            if segments and segments[-1][0] == slot.family:
                segments[-1] = (slot.family, segments[-1][1], stop)
            else:
                segments.append((slot.family, row, stop))
            row = stop
        return MicroBatch(
            inputs_BT=torch.from_numpy(packed.inputs),
            targets_BT=torch.from_numpy(packed.targets),
            documents_BT=torch.from_numpy(packed.documents),
            languages_B=torch.tensor([self._index[code] for code in codes]),
            segments=tuple(segments),
            slots=tuple(slots),
        )


def check_slots(slots: int, world: int, micro_slots: int) -> None:
    """Whether a step's slots cut into equal pieces.

    Raises:
        DataError: they do not; names the nearest numbers that do.
    """
    unit = world * micro_slots
    if slots % unit:
        below, above = slots // unit * unit, -(-slots // unit) * unit
        fits = f"{below} or {above}" if below else f"{above}"
        raise DataError(
            f"data.slots_per_step={slots} is not a multiple of {world} processes x "
            f"engine.micro_slots={micro_slots}: every process runs equal micro-batches; take {fits}"
        )
