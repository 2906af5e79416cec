"""Curation as a whole: raw text in, a clean corpus and a report out, whatever happens between."""

import errno
import gzip
import importlib
import io
import json
import os
import random
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from xylem.data.config import DataConfig
from xylem.data.curation.config import (
    CurationConfig,
    LanguageIdConfig,
    LanguageThresholds,
    MinHashConfig,
    QualityConfig,
    SlurmConfig,
)
from xylem.data.errors import DataError
from xylem.data.sources import discover, read_documents, read_lines

pytest.importorskip("datatrove", reason="needs the extra curation")
from xylem.data.curation import filtering, pipeline
from xylem.data.curation.execution import StageFailed, run_stage, slurm_executor
from xylem.data.curation.pipeline import curate
from xylem.data.curation.reading import raw_files, read_raw
from xylem.data.curation.report import LanguageReport, collect, warnings
from xylem.data.curation.writing import copies

ENGLISH = (
    "The old ferry crossed the river twice a day. Farmers brought apples, eggs and wool to the "
    "market on the other side. When the water rose in spring nobody could leave the village."
)
GERMAN = (
    "Die alte Fähre fuhr zweimal am Tag über den Fluss. Bauern brachten Äpfel, Eier und Wolle auf "
    "den Markt am anderen Ufer. Wenn das Wasser im Frühling stieg, blieben sie im Dorf."
)
RUSSIAN = (
    "Старый паром дважды в день переправлялся через реку. Крестьяне везли на рынок яблоки, яйца "
    "и шерсть. Когда весной поднималась вода, никто не мог покинуть деревню."
)
QUIET = Console(quiet=True)
SHORT = QualityConfig(default=LanguageThresholds(min_doc_words=20))


def raw(corpus: Path, **values: Any) -> DataConfig:
    """The settings that name a corpus."""
    return DataConfig(corpus=str(corpus), prepared="", **values)


def words(seed: str, number: int = 60) -> str:
    """Made-up words in Latin letters."""
    draw = random.Random(seed)
    made = ("".join(draw.choices("abdeghiklmnoprstu", k=draw.randint(3, 8))) for _ in range(number))
    return " ".join(made) + "."


def write(path: Path, texts: Mapping[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"id": name, "text": text}) + "\n" for name, text in texts.items()]
    path.write_text("".join(lines), encoding="utf-8")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two languages that the model knows, in one file each, and one that it does not, in five."""
    folder = tmp_path / "raw"
    write(folder / "eng_Latn.jsonl", {"e": ENGLISH, "wrong": GERMAN, "script": RUSSIAN})
    german = {"d0": GERMAN, "again": f" {GERMAN.upper()}\n"}
    write(folder / "deu_Latn.jsonl", {**german, "list": "\n".join([GERMAN] * 3)})
    for number in range(5):
        texts = {f"{number}/{n}": words(f"acu {number} {n}") for n in range(4)}
        write(folder / "acu_Latn" / f"part{number}.jsonl", texts)
    return folder


NO_MINHASH = MinHashConfig(enabled=False)


def settings(**values: Any) -> CurationConfig:
    """Filter and write in three tasks."""
    usual = {"enabled": True, "quality": SHORT, "tasks": 3, "exact": False, "minhash": NO_MINHASH}
    return CurationConfig(**{**usual, **values})


EVERYTHING = settings(exact=True, minhash=MinHashConfig())


def recording() -> Console:
    return Console(record=True, width=200, file=io.StringIO())


def clean(folder: Path) -> dict[str, bytes]:
    """The clean corpus, file by file."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name[0] != "."]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def ids(folder: Path) -> dict[str, list[str]]:
    found = discover(folder)
    return {
        code: [document.id for path in paths for document in read_documents(path)]
        for code, paths in found.items()
    }


def report(folder: Path) -> dict[str, Any]:
    work = folder.with_name(folder.name + ".work")
    read: dict[str, Any] = json.loads((work / "report.json").read_text())
    return read


# The result


