"""Files that curation's settings name decide by what they hold, not by where they lie."""

import os
import shutil
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from xylem.data.config import DataConfig, TokenizerConfig
from xylem.data.curation.config import (
    CurationConfig,
    DecontaminationConfig,
    LanguageIdConfig,
    QualityConfig,
)
from xylem.data.errors import DataError
from xylem.data.preparation.settings import changed_settings, deciding_settings
from xylem.data.prepare import prepare

pytest.importorskip("datatrove", reason="needs the extra curation")
pytest.importorskip("fasttext", reason="needs the extra curation")
from xylem.data.curation import setting_files
from xylem.data.curation.language_id import model_path
from xylem.data.curation.pipeline import curate

from .test_curation_pipeline import QUIET, raw, refused, settings, words, write
from .test_prepare import TEXTS, Said, quiet, write_corpus


@pytest.fixture
def named(tmp_path: Path) -> CurationConfig:
    """Settings that name a file of each kind."""
    write(tmp_path / "evaluation/a.jsonl", {"x": words("x")})
    shutil.copy(model_path(LanguageIdConfig()), tmp_path / "model.bin")
    (tmp_path / "thresholds").mkdir()
    for code in ("fin_Latn", "swh_Latn"):
        (tmp_path / f"thresholds/{code}.yml").write_text("language_score: 0.1\n")
    return settings(
        tasks=1,
        decontaminate=DecontaminationConfig(sources=(str(tmp_path / "evaluation"),)),
        language_id=LanguageIdConfig(model=str(tmp_path / "model.bin")),
        quality=QualityConfig(fineweb2_configs=str(tmp_path / "thresholds")),
    )


def edit(path: Path) -> None:
    """Other contents of the same size and time of change."""
    stat, data = path.stat(), path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


EDITED = [
    ("evaluation/a.jsonl", "evaluation files", "evaluation/a.jsonl"),
    ("model.bin", "language model files", "model.bin"),
    ("thresholds/fin_Latn.yml", "threshold files", "fin_Latn.yml"),
]


@pytest.mark.parametrize(("path", "kind", "name"), EDITED)
def test_edited_file_changes_what_decides_a_prepared_folder(
    tmp_path: Path, named: CurationConfig, path: str, kind: str, name: str
) -> None:
    write(tmp_path / "raw/fin_Latn.jsonl", {"a": words("a")})
    config = replace(raw(tmp_path / "raw"), curation=named)
    before = deciding_settings(config, None)
    assert changed_settings(before, deciding_settings(config, None)) == []
    edit(tmp_path / path)
    changes = changed_settings(before, deciding_settings(config, None))
    assert changes == [f"curation's {kind} changed ({name} …)"]


def test_thresholds_of_languages_that_the_corpus_lacks_decide_nothing(
    tmp_path: Path, named: CurationConfig
) -> None:
    write(tmp_path / "raw/fin_Latn.jsonl", {"a": words("a")})
    config = replace(raw(tmp_path / "raw"), curation=named)
    before = deciding_settings(config, None)
    edit(tmp_path / "thresholds/swh_Latn.yml")
    assert deciding_settings(config, None) == before
    # Text without a label may turn out to be in any language.
    write(tmp_path / "raw/und.jsonl", {"b": words("b")})
    found = deciding_settings(config, None)["curation_files"]["threshold files"]
    assert sorted(found) == ["fin_Latn.yml", "swh_Latn.yml"]


def test_file_that_was_only_touched_decides_nothing(tmp_path: Path, named: CurationConfig) -> None:
    before = setting_files.stamps(named, {"fin_Latn"})
    for path, _, _ in EDITED:
        os.utime(tmp_path / path, (1, 1))
    assert setting_files.stamps(named, {"fin_Latn"}) == before


def test_evaluation_files_of_one_name_in_two_folders_both_decide(tmp_path: Path) -> None:
    for side in "ab":
        write(tmp_path / side / "set/x.jsonl", {side: words(side)})
    sources = tuple(str(tmp_path / side / "set") for side in "ab")
    config = CurationConfig(decontaminate=DecontaminationConfig(sources=sources))
    before = setting_files.stamps(config, ())
    for side in "ab":
        edit(tmp_path / side / "set/x.jsonl")
        after = setting_files.stamps(config, ())
        assert after != before
        before = after


