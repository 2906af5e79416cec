"""The cache keeps what was last used, within its bound, over processes and jumps of the clock."""

import errno
import hashlib
import os
import subprocess
import sys
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import environment
from xylem.data import cache as cache_module
from xylem.data.cache import BlockCache

BLOCK = 1000


def name(number: int) -> str:
    return f"{hashlib.blake2b(str(number).encode(), digest_size=20).hexdigest()}-{number:06d}"


def data(number: int) -> bytes:
    return bytes([number % 256]) * BLOCK


def files(folder: Path) -> list[Path]:
    return [path for path in folder.glob("??/*") if path.is_file()]


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in files(folder))


def kept(cache: BlockCache, numbers: range) -> set[int]:
    """Which blocks are there, without using them."""
    names = {path.name for path in files(cache.folder)}
    return {number for number in numbers if name(number) in names}


def test_what_is_put_is_read_whole_and_in_parts(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path / "blocks", 10 * BLOCK)
    assert cache.read(name(1)) is None
    cache.put(name(1), bytes(range(250)) * 4)
    assert cache.read(name(1)) == bytes(range(250)) * 4
    assert cache.read(name(1), 5, 3) == b"\5\6\7"
    assert cache.read(name(1), 998, 3) is None, "three bytes are not there"
    cache.discard(name(1))
    assert cache.read(name(1)) is None
    cache.discard(name(1))


def test_the_bound_holds_and_the_last_used_stay(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 8 * BLOCK)
    for number in range(8):
        cache.put(name(number), data(number))
    assert size(tmp_path) == 8 * BLOCK
    for number in (0, 2):
        assert cache.read(name(number), 10, 1) == data(number)[:1]
    cache.put(name(8), data(8))
    assert size(tmp_path) <= 8 * BLOCK
    assert kept(cache, range(9)) == {0, 2, 3, 4, 5, 6, 7, 8}
    for number in range(9, 300):
        cache.put(name(number), data(number))
        assert size(tmp_path) <= 8 * BLOCK
    assert kept(cache, range(300)) >= {296, 297, 298, 299}


def test_two_runs_share_the_order_of_use(tmp_path: Path) -> None:
    first, second = (BlockCache(tmp_path, 8 * BLOCK) for _ in range(2))
    for number in range(8):
        (first, second)[number % 2].put(name(number), data(number))
    for number in (0, 1):
        assert first.read(name(number)) == data(number)
        assert second.read(name(number + 2)) == data(number + 2)
    second.put(name(8), data(8))
    assert kept(first, range(9)) >= {0, 1, 2, 3, 8} and not kept(first, range(9)) & {4}
    assert size(tmp_path) <= 8 * BLOCK


@pytest.mark.parametrize("jump", [-10 * 365 * 86_400, 10 * 365 * 86_400])
def test_a_jump_of_the_clock_changes_nothing(
    tmp_path: Path, jump: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = BlockCache(tmp_path, 8 * BLOCK)
    for number in range(8):
        cache.put(name(number), data(number))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + jump)
    monkeypatch.setattr(time, "time_ns", lambda: int((now + jump) * 1e9))
    assert cache.read(name(0)) == data(0)
    monkeypatch.undo()
    assert cache.read(name(1)) == data(1)
    monkeypatch.setattr(time, "time_ns", lambda: int((now + jump) * 1e9))
    cache.put(name(8), data(8))
    monkeypatch.undo()
    for number in range(9, 12):
        cache.put(name(number), data(number))
    assert kept(cache, range(12)) >= {0, 1, 8, 9, 10, 11}
    assert not kept(cache, range(12)) & {2, 3, 4}


