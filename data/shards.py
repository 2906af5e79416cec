"""How tokens lie on disk: WebDataset tar shards with a side index, read as one token line.

A sample of a shard is a block of whole documents: `<key>.tokens.npy` (their tokens one after the
other) and `<key>.json` (`language`, and per document `ids`, `tokens`, `bytes`). webdataset's own
reader opens a shard; ours maps it into memory through the side index, which holds where each
block's raw tokens begin. Read next: `manifest.py` (which shards make a prepared folder).
"""

import hashlib
import io
import json
import mmap
import os
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import numpy.typing as npt

from .errors import DamagedShard

Int64 = npt.NDArray[np.int64]

BLOCK_TOKENS = 32_768
"""A block is closed by the first document that brings it to so many tokens."""
_OPEN_SHARDS = 256
"""Mapped shards a process keeps open: each holds a file descriptor, of usually 1,024."""
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
) -> tuple[Shard, ...]:
    """Writes documents to `subfolder/00000.tar`, `00001.tar`, …, a new one after `shard_tokens`."""
    shards: list[Shard] = []
    rest = iter(documents)
    document = next(rest, None)
    while document is not None:
        path = f"{subfolder}/{len(shards):05d}.tar"
        with ShardWriter(folder, path, language=language, vocab_size=vocab_size) as writer:
            while document is not None and writer.tokens < shard_tokens:
                writer.add(document)
                document = next(rest, None)
            shards.append(writer.close())
    return tuple(shards)


def verify(
    folder: Path, shards: Iterable[Shard], advance: Callable[[int], None] | None = None
) -> None:
    """Re-hashes shards and their indexes; raises DamagedShard naming the first that differs.

    `advance` is called with the bytes that were read, for a progress bar.
    """
    for shard in shards:
        for path, expected in (
            (shard.path, shard.sha256),
            (index_path(shard.path), shard.index_sha256),
        ):
            digest = hashlib.sha256()
            try:
                with open(folder / path, "rb") as file:
                    while chunk := file.read(_HASH_CHUNK):
                        digest.update(chunk)
                        if advance is not None:
                            advance(len(chunk))
            except FileNotFoundError:
                raise DamagedShard(_missing(folder / path)) from None
            if digest.hexdigest() != expected:
                raise DamagedShard(
                    f"{folder / path}: its sha256 is {digest.hexdigest()[:12]}…, the manifest says "
                    f"{expected[:12]}…: copy it again or run `xylem prepare --force`"
                )


def check_sizes(folder: Path, shards: Iterable[Shard]) -> None:
    """The cheap check: every shard is there with its size; raises DamagedShard naming the first."""
    for shard in shards:
        path = folder / shard.path
        if not path.is_file() or not (folder / index_path(shard.path)).is_file():
            raise DamagedShard(_missing(path))
        _check_size(path, shard)


class TokenLine:
    """One language's shards as one long line of tokens.

    Cheap to make and to pickle: a shard is opened, and its size and index checked, when it is
    first read. Raises DamagedShard naming a shard that is not what the manifest says.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        self.folder = Path(folder)
        self.shards = tuple(shards)
        self._starts = _starts([shard.tokens for shard in self.shards])
        self.tokens = int(self._starts[-1])
        self.documents = sum(shard.documents for shard in self.shards)

    def read(self, start: int, stop: int) -> Int64:
        """Tokens [stop - start] from `start` up to `stop`, across blocks and shards."""
        if not 0 <= start <= stop <= self.tokens:
            raise IndexError(f"tokens {start}:{stop} of a line of {self.tokens} tokens")
        tokens = np.empty(stop - start, np.int64)
        position = start
        while position < stop:
            number = int(np.searchsorted(self._starts, position, side="right")) - 1
            shard_start = int(self._starts[number])
            end = min(stop, int(self._starts[number + 1]))
            _open_shard(self.folder, self.shards[number]).copy(
                position - shard_start, tokens[position - start : end - start]
            )
            position = end
        return tokens

    def document_bounds(self) -> Int64:
        """[documents + 1] where each document begins on the line, and where the last one ends."""
        return _starts(self._per_document("document_tokens"))

    def document_bytes(self) -> Int64:
        """[documents] UTF-8 bytes of each document's text."""
        return self._per_document("document_bytes")

    def document_ids(self) -> list[str]:
        """[documents] ids, read from the shards' JSON members."""
        ids: list[str] = []
        for shard in self.shards:
            index = _read_index(self.folder, shard)
            with open(self.folder / shard.path, "rb") as file:
                for offset, size in zip(index["json_offset"], index["json_size"], strict=True):
                    file.seek(int(offset))
                    ids.extend(
                        json.loads(file.read(int(size)).decode("utf-8", "surrogatepass"))["ids"]
                    )
        return ids

    def _per_document(self, name: str) -> Int64:
        arrays = [_read_index(self.folder, shard)[name] for shard in self.shards]
        return np.concatenate([np.zeros(0, np.int64), *arrays])


class _OpenShard:
    """A mapped shard: where its blocks begin on the shard's own token line, and in the file."""

    __slots__ = ("block_offset", "block_start", "dtype", "memory")

    def __init__(self, folder: Path, shard: Shard) -> None:
        index = _read_index(folder, shard)
        with open(folder / shard.path, "rb") as file:
            self.memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.dtype = np.dtype(f"<u{int(index['token_bytes'])}")
        self.block_offset = index["block_offset"]
        self.block_start = _starts(index["block_tokens"])

    def copy(self, start: int, into: Int64) -> None:
        """Fills `into` with the tokens from `start` on."""
        done = 0
        number = int(np.searchsorted(self.block_start, start, side="right")) - 1
        while done < into.size:
            inside = start + done - int(self.block_start[number])
            count = min(into.size - done, int(self.block_start[number + 1]) - start - done)
            into[done : done + count] = np.frombuffer(
                self.memory,
                self.dtype,
                count,
                int(self.block_offset[number]) + inside * self.dtype.itemsize,
            )
            done += count
            number += 1


@lru_cache(maxsize=_OPEN_SHARDS)
def _open_shard(folder: Path, shard: Shard) -> _OpenShard:
    return _OpenShard(folder, shard)


def _read_index(folder: Path, shard: Shard) -> dict[str, Int64]:
    """The side index, after the cheap checks: sizes, the index's hash, its counts."""
    path = folder / shard.path
    try:
        _check_size(path, shard)
        data = (folder / index_path(shard.path)).read_bytes()
    except FileNotFoundError as error:
        raise DamagedShard(_missing(Path(str(error.filename)))) from None
    if hashlib.sha256(data).hexdigest() != shard.index_sha256:
        raise DamagedShard(
            f"{folder / index_path(shard.path)}: not the index that the manifest describes: "
            "copy it again or run `xylem prepare --force`"
        )
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _check_size(path: Path, shard: Shard) -> None:
    size = path.stat().st_size
    if size != shard.bytes:
        raise DamagedShard(
            f"{path}: {size} bytes, the manifest says {shard.bytes}: "
            "copy it again or run `xylem prepare --force`"
        )


def _missing(path: Path) -> str:
    return f"{path}: named in the manifest, but not there: copy it or run `xylem prepare --force`"


def _starts(lengths: Sequence[int] | Int64) -> Int64:
    """[n + 1] cumulative starts of n lengths."""
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts
