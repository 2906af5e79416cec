"""Words of any script without a tokenizer per language, and hashes of their n-grams.

Duplicates and contamination must mean the same in 2,000 languages, most of which no word tokenizer
knows. So words are cut by script, character by character, whatever the language label says:

- scripts with spaces: a run of letters, marks and digits is a word;
- Han, kana, Bopomofo, Yi: each character is a unit, counted as half a word;
- Tibetan: each syllable (what stands between two tshegs) is half a word;
- Thai, Lao, Khmer, Burmese and their neighbours: each letter with its marks is a quarter of a word.

The shares are rough (words of news text in Chinese have 1.5 to 2 characters, in Thai about four
letters). An n-gram is a window worth n words, so 13 words are 26 Chinese characters or 52 Thai
letters, and an edited word breaks about as many n-grams in every script. Read next:
`duplicates.py`, `contamination.py`.
"""

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import regex

U64 = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]

WORTH = 4
"""Parts of a word in which units are counted."""
_HALVES = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Yi}\u30FC"
_QUARTERS = (
    r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tai_Tham}\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Viet}"
    r"\p{Javanese}\p{Balinese}"
)
_UNITS = regex.compile(
    rf"(?V1)[[{_HALVES}{_QUARTERS}]&&[\p{{L}}\p{{N}}]]\p{{M}}*"
    rf"|[[\p{{L}}\p{{N}}]--[{_HALVES}{_QUARTERS}]][[\p{{L}}\p{{M}}\p{{N}}]--[{_HALVES}{_QUARTERS}]]*"
)
_UNSPACED = regex.compile(rf"(?V1)[{_HALVES}{_QUARTERS}\p{{Tibetan}}]")
_HALF = regex.compile(rf"(?V1)[{_HALVES}\p{{Tibetan}}]")
_QUARTER = regex.compile(rf"(?V1)[{_QUARTERS}]")
_INVISIBLE = dict.fromkeys(
    [0x00AD, 0x061C, 0x0640, *range(0x200B, 0x2010), *range(0x202A, 0x202F), 0x2060, 0xFEFF]
)
"""Soft hyphen, tatweel, joiners, direction marks: they change no word."""

_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 1 << 64)
_CACHED_WORDS = 1 << 20


def normalised(text: str) -> str:
    """Text as it is compared: NFKC, case folded, no invisible characters, single spaces."""
    if text.isascii():
        return " ".join(text.lower().split())
    text = unicodedata.normalize("NFKC", text.translate(_INVISIBLE)).casefold()
    return " ".join(unicodedata.normalize("NFC", text).split())


def words(text: str) -> list[str]:
    """The units of a text in their order: words, or characters where words have no spaces."""
    units: list[str] = _UNITS.findall(normalised(text))
    return units


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """The n-grams of a text: for each unit at which one begins, where it ends, and its hash.

    Arrays of equal length; n-gram i is `units[i:ends[i]]`. A text that is worth fewer than n words
    has none.
    """

    ends: Indices
    hashes: U64


class WordHashes:
    """Units with their hashes and worths, of which n-grams are hashed without being written out.

    A unit's hash is 64 bits of BLAKE2b; an n-gram's is a polynomial of its units' hashes, mixed.
    """

    __slots__ = ("_starts", "_sums", "size")

    def __init__(self, units: Sequence[str], *, digits: bool = True) -> None:
        """`digits=False` takes every number for the same one."""
        self.size = len(units)
        """Number of units."""
        word_hash = _word_hash if digits else _word_hash_without_digits
        hashes = np.fromiter(map(word_hash, units), np.uint64, self.size)
        powers, _ = _powers(_capacity(self.size))
        self._sums = np.zeros(self.size + 1, np.uint64)
        np.cumsum(hashes * powers[: self.size], out=self._sums[1:])
        self._starts: Indices | None = None
        if _UNSPACED.search("".join(units)):
            worths = np.fromiter(map(_worth, units), np.int64, self.size)
            self._starts = np.concatenate([[0], np.cumsum(worths)])

    @property
    def worth(self) -> float:
        """What all units together are worth, in words."""
        return self.size if self._starts is None else int(self._starts[-1]) / WORTH

    def windows(self, n: int) -> Windows:
        """Every n-gram: at each unit, the shortest run that is worth n words."""
        if self._starts is None:
            starts = np.arange(max(self.size - n + 1, 0))
            return Windows(ends=starts + n, hashes=self.spans(starts, starts + n))
        ends = np.searchsorted(self._starts, self._starts[:-1] + n * WORTH)
        ends = ends[ends <= self.size].astype(np.int64)
        starts = np.arange(len(ends))
        return Windows(ends=ends, hashes=self.spans(starts, ends))

    def spans(self, starts: Indices, ends: Indices) -> U64:
        """The hashes of `units[starts[i]:ends[i]]`."""
        _, inverses = _powers(_capacity(self.size))
        return _mixed((self._sums[ends] - self._sums[starts]) * inverses[starts])

    def whole(self) -> int:
        """The hash of all units as one n-gram."""
        zero = np.zeros(1, np.int64)
        return int(self.spans(zero, zero + self.size)[0])


@lru_cache(maxsize=_CACHED_WORDS)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


@lru_cache(maxsize=_CACHED_WORDS)
def _word_hash_without_digits(word: str) -> int:
    return _word_hash("0" if word.isnumeric() else word)


@lru_cache(maxsize=_CACHED_WORDS)
def _worth(unit: str) -> int:
    if _HALF.match(unit):
        return WORTH // 2
    return WORTH // 4 if _QUARTER.match(unit) else WORTH


def _capacity(size: int) -> int:
    return 1 << max(size, 1024).bit_length()


@lru_cache(maxsize=2)
def _powers(size: int) -> tuple[U64, U64]:
    """The first powers of an odd base and of its inverse, modulo 2^64."""
    base, inverse = np.full(size, _BASE, np.uint64), np.full(size, _INVERSE, np.uint64)
    base[0] = inverse[0] = 1
    return np.cumprod(base), np.cumprod(inverse)


def _mixed(values: U64) -> U64:
    """SplitMix64's finaliser: every bit of the result depends on every bit of the value."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
