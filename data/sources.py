"""A user's corpus folder: which files hold which language, and the documents inside them.

One file or folder a language, named by its code:

- JSONL (`.jsonl`, `.json`): one object a line with a text field, and an id field if there is one;
- parquet (`.parquet`): FineWeb-2's columns, `text` and `id`;
- plain text (`.txt`): in a language's folder each file is one document, whose id is its path in
  that folder; a single file `swh_Latn.txt` holds documents separated by blank lines.

JSONL and text may be compressed (`.gz`, `.zst`). Text is kept as it is: nothing is normalised.
Documents without text are left out and counted. Read next: `prepare.py`.
"""

import difflib
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal, cast

import pyarrow
import pyarrow.parquet

from .errors import DataError

JSON_SUFFIXES = (".jsonl", ".json")
TEXT_SUFFIXES = (".txt",)
PARQUET_SUFFIXES = (".parquet",)
COMPRESSIONS = (".gz", ".zst")
SUFFIXES = (
    *(a + b for a in JSON_SUFFIXES + TEXT_SUFFIXES for b in ("", *COMPRESSIONS)),
    *PARQUET_SUFFIXES,
)
MOST_COPIES = 100
"""Each number of copies is a source of its own in the mixture."""
_REMOVED = "_removed"
"""FineWeb-2's folders of documents that its filters left out."""
_CODE_SHAPE = re.compile(r"[A-Za-z]{2,3}[_-][A-Za-z]{4}")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One document of a corpus."""

    id: str
    """Equal ids in two languages are the same document, translated."""
    text: str
    """The text as it stands in the corpus; never empty, always encodable as UTF-8."""
    copies: int = 1
    """How many documents it stands for, where near-duplicates were dropped."""


@dataclass(slots=True, kw_only=True)
class ReadCounts:
    """What reading came across; `read_documents` adds to it."""

    documents: int = 0
    """Documents given out."""
    empty: int = 0
    """Documents without text, left out."""
    bad: int = 0
    """Malformed lines or rows, left out (`on_bad_line` is `skip`)."""
    first_bad: str = ""
    """The first malformed one: what and where."""


@dataclass(slots=True, kw_only=True)
class _Reading:
    """The settings of one reading, passed down to the format's reader."""

    path: Path
    text_field: str
    id_field: str
    copies_field: str
    skip: bool
    counts: ReadCounts
    whole_file: str | None = None
    """The id of the one document that a text file is; None where blank lines separate them."""
    lines: str = field(default="line")

    def bad(self, number: int, problem: str, way_out: str) -> None:
        """A malformed line: an error with its place, or one more that is counted."""
        where = f"{self.path}: {self.lines} {number}"
        if not self.skip:
            raise DataError(f"{where}: {problem}: {way_out}, or set data.on_bad_line=skip")
        self.counts.bad += 1
        self.counts.first_bad = self.counts.first_bad or f"{where}: {problem}"


def discover(corpus: Path, languages: Sequence[str] = ()) -> dict[str, list[Path]]:
    """The files of each language of a corpus folder, codes and files in sorted order.

    With `languages`, only these, and all of them. Files with a suffix that Xylem does not read and
    hidden files are passed over. Raises DataError.
    """
    if corpus.is_file():
        raise DataError(f"{corpus}: this is a file: set data.corpus to its folder, {corpus.parent}")
    if not corpus.is_dir():
        raise DataError(
            f"{corpus}: no such folder: set data.corpus to a folder of text "
            "(`python -m xylem.scripts.make_world runs/world` makes the default one)"
        )
    entries = sorted(entry for entry in corpus.iterdir() if not entry.name.startswith("."))
    if not entries:
        raise DataError(
            f"{corpus}: this folder is empty: put one file or folder a language into it, "
            "named by its code (swh_Latn.jsonl.gz)"
        )
    found: dict[str, list[Path]] = {}
    for entry in entries:
        code = entry.name.split(".")[0]
        if languages and code not in languages:
            continue
        if entry.is_dir() and code.endswith(_REMOVED):
            continue
        files = _files(entry)
        if not files and not _CODE_SHAPE.fullmatch(code):
            continue
        if not files:
            raise DataError(f"{entry}: nothing here that Xylem reads: use {', '.join(SUFFIXES)}")
        _check_code(entry, code)
        if code in found:
            raise DataError(
                f"{entry}: {code} is already in {found[code][0]}: keep one of them, or put both "
                f"into a folder {code}/"
            )
        found[code] = files
    missing = [code for code in languages if code not in found]
    if missing:
        names = [entry.name.split(".")[0] for entry in entries]
        near = difflib.get_close_matches(missing[0], names, n=3, cutoff=0.5)
        hint = f" (did you mean {', '.join(near)}?)" if near else ""
        raise DataError(
            f"{corpus}: no text of {', '.join(missing)}, which data.languages asks for{hint}: "
            "add its file or take it out of data.languages"
        )
    if not found:
        raise DataError(
            f"{corpus}: no file that Xylem reads ({', '.join(SUFFIXES)}): put one file or folder "
            "a language into it, named by its code (swh_Latn.jsonl.gz)"
        )
    return found