def test_a_cache_larger_than_its_bound_is_trimmed_when_it_is_opened(tmp_path: Path) -> None:
    large = BlockCache(tmp_path, 100 * BLOCK)
    for number in range(100):
        large.put(name(number), data(number))
    small = BlockCache(tmp_path, 16 * BLOCK)
    assert 8 * BLOCK <= size(tmp_path) <= 16 * BLOCK
    assert kept(small, range(100)) == set(range(100 - size(tmp_path) // BLOCK, 100))


def test_a_bound_below_one_block_keeps_nothing_and_says_so_once(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, BLOCK - 1)
    with pytest.warns(UserWarning, match=r"its bound of 999 bytes is less than one block, 1000"):
        cache.put(name(1), data(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.put(name(2), data(2))
    assert files(tmp_path) == []


def test_a_full_disk_is_one_warning_and_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = BlockCache(tmp_path, 8 * BLOCK)
    cache.put(name(1), data(1))

    def full(path: Path, data: bytes) -> int:
        with open(path, "wb") as file:
            file.write(data[: BLOCK // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.warns(UserWarning, match=r"takes nothing more \(No space left on device\)") as said:
        for number in range(2, 5):
            cache.put(name(number), data(number))
    assert len(said) == 1
    assert cache.read(name(1)) == data(1), "what is there is still read"
    assert [path.name for path in files(tmp_path)] == [name(1)]


def test_a_cut_file_is_not_there(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 8 * BLOCK)
    cache.put(name(1), data(1))
    os.truncate(files(tmp_path)[0], 100)
    assert cache.read(name(1), 50, 100) is None


def test_a_lost_or_broken_state_is_counted_again(tmp_path: Path) -> None:
    for broken in (None, b"", b"\xff" * 16, b"\xff" * 7):
        cache = BlockCache(tmp_path, 8 * BLOCK)
        for number in range(8):
            cache.put(name(number), data(number))
        (tmp_path / "state").unlink()
        if broken is not None:
            (tmp_path / "state").write_bytes(broken)
        cache = BlockCache(tmp_path, 8 * BLOCK)
        for number in range(8, 12):
            cache.put(name(number), data(number))
            assert size(tmp_path) <= 8 * BLOCK
        assert kept(cache, range(12)) >= {8, 9, 10, 11}
        assert not kept(cache, range(12)) & {0, 1, 2, 3}


def test_what_a_killed_write_left_goes_and_other_files_stay(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    cache = BlockCache(tmp_path, 4 * BLOCK)
    cache.put(name(0), data(0))
    partial = files(tmp_path)[0].with_name("killed.partial")
    partial.write_bytes(data(0) * 3)
    for number in range(1, 8):
        cache.put(name(number), data(number))
    assert not partial.exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_lock_that_is_held_for_long_leaves_a_block_uncached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (BlockCache(tmp_path, 8 * BLOCK) for _ in range(2))
    monkeypatch.setattr(cache_module, "_LOCK_SECONDS", 0.05)
    with first._locked() as held:
        assert held
        second.put(name(1), data(1))
    assert files(tmp_path) == []
    second.put(name(1), data(1))
    assert len(files(tmp_path)) == 1


RUN = """
import random, sys
from pathlib import Path
from xylem.data.cache import BlockCache
cache, random = BlockCache(Path(sys.argv[1]), 20_000), random.Random(sys.argv[2])
hits = 0
for _ in range(1500):
    number = random.randrange(40)
    name, data = f"{number % 7:02d}-{number}", bytes([number]) * 1000
    found = cache.read(name)
    if found is None:
        cache.put(name, data)
    else:
        hits += 1
        assert found == data, number
assert not cache._disabled
print(hits)
"""


def test_two_processes_share_a_cache(tmp_path: Path) -> None:
    """No torn read, no failed eviction, and the bound holds over both."""
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", RUN, str(tmp_path), seed],
            stdout=subprocess.PIPE,
            env=environment(),
        )
        for seed in ("a", "b")
    ]
    while any(run.poll() is None for run in runs):
        time.sleep(0.02)
        for path in files(tmp_path):
            with suppress(FileNotFoundError):
                assert path.suffix == ".partial" or path.stat().st_size == BLOCK, "torn"
    assert [run.returncode for run in runs] == [0, 0]
    assert all(int(run.communicate()[0]) > 100 for run in runs)
    assert 10 * BLOCK <= size(tmp_path) <= 20 * BLOCK
    total = int.from_bytes((tmp_path / "state").read_bytes()[:8], "little")
    assert total == size(tmp_path)


def test_a_forked_process_has_a_lock_of_its_own(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 8 * BLOCK)
    with cache._locked() as held:
        assert held
        child = os.fork()
        if child == 0:
            cache_module._LOCK_SECONDS = 0.05
            cache.put(name(1), data(1))
            os._exit(len(files(tmp_path)))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_threads_that_meet_in_a_forked_process_hold_one_lock(tmp_path: Path) -> None:
    """The first is stopped where it has chosen its lock; then the second chooses."""
    cache = BlockCache(tmp_path, 8 * BLOCK)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = _meet(cache)
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _meet(cache: BlockCache) -> int:
    """In the forked process: 0 when the second thread waits for the first, and neither fails."""
    cache_module._LOCK_SECONDS = 10
    chosen, go_on, held = threading.Event(), threading.Event(), []
    real = cache._open

    def slow_open() -> int:
        if threading.current_thread().name == "first":
            chosen.set()
            go_on.wait(10)
        return real()

    cache._open = slow_open  # type: ignore[method-assign]
    failed = []

    def put(number: int) -> None:
        try:
            with cache._locked() as mine:
                held.append((number, mine))
        except RuntimeError as error:  # a lock that is released twice
            failed.append(error)

    first = threading.Thread(target=put, args=(1,), name="first")
    second = threading.Thread(target=put, args=(2,))
    first.start()
    chosen.wait(10)
    second.start()
    second.join(0.2)
    overtaken = bool(held)
    go_on.set()
    first.join(10)
    second.join(10)
    return int(overtaken or bool(failed) or held != [(1, True), (2, True)])
