"""What the embedded corpus knows of a language: which facts it can state, and in which sentences.

Read next: `templates/` (the sentences), `facts.py` (the facts), `render.py` (the corpus).
"""

from dataclasses import dataclass

SLOTS = {
    "currency": ("territory", "currency"),
    "language": ("territory", "language"),
    "continent": ("territory", "continent"),
    "month": ("before", "after"),
    "weekday": ("before", "after"),
    "sum": ("a", "b", "total"),
    "currency_code": ("currency", "code"),
    "language_code": ("language", "code"),
    "number": ("digits", "written"),
    "date": ("digits", "written"),
    "list": ("continent", "written"),
}
"""The kinds of facts, and the slots of their sentences; the last slot is the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldLanguage:
    """A language of the embedded corpus.

    Names are inserted as CLDR gives them, so a sentence must hold them in their citation form, in
    whatever gender and number: `the country {territory}`, `a currency called {currency}`.
    """

    code: str
    """The language's code."""
    name: str
    """English name."""
    family: str
    """Root of its genealogy, as `genealogical_family` names it."""
    locale: str
    """CLDR's code."""
    rounds: int
    """How often every fact is stated at size 1, each time in another context."""
    words: str | tuple[str, ...]
    """num2words' code, or the number words from one to twenty."""
    sentences: dict[str, tuple[str, ...]]
    """Kind of fact -> sentences. The first ends with the answer."""
    capitals: bool = True
    """Whether a sentence begins with a capital letter."""


def world_language(
    code: str,
    name: str,
    family: str,
    locale: str,
    rounds: int,
    words: str,
    sentences: dict[str, tuple[str, ...]],
    *,
    capitals: bool = True,
) -> WorldLanguage:
    """A language; `words` is num2words' code, or twenty number words with `|` between."""
    return WorldLanguage(
        code=code,
        name=name,
        family=family,
        locale=locale,
        rounds=rounds,
        words=tuple(words.split("|")) if "|" in words else words,
        sentences=sentences,
        capitals=capitals,
    )
