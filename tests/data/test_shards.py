"""What is written to shards is what is read back, by us and by webdataset, or an error says why."""

import dataclasses
import errno
import os
import pickle
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from xylem.data import local
from xylem.data import shards as shards_module
from xylem.data.errors import DamagedShard, DataError
from xylem.data.local import LocalStorage
from xylem.data.manifest import MANIFEST_VERSION, LanguageEntry, Manifest, Source
from xylem.data.shards import (
    BLOCK_TOKENS,
    EncodedDocument,
    Shard,
    ShardSet,
    ShardWriter,
    check_sizes,
    index_path,
    verify,
    write_shards,
    write_table,
)
from xylem.data.token_line import TokenLine, read_table

VOCABULARY = 8192


def documents(
    count: int, longest: int = 900, vocab_size: int = VOCABULARY
) -> list[EncodedDocument]:
    random = np.random.default_rng(7)
    return [
        EncodedDocument(
            id=f"öffnen/{number}",
            tokens=random.integers(0, vocab_size, random.integers(2, longest)).astype(np.uint32),
            text_bytes=int(random.integers(1, 5000)),
        )
        for number in range(count)
    ]


def line_of(written: list[EncodedDocument]) -> npt.NDArray[np.int64]:
    return np.concatenate([each.tokens for each in written]).astype(np.int64)


def table(folder: Path, shards: ShardSet) -> tuple[Shard, ...]:
    return read_table(LocalStorage(folder), shards)


def write(folder: Path, written: list[EncodedDocument], **options: int) -> ShardSet:
    sizes = {"vocab_size": VOCABULARY, "shard_tokens": 100_000} | options
    return write_shards(folder, "train/swh_Latn", iter(written), language="swh_Latn", **sizes)


@pytest.fixture(scope="module")
def written() -> list[EncodedDocument]:
    return documents(700)


@pytest.fixture
def shards(tmp_path: Path, written: list[EncodedDocument]) -> ShardSet:
    return write(tmp_path, written)


def test_the_line_is_the_documents_one_after_the_other(
    tmp_path: Path, shards: ShardSet, written: list[EncodedDocument]
) -> None:
    line, expected = TokenLine(tmp_path, shards), line_of(written)
    assert shards.shards >= 3 and line.tokens == len(expected) and line.documents == len(written)
    whole = line.read(0, line.tokens)
    assert whole.dtype == np.int64
    assert np.array_equal(whole, expected)
    lengths = [len(each.tokens) for each in written]
    assert np.array_equal(line.document_bounds(), np.cumsum([0, *lengths]))
    assert line.document_bounds().dtype == np.int64
    assert line.document_bytes().tolist() == [each.text_bytes for each in written]
    assert line.document_ids() == [each.id for each in written]


def test_any_piece_of_the_line_can_be_read(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("line")
    written = documents(400)
    line, expected = (
        TokenLine(folder, write(folder, written, shard_tokens=70_000)),
        line_of(written),
    )
    borders = line.shard_bounds().tolist()
    assert borders[0] == 0 and borders[-1] == line.tokens and len(borders) == len(line.shards) + 1

    @settings(max_examples=300, deadline=None)
    @given(st.integers(0, line.tokens), st.integers(0, line.tokens), st.sampled_from(borders))
    def check(a: int, b: int, border: int) -> None:
        for start, stop in ((min(a, b), max(a, b)), (min(a, border), max(a, border))):
            assert np.array_equal(line.read(start, stop), expected[start:stop])

    check()


def test_reading_outside_the_line_is_refused(tmp_path: Path, shards: ShardSet) -> None:
    line = TokenLine(tmp_path, shards)
    for start, stop in ((-1, 3), (5, 4), (0, line.tokens + 1)):
        with pytest.raises(IndexError):
            line.read(start, stop)


def test_an_empty_line_has_no_tokens(tmp_path: Path) -> None:
    line = TokenLine(tmp_path, write(tmp_path, []))
    assert line.shards == () and line.tokens == 0 and line.document_ids() == []
    assert line.document_bounds().tolist() == [0] and line.document_bytes().size == 0
    assert line.read(0, 0).size == 0


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_535, np.uint16), (65_536, np.uint32)])
def test_large_vocabularies_take_four_bytes(
    tmp_path: Path, vocab_size: int, dtype: type[np.integer]
) -> None:
    written = documents(5, vocab_size=vocab_size)
    written[0].tokens[0] = vocab_size - 1
    shards = write(tmp_path, written, vocab_size=vocab_size)
    assert np.array_equal(
        TokenLine(tmp_path, shards).read(0, len(line_of(written))), line_of(written)
    )
    path = str(tmp_path / table(tmp_path, shards)[0].path)
    sample = next(iter(webdataset.WebDataset(path, shardshuffle=False).decode()))
    assert sample["tokens.npy"].dtype == dtype