def test_clean_corpus_is_a_corpus_folder_and_the_report_says_what_was_dropped_and_why(
    corpus: Path, tmp_path: Path
) -> None:
    console = recording()
    folder = curate(raw(corpus), EVERYTHING, tmp_path / "clean", console)
    kept = ids(folder)
    assert sorted(kept) == ["acu_Latn", "deu_Latn", "eng_Latn"]
    assert kept["eng_Latn"] == ["e"]
    assert kept["deu_Latn"] in (["d0"], ["again"])
    assert len(kept["acu_Latn"]) == 20
    languages = report(folder)["languages"]
    assert {
        code: {r: pair[0] for each in of["dropped"].values() for r, pair in each.items()}
        for code, of in languages.items()
    } == {
        "acu_Latn": {},
        "deu_Latn": {"exact duplicate": 1, "dup_line_frac": 1},
        "eng_Latn": {"language": 1, "script": 1},
    }
    size = len(GERMAN.encode())
    assert languages["eng_Latn"]["dropped"]["filter"]["language"] == [1, size]
    assert languages["eng_Latn"]["read"][0] == 3 and languages["eng_Latn"]["kept"][0] == 1
    assert [languages[code]["no_verdict"] for code in sorted(languages)] == [20, 0, 0]
    text = (folder.parent / "clean.work" / "report.md").read_text()
    assert "| eng_Latn | 3 | 1 |" in text and "only their script was checked: acu_Latn" in text
    shown = console.export_text()
    assert "eng_Latn" in shown and "script 1" in shown

    # Of the work folder only what a reader may want stays.
    stays = sorted(entry.name for entry in (tmp_path / "clean.work").iterdir())
    assert stays == ["lock", "logs", "report.json", "report.md"]


def test_result_does_not_depend_on_tasks_or_workers(corpus: Path, tmp_path: Path) -> None:
    one, many = replace(EVERYTHING, tasks=1), replace(EVERYTHING, tasks=4, workers=2)
    first = curate(raw(corpus), one, tmp_path / "a", QUIET)
    second = curate(raw(corpus), many, tmp_path / "b", QUIET)
    assert clean(first) == clean(second)
    assert report(first)["languages"] == report(second)["languages"]


def test_documents_without_a_label_get_the_languages_that_the_model_says(tmp_path: Path) -> None:
    write(tmp_path / "raw/und/a.jsonl", {"g": GERMAN, "r": RUSSIAN, "e": ENGLISH})
    write(tmp_path / "raw/und/b.jsonl", {"made up": words("x"), "digits": "12 34 " * 30})
    write(tmp_path / "raw/eng_Latn.jsonl", {"own": f"{words('y', 3)} {ENGLISH}"})
    folder = curate(raw(tmp_path / "raw"), settings(), tmp_path / "clean", QUIET)
    assert ids(folder)["eng_Latn"] == ["own", "e"]
    assert ids(folder)["deu_Latn"] == ["g"] and ids(folder)["rus_Cyrl"] == ["r"]
    assert report(folder)["languages"]["und"]["dropped"]["filter"]["unidentified"][0] == 2


def test_documents_without_a_label_in_other_languages_than_asked_for_are_dropped(
    tmp_path: Path,
) -> None:
    write(tmp_path / "raw/und.jsonl", {"g": GERMAN, "r": RUSSIAN})
    write(tmp_path / "raw/deu_Latn.jsonl", {"own": f"{words('y', 3)} {GERMAN}"})
    german = raw(tmp_path / "raw", languages=("deu_Latn",))
    folder = curate(german, settings(), tmp_path / "clean", QUIET)
    assert ids(folder) == {"deu_Latn": ["own", "g"]}


def test_empty_and_malformed_documents_are_counted_as_dropped(tmp_path: Path) -> None:
    path = tmp_path / "raw/acu_Latn.jsonl"
    write(path, {"a": words("a"), "empty": " "})
    path.write_text(path.read_text() + "{no json\n")
    skipping = raw(tmp_path / "raw", on_bad_line="skip")
    folder = curate(skipping, settings(), tmp_path / "clean", QUIET)
    dropped = report(folder)["languages"]["acu_Latn"]["dropped"]["filter"]
    assert dropped == {"empty": [1, 0], "malformed": [1, 0]}


def test_copies_are_fineweb2_weights_of_the_cluster_size() -> None:
    sizes = (1, 2, 3, 4, 5, 99, 100, 999, 1000, 10**6)
    assert [copies(size) for size in sizes] == [1, 2, 3, 3, 5, 5, 8, 8, 1, 1]


