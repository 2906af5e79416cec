"""A corpus of real text in which it is known what is wrong: what was planted, where, and how much.

Documents are passages of about 200 words of the shared corpora, an equal number a language. Planted
are near-duplicates (copies, passages with a share of their words changed, cut passages), documents
of other languages, and passages into which a sentence of an evaluation set was put. Each passage is
used once, so that one finding cannot explain another. Read next: `bench_curation.py`.
"""

import gzip
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import regex

from ..data.curation.config import MinHashConfig
from ..data.curation.evaluation_index import SHORTEST
from ..data.curation.minhash import expected_recall, shingles
from ..data.curation.scripts_of_text import letters_a_word
from ..data.curation.words import WordHashes, words

LANGUAGES = (
    "eng_Latn", "rus_Cyrl", "swh_Latn", "zho_Hans", "hin_Deva", "arb_Arab", "vie_Latn",
    "khm_Khmr", "deu_Latn", "fra_Latn", "ita_Latn", "por_Latn", "pol_Latn", "hun_Latn",
    "est_Latn", "ukr_Cyrl", "bul_Cyrl", "ell_Grek", "pes_Arab", "mar_Deva", "ben_Beng",
    "tam_Taml", "zul_Latn", "wol_Latn", "que_Latn", "tur_Latn", "ind_Latn", "tgl_Latn",
    "mya_Mymr", "kor_Hang", "amh_Ethi",
)  # fmt: skip
"""The languages of the benchmark; the first ones are those of its quick form."""
EDITS = {"2 % changed": 0.02, "5 % changed": 0.05, "10 % changed": 0.1}
"""Near-duplicates -> the share of words that are others."""
COPY, CUT = "copy", "last 10 % cut"
SAME_SCRIPT, OTHER_SCRIPT = "other language", "other script"
LEAKS = {"SIB-200 leak": "sib200", "XCOPA leak": "xcopa", "UDHR leak": "udhr"}
SHORT_LEAK = "XCOPA leak, too short"
CLEAN = "clean"
_UDHR = "parallel/udhr.jsonl.gz"
_PASSAGE_WORDS = 200
_LEAKED_WORDS = 25
_SHARED_WITH_SIB = "tico19/Wikinews"
"""SIB-200's sentences are of Wikinews too: TICO-19 really holds a few of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """One document of the corpus."""

    kind: str
    language: str
    """The label it has."""
    id: str
    text: str
    original: str = ""
    """Id of the passage that it duplicates."""
    expected: float = 1.0
    """How probably it is found: for near-duplicates MinHash's formula of the pair's similarity."""
    written_in: str = ""
    """The language it is really in, where its label is wrong."""


def plant(
    shared: Path, folder: Path, languages: Sequence[str], documents: int, each: int, seed: int
) -> list[Planted]:
    """Writes a corpus folder, and says what is in it.

    `documents` passages a language (fewer where there are not so many), `each` of them for each
    kind of planting.
    """
    passages = {code: list(_passages(shared, code, documents + each, seed)) for code in languages}
    rows: list[Planted] = []
    for code in languages:
        draw = random.Random(f"{seed}/{code}")
        found = _plant_language(shared, code, passages, each, draw)
        draw.shuffle(found)
        rows += found
    folder.mkdir(parents=True)
    for code in languages:
        with gzip.open(folder / f"{code}.jsonl.gz", "wt", encoding="utf-8", compresslevel=1) as out:
            for row in rows:
                if row.language == code:
                    line = {"id": row.id, "text": row.text}
                    out.write(json.dumps(line, ensure_ascii=False) + "\n")
    return rows


def evaluation_sources(
    shared: Path, languages: Sequence[str], folder: Path | None = None
) -> tuple[str, ...]:
    """The evaluation files of these languages, and the Declaration in all of its 454.

    With a folder, the Declaration in these languages alone, written there.
    """
    found = [
        path
        for task in ("sib200", "xcopa", "polyglot_or_not")
        for code in languages
        if (path := shared / "data" / "eval" / task / f"{code}.jsonl.gz").exists()
    ]
    declaration = shared / "data" / _UDHR
    if folder is not None:
        rows = [row for code in languages for row in _declaration(shared).get(code, [])]
        declaration = folder / "udhr.jsonl"
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        declaration.write_text("".join(lines), encoding="utf-8")
    return tuple(map(str, (*found, declaration)))


def _plant_language(
    shared: Path, code: str, passages: dict[str, list[Planted]], each: int, draw: random.Random
) -> list[Planted]:
    # The last passages of a language are those that stand under other languages' labels.
    mine, vocabulary = passages[code][:-each], _vocabulary(code, passages[code])
    rows: list[Planted] = []
    for kind in (COPY, *EDITS, CUT):
        for original in _take(mine, each):
            text = _changed(kind, original, vocabulary, draw)
            rows += [original, _twin(kind, original, text)]
    for kind, task in LEAKS.items():
        sentences = _evaluation_texts(shared, task, code)
        for sentence in draw.sample(sentences, min(each, len(sentences))):
            short = WordHashes(words(sentence)).worth < SHORTEST
            for passage in _take(mine, 1):
                lines = passage.text.split("\n")
                lines.insert(draw.randint(0, len(lines)), sentence)
                text = "\n".join(lines)
                rows.append(replace(passage, kind=SHORT_LEAK if short else kind, text=text))
    rows += mine
    script = code.split("_")[1]
    for kind, same in ((SAME_SCRIPT, True), (OTHER_SCRIPT, False)):
        others = [c for c in passages if c != code and (c.split("_")[1] == script) == same]
        for number in range(each if others else 0):
            other = draw.choice(others)
            text = draw.choice(passages[other][-each:]).text
            rows.append(
                Planted(
                    kind=kind,
                    language=code,
                    id=f"{kind}/{number}/{other}",
                    text=text,
                    written_in=other,
                )
            )
    return rows


def _take(passages: list[Planted], count: int) -> list[Planted]:
    """The next passages, which nothing else will use."""
    taken = passages[:count]
    del passages[:count]
    return taken


def _twin(kind: str, original: Planted, text: str) -> Planted:
    config = MinHashConfig()
    one, two = shingles(original.text, config), shingles(text, config)
    similarity = len(np.intersect1d(one, two)) / len(np.union1d(one, two))
    return Planted(
        kind=kind,
        language=original.language,
        id=f"{original.id}/{kind}",
        text=text,
        original=original.id,
        expected=expected_recall(similarity, config),
    )


def _changed(kind: str, original: Planted, vocabulary: list[str], draw: random.Random) -> str:
    if kind == COPY:
        return original.text
    pieces = _pieces(original.language, original.text)
    places = [place for place, piece in enumerate(pieces) if words(piece)]
    if kind == CUT:
        return "".join(pieces[: places[round(0.9 * len(places))]])
    for place in draw.sample(places, round(EDITS[kind] * len(places))):
        pieces[place] = draw.choice([word for word in vocabulary if word != pieces[place]])
    return "".join(pieces)


def _pieces(code: str, text: str) -> list[str]:
    """A text as words and what stands between them; where no spaces are written, as letters."""
    letters = letters_a_word(code.split("_")[1])
    if letters == 1:
        return regex.findall(r"\s+|\S+", text)
    pieces: list[str] = []
    for part in regex.findall(r"\s+|\S+", text):
        clusters = regex.findall(r"\p{L}\p{M}*|.", part)
        pieces += ["".join(clusters[i : i + letters]) for i in range(0, len(clusters), letters)]
    return pieces


def _vocabulary(code: str, passages: Sequence[Planted]) -> list[str]:
    pieces = (piece for passage in passages[:20] for piece in _pieces(code, passage.text))
    return sorted({piece for piece in pieces if words(piece)})[:2000]


def _passages(shared: Path, code: str, count: int, seed: int) -> Iterator[Planted]:
    """Passages of one language in a shuffled order, cut at the ends of lines."""
    found: list[tuple[str, str]] = []
    rows = _read(shared / "data" / "corpora" / f"{code}.jsonl.gz")
    draw = random.Random(f"passages/{seed}/{code}")
    draw.shuffle(rows)
    for row in rows:
        if row["id"].startswith(_SHARED_WITH_SIB):
            continue
        lines: list[str] = []
        worth = 0.0
        for line in row["text"].split("\n"):
            lines.append(line)
            worth += WordHashes(words(line)).worth
            if worth >= _PASSAGE_WORDS:
                found.append((f"{row['id']}/{len(found)}", "\n".join(lines)))
                lines, worth = [], 0.0
        if len(found) >= 2 * count:
            break
    draw.shuffle(found)
    for name, text in found[:count]:
        yield Planted(kind=CLEAN, language=code, id=name, text=text)


def _evaluation_texts(shared: Path, task: str, code: str) -> list[str]:
    if task == "udhr":
        articles = [row["text"] for row in _declaration(shared).get(code, [])]
        # Pieces are words and the spaces between them, or words alone.
        size = _LEAKED_WORDS * (2 if letters_a_word(code.split("_")[1]) == 1 else 1)
        parts = dict.fromkeys("".join(_pieces(code, text)[:size]) for text in articles)
        return [part for part in parts if WordHashes(words(part)).worth >= _LEAKED_WORDS - 5]
    path = shared / "data" / "eval" / task / f"{code}.jsonl.gz"
    field = "premise" if task == "xcopa" else "text"
    return list(dict.fromkeys(row[field] for row in _read(path))) if path.exists() else []


@cache
def _declaration(shared: Path) -> dict[str, list[dict[str, Any]]]:
    articles: dict[str, list[dict[str, Any]]] = {}
    for row in _read(shared / "data" / _UDHR):
        articles.setdefault(row["lang"], []).append(row)
    return articles


def _read(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]
