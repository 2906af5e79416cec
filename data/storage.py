"""Where does a prepared folder lie? On this machine, or behind a URL.

Read next: `blocks.py` (what a storage does), `local.py`, `remote.py`.
"""

import hashlib
import shutil
import tempfile
import urllib.parse
import urllib.request
import warnings
from collections.abc import Mapping
from pathlib import Path

from .blocks import Storage, StorageCounts
from .local import LocalStorage
from .remote import RemoteStorage
from .store import StorageConfig, StoreError

__all__ = [
    "LocalStorage",
    "RemoteStorage",
    "Storage",
    "StorageConfig",
    "StorageCounts",
    "StoreError",
    "as_storage",
    "local_copy",
    "open_storage",
]


def open_storage(place: Path | str, config: StorageConfig | None = None) -> Storage:
    """The storage of a prepared folder: a path, `file://…`, or a URL that fsspec knows.

    Raises:
        DataError: nothing here speaks the protocol, a package is missing, or the cache cannot be.
    """
    config = StorageConfig() if config is None else config
    if isinstance(place, str) and "://" in place and not place.startswith("file://"):
        return RemoteStorage(place, config)
    if config.options:
        warnings.warn(
            f"{place}: data.storage.options has no effect on a folder of this machine", stacklevel=2
        )
    if isinstance(place, str) and place.startswith("file://"):
        place = urllib.request.url2pathname(urllib.parse.urlsplit(place).path)
    return LocalStorage(Path(place))


def as_storage(place: Storage | Path | str) -> Storage:
    """A storage as it is; a path or URL opened with the default settings."""
    return open_storage(place) if isinstance(place, Path | str) else place


def local_copy(storage: Storage, folder: str, files: Mapping[str, str]) -> Path:
    """A subfolder of small files on this machine: where it is, or fetched beside the cache.

    Args:
        files: name -> sha256; an empty one is not checked.
    Raises:
        FileNotFoundError: an unchecked file is missing.
        DamagedShard: a checked file is missing or another one.
    """
    if not isinstance(storage, RemoteStorage):
        return Path(storage.name_of(folder))
    contents: dict[str, bytes] = {}
    key = hashlib.blake2b(digest_size=20)
    for name, sha256 in sorted(files.items()):
        path = f"{folder}/{name}"
        contents[name] = storage.read_checked(path, sha256) if sha256 else storage.read(path)
        key.update(hashlib.sha256(name.encode()).digest() + hashlib.sha256(contents[name]).digest())
    copies = storage.config.cache_folder / "copies"
    target = copies / key.hexdigest()
    if not _holds(target, contents):
        copies.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=copies))
        for name, data in contents.items():
            (staging / name).write_bytes(data)
        shutil.rmtree(target, ignore_errors=True)
        try:
            staging.rename(target)
        except OSError:  # another process was faster, and its copy is the same
            shutil.rmtree(staging)
            if not _holds(target, contents):
                raise
    return target


def _holds(folder: Path, contents: Mapping[str, bytes]) -> bool:
    try:
        return all((folder / name).read_bytes() == data for name, data in contents.items())
    except FileNotFoundError:
        return False
