"""datatrove's MinHash blocks, for documents of any language and for any number of tasks.

Four stages, as in datatrove: signatures of each file, equal buckets within a language, clusters of
a language, documents kept. A language is a deduplication of its own: equal ids in two languages are
translations, never duplicates. What is added to datatrove's blocks:

- shingles are n-grams of `words.py`, with every number taken for the same one;
- of a cluster the document with the smallest keyed hash of id and text is kept, where datatrove
  keeps one that depends on how documents were dealt to tasks;
- a cluster's size counts the copies that exact deduplication had dropped before, and is known to
  every kept document, also where its file lost none.

Two documents whose shingles have Jaccard similarity s meet with probability 1 - (1 - s^8)^14
(8 hashes, 14 buckets): 0.27 at s=0.6, 0.92 at 0.8. Clusters are kept in memory, one language at a
time: about 250 bytes for each document that has a near-duplicate. Read next: `duplicates.py`.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.dedup.minhash import MinhashConfig as DatatroveConfig
from datatrove.pipeline.dedup.minhash import (
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.utils.hashing import HashConfig
from datatrove.utils.word_tokenizers import WhitespaceTokenizer

from .config import MinHashConfig
from .words import U64, WordHashes, words

CLUSTER_SIZE = "minhash_cluster_size"
"""Metadata: how many documents of the corpus a kept one stands for, if more than one."""
_PRIME = np.uint64((1 << 61) - 1)
_PRIME_BITS = np.uint64(61)
_CHUNK = 1024
"""Shingles that are permuted at once: 112 x 1024 x 8 bytes stay in the cache."""


def expected_recall(similarity: float, config: MinHashConfig) -> float:
    """The probability that two documents of a Jaccard similarity share a bucket."""
    return 1.0 - (1.0 - similarity**config.hashes) ** config.buckets


def shingles(text: str, config: MinHashConfig) -> U64:
    """The hashes of a text's different n-grams; none if it has fewer than n words."""
    return np.unique(WordHashes(words(text), digits=False).windows(config.ngrams).hashes)


class Signatures(MinhashDedupSignature):
    """datatrove's first block with shingles of any script; its permutations, in less memory."""

    def __init__(self, folder: Path, config: MinHashConfig) -> None:
        # The tokenizer and the hash function are only named: get_shingles uses neither.
        super().__init__(str(folder), _datatrove(config), language=WhitespaceTokenizer())
        self._settings = config

    def get_shingles(self, text: str) -> U64:
        """A text's shingles as a column."""
        return shingles(text, self._settings).reshape(-1, 1)

    def get_signature(self, shingles: U64) -> list[list[int]]:
        """The smallest permuted shingle for each of the hashes, bucket by bucket."""
        a, b = self.parameters
        smallest = np.full(self.num_hashes, np.iinfo(np.uint64).max, np.uint64)
        for start in range(0, len(shingles), _CHUNK):
            values = shingles[start : start + _CHUNK] * a + b
            values = (values & _PRIME) + (values >> _PRIME_BITS)
            np.minimum(
                smallest, np.where(values < _PRIME, values, values - _PRIME).min(0), smallest
            )
        return [part.tolist() for part in np.split(smallest, self.config.num_buckets)]


def write_signatures(
    documents: Iterable[Document], folder: Path, number: int, config: MinHashConfig
) -> None:
    """The signatures of one file of a language, beside the others of that language."""
    Signatures(folder, config).run(documents, rank=number, world_size=1)


def match_bucket(signatures: Path, folder: Path, bucket: int, config: MinHashConfig) -> None:
    """The pairs of documents of a language that agree in a bucket."""
    block = MinhashDedupBuckets(
        str(signatures), str(folder), config=_datatrove(config), lines_to_buffer=1000
    )
    block.run(rank=bucket, world_size=config.buckets)


def find_clusters(pairs: Path, folder: Path, facts: dict[int, U64], config: MinHashConfig) -> None:
    """Decides which documents of a language are kept, and what each stands for.

    `facts` gives for each of its files, by number, a row a document: the hash by which one of a
    cluster is chosen, and the copies it stands for already.
    """
    found = folder / "found"
    block = MinhashDedupCluster(
        str(pairs),
        str(found),
        config=_datatrove(config),
        save_cluster_id=True,
        lines_to_buffer=1000,
    )
    block.run(None, 0, 1)
    folder.mkdir(parents=True, exist_ok=True)
    numbers = sorted(facts)
    rows = np.concatenate([np.zeros((0, 2), np.uint64), *(facts[number] for number in numbers)])
    keys, stands_for = rows[:, 0], rows[:, 1].astype(np.int64)
    ends = np.cumsum([len(facts[number]) for number in numbers])
    first_row = dict(zip(numbers, [0, *ends.tolist()], strict=False))
    members = [np.zeros((0, 2), np.int64)]
    for file in sorted(found.glob("*.clusters")):
        documents = np.fromfile(file, "<u4").reshape(-1, 2).astype(np.int64)
        members.append(documents + np.array([first_row[int(file.stem)], 0]))
    row, cluster = np.concatenate(members).T
    order = np.lexsort((row, keys[row], cluster))
    row, cluster = row[order], cluster[order]
    first = np.flatnonzero(np.diff(cluster, prepend=-1))
    if len(first):
        sizes = np.add.reduceat(stands_for[row], first)
        stands_for[row] = 0
        stands_for[row[first]] = sizes
    for number, of_file in zip(numbers, np.split(stands_for, ends[:-1]), strict=True):
        # The filter reads sizes only where it finds a list of documents to remove, so each file
        # has one, if an empty one.
        removed, larger = np.flatnonzero(of_file == 0), np.flatnonzero(of_file > 1)
        removed.astype("<u4").tofile(folder / f"{number:06d}.remove")
        sized = np.column_stack([larger, of_file[larger]])
        sized.astype("<u4").tofile(folder / f"{number:06d}.sizes")


def kept_documents(
    documents: Iterable[Document], clusters: Path, number: int, drop: Callable[[str], None]
) -> Iterator[Document]:
    """The documents of one file that stay, with `CLUSTER_SIZE` in their metadata.

    `drop` is told the text of each of the others.
    """
    block = MinhashDedupFilter(
        str(clusters), _Exclusions(drop), load_cluster_sizes=True, lines_to_buffer=1000
    )
    yield from block.run(documents, rank=number)


class _Exclusions(contextlib.nullcontext[Any]):
    """What the filter takes for the writer of dropped documents."""

    def __init__(self, drop: Callable[[str], None]) -> None:
        super().__init__(self)
        self._drop = drop

    def write(self, document: Document, rank: int) -> None:
        self._drop(document.text)


def _datatrove(config: MinHashConfig) -> Any:
    return DatatroveConfig(
        n_grams=config.ngrams,
        num_buckets=config.buckets,
        hashes_per_bucket=config.hashes,
        seed=config.seed,
        hash_config=HashConfig(precision=64, hash_fc="sha1"),
    )
