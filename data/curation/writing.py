"""The last stage: the clean corpus, a folder a language, as `sources.py` reads it.

`CODE/00000.jsonl.zst`, with the fields `id`, `text`, `copies` (how often a document counts) and
`cluster_size` (how many documents of the raw corpus it stands for, itself among them). `copies` is
what the raw document had, with `minhash.rehydrate` times FineWeb-2's weight of the cluster's size.
This file needs datatrove. Read next: `report.py`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow
from datatrove.data import Document

from ..shards import write_atomically
from ..sources import MOST_COPIES
from .language_files import COPIES, LanguageFile, language_files, read_stage, share
from .minhash import CLUSTER_SIZE

STAGE = "write"
FILE_BYTES = 1 << 30
"""Text after which a language's next file is begun."""

REHYDRATION = {1: 1, 2: 2, 3: 3, 5: 5, 100: 8, 1000: 1}
"""FineWeb-2's weights (its README, "re-hydrate"): least cluster size -> how often it counts."""


def copies(cluster_size: int) -> int:
    """How often a document counts that stands for so many near-duplicates."""
    return REHYDRATION[max(least for least in REHYDRATION if least <= cluster_size)]


def clean_row(document: Document, *, rehydrate: bool) -> dict[str, Any]:
    """A document's line in the clean corpus; `copies` is at most what `sources.py` reads."""
    size = document.metadata.get(CLUSTER_SIZE, 1)
    times = document.metadata.get(COPIES, 1) * (copies(size) if rehydrate else 1)
    return {
        "id": document.id,
        "text": document.text,
        "copies": min(times, MOST_COPIES),
        "cluster_size": size,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteStep:
    """A datatrove step: writes its task's share of the languages."""

    input: Path
    output: Path
    rehydrate: bool

    def __call__(self, documents: object, rank: int, world_size: int) -> None:
        """Writes whole languages, and `work/written/RANK.json`: documents, bytes, copies."""
        written: dict[str, list[int]] = {}
        by_language: dict[str, list[LanguageFile]] = {}
        for file in language_files(self.input):
            by_language.setdefault(file.language, []).append(file)
        for code, files in share(sorted(by_language.items()), rank, world_size):
            kept = (document for file in files for document in read_stage(file.path))
            written[code] = self._write(kept, self.output / code)
        path = self.output.parent / "written" / f"{rank:05d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(written, sort_keys=True).encode())

    def _write(self, kept: Iterator[Document], folder: Path) -> list[int]:
        folder.mkdir(parents=True, exist_ok=True)
        totals = [0, 0, 0]
        following = next(kept, None)
        for number in count():
            if following is None:
                return totals
            path = folder / f"{number:05d}.jsonl.zst"
            partial = path.with_name(path.name + ".tmp")
            size = 0
            with pyarrow.CompressedOutputStream(str(partial), "zstd") as out:
                while following is not None and size < FILE_BYTES:
                    row = clean_row(following, rehydrate=self.rehydrate)
                    out.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                    bytes_ = len(following.text.encode())
                    size += bytes_
                    totals = [totals[0] + 1, totals[1] + bytes_, totals[2] + row["copies"]]
                    following = next(kept, None)
            partial.replace(path)
        raise AssertionError("count() does not end")