def test_webdatasets_own_reader_opens_a_shard(
    tmp_path: Path, shards: ShardSet, written: list[EncodedDocument]
) -> None:
    paths = [str(tmp_path / shard.path) for shard in table(tmp_path, shards)]
    samples = list(webdataset.WebDataset(paths, shardshuffle=False).decode())
    assert np.array_equal(np.concatenate([s["tokens.npy"] for s in samples]), line_of(written))
    described = [s["json"] for s in samples]
    assert [i for d in described for i in d["ids"]] == [each.id for each in written]
    assert [t for d in described for t in d["tokens"]] == [len(each.tokens) for each in written]
    assert [b for d in described for b in d["bytes"]] == [each.text_bytes for each in written]
    assert {d["language"] for d in described} == {"swh_Latn"}
    assert len({s["__key__"] for s in samples if s["__url__"] == paths[0]}) > 1


def test_a_block_holds_whole_documents(tmp_path: Path, shards: ShardSet) -> None:
    path = str(tmp_path / table(tmp_path, shards)[0].path)
    samples = webdataset.WebDataset(path, shardshuffle=False).decode()
    sizes = []
    for sample in samples:
        assert sum(sample["json"]["tokens"]) == len(sample["tokens.npy"])
        sizes.append(len(sample["tokens.npy"]))
    assert all(size >= BLOCK_TOKENS for size in sizes[:-1])


def test_equal_documents_give_equal_bytes(tmp_path: Path, written: list[EncodedDocument]) -> None:
    first, second = (write(tmp_path / name, written) for name in ("a", "b"))
    assert first == second
    for shard in table(tmp_path / "a", first):
        for path in (shard.path, index_path(shard.path)):
            assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()
    assert write(tmp_path / "c", written[::-1]) != first


def test_a_shard_knows_its_counts(
    tmp_path: Path, shards: ShardSet, written: list[EncodedDocument]
) -> None:
    each = table(tmp_path, shards)
    assert sum(shard.documents for shard in each) == len(written) == shards.documents
    assert sum(shard.tokens for shard in each) == len(line_of(written)) == shards.tokens
    text_bytes = sum(document.text_bytes for document in written)
    assert sum(shard.text_bytes for shard in each) == text_bytes == shards.text_bytes
    assert [(tmp_path / shard.path).stat().st_size for shard in each] == [s.bytes for s in each]
    assert len(each) == shards.shards and sum(shard.bytes for shard in each) == shards.bytes
    verify(tmp_path, each)


