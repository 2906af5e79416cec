"""Related documents of two languages in alternating chunks, so that every window holds both.

After CrossIC-PT (Wu et al., arXiv 2504.20484). Kept: two documents about the same thing in one
context, long ones cut into corresponding chunks that fit the window together, a plain next-token
loss. Left out: the [SPLIT] token and the sliding windows that start at it, since sequences here are
cut at fixed places; instead chunks alternate in one document and are so small that a window holds
both languages wherever it starts. Left out too: retrieval of related web text; a file of links
takes the place of its result.
"""

import math
import re
import unicodedata
from collections.abc import Iterator
from itertools import pairwise

from ..sources import Document
from .draws import draw
from .related import Read, related_documents

SEPARATOR = "\n\n"
"""Between chunks."""
LONGEST = 8
"""The longer text is cut to so many times the shorter one: what follows would stand alone."""
MINIMUM_WINDOW = 256
"""Bytes below which chunks of one language would shrink to a few letters."""
_TOLERANCE = 8
"""A chunk's border may lie one part in so many of a chunk from its proportional place."""
_CHARACTER = 16
"""Bytes by which a border inside a word may give way to a letter and its marks."""
_SENTENCE_ENDS = (". ", "? ", "! ", "؟ ", "۔ ", "। ", "։ ", "። ", "။ ", "។", "。", "？", "！")
_BORDERS = tuple(
    re.compile("|".join(map(re.escape, marks)).encode())
    for marks in (("\n\n",), ("\n",), _SENTENCE_ENDS, (" ",))
)
"""Where a text may be cut, best first: paragraphs, lines, sentences, words."""


def derive_interleaved(
    name: str,
    read: Read,
    *,
    language: str,
    other: str,
    window_bytes: int,
    links: dict[str, str] | None,
    seed: int,
) -> Iterator[Document]:
    """One document a pair of related ones: their chunks in turn, the first language by hash."""
    for one, two in related_documents(read, language, other, links):
        texts = [one.text, two.text]
        if draw(seed, name, "direction", one.id) & 1:
            texts.reverse()
        yield Document(id=f"{one.id}#{name}", text=interleave(*texts, window_bytes=window_bytes))


def interleave(first: str, second: str, *, window_bytes: int) -> str:
    """Two texts in alternating chunks: first, second, first, second, ...

    Both are cut into equally many chunks at proportional places, so that chunks that follow each
    other speak of the same. Two neighbours with their separators take at most `window_bytes`
    (UTF-8); no letter is lost but those that `LONGEST` cuts off.
    """
    a, b = (text.strip().encode() for text in (first, second))
    a, b = _cut_to(a, LONGEST * len(b)), _cut_to(b, LONGEST * len(a))
    room = window_bytes - 2 * (len(SEPARATOR) + _CHARACTER + 1)
    whole = len(a) + len(SEPARATOR) + len(b) <= window_bytes
    count = 1 if whole else math.ceil((1 + 2 / _TOLERANCE) * (len(a) + len(b)) / room)
    chunks = [c for both in zip(_chunks(a, count), _chunks(b, count), strict=True) for c in both]
    return SEPARATOR.join(chunk for chunk in chunks if chunk)


def _chunks(text: bytes, count: int) -> list[str]:
    """The text in `count` chunks, cut near its multiples of 1/count, without blanks at the ends."""
    slack = len(text) // (count * _TOLERANCE)
    borders = [0]
    for i in range(1, count):
        borders.append(max(borders[-1], _border(text, len(text) * i // count, slack)))
    return [text[start:end].decode().strip() for start, end in pairwise([*borders, len(text)])]


def _cut_to(text: bytes, limit: int) -> bytes:
    """The text's beginning, at most `limit` bytes, to a border in its last eighth."""
    if len(text) <= limit:
        return text
    slack = limit // (2 * _TOLERANCE)
    return text[: _border(text, limit - slack, slack)].rstrip()


def _border(text: bytes, place: int, slack: int) -> int:
    """The best place to cut within `slack` bytes of a place; never inside a character."""
    low, high = max(0, place - slack), min(len(text), place + slack)
    for marks in _BORDERS:
        ends = [match.end() for match in marks.finditer(text, low, high)]
        if ends:
            return min(ends, key=lambda end: (abs(end - place), end))
    while _inside_character(text, place):
        place -= 1
    for cut in range(place, max(0, place - _CHARACTER), -1):
        if not _inside_character(text, cut) and not _is_mark(text, cut):
            return cut
    return place


def _inside_character(text: bytes, place: int) -> bool:
    return text[place] & 0xC0 == 0x80


def _is_mark(text: bytes, place: int) -> bool:
    """Whether the character that begins here belongs to the letter before it."""
    following = text[place : place + 4].decode("utf-8", "ignore")[0]
    return unicodedata.category(following).startswith("M")
