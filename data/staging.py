"""A folder that is written beside its place and gets its name when it is whole.

`<folder>.partial` is being written, by one command at a time. Its plan says what it is to become:
what a killed command, or one that ran out of disk, left there is gone on with by the same command,
and removed by any other.
`<folder>.old` is what `--force` replaces, for the moment between two renames.
"""

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .errors import DamagedShard, DataError
from .manifest import MANIFEST_NAME
from .shards import sync_folder, write_atomically

PLAN_NAME = "plan.json"
WORK_FOLDER = "work"
"""What is written on the way: not part of the result."""
WORKERS_LOCK_NAME = "workers.lock"
"""Held, shared, by every process that works for the command."""
_LOCK_NAME = "lock"
_LOCKS = (_LOCK_NAME, WORKERS_LOCK_NAME)


@contextmanager
def staging_folder(
    folder: Path, plan: Mapping[str, Any], notice: Callable[[str], None]
) -> Iterator[Path]:
    """`<prepared>.partial`, locked: empty, or as an unfinished command with an equal plan left it.

    Removed when the block fails through the user's text or settings, or damaged shards. Kept when
    it is interrupted or the system fails it (OSError: a full disk), as a kill would leave it:
    whatever is not whole there is written again.
    """
    staging = _staging(folder)
    staging.mkdir(parents=True, exist_ok=True)
    with _locked(staging, notice):
        try:
            _begin(staging, json.dumps(plan, indent=1, sort_keys=True).encode(), notice)
            yield staging
        except (DataError, DamagedShard):
            discard(staging)
            raise
        except OSError as error:
            if staging.is_dir():
                error.add_note(
                    f"{staging}: what is finished is kept: make room (or put right what failed) "
                    "and run the same command again: it goes on from there"
                )
            raise


def replace(folder: Path, staging: Path) -> None:
    """Gives the staging folder its name; an older prepared folder goes only after that."""
    shutil.rmtree(staging / WORK_FOLDER, ignore_errors=True)
    old = folder.with_name(folder.name + ".old")
    if folder.exists():
        folder.rename(old)
    staging.rename(folder)
    sync_folder(folder.parent)
    for name in (PLAN_NAME, *_LOCKS):
        (folder / name).unlink(missing_ok=True)
    if old.exists():
        _remove_prepared(old)


def recover(folder: Path, notice: Callable[[str], None]) -> None:
    """Puts right what a kill between the two renames of `replace` left."""
    old = folder.with_name(folder.name + ".old")
    if not (old / MANIFEST_NAME).is_file():
        return
    if folder.exists():
        notice(f"{old}: removing what a killed `xylem prepare --force` left")
        _remove_prepared(old)
    else:
        notice(f"{old}: a killed `xylem prepare --force` left this: putting it back")
        old.rename(folder)


def discard_leftover(folder: Path, notice: Callable[[str], None]) -> None:
    """Removes the staging folder of a command that was stopped when all but that was done."""
    staging = _staging(folder)
    if staging.is_dir():
        with _locked(staging, notice):
            discard(staging)


def discard(staging: Path) -> None:
    """Removes a staging folder, its plan first: a half-removed one is never gone on with."""
    (staging / PLAN_NAME).unlink(missing_ok=True)
    shutil.rmtree(staging, ignore_errors=True)


def _staging(folder: Path) -> Path:
    return folder.with_name(folder.name + ".partial")


def _begin(staging: Path, plan: bytes, notice: Callable[[str], None]) -> None:
    """Keeps what a command with an equal plan left, and removes anything else."""
    plan_file = staging / PLAN_NAME
    leftovers = [entry for entry in staging.iterdir() if entry.name not in _LOCKS]
    if plan_file.is_file() and plan_file.read_bytes() == plan:
        notice(f"{staging}: going on where an unfinished command stopped")
        return
    if leftovers:
        notice(
            f"{staging}: removing what an unfinished command left: "
            "it had other text or other settings"
        )
        plan_file.unlink(missing_ok=True)
    for entry in leftovers:
        if entry != plan_file:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    write_atomically(plan_file, plan)


@contextmanager
def _locked(staging: Path, notice: Callable[[str], None]) -> Iterator[None]:
    with open(staging / _LOCK_NAME, "w") as lock, open(staging / WORKERS_LOCK_NAME, "w") as workers:
        if not _lock(lock):
            raise DataError(
                f"{staging}: another command is writing there: wait for it, or choose another "
                "folder (data.prepared)"
            )
        if not _lock(workers):
            notice(f"{staging}: waiting for processes of a killed command to end")
            fcntl.flock(workers, fcntl.LOCK_EX)
        fcntl.flock(workers, fcntl.LOCK_UN)
        yield


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_prepared(folder: Path) -> None:
    """Removes the manifest last, so that a half-removed folder can still be told as ours."""
    for entry in folder.iterdir():
        if entry.name != MANIFEST_NAME:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    shutil.rmtree(folder)