def test_a_line_opens_nothing_until_it_is_read(tmp_path: Path, shards: ShardSet) -> None:
    nowhere = dataclasses.replace(shards, table="gone/shards.jsonl")
    line = pickle.loads(pickle.dumps(TokenLine(tmp_path, nowhere)))
    assert line.tokens == shards.tokens and line.documents == shards.documents
    with pytest.raises(DamagedShard, match=r"gone/shards\.jsonl: named in the manifest, but not"):
        line.read(0, 1)
    each = table(tmp_path, shards)
    gone = [dataclasses.replace(shard, path=f"gone/{n}.tar") for n, shard in enumerate(each)]
    line = TokenLine(tmp_path, write_table(tmp_path, "gone.jsonl", gone))
    with pytest.raises(DamagedShard, match=r"gone/0\.idx\.npz: named in the manifest, but not"):
        line.read(0, 1)


def test_a_pickled_line_reads_the_same(tmp_path: Path, shards: ShardSet) -> None:
    line = TokenLine(tmp_path, shards)
    before = line.read(10, 50_000)
    assert np.array_equal(pickle.loads(pickle.dumps(line)).read(10, 50_000), before)


# What is on disk is not what was written


def flip(path: Path, place: int) -> None:
    """Changes one byte, and neither size nor modification time."""
    times = path.stat()
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_cut_shard_is_named(tmp_path: Path, shards: ShardSet) -> None:
    each = table(tmp_path, shards)
    path = tmp_path / each[1].path
    os.truncate(path, path.stat().st_size - 512)
    line = TokenLine(tmp_path, shards)
    assert line.read(0, 100).size == 100
    with pytest.raises(DamagedShard, match=r"00001\.tar: .* bytes, the manifest says"):
        line.read(0, line.tokens)
    for check in (verify, check_sizes):
        with pytest.raises(DamagedShard, match=r"00001\.tar"):
            check(tmp_path, each)


def test_a_shard_that_is_cut_while_it_is_read_is_an_error_and_no_crash(
    tmp_path: Path, shards: ShardSet
) -> None:
    line = TokenLine(tmp_path, shards)
    line.read(0, line.tokens)
    os.truncate(tmp_path / line.shards[0].path, 8192)
    with pytest.raises(DamagedShard, match=r"00000\.tar: its bytes \d+ to \d+ .*cut while"):
        line.read(20_000, 20_100)


def test_a_missing_shard_is_named(tmp_path: Path, shards: ShardSet) -> None:
    each = table(tmp_path, shards)
    (tmp_path / each[2].path).unlink()
    for check in (verify, check_sizes):
        with pytest.raises(DamagedShard, match=r"00002\.tar: named in the manifest, but not there"):
            check(tmp_path, each)
    line = TokenLine(tmp_path, shards)
    with pytest.raises(DamagedShard, match=r"00002\.tar: named in the manifest, but not there"):
        line.read(int(line.shard_bounds()[2]), line.tokens)