def rows(folder: Path, code: str) -> list[dict[str, Any]]:
    """The lines of a language of a clean corpus, as they are written."""
    (path,) = discover(folder)[code]
    return [json.loads(line) for line in read_lines(path)]


def test_rehydration_writes_copies_and_without_it_each_document_counts_once(tmp_path: Path) -> None:
    write(tmp_path / "raw/acu_Latn.jsonl", {"a": words("a"), "b": words("a"), "c": words("c")})
    for rehydrate, expected in ((True, [1, 2]), (False, [1, 1])):
        config = settings(tasks=1, minhash=MinHashConfig(rehydrate=rehydrate))
        folder = curate(raw(tmp_path / "raw"), config, tmp_path / f"c{rehydrate}", QUIET)
        (path,) = discover(folder)["acu_Latn"]
        found = [d.copies for d in read_documents(path, copies_field="copies")]
        assert sorted(found) == expected


@pytest.mark.parametrize("near", [MinHashConfig(), NO_MINHASH])
def test_clean_corpus_says_what_each_document_stands_for_also_without_rehydration(
    tmp_path: Path, near: MinHashConfig
) -> None:
    texts = {"a": words("a"), "b": words("a"), "again": words("a"), "c": words("c")}
    write(tmp_path / "raw/acu_Latn.jsonl", texts)
    config = settings(tasks=1, exact=True, minhash=near)
    folder = curate(raw(tmp_path / "raw"), config, tmp_path / "clean", QUIET)
    found = sorted((row["cluster_size"], row["copies"]) for row in rows(folder, "acu_Latn"))
    assert found == [(1, 1), (3, 1)]


def test_copies_of_the_raw_corpus_are_carried_into_the_clean_one(tmp_path: Path) -> None:
    path = tmp_path / "raw/acu_Latn.jsonl"
    path.parent.mkdir()
    documents = [("a", "a", 30), ("b", "a", 30), ("c", "c", 7), ("d", "d", None), ("e", "e", 100)]
    documents += [("e2", "e", 100)]
    lines = [{"id": name, "text": words(seed), "n": n} for name, seed, n in documents]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    counted = raw(tmp_path / "raw", copies_field="n")
    for rehydrate, expected in ((False, [1, 7, 30, 100]), (True, [1, 7, 60, 100])):
        config = settings(tasks=1, minhash=MinHashConfig(rehydrate=rehydrate))
        folder = curate(counted, config, tmp_path / f"c{rehydrate}", QUIET)
        assert sorted(row["copies"] for row in rows(folder, "acu_Latn")) == expected
        assert report(folder)["languages"]["acu_Latn"]["copies"] == sum(expected)
    message = refused(tmp_path / "raw", folder, config, copies_field="")
    assert "data.copies_field was 'n', is ''" in message


# Killed, and run again


def test_second_call_finds_everything_done(corpus: Path, tmp_path: Path) -> None:
    folder = curate(raw(corpus), settings(), tmp_path / "clean", QUIET)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    console = recording()
    curate(raw(corpus), settings(tasks=9), folder, console)
    assert "nothing to do" in console.export_text()
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {here!r})
import test_curation_pipeline as tests
from xylem.data.curation import filtering

write_stage, written = filtering.write_stage, []

def write_and_die(documents, folder, file):
    if len(written) == {after}:
        next(iter(documents))
        os.kill(os.getpid(), signal.SIGKILL)
    write_stage(documents, folder, file)
    written.append(file.number)

