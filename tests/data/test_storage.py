"""A prepared folder behind a URL gives what the folder gives, or an error that says why not."""

import dataclasses
import hashlib
import importlib
import json
import logging
import os
import pickle
import random
import shutil
import socket
import subprocess
import sys
import urllib.request
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest

from tests.conftest import environment
from tests.data.failing_store import (
    FailingStore,
    Fault,
    broken,
    fine,
    flipped,
    refused,
    short,
    stalled,
)
from xylem.data.blocks import StorageCounts
from xylem.data.errors import DamagedShard, DataError
from xylem.data.local import LocalStorage
from xylem.data.manifest import LanguageEntry, Manifest, Source
from xylem.data.shards import EncodedDocument, Shard, ShardSet, index_path, write_shards
from xylem.data.storage import (
    RemoteStorage,
    StorageConfig,
    StoreError,
    local_copy,
    open_storage,
)
from xylem.data.token_line import Int64, TokenLine

MODEL = b"a tokenizer's model"


@dataclasses.dataclass(frozen=True)
class Folder:
    """A prepared folder of one language, two shards of two blocks."""

    path: Path
    shards: ShardSet
    tokens: Int64

    @property
    def url(self) -> str:
        return f"failing://{self.path}"

    @property
    def table(self) -> tuple[Shard, ...]:
        return TokenLine(self.path, self.shards).shards


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    path = tmp_path_factory.mktemp("prepared")
    draw = np.random.default_rng(3)
    documents = [
        EncodedDocument(id=str(n), tokens=draw.integers(0, 8192, 4000, np.uint32), text_bytes=9)
        for n in range(28)
    ]
    shards = write_shards(
        path,
        "train/swh_Latn",
        iter(documents),
        language="swh_Latn",
        vocab_size=8192,
        shard_tokens=60_000,
    )
    (path / "tokenizer").mkdir()
    (path / "tokenizer" / "tokenizer.model").write_bytes(MODEL)
    (path / "tokenizer" / "tokenizer_meta.json").write_text("{}")
    source = Source(name="swh_Latn", language="swh_Latn", languages=("swh_Latn",), shards=shards)
    entry = LanguageEntry(
        code="swh_Latn", family="atlantic_congo", sources=(source,), heldout=shards
    )
    Manifest(
        tokenizer_sha256=hashlib.sha256(MODEL).hexdigest(),
        vocab_size=8192,
        bos_id=2,
        eos_id=3,
        languages={"swh_Latn": entry},
        families=("atlantic_congo",),
        seed=1,
    ).save(path)
    tokens = np.concatenate([each.tokens for each in documents]).astype(np.int64)
    assert shards.shards == 2
    return Folder(path, shards, tokens)


@pytest.fixture
def folder(original: Folder, tmp_path: Path) -> Folder:
    shutil.copytree(original.path, tmp_path / "prepared")
    return dataclasses.replace(original, path=tmp_path / "prepared")


@pytest.fixture(autouse=True)
def store() -> Iterator[type[FailingStore]]:
    FailingStore.faults.clear()
    FailingStore.requests.clear()
    FailingStore.held.clear()
    yield FailingStore
    FailingStore.held.set()


@pytest.fixture
def config(tmp_path: Path) -> StorageConfig:
    return StorageConfig(cache=str(tmp_path / "cache"), attempts=3, timeout_seconds=20)


def fails(suffix: str, *faults: Fault) -> None:
    FailingStore.faults[suffix] = list(faults)


# Places


