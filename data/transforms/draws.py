"""The one source of chance in a transform: a hash of the seed, the source's name and the place."""

import hashlib

DRAWS = 1 << 64
"""A draw is one of so many whole numbers, from 0 on."""


def draw(seed: int, name: str, *place: str) -> int:
    """A whole number below `DRAWS`, the same wherever and whenever it is asked for."""
    key = "\0".join((str(seed), name, *place)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")
