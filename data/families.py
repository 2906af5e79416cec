"""Which languages share experts: the map from language to family.

The default is genealogical. A language's family is the root of its genealogy (Glottolog's, through
qwanqwa): `uralic`, `atlantic_congo`; an isolate is a family of its own: `basque`. A family named in
`FamilyConfig.split` is broken into its branches, the children of its root; nodes that only
subgroupings know (Classical Indo-European) are passed through, so that Indo-European gives
germanic, italic, celtic, balto_slavic, indo_iranian, greek, albanian, armenian. A branch can be
split in turn: `split=("indo_european", "indo_iranian")` gives indo_aryan and iranian.
"""

import difflib
import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from .config import FamilyConfig
from .errors import DataError
from .languages import genealogy_names, language

NAME = re.compile(r"[a-z][a-z0-9_]*")
OTHERS = "others"
ALL = "all"

PASSED_THROUGH = frozenset({"Classical Indo-European", "Iranian-Nuristani"})
"""Nodes of the tree that are no branch a linguist would name a group of languages by."""

NO_FAMILY = frozenset({"Bookkeeping", "Unattested", "Unclassifiable"})
"""Roots under which Glottolog keeps what it does not place. Its other drawers are used as families:
Artificial Language, Mixed Language, Pidgin, Sign Language."""

USUAL_NAMES = {
    "graeco_phrygian": "greek",
    "armenic": "armenian",
    "tokharian": "tocharian",
}
"""Glottolog's names of nodes, where the field says otherwise for all their living members."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyMap:
    """Every language's family, and the families in their order on the line."""

    families: tuple[str, ...]
    """Sorted names: identifiers, since parameters are named after them."""
    family_of: Mapping[str, str]
    """Language code -> family."""


def family_name(node: str) -> str:
    """The identifier of a node of the genealogy: `Páez` -> `paez`, `!Xóõ` -> `xoo`."""
    ascii_only = unicodedata.normalize("NFKD", node).encode("ascii", "ignore").decode()
    name = re.sub(r"[^a-z0-9]+", "_", ascii_only.lower()).strip("_")
    name = USUAL_NAMES.get(name, name)
    return name if NAME.fullmatch(name) else f"family_{name}"


def genealogical_family(code: str, split: Sequence[str] = ()) -> str:
    """The family of a language by genealogy, with the families in `split` broken into branches.

    Raises DataError for an unknown code, and for a language whose genealogy nobody knows.
    """
    genealogy = language(code).genealogy
    if not genealogy or genealogy[0] in NO_FAMILY:
        raise DataError(
            f"language {code} has no known genealogy; name its family in data.families.groups"
        )
    # A language that is itself a branch (Hittite) is one; passed-through nodes never name a family.
    path = [node for node in genealogy if node not in PASSED_THROUGH]
    depth = 0
    while depth + 1 < len(path) and family_name(path[depth]) in split:
        depth += 1
    return family_name(path[depth])


def _check(codes: Sequence[str], config: FamilyConfig) -> dict[str, str]:
    """Refuses a wrong config; gives the explicit part of the map: code -> family."""
    twice = sorted(code for code, count in Counter(codes).items() if count > 1)
    if twice:
        raise DataError(f"language {twice[0]} is given twice; name each language once")
    if config.minimum < 1:
        raise DataError(f"data.families.minimum is {config.minimum}; it must be at least 1")
    known = {family_name(node) for node in genealogy_names() if node not in PASSED_THROUGH}
    for name in config.split:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=2, cutoff=0.6)
            way_out = f"did you mean {' or '.join(near)}?" if near else "e.g. indo_european, uralic"
            raise DataError(f"data.families.split: no family is called {name!r}; {way_out}")
    explicit: dict[str, str] = {}
    for name, members in config.groups.items():
        if not NAME.fullmatch(name):
            raise DataError(
                f"data.families.groups: {name!r} is no family name; "
                f"use lower-case letters, digits and _, with a letter first ({family_name(name)})"
            )
        if not members:
            raise DataError(f"data.families.groups.{name} is empty; name its languages or drop it")
        for code in members:
            language(code)
            if code in explicit:
                raise DataError(
                    f"data.families.groups: {code} is in {explicit[code]} and in {name}; "
                    "a language has one family"
                )
            explicit[code] = name
    return explicit


def _merged(family_of: dict[str, str], minimum: int, keep: frozenset[str]) -> dict[str, str]:
    sizes = Counter(family_of.values())
    return {
        code: OTHERS if sizes[family] < minimum and family not in keep else family
        for code, family in family_of.items()
    }


def _shuffled(family_of: dict[str, str], seed: int) -> dict[str, str]:
    """Random families of the same sizes. Their names say so: `random_00` is the largest."""
    sizes = sorted(Counter(family_of.values()).values(), reverse=True)
    digits = max(2, len(str(len(sizes) - 1)))
    slots = [f"random_{i:0{digits}d}" for i, size in enumerate(sizes) for _ in range(size)]

    # A hash, not a library's generator, whose sequence may change with its version.
    def key(code: str) -> bytes:
        return hashlib.sha256(f"{seed}:{code}".encode()).digest()

    return dict(zip(sorted(family_of, key=key), slots, strict=True))


def build_family_map(codes: Sequence[str], config: FamilyConfig) -> FamilyMap:
    """The families of the given languages; only families that have a language among them.

    An explicit group wins over the rest of the map, whichever it is. A group with the name of a
    genealogical family joins it. Groups and `split` may name languages and families of which none
    is in `codes`, as one config serves several corpora, but not ones that do not exist. `minimum`
    never dissolves an explicit group. The random map keeps the sizes of the genealogical one after
    merging.

    Raises DataError for an unknown or repeated code, a code in two groups, a bad family name, an
    empty group, an unknown name in `split`, and a language without a known genealogy.
    """
    explicit = _check(codes, config)
    rest: dict[str, str] = {}
    for code in codes:
        language(code)
        if code not in explicit and config.map != "single":
            rest[code] = genealogical_family(code, config.split)
        elif code not in explicit:
            rest[code] = ALL
    chosen = {code: explicit[code] for code in codes if code in explicit}
    if config.map != "single":
        merged = _merged({**rest, **chosen}, config.minimum, frozenset(chosen.values()))
        rest = {code: merged[code] for code in rest}
    if config.map == "random":
        rest = _shuffled(rest, config.seed)
    family_of = {**rest, **chosen}
    return FamilyMap(
        families=tuple(sorted(set(family_of.values()))),
        family_of=MappingProxyType({code: family_of[code] for code in sorted(codes)}),
    )
