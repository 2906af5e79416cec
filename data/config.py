"""Every setting of the data room. Read next: `prepare.py` (text to shards), `stream.py`."""

from dataclasses import dataclass, field
from typing import Literal

from .curation.config import CurationConfig
from .errors import DataError, check_minimums
from .mixture import MixtureConfig
from .parity import ParityConfig
from .store import StorageConfig
from .transforms.config import TransformConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyConfig:
    """Which languages share experts."""

    map: Literal["genealogical", "random", "single"] = "genealogical"
    """By genealogy; a random map of the same group sizes (control arm); or one family."""
    split: tuple[str, ...] = ("indo_european",)
    """Top-level families that are split into their branches (germanic, italic, ...)."""
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Explicit families: name -> language codes; they win over the default map."""
    minimum: int = 1
    """Families with fewer languages than this are merged into the family `others`."""
    seed: int = 0
    """Seed of the random map."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerConfig:
    """How the tokenizer is trained."""

    path: str | None = None
    """Folder of a trained tokenizer to use instead of training one."""
    vocab_size: int = 8192
    """Number of tokens, with specials and the 256 bytes."""
    temperature: float = 3.0
    """Languages are sampled with share proportional to bytes^(1/temperature)."""
    sample_bytes: int = 20_000_000
    """Text that the trainer sees, over all languages."""
    seed: int = 0
    """Seed of the sample."""
    parity: ParityConfig = field(default_factory=ParityConfig)
    """Whose text decides which pieces the vocabulary holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """From a folder of text to the global batch of a step."""

    corpus: str = ""
    """Folder of raw text: a file or folder a language, named by its code (`swh_Latn.jsonl.gz`)."""
    prepared: str
    """Folder that `xylem prepare` writes: tokenizer, shards, manifest."""
    languages: tuple[str, ...] = ()
    """Language codes to use; empty means all that the corpus folder holds."""
    text_field: str = "text"
    """Field (JSONL) or column (parquet) of the text."""
    id_field: str = "id"
    """Field or column of the document id; a missing one becomes file name and line number."""
    copies_field: str = "copies"
    """Field or column that says how often a document counts; a missing one is 1."""
    on_bad_line: Literal["error", "skip"] = "error"
    """What a malformed line does: stop with its place, or be counted and left out."""
    heldout_share: float = 0.02
    """Share of document ids kept for evaluation; equal ids fall on the same side everywhere."""
    heldout_documents: int = 64
    """At most so many a language are written for evaluation; the others are left unused."""
    shard_tokens: int = 4_000_000
    """Tokens after which a new shard is begun."""
    bucket_bytes: int = 64_000_000
    """Text that one process sorts in memory at once; larger languages are cut into buckets."""
    prepare_workers: int = 1
    """Processes that `xylem prepare` works with; not in the result."""
    sequence_length: int = 512
    """Tokens a sequence, T."""
    slot_sequences: int = 4
    """Sequences a slot, k: all of one family."""
    slots_per_step: int = 8
    """Slots a step, S; the global batch is S x k sequences."""
    seed: int = 0
    """Seed of the order and of the held-out split."""
    storage: StorageConfig = field(default_factory=StorageConfig)
    """How a prepared folder behind a URL is read."""
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    """Which share of the batch each family, language and source gets."""
    families: FamilyConfig = field(default_factory=FamilyConfig)
    """The map from language to family."""
    curation: CurationConfig = field(default_factory=CurationConfig)
    """How the corpus is cleaned before it is prepared."""
    derived: dict[str, TransformConfig] = field(default_factory=dict)
    """Name -> a source made from the training documents of others."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """How the tokenizer is made."""

    def __post_init__(self) -> None:
        check_minimums(
            self, "data", heldout_share=0, heldout_documents=0, shard_tokens=1, bucket_bytes=1,
            prepare_workers=1, sequence_length=1, slot_sequences=1, slots_per_step=1,
        )  # fmt: skip
        if self.heldout_share >= 1:
            raise DataError(
                f"data.heldout_share={self.heldout_share} must be below 1: it leaves no text"
            )
