"""In which order is a source read? A keyed permutation of its positions, another in each epoch.

A Feistel network with cycle walking: any index is computed alone, forwards and backwards, so that
neither a shuffle buffer nor an index is ever stored. Read next: `order.py`.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]

ROUNDS = 6
_MASK = 0xFFFFFFFFFFFFFFFF
_WORTH_ARRAYS = 8
"""Reads from which on a pass over arrays costs less than one after the other."""


def permute(index: int, size: int, key: bytes) -> int:
    """Where the index-th read of an epoch lies.

    Args:
        index: in range(size).
        key: at least 48 bytes, eight a round.
    Returns:
        A position in range(size); another for each index.
    """
    low = _low_bits(size)
    low_mask, high_mask = (1 << low) - 1, (1 << (_bits(size) - low)) - 1
    k0, k1, k2, k3, k4, k5 = _round_keys(key)
    while True:
        high, rest = index >> low, index & low_mask
        high ^= _mix(rest ^ k0) & high_mask
        rest ^= _mix(high ^ k1) & low_mask
        high ^= _mix(rest ^ k2) & high_mask
        rest ^= _mix(high ^ k3) & low_mask
        high ^= _mix(rest ^ k4) & high_mask
        rest ^= _mix(high ^ k5) & low_mask
        index = high << low | rest
        if index < size:
            return index


def permute_many(indexes: Sequence[int], sizes: Sequence[int], keys: Sequence[bytes]) -> list[int]:
    """`permute` for many reads, each of its own size and key: a pass of the network for all."""
    if len(indexes) < _WORTH_ARRAYS:
        return [permute(*each) for each in zip(indexes, sizes, keys, strict=True)]
    bits = [_bits(size) for size in sizes]
    low = np.array([b // 2 for b in bits], np.uint64)
    low_mask = np.array([(1 << b // 2) - 1 for b in bits], np.uint64)
    high_mask = np.array([(1 << b - b // 2) - 1 for b in bits], np.uint64)
    rounds = np.array([_round_keys(key) for key in keys], np.uint64).T
    found = np.array(indexes, np.uint64)
    high, rest = found >> low, found & low_mask
    for i in range(0, ROUNDS, 2):
        high ^= _mix_array(rest ^ rounds[i]) & high_mask
        rest ^= _mix_array(high ^ rounds[i + 1]) & low_mask
    # Some walk on, fewer than half.
    return [
        at if at < size else permute(at, size, key)
        for at, size, key in zip((high << low | rest).tolist(), sizes, keys, strict=True)
    ]


def unpermute(positions: Int64, size: int, key: bytes) -> Int64:
    """The indexes at which positions are read: `permute` backwards, for many at once.

    Args:
        positions: [n] in range(size).
    """
    low = np.uint64(_low_bits(size))
    low_mask = np.uint64((1 << _low_bits(size)) - 1)
    high_mask = np.uint64((1 << (_bits(size) - _low_bits(size))) - 1)
    keys = [np.uint64(k) for k in _round_keys(key)]
    found = positions.astype(np.uint64)
    walking = np.arange(len(found))
    while len(walking):
        high, rest = found[walking] >> low, found[walking] & low_mask
        for i in range(ROUNDS - 2, -2, -2):
            rest ^= _mix_array(high ^ keys[i + 1]) & low_mask
            high ^= _mix_array(rest ^ keys[i]) & high_mask
        found[walking] = high << low | rest
        walking = walking[found[walking] >= np.uint64(size)]
    return found.astype(np.int64)


@lru_cache(maxsize=4096)
def epoch_key(seed: int, source: str, epoch: int) -> bytes:
    """The key of one source's permutation in one epoch."""
    return hashlib.sha512(f"{seed}/{source}/{epoch}".encode()).digest()


@lru_cache(maxsize=4096)
def _round_keys(key: bytes) -> tuple[int, ...]:
    return tuple(int.from_bytes(key[8 * i : 8 * i + 8], "little") for i in range(ROUNDS))


def _bits(size: int) -> int:
    """Bits of the network: enough for every index, and at least one on each side."""
    return max(2, (size - 1).bit_length())


def _low_bits(size: int) -> int:
    return _bits(size) // 2


def _mix(x: int) -> int:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014)."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
    return x ^ (x >> 31)


def _mix_array(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Passes:
    """The reads of one source from some point on: epoch after epoch, bad positions passed over."""

    def __init__(
        self,
        seed: int,
        source: str,
        length: int,
        *,
        begin: tuple[int, int] = (0, 0),
        bad: Int64 | None = None,
    ) -> None:
        """
        Args:
            length: positions of an epoch, n.
            begin: (epoch, index in it) of the first read.
            bad: sorted positions that are never read.
        """
        self.seed, self.source, self.length = seed, source, length
        self.begin = begin
        self.bad = bad if bad is not None and len(bad) else None
        self.readable = length - (0 if self.bad is None else len(self.bad))
        self._bad_indexes: dict[int, Int64] = {}

    def locate(self, number: int) -> tuple[int, int]:
        """(epoch, index in it) of the number-th read from here; for a border, of the next read."""
        epoch, index = self.begin
        if self.bad is None:
            further, index = divmod(index + number, self.length)
            return epoch + further, index
        left = self.length - index - len(self._bad_from(epoch, index))
        if number < left:
            return epoch, self._good(epoch, index, number)
        further, number = divmod(number - left, self.readable)
        return epoch + 1 + further, self._good(epoch + 1 + further, 0, number)

    def read(self, number: int) -> tuple[int, int]:
        """(epoch, position) of the number-th read from here."""
        epoch, index = self.locate(number)
        return epoch, permute(index, self.length, epoch_key(self.seed, self.source, epoch))

    def _good(self, epoch: int, index: int, number: int) -> int:
        bad = self._bad_from(epoch, index)
        before = bad - index - np.arange(len(bad))
        return index + number + int(np.searchsorted(before, number, side="right"))

    def _bad_from(self, epoch: int, index: int) -> Int64:
        assert self.bad is not None
        if epoch not in self._bad_indexes:
            if len(self._bad_indexes) > 2:
                self._bad_indexes.clear()
            key = epoch_key(self.seed, self.source, epoch)
            self._bad_indexes[epoch] = np.sort(unpermute(self.bad, self.length, key))
        indexes = self._bad_indexes[epoch]
        return indexes[np.searchsorted(indexes, index) :]
