"""Which text does the tokenizer see? Each language's first documents by hash, up to its budget.

Each task that reads the corpus keeps the documents that could be in the sample, whatever the
language's budget turns out to be. Read next: `../tokenizer.py`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from .documents import HASH_RANGE
from .runs import arrow_file, read_arrow

_SCHEMA = pa.schema([("place", pa.uint64()), ("size", pa.int64()), ("text", pa.large_binary())])
_BATCH = 512


class CandidateWriter:
    """Takes a task's training documents, and writes those that come first by hash.

    Holds at most twice `sample_bytes` of text.
    """

    def __init__(self, sample_bytes: int) -> None:
        self._sample_bytes = sample_bytes
        self._rows: list[tuple[int, int, bytes]] = []
        self._pending = self._seen = 0
        self._below = HASH_RANGE

    def add(self, place: int, text: bytes) -> None:
        """Takes a document; `place` is its keyed hash."""
        self._seen += 1
        if place < self._below:
            self._rows.append((place, self._seen, text))
            self._pending += len(text)
            if self._pending > 2 * self._sample_bytes:
                self._cut()

    def close(self, path: Path) -> None:
        """Writes the candidates in the order in which they came; raises OSError."""
        self._cut()
        self._rows.sort(key=lambda row: row[1])
        with arrow_file(path, _SCHEMA) as add:
            for start in range(0, len(self._rows), _BATCH):
                part = self._rows[start : start + _BATCH]
                add([(place, len(text), text) for place, _, text in part])

    def _cut(self) -> None:
        """Keeps the first documents by hash up to the one that goes beyond the sample's bytes."""
        self._rows.sort(key=lambda row: row[:2])
        self._pending = 0
        for number, (place, _, text) in enumerate(self._rows, 1):
            self._pending += len(text)
            if self._pending > self._sample_bytes:
                del self._rows[number:]
                self._below = place
                return


def sample_texts(candidates: Sequence[Path], budget: int) -> Iterator[str]:
    """Whole documents that come first by hash, until the budget; the last one is cut.

    In the order of the corpus. `candidates` are what `CandidateWriter` wrote, in that order too.
    """
    columns: list[list[np.ndarray[tuple[int], np.dtype[np.generic]]]] = [[], []]
    for path in candidates:
        for batch in read_arrow(path, columns=[0, 1]):
            for column, values in zip(columns, batch.columns, strict=True):
                column.append(values.to_numpy())
    if not columns[0]:
        return
    places, sizes = (np.concatenate(column) for column in columns)
    ranked = np.argsort(places, kind="stable")
    ends = np.cumsum(sizes[ranked])
    whole = int(np.searchsorted(ends, budget, side="right"))
    limit = int(places[ranked[whole]]) if whole < len(ranked) else HASH_RANGE
    rest = budget - (int(ends[whole - 1]) if whole else 0)
    for path in candidates:
        for batch in read_arrow(path):
            for place, _, text in zip(*(c.to_pylist() for c in batch.columns), strict=True):
                if place < limit:
                    yield text.decode()
                elif place == limit and rest:
                    part = text[:rest].decode("utf-8", "ignore")
                    yield part[: max(part.rfind("\n"), part.rfind(" ")) + 1] or part
                    rest = 0
