"""Was this prepared before, from this text and with these settings?

The settings that decide the contents go into the manifest, names and sizes of the corpus's files
beside it: what is there is taken only for exactly what is asked for. Read next: `../prepare.py`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from ..config import DataConfig
from ..errors import DataError
from ..families import build_family_map
from ..manifest import MANIFEST_NAME, LanguageEntry, Manifest
from ..shards import Shard, check_sizes, verify
from ..storage import open_storage
from ..token_line import read_table
from ..tokenizer import Tokenizer, check_settings, training_settings
from .documents import changed_files
from .progress import stage_progress

FINGERPRINT_NAME = "corpus.json"
SETS_FOLDER = "sets"
"""Where shard sets that were added later lie, a folder each."""
_TEXT_SETTINGS = (
    "text_field", "id_field", "copies_field", "on_bad_line", "heldout_share", "heldout_documents",
    "shard_tokens", "bucket_bytes", "seed",
)  # fmt: skip
_EXECUTION = ("folder", "tasks", "workers", "executor", "slurm")
"""Settings of curation that say where and how, not what."""
_CURATION_FILES = "curation_files"
"""With curation: kind -> name -> sha256 of each file that its settings name."""


def check_config(config: DataConfig) -> None:
    """Checks what can be judged before anything is read; raises DataError."""
    if not config.corpus:
        raise DataError("data.corpus is not set: name the folder of raw text, data.corpus=FOLDER")
    if config.tokenizer.path is None:
        check_settings(config.tokenizer)
    if "://" in config.prepared:
        raise DataError(
            f"data.prepared={config.prepared}: `xylem prepare` writes to a local folder: set one, "
            "and copy it there when it is whole"
        )


def given_tokenizer(config: DataConfig) -> Tokenizer | None:
    """The trained tokenizer that the settings name, if they do; raises DataError."""
    return None if config.tokenizer.path is None else Tokenizer.load(config.tokenizer.path)


def deciding_settings(config: DataConfig, given: Tokenizer | None) -> dict[str, Any]:
    """The settings that decide the contents, as they go into the manifest; raises DataError."""
    settings: dict[str, Any] = {name: getattr(config, name) for name in _TEXT_SETTINGS}
    settings["languages"] = sorted(config.languages)
    settings["tokenizer"] = (
        training_settings(config.tokenizer) if given is None else {"sha256": given.sha256}
    )
    settings["curation"] = None
    if config.curation.enabled:
        settings["curation"] = {
            name: value for name, value in asdict(config.curation).items() if name not in _EXECUTION
        }
        settings[_CURATION_FILES] = _curation_files(config)
    settings["derived"] = {}
    if config.derived:
        from ..transforms.derive import spec

        settings["derived"] = {name: spec(each) for name, each in sorted(config.derived.items())}
    # As it is read back, so that the two can be compared: JSON has lists only.
    as_json: dict[str, Any] = json.loads(json.dumps(settings))
    return as_json


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What a user would have to put back, one phrase a setting."""
    changes = [
        f"data.{name} was {before.get(name)!r}, is {value!r}"
        for name, value in now.items()
        if name != _CURATION_FILES and before.get(name) != value
    ]
    old: Mapping[str, Any] = before.get(_CURATION_FILES) or {}
    for kind, files in now.get(_CURATION_FILES, {}).items():
        if different := changed_files(old.get(kind, {}), files):
            changes.append(f"curation's {kind} changed ({different[0]} …)")
    return changes


def _curation_files(config: DataConfig) -> dict[str, dict[str, str]]:
    from ..curation.reading import raw_files  # only who curates pays for it
    from ..curation.setting_files import stamps

    # Which languages there are matters only to files of thresholds.
    named = bool(config.curation.quality.fineweb2_configs)
    files = raw_files(Path(config.corpus), config.languages) if named else []
    return stamps(config.curation, {file.language for file in files})


def read_fingerprint(path: Path) -> dict[str, Any]:
    """What a folder or a shard set was made from; raises DataError."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise DataError(
            f"{path}: missing or damaged, so what was prepared here is unknown: put it back, or "
            "repeat the `xylem prepare` that wrote it, with --force"
        )
    return found


def prepared_before(
    config: DataConfig,
    settings: Mapping[str, Any],
    fingerprint: Mapping[str, Any],
    force: bool,
) -> Manifest | None:
    """The manifest if the folder holds what is asked for, None if it is to be written.

    Raises DataError (something else is there), DamagedShard.
    """
    folder = Path(config.prepared)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    if not (folder / MANIFEST_NAME).is_file():
        raise DataError(
            f"{folder}: is there, but `xylem prepare` did not write it: set data.prepared to "
            "another folder"
        )
    try:
        manifest = Manifest.load(folder)
        before = read_fingerprint(folder / FINGERPRINT_NAME)
    except DataError:
        if force:
            return None
        raise
    changes = changed_settings(manifest.settings, settings)
    first = {c: e.family for c, e in manifest.languages.items() if not is_added(e)}
    if first != dict(build_family_map(sorted(first), config.families).family_of):
        changes.append("data.families gives other families")
    if different := changed_files(before, fingerprint):
        changes.append(f"{len(different)} files of the corpus changed ({different[0]} …)")
    if changes:
        if force:
            return None
        raise DataError(
            f"{folder}: prepared before, but {'; '.join(changes)}: choose another data.prepared, "
            "or replace it by adding --force to the same command"
        )
    check_sizes(folder, all_shards(folder, manifest.languages))
    return manifest


def is_added(entry: LanguageEntry) -> bool:
    """Whether a language came with a shard set that was added later."""
    return entry.sources[0].shards.table.startswith(f"{SETS_FOLDER}/")


def all_shards(folder: Path, languages: Mapping[str, LanguageEntry]) -> list[Shard]:
    """Every shard that the languages' tables name; raises DamagedShard for a wrong table."""
    storage = open_storage(folder)
    return [
        shard
        for entry in languages.values()
        for shard_set in entry.shard_sets
        for shard in read_table(storage, shard_set)
    ]


def verify_shards(folder: Path, languages: Mapping[str, LanguageEntry], console: Console) -> None:
    """Re-hashes every shard; raises DamagedShard naming the first that is not what it should be."""
    shards = all_shards(folder, languages)
    with stage_progress(console, "verify", sum(shard.bytes for shard in shards)) as step:
        verify(folder, shards, step.advance)


def check_unchanged(before: Mapping[str, object], after: Mapping[str, object]) -> None:
    """Raises DataError when the corpus changed between two fingerprints."""
    if different := changed_files(before, after):
        raise DataError(
            f"{len(different)} files of the corpus changed while they were prepared "
            f"({different[0]} …): run the same command again when nothing changes them"
        )
