"""What must a storage of prepared folders do? Give the checked blocks of a shard, and small files.

A block is the unit of reading, of checking and of caching: a shard's side index says where each
lies and what its sha256 is. Read next: `local.py` and `remote.py`, the two storages.
"""

import io
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .shards import Shard


@dataclass(frozen=True, slots=True)
class Blocks:
    """Where the blocks of one shard lie, as its side index says."""

    dtype: np.dtype[np.unsignedinteger]
    """Of a token in the file."""
    starts: list[int]
    """[blocks + 1] first token of each block, and where the last block ends."""
    offsets: list[int]
    """[blocks] first byte of each block's tokens in the tar."""
    sha256: bytes
    """[blocks x 32] of each block's tokens, one after the other."""

    def size(self, block: int) -> int:
        """Bytes of a block."""
        return (self.starts[block + 1] - self.starts[block]) * self.dtype.itemsize

    def digest(self, block: int) -> bytes:
        """The sha256 that a block must have."""
        return self.sha256[block * 32 : block * 32 + 32]


@dataclass(slots=True, kw_only=True)
class StorageCounts:
    """What a storage did since it was opened. A local folder counts nothing: it is fast."""

    requests: int = 0
    """Ranges and files that the store was asked for, repetitions included."""
    bytes_fetched: int = 0
    """Bytes that it sent."""
    cache_hits: int = 0
    """Reads that were answered from the cache."""
    cache_damaged: int = 0
    """Cached blocks that were not what they should be, and were fetched again."""
    retries: int = 0
    """Requests that were repeated, because the store failed, stalled or sent something else."""
    seconds_waited: float = 0.0
    """Time spent waiting for the store, pauses included; threads that wait together add up."""


class BlockReader(Protocol):
    """Random access to the blocks of one shard."""

    def read(self, block: int, start: int, size: int) -> bytes:
        """`size` bytes of a block from its byte `start` on, of a block that is what it should be.

        Raises DamagedShard, which names the file and the bytes, and OSError.
        """
        ...


class Storage(Protocol):
    """A prepared folder, wherever it lies. Hashable."""

    @property
    def place(self) -> str:
        """The folder or URL, as it is written in messages."""
        ...

    @property
    def readers(self) -> int:
        """How many threads it pays to read with; reads from several threads are safe."""
        ...

    @property
    def counts(self) -> StorageCounts:
        """What it did so far."""
        ...

    def __hash__(self) -> int: ...

    def name_of(self, path: str) -> str:
        """How a path of the folder is written in messages."""
        ...

    def read(self, path: str) -> bytes:
        """A whole small file; raises FileNotFoundError, OSError."""
        ...

    def read_checked(self, path: str, sha256: str) -> bytes:
        """A whole small file; raises DamagedShard when it is missing or has another sha256."""
        ...

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        """A part of a file, unchecked but of that size; raises DamagedShard, OSError."""
        ...

    def open_shard(self, shard: Shard, blocks: Blocks) -> BlockReader:
        """Random access to a shard's blocks."""
        ...


def parse_blocks(index: bytes) -> Blocks:
    """Where the blocks lie, from a side index's bytes."""
    with np.load(io.BytesIO(index), allow_pickle=False) as arrays:
        return Blocks(
            dtype=np.dtype(f"<u{int(arrays['token_bytes'])}"),
            starts=starts_of(arrays["block_tokens"]).tolist(),
            offsets=arrays["block_offset"].tolist(),
            sha256=arrays["block_sha256"].tobytes(),
        )


def starts_of(lengths: list[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """[n + 1] cumulative starts of n lengths."""
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def other_bytes(where: str, offset: int, size: int, found: str) -> str:
    """The message for a part of a shard that is not what it should be."""
    return (
        f"{where}: its bytes {offset} to {offset + size} are not what the manifest describes "
        f"({found}): copy the shard again, or leave it out with `xylem mixture RUN --quarantine`"
    )
