"""Which language does a code name, and where does that language stand in the genealogy?

Names, scripts and genealogy come from qwanqwa (imported as `qq`: Glottolog, ISO 639-3, CLDR,
LinguaMeta). What it lacks stands in the small tables below, keyed by Glottolog's node codes.
Read next: `families.py`, which turns genealogies into families.
"""

import difflib
import re
import warnings
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from .errors import DataError

if TYPE_CHECKING:
    from qq import Database, IdType, Languoid

CODE = re.compile(r"[a-z]{3}_[A-Z][a-z]{3}")

NODE_OF_MACROLANGUAGE = {
    "est": "cent2329",
    "fas": "fars1255",
    "grn": "para1319",
    "hmn": "firs1234",
    "kau": "kanu1281",
    "kon": "koon1247",
    "kpe": "kpel1252",
    "oji": "ojib1241",
    "orm": "nucl1736",
    "que": "quec1387",
    "srd": "sard1257",
    "zho": "sini1245",
}
"""Macrolanguages that corpora use and that qwanqwa does not place: the node above their members."""

NODE_OF_LANGUAGE = {"kru": "kuru1300", "osj": "kfx"}
"""Languages that qwanqwa leaves without a parent, or does not know (osj, Outer Seraji)."""

NAMES = {"osj": "Outer Seraji"}
"""Names of languages that qwanqwa does not know."""