filtering.write_stage = write_and_die
tests.curate(tests.raw({corpus!r}), tests.settings(tasks=7), Path({folder!r}), tests.QUIET)
"""


def test_killed_run_goes_on_without_repeating_finished_tasks_to_the_same_bytes(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "clean"
    script = KILLED.format(
        here=str(Path(__file__).parent), after=4, corpus=str(corpus), folder=str(folder)
    )
    killed = subprocess.run([sys.executable, "-c", script], check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert not folder.exists()
    written: list[int] = []
    write_stage = filtering.write_stage

    def noting(documents: Iterable[Any], output: Path, file: Any) -> None:
        written.append(file.number)
        write_stage(documents, output, file)

    monkeypatch.setattr(filtering, "write_stage", noting)
    curate(raw(corpus), settings(tasks=7), folder, QUIET)
    assert written == [4, 5, 6]
    whole = curate(raw(corpus), settings(tasks=7), tmp_path / "whole", QUIET)
    assert clean(folder) == clean(whole)
    assert report(folder)["languages"] == report(whole)["languages"]


def test_run_killed_after_the_corpus_got_its_name_leaves_only_cleaning_up(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(work: Path, keep: object = None) -> None:
        if keep is None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "_clear", killed)
        with pytest.raises(KeyboardInterrupt):
            curate(raw(corpus), settings(), tmp_path / "clean", QUIET)
    assert (tmp_path / "clean.work" / "filter").is_dir()
    curate(raw(corpus), settings(), tmp_path / "clean", QUIET)
    assert not (tmp_path / "clean.work" / "filter").exists()


def test_full_disk_is_an_error_of_the_machine_and_the_run_can_go_on(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*anything: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(filtering, "write_stage", full)
        with pytest.raises(OSError, match="No space left") as caught:
            curate(raw(corpus), settings(), tmp_path / "clean", QUIET)
    assert caught.value.errno == errno.ENOSPC
    curate(raw(corpus), settings(), tmp_path / "clean", QUIET)
    assert "eng_Latn" in ids(tmp_path / "clean")


# What users do wrong


def refused(corpus: Path, folder: Path, config: CurationConfig, **values: Any) -> str:
    with pytest.raises(DataError) as caught:
        curate(raw(corpus, **values), config, folder, QUIET)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_changed_settings_of_a_finished_run_are_refused(corpus: Path, tmp_path: Path) -> None:
    folder = curate(raw(corpus), settings(), tmp_path / "clean", QUIET)
    message = refused(corpus, folder, settings(exact=True))
    assert "curation.exact was False, is True" in message and "curation.folder" in message
    write(corpus / "acu_Latn" / "part9.jsonl", {"new": words("new")})
    assert "1 corpus files changed (acu_Latn/part9.jsonl …)" in refused(corpus, folder, settings())
    curate(raw(corpus), settings(), folder, QUIET, force=True)
    assert "new" in ids(folder)["acu_Latn"]


def test_changed_settings_of_a_killed_run_are_refused(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(filtering, "write_stage", lambda *_: 1 / 0)
        with pytest.raises(StageFailed, match="stage 'filter' failed: ZeroDivisionError.*logs"):
            curate(raw(corpus), settings(), tmp_path / "clean", QUIET)
    message = refused(corpus, tmp_path / "clean", settings(tasks=5))
    assert "curation.tasks was 3, is 5" in message and "remove this folder" in message


def test_folder_of_somebody_else_is_refused(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("x")
    assert "curation did not write it" in refused(corpus, tmp_path / "mine", settings())
    assert (tmp_path / "mine/thesis.tex").exists()


def test_two_runs_in_one_folder_are_refused(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "clean.work").mkdir()
    with pipeline._locked(tmp_path / "clean.work"):
        assert "another run is curating" in refused(corpus, tmp_path / "clean", settings())


def test_force_leaves_the_work_of_a_run_that_is_going_on(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, work = tmp_path / "clean", tmp_path / "clean.work"
    with monkeypatch.context() as patch:
        patch.setattr(filtering, "write_stage", lambda *_: 1 / 0)
        with pytest.raises(StageFailed):
            curate(raw(corpus), settings(), folder, QUIET)
    before, lock = clean(work), (work / "lock").stat().st_ino
    with pipeline._locked(work), pytest.raises(DataError, match="another run is curating"):
        curate(raw(corpus), settings(exact=True), folder, QUIET, force=True)
    assert clean(work) == before and "settings.json" in before
    curate(raw(corpus), settings(exact=True), folder, QUIET, force=True)
    # The same file, so that whoever waited for it did not lock another one.
    assert (work / "lock").stat().st_ino == lock
    assert not (work / "replaced").exists() and len(ids(folder)["deu_Latn"]) == 1


def test_force_replaces_a_finished_corpus(corpus: Path, tmp_path: Path) -> None:
    folder = curate(raw(corpus), settings(), tmp_path / "clean", QUIET)
    assert len(ids(folder)["deu_Latn"]) == 2
    curate(raw(corpus), settings(exact=True), folder, QUIET, force=True)
    assert len(ids(folder)["deu_Latn"]) == 1
    assert not (tmp_path / "clean.work/replaced").exists()


def test_killed_process_ends_the_stage_instead_of_being_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out_of_memory.py").write_text(
        "import os, signal\ndef step(documents, rank, world_size):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    step = importlib.import_module("out_of_memory").step
    with pytest.raises(StageFailed, match="'greedy' failed: a process of it was killed.*workers"):
        run_stage("greedy", [step], 2, settings(workers=2), tmp_path / "work")


def test_counts_that_do_not_add_up_are_an_error(tmp_path: Path) -> None:
    for path, counts in (
        ("read/0.json", {"acu_Latn": {"documents": 3, "bytes": 30}}),
        ("dropped/filter/0.json", {"acu_Latn": {"script": [1, 10]}}),
        ("written/0.json", {"acu_Latn": [1, 10, 1]}),
    ):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(json.dumps(counts))
    with pytest.raises(RuntimeError, match="acu_Latn: .*do not add up"):
        collect(tmp_path, ["filter"])


def test_language_that_the_model_rejects_as_a_whole_is_a_warning() -> None:
    rejected = LanguageReport(read=[4, 40], dropped={"filter": {"language": [3, 30]}}, kept=[1, 10])
    (warning,) = warnings({"som_Latn": rejected})
    assert "rejected 3 of 4" in warning and "som_Latn.language_score=0" in warning
    gone = LanguageReport(read=[4, 40], dropped={"filter": {"script": [4, 40]}})
    assert warnings({"som_Latn": gone}) == [
        "som_Latn: nothing was kept, so the clean corpus does not hold it"
    ]


def test_corrupt_input_file_is_named_also_from_another_process(
    corpus: Path, tmp_path: Path
) -> None:
    whole = gzip.compress((corpus / "eng_Latn.jsonl").read_bytes())
    (corpus / "eng_Latn.jsonl").unlink()
    (corpus / "eng_Latn.jsonl.gz").write_bytes(whole[:-20])
    message = refused(corpus, tmp_path / "clean", settings(workers=2))
    assert "eng_Latn.jsonl.gz: cut off or no gzip file" in message


def test_unknown_language_in_corpus_or_settings_is_refused(corpus: Path, tmp_path: Path) -> None:
    quality = QualityConfig(languages={"swh_Latn": LanguageThresholds(language_score=0.2)})
    message = refused(corpus, tmp_path / "clean", settings(quality=quality))
    assert "quality.languages names swh_Latn, of which the corpus holds nothing" in message
    assert "no text of swh_Latn" in refused(
        corpus, tmp_path / "clean", settings(), languages=("swh_Latn",)
    )
    (corpus / "xyz_Latn.warc").write_bytes(b"")
    assert "no language has the ISO 639-3 code 'xyz'" in refused(
        corpus, tmp_path / "clean", settings()
    )


def test_unlabelled_text_without_a_model_is_refused(corpus: Path, tmp_path: Path) -> None:
    write(corpus / "und.jsonl", {"a": GERMAN})
    config = settings(language_id=LanguageIdConfig(enabled=False))
    assert "und.jsonl: has no language" in refused(corpus, tmp_path / "clean", config)


def test_corpus_of_which_nothing_is_kept_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "raw/acu_Latn.jsonl", {"a": "Too short."})
    message = refused(tmp_path / "raw", tmp_path / "clean", settings())
    assert "no document was kept" in message and "report.md" in message


def test_missing_datatrove_is_one_line_that_names_the_extra(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = pipeline.find_spec
    monkeypatch.setattr(
        pipeline, "find_spec", lambda name: None if name == "datatrove" else find_spec(name)
    )
    assert "xylem[curation]" in refused(corpus, tmp_path / "clean", settings())


def test_data_room_is_imported_without_datatrove() -> None:
    check = (
        "import sys; sys.modules['datatrove'] = None; sys.modules['fasttext'] = None\n"
        "import xylem.data.prepare, xylem.data.config, xylem.data.curation.pipeline"
    )
    subprocess.run([sys.executable, "-c", check], check=True, timeout=120)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tasks": 0}, "curation.tasks=0 must be at least 1"),
        ({"workers": 0}, "curation.workers=0 runs nothing"),
        ({"executor": "slurm"}, "needs curation.slurm.partition"),
    ],
)
def test_settings_that_cannot_work_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        CurationConfig(**values)


# WARC


def warc(path: Path, records: Iterable[tuple[str, str, bytes]]) -> None:
    """Writes a WARC of (record type, content type, payload)."""
    warcio = pytest.importorskip("warcio", reason="needs the extra curation")
    from io import BytesIO

    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    assert warcio
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        writer = WARCWriter(file, gzip=path.suffix == ".gz")
        for number, (kind, content_type, payload) in enumerate(records):
            http = None
            if kind == "response":
                http = StatusAndHeaders("200 OK", [("Content-Type", content_type)], "HTTP/1.1")
            record = writer.create_warc_record(
                f"http://example.org/{number}", kind, payload=BytesIO(payload), http_headers=http,
                warc_headers_dict={"WARC-Record-ID": f"<urn:{number}>"},
            )  # fmt: skip
            writer.write_record(record)


PAGE = (
    "<html><head><title>T</title></head><body><nav><a href='/'>Home</a></nav><article>"
    f"<p>{ENGLISH}</p><p>{ENGLISH[::-1]}</p></article></body></html>"
)


@pytest.mark.parametrize("name", ["eng_Latn.warc", "eng_Latn.warc.gz"])
def test_warc_gives_text_records_and_the_main_text_of_pages(tmp_path: Path, name: str) -> None:
    pytest.importorskip("trafilatura", reason="needs the extra curation")
    warc(
        tmp_path / name,
        [
            ("conversion", "text/plain", GERMAN.encode()),
            ("response", "text/html; charset=utf-8", PAGE.encode()),
            ("response", "image/png", b"\x89PNG"),
            ("request", "application/http", b"GET /"),
        ],
    )
    (file,) = raw_files(tmp_path)
    read = list(read_raw(file, raw(tmp_path), filtering.ReadCounts()))
    assert [document.id for document in read] == ["<urn:0>", "<urn:1>"]
    assert read[0].text == GERMAN
    assert ENGLISH in read[1].text and "Home" not in read[1].text


@pytest.mark.parametrize("name", ["eng_Latn.warc", "eng_Latn.warc.gz"])
def test_cut_warc_is_refused_or_counted(tmp_path: Path, name: str) -> None:
    warc(tmp_path / name, [("conversion", "text/plain", t.encode()) for t in (ENGLISH, GERMAN)])
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-40])
    (file,) = raw_files(tmp_path)
    with pytest.raises(DataError, match=f"{name}: record 2: cut off or no WARC"):
        list(read_raw(file, raw(tmp_path), filtering.ReadCounts()))
    counts = filtering.ReadCounts()
    skipping = raw(tmp_path, on_bad_line="skip")
    assert len(list(read_raw(file, skipping, counts))) == 1 and counts.bad == 1


def test_file_that_is_no_warc_is_refused(tmp_path: Path) -> None:
    (tmp_path / "eng_Latn.warc").write_text("no archive\n" * 20)
    (file,) = raw_files(tmp_path)
    with pytest.raises(DataError, match="no WARC"):
        list(read_raw(file, raw(tmp_path), filtering.ReadCounts()))


# Slurm


SLURM = SlurmConfig(
    partition="cpu", time="02:00:00", cpus=2, memory_gb=3, account="lab", qos="low",
    arguments={"constraint": "amd"}, poll_seconds=0.02, setup="module load python",
)  # fmt: skip


def test_slurm_submits_what_the_settings_say(tmp_path: Path) -> None:
    config = settings(executor="slurm", slurm=SLURM, workers=2)
    executor = slurm_executor("filter", [], 5, config, tmp_path)
    script = executor.get_launch_file_contents(executor.get_sbatch_args(5), "true")
    lines = script.splitlines()
    for line in (
        "#SBATCH --cpus-per-task=2", "#SBATCH --mem-per-cpu=3G", "#SBATCH --partition=cpu",
        "#SBATCH --job-name=curate-filter", "#SBATCH --time=02:00:00", "#SBATCH --array=0-4%2",
        "#SBATCH --account=lab", "#SBATCH --constraint=amd", "#SBATCH --qos=low",
        "module load python",
    ):  # fmt: skip
        assert line in lines
    plain = replace(SLURM, setup="", qos="", account="", arguments={})
    executor = slurm_executor("filter", [], 5, replace(config, slurm=plain, workers=-1), tmp_path)
    script = executor.get_launch_file_contents(executor.get_sbatch_args(5), "true")
    assert f"export PATH={Path(sys.executable).parent}:$PATH" in script
    assert "#SBATCH --array=0-4\n" in script
    assert "qos" not in script and "account" not in script


COMMANDS = {
    "sbatch": """
        for script; do :; done
        echo "$@" >> {calls}
        last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
        for task in $(seq 0 $last); do
            SLURM_ARRAY_TASK_ID=$task SLURM_NODELIST=here bash "$script" >> {log} 2>&1
        done
        echo Submitted batch job 7
    """,
    "srun": 'while [[ $1 == -* ]]; do [[ $1 == -n ]] && shift; shift; done; exec "$@"',
    "scontrol": "echo here",
    "squeue": "exit 0",
}
"""A Slurm that runs every task at once on this machine, and has nothing left in its queue."""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    def install(**other: str) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir()
        for name, body in {**COMMANDS, **other}.items():
            body = body.replace("{calls}", f"{tmp_path}/calls").replace("{log}", f"{tmp_path}/log")
            (folder / name).write_text(f"#!/bin/bash\n{body}")
            (folder / name).chmod(stat.S_IRWXU)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        return tmp_path / "calls"

    return install


ON_SLURM = settings(executor="slurm", slurm=replace(SLURM, setup=""), tasks=2)
STEP = print
"""A step that any Python can unpickle."""


def test_curation_on_slurm_gives_the_same_bytes(
    corpus: Path, tmp_path: Path, slurm: Callable[..., Path]
) -> None:
    calls = slurm()
    folder = curate(raw(corpus), ON_SLURM, tmp_path / "slurm", QUIET)
    assert len(calls.read_text().splitlines()) == 2, "one job array for each of two stages"
    assert clean(folder) == clean(curate(raw(corpus), settings(), tmp_path / "local", QUIET))


def test_second_run_on_slurm_submits_only_the_tasks_that_are_missing(
    tmp_path: Path, slurm: Callable[..., Path]
) -> None:
    calls = slurm(sbatch="echo >> {calls}; echo Submitted batch job 9")
    marks = tmp_path / "work/logs/note/completions"
    marks.mkdir(parents=True)
    for rank in (0, 2):
        (marks / f"{rank:05d}").touch()
    with pytest.raises(StageFailed, match="'note' failed: Slurm job 9 .* 1 of 3 .*slurm_logs"):
        run_stage("note", [STEP], 3, ON_SLURM, tmp_path / "work")
    assert json.loads((marks.parent / "ranks_to_run.json").read_text()) == [1]
    (marks / "00001").touch()
    run_stage("note", [STEP], 3, ON_SLURM, tmp_path / "work")
    assert len(calls.read_text().splitlines()) == 1


def test_mistake_found_on_slurm_reaches_the_user_in_one_line(
    tmp_path: Path, slurm: Callable[..., Path]
) -> None:
    slurm()
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/acu_Latn.jsonl").write_text("{no json\n")
    message = refused(tmp_path / "raw", tmp_path / "clean", replace(ON_SLURM, tasks=1))
    assert "acu_Latn.jsonl: line 1: not JSON" in message


def test_job_that_is_still_queued_is_waited_for_and_not_submitted_again(
    tmp_path: Path, slurm: Callable[..., Path]
) -> None:
    marks = tmp_path / "work/logs/note/completions"
    calls = slurm(squeue=f"mkdir -p {marks}; touch {marks}/00000; echo 5")
    marks.parent.mkdir(parents=True)
    (marks.parent / "job_id").write_text("5")
    run_stage("note", [STEP], 1, ON_SLURM, tmp_path / "work")
    assert not calls.exists()


def test_settings_that_sbatch_refuses_and_a_machine_without_it_are_the_users_to_correct(
    tmp_path: Path, slurm: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm(sbatch="echo invalid partition >&2; exit 1")
    with pytest.raises(DataError, match="sbatch refused curation stage 'note'"):
        run_stage("note", [STEP], 1, ON_SLURM, tmp_path / "work")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(DataError, match="sbatch: no such command"):
        run_stage("note", [STEP], 1, ON_SLURM, tmp_path / "work")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    with pytest.raises(DataError, match="cannot run as a task of a job array"):
        run_stage("note", [STEP], 1, ON_SLURM, tmp_path / "work")
