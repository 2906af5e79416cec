"""From documents of the corpus to the documents of a derived source.

A derived source is a pure function of the training documents of one or two languages, its settings
and the seed: each document comes out the same whatever other documents there are, and in whatever
order they are read. Held-out documents never enter, since `read` does not give them. A derived
document's id is that of the document it was made from, `#`, and the source's name; it counts once,
however many copies that document stands for.

Read next: `config.py`, then `pairs.py`, `interleave.py`, `code_switch.py`, `romanize.py`.
"""

import difflib
import re
from collections.abc import Collection, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from ..errors import DataError
from ..languages import language as language_of
from ..sources import Document
from .code_switch import derive_switched, load_dictionary
from .config import TransformConfig, check_settings, effective
from .interleave import MINIMUM_WINDOW, derive_interleaved
from .pairs import check_template, derive_pairs
from .related import Read, load_links
from .romanize import derive_romanized
from .tables import file_sha256

VERSIONS: Final = {"pairs": 1, "interleave": 1, "code_switch": 1, "romanize": 1}
"""Raised by whoever changes what a transform writes."""
_DECIDING: Final = {"code_switch": ("regex",), "romanize": ("uroman",)}
"""Packages whose version decides the output: word borders, tables of letters."""
_NEEDED: Final = {"code_switch": ("pyahocorasick",), "romanize": ("uroman",)}
_FILES: Final = ("links", "dictionary")
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")


def derive(name: str, config: TransformConfig, read: Read, *, seed: int) -> Iterator[Document]:
    """The documents of a derived source, in the order of the documents they are made from.

    `read(code)` gives the training documents of a language; `pairs` and `interleave` call it three
    times and hold the ids of `language` and the matched documents of `other` in memory, the others
    call it once and hold one document. Raises DataError (`check` finds these before).
    """
    s = effective(config)
    match config.transform:
        case "pairs" | "interleave":
            links = None if s["links"] is None else load_links(s["links"])
            two = {"language": s["language"], "other": s["other"], "links": links, "seed": seed}
            if config.transform == "pairs":
                yield from derive_pairs(name, read, template=s["template"], **two)
            else:
                yield from derive_interleaved(name, read, window_bytes=s["window_bytes"], **two)
        case "code_switch":
            yield from derive_switched(
                name,
                read(s["language"]),
                dictionary=load_dictionary(s["dictionary"], ignore_case=s["ignore_case"]),
                share=s["share"],
                ignore_case=s["ignore_case"],
                seed=seed,
            )
        case "romanize":
            yield from derive_romanized(name, read(s["language"]), language=s["language"])


def declared_languages(config: TransformConfig) -> tuple[str, ...]:
    """The languages that the source's sequences hold.

    The first is the corpus language that the source trains: it decides the family and where bytes
    and bits are counted. Romanised text declares its own code after it (`hin_Deva`, `hin_Latn`),
    which, like the second language of a dictionary, need not be a language of the corpus.
    """
    if config.transform == "romanize":
        return config.language, f"{config.language.split('_')[0]}_Latn"
    assert config.other is not None, "checked before"
    return config.language, config.other


def spec(config: TransformConfig) -> dict[str, Any]:
    """What decides a derived source beside name, seed and corpus, for the ledger, as JSON has it.

    Files stand in it as the sha256 of their bytes, never as paths. Raises DataError.
    """
    values = {"version": VERSIONS[config.transform], **effective(config)}
    for setting in _FILES:
        if values.get(setting) is not None:
            values[setting] = {"sha256": file_sha256(values[setting])}
    asked = f"transform={config.transform}"
    packages = {p: _package_version(p, asked) for p in _DECIDING.get(config.transform, ())}
    return {**values, "packages": packages} if packages else values


def check(name: str, config: TransformConfig, languages: Collection[str]) -> None:
    """Checks a derived source against the languages of the corpus; reads its files to their end.

    Raises DataError, one line: the value, the rule, the way out.
    """
    where = f"data.derived.{name}"
    if not _NAME.fullmatch(name):
        raise DataError(
            f"data.derived: {name!r} names no source: use lower-case letters, digits, `_`, `.`, `-`"
        )
    check_settings(name, config)
    _check_languages(where, config, languages)
    for package in _NEEDED.get(config.transform, ()):
        _package_version(package, f"{where}.transform={config.transform}")
    s = effective(config)
    if config.transform == "pairs":
        check_template(name, s["template"])
    if config.transform == "interleave" and not s["window_bytes"] >= MINIMUM_WINDOW:
        raise DataError(
            f"{where}.window_bytes={s['window_bytes']} must be at least {MINIMUM_WINDOW}: set it "
            "to the bytes of text that one sequence holds"
        )
    if config.transform == "code_switch":
        if not 0 < s["share"] <= 1:
            raise DataError(
                f"{where}.share={s['share']} must be above 0 and at most 1: it is a probability"
            )
        _check_file(where, "dictionary", s["dictionary"])
        if not load_dictionary(s["dictionary"], ignore_case=s["ignore_case"]):
            raise DataError(f"{s['dictionary']}: holds no term: write lines `term<TAB>replacement`")
    if s.get("links") is not None:
        _check_file(where, "links", s["links"])
        if not load_links(s["links"]):
            raise DataError(f"{s['links']}: holds no link: write lines `id<TAB>id`")


def _check_languages(where: str, config: TransformConfig, languages: Collection[str]) -> None:
    of_corpus = {"language": config.language}
    if config.transform in ("pairs", "interleave"):
        of_corpus["other"] = str(config.other)
    for setting, code in of_corpus.items():
        if code not in languages:
            near = difflib.get_close_matches(code, languages, n=1, cutoff=0.5)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise DataError(
                f"{where}.{setting}={code}: no such language in the corpus{hint}: add its text, or "
                "name a language that is there"
            )
    if config.other == config.language:
        raise DataError(f"{where}.other={config.other} is the language itself: name another one")
    if config.transform == "code_switch" and config.other not in languages:
        try:
            language_of(str(config.other))
        except DataError as error:
            raise DataError(f"{where}.other: {error}") from None
    if config.transform == "romanize" and config.language.endswith("_Latn"):
        raise DataError(
            f"{where}.language={config.language} is in Latin letters already: romanise a language "
            "of another script"
        )


def _check_file(where: str, setting: str, path: str) -> None:
    if not Path(path).is_file():
        raise DataError(f"{where}.{setting}={path}: no such file: write it, or correct the path")


def _package_version(package: str, asked: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        raise DataError(
            f"{asked} needs the package {package}, which is not installed: "
            "pip install 'xylem[transforms]'"
        ) from None
