"""What is kept of a remote store, and for how long? Checked blocks in a folder, the last used stay.

Several processes and runs share one folder. A block is a file that is there whole or not at all;
files come and go under one lock, and are read without it: a file that goes while it is read is
read to its end, one that is gone is fetched again. The order of use is a count that all processes
raise, kept as each file's modification time, so that it does not depend on the clock. Nothing here
is trusted: whoever reads a whole file compares its sha256. Read next: `remote.py`, which does.
"""

import fcntl
import os
import struct
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_STATE = struct.Struct("<qq")
"""The file `state`: bytes in the cache, and the count of uses."""
_USE_NANOSECONDS = 1_000
"""One use, as file time: some file systems keep it no finer than 100 ns."""
_USES = 1 << 49
"""More uses than a cache sees; a file time beyond them was not written here."""
_LOCK_SECONDS = 1.0
"""How long to wait for the lock; a block that does not get it stays uncached."""
_KEPT_SHARE = 7 / 8
"""Of the bound, when room is made: making room lists the whole folder."""


class BlockCache:
    """A folder of blocks, bounded in bytes. Safe for threads, processes and forks."""

    def __init__(self, folder: Path, bound: int) -> None:
        """
        Args:
            folder: where the blocks lie; made here, raises OSError.
            bound: most bytes that the blocks may take, over all processes.
        """
        self.folder, self.bound = folder, bound
        folder.mkdir(parents=True, exist_ok=True)
        self._mutexes: dict[int, threading.Lock] = {}
        self._descriptor, self._process = -1, 0
        self._disabled = False
        self._trim()

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes | None:
        """A block, or `size` bytes of it from `start` on; None when it is not there like that."""
        path = self._path(name)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                wanted = os.fstat(descriptor).st_size if size is None else size
                data = os.pread(descriptor, wanted, start)
            finally:
                os.close(descriptor)
            self._use(path)
        except OSError:
            return None
        return data if len(data) == wanted else None

    def put(self, name: str, data: bytes) -> None:
        """Keeps a block, and removes those not used for longest where there is no room for it.

        A cache that cannot be written (a full disk, say) is given up with one warning: it is a
        cache, and reading goes on without it.
        """
        if self._disabled:
            return
        if len(data) > self.bound:
            self._give_up(f"its bound of {self.bound} bytes is less than one block, {len(data)}")
            return
        path = self._path(name)
        try:
            with self._locked() as held:
                if not held or path.exists():
                    return
                total = self._total()
                if total + len(data) > self.bound:
                    total = self._make_room(len(data))
                self._write(path, data)
                self._set_total(total + len(data))
        except OSError as error:
            self._give_up(error.strerror or str(error))

    def discard(self, name: str) -> None:
        """Removes a block that is not what it should be."""
        with suppress(OSError):
            self._path(name).unlink()

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / name

    def _write(self, path: Path, data: bytes) -> None:
        partial = path.with_name(path.name + ".partial")
        path.parent.mkdir(exist_ok=True)
        try:
            partial.write_bytes(data)
            self._use(partial)
            os.replace(partial, path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise

    def _use(self, path: Path) -> None:
        """Notes a use. Without the lock: of two at the same moment either may count as the later.

        The access time is the clock's, for whoever clears the disk of files by age.
        """
        with suppress(OSError):
            os.utime(path, ns=(time.time_ns(), self._next_use() * _USE_NANOSECONDS))

    def _next_use(self) -> int:
        uses = self._state()[1] + 1
        if not 0 < uses < _USES:
            return 0
        os.pwrite(self._open(), uses.to_bytes(8, "little"), 8)
        return uses

    def _trim(self) -> None:
        """Makes room in a cache that was left larger than its bound."""
        try:
            with self._locked() as held:
                if held and self._total() > self.bound:
                    self._set_total(self._make_room(0))
        except OSError as error:
            self._give_up(error.strerror or str(error))

    def _make_room(self, size: int) -> int:
        """Removes what was not used for longest; returns the bytes that stay."""
        files = self._survey()
        total = sum(file_size for _, _, file_size in files)
        keep = min(self.bound - size, int(self.bound * _KEPT_SHARE))
        for _, path, file_size in sorted(files):
            if total <= keep:
                break
            with suppress(FileNotFoundError):
                os.unlink(path)
            total -= file_size
        return total

    def _survey(self) -> list[tuple[int, str, int]]:
        """(last use, path, bytes) of each file; what a killed write left is one of them.

        Called under the lock, where no write is under way.
        """
        files: list[tuple[int, str, int]] = []
        for folder in self.folder.iterdir():
            if len(folder.name) != 2:
                continue
            for entry in os.scandir(folder):
                with suppress(FileNotFoundError):
                    found = entry.stat()
                    use = found.st_mtime_ns // _USE_NANOSECONDS
                    files.append((use if 0 <= use < _USES else 0, entry.path, found.st_size))
        return files

    def _total(self) -> int:
        """Bytes in the cache; counted, and the uses with them, where the state was lost."""
        total, uses = self._state()
        if total < 0 or not 0 <= uses < _USES:
            files = self._survey()
            total = sum(file_size for _, _, file_size in files)
            uses = max((use for use, _, _ in files), default=0)
            os.pwrite(self._open(), _STATE.pack(total, uses), 0)
        return total

    def _set_total(self, total: int) -> None:
        """Leaves the uses alone: others raise them without the lock."""
        os.pwrite(self._open(), total.to_bytes(8, "little"), 0)

    def _state(self) -> tuple[int, int]:
        stored = os.pread(self._open(), _STATE.size, 0)
        return _STATE.unpack(stored) if len(stored) == _STATE.size else (-1, -1)

    def _open(self) -> int:
        """The state file; a process opens its own: a lock is held by all who inherit the file."""
        if self._process != os.getpid():
            path = self.folder / "state"
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            self._process = os.getpid()
        return self._descriptor

    @contextmanager
    def _locked(self) -> Iterator[bool]:
        """Holds the lock, or yields False where others held it for too long."""
        end = time.monotonic() + _LOCK_SECONDS
        # One for each process: at the fork a thread of the parent may have held the parent's. All
        # threads get the same one: of two that ask first, `setdefault` takes one's.
        mutex = self._mutexes.setdefault(os.getpid(), threading.Lock())
        if not mutex.acquire(timeout=_LOCK_SECONDS):
            yield False
            return
        try:
            descriptor = self._open()
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > end:
                        yield False
                        return
                time.sleep(0.002)
            try:
                yield True
            finally:
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        finally:
            mutex.release()

    def _give_up(self, reason: str) -> None:
        if not self._disabled:
            self._disabled = True
            warnings.warn(
                f"{self.folder}: the cache takes nothing more ({reason}): reading goes on without "
                "it, slower; free its disk, or see data.storage.cache and cache_gigabytes",
                stacklevel=2,
            )