def read_documents(
    path: Path,
    *,
    text_field: str = "text",
    id_field: str = "id",
    copies_field: str = "",
    on_bad_line: Literal["error", "skip"] = "error",
    counts: ReadCounts | None = None,
    language_folder: Path | None = None,
) -> Iterator[Document]:
    """The documents of one file, in the file's order.

    `language_folder` is the folder that holds the language's files, if it has one: a text file in
    it is one document. A document without an id gets `file name:line`; one without `copies_field`,
    or any without the name of such a field, counts once. Raises DataError with the place.
    """
    reading = _Reading(
        path=path,
        text_field=text_field,
        id_field=id_field,
        copies_field=copies_field,
        skip=on_bad_line == "skip",
        counts=ReadCounts() if counts is None else counts,
    )
    kind, compression = _format(path)
    if kind in PARQUET_SUFFIXES:
        documents = _read_parquet(reading)
    elif kind in JSON_SUFFIXES:
        documents = _read_jsonl(reading, read_lines(path))
    elif language_folder is not None:
        name = path.relative_to(language_folder).as_posix()
        reading.whole_file = name.removesuffix(compression).removesuffix(kind)
        documents = _read_text(reading, read_lines(path))
    else:
        documents = _read_text(reading, read_lines(path))
    for document in documents:
        if not document.text.strip():
            reading.counts.empty += 1
            continue
        reading.counts.documents += 1
        yield document


def language_folder(corpus: Path, code: str) -> Path | None:
    """The folder of a language that is a folder, None for one that is a file."""
    folder = corpus / code
    return folder if folder.is_dir() else None


def _files(entry: Path) -> list[Path]:
    # FineWeb-2 keeps a test split beside the one to train on.
    left_out = entry / "test" if (entry / "train").is_dir() else None
    candidates = sorted(entry.rglob("*")) if entry.is_dir() else [entry]
    return [
        file
        for file in candidates
        if file.is_file()
        and file.name.endswith(SUFFIXES)
        and left_out not in file.parents
        and not any(part.startswith(".") for part in file.relative_to(entry.parent).parts)
    ]


def _check_code(entry: Path, code: str) -> None:
    from .languages import language  # loads a database of languages: only where it is needed

    try:
        language(code)
    except DataError as error:
        raise DataError(
            f"{entry}: must be named by a language code: {error}; rename it, move it out, or list "
            "the languages to use in data.languages"
        ) from None


def _format(path: Path) -> tuple[str, str]:
    """The kind and the compression of a file: `a.jsonl.gz` -> (`.jsonl`, `.gz`)."""
    compression = path.suffix if path.suffix in COMPRESSIONS else ""
    return Path(path.name.removesuffix(compression)).suffix, compression


def read_lines(path: Path) -> Iterator[bytes]:
    """A file's lines with their ends, decompressed, without byte order mark; raises DataError."""
    _, compression = _format(path)
    try:
        with _open(path, compression) as file:
            for number, line in enumerate(file):
                yield line.removeprefix(_BYTE_ORDER_MARK) if number == 0 else line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _unreadable(path, "gzip", error) from None
    except OSError as error:
        # pyarrow reports a damaged stream as an OSError without a number; the rest is the machine's
        if compression != ".zst" or error.errno is not None:
            raise
        raise _unreadable(path, "zstd", error) from None


def _open(path: Path, compression: str) -> IO[bytes]:
    if compression == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if compression == ".zst":
        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    return open(path, "rb")


