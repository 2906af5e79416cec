"""How a tokenizer treats each language: fertility, bytes per token, byte fallback, premium.

The premium (Petrov et al. 2023, arXiv:2305.15425) is how many more tokens a language needs for the
same content than the language that needs fewest, so it exists on parallel text only: texts of two
languages with equal ids. How unequal the premiums are is one number, their Gini coefficient (0 when
all languages pay the same). Read next: `parity.py`, which trains for equal premiums.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.table import Table

from .config import DataConfig
from .manifest import Manifest
from .parallel_text import Texts, parallel_texts
from .sources import discover, language_folder, read_documents
from .storage import Storage
from .token_line import TokenLine
from .tokenizer import Tokenizer

__all__ = [
    "Fairness",
    "TokenizerRow",
    "corpus_texts",
    "fairness",
    "gini",
    "heldout_texts",
    "parallel_texts",
    "report_json",
    "report_table",
    "tokenizer_report",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerRow:
    """What the tokenizer does to one language."""

    language: str
    """Language code."""
    texts: int
    """Texts that were encoded."""
    bytes: int
    """Their UTF-8 bytes."""
    tokens: int
    """Their tokens."""
    fertility: float
    """Tokens per word, words being what whitespace separates (large for scripts without spaces)."""
    bytes_per_token: float
    """UTF-8 bytes per token."""
    byte_fallback: float
    """Share of the tokens that are one byte of a character without a piece of its own."""
    premium: float | None
    """Tokens relative to the best language's for the same ids; None without ids in common."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fairness:
    """How equally the tokenizer treats all languages."""

    languages: int
    """Languages that were compared."""
    gini: float | None
    """Gini coefficient of the premiums: 0 for equal ones; None without parallel text."""
    worst_premium: float | None
    """The largest premium."""
    premium_95: float | None
    """The premium that 95 % of the languages do not exceed."""
    worst_language: str
    """The language of the largest premium, or of the fewest bytes a token without premiums."""
    least_bytes_per_token: float
    """Bytes a token of the language with fewest."""
    bytes_per_token: float
    """Bytes a token of all text."""
    byte_fallback: float
    """Share of all tokens that are one byte of a character without a piece."""


def tokenizer_report(
    tokenizer: Tokenizer, texts: Texts, *, parallel: bool = True
) -> list[TokenizerRow]:
    """A row for each language that has text, the dearest first.

    `parallel` says that equal ids are the same content.
    """
    counts: dict[str, dict[str, int]] = {}
    fallback: dict[str, int] = {}
    rows: list[TokenizerRow] = []
    partial = tokenizer.is_byte & np.array([p >= "<0x80>" for p in tokenizer.pieces])
    for code, by_id in texts.items():
        encoded = tokenizer.encode_batch(list(by_id.values()))
        counts[code] = dict(zip(by_id, map(len, encoded), strict=True))
        fallback[code] = sum(int(partial[ids].sum()) for ids in encoded)
    premiums = _premiums(counts) if parallel else {}
    for code, by_id in texts.items():
        tokens = sum(counts[code].values())
        if not tokens:
            continue
        size = sum(len(text.encode()) for text in by_id.values())
        words = sum(len(text.split()) for text in by_id.values())
        rows.append(
            TokenizerRow(
                language=code,
                texts=len(by_id),
                bytes=size,
                tokens=tokens,
                fertility=tokens / max(words, 1),
                bytes_per_token=size / tokens,
                byte_fallback=fallback[code] / tokens,
                premium=premiums.get(code),
            )
        )
    return sorted(rows, key=lambda row: (-(row.premium or 0), row.bytes_per_token, row.language))


def fairness(rows: Sequence[TokenizerRow]) -> Fairness | None:
    """A report in few numbers; None of a report without rows.

    Languages that have no premium are left out where others have one.
    """
    compared = [row for row in rows if row.premium is not None] or list(rows)
    if not compared:
        return None
    premiums = np.array([row.premium for row in compared if row.premium is not None])
    tokens = sum(row.tokens for row in compared)
    return Fairness(
        languages=len(compared),
        gini=gini(premiums) if len(premiums) else None,
        worst_premium=float(premiums.max()) if len(premiums) else None,
        premium_95=float(np.quantile(premiums, 0.95)) if len(premiums) else None,
        worst_language=compared[0].language,
        least_bytes_per_token=min(row.bytes_per_token for row in compared),
        bytes_per_token=sum(row.bytes for row in compared) / tokens,
        byte_fallback=sum(row.byte_fallback * row.tokens for row in compared) / tokens,
    )


