"""In which script is a text written, and is it the script of its language code?

The scripts of letters are Unicode's (Script property), codes are ISO 15924's. A code may name
several of Unicode's scripts (`Jpan`: Han, Hiragana, Katakana), or a variant that Unicode does not
tell apart (`Hans`, `Hant`: Han; `Latf`: Latin). Read next: `language_id.py`.
"""

from functools import cache

import regex

COMPOSITES = {
    "Aran": ("Arab",),
    "Cyrs": ("Cyrl",),
    "Geok": ("Geor",),
    "Hanb": ("Hani", "Bopo"),
    "Hans": ("Hani",),
    "Hant": ("Hani",),
    "Hrkt": ("Hira", "Kana"),
    "Jamo": ("Hang",),
    "Jpan": ("Hani", "Hira", "Kana"),
    "Kore": ("Hang", "Hani"),
    "Latf": ("Latn",),
    "Latg": ("Latn",),
    "Syre": ("Syrc",),
    "Syrj": ("Syrc",),
    "Syrn": ("Syrc",),
}
"""ISO 15924 codes that are not one of Unicode's scripts -> those that they stand for."""

UNSPACED = {
    **dict.fromkeys(("Hani", "Hira", "Kana", "Bopo", "Yiii", "Tibt"), 2),
    **dict.fromkeys(
        ("Thai", "Laoo", "Khmr", "Mymr", "Lana", "Tale", "Talu", "Tavt", "Java", "Bali"), 4
    ),
}
"""Scripts that write no spaces between words -> letters (Tibetan: syllables) a word, roughly."""

_LETTERS = regex.compile(r"(?V1)[\p{L}--[\p{Script=Common}\p{Script=Inherited}]]+")


@cache
def scripts_of(iso15924: str) -> tuple[str, ...]:
    """Unicode's scripts that a code stands for; none if Unicode has no such script."""
    scripts = COMPOSITES.get(iso15924, (iso15924,))
    try:
        regex.compile(character_class(scripts))
    except regex.error:
        return ()
    return scripts


def character_class(scripts: tuple[str, ...]) -> str:
    """The pattern of one character of any of some scripts."""
    return "[" + "".join(rf"\p{{Script={script}}}" for script in scripts) + "]"


@cache
def _letters_of(iso15924: str) -> "regex.Pattern[str]":
    return regex.compile(rf"(?V1)[\p{{L}}&&{character_class(scripts_of(iso15924))}]+")


def script_share(text: str, iso15924: str) -> float | None:
    """The share of a text's letters that are in a script, from 0 to 1.

    None where nothing can be said: the text has no letters, or Unicode does not know the script.
    """
    letters = sum(map(len, _LETTERS.findall(text)))
    if not letters or not scripts_of(iso15924):
        return None
    return sum(map(len, _letters_of(iso15924).findall(text))) / letters


@cache
def letters_a_word(iso15924: str) -> int:
    """1 for a script with spaces; otherwise how many units of `quality.py` make a word."""
    return max((UNSPACED.get(script, 1) for script in scripts_of(iso15924)), default=1)
