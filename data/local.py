"""How is a prepared folder on this machine read? With `pread`, a shard's file staying open.

Not with a memory map: a file that is cut while it is mapped ends the process with a signal, and
here with an error that names it. Read next: `remote.py`, the other storage.
"""

import hashlib
import os
import resource
import threading
import weakref
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from .blocks import BlockReader, Blocks, StorageCounts, other_bytes
from .errors import DamagedShard
from .shards import Shard, missing, other_file, other_size

_MOST_OPEN = 4096
"""Files that a process keeps open at most; fewer where the system allows fewer than four times."""


@dataclass(frozen=True, slots=True)
class LocalStorage:
    """A folder on this machine, or on a file system that is mounted here."""

    folder: Path

    @property
    def place(self) -> str:
        """The folder."""
        return str(self.folder)

    @property
    def readers(self) -> int:
        """One: a read takes microseconds."""
        return 1

    @property
    def counts(self) -> StorageCounts:
        """Always zero: counting would cost as much as reading."""
        return StorageCounts()

    def name_of(self, path: str) -> str:
        """The file's path."""
        return str(self.folder / path)

    def read(self, path: str) -> bytes:
        """The file's bytes."""
        return (self.folder / path).read_bytes()

    def read_checked(self, path: str, sha256: str) -> bytes:
        """The file's bytes, hashed now."""
        try:
            data = self.read(path)
        except FileNotFoundError:
            raise DamagedShard(missing(self.name_of(path))) from None
        found = hashlib.sha256(data).hexdigest()
        if found != sha256:
            raise DamagedShard(other_file(self.name_of(path), found, sha256))
        return data

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        """A part of the file."""
        file = _open_file(self.folder / path)
        data = os.pread(file.descriptor, size, offset)
        if len(data) != size:
            raise DamagedShard(_cut(self.name_of(path), offset, size, len(data)))
        return data

    def open_shard(self, shard: Shard, blocks: Blocks) -> BlockReader:
        """The tar; its size is compared with the manifest's now."""
        opened = _LocalShard(self.folder / shard.path, shard.bytes, blocks)
        opened.open()
        return opened


class _File:
    """An open file, closed when its last user lets it go: also with a read of it under way."""

    __slots__ = ("descriptor",)

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


class _LocalShard:
    """A shard's file, and which of its blocks this process has checked."""

    __slots__ = ("__weakref__", "_blocks", "_bytes", "_checked", "_identity", "_path", "file")

    def __init__(self, path: Path, size: int, blocks: Blocks) -> None:
        self._path, self._bytes, self._blocks = path, size, blocks
        self._checked = bytearray(len(blocks.offsets))
        self._identity = (0, 0)
        self.file: _File | None = None

    def read(self, block: int, start: int, size: int) -> bytes:
        """A part of a block, which is checked when it is first used."""
        file = self.file or self.open()
        if not self._checked[block]:
            self._check(file, block)
        offset = self._blocks.offsets[block] + start
        data = os.pread(file.descriptor, size, offset)
        if len(data) != size:
            raise DamagedShard(_cut(str(self._path), offset, size, len(data)))
        return data

    def open(self) -> _File:
        """Opens the file; what was checked of a file that has been replaced counts no longer."""
        try:
            file = _open_file(self._path)
        except FileNotFoundError:
            raise DamagedShard(missing(self._path)) from None
        found = os.fstat(file.descriptor)
        if found.st_size != self._bytes:
            raise DamagedShard(other_size(self._path, found.st_size, self._bytes))
        if self._identity != (found.st_ino, found.st_mtime_ns):
            self._checked = bytearray(len(self._blocks.offsets))
            self._identity = (found.st_ino, found.st_mtime_ns)
        self.file = file
        _opened(self)
        return file

    def _check(self, file: _File, block: int) -> None:
        offset, size = self._blocks.offsets[block], self._blocks.size(block)
        data = os.pread(file.descriptor, size, offset)
        if len(data) != size:
            raise DamagedShard(_cut(str(self._path), offset, size, len(data)))
        if hashlib.sha256(data).digest() != self._blocks.digest(block):
            raise DamagedShard(other_bytes(str(self._path), offset, size, "another sha256"))
        self._checked[block] = 1


_open_shards: deque[weakref.ref[_LocalShard]] = deque()
_open_shards_lock = threading.Lock()


def _opened(shard: _LocalShard) -> None:
    """Notes an opened shard; beyond the limit, the file that was opened first is let go."""
    with _open_shards_lock:
        _open_shards.append(weakref.ref(shard))
        while len(_open_shards) > most_open():
            oldest = _open_shards.popleft()()
            if oldest is not None and oldest is not shard:
                oldest.file = None


def most_open() -> int:
    """How many shards' files this process keeps open."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MOST_OPEN if allowed == resource.RLIM_INFINITY else min(_MOST_OPEN, allowed // 4)


def _open_file(path: Path) -> _File:
    return _File(os.open(path, os.O_RDONLY | os.O_CLOEXEC))


def _cut(where: str, offset: int, size: int, found: int) -> str:
    return other_bytes(where, offset, size, f"it was cut while it was read: {found} bytes are left")
