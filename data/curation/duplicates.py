"""Which documents of a language are there more than once? One of each is kept, with a count.

Exact duplicates are equal after normalisation (`words.normalised`: Unicode form, case, white space)
and near-duplicates meet in a bucket of `minhash.py`. Both leave of a group the document whose keyed
hash of id and text is smallest: which one depends on the documents alone, never on tasks or files,
and favours neither the first nor the longest. A kept document says in its metadata
(`minhash_cluster_size`) how many it stands for, its exact copies included.

The facts of a language that must be known at once stand in memory in one task: 24 bytes a document
for exact duplicates, 16 and what `minhash.py` says for near ones. Read next: `minhash.py`,
`contamination.py`.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document

from .config import CurationConfig, MinHashConfig
from .language_files import Dropped, LanguageFile, language_files, read_stage, share, write_stage
from .minhash import CLUSTER_SIZE, find_clusters, kept_documents, match_bucket, write_signatures
from .words import U64, normalised

RunStage = Callable[[str, list[Any], int, CurationConfig, Path], None]
"""`execution.run_stage`: name, pipeline, tasks, settings, work folder."""
EXACT = "exact duplicate"
NEAR = "near-duplicate"


def exact_stage(
    config: CurationConfig, input_folder: Path, output_folder: Path, run: RunStage
) -> None:
    """Drops the documents whose normalised text another one of their language has.

    Three runs: hashes of each file, what to keep of each language, the files without the others.
    """
    work, name = output_folder.parent, output_folder.name
    hashes, kept = work / f"{name}-hashes", work / f"{name}-kept"
    for stage, step in (
        (f"{name}-hashes", partial(_hash_texts, input_folder, hashes, config.minhash.seed)),
        (f"{name}-kept", partial(_choose_texts, hashes, kept)),
        (name, partial(_drop_copies, input_folder, kept, output_folder)),
    ):
        run(stage, [step], config.tasks, config, work)


def minhash_stages(
    config: CurationConfig, input_folder: Path, output_folder: Path, run: RunStage
) -> None:
    """Drops all but one of the documents of a language that are near-duplicates of one another.

    Four runs, as in datatrove: signatures, buckets, clusters, filter.
    """
    work, name = output_folder.parent, output_folder.name
    settings = config.minhash
    signatures, pairs = work / f"{name}-signatures", work / f"{name}-buckets"
    clusters = work / f"{name}-clusters"
    for stage, step in (
        (f"{name}-signatures", partial(_sign, input_folder, signatures, settings)),
        (f"{name}-buckets", partial(_match, signatures, pairs, settings)),
        (f"{name}-clusters", partial(_cluster, signatures, pairs, clusters, settings)),
        (name, partial(_drop_near, input_folder, clusters, output_folder)),
    ):
        run(stage, [step], config.tasks, config, work)


def keep_key(document: Document, seed: int) -> int:
    """64 bits by which one document of several is chosen: the smallest stays."""
    key = hashlib.blake2b(document.id.encode(), digest_size=8, key=b"keep/%d" % seed)
    key.update(b"\0" + document.text.encode())
    return int.from_bytes(key.digest(), "little")


# Exact duplicates


def _hash_texts(
    folder: Path, hashes: Path, seed: int, documents: None, rank: int, world_size: int
) -> None:
    """For each document of a file a row: 128 bits of its text, and the key to choose by."""
    for file in share(language_files(folder), rank, world_size):
        rows = []
        for document in read_stage(file.path):
            text = hashlib.blake2b(normalised(document.text).encode(), digest_size=16).digest()
            rows.append((*np.frombuffer(text, "<u8").tolist(), keep_key(document, seed)))
        _save(hashes, file, np.array(rows, np.uint64).reshape(-1, 3))


def _choose_texts(hashes: Path, kept: Path, documents: None, rank: int, world_size: int) -> None:
    """For each document how many it stands for: 0 if it is dropped."""
    for language in share(_languages(hashes), rank, world_size):
        files = _load(hashes, language)
        high, low, key = np.concatenate([rows for _, rows in files]).T
        order = np.lexsort((key, low, high))
        new = (np.diff(high[order], prepend=0) != 0) | (np.diff(low[order], prepend=0) != 0)
        new[:1] = True
        first = np.flatnonzero(new)
        stands_for = np.zeros(len(order), np.int64)
        stands_for[order[first]] = np.diff(np.append(first, len(order)))
        ends = np.cumsum([len(rows) for _, rows in files])
        for (file, _), part in zip(files, np.split(stands_for, ends[:-1]), strict=True):
            _save(kept, file, part)


def _drop_copies(
    folder: Path, kept: Path, output: Path, documents: None, rank: int, world_size: int
) -> None:
    dropped = Dropped()
    for file in share(language_files(folder), rank, world_size):
        stands_for = np.load(_array_path(kept, file)).tolist()
        write_stage(_first_of_copies(file, stands_for, dropped), output, file)
    dropped.save(output.parent, output.name, rank)


def _first_of_copies(
    file: LanguageFile, stands_for: list[int], dropped: Dropped
) -> Iterator[Document]:
    for document, copies in zip(read_stage(file.path), stands_for, strict=True):
        if not copies:
            dropped.add(file.language, EXACT, document.text)
            continue
        if copies > 1:
            document.metadata[CLUSTER_SIZE] = copies
        yield document


# Near-duplicates


def _sign(
    folder: Path,
    signatures: Path,
    config: MinHashConfig,
    documents: None,
    rank: int,
    world_size: int,
) -> None:
    """Signatures of each file, and for each document its key and what it stands for already."""
    for file in share(language_files(folder), rank, world_size):
        facts: list[tuple[int, int]] = []
        noted = _noting(read_stage(file.path), facts, config.seed)
        write_signatures(noted, signatures / file.language, file.number, config)
        _save(signatures, file, np.array(facts, np.uint64).reshape(-1, 2))


def _noting(
    documents: Iterable[Document], facts: list[tuple[int, int]], seed: int
) -> Iterator[Document]:
    for document in documents:
        facts.append((keep_key(document, seed), document.metadata.get(CLUSTER_SIZE, 1)))
        yield document


def _match(
    signatures: Path,
    pairs: Path,
    config: MinHashConfig,
    documents: None,
    rank: int,
    world_size: int,
) -> None:
    buckets = range(config.buckets)
    units = [(language, bucket) for language in _languages(signatures) for bucket in buckets]
    for language, bucket in share(units, rank, world_size):
        match_bucket(signatures / language, pairs / language, bucket, config)


def _cluster(
    signatures: Path,
    pairs: Path,
    clusters: Path,
    config: MinHashConfig,
    documents: None,
    rank: int,
    world_size: int,
) -> None:
    for language in share(_languages(signatures), rank, world_size):
        facts = {file.number: rows for file, rows in _load(signatures, language)}
        find_clusters(pairs / language, clusters / language, facts, config)


def _drop_near(
    folder: Path, clusters: Path, output: Path, documents: None, rank: int, world_size: int
) -> None:
    dropped = Dropped()
    for file in share(language_files(folder), rank, world_size):
        kept = kept_documents(
            read_stage(file.path),
            clusters / file.language,
            file.number,
            partial(dropped.add, file.language, NEAR),
        )
        write_stage(kept, output, file)
    dropped.save(output.parent, output.name, rank)


# Arrays beside files


def _array_path(folder: Path, file: LanguageFile) -> Path:
    return folder / file.language / f"{file.number:05d}.npy"


def _save(folder: Path, file: LanguageFile, array: U64 | Any) -> None:
    path = _array_path(folder, file)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


def _languages(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.glob("*") if entry.is_dir())


def _load(folder: Path, language: str) -> list[tuple[LanguageFile, U64]]:
    return [
        (LanguageFile(language=language, number=int(path.stem), path=path), np.load(path))
        for path in sorted((folder / language).glob("*.npy"))
    ]
