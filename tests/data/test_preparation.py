"""Tasks of `xylem prepare`: bounded memory, equal bytes however they are run, kills, sources."""

import dataclasses
import errno
import gzip
import json
import os
import pickle
import signal
import stat
import subprocess
import sys
import time
import tracemalloc
import types
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xylem.data.config import DataConfig, TokenizerConfig
from xylem.data.curation.config import CurationConfig, SlurmConfig
from xylem.data.errors import DataError
from xylem.data.manifest import Manifest
from xylem.data.preparation import execution
from xylem.data.preparation import reading as reading_module
from xylem.data.preparation import tasks as tasks_module
from xylem.data.preparation.documents import HASH_RANGE, heldout_place, keyed_hash
from xylem.data.preparation.runs import RunWriter, bucket_count, bucket_range, read_range
from xylem.data.preparation.sample import CandidateWriter, sample_texts
from xylem.data.prepare import is_heldout, prepare, train_corpus_tokenizer
from xylem.data.token_line import TokenLine
from xylem.data.tokenizer import Tokenizer

from .test_prepare import TEXTS, Said, files, quiet, shards_of, train, write_corpus


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


# Sorting more than fits in memory


ROWS = st.lists(
    st.tuples(
        st.one_of(st.integers(0, HASH_RANGE - 1), st.sampled_from([0, 7, HASH_RANGE - 1])),
        st.sampled_from(["a", "b", "ä", "c"]),
        st.binary(max_size=3000),
    ),
    max_size=60,
)


@settings(max_examples=40, deadline=None)
@given(rows=ROWS, memory=st.integers(1, 40_000), buckets=st.sampled_from([1, 2, 8, 64]))
def test_the_buckets_of_sorted_runs_are_what_sorting_everything_gives(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[int, str, bytes]],
    memory: int,
    buckets: int,
) -> None:
    folder = tmp_path_factory.mktemp("runs")
    writer = RunWriter(folder, memory)
    for number, row in enumerate(rows):
        writer.add("even" if number % 2 == 0 else "odd", *row)
    runs = [(folder, run) for run in writer.close()]
    for line, wanted in (("even", rows[::2]), ("odd", rows[1::2]), ("none", [])):
        found = [
            row
            for bucket in range(buckets)
            for row in read_range(runs, line, *bucket_range(bucket, buckets))
        ]
        assert found == sorted(wanted, key=lambda row: row[:2])


def test_buckets_follow_from_the_line_and_fit_in_memory() -> None:
    assert bucket_count(0, 0, 1000) == bucket_count(800, 1, 1000) == 1
    assert bucket_count(801, 1, 1000) == 2
    assert bucket_count(0, 11, 1000) == 4  # documents without much text take memory too
    for size in (10**6, 3 * 10**9, 10**12):
        count = bucket_count(size, 1, 64_000_000)
        assert count & (count - 1) == 0 and size / count <= 64_000_000


def test_heldout_places_keep_their_order_and_use_the_whole_range(config: DataConfig) -> None:
    ids = [f"{n}" for n in range(3000)]
    places = {i: place for i in ids if (place := heldout_place(i, config)) is not None}
    by_hash = sorted(places, key=lambda i: keyed_hash(config.seed, "heldout", i))
    assert sorted(places, key=places.__getitem__) == by_hash
    assert max(places.values()) > 0.99 * HASH_RANGE and max(places.values()) < HASH_RANGE
    assert heldout_place("1", dataclasses.replace(config, heldout_share=0.0)) is None


