"""Code switching: terms of a dictionary are replaced by their translations, inside running text.

After EntityCS (Whitehouse et al., arXiv 2210.12540), which replaces the hyperlinked entities of
English Wikipedia. Kept: replacement by a chosen probability, one of several labels at random. Left
out: the marks around an entity and the masking objective, which a next-token loss has no use for;
a dictionary file stands in for the hyperlinks.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import regex

from ..sources import Document
from .draws import DRAWS, draw
from .tables import read_rows

if TYPE_CHECKING:
    from ahocorasick import Automaton

_WORD_BORDER = regex.compile(r"\b", regex.WORD)
"""Unicode's default word border (UAX 29). It stands between any two letters of the scripts that are
written without spaces (Thai, Lao, Khmer, Burmese, Han, Hiragana), and never before a mark."""


class _LowerCase(dict[int, int]):
    """A table for `str.translate` that keeps a text's length: İ, whose lower case is two, stays."""

    def __missing__(self, code: int) -> int:
        lower = chr(code).lower()
        self[code] = ord(lower) if len(lower) == 1 else code
        return self[code]


_LOWER = _LowerCase()


def load_dictionary(path: str, *, ignore_case: bool) -> dict[str, tuple[str, ...]]:
    """Term -> replacements. Lines of one term add up; raises DataError with a line's number."""
    terms: dict[str, list[str]] = {}
    for _, (term, *replacements) in read_rows(path, "a term and one or more replacements"):
        known = terms.setdefault(term.translate(_LOWER) if ignore_case else term, [])
        known.extend(each for each in replacements if each not in known)
    return {term: tuple(replacements) for term, replacements in terms.items()}


def derive_switched(
    name: str,
    documents: Iterable[Document],
    *,
    dictionary: dict[str, tuple[str, ...]],
    share: float,
    ignore_case: bool,
    seed: int,
) -> Iterator[Document]:
    """The documents in which something was replaced; the others would be plain repetitions.

    Whether the n-th occurrence of a term in a document is replaced, and by which of its
    replacements, depends on seed, source name, document id, term and n alone.
    """
    automaton = build_automaton(dictionary)
    for document in documents:
        text = document.text
        searched = text.translate(_LOWER) if ignore_case else text
        parts: list[str] = []
        done = 0
        seen: Counter[str] = Counter()
        for start, end in occurrences(searched, automaton):
            term = searched[start:end]
            place = (document.id, term, str(seen[term]))
            seen[term] += 1
            if draw(seed, name, "switch", *place) >= share * DRAWS:
                continue
            choices = dictionary[term]
            parts += text[done:start], choices[draw(seed, name, "choice", *place) % len(choices)]
            done = end
        if done:
            yield Document(id=f"{document.id}#{name}", text="".join((*parts, text[done:])))


def build_automaton(terms: Iterable[str]) -> "Automaton":
    """The Aho-Corasick automaton that finds all terms in one pass over a text."""
    from ahocorasick import Automaton

    automaton = Automaton()
    for term in terms:
        automaton.add_word(term, len(term))
    automaton.make_automaton()
    return automaton


def occurrences(text: str, automaton: "Automaton") -> Iterator[tuple[int, int]]:
    """Where terms stand as whole words: (start, end), leftmost first, then longest, none twice."""
    borders = {match.start() for match in _WORD_BORDER.finditer(text)}
    longest: dict[int, int] = {}
    for last, length in automaton.iter(text):
        start, end = last + 1 - length, last + 1
        if start in borders and end in borders:
            longest[start] = end  # ends come in rising order
    done = 0
    for start in sorted(longest):
        if start >= done:
            done = longest[start]
            yield start, done
