"""Which raw files are there, and which documents do they hold?

What `sources.py` reads (JSONL, parquet, plain text), and WARC archives (`.warc`, `.warc.gz`, of a
language as the others are, or in the folder `und`). Documents in `und` (ISO 639-3: undetermined),
or in a file of that name, have no label: the language model gives them one. From a WARC are read
its text records (`conversion`, as WET files hold) as they are, and the main text of its HTML pages
as trafilatura finds it (Barbaresi, 2021). Read next: `filtering.py`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ..errors import DataError
from ..sources import SUFFIXES, Document, ReadCounts, discover, language_folder, read_documents

if TYPE_CHECKING:
    from warcio.recordloader import ArcWarcRecord

UNLABELLED = "und"
"""Name of the file or folder whose documents have no language yet."""
WARC_SUFFIXES = (".warc", ".warc.gz", ".wet", ".wet.gz")
_HTML = ("text/html", "application/xhtml+xml")


class RawCorpus(Protocol):
    """The settings that say where raw text is and how it is read, as `DataConfig` has them."""

    @property
    def corpus(self) -> str:
        """Folder of raw text."""
        ...

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes to use; empty means all."""
        ...

    @property
    def text_field(self) -> str:
        """Field of the text."""
        ...

    @property
    def id_field(self) -> str:
        """Field of the document id."""
        ...

    @property
    def copies_field(self) -> str:
        """Field of how often a document counts; empty for none."""
        ...

    @property
    def on_bad_line(self) -> Literal["error", "skip"]:
        """What a malformed line does."""
        ...

    @property
    def seed(self) -> int:
        """Seed of what is chosen by chance."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RawFile:
    """One file of raw text."""

    language: str
    """Its code, or `und`."""
    path: Path
    folder: Path | None
    """The folder that holds the language's files, if it has one."""


def raw_files(corpus: Path, languages: Sequence[str] = ()) -> list[RawFile]:
    """The raw files of a corpus folder, by language and name.

    With `languages`, only these and what has no label. Raises DataError, as `discover` does.
    """
    entries = sorted(corpus.iterdir()) if corpus.is_dir() else []
    entries = [entry for entry in entries if not entry.name.startswith(".")]
    archives: dict[str, list[Path]] = {}
    labelled: list[str] = []
    for entry in entries:
        code = entry.name.split(".")[0]
        if languages and code not in (*languages, UNLABELLED):
            continue
        suffixes = (*SUFFIXES, *WARC_SUFFIXES) if code == UNLABELLED else WARC_SUFFIXES
        found = _files(entry, suffixes)
        if found:
            archives.setdefault(code, []).extend(found)
        if code != UNLABELLED and _files(entry, SUFFIXES):
            labelled.append(code)
    missing = [code for code in languages if code not in labelled and code not in archives]
    if missing or not (labelled or archives):
        discover(corpus, languages)  # says what is wrong
    found_text = discover(corpus, labelled) if labelled else {}
    _check_codes(archives, found_text)
    files = [(code, path) for code, paths in found_text.items() for path in paths]
    files += [(code, path) for code, paths in archives.items() for path in paths]
    return [
        RawFile(language=code, path=path, folder=language_folder(corpus, code))
        for code, path in sorted(files)
    ]


def read_raw(file: RawFile, config: RawCorpus, counts: ReadCounts) -> Iterator[Document]:
    """The documents of one raw file, in its order; raises DataError with the place."""
    if file.path.name.endswith(WARC_SUFFIXES):
        yield from _read_warc(file.path, config.on_bad_line, counts)
        return
    yield from read_documents(
        file.path,
        text_field=config.text_field,
        id_field=config.id_field,
        copies_field=config.copies_field,
        on_bad_line=config.on_bad_line,
        counts=counts,
        language_folder=file.folder,
    )


def _files(entry: Path, suffixes: tuple[str, ...]) -> list[Path]:
    inside = sorted(entry.rglob("*")) if entry.is_dir() else [entry]
    return [
        path
        for path in inside
        if path.is_file()
        and path.name.endswith(suffixes)
        and not any(part.startswith(".") for part in path.relative_to(entry.parent).parts)
    ]


def _check_codes(archives: dict[str, list[Path]], text: dict[str, list[Path]]) -> None:
    from ..languages import language

    for code, paths in archives.items():
        if code != UNLABELLED and code not in text:
            try:
                language(code)
            except DataError as error:
                raise DataError(
                    f"{paths[0]}: must be named by a language code, or stand in {UNLABELLED}/ "
                    f"if its language is not known: {error}"
                ) from None
    if any(path.name.endswith(WARC_SUFFIXES) for paths in archives.values() for path in paths):
        for module in ("warcio", "trafilatura"):
            if find_spec(module) is None:
                raise DataError(
                    f"{module} is not installed, and WARC files need it: run `pip install "
                    "'xylem[curation]'`"
                )


def _read_warc(
    path: Path, on_bad_line: Literal["error", "skip"], counts: ReadCounts
) -> Iterator[Document]:
    from warcio.archiveiterator import ArchiveIterator

    number = 0
    try:
        with open(path, "rb") as file:
            records = iter(ArchiveIterator(file))
            while True:
                number += 1
                record = next(records, None)
                if record is None:
                    return
                text = _text(record)
                if record.raw_stream.read(1) or getattr(record.raw_stream, "limit", 0) > 0:
                    raise EOFError("a record ends before its length")
                if text is None:
                    continue
                if not text.strip():
                    counts.empty += 1
                    continue
                counts.documents += 1
                identifier = record.rec_headers.get_header("WARC-Record-ID")
                yield Document(id=identifier or f"{path.name}:{number}", text=text)
    except Exception as error:
        # warcio raises its own exceptions, zlib's and plain ones for what is no WARC.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        what = " ".join(str(error).split()) or type(error).__name__
        message = f"{path}: record {number}: cut off or no WARC ({what[:200]})"
        if on_bad_line == "error":
            raise DataError(
                f"{message}: copy it again, leave it out, or set data.on_bad_line=skip"
            ) from None
        counts.bad += 1
        counts.first_bad = counts.first_bad or message


def _text(record: "ArcWarcRecord") -> str | None:
    """The text of a record; None if it is of a kind that holds none, empty if none was found."""
    if record.rec_type == "conversion":
        content: bytes = record.content_stream().read()
        return content.decode("utf-8", "replace")
    if record.rec_type != "response" or record.http_headers is None:
        record.content_stream().read()
        return None
    kind = record.http_headers.get_header("Content-Type", "").split(";")[0].strip().lower()
    page: bytes = record.content_stream().read()
    if kind not in _HTML or record.http_headers.get_statuscode() != "200":
        return None
    return _main_text(page)


def _main_text(page: bytes) -> str:
    import trafilatura

    found: Any = trafilatura.extract(
        page, favor_precision=True, include_comments=False, deduplicate=False
    )
    return found or ""
