"""How is a prepared folder behind a URL read? In blocks, checked and cached.

What is read is named by its whole URL and its sha256, so that a cache may be shared by runs, and
two shards of one name are two. Read next: `store.py` (asking for bytes), `cache.py` (keeping them).
"""

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from .blocks import BlockReader, Blocks, StorageCounts, other_bytes
from .cache import BlockCache
from .errors import DamagedShard, DataError
from .shards import Shard, missing, other_file, other_size
from .store import StorageConfig, Store, StoreError, WrongAnswer


class RemoteStorage:
    """A prepared folder behind a URL. Safe for threads and forks; pickled as its URL and settings.

    Reading raises StoreError, DamagedShard, and DataError where the store refuses access.
    """

    def __init__(self, url: str, config: StorageConfig) -> None:
        """
        Args:
            url: of the prepared folder, `s3://bucket/prefix`.
        Raises:
            DataError: nothing here speaks the protocol, or the cache cannot be made.
        """
        self.place, self.config = url.rstrip("/"), config
        self._store = Store(self.place, config)
        self._cache = _open_cache(config)
        self._turns = _Turns()

    def __reduce__(self) -> tuple[type["RemoteStorage"], tuple[str, StorageConfig]]:
        return RemoteStorage, (self.place, self.config)

    @property
    def readers(self) -> int:
        """As many threads as connections: a read takes tens of milliseconds."""
        return self.config.connections

    @property
    def counts(self) -> StorageCounts:
        """What was asked for, fetched, and found in the cache."""
        return self._store.counts

    def name_of(self, path: str) -> str:
        """The file's URL."""
        return f"{self.place}/{path}"

    def read(self, path: str) -> bytes:
        """The file's bytes, fetched now."""
        return self._store.fetch(path)

    def read_checked(self, path: str, sha256: str) -> bytes:
        """The file's bytes, from the cache where it has them."""
        url, digest = self.name_of(path), bytes.fromhex(sha256)
        fetch = partial(self._store.fetch, path, sha256=digest)
        try:
            return self._cached(f"{_cache_key(url, sha256)}-whole", digest, fetch)
        except FileNotFoundError:
            raise DamagedShard(missing(url)) from None
        except WrongAnswer as error:
            raise DamagedShard(other_file(url, error.sha256, sha256)) from None

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        """A part of the file, fetched now."""
        url = self.name_of(path)
        try:
            return self._store.fetch(path, offset, size)
        except FileNotFoundError:
            raise DamagedShard(missing(url)) from None
        except WrongAnswer as error:
            raise DamagedShard(other_bytes(url, offset, size, str(error))) from None

    def open_shard(self, shard: Shard, blocks: Blocks) -> BlockReader:
        """The shard's blocks; nothing is asked of the store yet."""
        return _RemoteShard(self, shard, blocks)

    def cached_part(self, name: str, start: int, size: int) -> bytes | None:
        """A part of a cached block, unchecked; None where the cache does not have it."""
        data = None if self._cache is None else self._cache.read(name, start, size)
        if data is not None:
            self._store.count(cache_hits=1)
        return data

    def block(self, name: str, shard: Shard, blocks: Blocks, number: int) -> bytes:
        """A whole block, checked, from the cache or the store; `name` is the cache's for it."""
        offset, size, sha256 = blocks.offsets[number], blocks.size(number), blocks.digest(number)
        url = self.name_of(shard.path)
        fetch = partial(self._store.fetch, shard.path, offset, size, sha256)
        try:
            return self._cached(name, sha256, fetch)
        except FileNotFoundError:
            raise DamagedShard(missing(url)) from None
        except (WrongAnswer, StoreError) as error:
            if "Timeout" in type(error.__cause__).__name__:
                raise
            found = self._store.size(shard.path)
            if found is not None and found != shard.bytes:
                raise DamagedShard(other_size(url, found, shard.bytes)) from None
            if isinstance(error, StoreError):
                raise
            raise DamagedShard(other_bytes(url, offset, size, str(error))) from None

    def _cached(self, name: str, sha256: bytes, fetch: Callable[[], bytes]) -> bytes:
        """What a name stands for; of threads that want the same, one fetches it."""
        if self._cache is None:
            return fetch()
        with self._turns.of(name):
            data = self._cache.read(name)
            if data is not None:
                if hashlib.sha256(data).digest() == sha256:
                    self._store.count(cache_hits=1)
                    return data
                self._cache.discard(name)
                self._store.count(cache_damaged=1)
            data = fetch()
            self._cache.put(name, data)
            return data


class _RemoteShard:
    """A shard's blocks, and which of them this process has checked."""

    __slots__ = ("_blocks", "_checked", "_key", "_shard", "_storage")

    def __init__(self, storage: RemoteStorage, shard: Shard, blocks: Blocks) -> None:
        self._storage, self._shard, self._blocks = storage, shard, blocks
        self._key = _cache_key(storage.name_of(shard.path), shard.sha256)
        self._checked = bytearray(len(blocks.offsets))

    def read(self, block: int, start: int, size: int) -> bytes:
        """A part of a block; a checked one is read from the cache without its other bytes."""
        name = f"{self._key}-{block:06d}"
        if self._checked[block]:
            part = self._storage.cached_part(name, start, size)
            if part is not None:
                return part
        whole = self._storage.block(name, self._shard, self._blocks, block)
        self._checked[block] = 1
        return whole[start : start + size]


class _Turns:
    """Lets the threads of a process that want the same name come one after the other."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._taken: dict[str, tuple[threading.Lock, list[None]]] = {}
        self._process = os.getpid()

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Waits for the others."""
        if self._process != os.getpid():
            self._reset()
        with self._lock:
            lock, here = self._taken.setdefault(name, (threading.Lock(), []))
            here.append(None)
        try:
            with lock:
                yield
        finally:
            with self._lock:
                here.pop()
                if not here:
                    self._taken.pop(name, None)


def _open_cache(config: StorageConfig) -> BlockCache | None:
    if not config.cache_gigabytes:
        return None
    folder = config.cache_folder / "blocks"
    try:
        return BlockCache(folder, int(config.cache_gigabytes * 1e9))
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be made ({error.strerror}): set data.storage.cache to a folder "
            "that can, or data.storage.cache_gigabytes=0"
        ) from None


def _cache_key(url: str, sha256: str) -> str:
    return hashlib.blake2b(f"{url}\n{sha256}".encode(), digest_size=20).hexdigest()