def test_a_path_and_a_file_url_are_folders_of_this_machine(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    for place in (folder, str(folder), f"file://{tmp_path}/a%20b"):
        assert open_storage(place) == LocalStorage(folder)
    assert open_storage(folder).place == str(folder)
    assert open_storage(folder).counts == StorageCounts()


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(DataError, match=r"^s4://bucket/a: no storage is called `s4`: name a f"):
        open_storage("s4://bucket/a")


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    known = importlib.import_module("fsspec.registry")._registry
    monkeypatch.delitem(known, "s3", raising=False)
    for package in ("s3fs", "gcsfs"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=r"package for `s3` is missing: pip install 'xylem\[s3\]'$"):
        open_storage("s3://bucket/a")
    with pytest.raises(DataError, match=r"package for `gs` is missing: .*gcsfs"):
        open_storage("gs://bucket/a")


def test_options_reach_the_store_and_true_is_a_truth_value(tmp_path: Path) -> None:
    options = {"anon": "true", "endpoint_url": "http://localhost:1"}
    storage = open_storage("s3://a/b", StorageConfig(cache=str(tmp_path), options=options))
    assert isinstance(storage, RemoteStorage)
    assert storage._store._connect().anon is True
    assert storage._store._connect().endpoint_url == "http://localhost:1"


def test_options_of_a_local_folder_are_a_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"data\.storage\.options has no effect on a folder"):
        open_storage(tmp_path, StorageConfig(options={"anon": "true"}))


def test_a_cache_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = StorageConfig(cache=str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"file/blocks: cannot be made .*set data\.storage\.cache"):
        open_storage("memory://a", config)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("attempts", 0), ("timeout_seconds", 0.0), ("connections", 0), ("cache_gigabytes", -1.0)],
)
def test_settings_below_their_minimum_are_refused(setting: str, value: float) -> None:
    with pytest.raises(DataError, match=rf"^data\.storage\.{setting}={value} must be at least"):
        StorageConfig(**{setting: value})  # type: ignore[arg-type]


# Reading what is there


@pytest.fixture(scope="module")
def s3(original: Folder) -> Iterator[str]:
    """The endpoint of an S3 server on this machine that holds the folder in `bucket/data`."""
    server = pytest.importorskip("moto.server", reason="needs xylem[test]")
    pytest.importorskip("s3fs", reason="needs xylem[s3]")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        running = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        running.start()
        host, port = running.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        store = fsspec.filesystem(
            "s3",
            endpoint_url=endpoint,
            s3_additional_kwargs={"ACL": "public-read"},  # for those who read over plain HTTP
            skip_instance_cache=True,
        )
        store.mkdir("bucket")
        store.put(f"{original.path}/", "bucket/data", recursive=True)
        yield endpoint
        running.stop()


@pytest.fixture(params=["memory", "failing", "http", "s3"])
def remote(
    request: pytest.FixtureRequest, original: Folder, config: StorageConfig
) -> Iterator[RemoteStorage]:
    """The folder in each of several stores."""
    if request.param == "s3":
        config = dataclasses.replace(
            config, options={"endpoint_url": request.getfixturevalue("s3")}
        )
        place = "s3://bucket/data/"
    elif request.param == "http":
        place = f"{request.getfixturevalue('s3')}/bucket/data"
    elif request.param == "memory":
        store = fsspec.filesystem("memory")
        store.put(f"{original.path}/", "/data", recursive=True)
        place = "memory://data"
    else:
        place = original.url
    storage = open_storage(place, config)
    assert isinstance(storage, RemoteStorage)
    yield storage
    if request.param == "memory":
        fsspec.filesystem("memory").rm("/data", recursive=True)


def test_any_url_gives_what_the_folder_gives(original: Folder, remote: RemoteStorage) -> None:
    manifest = Manifest.load(remote)
    assert manifest == Manifest.load(original.path)
    line = TokenLine(remote, manifest.languages["swh_Latn"].sources[0].shards)
    draw = np.random.default_rng(0)
    for start in draw.integers(0, line.tokens - 40_000, 30).tolist():
        stop = start + int(draw.integers(1, 40_000))
        assert np.array_equal(line.read(start, stop), original.tokens[start:stop])
    local = TokenLine(original.path, original.shards)
    assert line.document_ids() == local.document_ids()
    assert np.array_equal(line.document_bounds(), local.document_bounds())
    assert local_copy(LocalStorage(original.path), "tokenizer", {}) == original.path / "tokenizer"
    sha256 = {"tokenizer.model": manifest.tokenizer_sha256, "tokenizer_meta.json": ""}
    copy = local_copy(remote, "tokenizer", sha256)
    assert (copy / "tokenizer.model").read_bytes() == MODEL
    assert (copy / "tokenizer_meta.json").read_text() == "{}"
    assert local_copy(remote, "tokenizer", sha256) == copy


