"""Which n-grams stand in evaluation texts, and does a text hold one of them?

An evaluation text worth at least n words is found by any of its n-grams; a shorter one only whole,
and only if it is worth `SHORTEST` words; what is shorter still is everyday language, and is not
looked for (it is counted). One index holds the texts of all languages and is asked about all
documents, because evaluation texts are copied across language labels. Read next:
`contamination.py`, which takes documents out.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..errors import DataError
from ..sources import read_lines
from .config import DecontaminationConfig
from .words import U64, Indices, WordHashes, words

SHORTEST = 8
"""Words that a text shorter than an n-gram must be worth to be looked for."""
SUFFIXES = tuple(a + b for a in (".jsonl", ".json") for b in ("", ".gz", ".zst"))
_CODE = re.compile(r"[a-z]{2,3}_[A-Z][a-z]{3}")
_LANGUAGE_FIELDS = ("language", "lang")
_TABLE_SLOTS = 16
"""Slots of the table per n-gram: about one in so many strange n-grams is looked up in vain."""
_SHOWN = 160
"""Characters of the matched text that the hit list shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationText:
    """One field of one row of an evaluation file."""

    file: str
    """Its path from the folder given in the settings on, or its name."""
    id: str
    field: str
    language: str
    """From the row's `lang` or `language`, else the file's name or folder; empty if unknown."""

    @property
    def set(self) -> str:
        """The evaluation set: the file's name, or its folder's where a file is a language."""
        path = PurePosixPath(self.file)
        name = path.name.split(".")[0]
        return path.parent.name or name if _CODE.fullmatch(name) else name


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A passage that a document shares with an evaluation text."""

    text: EvaluationText
    words: str
    """The first passage shared, as its units were compared."""


def evaluation_files(config: DecontaminationConfig) -> list[tuple[str, Path]]:
    """The files that the settings name, each with the name the hit list gives it; DataError."""
    found: list[tuple[str, Path]] = []
    for source in map(Path, config.sources):
        where = f"curation.decontaminate.sources: {source}"
        if source.is_dir():
            files = sorted(file for file in source.rglob("*") if file.name.endswith(SUFFIXES))
            found += [(f"{source.name}/{f.relative_to(source).as_posix()}", f) for f in files]
            if not files:
                raise DataError(f"{where}: no {', '.join(SUFFIXES)} in this folder: correct it")
        elif not source.is_file():
            raise DataError(f"{where}: no such file or folder: correct it or take it out")
        elif not source.name.endswith(SUFFIXES):
            raise DataError(f"{where}: evaluation texts are read from {', '.join(SUFFIXES)}")
        else:
            # A file of one language is known by the set that it is of: sib200/swh_Latn.jsonl.
            inside = _CODE.fullmatch(source.name.split(".")[0])
            found.append((f"{source.parent.name}/{source.name}" if inside else source.name, source))
    return found


def read_evaluation(
    name: str, path: Path, config: DecontaminationConfig
) -> Iterator[tuple[EvaluationText, str]]:
    """Every text of an evaluation file, from the fields that it has; raises DataError."""
    in_name = _CODE.findall(name)
    seen_field = False
    row: dict[str, Any] | None = None
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise DataError(f"{path}: line {number}: not a JSON object: write one a line")
        language = next((row[k] for k in _LANGUAGE_FIELDS if isinstance(row.get(k), str)), "")
        identifier = row.get(config.id_field)
        for field in config.fields:
            values = row.get(field)
            seen_field |= field in row
            for value in values if isinstance(values, list) else [values]:
                if isinstance(value, str):
                    yield (
                        EvaluationText(
                            file=name,
                            id=f"{path.name}:{number}" if identifier is None else str(identifier),
                            field=field,
                            language=language or (in_name[-1] if in_name else ""),
                        ),
                        value,
                    )
    if row is not None and not seen_field:
        raise DataError(
            f"{path}: none of the fields {', '.join(config.fields)} (its fields are "
            f"{', '.join(row)}): name those of its texts in curation.decontaminate.fields"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationIndex:
    """The n-grams of all evaluation texts. Arrays are sorted by hash, then by text."""

    ngrams: int
    texts: tuple[str, ...]
    """The texts that are looked for, each an `EvaluationText` as JSON, decoded when it is found."""
    long_hashes: U64
    """Of every n-gram of the texts that are worth n words."""
    long_texts: Indices
    """The text of each."""
    short_hashes: U64
    """Of the first `SHORTEST` words of each text that is looked for whole."""
    short_texts: Indices
    short_sizes: Indices
    """Units of the whole text."""
    short_wholes: U64
    """Hash of the whole text."""
    ignored: int
    """Texts that are too short to be looked for."""

    @classmethod
    def build(
        cls, config: DecontaminationConfig, files: list[tuple[str, Path]]
    ) -> "EvaluationIndex":
        """Reads all evaluation files; raises DataError."""
        texts: list[str] = []
        long: list[U64] = []
        long_texts: list[Indices] = []
        short: list[tuple[int, int, int, int]] = []
        ignored = 0
        shortest = min(SHORTEST, config.ngrams)
        for name, path in files:
            for text, value in read_evaluation(name, path, config):
                hashes = WordHashes(words(value))
                if hashes.worth >= config.ngrams:
                    found = np.unique(hashes.windows(config.ngrams).hashes)
                    long.append(found)
                    long_texts.append(np.full(len(found), len(texts), np.int64))
                elif hashes.worth >= shortest:
                    first = int(hashes.windows(shortest).hashes[0])
                    short.append((first, len(texts), hashes.size, hashes.whole()))
                else:
                    ignored += 1
                    continue
                texts.append(json.dumps(asdict(text), ensure_ascii=False))
        short.sort()
        long_hashes = np.concatenate([np.zeros(0, np.uint64), *long])
        long_owners = np.concatenate([np.zeros(0, np.int64), *long_texts])
        order = np.lexsort((long_owners, long_hashes))
        return cls(
            ngrams=config.ngrams,
            texts=tuple(texts),
            long_hashes=long_hashes[order],
            long_texts=long_owners[order],
            short_hashes=np.array([row[0] for row in short], np.uint64),
            short_texts=np.array([row[1] for row in short], np.int64),
            short_sizes=np.array([row[2] for row in short], np.int64),
            short_wholes=np.array([row[3] for row in short], np.uint64),
            ignored=ignored,
        )

    def save(self, folder: Path) -> None:
        """Writes the index into a folder: arrays that processes can share, and the texts' list."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in _ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name))
        head = json.dumps({"ngrams": self.ngrams, "ignored": self.ignored})
        lines = "".join(line + "\n" for line in (head, *self.texts))
        (folder / "texts.jsonl").write_text(lines, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "EvaluationIndex":
        """What `save` wrote; arrays stay on disk and are shared by processes."""
        with open(folder / "texts.jsonl", encoding="utf-8") as file:
            head, *texts = (line.rstrip("\n") for line in file)
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
        return cls(texts=tuple(texts), **json.loads(head), **arrays)

    def text(self, number: int) -> EvaluationText:
        """One of the texts."""
        return EvaluationText(**json.loads(self.texts[number]))


_ARRAYS = (
    "long_hashes", "long_texts", "short_hashes", "short_texts", "short_sizes", "short_wholes",
)  # fmt: skip


class Matcher:
    """Finds the evaluation texts that documents share passages with."""

    def __init__(self, index: EvaluationIndex) -> None:
        self._index = index
        self._shortest = min(SHORTEST, index.ngrams)
        self._long = _Table(index.long_hashes)
        self._short = _Table(index.short_hashes)

    def matches(self, text: str, language: str) -> list[Match]:
        """One match for each evaluation text found, by where it begins in the document.

        A passage that stands in several evaluation texts (the same sentence under several
        language labels) counts for those of the document's language, else for the first.
        """
        units = words(text)
        hashes = WordHashes(units)
        found: dict[int, tuple[int, int]] = {}
        windows = hashes.windows(self._index.ngrams)
        for start in self._long.hits(windows.hashes):
            owners = self._long.rows(windows.hashes[start])
            for owner in self._preferred(self._index.long_texts[owners], language):
                found.setdefault(owner, (start, int(windows.ends[start])))
        windows = hashes.windows(self._shortest)
        for start in self._short.hits(windows.hashes):
            rows = [
                row
                for row in self._short.rows(windows.hashes[start])
                if start + (size := int(self._index.short_sizes[row])) <= hashes.size
                and hashes.spans(np.array([start]), np.array([start + size]))[0]
                == self._index.short_wholes[row]
            ]
            for owner in self._preferred(self._index.short_texts[rows], language):
                row = next(row for row in rows if self._index.short_texts[row] == owner)
                found.setdefault(owner, (start, start + int(self._index.short_sizes[row])))
        return [
            Match(text=self._index.text(owner), words=" ".join(units[start:end])[:_SHOWN])
            for owner, (start, end) in sorted(found.items(), key=lambda item: (item[1], item[0]))
        ]

    def _preferred(self, owners: Indices, language: str) -> list[int]:
        same = [o for o in owners.tolist() if self._index.text(o).language == language]
        return same or owners.tolist()[:1]


class _Table:
    """Which of many hashes stand in a sorted array: a table of bits first, then a search."""

    def __init__(self, hashes: U64) -> None:
        self._hashes = hashes
        bits = max(10, (max(len(hashes), 1) * _TABLE_SLOTS - 1).bit_length())
        self._shift = np.uint64(64 - bits)
        self._taken = np.zeros(1 << bits, np.bool_)
        self._taken[hashes >> self._shift] = True

    def hits(self, hashes: U64) -> list[int]:
        """The places of the hashes that are in the array."""
        places = np.flatnonzero(self._taken[hashes >> self._shift])
        if not len(places):
            return []
        rows = np.searchsorted(self._hashes, hashes[places])
        rows = np.minimum(rows, len(self._hashes) - 1)
        return places[self._hashes[rows] == hashes[places]].tolist()

    def rows(self, value: np.uint64) -> Indices:
        """The rows of the array that hold a hash."""
        left, right = (np.searchsorted(self._hashes, value, side=s) for s in ("left", "right"))
        return np.arange(int(left), int(right))
