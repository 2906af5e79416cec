"""What is true in the embedded world, said in no language: facts as references to CLDR's entries.

A fact has an id that no language changes (`currency/KE`) and, for each slot of its sentences, a
reference such as `("currency", "KES")`, which `names.py` turns into a name in a language.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from .form import SLOTS

Reference = tuple[str, str]

AS_OF = date(2025, 1, 1)
"""The day on which the facts hold; CLDR knows since when a territory uses a currency."""

CONTINENTS = {
    "002": "DZ AO BJ BW BF BI CM TD DJ EG ER ET GA GH GN KE LS LR LY MG MW ML MR MA MZ NA NE NG RW"
    " SN SL SO ZA SD TZ TG TN UG ZM",
    "142": "AF BD BT KH CN IN ID IR IQ IL JP JO KZ KW KG LA LB MY MN NP OM PK PH QA SA SG KR LK SY"
    " TJ TH TM UZ VN YE",
    "150": "AL AT BE BG BY CH CZ DE DK EE ES FI FR GB GR HR HU IE IS IT LT LU LV MD MT NL NO PL PT"
    " RO RS SE SI SK UA",
    "003": "CA CR CU GT HN HT JM MX NI PA US",
    "005": "AR BO BR CL CO EC GY PE PY SR UY VE",
    "009": "AU FJ NZ PG TO VU WS",
}
"""UN M.49 code of a continent -> ISO 3166 codes of the states on it; states of two are left out."""

HELD_OUT_KINDS = ("currency", "language", "month", "weekday", "sum")
"""Kinds of which some are held out. The others are how a language writes, or keep names in use."""

LISTS_OF_A_CONTINENT = 8
NUMBERS = 60
DATES = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """Something true."""

    id: str
    """Kind, slash, what it is about: `currency/KE`, `sum/3+4`."""
    kind: str
    """A key of `SLOTS`."""
    slots: dict[str, Reference]
    """Slot -> reference."""
    wrong: frozenset[Reference] = frozenset()
    """References that would also be true answers, and so are no distractors."""

    @property
    def answer(self) -> Reference:
        """The reference of the last slot."""
        return self.slots[SLOTS[self.kind][-1]]


def rank(*parts: object) -> int:
    """A number that looks random and depends on the parts alone, on every machine."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def shuffled(keys: Sequence[str], *parts: object) -> list[str]:
    """The keys in an order that looks random and depends on them and the parts alone."""
    return sorted(keys, key=lambda key: rank(*parts, key))


def _fact(kind: str, about: str, *references: Reference, also: Sequence[Reference] = ()) -> Fact:
    slots = dict(zip(SLOTS[kind], references, strict=True))
    return Fact(id=f"{kind}/{about}", kind=kind, slots=slots, wrong=frozenset(also))


def _territory_facts() -> list[Fact]:
    from babel.languages import get_official_languages
    from babel.numbers import get_territory_currencies

    facts, currencies, languages = [], set(), set()
    for continent, states in CONTINENTS.items():
        for state in sorted(states.split()):
            territory = ("territory", state)
            facts.append(_fact("continent", state, territory, ("territory", continent)))
            used = get_territory_currencies(state, AS_OF, AS_OF)
            if len(used) == 1:
                facts.append(_fact("currency", state, territory, ("currency", used[0])))
                currencies.add(used[0])
            official = get_official_languages(state, de_facto=True)
            # Montenegro's is sr_Latn, which CLDR names as Serbian.
            official = tuple(code.partition("_")[0] for code in official)
            if official:
                spoken = [("language", code) for code in official]
                facts.append(_fact("language", state, territory, spoken[0], also=spoken[1:]))
                languages.add(official[0])
    for code in sorted(currencies):
        facts.append(_fact("currency_code", code, ("currency", code), ("literal", code)))
    for code in sorted(languages):
        facts.append(_fact("language_code", code, ("language", code), ("literal", code)))
    return facts


def _calendar_facts() -> list[Fact]:
    months = [
        _fact("month", f"{month:02d}", ("month", str(month)), ("month", str(month % 12 + 1)))
        for month in range(1, 13)
    ]
    weekdays = [
        _fact("weekday", str(day), ("weekday", str(day)), ("weekday", str((day + 1) % 7)))
        for day in range(7)
    ]
    return months + weekdays


def _sums() -> list[Fact]:
    return [
        _fact("sum", f"{a}+{b}", ("word", str(a)), ("word", str(b)), ("word", str(a + b)))
        for a in range(1, 11)
        for b in range(a, 11)
    ]


def _notations() -> list[Fact]:
    facts = []
    for index in range(NUMBERS):
        digits = str(1000 + rank("number", index) % 10 ** (4 + index % 6))
        if index % 3 == 0:
            digits += f".{1 + rank('fraction', index) % 9}"
        facts.append(_fact("number", digits, ("literal", digits), ("number", digits)))
    for index in range(DATES):
        day = str(date(1950, 1, 1) + timedelta(days=rank("date", index) % 36_000))
        facts.append(_fact("date", day, ("literal", day), ("date", day)))
    for continent, states in CONTINENTS.items():
        chosen = set()
        for index in range(LISTS_OF_A_CONTINENT):
            by_rank = shuffled(states.split(), "list", index)
            chosen.add("+".join(sorted(by_rank[: 3 + index % 2])))
        for joined in sorted(chosen):
            reference = ("list", joined)
            facts.append(_fact("list", joined, ("territory", continent), reference))
    return facts


def all_facts() -> list[Fact]:
    """Every fact, in an order that is always the same; ids are unique. Needs babel."""
    return [*_territory_facts(), *_calendar_facts(), *_sums(), *_notations()]


def distractors(fact: Fact, facts: Sequence[Fact]) -> list[Reference]:
    """Answers to other facts of its kind that are no answers to this one, in its own order."""
    others = {other.answer for other in facts if other.kind == fact.kind}
    others -= {fact.answer, *fact.wrong, *fact.slots.values()}
    return sorted(others, key=lambda reference: rank("distractor", fact.id, *reference))


def choose_held_out(
    available: dict[str, list[Fact]], seed: int, share: float
) -> set[tuple[str, str]]:
    """The (fact id, language) pairs that are not stated: about `share` of those of eligible kinds.

    A fact stays stated in one language at least, and every name in a held-out fact stays in use in
    the language, in facts that are stated there; pairs that would break this are stated after all.
    """
    held: set[tuple[str, str]] = set()
    for language, facts in available.items():
        for fact in facts:
            drawn = rank("held out", seed, language, fact.id) < share * 2**64
            if drawn and fact.kind in HELD_OUT_KINDS:
                held.add((fact.id, language))
    for language, facts in available.items():
        in_use = {
            reference
            for fact in facts
            if (fact.id, language) not in held
            for reference in fact.slots.values()
        }
        for fact in facts:
            if not in_use.issuperset(fact.slots.values()):
                held.discard((fact.id, language))
    stated = {
        fact.id
        for language, facts in available.items()
        for fact in facts
        if (fact.id, language) not in held
    }
    return {pair for pair in held if pair[0] in stated}