def test_a_sequence_takes_the_table_the_index_and_one_block(
    folder: Folder, config: StorageConfig, store: type[FailingStore]
) -> None:
    storage = open_storage(folder.url, config)
    line = TokenLine(storage, folder.shards)
    assert np.array_equal(line.read(5000, 5513), folder.tokens[5000:5513])
    table, index, block = store.requests
    assert table[0].endswith("shards.jsonl") and table[1:] == (0, None)
    assert index[0].endswith("00000.idx.npz") and index[1:] == (0, None)
    assert block[0].endswith("00000.tar") and block[1] is not None and block[2] is not None
    assert block[2] - block[1] == 36_000 * 2, "one block: nine documents"
    line.read(6000, 6513)
    line.read(0, 36_000)
    assert len(store.requests) == 3
    assert storage.counts.requests == 3 and storage.counts.cache_hits == 2
    sizes = [(folder.path / p).stat().st_size for p in ("train/swh_Latn/shards.jsonl",)]
    sizes.append((folder.path / index_path(folder.table[0].path)).stat().st_size)
    assert storage.counts.bytes_fetched == sum(sizes) + 72_000
    assert storage.counts.seconds_waited > 0 and storage.counts.retries == 0


def test_a_second_run_reads_from_the_cache(
    folder: Folder, config: StorageConfig, store: type[FailingStore]
) -> None:
    for expected in (2 * (1 + 2) + 1, 0):  # a shard: its index, two blocks; the table
        store.requests.clear()
        line = TokenLine(open_storage(folder.url, config), folder.shards)
        assert np.array_equal(line.read(0, line.tokens), folder.tokens)
        assert len(store.requests) == expected


def test_without_a_cache_each_read_is_fetched(
    folder: Folder, config: StorageConfig, store: type[FailingStore], tmp_path: Path
) -> None:
    storage = open_storage(folder.url, dataclasses.replace(config, cache_gigabytes=0))
    line = TokenLine(storage, folder.shards)
    for _ in range(2):
        assert np.array_equal(line.read(0, 100), folder.tokens[:100])
    assert sum(path.endswith(".tar") for path, _, _ in store.requests) == 2
    assert not (tmp_path / "cache").exists()


def test_a_cache_smaller_than_the_text_is_right_and_bounded(
    folder: Folder, config: StorageConfig, tmp_path: Path
) -> None:
    storage = open_storage(folder.url, dataclasses.replace(config, cache_gigabytes=150e-6))
    line = TokenLine(storage, folder.shards)
    for start in np.random.default_rng(0).integers(0, line.tokens - 600, 60).tolist():
        assert np.array_equal(line.read(start, start + 513), folder.tokens[start : start + 513])
        held = sum(p.stat().st_size for p in (tmp_path / "cache" / "blocks").glob("??/*"))
        assert held <= 150_000
    assert storage.counts.bytes_fetched > 2 * folder.table[0].bytes, "blocks came back"


def test_shards_of_one_name_in_two_folders_are_two_in_the_cache(
    folder: Folder, config: StorageConfig, tmp_path: Path
) -> None:
    documents = [EncodedDocument(id="0", tokens=np.arange(100, dtype=np.uint32), text_bytes=1)]
    options = {"language": "swh_Latn", "vocab_size": 8192, "shard_tokens": 1000}
    other = write_shards(tmp_path / "other", "train/swh_Latn", documents, **options)  # type: ignore[arg-type]
    for requests in (3, 0):
        for url, shards, expected in (
            (folder.url, folder.shards, folder.tokens[:100]),
            (f"failing://{tmp_path}/other", other, np.arange(100)),
        ):
            storage = open_storage(url, config)
            assert np.array_equal(TokenLine(storage, shards).read(0, 100), expected)
            assert storage.counts.requests == requests and storage.counts.cache_damaged == 0


