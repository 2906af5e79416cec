"""A prepared folder holds what the corpus holds, whole or not at all; nothing is lost unasked."""

import dataclasses
import errno
import fcntl
import gzip
import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from xylem.data import prepare as prepare_module
from xylem.data import shards as shards_module
from xylem.data.config import DataConfig, FamilyConfig, TokenizerConfig
from xylem.data.errors import DamagedShard, DataError
from xylem.data.manifest import LanguageEntry, Manifest
from xylem.data.mixture import MixtureConfig
from xylem.data.preparation import reading as reading_module
from xylem.data.preparation import tasks as tasks_module
from xylem.data.preparation.settings import all_shards
from xylem.data.prepare import is_heldout, load_prepared, prepare, train_corpus_tokenizer
from xylem.data.shards import Shard, ShardSet
from xylem.data.storage import open_storage
from xylem.data.token_line import TokenLine, read_table
from xylem.data.tokenizer import Tokenizer, train_tokenizer

SENTENCES = {
    "eng_Latn": "all human beings are born free and equal in dignity and rights",
    "fin_Latn": "kaikki ihmiset syntyvät vapaina ja tasavertaisina arvoltaan ja oikeuksiltaan",
    "hin_Deva": "सभी मनुष्यों को गौरव और अधिकारों के मामले में स्वतन्त्रता",
}
DOCUMENTS = 60


def corpus_texts() -> dict[str, dict[str, str]]:
    """Language -> id -> text; the ids are the same in all languages."""
    texts: dict[str, dict[str, str]] = {}
    for code, sentence in SENTENCES.items():
        generator, words = random.Random(code), sentence.split()
        texts[code] = {
            f"story/{n}": "\n".join(" ".join(generator.choices(words, k=9)) for _ in range(4))
            for n in range(DOCUMENTS)
        }
    return texts


def write_corpus(
    folder: Path, texts: dict[str, dict[str, str]], extra: dict[str, bytes] | None = None
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for code, by_id in texts.items():
        lines = [json.dumps({"id": i, "text": t}, ensure_ascii=False) for i, t in by_id.items()]
        data = "\n".join(lines).encode() + b"\n" + (extra or {}).get(code, b"")
        (folder / f"{code}.jsonl.gz").write_bytes(gzip.compress(data, mtime=0))
    return folder


TEXTS = corpus_texts()


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    return DataConfig(
        corpus=str(write_corpus(tmp_path / "corpus", TEXTS)),
        prepared=str(tmp_path / "prepared"),
        heldout_share=0.2,
        heldout_documents=5,
        shard_tokens=1000,
        sequence_length=64,
        tokenizer=TokenizerConfig(vocab_size=400, sample_bytes=20_000),
    )


class Said:
    """A console that is no terminal, and what was printed to it."""

    def __init__(self) -> None:
        self.file = io.StringIO()
        self.console = Console(file=self.file, width=80)

    @property
    def text(self) -> str:
        return self.file.getvalue()


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "corpus.json"
    }


def quiet(config: DataConfig, **options: Any) -> Manifest:
    return prepare(config, console=Said().console, **options)


def train(entry: LanguageEntry) -> ShardSet:
    """The shards of a language's text as it is."""
    return entry.sources[0].shards


def shards_of(folder: Path | str, shards: ShardSet) -> tuple[Shard, ...]:
    return read_table(open_storage(Path(folder)), shards)


def nothing_is_there(config: DataConfig) -> bool:
    return not Path(config.prepared).exists() and not Path(f"{config.prepared}.partial").exists()


# What a prepared folder holds


