"""How is a line of tokens read? Block by block, each checked against its sha256 when first used.

A line is the shards of one table. The table, a shard's index and a block are read when they are
first needed, so that opening a line of any length costs nothing. Read next: `blocks.py` (what a
block is, and what gives it), `packing.py` (how a line becomes sequences).
"""

import io
import json
import weakref
from bisect import bisect_right
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .blocks import Blocks, Storage, parse_blocks, starts_of
from .errors import DamagedShard
from .shards import Shard, ShardSet, index_path, parse_table
from .storage import as_storage

Int64 = npt.NDArray[np.int64]

_HELD_SHARDS = 2048
"""Shards whose blocks a process remembers, about 10 KB each; their files: `local.most_open`."""


class TokenLine:
    """One line of tokens. May be read by several threads, and pickled.

    Raises DamagedShard, naming the file, when what is read is not what the manifest describes.
    """

    def __init__(self, storage: Storage | Path | str, shards: ShardSet) -> None:
        """
        Args:
            storage: where the prepared folder lies, or the folder; share one between lines.
            shards: the line's shards.
        """
        self.storage = as_storage(storage)
        self.shard_set = shards
        self.tokens = shards.tokens
        self.documents = shards.documents
        self._shards: tuple[Shard, ...] | None = None
        self._starts = [0]
        self._held: dict[int, weakref.ref[_OpenShard]] = {}

    def __reduce__(self) -> tuple[type["TokenLine"], tuple[Storage, ShardSet]]:
        return TokenLine, (self.storage, self.shard_set)

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The line's shards, in order."""
        if self._shards is None:
            shards = read_table(self.storage, self.shard_set)
            self._starts = starts_of([shard.tokens for shard in shards]).tolist()
            self._shards = shards
        return self._shards

    def read(self, start: int, stop: int) -> Int64:
        """Tokens [stop - start] from `start` up to `stop`, across blocks and shards."""
        if stop < start:
            raise IndexError(f"tokens {start}:{stop} of a line of {self.tokens} tokens")
        tokens = np.empty(stop - start, np.int64)
        self.read_into(start, tokens)
        return tokens

    def read_into(self, start: int, tokens: Int64) -> None:
        """Fills an array with the tokens from `start` on."""
        stop, done = start + len(tokens), 0
        if not 0 <= start <= stop <= self.tokens:
            raise IndexError(f"tokens {start}:{stop} of a line of {self.tokens} tokens")
        if start == stop:
            return
        shards, starts = self._shards or self.shards, self._starts
        while start < stop:
            number = bisect_right(starts, start) - 1
            held = self._held.get(number)
            opened = held() if held is not None else None
            if opened is None:
                opened = _open_shard(self.storage, shards[number])
                self._held[number] = weakref.ref(opened)
            first = starts[number]
            piece = opened.read(start - first, min(stop, starts[number + 1]) - first)
            tokens[done : done + len(piece)] = piece
            start, done = start + len(piece), done + len(piece)

    def shard_bounds(self) -> Int64:
        """[shards + 1] where each shard begins on the line, and where the last one ends."""
        _ = self.shards
        return np.array(self._starts, np.int64)

    def document_bounds(self) -> Int64:
        """[documents + 1] where each document begins on the line, and where the last one ends."""
        return starts_of(self._per_document("document_tokens"))

    def document_bytes(self) -> Int64:
        """[documents] UTF-8 bytes of each document's text."""
        return self._per_document("document_bytes")

    def document_ids(self) -> list[str]:
        """[documents] ids, read from the shards' JSON members."""
        ids: list[str] = []
        for shard in self.shards:
            index = _read_index(self.storage, shard, "json_offset", "json_size")
            for offset, size in zip(index["json_offset"], index["json_size"], strict=True):
                member = self.storage.read_range(shard.path, int(offset), int(size))
                ids.extend(json.loads(member.decode("utf-8", "surrogatepass"))["ids"])
        return ids

    def _per_document(self, name: str) -> Int64:
        arrays = [_read_index(self.storage, shard, name)[name] for shard in self.shards]
        return np.concatenate([np.zeros(0, np.int64), *arrays])


def read_table(storage: Storage, shards: ShardSet) -> tuple[Shard, ...]:
    """The shards of a set; raises DamagedShard when the table is missing or another one."""
    if not shards.table:
        return ()
    return parse_table(storage.read_checked(shards.table, shards.sha256))


class _OpenShard:
    """A shard being read, as a line of tokens of its own."""

    __slots__ = ("__weakref__", "_blocks", "_dtype", "_itemsize", "_starts")

    def __init__(self, storage: Storage, shard: Shard, blocks: Blocks) -> None:
        self._blocks = storage.open_shard(shard, blocks)
        self._starts, self._dtype = blocks.starts, blocks.dtype
        self._itemsize = blocks.dtype.itemsize

    def read(self, start: int, stop: int) -> npt.NDArray[np.unsignedinteger]:
        """Tokens from `start` on: up to `stop`, or to the end of the block if that comes first."""
        block = bisect_right(self._starts, start) - 1
        first = self._starts[block]
        count = min(stop, self._starts[block + 1]) - start
        data = self._blocks.read(block, (start - first) * self._itemsize, count * self._itemsize)
        return np.frombuffer(data, self._dtype, count)


@lru_cache(maxsize=_HELD_SHARDS)
def _open_shard(storage: Storage, shard: Shard) -> _OpenShard:
    path = index_path(shard.path)
    blocks = parse_blocks(storage.read_checked(path, shard.index_sha256))
    if blocks.starts[-1] != shard.tokens:
        raise DamagedShard(
            f"{storage.name_of(path)}: {blocks.starts[-1]} tokens, the table says {shard.tokens}: "
            "run `xylem prepare --force`"
        )
    return _OpenShard(storage, shard, blocks)


def _read_index(storage: Storage, shard: Shard, *names: str) -> dict[str, Int64]:
    data = storage.read_checked(index_path(shard.path), shard.index_sha256)
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in names}
