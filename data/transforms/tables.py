"""Tab-separated files that a user hands to a transform, line by line."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from ..errors import DataError
from ..sources import read_lines


def read_rows(path: str, columns: str) -> Iterator[tuple[int, list[str]]]:
    """The lines of a file as (line number, fields without spaces around them).

    Empty lines are passed over; `.gz` and `.zst` are decompressed. `columns` says in an error what
    a line must hold. Raises DataError with the line's number.
    """
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file: write one, each line {columns}, tabs between")
    for number, line in enumerate(read_lines(Path(path)), 1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            raise DataError(
                f"{path}: line {number}: invalid UTF-8: convert the file to UTF-8"
            ) from None
        if not text.strip():
            continue
        row = [field.strip() for field in text.split("\t")]
        if len(row) < 2 or not all(row):
            raise DataError(
                f"{path}: line {number}: {text.strip()[:60]!r} has a field too few or an empty "
                f"one: write {columns}, tabs between"
            )
        yield number, row


def file_sha256(path: str) -> str:
    """The sha256 of a file's bytes as they are stored; raises DataError."""
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file: write its path into data.derived")
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