def test_every_document_is_there_with_its_tokens(config: DataConfig) -> None:
    manifest = quiet(config)
    folder = Path(config.prepared)
    loaded, tokenizer = load_prepared(folder)
    assert loaded == manifest and loaded.hash == manifest.hash
    assert (manifest.bos_id, manifest.eos_id, manifest.vocab_size) == (2, 3, 400)
    assert manifest.tokenizer_sha256 == tokenizer.sha256
    assert list(manifest.languages) == sorted(TEXTS)
    assert not list(folder.rglob("*.partial")) and not (folder / "lock").exists()
    for code, entry in manifest.languages.items():
        heldout = {i for i in TEXTS[code] if is_heldout(i, config)}
        for shards, expected in (
            (train(entry), TEXTS[code].keys() - heldout),
            (entry.heldout, None),
        ):
            line = TokenLine(folder, shards)
            ids, bounds = line.document_ids(), line.document_bounds()
            if expected is not None:
                assert set(ids) == expected and len(ids) == len(expected)
            else:
                assert set(ids) < heldout and len(ids) == config.heldout_documents
            for n, document_id in enumerate(ids):
                tokens = line.read(int(bounds[n]), int(bounds[n + 1]))
                text = TEXTS[code][document_id]
                assert tokens.tolist() == [2, *tokenizer.encode(text), 3]
                assert tokenizer.decode(tokens) == text
                assert line.document_bytes()[n] == len(text.encode())
                assert tokenizer.token_bytes[tokens].sum() == len(text.encode())
        assert train(entry).shards > 1
        assert entry.train_tokens == TokenLine(folder, train(entry)).tokens
        assert [s.name for s in entry.sources] == [code] and not entry.sources[0].transform


def test_equal_ids_are_held_out_in_every_language(config: DataConfig) -> None:
    manifest = quiet(config)
    kept = [
        TokenLine(Path(config.prepared), entry.heldout).document_ids()
        for entry in manifest.languages.values()
    ]
    assert kept[0] == kept[1] == kept[2]
    share = sum(is_heldout(f"{n}", config) for n in range(20_000)) / 20_000
    assert abs(share - config.heldout_share) < 0.02
    other = dataclasses.replace(config, seed=1)
    assert {i for i in TEXTS["eng_Latn"] if is_heldout(i, other)} != {
        i for i in TEXTS["eng_Latn"] if is_heldout(i, config)
    }


def test_documents_are_shuffled_and_not_alike_in_two_languages(config: DataConfig) -> None:
    manifest = quiet(config)
    orders = []
    for entry in manifest.languages.values():
        ids = TokenLine(Path(config.prepared), train(entry)).document_ids()
        numbers = [int(i.removeprefix("story/")) for i in ids]
        assert abs(np.corrcoef(numbers, range(len(numbers)))[0, 1]) < 0.5
        orders.append(ids)
    assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1]


def test_the_result_does_not_depend_on_place_or_order_of_files(
    config: DataConfig, tmp_path: Path
) -> None:
    manifest = quiet(config)
    backwards = {c: dict(reversed(by_id.items())) for c, by_id in reversed(TEXTS.items())}
    write_corpus(tmp_path / "elsewhere", backwards)
    given = dataclasses.replace(
        config,
        corpus=str(tmp_path / "elsewhere"),
        prepared=str(tmp_path / "second"),
        tokenizer=TokenizerConfig(path=f"{config.prepared}/tokenizer"),
    )
    assert quiet(given).languages == manifest.languages
    same = dataclasses.replace(config, prepared=str(tmp_path / "third"))
    assert quiet(same).hash == manifest.hash
    assert files(Path(same.prepared)) == files(Path(config.prepared))


def test_the_seed_changes_the_order(config: DataConfig, tmp_path: Path) -> None:
    first = quiet(dataclasses.replace(config, heldout_share=0.0))
    other = dataclasses.replace(config, seed=1, heldout_share=0.0, prepared=str(tmp_path / "other"))
    second = quiet(other)
    assert first.tokenizer_sha256 == second.tokenizer_sha256
    ids = [
        TokenLine(Path(p), train(m.languages["fin_Latn"])).document_ids()
        for p, m in ((config.prepared, first), (other.prepared, second))
    ]
    assert ids[0] != ids[1] and sorted(ids[0]) == sorted(ids[1])


