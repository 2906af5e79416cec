"""How is a file behind a URL asked for? With a time limit, and again where that may help.

`fsspec` speaks the protocols (S3, HTTP, …). A store may fail, stall, or send other bytes than it
was asked for; what comes of it is the right bytes, or an error that names the file, the bytes and
the seconds. Read next: `remote.py`, which asks for blocks and keeps them.
"""

import hashlib
import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import tenacity

from .blocks import StorageCounts
from .errors import DataError, check_minimums

T = TypeVar("T")

_FIRST_PAUSE = 0.1
"""Seconds before a request is repeated, twice as many before each further time."""
_EXTRAS = {"s3": "s3", "s3a": "s3"}
"""Protocol -> the extra of ours that installs what it needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageConfig:
    """How a prepared folder behind a URL is read. A local folder needs none of it."""

    cache: str | None = None
    """Folder of the cache; none means `xylem` in the user's cache folder. Runs may share it."""
    cache_gigabytes: float = 50.0
    """Most that the cache takes of the disk, in 10^9 bytes; 0 keeps nothing. With less than the
    shards take, blocks are fetched again and again: each sequence of a step is in another block."""
    attempts: int = 5
    """How often a request is made before it is an error."""
    timeout_seconds: float = 60.0
    """How long a request may take; all attempts together take no more than so many times this."""
    connections: int = 16
    """Requests under way at once."""
    options: dict[str, str] = field(default_factory=dict)
    """Passed to fsspec's file system: `endpoint_url`, `anon`. Credentials are better left in the
    environment: a run's folder records its settings."""

    def __post_init__(self) -> None:
        check_minimums(
            self,
            "data.storage",
            cache_gigabytes=0,
            attempts=1,
            timeout_seconds=0.1,
            connections=1,
        )

    @property
    def cache_folder(self) -> Path:
        """The folder of the cache."""
        if self.cache is not None:
            return Path(self.cache).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xylem"


class StoreError(OSError):
    """A store that failed, or did not answer, as often as it was allowed to."""


class WrongAnswer(Exception):
    """A store that sent other bytes than it was asked for, as often as it was asked."""

    def __init__(self, message: str, sha256: str = "") -> None:
        super().__init__(message)
        self.sha256 = sha256
        """Of what it sent, where the length was right."""


