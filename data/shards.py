"""How tokens lie on disk: WebDataset tar shards with a side index, and tables of shards.

A sample of a shard is a block of whole documents: `<key>.tokens.npy` (their tokens one after the
other) and `<key>.json` (`language`, and per document `ids`, `tokens`, `bytes`). webdataset's own
reader opens a shard; ours reads its blocks through the side index, which holds where each block's
raw tokens begin and their sha256. A line of tokens is the shards of one table, JSON lines of
`Shard`. So every byte that training reads is under one hash: the manifest's names the table's,
that the index's, that the block's. Read next: `token_line.py` (reading), `manifest.py`.
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import numpy.typing as npt

from .errors import DamagedShard

BLOCK_TOKENS = 32_768
"""A block is closed by the first document that brings it to so many tokens."""
_HASH_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One tar and its side index, as the manifest describes them."""

    path: str
    """Path of the tar inside the prepared folder, with forward slashes."""
    sha256: str
    """Of the tar's bytes."""
    bytes: int
    """Size of the tar."""
    index_sha256: str
    """Of the side index's bytes."""
    documents: int
    """Documents in the shard."""
    tokens: int
    """Tokens in the shard, with the begin and end token of each document."""
    text_bytes: int
    """UTF-8 bytes of the documents' text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSet:
    """The shards of one line of tokens: their table, under a hash, and their totals.

    A manifest holds this rather than the shards, so that a run over a million shards begins without
    reading a million records.
    """

    table: str
    """Path of the table inside the prepared folder; empty for a line without tokens."""
    sha256: str
    """Of the table's bytes."""
    shards: int
    """Shards in the table."""
    bytes: int
    """Size of the tars."""
    documents: int
    """Documents of the line."""
    tokens: int
    """Tokens of the line, with the begin and end token of each document."""
    text_bytes: int
    """UTF-8 bytes of the documents' text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedDocument:
    """One document as it goes into a shard."""

    id: str
    """The corpus's id of the document, equal in every language that holds a translation."""
    tokens: npt.NDArray[np.integer]
    """[tokens] with the begin and end token."""
    text_bytes: int
    """UTF-8 bytes of the text."""


def index_path(shard_path: str) -> str:
    """The side index of a shard: `train/swh_Latn/00000.tar` -> `train/swh_Latn/00000.idx.npz`."""
    return shard_path.removesuffix(".tar") + ".idx.npz"


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file so that it is there whole or not at all; raises OSError (a full disk)."""
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes renames inside a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _HashingFile:
    """The part of a file that `tarfile` writes to, hashing on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.file.write(data)
        self.sha256.update(data)
        self.size += len(data)
        return len(data)

    def tell(self) -> int:
        return self.size


