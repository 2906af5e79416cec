"""Transliterated copies: the text of a language in Latin letters, by uroman.

uroman (Hermjakob et al., ACL 2018) maps any script to Latin letters by rules and tables. It is
slow, so each word is romanised by itself and kept in a cache: docs/TRANSFORMS.md says how often
that differs from romanising whole lines.
"""

from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from typing import TYPE_CHECKING

import regex

from ..sources import Document

if TYPE_CHECKING:
    from uroman import Uroman

_PIECES = regex.compile(r"\S{1,500}\p{M}* ?|\s+")
"""Words, each with the space after it, which decides how punctuation is written; and other blanks.
Long stretches without blanks come in parts, as uroman's memory grows with their length."""
_CACHED_LENGTH = 32
"""Characters of the longest word that is kept in the cache."""


def derive_romanized(
    name: str, documents: Iterable[Document], *, language: str
) -> Iterator[Document]:
    """The documents in Latin letters; those that romanisation leaves as they are, left out."""
    iso639_3 = language.split("_")[0]
    for document in documents:
        text = romanize(document.text, iso639_3)
        if text.strip() and text != document.text:
            yield Document(id=f"{document.id}#{name}", text=text)


def romanize(text: str, iso639_3: str) -> str:
    """A text in Latin letters, by the rules of a language where uroman has such; ASCII is kept."""
    pieces: list[str] = []
    for piece in _PIECES.findall(text):
        if piece.isascii():
            pieces.append(piece)
        elif len(piece) <= _CACHED_LENGTH:
            pieces.append(_romanize_cached(piece, iso639_3))
        else:
            pieces.append(load_uroman().romanize_string(piece, lcode=iso639_3))
    return "".join(pieces)


@lru_cache(maxsize=1 << 18)
def _romanize_cached(piece: str, iso639_3: str) -> str:
    return str(load_uroman().romanize_string(piece, lcode=iso639_3))


@cache
def load_uroman() -> "Uroman":
    """uroman with its tables, read once a process."""
    from uroman import Uroman  # takes three seconds: only where it is needed

    return Uroman()
