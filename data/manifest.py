"""What a prepared folder holds: its languages, families, shards and tokenizer, under one hash.

The order of the data is a function of this hash among others, so the manifest holds only what
decides the contents: no path, time or machine. Read next: `prepare.py`, which writes it last.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .errors import DataError
from .shards import ShardSet, write_atomically
from .storage import Storage, as_storage

MANIFEST_VERSION = 2
MANIFEST_NAME = "manifest.json"
PARENTS_FOLDER = "manifests"
"""Manifests that the present one extends, as HASH.json."""
TOKENIZER_FOLDER = "tokenizer"
TOKENIZER_MODEL = "tokenizer.model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One line of training tokens of a language: its text as it is, or derived from it."""

    name: str
    """`swh_Latn`; more text of it added later `swh_Latn@books`; read twice `swh_Latn.x2`; or the
    name of a derived source."""
    language: str
    """The language it counts for: its family's experts read it."""
    languages: tuple[str, ...]
    """Languages its sequences may hold, `language` first."""
    copies: int = 1
    """How often its tokens count in the mixture, for documents that stand for several."""
    transform: Mapping[str, Any] = field(default_factory=dict)
    """How it was derived; empty for text as it is."""
    shards: ShardSet
    """The shards, in the order of the token line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageEntry:
    """One language of a prepared folder."""

    code: str
    """Language code, `swh_Latn`."""
    family: str
    """The family whose experts the language uses."""
    sources: tuple[Source, ...]
    """What it is trained on. Of each shard set its text as it is, the documents that count once
    before those that count twice (`.x2`), and so on, then what is derived from it."""
    heldout: ShardSet
    """Shards of the held-out documents."""

    @property
    def train_tokens(self) -> int:
        """Tokens of the training split, over all sources."""
        return sum(source.shards.tokens for source in self.sources)

    @property
    def train_documents(self) -> int:
        """Documents of the training split, over all sources."""
        return sum(source.shards.documents for source in self.sources)

    @property
    def train_bytes(self) -> int:
        """UTF-8 bytes of the training split's text, over all sources."""
        return sum(source.shards.text_bytes for source in self.sources)

    @property
    def shard_sets(self) -> tuple[ShardSet, ...]:
        """Every line of the language, training and held out."""
        return (*(source.shards for source in self.sources), self.heldout)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The contents of a prepared folder."""

    version: int = MANIFEST_VERSION
    """Version of this format."""
    tokenizer_sha256: str
    """Of the tokenizer's model file, which every shard was encoded with."""
    vocab_size: int
    """Tokens of the vocabulary; every id in a shard is below it."""
    bos_id: int
    """The token before each document."""
    eos_id: int
    """The token after each document."""
    languages: Mapping[str, LanguageEntry]
    """Language code -> entry, in sorted order."""
    families: tuple[str, ...]
    """The families in their fixed order."""
    seed: int
    """Seed of the held-out split and of the order of documents."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Every setting that decided the contents."""
    parents: tuple[str, ...] = ()
    """Hashes of the manifests that this one extends, oldest first: it holds all their sources."""

    @property
    def sources(self) -> dict[str, Source]:
        """Every source by name, languages in sorted order."""
        return {s.name: s for entry in self.languages.values() for s in entry.sources}

    @property
    def hash(self) -> str:
        """sha256 of the canonical JSON: equal for equal contents, on any machine."""
        return _hash(self._body())

    def save(self, folder: Path) -> None:
        """Writes `manifest.json`, whole or not at all; raises OSError."""
        body = self._body()
        text = json.dumps({"hash": _hash(body)} | body, indent=1, ensure_ascii=False)
        write_atomically(Path(folder) / MANIFEST_NAME, (text + "\n").encode())

    @classmethod
    def load(cls, place: Storage | Path | str, *, file: str = MANIFEST_NAME) -> "Manifest":
        """Reads a prepared folder's manifest; raises DataError when it is not to be trusted."""
        storage = as_storage(place)
        path = storage.name_of(file)
        try:
            body = json.loads(storage.read(file))
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(
                f"{storage.place}: no manifest here, so nothing that was prepared: run "
                "`xylem prepare` or set data.prepared to a prepared folder"
            ) from None
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise DataError(f"{path}: not JSON: run `xylem prepare --force`") from None
        version = body.get("version") if isinstance(body, dict) else None
        if version != MANIFEST_VERSION:
            raise DataError(
                f"{path}: manifest version {version!r}, this Xylem reads {MANIFEST_VERSION}: "
                "run `xylem prepare --force` or use the Xylem that wrote it"
            )
        stored = body.pop("hash", None)
        if stored != _hash(body):
            raise DataError(
                f"{path}: edited after it was written (its hash differs): put the original back "
                "or run `xylem prepare --force`"
            )
        manifest = cls(
            version=version,
            tokenizer_sha256=body["tokenizer_sha256"],
            vocab_size=body["vocab_size"],
            bos_id=body["bos_id"],
            eos_id=body["eos_id"],
            languages={
                code: LanguageEntry(
                    code=code,
                    family=entry["family"],
                    sources=tuple(_source(fields) for fields in entry["sources"]),
                    heldout=ShardSet(**entry["heldout"]),
                )
                for code, entry in sorted(body["languages"].items())
            },
            families=tuple(body["families"]),
            seed=body["seed"],
            settings=body["settings"],
            parents=tuple(body["parents"]),
        )
        manifest._check_tokenizer(storage)
        return manifest

    def _check_tokenizer(self, storage: Storage) -> None:
        try:
            model = storage.read(f"{TOKENIZER_FOLDER}/{TOKENIZER_MODEL}")
        except (FileNotFoundError, NotADirectoryError):
            return
        found = hashlib.sha256(model).hexdigest()
        if found != self.tokenizer_sha256:
            raise DataError(
                f"{storage.name_of(TOKENIZER_FOLDER)}: this tokenizer ({found[:12]}…) did not make "
                f"the shards beside it ({self.tokenizer_sha256[:12]}…): put the original back or "
                "run `xylem prepare --force`"
            )

    def _body(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "tokenizer_sha256": self.tokenizer_sha256,
            "vocab_size": self.vocab_size,
            "bos_id": self.bos_id,
            "eos_id": self.eos_id,
            "families": list(self.families),
            "seed": self.seed,
            "settings": dict(self.settings),
            "parents": list(self.parents),
            "languages": {
                code: {
                    "family": entry.family,
                    "sources": [asdict(source) for source in entry.sources],
                    "heldout": asdict(entry.heldout),
                }
                for code, entry in sorted(self.languages.items())
            },
        }


def load_parent(folder: Storage | Path | str, digest: str) -> Manifest:
    """A manifest that the folder's present one extends, by its hash; raises DataError."""
    return Manifest.load(folder, file=f"{PARENTS_FOLDER}/{digest}.json")


def _source(fields: dict[str, Any]) -> Source:
    shards, languages = ShardSet(**fields.pop("shards")), tuple(fields.pop("languages"))
    return Source(shards=shards, languages=languages, **fields)


def _hash(body: dict[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()
