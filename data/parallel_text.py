"""Parallel text: the same documents in many languages, told apart by equal ids.

Read next: `tokenizer_report.py` and `parity.py`, which compare languages on it.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from .errors import DataError
from .sources import read_lines

Texts = Mapping[str, Mapping[str, str]]
"""Language code -> document id -> text."""


def parallel_texts(path: Path) -> dict[str, dict[str, str]]:
    """Reads JSONL (plain, .gz, .zst) of `lang` or `language`, `id`, `text`; raises DataError.

    Of several texts with one language and id (UDHR's variants) the first is taken.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file: name a JSONL file of parallel text")
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