MEMBERS = {
    "ara": ("arb",),
    "aym": ("ayr",),
    "aze": ("azj", "azb"),
    "bal": ("bgn", "bcc", "bgp"),
    "bik": ("bcl",),
    "gba": ("gbp", "gya"),
    "hbs": ("hrv", "srp", "bos"),
    "iku": ("ike", "ikt"),
    "jrb": ("ajt", "aju"),
    "kok": ("gom", "knn"),
    "kur": ("kmr", "ckb"),
    "lah": ("pnb", "skr"),
    "lav": ("lvs",),
    "luy": ("lwg",),
    "man": ("emk", "mnk"),
    "mlg": ("plt",),
    "mon": ("khk",),
    "msa": ("zsm", "zlm"),
    "mwr": ("rwr", "dhd"),
    "nep": ("npi",),
    "nor": ("nob", "nno"),
    "ori": ("ory",),
    "pus": ("pbt", "pbu"),
    "raj": ("gju", "mup"),
    "sqi": ("als", "aln"),
    "swa": ("swh", "swc"),
    "syr": ("aii", "cld"),
    "uzb": ("uzn", "uzs"),
    "yid": ("ydd",),
}
"""Macrolanguages refused, as corpora name their members: one language must not get two names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """A language in a script, as a corpus names it."""

    code: str
    """ISO 639-3, `_`, ISO 15924: `swh_Latn`."""
    name: str
    """English name."""
    endonym: str
    """Name in the language itself; the English name where none is known."""
    iso639_3: str
    """Three letters."""
    script: str
    """Four letters."""
    genealogy: tuple[str, ...]
    """Names from the root family down to the language: one name if an isolate, none if unknown."""


@cache
def _database() -> "Database":
    from qq import Database

    return Database.load()


def _find(code: str, kind: "IdType") -> "Languoid | None":
    with warnings.catch_warnings():
        # A retired code that has one successor is still good data: FLORES-200 spells ajp_Arab.
        warnings.simplefilter("ignore")
        try:
            return _database().get(code, kind)
        except KeyError:
            return None


def _languoid(iso639_3: str) -> "Languoid | None":
    from qq import IdType

    if iso639_3 in NODE_OF_LANGUAGE and iso639_3 in NAMES:
        return _find(NODE_OF_LANGUAGE[iso639_3], IdType.ISO_639_3)
    # FineWeb-2 also uses a few ISO 639-5 codes of small families (nah, oto).
    return _find(iso639_3, IdType.ISO_639_3) or _find(iso639_3, IdType.ISO_639_5)


def _scripts() -> set[str]:
    return {script.iso_15924 for script in _database().all_scripts if script.iso_15924}


def _genealogy(iso639_3: str, languoid: "Languoid", name: str) -> tuple[str, ...]:
    from qq import IdType

    above = languoid.family_tree
    if not above:
        node = NODE_OF_MACROLANGUAGE.get(iso639_3) or NODE_OF_LANGUAGE.get(iso639_3)
        if node is not None:
            found = _find(node, IdType.GLOTTOCODE)
            assert found is not None, f"qwanqwa no longer knows the Glottolog node {node}"
            above = [found, *found.family_tree]
        elif not (languoid.is_language or languoid.is_family):
            return ()
    return (*(node.name or node.id for node in reversed(above)), name)


def _spellings(iso639_3: str, script: str | None) -> list[str]:
    """The codes to suggest for one language: its members' if it is refused, its scripts' if one."""
    if iso639_3 in MEMBERS:
        return [code for member in MEMBERS[iso639_3] for code in _spellings(member, script)[:1]]
    if script in _scripts():
        return [f"{iso639_3}_{script}"]
    languoid = _languoid(iso639_3)
    known = (languoid.script_codes or []) if languoid is not None else []
    if script is not None:
        known = difflib.get_close_matches(script, known, n=2, cutoff=0.6) or known
    elif languoid is not None:
        canonical = [each.iso_15924 for each in languoid.canonical_scripts if each.iso_15924]
        known = canonical or known
    return [f"{iso639_3}_{each}" for each in known[:2]]


def suggestions(code: str) -> list[str]:
    """At most three codes that the user may have meant by a code that is none."""
    from qq import IdType, Languoid

    head, _, tail = code.strip().replace("-", "_").partition("_")
    language_part, script = head.lower(), tail.capitalize() or None
    found = _languoid(language_part) or _find(language_part, IdType.BCP_47)
    found = found or _find(language_part, IdType.ISO_639_2B)
    if found is None:
        named = _database().query(Languoid, name=head.capitalize())
        found = next((each for each in named if each.iso_639_3), None)
    if found is not None and found.iso_639_3 and found.iso_639_3 not in ("und", "mul", "zxx"):
        spelled = _spellings(found.iso_639_3, script)
        if spelled:
            return spelled[:3]
    known = [
        f"{each.iso_639_3}_{each_script}"
        for each in _database().all_languoids
        if each.iso_639_3 and each.iso_639_3 not in MEMBERS and not each.deprecated_codes
        for each_script in each.script_codes or ()
    ]
    normal = f"{language_part}_{script or 'Latn'}"
    return difflib.get_close_matches(normal, known, n=3, cutoff=0.7)


def _refuse(code: str, rule: str) -> DataError:
    near = suggestions(code)
    way_out = f"; did you mean {' or '.join(near)}?" if near else ""
    return DataError(f"language code {code!r}: {rule}{way_out}")


@cache
def language(code: str) -> Language:
    """The language of a code such as `swh_Latn`.

    Any script that ISO 15924 has is accepted with any language, since corpora hold transliterated
    text. Raises DataError, with suggestions, for a malformed code, an unknown language or script,
    and a macrolanguage whose members have codes of their own (swa: swh_Latn). The first call takes
    three seconds, in which the database is read.
    """
    if not CODE.fullmatch(code):
        raise _refuse(code, "not of the form xxx_Yyyy (ISO 639-3, _, ISO 15924)")
    iso639_3, script = code.split("_")
    found = _languoid(iso639_3)
    if found is None or (found.scope is not None and found.scope.value == "S"):
        raise _refuse(code, f"no language has the ISO 639-3 code {iso639_3!r}")
    if script not in _scripts():
        raise _refuse(code, f"no script has the ISO 15924 code {script!r}")
    if iso639_3 in MEMBERS:
        raise _refuse(code, f"{found.name} is a macrolanguage, name the individual language")
    name = NAMES.get(iso639_3) or found.name or iso639_3
    macrolanguage = next((macro for macro, of in MEMBERS.items() if of[0] == iso639_3), None)
    above = _languoid(macrolanguage) if macrolanguage is not None else None
    return Language(
        code=code,
        name=name,
        endonym=(above.endonym if above is not None else None) or found.endonym or name,
        iso639_3=iso639_3,
        script=script,
        genealogy=_genealogy(iso639_3, found, name),
    )


@cache
def genealogy_names() -> frozenset[str]:
    """The names of all nodes of the genealogy above languages: families, branches, subbranches."""
    return frozenset(node.name for node in _database().all_families if node.name)