def _unreadable(path: Path, kind: str, error: Exception) -> DataError:
    what = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{path}: cut off or no {kind} file ({what}): copy it again or leave it out")


def _read_jsonl(reading: _Reading, lines: Iterator[bytes]) -> Iterator[Document]:
    text_field, id_field = reading.text_field, reading.id_field
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError:
            reading.bad(number, "invalid UTF-8", "convert the file to UTF-8")
            continue
        except (ValueError, RecursionError):
            reading.bad(number, "not JSON", "write one JSON object a line")
            continue
        if not isinstance(row, dict):
            reading.bad(number, "not a JSON object", "write one JSON object a line")
            continue
        if text_field not in row:
            there = ", ".join(map(repr, row)) or "none"
            reading.bad(
                number,
                f"no field {text_field!r} (its fields: {there})",
                "name the text's field in data.text_field",
            )
            continue
        copies = row.get(reading.copies_field) if reading.copies_field else None
        document = _document(reading, number, row.get(id_field), row[text_field], copies)
        if document is not None:
            yield document


def _read_parquet(reading: _Reading) -> Iterator[Document]:
    path = reading.path
    reading.lines = "row"
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if reading.text_field not in names:
                raise DataError(
                    f"{path}: no column {reading.text_field!r} (its columns: "
                    f"{', '.join(map(repr, names))}): name the text's column in data.text_field"
                )
            fields = (reading.text_field, reading.id_field, reading.copies_field)
            columns = [field for field in dict.fromkeys(fields) if field in names]
            for batch in file.iter_batches(batch_size=1024, columns=columns):
                texts = batch.column(reading.text_field)
                ids, copies = (batch.column(f) if f in columns else None for f in fields[1:])
                for row in range(batch.num_rows):
                    number += 1
                    try:
                        text = texts[row].as_py()
                        document_id = None if ids is None else ids[row].as_py()
                        stands_for = None if copies is None else copies[row].as_py()
                    except UnicodeDecodeError:
                        reading.bad(number, "invalid UTF-8", "convert the text to UTF-8")
                        continue
                    document = _document(reading, number, document_id, text, stands_for)
                    if document is not None:
                        yield document
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
        raise _unreadable(path, "parquet", error) from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise _unreadable(path, "parquet", error) from None


def _read_text(reading: _Reading, lines: Iterator[bytes]) -> Iterator[Document]:
    block: list[str] = []
    first = 1
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            reading.bad(number, "invalid UTF-8", "convert the file to UTF-8")
            continue
        if reading.whole_file is None and not text.strip():
            if block:
                yield Document(id=f"{reading.path.name}:{first}", text=_block_text(block))
            block = []
            continue
        first = first if block else number
        block.append(text)
    if reading.whole_file is not None:
        yield Document(id=reading.whole_file, text="".join(block))
    elif block:
        yield Document(id=f"{reading.path.name}:{first}", text=_block_text(block))


def _block_text(block: list[str]) -> str:
    return "".join(block).removesuffix("\n").removesuffix("\r")


def _document(
    reading: _Reading, number: int, document_id: object, text: object, copies: object
) -> Document | None:
    if not isinstance(text, str):
        reading.bad(
            number,
            f"{reading.text_field!r} is {_kind(text)}, not a string",
            "write the text as a string",
        )
        return None
    stands_for = 1 if copies is None else copies
    if type(stands_for) is not int or not 1 <= stands_for <= MOST_COPIES:
        reading.bad(
            number,
            f"{reading.copies_field!r} is {copies!r}, not a whole number from 1 to {MOST_COPIES}",
            "write how often the document counts, or name another field in data.copies_field",
        )
        return None
    missing = document_id in (None, "")
    identifier = f"{reading.path.name}:{number}" if missing else str(document_id)
    try:
        text.encode("utf-8")
        identifier.encode("utf-8")
    except UnicodeEncodeError:
        reading.bad(number, "half a surrogate pair, no Unicode text", "repair the escape \\uD8…")
        return None
    return Document(id=identifier, text=text, copies=stands_for)


def _kind(value: object) -> str:
    kinds = {type(None): "null", bool: "a boolean", int: "a number", float: "a number"}
    kinds |= {list: "a list", dict: "an object"}
    return kinds.get(cast(type, type(value)), type(value).__name__)
