"""How is text added to a prepared folder? As a shard set of its own, under a new manifest.

Nothing that is there is touched: no shard, no source, no family. A language that is there gets one
source more, `swh_Latn@books`; a new language gets an entry of its own. The shards lie in
`sets/<name>/`; the manifest that is extended is kept in `manifests/`, so that a run that reads it
can go on. Read next: `building.py`, `../manifest.py`.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from ..config import DataConfig
from ..errors import DataError
from ..families import build_family_map
from ..manifest import (
    MANIFEST_NAME,
    PARENTS_FOLDER,
    TOKENIZER_FOLDER,
    LanguageEntry,
    Manifest,
)
from ..shards import sync_folder, write_atomically
from ..staging import WORK_FOLDER, discard, discard_leftover, recover, staging_folder
from ..tokenizer import Tokenizer
from .building import (
    check_derived,
    check_entries,
    derived_lines,
    pack_lines,
    text_lines,
)
from .documents import Corpus, changed_files, fingerprint, open_corpus
from .progress import say
from .reading import Job, read_corpus
from .settings import (
    FINGERPRINT_NAME,
    SETS_FOLDER,
    changed_settings,
    check_unchanged,
    deciding_settings,
    given_tokenizer,
    read_fingerprint,
    verify_shards,
)

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_AS_BEFORE = ("seed", "heldout_share", "tokenizer")
"""Settings that must be those of the folder: they decide what is held out, and the tokens."""
_SETS = "sets"
"""The manifest's setting that holds the settings of each shard set."""


def extend_prepared(config: DataConfig, name: str, console: Console) -> Manifest:
    """Adds `config.corpus` to the folder `config.prepared`, or finds that this was done already.

    Documents whose ids are held out are never trained on; only new languages get held-out shards.
    Raises DataError (the user's text or settings, or a name that is taken), OSError (a full disk).
    """
    if not _NAME.fullmatch(name):
        raise DataError(
            f"--extend {name}: no name for a shard set: use lower-case letters, digits, `_`, `-`"
        )
    notice = partial(say, console)
    folder = Path(config.prepared)
    recover(folder, notice)
    base = Manifest.load(folder)
    tokenizer = Tokenizer.load(folder / TOKENIZER_FOLDER)
    given = given_tokenizer(config)
    settings = deciding_settings(config, given)
    fixed = {key: settings[key] for key in _AS_BEFORE}
    if given is not None and given.sha256 == base.tokenizer_sha256:
        del fixed["tokenizer"]
    if changes := changed_settings(base.settings, fixed):
        raise DataError(
            f"{folder}: prepared before, but {'; '.join(changes)}: what is added must have the "
            "folder's own: put it back, or prepare another folder"
        )
    corpus = None if config.curation.enabled else open_corpus(config, console)
    before = fingerprint(config, corpus)
    if name in base.settings.get(_SETS, {}):
        _check_same(folder, base, name, settings, before)
        discard_leftover(folder, notice)
        notice(f"{folder}: extended by {name} before from this text: nothing to do")
        return base
    plan = {"settings": settings, "corpus": before, "extends": base.hash, "name": name}
    with staging_folder(folder, plan, notice) as staging:
        if Manifest.load(folder).hash != base.hash:
            raise DataError(f"{folder}: was extended by another command: run this one again")
        _remove_unnamed(folder, base, staging, notice)
        place = replace(config, prepared=f"{config.prepared}.{name}")
        text = corpus or open_corpus(place, console)
        check_derived(text)
        manifest, added = _write(config, text, name, base, tokenizer, settings, staging, console)
        check_entries(added, config)
        verify_shards(staging, added, console)
        check_unchanged(before, fingerprint(config, corpus))
        made = staging / SETS_FOLDER / name
        write_atomically(made / FINGERPRINT_NAME, json.dumps(before, indent=1).encode())
        _commit(folder, base, manifest, made)
        discard(staging)
    entries = added.values()
    notice(
        f"{folder}: {name} adds {sum(e.train_tokens for e in entries):,} training tokens in "
        f"{sum(e.train_documents for e in entries):,} documents of {len(added)} languages, "
        f"{len(added.keys() - base.languages.keys())} of them new"
    )
    return manifest