def test_a_shard_that_was_prepared_again_is_another_in_the_cache(
    folder: Folder, config: StorageConfig, tmp_path: Path
) -> None:
    """By its sha256, not by its URL alone: a run that reads the old one keeps it."""
    options = {"language": "swh_Latn", "vocab_size": 8192, "shard_tokens": 1000}
    for requests in (3, 0):
        for first in (0, 1):
            tokens = np.arange(first, first + 100, dtype=np.uint32)
            documents = [EncodedDocument(id="0", tokens=tokens, text_bytes=1)]
            shards = write_shards(tmp_path / "again", "train/swh_Latn", documents, **options)  # type: ignore[arg-type]
            storage = open_storage(f"failing://{tmp_path}/again", config)
            assert np.array_equal(TokenLine(storage, shards).read(0, 100), tokens)
            assert storage.counts.requests == requests and storage.counts.cache_damaged == 0


def test_threads_that_want_one_block_fetch_it_once(
    folder: Folder, config: StorageConfig, store: type[FailingStore]
) -> None:
    def slow(data: bytes) -> bytes:
        store.held.wait(0.2)
        return data

    for suffix in (".tar", ".npz", ".jsonl"):
        fails(suffix, slow)
    line = TokenLine(open_storage(folder.url, config), folder.shards)
    with ThreadPoolExecutor(8) as pool:
        pieces = list(pool.map(lambda n: line.read(n * 500, n * 500 + 513), range(32)))
    for number, piece in enumerate(pieces):
        assert np.array_equal(piece, folder.tokens[number * 500 : number * 500 + 513])
    assert len(store.requests) == len(set(store.requests)) == 3


def test_a_pickled_or_forked_storage_reads_the_same(
    original: Folder, remote: RemoteStorage
) -> None:
    line = TokenLine(remote, original.shards)
    assert np.array_equal(line.read(0, 100), original.tokens[:100])
    again = pickle.loads(pickle.dumps(line))
    assert isinstance(again.storage, RemoteStorage) and again.storage is not remote
    assert again.storage.place == remote.place and again.storage.config == remote.config
    assert np.array_equal(again.read(0, 100), original.tokens[:100])
    child = os.fork()
    if child == 0:  # reads from the store, not from the cache
        right = np.array_equal(line.read(50_000, 60_000), original.tokens[50_000:60_000])
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


RUN = """
import random, sys
import numpy as np
from tests.data import failing_store
from xylem.data.manifest import Manifest
from xylem.data.storage import StorageConfig, open_storage
from xylem.data.token_line import TokenLine
folder, cache, seed = sys.argv[1:]
shards = Manifest.load(folder).languages["swh_Latn"].heldout
storage = open_storage(f"failing://{folder}", StorageConfig(cache=cache, cache_gigabytes=200e-6))
there, here = TokenLine(storage, shards), TokenLine(folder, shards)
draw = random.Random(seed)
for _ in range(150):
    start = draw.randrange(shards.tokens - 513)
    assert np.array_equal(there.read(start, start + 513), here.read(start, start + 513))
assert storage.counts.cache_hits > 20 and storage.counts.cache_damaged == 0, storage.counts
"""


def test_two_runs_share_a_cache(original: Folder, tmp_path: Path) -> None:
    arguments = [sys.executable, "-W", "error", "-c", RUN, str(original.path), str(tmp_path)]
    runs = [
        subprocess.Popen(
            [*arguments, seed], env=environment(), cwd=Path(__file__).resolve().parents[2]
        )
        for seed in ("a", "b")
    ]
    assert [run.wait(60) for run in runs] == [0, 0]
    assert sum(p.stat().st_size for p in (tmp_path / "blocks").glob("??/*")) <= 200_000


# Bad input: what a store may do


