"""From a folder of text to a prepared folder: tokenizer, shards, manifest, in one command.

Stages: find the languages, read their documents once into sorted runs, train the tokenizer on a
fair sample of the training documents, encode the runs as shards, verify them, write the manifest.
All of it happens in `<prepared>.partial`, which gets its name at the end: what is there is whole.
Documents are split and shuffled by keyed hashes of their ids, so the result depends on the text,
the settings and the seed alone, not on processes, or on kills and starts on the way. Read next:
`preparation/reading.py` (the stages), `preparation/extension.py` (adding text), `staging.py`.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from rich.console import Console

from .config import DataConfig
from .errors import DataError
from .families import build_family_map
from .manifest import TOKENIZER_FOLDER, TOKENIZER_MODEL, LanguageEntry, Manifest
from .preparation.building import (
    check_derived,
    check_entries,
    derived_lines,
    pack_lines,
    text_lines,
)
from .preparation.documents import fingerprint, is_heldout, open_corpus
from .preparation.extension import extend_prepared
from .preparation.progress import say
from .preparation.reading import Job, read_corpus, train_on_sample
from .preparation.settings import (
    FINGERPRINT_NAME,
    check_config,
    check_unchanged,
    deciding_settings,
    given_tokenizer,
    prepared_before,
    verify_shards,
)
from .shards import write_atomically
from .staging import discard, recover, replace, staging_folder
from .storage import Storage, as_storage, local_copy
from .tokenizer import META_NAME, Tokenizer

__all__ = ["is_heldout", "load_prepared", "prepare", "train_corpus_tokenizer"]


def prepare(
    config: DataConfig,
    *,
    force: bool = False,
    extend: str | None = None,
    console: Console | None = None,
) -> Manifest:
    """Prepares `config.corpus` in `config.prepared`, or finds that this was done already.

    Args:
        force: replaces a folder that was prepared with other settings or from other text.
        extend: adds the corpus to the folder that is there, as the shard set of this name.
    Raises:
        DataError: the user's text or settings.
        OSError: a full disk; the same command goes on from there.
        DamagedShard: a shard that changed after it was written.
        ProcessDied: a process was killed from outside; the same command goes on from there.
    """
    console = Console(stderr=True) if console is None else console
    check_config(config)
    if extend is not None:
        if force:
            raise DataError("--extend and --force exclude each other: one adds, the other replaces")
        return extend_prepared(config, extend, console)
    notice = partial(say, console)
    folder = Path(config.prepared)
    corpus = None if config.curation.enabled else open_corpus(config, console)
    given = given_tokenizer(config)
    settings = deciding_settings(config, given)
    before = fingerprint(config, corpus)
    recover(folder, notice)
    done = prepared_before(config, settings, before, force)
    if done is not None:
        check_entries(done.languages, config)
        verify_shards(folder, done.languages, console)
        notice(f"{folder}: prepared before from this text and these settings: nothing to do")
        return done
    with staging_folder(folder, {"settings": settings, "corpus": before}, notice) as staging:
        text = corpus or open_corpus(config, console, force=force)
        families = build_family_map(sorted(text.files), config.families)
        check_derived(text)
        job = Job(
            corpus=text,
            staging=staging,
            console=console,
            source_of={code: code for code in text.files},
            heldout=frozenset(text.files),
        )
        tokenizer, languages = _write(job, given, families.family_of)
        check_entries(languages, config)
        verify_shards(staging, languages, console)
        check_unchanged(before, fingerprint(config, corpus))
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
        write_atomically(staging / FINGERPRINT_NAME, json.dumps(before, indent=1).encode())
        manifest.save(staging)
        replace(folder, staging)
    _report(manifest, folder, console)
    return manifest


def load_prepared(place: Storage | Path) -> tuple[Manifest, Tokenizer]:
    """The manifest and the tokenizer of a prepared folder; raises DataError."""
    storage = as_storage(place)
    manifest = Manifest.load(storage)
    files = {TOKENIZER_MODEL: manifest.tokenizer_sha256, META_NAME: ""}
    try:
        folder = local_copy(storage, TOKENIZER_FOLDER, files)
    except FileNotFoundError:
        raise DataError(
            f"{storage.name_of(TOKENIZER_FOLDER)}: no tokenizer here: run `xylem prepare` again"
        ) from None
    return manifest, Tokenizer.load(folder)


def train_corpus_tokenizer(
    config: DataConfig, folder: Path, *, console: Console | None = None
) -> Tokenizer:
    """Trains the tokenizer that `prepare` would train, and writes only that.

    Works in `<folder>.sample.partial`, where the same command goes on after a kill. Raises
    DataError, OSError (a full disk), ProcessDied.
    """
    console = Console(stderr=True) if console is None else console
    check_config(config)
    corpus = open_corpus(config, console)
    before = fingerprint(corpus.config, corpus)
    plan = {"settings": deciding_settings(config, None), "corpus": before}
    place = folder.with_name(f"{folder.name}.sample")
    with staging_folder(place, plan, partial(say, console)) as staging:
        job = Job(
            corpus=corpus,
            staging=staging,
            console=console,
            source_of={code: code for code in corpus.files},
            heldout=(),
        )
        tokenizer = train_on_sample(job, read_corpus(job, sample=True, runs=False), folder)
        check_unchanged(before, fingerprint(corpus.config, corpus))
        discard(staging)
    return tokenizer


def _write(
    job: Job, given: Tokenizer | None, family_of: Mapping[str, str]
) -> tuple[Tokenizer, dict[str, LanguageEntry]]:
    """The tokenizer and every line, in the staging folder."""
    reading = read_corpus(job, sample=given is None)
    folder = job.staging / TOKENIZER_FOLDER
    if folder.exists():
        tokenizer = Tokenizer.load(folder)
    elif given is not None:
        given.save(folder)
        tokenizer = given
    else:
        tokenizer = train_on_sample(job, reading, folder)
    lines = [*text_lines(job, reading), *derived_lines(job)]
    return tokenizer, {
        code: LanguageEntry(code=code, family=family_of[code], sources=sources, heldout=heldout)
        for code, (sources, heldout) in pack_lines(job, lines, tokenizer, folder).items()
    }


def _report(manifest: Manifest, folder: Path, console: Console) -> None:
    entries = manifest.languages.values()
    say(
        console,
        f"{folder}: {len(manifest.languages)} languages of {len(manifest.families)} families, "
        f"{sum(e.train_tokens for e in entries):,} training tokens in "
        f"{sum(e.train_documents for e in entries):,} documents "
        f"({sum(e.train_bytes for e in entries) / 1e6:.1f} MB), "
        f"{sum(e.heldout.documents for e in entries):,} documents held out",
    )
    without = [entry.code for entry in entries if not entry.heldout.documents]
    if without:
        say(console, f"no held-out documents, so no evaluation: {', '.join(without)}")
