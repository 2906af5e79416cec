"""How is text added to a prepared folder? As a shard set of its own, under a new manifest.

Nothing that is there is touched: no shard, no source, no family. A language that is there gets one
source more, `swh_Latn@books`; a new language of a family that is there gets an entry of its own. A
new family is refused: a run's model has the families it began with. The shards lie in
`sets/<name>/`; the manifest that is extended is kept in `manifests/`, so that a run that reads it
can go on. Read next: `building.py`, `../manifest.py`.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
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
from ..sources import discover
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
    Raises DataError (the user's text or settings, a name that is taken, a language of a family that
    the folder does not have), OSError (a full disk; the same command goes on from there).
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
    _check_other(folder, base, name, before)
    codes = corpus.files if corpus else discover(Path(config.corpus), config.languages)
    family_of = _families(folder, base, name, codes, config)
    plan = {
        "settings": settings,
        "corpus": before,
        "extends": base.hash,
        "name": name,
        "families": family_of,
    }
    with staging_folder(folder, plan, notice) as staging:
        if Manifest.load(folder).hash != base.hash:
            raise DataError(f"{folder}: was extended by another command: run this one again")
        _remove_unnamed(folder, base, staging, notice)
        place = replace(config, prepared=f"{config.prepared}.{name}")
        text = corpus or open_corpus(place, console)
        check_derived(text)
        job = _job(text, name, base, staging, console)
        added = _write(job, base, family_of, tokenizer, Path(config.prepared) / TOKENIZER_FOLDER)
        manifest = _extended(base, name, added, settings)
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


def _check_other(folder: Path, base: Manifest, name: str, before: Mapping[str, Any]) -> None:
    """Raises DataError where the same files are in the folder under another name."""
    made_from = {"the folder's first text": folder / FINGERPRINT_NAME}
    for each in base.settings.get(_SETS, {}):
        made_from[each] = folder / SETS_FOLDER / each / FINGERPRINT_NAME
    for each, path in made_from.items():
        if read_fingerprint(path) == before:
            raise DataError(
                f"--extend {name}: these files are in {folder} already, as {each}: its sequences "
                "would be read twice; add other text, or give that source a larger share"
            )


def _families(
    folder: Path, base: Manifest, name: str, codes: Iterable[str], config: DataConfig
) -> dict[str, str]:
    """The family of each language that is new; raises DataError for one that the folder lacks."""
    new = sorted({*codes} - base.languages.keys())
    family_of = build_family_map(sorted({*base.languages, *new}), config.families).family_of
    found = {code: family_of[code] for code in new}
    if lacking := [code for code in new if found[code] not in base.families]:
        them = ",".join(lacking)
        raise DataError(
            f"--extend {name}: {folder} has no language of the family of "
            f"{', '.join(f'{code} ({found[code]})' for code in lacking)}, and a model keeps the "
            f"families it began with: set data.families.groups.{base.families[0]}=[{them}], or "
            f"another family that is there ({', '.join(base.families)}), or prepare a folder of "
            "its own for a new run"
        )
    return found


def _job(corpus: Corpus, name: str, base: Manifest, staging: Path, console: Console) -> Job:
    old = base.languages
    return Job(
        corpus=corpus,
        staging=staging,
        console=console,
        source_of={code: f"{code}@{name}" if code in old else code for code in corpus.files},
        heldout=frozenset(corpus.files) - old.keys(),
        set_name=name,
    )


def _write(
    job: Job, base: Manifest, family_of: Mapping[str, str], tokenizer: Tokenizer, folder: Path
) -> dict[str, LanguageEntry]:
    """What the corpus adds, by language, in the staging folder; `folder` holds the tokenizer."""
    old = base.languages
    reading = read_corpus(job, sample=False)
    lines = [*text_lines(job, reading), *derived_lines(job)]
    return {
        code: LanguageEntry(
            code=code,
            family=old[code].family if code in old else family_of[code],
            sources=sources,
            heldout=heldout,
        )
        for code, (sources, heldout) in pack_lines(job, lines, tokenizer, folder).items()
    }


def _extended(
    base: Manifest, name: str, added: Mapping[str, LanguageEntry], settings: Mapping[str, Any]
) -> Manifest:
    """The manifest with what is added in it; its families are those that it had."""
    old = base.languages
    languages = {**old, **added}
    for code in added.keys() & old.keys():
        languages[code] = replace(old[code], sources=(*old[code].sources, *added[code].sources))
    return replace(
        base,
        languages=dict(sorted(languages.items())),
        settings={**base.settings, _SETS: {**base.settings.get(_SETS, {}), name: settings}},
        parents=(*base.parents, base.hash),
    )


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
    """Removes shard sets that an unfinished command gave their place, but no manifest names."""
    sets = folder / SETS_FOLDER
    for entry in sorted(sets.iterdir()) if sets.is_dir() else ():
        if entry.name not in base.settings.get(_SETS, {}):
            notice(f"{entry}: removing what an unfinished `xylem prepare --extend` left")
            # Its tasks' results may be in the staging folder still, without the shards.
            shutil.rmtree(staging / WORK_FOLDER, ignore_errors=True)
            shutil.rmtree(entry)