def _check_same(
    folder: Path,
    base: Manifest,
    name: str,
    settings: Mapping[str, Any],
    before: Mapping[str, Any],
) -> None:
    changes = changed_settings(base.settings[_SETS][name], settings)
    made_from = read_fingerprint(folder / SETS_FOLDER / name / FINGERPRINT_NAME)
    if different := changed_files(made_from, before):
        changes.append(f"{len(different)} files of the corpus differ ({different[0]} …)")
    if changes:
        raise DataError(
            f"--extend {name}: {folder} was extended by {name} before, but {'; '.join(changes)}: "
            "choose another name"
        )


def _write(
    config: DataConfig,
    corpus: Corpus,
    name: str,
    base: Manifest,
    tokenizer: Tokenizer,
    settings: Mapping[str, Any],
    staging: Path,
    console: Console,
) -> tuple[Manifest, dict[str, LanguageEntry]]:
    """The manifest of the folder with the corpus in it, and what of it is new."""
    old = base.languages
    new = [code for code in corpus.files if code not in old]
    family_of = build_family_map(sorted({*old, *new}), config.families).family_of
    job = Job(
        corpus=corpus,
        staging=staging,
        console=console,
        source_of={code: f"{code}@{name}" if code in old else code for code in corpus.files},
        heldout=frozenset(new),
        set_name=name,
    )
    reading = read_corpus(job, sample=False)
    lines = [*text_lines(job, reading), *derived_lines(job)]
    packed = pack_lines(job, lines, tokenizer, Path(config.prepared) / TOKENIZER_FOLDER)
    added = {
        code: LanguageEntry(
            code=code,
            family=old[code].family if code in old else family_of[code],
            sources=sources,
            heldout=heldout,
        )
        for code, (sources, heldout) in packed.items()
    }
    languages = {**old, **added}
    for code in added.keys() & old.keys():
        languages[code] = replace(old[code], sources=(*old[code].sources, *added[code].sources))
    manifest = replace(
        base,
        languages=dict(sorted(languages.items())),
        families=tuple(sorted({entry.family for entry in languages.values()})),
        settings={**base.settings, _SETS: {**base.settings.get(_SETS, {}), name: settings}},
        parents=(*base.parents, base.hash),
    )
    return manifest, added


def _commit(folder: Path, base: Manifest, manifest: Manifest, made: Path) -> None:
    """The shard set gets its place, then the old manifest its own, then the new one its name.

    A kill before the last step leaves the old manifest, and files that it does not name.
    """
    target = folder / SETS_FOLDER / made.name
    target.parent.mkdir(exist_ok=True)
    made.rename(target)
    sync_folder(target.parent)
    sync_folder(folder)
    parent = folder / PARENTS_FOLDER / f"{base.hash}.json"
    parent.parent.mkdir(exist_ok=True)
    write_atomically(parent, (folder / MANIFEST_NAME).read_bytes())
    manifest.save(folder)


def _remove_unnamed(
    folder: Path, base: Manifest, staging: Path, notice: Callable[[str], None]
) -> None:
    """Removes shard sets that a killed command gave their place, but no manifest names."""
    sets = folder / SETS_FOLDER
    for entry in sorted(sets.iterdir()) if sets.is_dir() else ():
        if entry.name not in base.settings.get(_SETS, {}):
            notice(f"{entry}: removing what a killed `xylem prepare --extend` left")
            # Its tasks' results may be in the staging folder still, without the shards.
            shutil.rmtree(staging / WORK_FOLDER, ignore_errors=True)
            shutil.rmtree(entry)
