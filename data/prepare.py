"""From a folder of text to a prepared folder: tokenizer, shards, manifest, in one command.

Stages: find the languages, survey their documents, train the tokenizer on a fair sample of the
training documents, write each language's shards, verify them, write the manifest. All of it happens
in `<prepared>.partial`, which gets its name at the end: what is there is whole. Documents are split
and shuffled by keyed hashes of their ids, so the result depends on the text, the settings and the
seed alone. Read next: `sources.py`, `tokenizer.py`, `shards.py`, and `order.py` for what follows.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from .config import DataConfig
from .errors import DataError
from .families import FamilyMap, build_family_map
from .manifest import MANIFEST_NAME, TOKENIZER_FOLDER, LanguageEntry, Manifest
from .shards import EncodedDocument, Shard, check_sizes, verify, write_atomically, write_shards
from .sources import Document, ReadCounts, discover, language_folder, read_documents
from .staging import recover, replace, staging_folder
from .tokenizer import (
    Tokenizer,
    check_settings,
    sample_budgets,
    train_tokenizer,
    training_settings,
)

FINGERPRINT_NAME = "corpus.json"
_HASH_RANGE = 1 << 64
_BATCH_BYTES = 4_000_000
"""Text that is encoded at once."""

Sources = Mapping[str, list[Path]]


def prepare(config: DataConfig, *, force: bool = False, console: Console | None = None) -> Manifest:
    """Prepares `config.corpus` in `config.prepared`, or finds that this was done already.

    `force` replaces a folder that was prepared with other settings or from other text. Raises
    DataError (the user's text or settings), OSError (a full disk), DamagedShard (a shard that
    changed after it was written).
    """
    console = Console(stderr=True) if console is None else console
    notice = partial(_say, console)
    folder = Path(config.prepared)
    _check_config(config)
    sources = discover(Path(config.corpus), config.languages)
    families = build_family_map(sorted(sources), config.families)
    given = None if config.tokenizer.path is None else Tokenizer.load(config.tokenizer.path)
    settings = _settings(config, given)
    fingerprint = _fingerprint(Path(config.corpus), sources)
    recover(folder, notice)
    done = _already_prepared(folder, settings, fingerprint, families, force)
    if done is not None:
        _check_lengths(done.languages, config)
        _verify(folder, done.languages, console)
        _say(console, f"{folder}: prepared before from this text and these settings: nothing to do")
        return done
    with staging_folder(folder, notice) as staging:
        if given is None:
            tokenizer = _train(config, sources, staging / TOKENIZER_FOLDER, console)
        else:
            given.save(staging / TOKENIZER_FOLDER)
            tokenizer = given
        languages = _write_languages(config, sources, families, tokenizer, staging, console)
        _check_lengths(languages, config)
        _verify(staging, languages, console)
        manifest = Manifest(
            tokenizer_sha256=tokenizer.sha256,
            vocab_size=tokenizer.vocab_size,
            bos_id=tokenizer.bos_id,
            eos_id=tokenizer.eos_id,
            languages=languages,
            families=families.families,
            seed=config.seed,
            settings=settings,
        )
        write_atomically(staging / FINGERPRINT_NAME, json.dumps(fingerprint, indent=1).encode())
        manifest.save(staging)
        replace(folder, staging)
    _report(manifest, folder, console)
    return manifest


def load_prepared(folder: Path) -> tuple[Manifest, Tokenizer]:
    """The manifest and the tokenizer of a prepared folder; raises DataError."""
    manifest = Manifest.load(folder)
    tokenizer = Tokenizer.load(Path(folder) / TOKENIZER_FOLDER)
    return manifest, tokenizer


def train_corpus_tokenizer(
    config: DataConfig, folder: Path, *, console: Console | None = None
) -> Tokenizer:
    """Trains the tokenizer that `prepare` would train, and writes only that; raises DataError."""
    console = Console(stderr=True) if console is None else console
    _check_config(config)
    return _train(config, discover(Path(config.corpus), config.languages), folder, console)


def is_heldout(document_id: str, config: DataConfig) -> bool:
    """Whether a document is kept from training: equal ids fall on the same side everywhere."""
    return _heldout_hash(document_id, config) < config.heldout_share * _HASH_RANGE


# The survey and the tokenizer's sample


@dataclass(slots=True)
class _Survey:
    """The training documents of one language, by the order in which the sample takes them."""

    hashes: list[int]
    sizes: list[int]


def _train(config: DataConfig, sources: Sources, folder: Path, console: Console) -> Tokenizer:
    surveys: dict[str, _Survey] = {}
    with _progress(console, "survey", _total_size(sources)) as step:
        for code in sources:
            surveys[code] = survey = _Survey([], [])
            for document in _read(config, sources, code, ReadCounts(), step):
                if not is_heldout(document.id, config):
                    survey.hashes.append(_hash(config.tokenizer.seed, "sample", document.id))
                    survey.sizes.append(len(document.text.encode()))
    budgets = sample_budgets({c: sum(s.sizes) for c, s in surveys.items()}, config.tokenizer)
    sample: dict[str, list[str]] = {}
    with _progress(console, "sample", _total_size(sources)) as step:
        for code in sources:
            sample[code] = list(_sample(config, sources, code, surveys[code], budgets[code], step))
    size = sum(budgets.values()) / 1e6
    title = f"tokenizer ({config.tokenizer.vocab_size} tokens from {size:.1f} MB)"
    with _progress(console, title, None):
        return train_tokenizer(sample, config.tokenizer, folder)


def _sample(
    config: DataConfig,
    sources: Sources,
    code: str,
    survey: _Survey,
    budget: int,
    step: "_Step",
) -> Iterator[str]:
    """Whole documents in the order of their hashes, until the budget; the last one is cut."""
    hashes = np.array(survey.hashes, np.uint64)
    ranked = np.argsort(hashes, kind="stable")
    ends = np.cumsum(np.array(survey.sizes, np.int64)[ranked])
    whole = int(np.searchsorted(ends, budget, side="right"))
    limit = int(hashes[ranked[whole]]) if whole < len(ranked) else _HASH_RANGE
    rest = budget - (int(ends[whole - 1]) if whole else 0)
    for document in _read(config, sources, code, ReadCounts(), step):
        if is_heldout(document.id, config):
            continue
        place = _hash(config.tokenizer.seed, "sample", document.id)
        if place < limit:
            yield document.text
        elif place == limit and rest:
            part = document.text.encode()[:rest].decode("utf-8", "ignore")
            yield part[: max(part.rfind("\n"), part.rfind(" ")) + 1] or part
            rest = 0


# The shards


def _write_languages(
    config: DataConfig,
    sources: Sources,
    families: FamilyMap,
    tokenizer: Tokenizer,
    staging: Path,
    console: Console,
) -> dict[str, LanguageEntry]:
    languages: dict[str, LanguageEntry] = {}
    counts = {code: ReadCounts() for code in sources}
    with _progress(console, "shards", _total_size(sources)) as step:
        for code in sorted(sources):
            train: list[tuple[int, Document]] = []
            heldout: list[tuple[int, Document]] = []
            for document in _read(config, sources, code, counts[code], step):
                place = _heldout_hash(document.id, config)
                if place < config.heldout_share * _HASH_RANGE:
                    heldout.append((place, document))
                else:
                    train.append((_hash(config.seed, f"order {code}", document.id), document))
            shards: dict[str, tuple[Shard, ...]] = {}
            for split, documents, most in (
                ("train", train, len(train)),
                ("heldout", heldout, config.heldout_documents),
            ):
                documents.sort(key=lambda pair: (pair[0], pair[1].id))
                shards[split] = write_shards(
                    staging,
                    f"{split}/{code}",
                    _encode([document for _, document in documents[:most]], tokenizer),
                    language=code,
                    vocab_size=tokenizer.vocab_size,
                    shard_tokens=config.shard_tokens,
                )
            languages[code] = LanguageEntry(code=code, family=families.family_of[code], **shards)
    _report_counts(counts, console)
    return languages


def _encode(documents: list[Document], tokenizer: Tokenizer) -> Iterator[EncodedDocument]:
    batch: list[Document] = []
    sizes: list[int] = []
    pending = 0
    for number, document in enumerate(documents, 1):
        batch.append(document)
        sizes.append(len(document.text.encode()))
        pending += sizes[-1]
        if pending < _BATCH_BYTES and number < len(documents):
            continue
        encoded = tokenizer.encode_batch([each.text for each in batch])
        for each, size, ids in zip(batch, sizes, encoded, strict=True):
            tokens = np.array([tokenizer.bos_id, *ids, tokenizer.eos_id], np.uint32)
            yield EncodedDocument(id=each.id, tokens=tokens, text_bytes=size)
        batch, sizes, pending = [], [], 0


def _verify(staging: Path, languages: Mapping[str, LanguageEntry], console: Console) -> None:
    shards = [shard for entry in languages.values() for shard in (*entry.train, *entry.heldout)]
    with _progress(console, "verify", sum(shard.bytes for shard in shards)) as step:
        verify(staging, shards, step.advance)


def _check_lengths(languages: Mapping[str, LanguageEntry], config: DataConfig) -> None:
    """Every language must hold one training sequence and the token that follows it."""
    least = config.sequence_length + 1
    short = [f"{c} ({e.train_tokens})" for c, e in languages.items() if e.train_tokens < least]
    if short:
        raise DataError(
            f"too few training tokens: {', '.join(short)}: a sequence of "
            f"data.sequence_length={config.sequence_length} needs {least}: leave them out with "
            "data.languages, or shorten data.sequence_length"
        )


# Reading the corpus


def _read(
    config: DataConfig, sources: Sources, code: str, counts: ReadCounts, step: "_Step"
) -> Iterator[Document]:
    folder = language_folder(Path(config.corpus), code)
    for path in sources[code]:
        step.label(code)
        yield from read_documents(
            path,
            text_field=config.text_field,
            id_field=config.id_field,
            on_bad_line=config.on_bad_line,
            counts=counts,
            language_folder=folder,
        )
        step.advance(path.stat().st_size)


def _total_size(sources: Sources) -> int:
    return sum(path.stat().st_size for paths in sources.values() for path in paths)


def _hash(seed: int, purpose: str, document_id: str) -> int:
    key = f"{seed}\0{purpose}\0{document_id}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")


def _heldout_hash(document_id: str, config: DataConfig) -> int:
    return _hash(config.seed, "heldout", document_id)


def _fingerprint(corpus: Path, sources: Sources) -> dict[str, list[int]]:
    """What tells a changed corpus cheaply: names, sizes, times of change."""
    stats = {p.relative_to(corpus).as_posix(): p.stat() for ps in sources.values() for p in ps}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in sorted(stats.items())}


# Settings, and what was prepared before


def _check_config(config: DataConfig) -> None:
    if config.tokenizer.path is None:
        check_settings(config.tokenizer)


def _settings(config: DataConfig, given: Tokenizer | None) -> dict[str, Any]:
    """The settings that decide the contents, as they go into the manifest: no paths."""
    names = "text_field id_field on_bad_line heldout_share heldout_documents shard_tokens seed"
    settings: dict[str, Any] = {name: getattr(config, name) for name in names.split()}
    settings["languages"] = sorted(config.languages)
    settings["tokenizer"] = (
        training_settings(config.tokenizer) if given is None else {"sha256": given.sha256}
    )
    return settings


def _already_prepared(
    folder: Path,
    settings: Mapping[str, Any],
    fingerprint: Mapping[str, list[int]],
    families: FamilyMap,
    force: bool,
) -> Manifest | None:
    """The manifest if the folder holds what is asked for, None if it is to be written."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    if not (folder / MANIFEST_NAME).is_file():
        raise DataError(
            f"{folder}: is there, but `xylem prepare` did not write it: set data.prepared to "
            "another folder"
        )
    try:
        manifest = Manifest.load(folder)
        before = json.loads((folder / FINGERPRINT_NAME).read_text("utf-8"))
    except (DataError, FileNotFoundError, ValueError) as error:
        if force:
            return None
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{folder / FINGERPRINT_NAME}: missing or damaged, so what it was made from is "
            "unknown: run `xylem prepare --force`"
        ) from None
    changes = [
        f"data.{name} was {manifest.settings.get(name)!r}, is {value!r}"
        for name, value in settings.items()
        if manifest.settings.get(name) != value
    ]
    if {c: e.family for c, e in manifest.languages.items()} != dict(families.family_of):
        changes.append("data.families gives other families")
    different = {
        name for name in {*before, *fingerprint} if before.get(name) != fingerprint.get(name)
    }
    if different:
        changes.append(f"{len(different)} files of the corpus changed ({min(different)} …)")
    if changes:
        if force:
            return None
        raise DataError(
            f"{folder}: prepared before, but {'; '.join(changes)}: choose another data.prepared, "
            "or replace it with --force"
        )
    check_sizes(folder, (s for e in manifest.languages.values() for s in (*e.train, *e.heldout)))
    return manifest