def test_families_are_those_of_the_map(config: DataConfig) -> None:
    manifest = quiet(config)
    assert manifest.languages["fin_Latn"].family == "uralic"
    assert manifest.families == tuple(sorted({e.family for e in manifest.languages.values()}))


def test_only_the_languages_asked_for_are_prepared(config: DataConfig) -> None:
    manifest = quiet(dataclasses.replace(config, languages=("fin_Latn",)))
    assert list(manifest.languages) == ["fin_Latn"]


def test_a_language_without_heldout_documents_is_said(config: DataConfig) -> None:
    said = Said()
    prepare(dataclasses.replace(config, heldout_documents=0), console=said.console)
    assert "no held-out documents, so no evaluation: eng_Latn, fin_Latn, hin_Deva" in said.text


def test_output_that_is_no_terminal_gets_plain_lines(config: DataConfig) -> None:
    said = Said()
    prepare(config, console=said.console)
    assert "\x1b" not in said.text and "3 languages of" in said.text
    for stage in ("read", "sample", "tokenizer", "shards", "verify"):
        assert sum(line.startswith(stage) for line in said.text.splitlines()) == 1


# The tokenizer


def test_the_tokenizer_sees_training_text_only_and_its_budget(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[str]] = {}

    def spy(sample: dict[str, list[str]], *rest: Any) -> Tokenizer:
        seen.update(sample)
        return train_tokenizer(sample, *rest)

    monkeypatch.setattr(reading_module, "train_tokenizer", spy)
    quiet(config)
    heldout = {i for i in TEXTS["eng_Latn"] if is_heldout(i, config)}
    assert heldout
    for code, sampled in seen.items():
        allowed = [text for i, text in TEXTS[code].items() if i not in heldout]
        whole = [text for text in sampled if text in allowed]
        (part,) = [text for text in sampled if text not in allowed]
        assert any(text.startswith(part) for text in allowed) and len(set(whole)) == len(whole)
    total = sum(len(text.encode()) for sampled in seen.values() for text in sampled)
    assert 0.95 * 20_000 < total <= 20_000
    sizes = {code: sum(len(t.encode()) for t in sampled) for code, sampled in seen.items()}
    assert sizes["eng_Latn"] < sizes["hin_Deva"] < 2 * sizes["eng_Latn"]


