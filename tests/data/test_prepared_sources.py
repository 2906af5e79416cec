"""Which sources a prepared language has: text that counts several times, derived, curated."""

import dataclasses
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from xylem.data.config import DataConfig, TokenizerConfig
from xylem.data.curation.config import CurationConfig
from xylem.data.errors import DataError
from xylem.data.manifest import Manifest
from xylem.data.preparation import tasks as tasks_module
from xylem.data.preparation.documents import keyed_hash
from xylem.data.prepare import is_heldout, prepare
from xylem.data.token_line import TokenLine
from xylem.data.tokenizer import Tokenizer
from xylem.data.transforms.config import TransformConfig

from .test_prepare import TEXTS, Said, quiet, shards_of, write_corpus


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    return DataConfig(
        corpus=str(write_corpus(tmp_path / "corpus", TEXTS)),
        prepared=str(tmp_path / "prepared"),
        heldout_share=0.2,
        heldout_documents=5,
        shard_tokens=1000,
        bucket_bytes=6000,
        sequence_length=64,
        tokenizer=TokenizerConfig(vocab_size=400, sample_bytes=20_000),
    )


def ids_of(folder: str | Path, manifest: Manifest, source: str) -> list[str]:
    return TokenLine(Path(folder), manifest.sources[source].shards).document_ids()


# Documents that stand for several


def with_copies(config: DataConfig, copies: Callable[[int], object], suffix: str) -> DataConfig:
    by_id = TEXTS["eng_Latn"]
    rows = [{"id": i, "text": t, "n": copies(k)} for k, (i, t) in enumerate(by_id.items())]
    corpus = Path(config.corpus)
    (corpus / "eng_Latn.jsonl.gz").unlink()
    if suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), corpus / "eng_Latn.parquet")
    else:
        text = "\n".join(json.dumps(row) for row in rows)
        (corpus / "eng_Latn.jsonl").write_text(text, encoding="utf-8")
    return dataclasses.replace(config, copies_field="n")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_documents_that_count_several_times_are_sources_of_their_own(
    config: DataConfig, suffix: str
) -> None:
    config = with_copies(config, lambda k: (None, 1, 2, 5)[k % 4], suffix)
    manifest = quiet(config)
    entry = manifest.languages["eng_Latn"]
    assert [(s.name, s.copies, s.languages) for s in entry.sources] == [
        ("eng_Latn", 1, ("eng_Latn",)),
        ("eng_Latn.x2", 2, ("eng_Latn",)),
        ("eng_Latn.x5", 5, ("eng_Latn",)),
    ]
    for name, places in (("eng_Latn", (0, 1)), ("eng_Latn.x2", (2,)), ("eng_Latn.x5", (3,))):
        wanted = {
            i
            for k, i in enumerate(TEXTS["eng_Latn"])
            if k % 4 in places and not is_heldout(i, config)
        }
        ids = ids_of(config.prepared, manifest, name)
        assert set(ids) == wanted and len(ids) == len(wanted)
        assert ids == sorted(ids, key=lambda i: keyed_hash(config.seed, f"order {name}", i))
    assert shards_of(config.prepared, entry.sources[1].shards)[0].path.startswith(
        "train/eng_Latn.x2/"
    )
    assert len(manifest.languages["fin_Latn"].sources) == 1


def test_the_manifest_does_not_depend_on_which_document_stands_first(
    config: DataConfig, tmp_path: Path
) -> None:
    quiet(config)
    own = TokenizerConfig(path=f"{config.prepared}/tokenizer")
    config = dataclasses.replace(config, tokenizer=own, derived={"parallel": PAIRS})
    config = with_copies(config, lambda k: 1 + k % 3, ".jsonl")
    path = Path(config.corpus) / "eng_Latn.jsonl"
    lines = path.read_text("utf-8").splitlines()
    found = []
    for first in range(3):  # counts once, twice, three times
        path.write_text("\n".join([*lines[first:], *lines[:first]]), "utf-8")
        manifest = quiet(dataclasses.replace(config, prepared=str(tmp_path / f"{first}")))
        found.append(manifest.hash)
    english, finnish = (manifest.languages[code].sources for code in ("eng_Latn", "fin_Latn"))
    assert [s.name for s in english] == ["eng_Latn", "eng_Latn.x2", "eng_Latn.x3"]
    assert [s.name for s in finnish] == ["fin_Latn", "parallel"]
    assert found == found[:1] * 3


def test_a_language_in_which_every_document_counts_twice(config: DataConfig) -> None:
    manifest = quiet(with_copies(config, lambda k: 2, ".jsonl"))
    assert [s.name for s in manifest.languages["eng_Latn"].sources] == ["eng_Latn.x2"]