def naive_sample(documents: list[tuple[int, bytes]], budget: int) -> list[str]:
    ranked = sorted(range(len(documents)), key=lambda n: (documents[n][0], n))
    left, kept = budget, {}
    for n in ranked:
        text = documents[n][1]
        if len(text) > left:
            if left:
                part = text[:left].decode("utf-8", "ignore")
                kept[n] = part[: part.rfind(" ") + 1] or part
            break
        kept[n] = text.decode()
        left -= len(text)
    return [kept[n] for n in sorted(kept)]


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 300), max_size=80),
    most=st.integers(1, 4000),
    share=st.floats(0, 1),
    tasks=st.integers(1, 4),
)
def test_the_sample_does_not_depend_on_how_files_are_grouped(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    most: int,
    share: float,
    tasks: int,
) -> None:
    folder = tmp_path_factory.mktemp("sample")
    documents = [
        (keyed_hash(0, "sample", f"{n}"), (f"{n} " * 100)[:size].encode())
        for n, size in enumerate(sizes)
    ]
    budget = int(share * min(most, sum(sizes)))
    paths = [folder / f"{task}.arrow" for task in range(tasks)]
    for path, part in zip(paths, np.array_split(np.arange(len(documents)), tasks), strict=True):
        writer = CandidateWriter(most)
        for n in part:
            writer.add(*documents[n])
            assert sum(len(text) for _, _, text in writer._rows) <= 2 * most + 300
        writer.close(path)
    assert list(sample_texts(paths, budget)) == naive_sample(documents, budget)


def peak(work: Callable[[], object]) -> int:
    """The most memory that Python held while it worked, and Arrow beside it."""
    before = pa.default_memory_pool().max_memory()
    tracemalloc.start()
    work()
    python = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return python + max(0, pa.default_memory_pool().max_memory() - before)


def test_memory_does_not_grow_with_a_language(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks_module, "_BATCH_BYTES", 20_000)
    quiet(config)
    folder = Path(config.prepared) / "tokenizer"
    tokenizer = Tokenizer.load(folder)
    line = "human beings are born free and equal " * 28
    config = dataclasses.replace(
        config, bucket_bytes=100_000, heldout_share=0.0, shard_tokens=10**9
    )
    peaks = []
    for documents in (400, 2000):
        texts = {"eng_Latn": {f"{n}": line for n in range(documents)}}
        corpus = write_corpus(tmp_path / f"{documents}", texts)
        staging = tmp_path / f"staging-{documents}"
        read = tasks_module.ReadTask(
            config=dataclasses.replace(config, corpus=str(corpus)), language="eng_Latn", number=0,
            paths=(corpus / "eng_Latn.jsonl.gz",), size=0, source="eng_Latn", heldout=True,
            runs=True, sample=True,
        )  # fmt: skip
        buckets = bucket_count(documents * len(line), documents, config.bucket_bytes)
        pack = tasks_module.PackTask(
            line="eng_Latn", language="eng_Latn", folder="train/eng_Latn", readers=(read.name,),
            first=0, stop=buckets, buckets=buckets, most=None, shard_tokens=10**9,
            tokenizer=folder, tokenizer_sha256=tokenizer.sha256, threads=1, size=0,
        )  # fmt: skip
        peaks.append([peak(partial(execution.complete, each, staging)) for each in (read, pack)])
    small, large = (max(each) for each in peaks)
    assert large < 1.5 * small and large < 2000 * len(line)


# Equal bytes, however the work is run


def test_a_language_in_buckets_has_the_order_of_one_that_fits_in_memory(
    config: DataConfig, tmp_path: Path
) -> None:
    cut = quiet(config)
    whole = dataclasses.replace(config, prepared=str(tmp_path / "whole"), bucket_bytes=64_000_000)
    one = quiet(whole)
    assert cut.tokenizer_sha256 == one.tokenizer_sha256
    for code, entry in cut.languages.items():
        paths = [shard.path for shard in shards_of(config.prepared, train(entry))]
        assert paths[0] == f"train/{code}/00000-00000.tar"
        assert len({Path(path).name.split("-")[0] for path in paths}) > 1
        cut_line = TokenLine(Path(config.prepared), train(entry))
        one_line = TokenLine(Path(whole.prepared), train(one.languages[code]))
        assert cut_line.document_ids() == one_line.document_ids()
        assert (cut_line.read(0, cut_line.tokens) == one_line.read(0, one_line.tokens)).all()
        assert entry.heldout == one.languages[code].heldout


def test_several_processes_write_the_bytes_of_one(config: DataConfig, tmp_path: Path) -> None:
    one = quiet(config)
    several = dataclasses.replace(config, prepared=str(tmp_path / "two"), prepare_workers=2)
    assert quiet(several).hash == one.hash
    assert files(Path(several.prepared)) == files(Path(config.prepared))
    assert not list(Path(several.prepared).rglob("*.lock"))