def test_a_store_that_fails_twice_and_then_works_is_asked_again(
    folder: Folder, config: StorageConfig
) -> None:
    for fault in (broken, short, flipped):
        fails(".tar", fault, fault, fine)
        storage = open_storage(folder.url, dataclasses.replace(config, cache_gigabytes=0))
        dice = random.getstate()
        line = TokenLine(storage, folder.shards)
        assert np.array_equal(line.read(0, 100), folder.tokens[:100])
        assert storage.counts.retries == 2 and storage.counts.requests == 5
        assert random.getstate() == dice, "pauses leave the global dice alone"


def test_a_store_that_keeps_failing_is_an_error_that_names_the_bytes(
    folder: Folder, config: StorageConfig
) -> None:
    fails("00000.tar", broken)
    storage = open_storage(folder.url, config)
    with pytest.raises(
        StoreError,
        match=r"^failing:///.*/00000\.tar: bytes \d+ to \d+: not read in \d+\.\d s and 3 attempts "
        r"\(ConnectionResetError: the connection was reset\): check the store",
    ):
        TokenLine(storage, folder.shards).read(0, 100)
    assert storage.counts.retries == 2


def test_a_store_that_returns_short_reads_is_an_error(
    folder: Folder, config: StorageConfig, tmp_path: Path
) -> None:
    fails("00000.tar", short)
    storage = open_storage(folder.url, config)
    with pytest.raises(
        DamagedShard,
        match=r"00000\.tar: its bytes \d+ to \d+ .*the store sent 71999 bytes for 72000",
    ):
        TokenLine(storage, folder.shards).read(0, 100)
    assert storage.counts.retries == 2
    FailingStore.faults.clear()
    line = TokenLine(open_storage(folder.url, config), folder.shards)
    assert np.array_equal(line.read(0, line.tokens), folder.tokens), "nothing wrong was cached"


@pytest.mark.parametrize("fault", [short, flipped])
@pytest.mark.parametrize("suffix", ["shards.jsonl", "00000.idx.npz"])
def test_a_table_or_index_that_does_not_arrive_whole_is_an_error(
    folder: Folder, config: StorageConfig, suffix: str, fault: Fault
) -> None:
    fails(suffix, fault)
    with pytest.raises(DamagedShard, match=rf"{suffix}: its sha256 is [0-9a-f]{{12}}…, the manif"):
        TokenLine(open_storage(folder.url, config), folder.shards).read(0, 1)


def test_a_store_that_stalls_is_an_error_within_its_time(
    folder: Folder, config: StorageConfig
) -> None:
    fails("00000.tar", stalled)
    config = dataclasses.replace(config, attempts=2, timeout_seconds=0.3)
    storage = open_storage(folder.url, config)
    with pytest.raises(
        StoreError,
        match=r"00000\.tar: bytes \d+ to \d+: not read in 0\.\d s and 2 attempts "
        r"\(TimeoutError: no answer within 0\.\d+ s\)",
    ):
        TokenLine(storage, folder.shards).read(0, 100)
    assert storage.counts.seconds_waited > 0.5


def test_pauses_end_with_the_time_as_well(folder: Folder, config: StorageConfig) -> None:
    """Seven pauses from 0.1 s on, doubled each time, are longer than 8 x 0.1 s."""
    fails("00000.tar", broken)
    config = dataclasses.replace(config, attempts=8, timeout_seconds=0.1)
    storage = open_storage(folder.url, config)
    with pytest.raises(StoreError, match=r"not read in \d+\.\d s and [1-7] attempts"):
        storage.read("train/swh_Latn/00000.tar")


def test_a_stall_that_passes_is_asked_again(folder: Folder, config: StorageConfig) -> None:
    fails("00000.tar", stalled, fine)
    config = dataclasses.replace(config, attempts=3, timeout_seconds=1.5)
    line = TokenLine(open_storage(folder.url, config), folder.shards)
    assert np.array_equal(line.read(0, 100), folder.tokens[:100])


