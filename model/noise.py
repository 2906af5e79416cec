"""Random numbers that belong to a token, not to a process.

Masks and dropouts must fall alike however a batch is cut over processes and micro-batches, so they
are computed from a key of the sequence and the token's place instead of drawn from a generator:
SplitMix64's mixing function (Steele, Lea and Flood 2014) over a counter, modulo 2^64.
Shapes: B sequences, T positions. Read next: `routers.py`.
"""

import hashlib

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)


def mix(values: Tensor) -> Tensor:
    """SplitMix64's finaliser, elementwise over int64: neighbours become unrelated."""
    values = (values ^ _shift_right(values, 30)) * _FIRST
    values = (values ^ _shift_right(values, 27)) * _SECOND
    return values ^ _shift_right(values, 31)


def row_keys(seed: int, step: int, rows_B: Tensor) -> Tensor:
    """A key for every sequence of a step.

    Args:
        seed: the run's.
        step: counted from 0.
        rows_B: each sequence's place in the global batch, int64.
    Returns:
        keys_B, int64.
    """
    return mix(mix(rows_B + _word(f"{seed}/{step}")) + _GOLDEN)


def uniform(keys_B: Tensor, purpose: str, count: int) -> Tensor:
    """Numbers of [0, 1) for some counters of each sequence.

    Args:
        keys_B: from `row_keys`.
        purpose: what they are for; another text gives unrelated numbers.
        count: how many a sequence: its positions, or positions times choices.
    Returns:
        float32 [B, count], with 24 random bits.
    """
    counter = torch.arange(1, count + 1, device=keys_B.device) * _GOLDEN
    bits = mix(mix(keys_B + _word(purpose))[:, None] + counter)
    return _shift_right(bits, 40).float() * 2.0**-24


def _word(text: str) -> int:
    digest = hashlib.sha256(text.encode()).digest()[:8]
    return int.from_bytes(digest, "little", signed=True)


def _shift_right(values: Tensor, bits: int) -> Tensor:
    """A shift that fills with zeros; PyTorch's fills with the sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)