def test_the_files_of_a_language_are_read_in_groups(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tmp_path / "parts"
    for code, by_id in TEXTS.items():
        (corpus / code).mkdir(parents=True)
        for part in range(3):
            lines = [json.dumps({"id": i, "text": t}) for i, t in list(by_id.items())[part::3]]
            (corpus / code / f"{part}.jsonl.gz").write_bytes(
                gzip.compress("\n".join(lines).encode(), mtime=0)
            )
    config = dataclasses.replace(config, corpus=str(corpus))
    one = quiet(config)
    monkeypatch.setattr(reading_module, "_GROUP_BYTES", 1)
    apart = dataclasses.replace(config, prepared=str(tmp_path / "apart"))
    assert quiet(apart).hash == one.hash
    assert files(Path(apart.prepared)) == files(Path(config.prepared))


@pytest.fixture
def slurm_stages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the stages that were run as job arrays, by a Slurm that is none."""
    stages: list[str] = []

    def run_stage(
        name: str, pipeline: list[Any], tasks: int, config: CurationConfig, work: Path
    ) -> None:
        assert config.executor == "slurm" and work.is_absolute()
        stages.append(name)
        for rank in reversed(range(tasks)):
            for step in pickle.loads(pickle.dumps(pipeline)):
                step(None, rank, tasks)

    fake = types.ModuleType("execution")
    fake.run_stage = run_stage  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "xylem.data.curation.execution", fake)
    return stages


ON_SLURM = CurationConfig(executor="slurm", slurm=SlurmConfig(partition="p"))


def test_slurm_tasks_are_those_of_this_machine(
    config: DataConfig, tmp_path: Path, slurm_stages: list[str]
) -> None:
    local = quiet(config)
    slurm = dataclasses.replace(config, prepared=str(tmp_path / "slurm"), curation=ON_SLURM)
    assert quiet(slurm).hash == local.hash
    assert slurm_stages == ["prepare-read", "prepare-pack"]


def test_a_tokenizer_is_trained_on_what_slurm_read(
    config: DataConfig, tmp_path: Path, slurm_stages: list[str]
) -> None:
    console = Said().console
    local = train_corpus_tokenizer(config, tmp_path / "local", console=console)
    slurm = dataclasses.replace(config, curation=ON_SLURM)
    trained = train_corpus_tokenizer(slurm, tmp_path / "slurm", console=console)
    assert trained.sha256 == local.sha256 and slurm_stages == ["prepare-read"]
    assert {path.name for path in tmp_path.iterdir()} == {"corpus", "local", "slurm"}


def test_a_slurm_task_of_an_earlier_command_does_not_write_into_a_later_one(
    config: DataConfig, tmp_path: Path
) -> None:
    (tmp_path / "plan.json").write_text("later")
    step = execution._TaskOfRank((), tmp_path, b"earlier")
    with pytest.raises(RuntimeError, match="another `xylem prepare` writes here now"):
        step(None, 0, 1)


# Kills


SETUP = """
import os, signal, sys
from pathlib import Path
from xylem.data import prepare as module, sources
from xylem.data.config import DataConfig, TokenizerConfig
from xylem.data.families import FamilyMap
from xylem.data.preparation import extension
for each in (module, extension):
    each.build_family_map = lambda codes, config: FamilyMap(
        families=("all",), family_of={code: "all" for code in codes})
sources._check_code = lambda *arguments: None

def configured(corpus, prepared, workers=1):
    return DataConfig(corpus=corpus, prepared=prepared, sequence_length=64, heldout_share=0.2,
        heldout_documents=5, shard_tokens=1000, bucket_bytes=6000, prepare_workers=workers,
        tokenizer=TokenizerConfig(vocab_size=400, sample_bytes=20_000))

def killed(writes, work):
    # Whether `work` in a process of its own is killed before one of its durable writes.
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] != 0
    real, left = os.fsync, [writes]
    def fsync(descriptor):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        real(descriptor)
    os.fsync = fsync
    work()
    os._exit(0)
"""
KILLED_OFTEN = """
kills = 0
while killed(3 * kills, lambda: module.prepare(configured(sys.argv[1], sys.argv[2]))):
    kills += 1
    assert kills < 60 and not Path(sys.argv[2]).exists()
