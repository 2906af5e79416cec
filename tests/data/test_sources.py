"""A corpus folder is read as it stands, or one line says what is wrong with it, and where."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from xylem.data.errors import DataError
from xylem.data.sources import Document, ReadCounts, discover, language_folder, read_documents

ROWS = [
    {"id": "a/1", "text": "Habari za leo?\nNzuri."},
    {"id": "a/2", "text": "  tab\tand  spaces \u00e9 e\u0301 \u4e2d\u6587 "},
    {"id": "a/3", "text": "mwisho"},
]
EXPECTED = [Document(id=row["id"], text=row["text"]) for row in ROWS]


def jsonl(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def write_parquet(path: Path, columns: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def fineweb(path: Path) -> Path:
    columns = {"text": [r["text"] for r in ROWS], "id": [r["id"] for r in ROWS], "dump": ["x"] * 3}
    return write_parquet(path, columns)


# What is read


@pytest.mark.parametrize("name", ["swh_Latn.jsonl", "swh_Latn.json"])
@pytest.mark.parametrize(
    ("suffix", "compress"), [("", bytes), (".gz", gzip.compress), (".zst", zstd)]
)
def test_jsonl_is_read_plain_and_compressed(
    tmp_path: Path, name: str, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    path = write(tmp_path / (name + suffix), compress(jsonl(ROWS)))
    assert list(read_documents(path)) == EXPECTED
    assert discover(tmp_path) == {"swh_Latn": [path]}


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".zst", zstd)])
def test_concatenated_compressed_files_are_read_whole(
    tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    data = compress(jsonl(ROWS[:1])) + compress(jsonl(ROWS[1:]))
    assert list(read_documents(write(tmp_path / f"swh_Latn.jsonl{suffix}", data))) == EXPECTED


def test_fineweb2s_folders_give_their_train_split_only(tmp_path: Path) -> None:
    train = fineweb(tmp_path / "swh_Latn" / "train" / "000_00000.parquet")
    fineweb(tmp_path / "swh_Latn" / "test" / "000_00000.parquet")
    fineweb(tmp_path / "swh_Latn_removed" / "train" / "000_00000.parquet")
    assert discover(tmp_path) == {"swh_Latn": [train]}


def test_parquet_of_fineweb2s_columns_is_read(tmp_path: Path) -> None:
    assert list(read_documents(fineweb(tmp_path / "swh_Latn.parquet"))) == EXPECTED


def test_a_text_file_holds_documents_between_blank_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "swh_Latn.txt", b"\nmoja\n mbili\n\n \n\ntatu\r\n")
    assert list(read_documents(path)) == [
        Document(id="swh_Latn.txt:2", text="moja\n mbili"),
        Document(id="swh_Latn.txt:7", text="tatu"),
    ]


def test_a_text_file_in_a_languages_folder_is_one_document(tmp_path: Path) -> None:
    write(tmp_path / "swh_Latn" / "stories" / "one.txt.gz", gzip.compress(b"moja\n\nmbili\n"))
    write(tmp_path / "swh_Latn" / "two.txt", b"tatu")
    folder = language_folder(tmp_path, "swh_Latn")
    found = [
        d for p in discover(tmp_path)["swh_Latn"] for d in read_documents(p, language_folder=folder)
    ]
    assert found == [
        Document(id="stories/one", text="moja\n\nmbili\n"),
        Document(id="two", text="tatu"),
    ]


def test_a_languages_folder_holds_files_of_any_kind_and_depth(tmp_path: Path) -> None:
    one = fineweb(tmp_path / "swh_Latn" / "train" / "000_00000.parquet")
    two = write(tmp_path / "swh_Latn" / "more.jsonl.zst", zstd(jsonl(ROWS)))
    write(tmp_path / "swh_Latn" / ".cache" / "x.jsonl", b"{")
    write(tmp_path / "swh_Latn" / "README.md", b"read me")
    three = write(tmp_path / "fin_Latn.jsonl", jsonl(ROWS))
    assert discover(tmp_path) == {"fin_Latn": [three], "swh_Latn": [two, one]}


def test_files_of_other_kinds_and_hidden_files_are_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "swh_Latn.jsonl", jsonl(ROWS))
    for name in ("LICENSE", "sizes.tsv", ".DS_Store", ".x.jsonl"):
        write(tmp_path / name, b"x")
    assert discover(tmp_path) == {"swh_Latn": [path]}


def test_only_the_languages_asked_for_are_taken(tmp_path: Path) -> None:
    path = write(tmp_path / "swh_Latn.jsonl", jsonl(ROWS))
    write(tmp_path / "fin_Latn.jsonl", jsonl(ROWS))
    write(tmp_path / "notes.jsonl", jsonl(ROWS))
    assert discover(tmp_path, ("swh_Latn",)) == {"swh_Latn": [path]}


def test_other_fields_may_hold_text_and_id(tmp_path: Path) -> None:
    path = write(tmp_path / "swh_Latn.jsonl", jsonl([{"url": 7, "content": "moja"}]))
    assert list(read_documents(path, text_field="content", id_field="url")) == [
        Document(id="7", text="moja")
    ]


def test_a_missing_id_is_the_place_of_the_document(tmp_path: Path) -> None:
    rows = [{"text": "moja"}, {"text": "mbili", "id": None}]
    path = write(tmp_path / "swh_Latn.jsonl", b"\n" + jsonl(rows))
    assert [d.id for d in read_documents(path)] == ["swh_Latn.jsonl:2", "swh_Latn.jsonl:3"]
    path = write_parquet(tmp_path / "a.parquet", {"text": ["moja"]})
    assert [d.id for d in read_documents(path)] == ["a.parquet:1"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = write(tmp_path / "swh_Latn.jsonl", b"\xef\xbb\xbf" + jsonl(ROWS))
    assert list(read_documents(path)) == EXPECTED


def test_empty_documents_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = [{"text": ""}, {"text": "moja"}, {"text": " \n\t"}]
    counts = ReadCounts()
    path = write(tmp_path / "swh_Latn.jsonl", jsonl(rows))
    assert [d.text for d in read_documents(path, counts=counts)] == ["moja"]
    assert (counts.documents, counts.empty, counts.bad) == (1, 2, 0)


# What is refused: folders and names


def test_a_missing_corpus_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder: set data"):
        discover(tmp_path / "nowhere")


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="this folder is empty: put one file"):
        discover(tmp_path)


def test_a_folder_with_no_recognised_file(tmp_path: Path) -> None:
    write(tmp_path / "notes.md", b"x")
    with pytest.raises(DataError, match=r"no file that Xylem reads \(\.jsonl, "):
        discover(tmp_path)


def test_a_language_in_an_unknown_format(tmp_path: Path) -> None:
    write(tmp_path / "fin_Latn.jsonl", jsonl(ROWS))
    write(tmp_path / "swh_Latn.csv", b"x")
    with pytest.raises(
        DataError, match=r"swh_Latn\.csv: nothing here that Xylem reads: use \.jsonl"
    ):
        discover(tmp_path)


def test_a_file_named_by_no_language_code(tmp_path: Path) -> None:
    write(tmp_path / "sw.jsonl", jsonl(ROWS))
    with pytest.raises(DataError, match=r"sw\.jsonl: must be named by a language .*swh_Latn"):
        discover(tmp_path)


def test_a_language_twice(tmp_path: Path) -> None:
    write(tmp_path / "swh_Latn.jsonl", jsonl(ROWS))
    write(tmp_path / "swh_Latn.jsonl.gz", gzip.compress(jsonl(ROWS)))
    with pytest.raises(DataError, match=r"swh_Latn is already in .*swh_Latn\.jsonl: keep one"):
        discover(tmp_path)


def test_a_language_that_is_asked_for_but_not_there(tmp_path: Path) -> None:
    write(tmp_path / "swh_Latn.jsonl", jsonl(ROWS))
    with pytest.raises(DataError, match=r"no text of swa_Latn.*did you mean swh_Latn\?"):
        discover(tmp_path, ("swa_Latn",))


# What is refused: files


def noise(rows: int = 3000) -> bytes:
    return jsonl([{"id": str(n), "text": f"{n * 7919 % 10007} {n**3}"} for n in range(rows)])


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".zst", zstd)])
@pytest.mark.parametrize("kept", [0.5, 0.999])
def test_a_truncated_file(
    tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes], kept: float
) -> None:
    data = compress(noise())
    path = write(tmp_path / f"swh_Latn.jsonl{suffix}", data[: int(len(data) * kept)])
    for on_bad_line in ("error", "skip"):
        with pytest.raises(DataError, match=r"swh_Latn.* cut off or no (gzip|zstd) file"):
            list(read_documents(path, on_bad_line=on_bad_line))  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_an_unreadable_compressed_file(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"swh_Latn.jsonl{suffix}", b"these are not the bytes you look for")
    with pytest.raises(DataError, match=r"cut off or no (gzip|zstd) file"):
        list(read_documents(path))


def test_a_flipped_byte_in_gzip(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(noise()))
    data[len(data) // 2] ^= 255
    with pytest.raises(DataError, match=r"cut off or no gzip file|not JSON|invalid UTF-8"):
        list(read_documents(write(tmp_path / "swh_Latn.jsonl.gz", bytes(data))))


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_truncated_parquet_file(tmp_path: Path, kept: float) -> None:
    whole = fineweb(tmp_path / "a.parquet").read_bytes()
    path = write(tmp_path / "swh_Latn.parquet", whole[: int(len(whole) * kept)])
    with pytest.raises(DataError, match=r"swh_Latn\.parquet: cut off or no parquet file"):
        list(read_documents(path))


def test_a_parquet_file_damaged_inside(tmp_path: Path) -> None:
    path = tmp_path / "swh_Latn.parquet"
    write_parquet(
        path, {"text": [f"{n**5}" for n in range(5000)], "id": list(map(str, range(5000)))}
    )
    data = bytearray(path.read_bytes())
    data[100:200] = bytes(100)
    path.write_bytes(data)
    with pytest.raises(DataError, match="cut off or no parquet file"):
        list(read_documents(path))


def test_a_missing_parquet_column(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "swh_Latn.parquet", {"content": ["x"], "url": ["y"]})
    with pytest.raises(DataError, match=r"no column 'text' \(its columns: 'content', 'url'\)"):
        list(read_documents(path))


# What is refused: lines. Each of these is an error with its place, or counted on request.

BAD_LINES: dict[str, tuple[bytes, str]] = {
    "not_json": (b'{"text": "x"', "not JSON"),
    "not_an_object": (b'["x"]', "not a JSON object"),
    "missing_text_field": (
        b'{"content": "x", "id": 1}',
        r"no field 'text' \(its fields: 'content', 'id'\)",
    ),
    "no_fields": (b"{}", r"no field 'text' \(its fields: none\)"),
    "text_is_null": (b'{"text": null}', "'text' is null, not a string"),
    "text_is_a_number": (b'{"text": 3}', "'text' is a number, not a string"),
    "text_is_a_list": (b'{"text": ["x"]}', "'text' is a list, not a string"),
    "invalid_utf8": (b'{"text": "\xff"}', "invalid UTF-8"),
    "half_a_surrogate_pair": (b'{"text": "x\\ud800"}', "half a surrogate pair"),
    "half_a_surrogate_pair_in_the_id": (b'{"text": "x", "id": "\\ud800"}', "half a surrogate pair"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_an_error_with_its_place(tmp_path: Path, name: str) -> None:
    line, problem = BAD_LINES[name]
    path = write(tmp_path / "swh_Latn.jsonl", jsonl(ROWS[:2]) + line + b"\n" + jsonl(ROWS[2:]))
    with pytest.raises(
        DataError, match=rf"swh_Latn\.jsonl: line 3: {problem}.*on_bad_line=skip"
    ) as e:
        list(read_documents(path))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_counted_and_skipped_if_asked(tmp_path: Path, name: str) -> None:
    line, _ = BAD_LINES[name]
    path = write(tmp_path / "swh_Latn.jsonl", jsonl(ROWS[:2]) + line + b"\n" + jsonl(ROWS[2:]))
    counts = ReadCounts()
    assert list(read_documents(path, on_bad_line="skip", counts=counts)) == EXPECTED
    assert (counts.documents, counts.bad) == (3, 1)
    assert counts.first_bad.startswith(f"{path}: line 3: ")


def test_a_parquet_row_without_text(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "swh_Latn.parquet", {"text": ["x", None, "y"]})
    with pytest.raises(DataError, match=r"swh_Latn\.parquet: row 2: 'text' is null, not a string"):
        list(read_documents(path))
    counts = ReadCounts()
    assert len(list(read_documents(path, on_bad_line="skip", counts=counts))) == 2
    assert counts.bad == 1


def test_a_parquet_row_of_invalid_utf8(tmp_path: Path) -> None:
    buffers = pyarrow.array([b"x", b"\xff"], pyarrow.binary()).buffers()
    texts = pyarrow.Array.from_buffers(pyarrow.string(), 2, buffers)
    path = write_parquet(tmp_path / "swh_Latn.parquet", {"text": texts})
    with pytest.raises(DataError, match=r"swh_Latn\.parquet: row 2: invalid UTF-8"):
        list(read_documents(path))


def test_a_text_file_of_invalid_utf8(tmp_path: Path) -> None:
    path = write(tmp_path / "swh_Latn.txt", b"moja\n\xe9\nmbili\n")
    with pytest.raises(DataError, match=r"swh_Latn\.txt: line 2: invalid UTF-8"):
        list(read_documents(path))
    counts = ReadCounts()
    found = list(read_documents(path, on_bad_line="skip", counts=counts))
    assert [d.text for d in found] == ["moja\nmbili"] and counts.bad == 1


def test_a_languages_folder_without_text(tmp_path: Path) -> None:
    write(tmp_path / "fin_Latn.jsonl", jsonl(ROWS))
    write(tmp_path / "swh_Latn" / "notes.docx", b"x")
    with pytest.raises(DataError, match=r"swh_Latn: nothing here that Xylem reads"):
        discover(tmp_path)
    with pytest.raises(DataError, match=r"this is a file: set data.corpus to its folder"):
        discover(tmp_path / "fin_Latn.jsonl")
