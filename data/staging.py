"""A folder that is written beside its place and gets its name when it is whole.

`<folder>.partial` is being written, by one process at a time; `<folder>.old` is what `--force`
replaces, for the moment between two renames.
"""

import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import DataError
from .manifest import MANIFEST_NAME
from .shards import sync_folder

_LOCK_NAME = "lock"


@contextmanager
def staging_folder(folder: Path, notice: Callable[[str], None]) -> Iterator[Path]:
    """`<prepared>.partial`, empty and locked; removed when the block fails."""
    staging = folder.with_name(folder.name + ".partial")
    staging.mkdir(parents=True, exist_ok=True)
    with open(staging / _LOCK_NAME, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"{staging}: another `xylem prepare` is writing there: wait for it, or choose "
                "another data.prepared"
            ) from None
        leftovers = [entry for entry in staging.iterdir() if entry.name != _LOCK_NAME]
        if leftovers:
            notice(f"{staging}: removing what a killed `xylem prepare` left")
        for entry in leftovers:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        try:
            yield staging
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


def replace(folder: Path, staging: Path) -> None:
    """Gives the staging folder its name; an older prepared folder goes only after that."""
    (staging / _LOCK_NAME).unlink()
    old = folder.with_name(folder.name + ".old")
    if folder.exists():
        folder.rename(old)
    staging.rename(folder)
    sync_folder(folder.parent)
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


def _remove_prepared(folder: Path) -> None:
    """Removes the manifest last, so that a half-removed folder can still be told as ours."""
    for entry in folder.iterdir():
        if entry.name != MANIFEST_NAME:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    shutil.rmtree(folder)