def test_model_is_hashed_once_a_process(
    tmp_path: Path, named: CurationConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    digest = setting_files.hashlib.file_digest

    def counting(file: Any, name: Any) -> Any:
        hashed.append(Path(file.name).name)
        return digest(file, name)

    monkeypatch.setattr(setting_files.hashlib, "file_digest", counting)
    for _ in range(2):
        setting_files.stamps(named, {"fin_Latn"})
    assert hashed == ["model.bin", "a.jsonl", "fin_Latn.yml"]


@pytest.mark.parametrize(("path", "kind", "name"), EDITED)
def test_clean_corpus_of_an_edited_file_is_refused(
    tmp_path: Path, named: CurationConfig, path: str, kind: str, name: str
) -> None:
    # A model of a user's is judged by its labels, and lid.176's are no codes.
    named = replace(named, language_id=LanguageIdConfig(enabled=False))
    if path == "model.bin":
        named = replace(named, language_id=own_model(tmp_path))
    write(tmp_path / "raw/fin_Latn.jsonl", {"a": words("a")})
    (tmp_path / "thresholds/fin_Latn.yml").write_text("language_score: 0.0\nmin_doc_words: 20\n")
    folder = curate(raw(tmp_path / "raw"), named, tmp_path / "clean", QUIET)
    if path == "evaluation/a.jsonl":
        write(tmp_path / path, {"x": words("z")})
    else:
        edit(tmp_path / path)
    message = refused(tmp_path / "raw", folder, named)
    assert f"1 {kind} changed ({name} …)" in message


def own_model(folder: Path) -> LanguageIdConfig:
    import fasttext

    model = fasttext.load_model(str(folder / "model.bin"))
    labels = model.predict("a", k=1 << 20, threshold=-1)[0]
    names = {label.removeprefix("__label__"): "" for label in labels}
    return LanguageIdConfig(model=str(folder / "model.bin"), labels={**names, "fi": "fin_Latn"})


# Prepared and extended


@pytest.fixture
def config(tmp_path: Path, named: CurationConfig, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    """A corpus to prepare, with a curation that keeps everything."""

    def keep(config: Any, curation: Any, folder: Path, console: Console, *, force: bool) -> Path:
        return write_corpus(folder, TEXTS)

    fake = types.ModuleType("pipeline")
    fake.curate = keep  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "xylem.data.curation.pipeline", fake)
    return DataConfig(
        corpus=str(write_corpus(tmp_path / "corpus", TEXTS)),
        prepared=str(tmp_path / "prepared"),
        curation=named,
        heldout_share=0.2,
        heldout_documents=5,
        tokenizer=TokenizerConfig(vocab_size=400, sample_bytes=20_000),
    )


def told_of_the_evaluation_set(tmp_path: Path, again: Callable[[Said], object]) -> None:
    said = Said()
    again(said)
    assert "nothing to do" in said.text
    edit(tmp_path / "evaluation/a.jsonl")
    with pytest.raises(DataError, match=r"evaluation files changed \(evaluation/a\.jsonl …\)"):
        again(Said())


def test_edited_evaluation_set_is_a_difference_to_prepare(
    config: DataConfig, tmp_path: Path
) -> None:
    quiet(config)
    told_of_the_evaluation_set(tmp_path, lambda said: prepare(config, console=said.console))
    quiet(config, force=True)
    said = Said()
    prepare(config, console=said.console)
    assert "nothing to do" in said.text


def test_edited_evaluation_set_is_a_difference_to_extend(
    config: DataConfig, tmp_path: Path
) -> None:
    quiet(config)
    more = {code: {f"more-{i}": text for i, text in of.items()} for code, of in TEXTS.items()}
    config = replace(config, corpus=str(write_corpus(tmp_path / "more", more)))
    prepare(config, extend="more", console=Said().console)
    told_of_the_evaluation_set(
        tmp_path, lambda said: prepare(config, extend="more", console=said.console)
    )