@pytest.mark.parametrize("wrong", [0, -1, 101, 1.5, "2", True])
def test_wrong_numbers_of_copies(config: DataConfig, wrong: object) -> None:
    config = with_copies(config, lambda k: wrong if k == 3 else 1, ".jsonl")
    with pytest.raises(DataError, match=r"line 4: 'n' is .*, not a whole number from 1 to 100"):
        quiet(config)


# Derived sources


PAIRS = TransformConfig(transform="pairs", language="fin_Latn", other="eng_Latn")


def test_derived_sources_are_written_from_training_documents(config: DataConfig) -> None:
    plain = quiet(config)
    config = dataclasses.replace(
        config, derived={"parallel": PAIRS}, prepared=f"{config.prepared}-derived"
    )
    manifest = quiet(config)
    names = {code: [s.name for s in e.sources] for code, e in manifest.languages.items()}
    assert names["fin_Latn"] == ["fin_Latn", "parallel"] and names["eng_Latn"] == ["eng_Latn"]
    source = manifest.sources["parallel"]
    assert (source.language, source.languages) == ("fin_Latn", ("fin_Latn", "eng_Latn"))
    assert source.transform["transform"] == "pairs" and source.copies == 1
    assert manifest.settings["derived"] == {"parallel": source.transform}
    assert Manifest.load(Path(config.prepared)) == manifest
    ids = ids_of(config.prepared, manifest, "parallel")
    trained = {i for i in TEXTS["fin_Latn"] if not is_heldout(i, config)}
    assert {i.removesuffix("#parallel") for i in ids} == trained and len(ids) == len(trained)
    assert ids == sorted(ids, key=lambda i: keyed_hash(config.seed, "order parallel", i))
    line = TokenLine(Path(config.prepared), source.shards)
    text = Tokenizer.load(Path(config.prepared) / "tokenizer").decode(line.read(0, line.tokens))
    first = ids[0].removesuffix("#parallel")
    assert TEXTS["fin_Latn"][first] in text and TEXTS["eng_Latn"][first] in text
    for code, entry in plain.languages.items():
        assert manifest.languages[code].sources[0] == entry.sources[0]


@pytest.mark.parametrize(
    ("name", "transform", "problem"),
    [
        ("Big", PAIRS, "data.derived: 'Big' names no source"),
        ("eng_Latn", PAIRS, "data.derived: 'eng_Latn' names no source"),
        ("p", dataclasses.replace(PAIRS, other="swh_Latn"), "other=swh_Latn: no such language"),
    ],
)
def test_derived_sources_that_cannot_be_are_refused_before_text_is_read(
    config: DataConfig,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    transform: TransformConfig,
    problem: str,
) -> None:
    monkeypatch.setattr(tasks_module, "read_file", None)
    with pytest.raises(DataError, match=problem):
        quiet(dataclasses.replace(config, derived={name: transform}))


def test_a_derived_source_without_documents(config: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "links.tsv").write_text("nowhere\tnobody\n")
    transform = dataclasses.replace(PAIRS, links=str(tmp_path / "links.tsv"))
    with pytest.raises(DataError, match=r"data\.derived\.p: no document of fin_Latn gives any"):
        quiet(dataclasses.replace(config, derived={"p": transform}))


# Curation


def test_a_curated_corpus_is_prepared_and_curated_once(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, bool]] = []

    def curate(
        config: DataConfig, curation: CurationConfig, folder: Path, console: Any, *, force: bool
    ) -> Path:
        calls.append((str(folder), force))
        clean = {code: dict(list(by_id.items())[::2]) for code, by_id in TEXTS.items()}
        return write_corpus(folder, clean)

    fake = types.ModuleType("pipeline")
    fake.curate = curate  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "xylem.data.curation.pipeline", fake)
    # The fields of the raw text, not of the clean one.
    config = dataclasses.replace(
        config, curation=CurationConfig(enabled=True), text_field="content", id_field="url"
    )
    manifest = quiet(config)
    assert calls == [(f"{config.prepared}.corpus", False)]
    trained = {i for i in list(TEXTS["fin_Latn"])[::2] if not is_heldout(i, config)}
    assert set(ids_of(config.prepared, manifest, "fin_Latn")) == trained
    assert manifest.settings["curation"]["exact"] is True
    said = Said()
    other_way = dataclasses.replace(config.curation, workers=2, folder="elsewhere")
    assert prepare(dataclasses.replace(config, curation=other_way), console=said.console)
    assert "nothing to do" in said.text and len(calls) == 1
    changed = dataclasses.replace(
        config, curation=dataclasses.replace(config.curation, exact=False)
    )
    with pytest.raises(DataError, match=r"data\.curation was"):
        quiet(changed)
    quiet(changed, force=True)
    assert calls[1:] == [(f"{config.prepared}.corpus", True)]
