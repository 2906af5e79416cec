"""How fair is a vocabulary, and what does fairness cost? Plain BPE beside the fair algorithms.

    python -m xylem.scripts.bench_tokenizer [--quick] [--json] [--vocabularies 8192 16384 32768]

Every tokenizer learns from the same sample of the corpora in `XYLEM_SHARED`, compares languages on
other documents of theirs with equal ids, and is judged on the Universal Declaration of Human
Rights, and for compression on a third set of the corpora's documents.
docs/TOKENIZER.md holds the tables and what follows from them.
"""

import argparse
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..data.config import TokenizerConfig
from ..data.parallel_text import Texts, parallel_texts
from ..data.parity import ParityConfig, is_development
from ..data.sources import discover, language_folder, read_documents
from ..data.tokenizer import sample_budgets, train_tokenizer
from ..data.tokenizer_report import Fairness, fairness, tokenizer_report
from .goals import Goal, print_goals

HELDOUT_SHARE = 0.04
HELDOUT_DOCUMENTS = 20
"""A language; Bible chapters and stories, a few kB each."""
LEAST_LANGUAGES = 100

VARIANTS: Mapping[str, ParityConfig] = {
    "plain BPE": ParityConfig(),
    "weighted, sharpness 4": ParityConfig(algorithm="weighted"),
    "weighted, sharpness 8": ParityConfig(algorithm="weighted", sharpness=8),
    "parity": ParityConfig(algorithm="parity"),
    "plain BPE, fair characters": ParityConfig(algorithm="parity", global_share=1.0),
    "parity, half global": ParityConfig(algorithm="parity", global_share=0.5),
    "parity, window 1,000": ParityConfig(algorithm="parity", window=1000),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Disjoint documents of the corpora, by language and id, and the text that judges."""

    sample: Mapping[str, Sequence[str]]
    """What is learnt from."""
    development: Texts
    """Where the fair algorithms compare languages."""
    heldout: Texts
    """Where compression is measured."""
    known: Texts
    """Parallel text of the languages that the sample holds."""
    all: Texts
    """Parallel text of all languages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One tokenizer."""

    name: str
    vocabulary: int
    seconds: float
    """Processor seconds of training."""
    known: Fairness
    all: Fairness
    heldout: Fairness


def read_corpus(shared: Path, sample_bytes: int) -> Corpus:
    """Reads and divides the texts; raises FileNotFoundError where there are none."""
    folders = [shared / "data" / name for name in ("corpora", "corpora_small")]
    declaration = shared / "data" / "parallel" / "udhr.jsonl.gz"
    for path in (*folders, declaration):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such text: set XYLEM_SHARED to a folder with it")
    parts: dict[str, dict[str, dict[str, str]]] = {"learn": {}, "compare": {}, "held out": {}}
    for folder in folders:
        for code, paths in discover(folder, ()).items():
            for part in parts.values():
                part.setdefault(code, {})
            for path in paths:
                for document in read_documents(
                    path,
                    text_field="text",
                    id_field="id",
                    on_bad_line="error",
                    language_folder=language_folder(folder, code),
                ):
                    parts[part_of(document.id)][code][document.id] = document.text
    sizes = {c: sum(len(t.encode()) for t in by.values()) for c, by in parts["learn"].items()}
    budgets = sample_budgets(sizes, TokenizerConfig(sample_bytes=sample_bytes))
    judged = parallel_texts(declaration)
    sample = {code: drawn(by, budgets[code]) for code, by in parts["learn"].items()}
    return Corpus(
        sample=sample,
        development=parts["compare"],
        heldout={
            code: dict(sorted(by.items(), key=lambda item: _place(item[0]))[:HELDOUT_DOCUMENTS])
            for code, by in parts["held out"].items()
            if by
        },
        known={code: by for code, by in judged.items() if sample.get(code)},
        all=judged,
    )


def part_of(document_id: str) -> str:
    """Where a document belongs; equal ids belong together in every language."""
    if _place(document_id) < HELDOUT_SHARE:
        return "held out"
    return "compare" if is_development(document_id) else "learn"


def drawn(by_id: Mapping[str, str], budget: int) -> list[str]:
    """Whole documents in a keyed order up to a number of bytes, the last one cut."""
    texts: list[str] = []
    for each in sorted(by_id, key=_place):
        data = by_id[each].encode()[:budget]
        budget -= len(data)
        texts += [data.decode(errors="ignore")] if data else []
    return texts


def measure(corpus: Corpus, name: str, parity: ParityConfig, vocabulary: int) -> Measured:
    """Trains one tokenizer and judges it."""
    config = TokenizerConfig(vocab_size=vocabulary, parity=parity)
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        tokenizer = train_tokenizer(
            corpus.sample, config, Path(folder) / "tokenizer", parallel=corpus.development
        )
        seconds = time.process_time() - started
    known, everything, heldout = (
        fairness(tokenizer_report(tokenizer, texts, parallel=parallel))
        for texts, parallel in ((corpus.known, True), (corpus.all, True), (corpus.heldout, False))
    )
    assert known and everything and heldout
    return Measured(
        name=name, vocabulary=vocabulary, seconds=seconds, known=known, all=everything,
        heldout=heldout,
    )  # fmt: skip


def table_of(rows: Sequence[Measured], title: str, *, everything: bool = False) -> Table:
    """The measurements as a table; over the sample's languages, or all of the parallel text."""
    table = Table(title=title, title_justify="left")
    for name in (
        "vocabulary", "algorithm", "Gini", "worst premium", "95 %", "least bytes/token",
        "bytes/token", "byte fallback", "held out bytes/token", "seconds",
    ):  # fmt: skip
        left = name == "algorithm"
        table.add_column(name, justify="left" if left else "right", no_wrap=left)
    for row in rows:
        told = row.all if everything else row.known
        assert told.gini is not None and told.worst_premium is not None
        table.add_row(
            f"{row.vocabulary:,}", row.name, f"{told.gini:.4f}",
            f"{told.worst_premium:.2f} {told.worst_language}", f"{told.premium_95:.2f}",
            f"{told.least_bytes_per_token:.2f}", f"{told.bytes_per_token:.3f}",
            f"{told.byte_fallback:.2%}", f"{row.heldout.bytes_per_token:.3f}",
            f"{row.seconds:.0f}",
        )  # fmt: skip
    return table


def goals_of(rows: Sequence[Measured], name: str, plain: str) -> list[Goal]:
    """What an algorithm promises against plain BPE, over the languages of the sample.

    Each number is the worst over the vocabularies.
    """
    pairs = [
        (fair, next(r for r in rows if (r.name, r.vocabulary) == (plain, fair.vocabulary)))
        for fair in rows
        if fair.name == name
    ]
    ratios: dict[str, list[float]] = {}
    for fair, theirs in pairs:
        for field in ("gini", "worst_premium", "byte_fallback", "least_bytes_per_token"):
            ratio = getattr(fair.known, field) / max(getattr(theirs.known, field), 1e-9)
            ratios.setdefault(field, []).append(ratio)
    kept = min(f.heldout.bytes_per_token / p.heldout.bytes_per_token for f, p in pairs)
    least = min(ratios["least_bytes_per_token"])
    languages = min(fair.known.languages for fair, _ in pairs)
    return [
        Goal("languages", languages, LEAST_LANGUAGES, "languages", at_least=True),
        Goal("gini_against_plain", max(ratios["gini"]), 0.85, "times"),
        Goal("worst_premium_against_plain", max(ratios["worst_premium"]), 0.6, "times"),
        Goal("least_bytes_per_token_against_plain", least, 1.1, "times", at_least=True),
        Goal("byte_fallback_against_plain", max(ratios["byte_fallback"]), 1.0, "times"),
        Goal("heldout_compression_loss", 100 * (1 - kept), 5.0, "%"),
    ]


def _place(document_id: str) -> float:
    digest = hashlib.blake2b(document_id.encode(), digest_size=8, key=b"bench").digest()
    return int.from_bytes(digest) / 2**64


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small sample, two tokenizers")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[8192, 16384, 32768])
    parser.add_argument("--sample-bytes", type=int, default=10_000_000)
    arguments = parser.parse_args()
    console = Console(stderr=arguments.json, width=150)
    variants = dict(VARIANTS)
    names, vocabularies, size = list(variants), arguments.vocabularies, arguments.sample_bytes
    if arguments.quick:
        names, vocabularies, size = names[:2], [4096], 1_000_000
        variants = {name: replace(variants[name], development_bytes=5000) for name in names}
    shared = Path(os.environ.get("XYLEM_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    try:
        corpus = read_corpus(shared, size)
    except FileNotFoundError as error:
        sys.exit(f"error: {error}")
    rows: list[Measured] = []
    for vocabulary in vocabularies:
        for name in names:
            rows.append(measure(corpus, name, variants[name], vocabulary))
            console.print(f"{vocabulary:,} {name}: {rows[-1].seconds:.0f} s")
    console.print(table_of(rows, f"{len(corpus.known)} languages of the sample"))
    console.print(table_of(rows, f"all {len(corpus.all)} languages", everything=True))
    plain, fair = names[:2]
    print_goals(goals_of(rows, fair, plain), console, as_json=arguments.json)


if __name__ == "__main__":
    main()
