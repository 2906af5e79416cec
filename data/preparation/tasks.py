"""What are the tasks? Reading a corpus into sorted runs, deriving, and packing runs into shards.

A line is what becomes one line of tokens: a source of a language, or its held-out documents. Its
documents stand in the order of keyed hashes. A line larger than memory is cut into buckets, ranges
of that order, of which the number follows from the line's size alone; so the shards do not depend
on how files are grouped into tasks, or on who runs them. Read next: `runs.py`, `building.py`.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np

from ..config import DataConfig
from ..shards import EncodedDocument, write_tars
from ..sources import ReadCounts
from ..staging import WORK_FOLDER
from ..tokenizer import Tokenizer
from ..transforms.config import TransformConfig
from .documents import Corpus, heldout_place, keyed_hash, read_file, training_documents
from .execution import Result, read_result
from .runs import Row, RunWriter, bucket_range, read_range
from .sample import CandidateWriter

HELDOUT = "heldout"
"""The line of held-out documents; every other line is a source."""
_BATCH_BYTES = 4_000_000
"""Text that is encoded at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadTask:
    """Reads some files of a language, into sorted runs and the sample's candidates."""

    config: DataConfig
    """Of the corpus."""
    language: str
    """Language code."""
    number: int
    """Which of the language's groups of files."""
    paths: tuple[Path, ...]
    """The files."""
    size: int
    """Their bytes."""
    source: str
    """The source that documents go to; those that stand for n of them to `<source>.xn`."""
    heldout: bool
    """Whether held-out documents are kept."""
    runs: bool
    """Whether runs are written."""
    sample: bool
    """Whether candidates of the tokenizer's sample are written."""

    @property
    def name(self) -> str:
        """Path of its result and of its runs."""
        return f"read/{self.language}/{self.number:05d}"

    def run(self, staging: Path) -> Result:
        """Counts, and for each line its documents, bytes and copies, and the runs."""
        config, counts = self.config, ReadCounts()
        folder = staging / WORK_FOLDER / self.name
        lines: dict[str, list[int]] = defaultdict(lambda: [0, 0, 1])
        runs = RunWriter(folder, config.bucket_bytes)
        candidates = CandidateWriter(config.tokenizer.sample_bytes)
        for path in self.paths:
            for document in read_file(config, self.language, path, counts):
                text = document.text.encode()
                place = heldout_place(document.id, config)
                if place is not None:
                    line, order = HELDOUT, place
                    if not self.heldout:
                        continue
                else:
                    line = self.source + (f".x{document.copies}" if document.copies > 1 else "")
                    order = keyed_hash(config.seed, f"order {line}", document.id)
                    if self.sample:
                        seed = config.tokenizer.seed
                        candidates.add(keyed_hash(seed, "sample", document.id), text)
                totals = lines[line]
                totals[0] += 1
                totals[1] += len(text)
                totals[2] = 1 if line == HELDOUT else document.copies
                if self.runs:
                    runs.add(line, order, document.id, text)
        if self.sample:
            candidates.close(folder / SAMPLE_NAME)
        return {"counts": asdict(counts), "lines": lines, "runs": runs.close()}


SAMPLE_NAME = "sample.arrow"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeriveTask:
    """Makes the documents of a derived source, into sorted runs."""

    corpus: Corpus
    """Whose training documents it is derived from."""
    source: str
    """The source's name."""
    derived: str
    """Its name in the settings."""
    transform: TransformConfig
    """How it is derived."""
    size: int
    """Bytes of the files it reads."""

    @property
    def name(self) -> str:
        """Path of its result and of its runs."""
        return f"derive/{self.source}"

    @property
    def language(self) -> str:
        """The language it counts for."""
        return self.transform.language

    def run(self, staging: Path) -> Result:
        """The line's documents and bytes, and the runs."""
        from ..transforms.derive import derive

        config = self.corpus.config
        runs = RunWriter(staging / WORK_FOLDER / self.name, config.bucket_bytes)
        documents = text_bytes = 0
        for document in derive(
            self.derived,
            self.transform,
            lambda code: training_documents(self.corpus, code),
            seed=config.seed,
        ):
            text = document.text.encode()
            order = keyed_hash(config.seed, f"order {self.source}", document.id)
            runs.add(self.source, order, document.id, text)
            documents += 1
            text_bytes += len(text)
        return {"lines": {self.source: [documents, text_bytes, 1]}, "runs": runs.close()}


@dataclass(frozen=True, slots=True, kw_only=True)
class PackTask:
    """Sorts, encodes and writes some buckets of a line."""

    line: str
    """The line's name in the runs."""
    language: str
    """Language code, for the shards."""
    folder: str
    """Of the line's shards, in the prepared folder."""
    readers: tuple[str, ...]
    """Names of the tasks whose runs hold the line, in the corpus's order."""
    first: int
    """First bucket."""
    stop: int
    """Bucket after the last."""
    buckets: int
    """Buckets of the line."""
    most: int | None
    """At most so many documents."""
    shard_tokens: int
    """Tokens after which a new shard is begun."""
    tokenizer: Path
    """Its folder."""
    tokenizer_sha256: str
    """Of its model."""
    threads: int | None
    """Threads that encode; None takes all cores."""
    size: int
    """Bytes of text."""

    @property
    def name(self) -> str:
        """Path of its result."""
        return f"pack/{self.folder}/{self.first:05d}"

    def run(self, staging: Path) -> Result:
        """The shards."""
        tokenizer = _load_tokenizer(self.tokenizer, self.tokenizer_sha256)
        cut = f"{self.first:05d}-" if self.stop - self.first < self.buckets else ""
        shards = write_tars(
            staging,
            f"{self.folder}/{cut}",
            _encode(islice(self._rows(staging), self.most), tokenizer, self.threads),
            language=self.language,
            vocab_size=tokenizer.vocab_size,
            shard_tokens=self.shard_tokens,
        )
        return {"shards": [asdict(shard) for shard in shards]}

    def _rows(self, staging: Path) -> Iterator[Row]:
        work = staging / WORK_FOLDER
        runs = [(work / n, run) for n in self.readers for run in read_result(staging, n)["runs"]]
        for bucket in range(self.first, self.stop):
            yield from read_range(runs, self.line, *bucket_range(bucket, self.buckets))


@lru_cache(maxsize=1)
def _load_tokenizer(folder: Path, sha256: str) -> Tokenizer:
    return Tokenizer.load(folder)


def _encode(
    rows: Iterable[Row], tokenizer: Tokenizer, threads: int | None
) -> Iterator[EncodedDocument]:
    batch: list[Row] = []
    pending = 0
    for row in rows:
        batch.append(row)
        pending += len(row[2])
        if pending >= _BATCH_BYTES:
            yield from _encode_batch(batch, tokenizer, threads)
            batch, pending = [], 0
    yield from _encode_batch(batch, tokenizer, threads)


def _encode_batch(
    batch: list[Row], tokenizer: Tokenizer, threads: int | None
) -> Iterator[EncodedDocument]:
    encoded = tokenizer.encode_batch([text.decode() for _, _, text in batch], threads)
    for (_, document_id, text), ids in zip(batch, encoded, strict=True):
        tokens = np.array([tokenizer.bos_id, *ids, tokenizer.eos_id], np.uint32)
        yield EncodedDocument(id=document_id, tokens=tokens, text_bytes=len(text))
