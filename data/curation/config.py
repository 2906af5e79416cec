"""Every setting of curation. Read next: `pipeline.py` (the stages), `quality.py` (thresholds)."""

from dataclasses import dataclass, field
from typing import Literal

from ..errors import DataError, check_minimums


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmConfig:
    """What Slurm is asked for, for each task of a stage."""

    partition: str = ""
    """Partition; needed with `executor: slurm`."""
    time: str = "24:00:00"
    """Time limit of a task."""
    cpus: int = 1
    """CPUs a task; a task is one process, so more only buy memory."""
    memory_gb: int = 4
    """Memory per CPU, in GB."""
    account: str = ""
    """Account to charge; empty is the user's own."""
    qos: str = ""
    """Quality of service; empty is the cluster's default."""
    arguments: dict[str, str] = field(default_factory=dict)
    """More `sbatch` options: name without dashes -> value."""
    setup: str = ""
    """Shell lines run before a task; empty puts this Python's folder first on PATH."""
    max_array_size: int = 1001
    """Slurm's MaxArraySize: stages with more tasks are submitted as several arrays."""
    poll_seconds: float = 10.0
    """How often the command that waits for a stage looks at the queue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageIdConfig:
    """Which model says what language a document is in."""

    enabled: bool = True
    """Without it the labels are believed, and only scripts are checked."""
    model: str = ""
    """Path of a fastText model file (GlotLID's `model.bin`); empty: the installed package's."""
    labels: dict[str, str] = field(default_factory=dict)
    """Codes of a fastText model's labels that are none: `zh` -> `zho_Hans`."""
    characters: int = 4000
    """The model reads so many characters from a document's beginning."""
    unlabelled_score: float = 0.5
    """Least probability with which the model names the language of a document without a label."""

    def __post_init__(self) -> None:
        check_minimums(self, "curation.language_id", characters=100)


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageThresholds:
    """When a document of a language is dropped; None takes the value of the level above.

    Names are those of FineWeb-2's configuration files. Levels, first to last: the language's entry
    in `quality.languages`, its file in `quality.fineweb2_configs`, `quality.default`, and
    `quality.RECIPE`. Words are those of `words.py`, in every script.
    """

    language_score: float | None = None
    """Least probability that the language model gives to the document's language."""
    script_share: float | None = None
    """Least share of letters in the script of the language's code."""
    dup_line_frac: float | None = None
    """Most lines that repeat an earlier one, as a share of lines."""
    top_n_grams: tuple[tuple[int, float], ...] | None = None
    """(n, most share of characters in the most frequent n-gram of words)."""
    dup_n_grams: tuple[tuple[int, float], ...] | None = None
    """(n, most share of characters in n-grams of words that repeat an earlier one)."""
    line_punct_thr: float | None = None
    """Least share of lines that end with punctuation that ends a sentence."""
    char_dup_ratio: float | None = None
    """Most characters in lines that repeat an earlier one, as a share of characters."""
    new_line_ratio: float | None = None
    """Most line ends a word."""
    min_doc_words: int | None = None
    """Least words."""
    max_doc_words: int | None = None
    """Most words."""
    min_avg_word_length: float | None = None
    """Least mean length of words, in characters; only in scripts that write spaces."""
    max_avg_word_length: float | None = None
    """Most mean length of words, in characters; only in scripts that write spaces."""
    max_non_alpha_words_ratio: float | None = None
    """LEAST share of words with a letter (the field's name for it says the opposite)."""
    stopwords: tuple[str, ...] | None = None
    """Frequent words of the language; without any the test on them is left out."""
    min_stop_words: int | None = None
    """Least different stop words in a document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityConfig:
    """The rules on a document's text: FineWeb-2's recipe of Gopher and FineWeb filters."""

    enabled: bool = True
    """Without it only languages and scripts are checked."""
    fineweb2_configs: str = ""
    """Folder of FineWeb-2's configuration files (`swh_Latn.yml`), tuned for each language."""
    default: LanguageThresholds = field(default_factory=LanguageThresholds)
    """For languages without thresholds of their own."""
    languages: dict[str, LanguageThresholds] = field(default_factory=dict)
    """Language code -> thresholds that win over the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MinHashConfig:
    """Near-duplicates within a language, by MinHash."""

    enabled: bool = True
    """Whether near-duplicates are dropped."""
    buckets: int = 14
    """Buckets of hashes; two documents meet if all hashes of one bucket are equal."""
    hashes: int = 8
    """Hashes a bucket."""
    ngrams: int = 5
    """Words a shingle."""
    seed: int = 0
    """Seed of the hash functions."""
    rehydrate: bool = False
    """Multiply `copies` by FineWeb-2's weight of the cluster's size."""

    def __post_init__(self) -> None:
        check_minimums(self, "curation.minhash", buckets=1, hashes=1, ngrams=1, seed=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecontaminationConfig:
    """Documents that hold evaluation texts."""

    sources: tuple[str, ...] = ()
    """JSONL files (`.jsonl`, `.jsonl.gz`, `.jsonl.zst`) of evaluation texts, or folders of them."""
    fields: tuple[str, ...] = ("text", "question", "premise", "stem")
    """Fields of an evaluation text; those that a file has are read."""
    id_field: str = "id"
    """Field of an evaluation text's id; a missing one becomes file name and line number."""
    ngrams: int = 13
    """Words in a row that a document may not share with an evaluation text."""

    def __post_init__(self) -> None:
        check_minimums(self, "curation.decontaminate", ngrams=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class CurationConfig:
    """From raw corpora to a clean corpus folder."""

    enabled: bool = False
    """Whether `xylem prepare` curates the corpus first."""
    folder: str = ""
    """Where the clean corpus is written; empty: `<data.prepared>.corpus`."""
    tasks: int = 4
    """Tasks a stage: what a killed run repeats, and how widely it spreads. Not in the result."""
    workers: int = 1
    """Tasks that run at once; -1 is all of them (on Slurm: no limit)."""
    executor: Literal["local", "slurm"] = "local"
    """Where tasks run: processes of this machine, or Slurm's."""
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    """With `executor: slurm`."""
    language_id: LanguageIdConfig = field(default_factory=LanguageIdConfig)
    """Is a document in the language that it is labelled with?"""
    quality: QualityConfig = field(default_factory=QualityConfig)
    """Is it running text?"""
    exact: bool = True
    """Drop documents whose normalised text was there before in the language."""
    minhash: MinHashConfig = field(default_factory=MinHashConfig)
    """Drop near-duplicates."""
    decontaminate: DecontaminationConfig = field(default_factory=DecontaminationConfig)
    """Drop evaluation texts."""

    def __post_init__(self) -> None:
        check_minimums(self, "curation", tasks=1, workers=-1)
        if self.workers == 0:
            raise DataError("curation.workers=0 runs nothing: set it to 1 or more, or -1 for all")
        if self.executor == "slurm" and not self.slurm.partition:
            raise DataError(
                "curation.executor=slurm needs curation.slurm.partition: name a partition "
                "(`sinfo` lists them)"
            )