def test_a_given_tokenizer_is_used_and_not_trained(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = train_corpus_tokenizer(config, tmp_path / "given", console=Said().console)
    monkeypatch.setattr(reading_module, "train_tokenizer", None)
    config = dataclasses.replace(config, tokenizer=TokenizerConfig(path=str(tmp_path / "given")))
    assert quiet(config).tokenizer_sha256 == given.sha256
    assert Tokenizer.load(Path(config.prepared) / "tokenizer").sha256 == given.sha256


def test_a_given_tokenizer_that_is_not_there(config: DataConfig) -> None:
    config = dataclasses.replace(config, tokenizer=TokenizerConfig(path="nowhere"))
    with pytest.raises(DataError, match="nowhere: no tokenizer here"):
        quiet(config)


def test_a_prepared_folder_without_its_tokenizer(config: DataConfig) -> None:
    quiet(config)
    (Path(config.prepared) / "tokenizer" / "tokenizer.model").unlink()
    with pytest.raises(DataError, match="no tokenizer here"):
        load_prepared(Path(config.prepared))


# Prepared before


def test_a_second_start_finds_nothing_to_do(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = quiet(config)
    before = {p: p.stat().st_mtime_ns for p in Path(config.prepared).rglob("*")}
    monkeypatch.setattr(tasks_module, "write_tars", None)
    said = Said()
    assert prepare(config, console=said.console) == first
    assert "nothing to do" in said.text
    assert {p: p.stat().st_mtime_ns for p in Path(config.prepared).rglob("*")} == before
    other_use = dataclasses.replace(
        config, slots_per_step=2, prepare_workers=2, mixture=MixtureConfig(family_temperature=1.0)
    )
    assert quiet(other_use) == first


OTHER_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "seed": ({"seed": 5}, "data.seed was 0, is 5"),
    "heldout": ({"heldout_share": 0.3}, "data.heldout_share was 0.2, is 0.3"),
    "languages": ({"languages": ("fin_Latn", "eng_Latn")}, "data.languages was"),
    "tokenizer": ({"tokenizer": TokenizerConfig(vocab_size=401)}, "data.tokenizer was"),
    "families": ({"families": FamilyConfig(map="single")}, "data.families gives other families"),
}


@pytest.mark.parametrize("name", OTHER_SETTINGS)
def test_other_settings_are_refused_and_forced(config: DataConfig, name: str) -> None:
    changes, problem = OTHER_SETTINGS[name]
    first = quiet(config)
    before = files(Path(config.prepared))
    changed = dataclasses.replace(config, **changes)
    with pytest.raises(DataError, match=rf"{problem}.*choose another data\.prepared, or .*--force"):
        quiet(changed)
    assert files(Path(config.prepared)) == before
    second = quiet(changed, force=True)
    assert second.hash != first.hash
    assert Manifest.load(Path(config.prepared)) == second
    assert not Path(f"{config.prepared}.old").exists()


def test_a_changed_corpus_is_refused_and_forced(config: DataConfig) -> None:
    first = quiet(config)
    write_corpus(Path(config.corpus), {"fin_Latn": TEXTS["fin_Latn"] | {"new": "uusi " * 30}})
    with pytest.raises(DataError, match=r"1 files of the corpus changed \(fin_Latn\.jsonl\.gz"):
        quiet(config)
    second = quiet(config, force=True)
    assert second.languages["fin_Latn"].train_documents == (
        first.languages["fin_Latn"].train_documents + (not is_heldout("new", config))
    )


def test_a_folder_that_is_something_else_is_never_touched(config: DataConfig) -> None:
    folder = Path(config.prepared)
    folder.mkdir()
    (folder / "thesis.tex").write_text("x")
    for force in (False, True):
        with pytest.raises(DataError, match="`xylem prepare` did not write it"):
            quiet(config, force=force)
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


def test_an_empty_folder_may_be_filled(config: DataConfig) -> None:
    Path(config.prepared).mkdir()
    assert quiet(config) == Manifest.load(Path(config.prepared))


def test_a_damaged_shard_is_found_on_the_next_start(config: DataConfig) -> None:
    manifest = quiet(config)
    second = shards_of(config.prepared, train(manifest.languages["fin_Latn"]))[1]
    path = Path(config.prepared) / second.path
    os.truncate(path, 100)
    with pytest.raises(DamagedShard, match=r"train/fin_Latn/00001\.tar: 100 bytes"):
        quiet(config)


@pytest.mark.parametrize("name", ["manifest.json", "corpus.json"])
def test_damaged_records_of_a_prepared_folder(config: DataConfig, name: str) -> None:
    quiet(config)
    (Path(config.prepared) / name).write_text("{")
    with pytest.raises(DataError, match=rf"{name}: .*--force"):
        quiet(config)
    assert quiet(config, force=True) == Manifest.load(Path(config.prepared))


# Whole or absent


def test_a_language_with_fewer_tokens_than_a_sequence(config: DataConfig) -> None:
    write_corpus(Path(config.corpus), {"swh_Latn": {"a": "Watu wote."}})
    with pytest.raises(
        DataError,
        match=r"too few training tokens: swh_Latn \(at most 12\): .*=64 needs 65: leave them out",
    ):
        quiet(config)
    assert nothing_is_there(config)


def test_a_short_language_is_told_before_shards_are_written(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(Path(config.corpus), {"swh_Latn": {"a": "Watu wote."}})
    for name in ("train_tokenizer", "sample_texts"):
        monkeypatch.setattr(reading_module, name, None)
    monkeypatch.setattr(tasks_module, "write_tars", None)
    with pytest.raises(DataError, match="too few training tokens: swh_Latn"):
        quiet(config)


def test_a_language_that_turns_out_too_short_when_encoded(config: DataConfig) -> None:
    write_corpus(Path(config.corpus), {"swh_Latn": {"a": "human beings are born free " * 5}})
    with pytest.raises(
        DataError, match=r"too few training tokens: swh_Latn \(\d+\): .*=64 needs 65"
    ):
        quiet(config)
    assert nothing_is_there(config)


def test_a_longer_sequence_than_a_prepared_language(config: DataConfig) -> None:
    manifest = quiet(config)
    fewest = min(entry.train_tokens for entry in manifest.languages.values())
    quiet(dataclasses.replace(config, sequence_length=fewest - 1))
    with pytest.raises(DataError, match=rf"\({fewest}\): .* needs {fewest + 1}"):
        quiet(dataclasses.replace(config, sequence_length=fewest))


def no_space(*arguments: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


FULL_DISK: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "at_the_first_sync": lambda patch: patch.setattr(shards_module.os, "fsync", no_space),
    "in_a_shard": lambda patch: patch.setattr(shards_module._HashingFile, "write", no_space),
    "at_the_manifest": lambda patch: patch.setattr(Manifest, "save", no_space),
}


@pytest.mark.parametrize("where", FULL_DISK)
def test_a_full_disk_leaves_no_folder_and_the_same_command_makes_it_whole(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    with monkeypatch.context() as patch:
        FULL_DISK[where](patch)
        with pytest.raises(OSError, match="No space left on device") as caught:
            quiet(config)
    partial = f"{config.prepared}.partial"
    (note,) = caught.value.__notes__
    assert note.startswith(f"{partial}: what is finished is kept: make room") and "\n" not in note
    assert not Path(config.prepared).exists() and Path(partial).is_dir()
    undisturbed = dataclasses.replace(config, prepared=str(tmp_path / "undisturbed"))
    assert quiet(config) == quiet(undisturbed)
    assert files(Path(config.prepared)) == files(Path(undisturbed.prepared))
    assert not Path(partial).exists()


def test_a_full_disk_keeps_the_folder_that_force_would_replace(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet(config)
    before = files(Path(config.prepared))
    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "save", no_space)
        with pytest.raises(OSError, match="No space left"):
            quiet(dataclasses.replace(config, seed=1), force=True)
    assert files(Path(config.prepared)) == before


def test_a_shard_that_changes_while_it_is_written_is_found(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = prepare_module._write

    def flip(*arguments: Any) -> tuple[Tokenizer, dict[str, LanguageEntry]]:
        tokenizer, languages = real(*arguments)
        staging = Path(f"{config.prepared}.partial")
        path = staging / shards_of(staging, train(languages["fin_Latn"]))[0].path
        data = bytearray(path.read_bytes())
        data[600] ^= 1
        path.write_bytes(data)
        return tokenizer, languages

    monkeypatch.setattr(prepare_module, "_write", flip)
    with pytest.raises(DamagedShard, match=r"train/fin_Latn/00000\.tar"):
        quiet(config)
    assert nothing_is_there(config)


KILLED = """
import os, signal, sys
from xylem.data import prepare as module
from xylem.data.config import DataConfig, TokenizerConfig
from xylem.data.families import FamilyMap
module.build_family_map = lambda codes, config: FamilyMap(
    families=("all",), family_of={code: "all" for code in codes})
from xylem.data import sources
sources._check_code = lambda *arguments: None
module.verify_shards = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
module.prepare(DataConfig(corpus=sys.argv[1], prepared=sys.argv[2], sequence_length=64,
    tokenizer=TokenizerConfig(vocab_size=400, sample_bytes=20_000)))
"""


def test_what_a_killed_writer_left_is_never_taken_for_whole(config: DataConfig) -> None:
    script = [sys.executable, "-c", KILLED, config.corpus, config.prepared]
    root = Path(shards_module.__file__).resolve().parents[1]
    environment = os.environ | {"PYTHONPATH": str(root / ".typing")}
    ended = subprocess.run(script, capture_output=True, env=environment, check=False)
    assert ended.returncode == -9, ended.stderr.decode()
    partial = Path(f"{config.prepared}.partial")
    assert not Path(config.prepared).exists() and list(partial.rglob("*.tar"))
    with pytest.raises(DataError, match="no manifest here"):
        load_prepared(partial)
    said = Said()
    manifest = prepare(config, console=said.console)
    assert f"{partial}: removing what an unfinished command left" in said.text
    assert not partial.exists()
    written = {s.path for s in all_shards(Path(config.prepared), manifest.languages)}
    there = {
        p.relative_to(config.prepared).as_posix() for p in Path(config.prepared).rglob("*.tar")
    }
    assert there == written


def test_a_kill_while_force_replaces_is_put_right(config: DataConfig) -> None:
    folder, old = Path(config.prepared), Path(f"{config.prepared}.old")
    first = quiet(config)
    folder.rename(old)
    said = Said()
    assert prepare(config, console=said.console) == first
    assert "putting it back" in said.text and not old.exists()
    old.mkdir()
    (old / "train").mkdir()
    (old / "manifest.json").write_text("x")
    said = Said()
    assert prepare(config, console=said.console) == first
    assert "removing what a killed `xylem prepare --force` left" in said.text and not old.exists()


def test_two_writers_at_once(config: DataConfig) -> None:
    partial = Path(f"{config.prepared}.partial")
    partial.mkdir()
    with open(partial / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another command is writing there: wait"):
            quiet(config)
    quiet(config)


# Bad text and settings, through the whole command


def test_malformed_lines_are_skipped_and_counted_if_asked(config: DataConfig) -> None:
    bad = b'{"id": "x"\n{"id": "y", "text": " "}\n'
    write_corpus(Path(config.corpus), TEXTS, {"fin_Latn": bad})
    with pytest.raises(DataError, match=r"fin_Latn\.jsonl\.gz: line 61: not JSON"):
        quiet(config)
    assert nothing_is_there(config)
    said = Said()
    prepare(dataclasses.replace(config, on_bad_line="skip"), console=said.console)
    assert "1 documents without text left out" in said.text
    assert "fin_Latn: 1 malformed lines skipped, first " in said.text
    assert "fin_Latn.jsonl.gz: line 61: not JSON" in said.text


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"heldout_share": 1.0}, r"data\.heldout_share=1\.0 must be below 1"),
        ({"shard_tokens": 0}, r"data\.shard_tokens=0 must be at least 1"),
        ({"sequence_length": 0}, r"data\.sequence_length=0 must be at least 1"),
        ({"heldout_documents": -1}, r"data\.heldout_documents=-1 must be at least 0"),
        ({"tokenizer": TokenizerConfig(vocab_size=10)}, r"vocab_size=10: .* use 320 or more"),
        ({"tokenizer": TokenizerConfig()}, r"vocab_size=8192: .* use \d+ or less"),
        ({"corpus": "nowhere"}, "nowhere: no such folder"),
    ],
)
def test_settings_that_cannot_work(
    config: DataConfig, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(DataError, match=problem) as caught:
        quiet(dataclasses.replace(config, **changes))
    assert "\n" not in str(caught.value)
    assert nothing_is_there(config)


def test_a_damaged_shard_is_found_when_the_same_text_is_prepared_again(config: DataConfig) -> None:
    quiet(config)
    shard = next(Path(config.prepared).glob("train/*/00000.tar"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DamagedShard, match=r"00000\.tar"):
        quiet(config)
