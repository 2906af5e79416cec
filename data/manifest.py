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
from .shards import Shard, write_atomically

MANIFEST_VERSION = 1
MANIFEST_NAME = "manifest.json"
TOKENIZER_FOLDER = "tokenizer"
TOKENIZER_MODEL = "tokenizer.model"


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageEntry:
    """One language of a prepared folder."""

    code: str
    """Language code, `swh_Latn`."""
    family: str
    """The family whose experts the language uses."""
    train: tuple[Shard, ...]
    """Shards of the training split, in the order of the token line."""
    heldout: tuple[Shard, ...]
    """Shards of the held-out documents."""

    @property
    def train_tokens(self) -> int:
        """Tokens of the training split."""
        return sum(shard.tokens for shard in self.train)

    @property
    def train_documents(self) -> int:
        """Documents of the training split."""
        return sum(shard.documents for shard in self.train)

    @property
    def train_bytes(self) -> int:
        """UTF-8 bytes of the training split's text."""
        return sum(shard.text_bytes for shard in self.train)

    @property
    def heldout_tokens(self) -> int:
        """Tokens of the held-out documents."""
        return sum(shard.tokens for shard in self.heldout)

    @property
    def heldout_documents(self) -> int:
        """Held-out documents."""
        return sum(shard.documents for shard in self.heldout)

    @property
    def heldout_bytes(self) -> int:
        """UTF-8 bytes of the held-out documents' text."""
        return sum(shard.text_bytes for shard in self.heldout)


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
    def load(cls, folder: Path) -> "Manifest":
        """Reads a prepared folder's manifest; raises DataError when it is not to be trusted."""
        path = Path(folder) / MANIFEST_NAME
        try:
            body = json.loads(path.read_text("utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(
                f"{folder}: no manifest here, so nothing that was prepared: run `xylem prepare` "
                "or set data.prepared to a prepared folder"
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
                    train=tuple(Shard(**shard) for shard in entry["train"]),
                    heldout=tuple(Shard(**shard) for shard in entry["heldout"]),
                )
                for code, entry in sorted(body["languages"].items())
            },
            families=tuple(body["families"]),
            seed=body["seed"],
            settings=body["settings"],
        )
        manifest._check_tokenizer(Path(folder))
        return manifest

    def _check_tokenizer(self, folder: Path) -> None:
        model = folder / TOKENIZER_FOLDER / TOKENIZER_MODEL
        if not model.is_file():
            return
        found = hashlib.sha256(model.read_bytes()).hexdigest()
        if found != self.tokenizer_sha256:
            raise DataError(
                f"{model.parent}: this tokenizer ({found[:12]}…) did not make the shards beside it "
                f"({self.tokenizer_sha256[:12]}…): put the original back or run "
                "`xylem prepare --force`"
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
            "languages": {
                code: {
                    "family": entry.family,
                    "train": [asdict(shard) for shard in entry.train],
                    "heldout": [asdict(shard) for shard in entry.heldout],
                }
                for code, entry in sorted(self.languages.items())
            },
        }


def _hash(body: dict[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()