def gini(values: npt.ArrayLike) -> float:
    """The Gini coefficient of non-negative values: their mean absolute difference over twice the
    mean. 0 when all are equal, (n - 1) / n when one has everything.
    """
    x = np.sort(np.asarray(values, float))
    ranks = 2 * np.arange(1, len(x) + 1) - len(x) - 1
    return float(ranks @ x / (len(x) * x.sum()))


def _premiums(counts: Mapping[str, Mapping[str, int]]) -> dict[str, float]:
    """Tokens per token of the best language, through the language that has most ids.

    Not every text is there in every language, so each is compared with one pivot on the ids that
    both have, and the ratios with one another.
    """
    pivot = max(sorted(counts), key=lambda code: len(counts[code]), default=None)
    if pivot is None:
        return {}
    ratios: dict[str, float] = {}
    for code, by_id in counts.items():
        shared = by_id.keys() & counts[pivot].keys()
        ours, theirs = (sum(c[i] for i in shared) for c in (by_id, counts[pivot]))
        if ours and theirs:
            ratios[code] = ours / theirs
    if len(ratios) < 2:
        return {}
    best = min(ratios.values())
    return {code: ratio / best for code, ratio in ratios.items()}


def heldout_texts(
    folder: Storage | Path, manifest: Manifest, tokenizer: Tokenizer
) -> dict[str, dict[str, str]]:
    """The held-out documents of a prepared folder, by language and id."""
    texts: dict[str, dict[str, str]] = {}
    for code, entry in manifest.languages.items():
        line = TokenLine(folder, entry.heldout)
        bounds = line.document_bounds()
        texts[code] = {
            document_id: tokenizer.decode(line.read(int(bounds[n]), int(bounds[n + 1])))
            for n, document_id in enumerate(line.document_ids())
        }
    return texts


def corpus_texts(config: DataConfig, most_bytes: int = 1_000_000) -> dict[str, dict[str, str]]:
    """The first documents of each language of a corpus, up to `most_bytes` of text each."""
    corpus = Path(config.corpus)
    texts: dict[str, dict[str, str]] = {}
    for code, paths in discover(corpus, config.languages).items():
        texts[code] = by_id = {}
        size = 0
        for path in paths:
            for document in read_documents(
                path,
                text_field=config.text_field,
                id_field=config.id_field,
                on_bad_line=config.on_bad_line,
                language_folder=language_folder(corpus, code),
            ):
                if size >= most_bytes:
                    break
                by_id[document.id] = document.text
                size += len(document.text.encode())
    return texts


def report_table(rows: Sequence[TokenizerRow]) -> Table:
    """The report for a terminal."""
    table = Table(
        "language", title="Tokenizer, the dearest language first", caption=_caption(fairness(rows))
    )
    for name in ("premium", "tokens/word", "bytes/token", "byte fallback", "tokens"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.language,
            "" if row.premium is None else f"{row.premium:.2f}",
            f"{row.fertility:.2f}",
            f"{row.bytes_per_token:.2f}",
            f"{row.byte_fallback:.1%}",
            f"{row.tokens:,}",
        )
    return table


def report_json(rows: Sequence[TokenizerRow]) -> str:
    """The report as JSON: `fairness` (null without rows), and `languages`, an object for each."""
    summary = fairness(rows)
    report = {
        "fairness": asdict(summary) if summary else None,
        "languages": [asdict(row) for row in rows],
    }
    return json.dumps(report, indent=1)


def _caption(summary: Fairness | None) -> str:
    if summary is None:
        return "no text"
    told = [f"{summary.languages} languages"]
    if summary.gini is not None:
        told += [
            f"Gini of token cost {summary.gini:.3f}",
            f"worst premium {summary.worst_premium:.2f} ({summary.worst_language}), 95 % at most "
            f"{summary.premium_95:.2f}",
        ]
    told += [
        f"bytes a token {summary.bytes_per_token:.2f}, least {summary.least_bytes_per_token:.2f}",
        f"byte fallback {summary.byte_fallback:.1%} of tokens",
    ]
    return "; ".join(told)
