"""How a tokenizer treats each language: fertility, bytes per token, byte fallback, premium.

The premium (Petrov et al. 2023, arXiv:2305.15425) is how many more tokens a language needs for the
same content than the language that needs fewest, so it exists on parallel text only: texts of two
languages with equal ids.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from .config import DataConfig
from .errors import DataError
from .manifest import Manifest
from .shards import TokenLine
from .sources import discover, language_folder, read_documents, read_lines
from .tokenizer import Tokenizer

Texts = Mapping[str, Mapping[str, str]]
"""Language code -> document id -> text."""


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


def parallel_texts(path: Path) -> dict[str, dict[str, str]]:
    """Reads JSONL (plain, .gz, .zst) of `lang` or `language`, `id`, `text`; raises DataError.

    Of several texts with one language and id (UDHR's variants) the first is taken.
    """
    texts: dict[str, dict[str, str]] = {}
    for number, line in enumerate(read_lines(path), 1):
        try:
            row = json.loads(line)
            code = row.get("language") or row["lang"]
            texts.setdefault(str(code), {}).setdefault(str(row["id"]), str(row["text"]))
        except (ValueError, KeyError, AttributeError, TypeError):
            raise DataError(
                f"{path}: line {number}: no JSON object with language (or lang), id and text: "
                "write one a line"
            ) from None
    if not texts:
        raise DataError(f"{path}: holds no text: write one JSON object a line")
    return texts


def heldout_texts(
    folder: Path, manifest: Manifest, tokenizer: Tokenizer
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
    table = Table("language", title="Tokenizer, the dearest language first")
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
    """The report as JSON, one object a language."""
    return json.dumps([asdict(row) for row in rows], indent=1)
