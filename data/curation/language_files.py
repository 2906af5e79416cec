"""The documents that stand between two stages: `STAGE/CODE/00003.jsonl.gz`, and what was dropped.

A stage reads one file and writes one of the same number, so that its result does not depend on how
files are dealt to tasks. Read next: `duplicates.py`, `contamination.py`.
"""

import gzip
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from datatrove.data import Document

from ..sources import read_lines

SUFFIX = ".jsonl.gz"
COPIES = "copies"
"""Metadata: how often a document counts in the raw corpus, if more than once."""
_Unit = TypeVar("_Unit")


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageFile:
    """One file of documents of one language."""

    language: str
    number: int
    """Its name among the files of the language."""
    path: Path


def language_files(folder: Path) -> list[LanguageFile]:
    """The files of a stage's folder, by language and number."""
    return [
        LanguageFile(language=path.parent.name, number=int(path.name.split(".")[0]), path=path)
        for path in sorted(folder.glob(f"*/*{SUFFIX}"))
    ]


def share(units: list[_Unit], rank: int, world_size: int) -> list[_Unit]:
    """What one of several tasks does: every so-manieth unit."""
    return units[rank::world_size]


def read_stage(path: Path) -> Iterator[Document]:
    """The documents of one file, in its order."""
    for line in read_lines(path):
        yield Document(**json.loads(line))


def write_stage(documents: Iterable[Document], folder: Path, file: LanguageFile) -> None:
    """Writes the documents that follow from a file under its number; nothing if there are none."""
    path = folder / file.language / f"{file.number:05d}{SUFFIX}"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    empty = True
    with open(partial, "wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as out:
        for document in documents:
            empty = False
            row: dict[str, Any] = {"text": document.text, "id": document.id}
            row["metadata"] = document.metadata
            out.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    if empty:
        partial.unlink()
    else:
        os.replace(partial, path)


class Dropped:
    """What one task of a stage dropped: documents and bytes of text, by language and reason."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[str, list[int]]] = {}

    def add(self, language: str, reason: str, text: str) -> None:
        """Counts one document."""
        counts = self._counts.setdefault(language, {}).setdefault(reason, [0, 0])
        counts[0] += 1
        counts[1] += len(text.encode())

    def save(self, work: Path, stage: str, rank: int) -> None:
        """Writes `work/dropped/STAGE/RANK.json`: `{language: {reason: [documents, bytes]}}`."""
        path = work / "dropped" / stage / f"{rank:05d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self._counts, sort_keys=True))