class ShardWriter:
    """Writes one shard; a context manager that leaves either the whole shard or nothing.

    Equal documents give equal bytes, on any machine. Raises OSError (a full disk).
    """

    def __init__(
        self,
        folder: Path,
        path: str,
        *,
        language: str,
        vocab_size: int,
        block_tokens: int = BLOCK_TOKENS,
    ) -> None:
        self._folder, self._path, self._language = folder, path, language
        self._dtype = np.dtype("<u2" if vocab_size < 65_536 else "<u4")
        self._block_tokens = block_tokens
        self._block: list[EncodedDocument] = []
        self._pending = 0
        self.tokens = 0
        self._text_bytes = 0
        self._block_offset: list[int] = []
        self._block_length: list[int] = []
        self._block_sha256: list[bytes] = []
        self._json_offset: list[int] = []
        self._json_size: list[int] = []
        self._document_tokens: list[int] = []
        self._document_bytes: list[int] = []
        self._target = folder / path
        self._partial = self._target.with_name(self._target.name + ".partial")
        self._target.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self._partial, "wb")  # noqa: SIM115 closed by close() or __exit__
        self._hashing = _HashingFile(self._file)
        self._tar = tarfile.TarFile(
            fileobj=self._hashing,  # type: ignore[arg-type]  # only write and tell are used
            mode="w",
            format=tarfile.USTAR_FORMAT,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._file.closed:
            try:
                self._file.close()
            except OSError:
                if kind is None:
                    raise
        self._partial.unlink(missing_ok=True)

    def add(self, document: EncodedDocument) -> None:
        """Appends a document; a block goes to disk when it is full."""
        self._block.append(document)
        self._pending += len(document.tokens)
        self.tokens += len(document.tokens)
        self._text_bytes += document.text_bytes
        if self._pending >= self._block_tokens:
            self._flush_block()

    def close(self) -> Shard:
        """Writes what is left, makes it durable, and gives the shard its name."""
        if self._block:
            self._flush_block()
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        index = io.BytesIO()
        np.savez(
            index,
            token_bytes=np.int64(self._dtype.itemsize),
            block_offset=np.array(self._block_offset, np.int64),
            block_tokens=np.array(self._block_length, np.int64),
            block_sha256=np.frombuffer(b"".join(self._block_sha256), np.uint8).reshape(-1, 32),
            json_offset=np.array(self._json_offset, np.int64),
            json_size=np.array(self._json_size, np.int64),
            document_tokens=np.array(self._document_tokens, np.int64),
            document_bytes=np.array(self._document_bytes, np.int64),
        )
        write_atomically(self._folder / index_path(self._path), index.getvalue())
        os.replace(self._partial, self._target)
        sync_folder(self._target.parent)
        return Shard(
            path=self._path,
            sha256=self._hashing.sha256.hexdigest(),
            bytes=self._hashing.size,
            index_sha256=hashlib.sha256(index.getvalue()).hexdigest(),
            documents=len(self._document_tokens),
            tokens=self.tokens,
            text_bytes=self._text_bytes,
        )

    def _flush_block(self) -> None:
        key = f"{self._language}-{Path(self._path).stem}-{len(self._block_offset):06d}"
        tokens = np.concatenate([document.tokens for document in self._block])
        buffer = io.BytesIO()
        np.lib.format.write_array(
            buffer, tokens.astype(self._dtype), version=(1, 0), allow_pickle=False
        )
        payload = buffer.getvalue()
        header = len(payload) - tokens.size * self._dtype.itemsize
        lengths = [len(document.tokens) for document in self._block]
        text_bytes = [document.text_bytes for document in self._block]
        description = json.dumps(
            {
                "language": self._language,
                "ids": [document.id for document in self._block],
                "tokens": lengths,
                "bytes": text_bytes,
            },
            ensure_ascii=False,
        ).encode("utf-8", "surrogatepass")
        self._block_offset.append(self._add_member(f"{key}.tokens.npy", payload) + header)
        self._block_length.append(int(tokens.size))
        self._block_sha256.append(hashlib.sha256(payload[header:]).digest())
        self._json_offset.append(self._add_member(f"{key}.json", description))
        self._json_size.append(len(description))
        self._document_tokens.extend(lengths)
        self._document_bytes.extend(text_bytes)
        self._block, self._pending = [], 0

    def _add_member(self, name: str, data: bytes) -> int:
        """Adds a member with no trace of time or user, and returns where its data begin."""
        member = tarfile.TarInfo(name)
        member.size = len(data)
        member.mtime = 0
        self._tar.addfile(member, io.BytesIO(data))
        return self._hashing.size - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def write_shards(
    folder: Path,
    subfolder: str,
    documents: Iterable[EncodedDocument],
    *,
    language: str,
    vocab_size: int,
    shard_tokens: int,
) -> ShardSet:
    """Writes documents to `subfolder/00000.tar`, `00001.tar`, …, a new one after `shard_tokens`."""
    shards = write_tars(
        folder,
        f"{subfolder}/",
        documents,
        language=language,
        vocab_size=vocab_size,
        shard_tokens=shard_tokens,
    )
    return write_table(folder, f"{subfolder}/shards.jsonl", shards)


def write_tars(
    folder: Path,
    prefix: str,
    documents: Iterable[EncodedDocument],
    *,
    language: str,
    vocab_size: int,
    shard_tokens: int,
) -> list[Shard]:
    """Writes a part of a line to `<prefix>00000.tar`, `<prefix>00001.tar`, …, without a table."""
    shards: list[Shard] = []
    rest = iter(documents)
    document = next(rest, None)
    while document is not None:
        path = f"{prefix}{len(shards):05d}.tar"
        with ShardWriter(folder, path, language=language, vocab_size=vocab_size) as writer:
            while document is not None and writer.tokens < shard_tokens:
                writer.add(document)
                document = next(rest, None)
            shards.append(writer.close())
    return shards


def write_table(folder: Path, path: str, shards: Sequence[Shard]) -> ShardSet:
    """Writes the table of a line's shards, in the line's order; raises OSError (a full disk)."""
    lines = "".join(json.dumps(asdict(shard), separators=(",", ":")) + "\n" for shard in shards)
    data = lines.encode()
    if shards:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / path, data)
    return ShardSet(
        table=path if shards else "",
        sha256=hashlib.sha256(data).hexdigest(),
        shards=len(shards),
        bytes=sum(shard.bytes for shard in shards),
        documents=sum(shard.documents for shard in shards),
        tokens=sum(shard.tokens for shard in shards),
        text_bytes=sum(shard.text_bytes for shard in shards),
    )


def parse_table(data: bytes) -> tuple[Shard, ...]:
    """The shards of a table's bytes, which were checked against the table's sha256."""
    return tuple(Shard(**json.loads(line)) for line in data.splitlines())


def verify(
    folder: Path, shards: Iterable[Shard], advance: Callable[[int], None] | None = None
) -> None:
    """Re-hashes shards and their indexes; raises DamagedShard naming the first that differs.

    `advance` is called with the bytes that were read, for a progress bar.
    """
    for shard in shards:
        for path, expected in (
            (folder / shard.path, shard.sha256),
            (folder / index_path(shard.path), shard.index_sha256),
        ):
            digest = hashlib.sha256()
            try:
                with open(path, "rb") as file:
                    while chunk := file.read(_HASH_CHUNK):
                        digest.update(chunk)
                        if advance is not None:
                            advance(len(chunk))
            except FileNotFoundError:
                raise DamagedShard(missing(path)) from None
            if digest.hexdigest() != expected:
                raise DamagedShard(other_file(path, digest.hexdigest(), expected))


def check_sizes(folder: Path, shards: Iterable[Shard]) -> None:
    """The cheap check: every shard is there with its size; raises DamagedShard naming the first."""
    for shard in shards:
        path = folder / shard.path
        if not path.is_file() or not (folder / index_path(shard.path)).is_file():
            raise DamagedShard(missing(path))
        size = path.stat().st_size
        if size != shard.bytes:
            raise DamagedShard(other_size(path, size, shard.bytes))


def missing(where: Path | str) -> str:
    """The message for a file that should be there."""
    return f"{where}: named in the manifest, but not there: copy it or run `xylem prepare --force`"


def other_size(where: Path | str, size: int, expected: int) -> str:
    """The message for a file that was cut or lengthened."""
    return (
        f"{where}: {size} bytes, the manifest says {expected}: "
        "copy it again or run `xylem prepare --force`"
    )


def other_file(where: Path | str, sha256: str, expected: str) -> str:
    """The message for a file of other contents."""
    return (
        f"{where}: its sha256 is {sha256[:12]}…, the manifest says {expected[:12]}…: "
        "copy it again or run `xylem prepare --force`"
    )