# What the user sees


class _Step:
    """A stage's progress: bytes done, and which language is at work."""

    def __init__(self, progress: Progress, title: str, total: int | None) -> None:
        self._progress, self._title = progress, title
        self._task = progress.add_task(title, total=total)

    def label(self, what: str) -> None:
        self._progress.update(self._task, description=f"{self._title} {what}")

    def advance(self, amount: int) -> None:
        self._progress.advance(self._task, amount)


@contextmanager
def _progress(console: Console, title: str, total: int | None) -> Iterator[_Step]:
    """A live bar on a terminal, one line a stage elsewhere."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    if not console.is_terminal:
        _say(console, f"{title} …")
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        yield _Step(progress, title, total)


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _report_counts(counts: Mapping[str, ReadCounts], console: Console) -> None:
    empty = sum(each.empty for each in counts.values())
    if empty:
        _say(console, f"{empty} documents without text left out")
    for code, each in counts.items():
        if each.bad:
            _say(console, f"{code}: {each.bad} malformed lines skipped, first {each.first_bad}")


def _report(manifest: Manifest, folder: Path, console: Console) -> None:
    entries = manifest.languages.values()
    _say(
        console,
        f"{folder}: {len(manifest.languages)} languages of {len(manifest.families)} families, "
        f"{sum(e.train_tokens for e in entries):,} training tokens in "
        f"{sum(e.train_documents for e in entries):,} documents "
        f"({sum(e.train_bytes for e in entries) / 1e6:.1f} MB), "
        f"{sum(e.heldout_documents for e in entries):,} documents held out",
    )
    without = [entry.code for entry in entries if not entry.heldout_documents]
    if without:
        _say(console, f"no held-out documents, so no evaluation: {', '.join(without)}")
