"""How are more documents sorted than fit in memory? In sorted runs, read back range by range.

A run is an Arrow file of as many documents as one process holds at once, sorted by (order, id),
line by line, in small batches that each cover one cell of the order's range. What lies in a range
of the order is then read from every run without reading the rest. Read next: `tasks.py`.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa

from .documents import HASH_RANGE

DOCUMENT_BYTES = 200
"""What a document takes in memory beside its text and id."""
_CELL_BYTES = 65_536
_MOST_CELL_BITS = 16
_SCHEMA = pa.schema(
    [("order", pa.uint64()), ("id", pa.large_string()), ("text", pa.large_binary())]
)

Row = tuple[int, str, bytes]
"""A document: its order, below HASH_RANGE, its id, its text in UTF-8."""
Run = Mapping[str, Any]
"""`file`, its name; `lines`: line -> `first` batch, `bits` of a cell's number, `cells` it has."""


class RunWriter:
    """Takes documents of several lines in any order, and writes them as sorted runs."""

    def __init__(self, folder: Path, memory_bytes: int) -> None:
        """
        Args:
            folder: where the runs are written, `00000.arrow`, `00001.arrow`, …
            memory_bytes: documents held at once.
        """
        self._folder, self._memory_bytes = folder, memory_bytes
        self._rows: dict[str, list[Row]] = {}
        self._pending = 0
        self._runs: list[dict[str, Any]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, line: str, order: int, document_id: str, text: bytes) -> None:
        """Takes a document; raises OSError (a full disk)."""
        self._rows.setdefault(line, []).append((order, document_id, text))
        self._pending += len(text) + len(document_id) + DOCUMENT_BYTES
        if self._pending >= self._memory_bytes:
            self._write()

    def close(self) -> list[dict[str, Any]]:
        """Writes what is left and returns the runs, in the order of their documents."""
        if self._rows:
            self._write()
        return self._runs

    def _write(self) -> None:
        name = f"{len(self._runs):05d}.arrow"
        lines: dict[str, Any] = {}
        with arrow_file(self._folder / name, _SCHEMA) as add:
            batches = 0
            for line in sorted(self._rows):
                rows = self._rows.pop(line)
                rows.sort(key=itemgetter(0, 1))
                bits = _cell_bits(sum(len(text) for _, _, text in rows))
                numbers: list[int] = []
                lines[line] = {"first": batches, "bits": bits, "cells": numbers}
                for cell, part in _cells(rows, bits):
                    add(part)
                    numbers.append(cell)
                    batches += 1
        self._runs.append({"file": name, "lines": lines})
        self._pending = 0


def read_range(runs: Iterable[tuple[Path, Run]], line: str, low: int, high: int) -> list[Row]:
    """The documents of a line with low <= order < high, sorted by (order, id).

    Equal ones keep the order of the runs. `runs` are pairs of folder and run.
    """
    found: list[Row] = []
    for folder, run in runs:
        where = run["lines"].get(line)
        if where is None:
            continue
        shift = 64 - where["bits"]
        wanted = [
            where["first"] + number
            for number, cell in enumerate(where["cells"])
            if cell << shift < high and (cell + 1) << shift > low
        ]
        if not wanted:
            continue
        for batch in read_arrow(folder / run["file"], wanted):
            columns = (column.to_pylist() for column in batch.columns)
            found.extend(row for row in zip(*columns, strict=True) if low <= row[0] < high)
    found.sort(key=itemgetter(0, 1))
    return found


def bucket_range(bucket: int, buckets: int) -> tuple[int, int]:
    """The part of the order's range that a bucket covers."""
    return bucket * HASH_RANGE // buckets, (bucket + 1) * HASH_RANGE // buckets


def bucket_count(text_bytes: int, documents: int, memory_bytes: int) -> int:
    """Buckets, a power of two, of which each fits in memory; 1 for a line that does."""
    share = (text_bytes + documents * DOCUMENT_BYTES) / memory_bytes
    return 1 << max(0, math.ceil(math.log2(share))) if share > 1 else 1


@contextmanager
def arrow_file(path: Path, schema: pa.Schema) -> Iterator[Callable[[Sequence[Any]], None]]:
    """An Arrow file being written: call it with the rows of a batch. Raises OSError."""
    with open(path, "wb") as file:
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        writer = pa.ipc.new_file(file, schema, options=options)

        def add(rows: Sequence[Any]) -> None:
            columns = zip(*rows, strict=True)
            arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))

        yield add
        writer.close()
        file.flush()
        os.fsync(file.fileno())


def read_arrow(
    path: Path, batches: Sequence[int] | None = None, columns: list[int] | None = None
) -> Iterator[pa.RecordBatch]:
    """Batches of an Arrow file: all, or those of the given numbers and columns."""
    options = pa.ipc.IpcReadOptions(included_fields=columns)
    with pa.OSFile(str(path)) as file:
        reader = pa.ipc.open_file(file, options=options)
        for number in range(reader.num_record_batches) if batches is None else batches:
            yield reader.get_batch(number)


def _cell_bits(text_bytes: int) -> int:
    return min(_MOST_CELL_BITS, max(0, (text_bytes // _CELL_BYTES).bit_length()))


def _cells(rows: Sequence[Row], bits: int) -> Iterator[tuple[int, Sequence[Row]]]:
    start = 0
    while start < len(rows):
        cell = rows[start][0] >> (64 - bits)
        stop = start + 1
        while stop < len(rows) and rows[stop][0] >> (64 - bits) == cell:
            stop += 1
        yield cell, rows[start:stop]
        start = stop