class Store:
    """The files behind a URL. Safe for threads and forks."""

    def __init__(self, url: str, config: StorageConfig) -> None:
        """
        Args:
            url: of the folder, without a slash at its end.
        Raises:
            DataError: nothing here speaks the protocol.
        """
        self.url, self.config, self.counts = url, config, StorageCounts()
        self._process = 0
        self._connect()

    def fetch(
        self, path: str, offset: int = 0, size: int | None = None, sha256: bytes | None = None
    ) -> bytes:
        """A file, or `size` bytes of it, of this sha256 where one is given.

        Raises:
            FileNotFoundError: there is no such file.
            WrongAnswer: the bytes are too few, too many, or others.
            StoreError: the store failed or stalled.
            DataError: the store refuses access.
        """
        limit = self.config.attempts * self.config.timeout_seconds
        started = time.monotonic()
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self.config.attempts)
            | tenacity.stop_before_delay(limit),
            wait=_pause,
            retry=tenacity.retry_if_exception(_may_pass),
            before_sleep=lambda _: self.count(retries=1),
            reraise=True,
        )
        try:
            return retrying(self._ask, path, offset, size, sha256, started + limit)
        except (FileNotFoundError, WrongAnswer, DataError):
            raise
        except Exception as error:
            what = "" if size is None else f"bytes {offset} to {offset + size}: "
            raise StoreError(
                f"{self.url}/{path}: {what}not read in {time.monotonic() - started:.1f} s and "
                f"{retrying.statistics['attempt_number']} attempts ({_words(error)}): check the "
                "store, or raise data.storage.timeout_seconds or data.storage.attempts"
            ) from error
        finally:
            self.count(seconds_waited=time.monotonic() - started)

    def size(self, path: str) -> int | None:
        """Size of a file; None where the store does not say it. For messages: asked only once."""
        store = self._connect()
        try:
            return self._within(
                self.config.timeout_seconds, lambda: store.info(self._address(path))["size"]
            )
        except Exception:
            return None

    def count(self, **more: float) -> None:
        """Adds to the counts."""
        self._connect()
        with self._lock:
            for name, value in more.items():
                setattr(self.counts, name, getattr(self.counts, name) + value)

    def _ask(
        self, path: str, offset: int, size: int | None, sha256: bytes | None, end: float
    ) -> bytes:
        store, address = self._connect(), self._address(path)
        # A start is always named: s3fs asks for the size first where it is not.
        span = {"start": offset, "end": None if size is None else offset + size}
        self.count(requests=1)
        limit = min(self.config.timeout_seconds, max(end - time.monotonic(), 0.01))
        try:
            data = self._within(limit, lambda: bytes(store.cat_file(address, **span)))
        except Exception as error:
            if not _refused(error):
                raise
            raise DataError(
                f"{self.url}/{path}: the store refuses access ({_words(error)}): check the "
                "credentials in the environment, and data.storage.options"
            ) from None
        self.count(bytes_fetched=len(data))
        if size is not None and len(data) != size:
            raise WrongAnswer(f"the store sent {len(data)} bytes for {size}")
        if sha256 is not None:
            found = hashlib.sha256(data)
            if found.digest() != sha256:
                raise WrongAnswer("another sha256", found.hexdigest())
        return data

    def _within(self, seconds: float, call: Callable[[], T]) -> T:
        """What a call returns; raises TimeoutError. A call that takes longer is left to itself."""
        outcome: Future[T] = Future()

        def run() -> None:
            try:
                outcome.set_result(call())
            except BaseException as error:
                outcome.set_exception(error)

        threading.Thread(target=run, name="store", daemon=True).start()
        try:
            return outcome.result(seconds)
        except TimeoutError:
            if outcome.done():
                raise
            raise TimeoutError(f"no answer within {seconds:.3g} s") from None

    def _connect(self) -> Any:
        """The file system, one a process: connections and locks do not survive a fork."""
        if self._process != os.getpid():
            self._lock = threading.Lock()
            self._store = _file_system(self.url, self.config)
            self._process = os.getpid()
        return self._store

    def _address(self, path: str) -> str:
        """How the file system itself writes a path."""
        return f"{self._store._strip_protocol(self.url)}/{path}"


def _file_system(url: str, config: StorageConfig) -> Any:
    protocol = url.partition("://")[0]
    named = {"true": True, "false": False}
    options: dict[str, Any] = {k: named.get(v.lower(), v) for k, v in config.options.items()}
    if protocol in _EXTRAS:
        # One attempt of ours is one request; a connection for each thread.
        options["config_kwargs"] = {
            "connect_timeout": config.timeout_seconds,
            "read_timeout": config.timeout_seconds,
            "retries": {"max_attempts": 0},
            "max_pool_connections": config.connections,
        }
    try:
        store = fsspec.filesystem(protocol, skip_instance_cache=True, **options)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        way_out = f"pip install 'xylem[{extra}]'" if extra else _words(error)
        raise DataError(f"{url}: a package for `{protocol}` is missing: {way_out}") from None
    except (TypeError, ValueError) as error:
        if protocol in fsspec.available_protocols():
            raise DataError(f"{url}: data.storage.options: {_words(error)}") from None
        raise DataError(
            f"{url}: no storage is called `{protocol}`: name a folder, or a URL of "
            "s3://, https:// or another protocol that fsspec knows"
        ) from None
    if protocol in _EXTRAS:
        store.retries = 1
    return store


def _pause(state: tenacity.RetryCallState) -> float:
    """Twice as long each time, not the same for all who wait; the global dice stay untouched."""
    return _FIRST_PAUSE * 2 ** (state.attempt_number - 1) * random.Random().uniform(0.5, 1.0)


def _may_pass(error: BaseException) -> bool:
    """Whether asking again may help."""
    return isinstance(error, Exception) and not isinstance(error, FileNotFoundError | DataError)


def _refused(error: Exception) -> bool:
    """Whether a store wants other credentials: asking again would not help."""
    kind = type(error).__name__
    return (
        isinstance(error, PermissionError)
        or getattr(error, "status", None) in (401, 403)
        or "Credential" in kind
        or "Token" in kind
    )


def _words(error: BaseException) -> str:
    """An error's kind and its first line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
