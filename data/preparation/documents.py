"""Which documents does a corpus hold, and which of them are kept from training?

Whatever is decided by chance is decided by a keyed hash of a document's id, so that it depends on
the seed and the id alone. Read next: `tasks.py`.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from ..config import DataConfig
from ..errors import DataError
from ..sources import Document, ReadCounts, discover, language_folder, read_documents

HASH_RANGE = 1 << 64
"""Keyed hashes are below it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Files of documents, and how they are read."""

    config: DataConfig
    """Names the folder and the fields."""
    files: Mapping[str, Sequence[Path]]
    """Language code -> its files, both sorted."""

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(path.stat().st_size for paths in self.files.values() for path in paths)


def open_corpus(config: DataConfig, console: Console, *, force: bool = False) -> Corpus:
    """The corpus to prepare: the user's, or what curation makes of it.

    `force` replaces what was curated with other settings. Raises DataError.
    """
    if config.curation.enabled:
        from ..curation.pipeline import curate  # needs datatrove, which the rest does not

        folder = Path(config.curation.folder or f"{config.prepared}.corpus")
        clean = curate(config, config.curation, folder=folder, console=console, force=force)
        config = replace(
            config, corpus=str(clean), text_field="text", id_field="id", copies_field="copies"
        )
    return Corpus(config=config, files=discover(Path(config.corpus), config.languages))


def read_file(config: DataConfig, code: str, path: Path, counts: ReadCounts) -> Iterator[Document]:
    """The documents of one of a language's files; raises DataError."""
    try:
        yield from read_documents(
            path,
            text_field=config.text_field,
            id_field=config.id_field,
            copies_field=config.copies_field,
            on_bad_line=config.on_bad_line,
            counts=counts,
            language_folder=language_folder(Path(config.corpus), code),
        )
    except FileNotFoundError:
        raise DataError(
            f"{path}: was there when `xylem prepare` began: run the same command again when "
            "nothing changes the corpus"
        ) from None


def training_documents(corpus: Corpus, code: str) -> Iterator[Document]:
    """A language's documents that are not held out, in the order of its files."""
    for path in corpus.files[code]:
        for document in read_file(corpus.config, code, path, ReadCounts()):
            if not is_heldout(document.id, corpus.config):
                yield document


def keyed_hash(seed: int, purpose: str, document_id: str) -> int:
    """Below HASH_RANGE, uniform over ids, independent for each seed and purpose."""
    key = f"{seed}\0{purpose}\0{document_id}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")


def heldout_place(document_id: str, config: DataConfig) -> int | None:
    """Where a held-out document stands among them, below HASH_RANGE; None for training."""
    limit = math.ceil(config.heldout_share * HASH_RANGE)
    place = keyed_hash(config.seed, "heldout", document_id)
    # Stretched over the whole range: distinct places stay distinct and in order.
    return place * HASH_RANGE // limit if place < limit else None


def is_heldout(document_id: str, config: DataConfig) -> bool:
    """Whether a document is kept from training: equal ids fall on the same side everywhere."""
    return heldout_place(document_id, config) is not None


def fingerprint(config: DataConfig, corpus: Corpus | None = None) -> dict[str, list[int]]:
    """What tells a changed corpus cheaply: names, sizes, times of change.

    Without `corpus`, of every file in the folder that is curated.
    """
    folder = Path(config.corpus)
    if corpus is not None:
        paths = [path for of_language in corpus.files.values() for path in of_language]
    else:
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder: set data.corpus to a folder of text")
        paths = [path for path in folder.rglob("*") if path.is_file()]
    found: dict[str, list[int]] = {}
    for path in sorted(paths):
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue
        found[path.relative_to(folder).as_posix()] = [stat.st_size, stat.st_mtime_ns]
    return found


def changed_files(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    """Names of files that two fingerprints do not share, sorted."""
    return sorted(n for n in {*before, *after} if before.get(n) != after.get(n))