assert not killed(10**9, lambda: module.prepare(configured(sys.argv[1], sys.argv[3])))
assert "datatrove" not in sys.modules
print(kills)
"""
ONCE = "module.prepare(configured(sys.argv[1], sys.argv[2], int(sys.argv[3])))"


def script(code: str, *arguments: str) -> "subprocess.Popen[str]":
    environment = os.environ | {
        "PYTHONPATH": str(Path(execution.__file__).resolve().parents[2] / ".typing")
    }
    command = [sys.executable, "-c", SETUP + code, *arguments]
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_kills_at_any_write_leave_the_same_bytes(config: DataConfig, tmp_path: Path) -> None:
    reference = str(tmp_path / "reference")
    with script(KILLED_OFTEN, config.corpus, config.prepared, reference) as process:
        out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert int(out) > 5 and error.count("going on where an unfinished") >= int(out) - 1
    assert files(Path(config.prepared)) == files(Path(reference))
    assert not Path(f"{config.prepared}.partial").exists()


def test_a_killed_command_takes_its_processes_along_and_goes_on(
    config: DataConfig, tmp_path: Path
) -> None:
    work = Path(f"{config.prepared}.partial") / "work"
    with script(ONCE, config.corpus, config.prepared, "2") as process:
        deadline = time.monotonic() + 120
        while not list(work.glob("pack/**/*.json")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL and not Path(config.prepared).exists()
    for prepared in (config.prepared, str(tmp_path / "reference")):
        with script(ONCE, config.corpus, prepared, "1") as process:
            _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        assert ("going on where" in error) == (prepared == config.prepared)
    assert files(Path(config.prepared)) == files(tmp_path / "reference")


def interrupted(
    config: DataConfig,
    monkeypatch: pytest.MonkeyPatch,
    after: int,
    by: BaseException | None = None,
) -> list[str]:
    """Prepares, interrupted before a task; names of the tasks that ran."""
    by = by or KeyboardInterrupt()
    ran: list[str] = []
    real = execution.complete

    def counting(task: execution.Task, staging: Path) -> None:
        if len(ran) == after:
            raise by
        ran.append(task.name)
        real(task, staging)

    with monkeypatch.context() as patch:
        patch.setattr(execution, "complete", counting)
        try:
            quiet(config)
        except type(by):
            assert Path(f"{config.prepared}.partial").exists()
    return ran


@pytest.mark.parametrize("by", [KeyboardInterrupt(), OSError(errno.EIO, "input/output error")])
def test_an_interrupted_command_repeats_no_finished_task(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: BaseException
) -> None:
    first = interrupted(config, monkeypatch, 5, by)
    assert len(first) == 5 and any(name.startswith("pack/") for name in first)
    trained = Path(f"{config.prepared}.partial") / "tokenizer" / "tokenizer.model"
    model = trained.read_bytes()
    monkeypatch.setattr(reading_module, "train_tokenizer", None)
    rest = interrupted(config, monkeypatch, -1)
    assert rest and not set(first) & set(rest)
    assert (Path(config.prepared) / "tokenizer" / "tokenizer.model").read_bytes() == model
    monkeypatch.undo()
    other = dataclasses.replace(config, prepared=str(tmp_path / "other"))
    assert len(interrupted(other, monkeypatch, -1)) == len(first) + len(rest)
    assert files(Path(other.prepared)) == files(Path(config.prepared))


def test_files_that_a_full_disk_cut_are_never_taken_for_whole(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = os.fsync, [0]

    def full(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            # What the disk has no room for: the end of the file that is being written.
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                size = os.fstat(descriptor).st_size // 2
                os.truncate(f"/proc/self/fd/{descriptor}", size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    failures = 0
    while not Path(config.prepared).exists():
        left[0] = 3 * failures
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            try:
                quiet(config)
            except OSError as error:
                assert error.errno == errno.ENOSPC
                failures += 1
        assert failures < 60
    assert failures > 5
    undisturbed = dataclasses.replace(config, prepared=str(tmp_path / "undisturbed"))
    quiet(undisturbed)
    assert files(Path(config.prepared)) == files(Path(undisturbed.prepared))


@pytest.mark.parametrize("change", ["settings", "text"])
def test_leftovers_of_other_settings_or_text_are_removed(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    interrupted(config, monkeypatch, 5)
    if change == "settings":
        config = dataclasses.replace(config, seed=1)
    else:
        write_corpus(Path(config.corpus), {"fin_Latn": TEXTS["fin_Latn"] | {"new": "uusi " * 30}})
    said = Said()
    manifest = prepare(config, console=said.console)
    assert "removing what an unfinished command left: it had other text or" in said.text
    assert manifest == Manifest.load(Path(config.prepared))
    trained = sum(not is_heldout(i, config) for i in TEXTS["fin_Latn"])
    more = change == "text" and not is_heldout("new", config)
    assert manifest.languages["fin_Latn"].train_documents == trained + more


DYING = """
import os, signal, sys
from dataclasses import dataclass
from pathlib import Path
from rich.console import Console
from xylem.data.config import DataConfig
from xylem.data.preparation.execution import ProcessDied, result_path, run_tasks
from xylem.data.preparation.progress import stage_progress