def test_a_server_that_takes_connections_and_says_nothing(
    folder: Folder, config: StorageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same over a real connection, with the S3 client's own time limits below ours."""
    pytest.importorskip("s3fs", reason="needs xylem[s3]")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        config = dataclasses.replace(
            config, attempts=2, timeout_seconds=0.5, options={"endpoint_url": endpoint}
        )
        with pytest.raises(StoreError, match=r"^s3://bucket/a/manifest\.json: not read in .* s "):
            Manifest.load(open_storage("s3://bucket/a", config))


def test_wrong_credentials_are_one_line(
    s3: str, config: StorageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check_credentials(after: bytes) -> None:
        request = urllib.request.Request(f"{s3}/moto-api/reset-auth", data=after)
        request.add_header("Content-Type", "text/plain")
        urllib.request.urlopen(request).close()

    storage = open_storage(
        "s3://bucket/data", dataclasses.replace(config, options={"endpoint_url": s3})
    )
    check_credentials(b"0")
    try:
        with pytest.raises(DataError, match=r"manifest\.json: the store refuses access") as caught:
            Manifest.load(storage)
    finally:
        check_credentials(b"Infinity")
    assert "The AWS Access Key Id you provided does not exist" in str(caught.value)
    assert "\n" not in str(caught.value) and storage.counts.requests == 1
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    storage = open_storage("s3://bucket/data", storage.config)  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"refuses access \(NoCredentialsError"):
        Manifest.load(storage)


def test_credentials_that_expire_are_one_line(folder: Folder, config: StorageConfig) -> None:
    fails("00001.tar", refused)
    line = TokenLine(open_storage(folder.url, config), folder.shards)
    line.read(0, 100)
    with pytest.raises(DataError, match=r"00001\.tar: the store refuses access"):
        line.read(0, line.tokens)


# Bad input: what may lie in a store


def test_a_missing_shard_in_a_store_is_named(folder: Folder, config: StorageConfig) -> None:
    (folder.path / folder.table[1].path).unlink()
    line = TokenLine(open_storage(folder.url, config), folder.shards)
    with pytest.raises(DamagedShard, match=r"^failing://.*00001\.tar: named in the manifest, but"):
        line.read(0, line.tokens)


@pytest.mark.parametrize("path", ["train/swh_Latn/shards.jsonl", "train/swh_Latn/00000.idx.npz"])
def test_a_missing_table_or_index_in_a_store_is_named(
    folder: Folder, config: StorageConfig, path: str
) -> None:
    (folder.path / path).unlink()
    line = TokenLine(open_storage(folder.url, config), folder.shards)
    with pytest.raises(DamagedShard, match=rf"^failing://.*{path}: named in the manifest, but not"):
        line.read(0, 1)


def test_a_cut_shard_in_a_store_is_named_with_its_size(
    folder: Folder, config: StorageConfig
) -> None:
    size = folder.table[0].bytes
    os.truncate(folder.path / folder.table[0].path, 40_000)
    line = TokenLine(open_storage(folder.url, config), folder.shards)
    with pytest.raises(DamagedShard, match=rf"00000\.tar: 40000 bytes, the manifest says {size}"):
        line.read(0, 1)


def test_a_flipped_byte_in_a_store_is_found(folder: Folder, config: StorageConfig) -> None:
    path = folder.path / folder.table[0].path
    path.write_bytes(flipped(path.read_bytes()[:100_000]) + path.read_bytes()[100_000:])
    line = TokenLine(open_storage(folder.url, config), folder.shards)
    with pytest.raises(DamagedShard, match=r"00000\.tar: its bytes \d+ to \d+ .*another sha256"):
        line.read(0, 100)
    second = int(line.shard_bounds()[1])
    assert line.read(second, second + 9).size == 9, "the other shard is as it was"


def test_a_shard_of_equal_length_in_a_store_is_found(
    folder: Folder, config: StorageConfig, tmp_path: Path
) -> None:
    theirs = tmp_path / "theirs"
    documents = [
        EncodedDocument(id=str(n), tokens=np.full(4000, 7, np.uint32), text_bytes=9)
        for n in range(28)
    ]
    options = {"language": "swh_Latn", "vocab_size": 8192, "shard_tokens": 60_000}
    write_shards(theirs, "train/swh_Latn", documents, **options)  # type: ignore[arg-type]
    path = folder.table[0].path
    assert (theirs / path).stat().st_size == (folder.path / path).stat().st_size
    shutil.copy(theirs / path, folder.path / path)
    with pytest.raises(DamagedShard, match=r"00000\.tar: its bytes \d+ to \d+ .*another sha256"):
        TokenLine(open_storage(folder.url, config), folder.shards).read(0, 1)
    shutil.copy(theirs / index_path(path), folder.path / index_path(path))
    config = dataclasses.replace(config, cache_gigabytes=0)
    with pytest.raises(DamagedShard, match=r"00000\.idx\.npz: its sha256 is"):
        TokenLine(open_storage(folder.url, config), folder.shards).read(0, 1)


def test_a_damaged_cache_is_found_and_fetched_again(
    folder: Folder, config: StorageConfig, tmp_path: Path
) -> None:
    line = TokenLine(open_storage(folder.url, config), folder.shards)
    line.read(0, line.tokens)
    cached = [path for path in (tmp_path / "cache" / "blocks").glob("??/*") if path.is_file()]
    assert len(cached) == 7
    for number, path in enumerate(cached):
        data = path.read_bytes()
        path.write_bytes(b"" if number == 0 else (short, flipped)[number % 2](data))
    storage = open_storage(folder.url, config)
    line = TokenLine(storage, folder.shards)
    assert np.array_equal(line.read(0, line.tokens), folder.tokens)
    assert storage.counts.cache_damaged == 7 and storage.counts.requests == 7
    storage = open_storage(folder.url, config)
    assert TokenLine(storage, folder.shards).read(0, line.tokens).size == line.tokens
    assert storage.counts.requests == 0 and storage.counts.cache_hits == 7


def test_a_full_cache_disk_leaves_reading_right(
    folder: Folder, config: StorageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_bytes", full)
    line = TokenLine(open_storage(folder.url, config), folder.shards)
    with pytest.warns(UserWarning, match="No space left on device") as said:
        assert np.array_equal(line.read(0, line.tokens), folder.tokens)
    assert len(said) == 1


def test_a_url_without_a_manifest_is_refused(tmp_path: Path, config: StorageConfig) -> None:
    with pytest.raises(DataError, match=r"^failing:///.*/empty: no manifest here, so nothing that"):
        Manifest.load(open_storage(f"failing://{tmp_path}/empty", config))


def test_a_manifest_edited_by_hand_in_a_store_is_refused(
    folder: Folder, config: StorageConfig
) -> None:
    path = folder.path / "manifest.json"
    body = json.loads(path.read_text()) | {"seed": 2}
    path.write_text(json.dumps(body))
    with pytest.raises(DataError, match=r"^failing:///.*/manifest\.json: edited after it was writ"):
        Manifest.load(open_storage(folder.url, config))


def test_another_tokenizer_in_a_store_is_refused(folder: Folder, config: StorageConfig) -> None:
    storage = open_storage(folder.url, config)
    manifest = Manifest.load(storage)
    (folder.path / "tokenizer" / "tokenizer.model").write_bytes(flipped(MODEL))
    with pytest.raises(DataError, match="did not make the shards beside it"):
        Manifest.load(storage)
    with pytest.raises(DamagedShard, match=r"tokenizer/tokenizer\.model: its sha256 is"):
        local_copy(storage, "tokenizer", {"tokenizer.model": manifest.tokenizer_sha256})


def test_a_damaged_local_copy_is_made_again(folder: Folder, config: StorageConfig) -> None:
    storage = open_storage(folder.url, config)
    files = {"tokenizer.model": hashlib.sha256(MODEL).hexdigest(), "tokenizer_meta.json": ""}
    copy = local_copy(storage, "tokenizer", files)
    (copy / "tokenizer.model").write_bytes(b"")
    (copy / "tokenizer_meta.json").unlink()
    assert local_copy(storage, "tokenizer", files) == copy
    assert (copy / "tokenizer.model").read_bytes() == MODEL
    assert (copy / "tokenizer_meta.json").read_text() == "{}"
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(FileNotFoundError):
            local_copy(storage, "tokenizer", {"none": ""})