def test_a_flipped_byte_is_found_by_verify(tmp_path: Path, shards: ShardSet) -> None:
    each = table(tmp_path, shards)
    flip(tmp_path / each[1].path, each[1].bytes // 2)
    with pytest.raises(DamagedShard, match=r"00001\.tar: its sha256"):
        verify(tmp_path, each)


def test_a_flipped_byte_is_found_when_its_block_is_first_read(
    tmp_path: Path, shards: ShardSet
) -> None:
    each = table(tmp_path, shards)
    flip(tmp_path / each[1].path, 100_000)
    line = TokenLine(tmp_path, shards)
    start, stop = line.shard_bounds()[1:3].tolist()
    assert line.read(0, start).size == start
    assert line.read(start, start + 32_768).size == 32_768, "the block before the flipped byte"
    with pytest.raises(DamagedShard, match=r"00001\.tar: its bytes (\d+) to (\d+) .*") as caught:
        line.read(start, stop)
    first, last = (int(word) for word in str(caught.value).split() if word.isdigit())
    assert first <= 100_000 < last < each[1].bytes
    with pytest.raises(DamagedShard, match=r"00001\.tar"):
        line.read(stop - 40_000, stop)


def replacement(folder: Path, written: list[EncodedDocument], shards: ShardSet) -> Shard:
    """Replaces a line's first shard by one of other tokens and equal length."""
    first = table(folder, shards)[0]
    other = [dataclasses.replace(each, tokens=each.tokens ^ 1) for each in written]
    theirs = table(folder / "other", write(folder / "other", other))[0]
    assert theirs.bytes == first.bytes and theirs.sha256 != first.sha256
    os.replace(folder / "other" / theirs.path, folder / first.path)
    return theirs


def test_a_shard_of_equal_length_in_its_place_is_found_when_first_read(
    tmp_path: Path, shards: ShardSet, written: list[EncodedDocument]
) -> None:
    replacement(tmp_path, written, shards)
    with pytest.raises(DamagedShard, match=r"00000\.tar: its bytes"):
        TokenLine(tmp_path, shards).read(0, 1)


def test_a_shard_of_equal_length_with_its_own_index_is_found_when_first_read(
    tmp_path: Path, shards: ShardSet, written: list[EncodedDocument]
) -> None:
    theirs = replacement(tmp_path, written, shards)
    os.replace(tmp_path / "other" / index_path(theirs.path), tmp_path / index_path(theirs.path))
    with pytest.raises(DamagedShard, match=r"00000\.idx\.npz: its sha256"):
        TokenLine(tmp_path, shards).read(0, 1)


def test_a_shard_that_is_replaced_during_the_run_is_checked_again(
    tmp_path: Path,
    shards: ShardSet,
    written: list[EncodedDocument],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = TokenLine(tmp_path, shards)
    before = line.read(0, 100)
    replacement(tmp_path, written, shards)
    assert np.array_equal(line.read(0, 100), before), "the open file is the one that was checked"
    monkeypatch.setattr(local, "most_open", lambda: 1)
    line.read(line.tokens - 1, line.tokens)  # closes the first shard's file
    with pytest.raises(DamagedShard, match=r"00000\.tar: its bytes"):
        line.read(0, 100)


def test_more_shards_than_files_may_be_open(
    tmp_path: Path, written: list[EncodedDocument], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "most_open", lambda: 2)
    line = TokenLine(tmp_path, write(tmp_path, written, shard_tokens=10_000))
    expected, bounds = line_of(written), line.shard_bounds().tolist()
    assert len(bounds) > 10

    def files_open() -> int:
        tars = (os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink())
        return sum(str(tmp_path) in tar for tar in tars)

    for start in bounds[:-1] * 2:
        assert np.array_equal(line.read(start, start + 9), expected[start : start + 9])
        assert files_open() <= 2


def test_a_table_of_other_bytes_is_found(tmp_path: Path, shards: ShardSet) -> None:
    flip(tmp_path / shards.table, 20)
    with pytest.raises(DamagedShard, match=r"shards\.jsonl: its sha256 is"):
        TokenLine(tmp_path, shards).read(0, 1)


def test_an_index_of_other_bytes_is_found_on_opening(tmp_path: Path, shards: ShardSet) -> None:
    each = table(tmp_path, shards)
    path = tmp_path / index_path(each[0].path)
    flip(path, path.stat().st_size // 2)
    with pytest.raises(DamagedShard, match=r"00000\.idx\.npz: its sha256"):
        TokenLine(tmp_path, shards).read(0, 1)
    with pytest.raises(DamagedShard, match=r"00000\.idx\.npz: its sha256"):
        verify(tmp_path, each)


def test_an_index_of_other_counts_than_its_table_is_found(tmp_path: Path, shards: ShardSet) -> None:
    each = [dataclasses.replace(s, tokens=s.tokens + 1) for s in table(tmp_path, shards)]
    line = TokenLine(tmp_path, write_table(tmp_path, "wrong.jsonl", each))
    with pytest.raises(DamagedShard, match=r"00000\.idx\.npz: \d+ tokens, the table says \d+"):
        line.read(0, 1)


def test_verify_reports_the_bytes_it_read(tmp_path: Path, shards: ShardSet) -> None:
    read: list[int] = []
    each = table(tmp_path, shards)
    verify(tmp_path, each, read.append)
    indexes = sum((tmp_path / index_path(shard.path)).stat().st_size for shard in each)
    assert sum(read) == sum(shard.bytes for shard in each) + indexes


def test_a_full_disk_leaves_no_shard(
    tmp_path: Path, written: list[EncodedDocument], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shards_module.os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write(tmp_path, written)
    assert not isinstance(caught.value, DataError | DamagedShard)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_writer_that_is_left_leaves_no_shard(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        ShardWriter(tmp_path, "train/a.tar", language="swh_Latn", vocab_size=VOCABULARY) as writer,
    ):
        writer.add(documents(1)[0])
        raise KeyboardInterrupt
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# The manifest


@pytest.fixture
def manifest(shards: ShardSet) -> Manifest:
    entries = {
        code: LanguageEntry(
            code=code,
            family=family,
            sources=tuple(
                Source(name=name, language=code, languages=(code,), shards=shards)
                for name in (code, f"{code}@books")
            ),
            heldout=shards,
        )
        for code, family in (("swh_Latn", "atlantic_congo"), ("fin_Latn", "uralic"))
    }
    return Manifest(
        tokenizer_sha256="0" * 64,
        vocab_size=VOCABULARY,
        bos_id=2,
        eos_id=3,
        languages=entries,
        families=("atlantic_congo", "uralic"),
        seed=1,
        settings={"heldout_share": 0.02},
    )


def test_a_manifest_comes_back_as_it_was(tmp_path: Path, manifest: Manifest) -> None:
    manifest.save(tmp_path)
    loaded = Manifest.load(tmp_path)
    assert loaded == manifest and loaded.hash == manifest.hash
    assert list(loaded.languages) == ["fin_Latn", "swh_Latn"]
    entry = loaded.languages["fin_Latn"]
    assert list(loaded.sources) == ["fin_Latn", "fin_Latn@books", "swh_Latn", "swh_Latn@books"]
    assert entry.train_tokens == 2 * entry.heldout.tokens
    assert entry.train_bytes == 2 * entry.heldout.text_bytes
    assert entry.train_documents == 2 * entry.heldout.documents


def test_the_hash_follows_the_contents(manifest: Manifest) -> None:
    assert dataclasses.replace(manifest, seed=2).hash != manifest.hash
    assert (
        dataclasses.replace(manifest, families=("uralic", "atlantic_congo")).hash != manifest.hash
    )
    backwards = dict(reversed(manifest.languages.items()))
    assert dataclasses.replace(manifest, languages=backwards).hash == manifest.hash


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match=r"no manifest here.*run `xylem prepare`"):
            Manifest.load(folder)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe"])
def test_a_manifest_that_is_not_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(DataError, match="not JSON"):
        Manifest.load(tmp_path)


def test_a_manifest_of_another_version_is_refused(tmp_path: Path, manifest: Manifest) -> None:
    dataclasses.replace(manifest, version=1).save(tmp_path)
    with pytest.raises(DataError, match=f"manifest version 1, this Xylem reads {MANIFEST_VERSION}"):
        Manifest.load(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(DataError, match="manifest version None"):
        Manifest.load(tmp_path)


def test_a_manifest_edited_by_hand_is_refused(tmp_path: Path, manifest: Manifest) -> None:
    manifest.save(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"seed": 1', '"seed": 3'))
    with pytest.raises(DataError, match="edited after it was written"):
        Manifest.load(tmp_path)


def test_another_tokenizer_beside_the_manifest_is_refused(
    tmp_path: Path, manifest: Manifest
) -> None:
    manifest.save(tmp_path)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.model").write_bytes(b"another")
    with pytest.raises(DataError, match="did not make the shards beside it"):
        Manifest.load(tmp_path)