@dataclass(frozen=True)
class Number:
    number: int
    language = "eng_Latn"
    size = 1

    @property
    def name(self):
        return str(self.number)

    def run(self, staging):
        if self.number == 2 and not (staging / "again").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return {"number": self.number}

if __name__ == "__main__":
    staging = Path(sys.argv[1])
    config = DataConfig(corpus="", prepared="", prepare_workers=2)
    tasks = [Number(n) for n in range(4)]
    with stage_progress(Console(stderr=True), "numbers", 4) as step:
        try:
            run_tasks("numbers", tasks, staging, config, step)
        except ProcessDied as error:
            print(error)
        (staging / "again").touch()
        print(run_tasks("numbers", tasks, staging, config, step))
"""


def test_a_killed_process_is_told_and_the_others_results_are_kept(tmp_path: Path) -> None:
    (tmp_path / "dying.py").write_text(DYING)
    (tmp_path / "staging").mkdir()
    root = Path(execution.__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, str(tmp_path / "dying.py"), str(tmp_path / "staging")],
        env=os.environ | {"PYTHONPATH": str(root / ".typing")},
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    told, results = done.stdout.splitlines()
    assert "was killed (out of memory?): the same command goes on from here" in told
    assert results == str([{"number": n} for n in range(4)])


def test_a_mistake_found_by_another_process_is_one_line(config: DataConfig) -> None:
    write_corpus(Path(config.corpus), TEXTS, {"fin_Latn": b'{"id": "x"\n'})
    with pytest.raises(DataError, match=r"fin_Latn\.jsonl\.gz: line 61: not JSON") as caught:
        quiet(dataclasses.replace(config, prepare_workers=2))
    assert "\n" not in str(caught.value)
    assert not Path(f"{config.prepared}.partial").exists()


def test_text_that_changes_while_it_is_prepared_is_refused(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = reading_module.train_tokenizer

    def change(*arguments: Any) -> Tokenizer:
        write_corpus(Path(config.corpus), {"fin_Latn": {"new": "uusi " * 30}})
        return real(*arguments)

    monkeypatch.setattr(reading_module, "train_tokenizer", change)
    with pytest.raises(
        DataError, match=r"1 files of the corpus changed while they were prepared \(fin_Latn\.jso"
    ):
        quiet(config)
    assert not Path(config.prepared).exists()


def test_a_file_that_vanishes_while_it_is_prepared(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tasks_module.read_file

    def vanish(config: DataConfig, code: str, path: Path, counts: Any) -> Iterator[Any]:
        path.unlink()
        return real(config, code, path, counts)

    monkeypatch.setattr(tasks_module, "read_file", vanish)
    with pytest.raises(DataError, match=r"eng_Latn\.jsonl\.gz: was there when .* began"):
        quiet(config)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"bucket_bytes": 0}, r"data\.bucket_bytes=0 must be at least 1"),
        ({"prepare_workers": 0}, r"data\.prepare_workers=0 must be at least 1"),
        ({"prepared": "s3://bucket/x"}, r"data\.prepared=s3://bucket/x: .* a local folder"),
    ],
)
def test_settings_that_cannot_work(
    config: DataConfig, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(DataError, match=problem):
        quiet(dataclasses.replace(config, **changes))
