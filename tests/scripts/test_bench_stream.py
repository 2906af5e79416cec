"""The stream's bench: the scripted tests see broken promises, and Xylem's stream keeps them all."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from rich.console import Console

from xylem.scripts import bench_stream
from xylem.scripts.stream_peers import promises
from xylem.scripts.stream_peers.environments import PEERS, python_of
from xylem.scripts.stream_peers.neutral import Neutral, identities, promise_dataset
from xylem.scripts.stream_peers.promises import Outcome, Trial
from xylem.scripts.stream_peers.protocol import Source, sequence_id
from xylem.scripts.stream_peers.session import Answer, Job, Session
from xylem.scripts.stream_peers.speed import Speed, ratio_to_fastest, resume_ratios

SCRIPTS = Path(bench_stream.__file__).resolve().parent
SIZES = {"eng_Latn": 480, "eus_Latn": 160}


class Script:
    """A session that answers from a list, and remembers what it was asked."""

    title = "a script"

    def __init__(self, work: Path, *answers: Answer) -> None:
        self.work, self.answers, self.asked = work, list(answers), list[Job]()

    def ask(self, job: Job) -> Answer:
        return self.ask_together([job])[0]

    def ask_together(self, jobs: list[Job]) -> list[Answer]:
        self.asked += jobs
        return [self.answers.pop(0) for _ in jobs]


def names(code: str, *positions: int) -> list[str]:
    return [f"{code}/{position}" for position in positions]


def straight(steps: int = promises.STEPS, seed: int = 0) -> list[list[str]]:
    """Batches of six of one language and two of the other, in a fixed order, epoch after epoch."""
    orders = {code: np.random.default_rng(seed).permutation(n) for code, n in SIZES.items()}
    return [
        [
            f"{code}/{orders[code][(step * share + i) % SIZES[code]]}"
            for code, share in (("eng_Latn", 6), ("eus_Latn", 2))
            for i in range(share)
        ]
        for step in range(steps)
    ]


def scripted(tmp_path: Path, *answers: Answer, ran: list[list[str]] | None = None) -> Trial:
    data = Neutral(tmp_path / "neutral", tmp_path / "prepared", 4, SIZES)
    ids = {f"{code}/{i}": (code, i) for code, n in SIZES.items() for i in range(n)}
    trial = Trial(cast(Session, Script(tmp_path, *answers)), data, ids, port=1)
    whole = {"ids": straight() if ran is None else ran}
    trial.straight = {0: whole, promises.WORKERS: whole}
    trial.again = {"ids": whole["ids"][: promises.KILLED_AFTER]}
    trial.ranks = whole
    return trial


REST = straight()[promises.KILLED_AFTER :]


# What the tests of promises see


def test_an_exact_resume_is_seen(tmp_path: Path) -> None:
    assert promises.exact_resume(scripted(tmp_path, {"ids": REST}, {"ids": REST})).kept == "yes"


def test_a_resume_that_repeats_is_seen(tmp_path: Path) -> None:
    late = straight()[promises.KILLED_AFTER - 5 : -5]
    seen = promises.other_workers(scripted(tmp_path, {"ids": late}))
    assert seen == Outcome("no", "320 of 320 sequences differ, 40 come twice")


def test_a_resume_in_another_order_without_repeats_is_partly_kept(tmp_path: Path) -> None:
    seen = promises.other_workers(scripted(tmp_path, {"ids": REST[1:] + REST[:1]}))
    assert seen == Outcome("partly", "320 of 320 sequences differ, 0 come twice")
    # Not so where the very same process begins again.
    exact = promises.exact_resume(scripted(tmp_path, *[{"ids": REST[1:] + REST[:1]}] * 2))
    assert exact.kept == "no"


def test_a_resume_that_works_in_process_only_is_partly_kept(tmp_path: Path) -> None:
    seen = promises.exact_resume(scripted(tmp_path, {"ids": REST}, {"ids": REST[1:] + REST[:1]}))
    assert seen.kept == "partly"
    assert seen.told.startswith("0 workers: the ids of the uninterrupted run; 2 workers: ")


def test_a_peer_that_refuses_is_quoted(tmp_path: Path) -> None:
    refusal = {"ids": [], "error": "ValueError: not with this world size"}
    seen = promises.other_world(scripted(tmp_path, refusal, refusal))
    assert seen == Outcome("no", "ValueError: not with this world size")


def test_two_ranks_are_put_together(tmp_path: Path) -> None:
    halves: list[Answer] = [{"ids": [b[:4] for b in REST]}, {"ids": [b[4:] for b in REST]}]
    trial = scripted(tmp_path, *halves)
    assert promises.other_world(trial).kept == "yes"
    asked = cast(Script, trial.session).asked
    assert [job["environment"]["RANK"] for job in asked] == ["0", "1"]
    assert {job["loader"]["batch"] for job in asked} == {promises.BATCH // 2}


def edited_run(batches: int, start: int = promises.KILLED_AFTER) -> list[list[str]]:
    """Equal parts of both languages, from where `straight` was after `start` batches."""
    orders = {code: np.random.default_rng(0).permutation(n) for code, n in SIZES.items()}
    begun = {"eng_Latn": start * 6, "eus_Latn": start * 2}
    return [
        [
            f"{code}/{orders[code][(begun[code] + step * 4 + i) % SIZES[code]]}"
            for code in SIZES
            for i in range(4)
        ]
        for step in range(batches)
    ]


def test_an_edit_that_keeps_cursors_is_seen(tmp_path: Path) -> None:
    kept = {"ids": edited_run(60, 10)}
    trial = scripted(tmp_path, kept, kept)
    trial.straight = {n: {"ids": straight(10)} for n in (0, promises.WORKERS)}
    assert promises.edited_mixture(trial) == Outcome(
        "yes", "0 come twice, 0 are passed over, of 560"
    )


def test_an_edit_that_repeats_is_seen(tmp_path: Path) -> None:
    anew = {"ids": edited_run(60, 0)}
    control = {"ids": straight(70)}
    trial = scripted(tmp_path, anew, control, anew, control)
    trial.straight = {n: {"ids": straight(10)} for n in (0, promises.WORKERS)}
    seen = promises.edited_mixture(trial)
    assert seen.kept == "no" and not seen.told.startswith("0 come twice")


def test_an_edit_without_effect_is_seen(tmp_path: Path) -> None:
    same = {"ids": straight(70)[10:]}
    trial = scripted(tmp_path, same, same)
    trial.straight = {n: {"ids": straight(10)} for n in (0, promises.WORKERS)}
    assert promises.edited_mixture(trial).told.startswith("the new weights have no effect")


def test_passed_over_sequences_are_counted(tmp_path: Path) -> None:
    trial = scripted(tmp_path)
    without = [names("eus_Latn", *(i for i in range(160) if i != 7)) for _ in range(4)]
    assert promises.passed_over(trial, without) == 1
    assert promises.passed_over(trial, [names("eus_Latn", *range(160))] * 4) == 0


def test_a_shuffle_buffer_at_the_end_of_a_pass_is_no_repetition(tmp_path: Path) -> None:
    trial = scripted(tmp_path)
    early = [names("eus_Latn", *range(155), 0)]
    assert promises.repeated(trial, early) == 0
    assert promises.repeated(trial, [names("eus_Latn", *range(10), 0)]) == 1


def test_an_unfair_share_is_seen(tmp_path: Path) -> None:
    assert promises.fair_share(scripted(tmp_path)).kept == "yes"
    unfair = [names("eng_Latn", *range(8)), *straight()[1:]]
    assert promises.fair_share(scripted(tmp_path, ran=unfair)).kept == "no"


def test_an_order_that_depends_on_workers_is_seen(tmp_path: Path) -> None:
    assert promises.pure_order(scripted(tmp_path)).kept == "yes"
    trial = scripted(tmp_path)
    trial.straight[promises.WORKERS] = {"ids": straight(seed=1)}
    seen = promises.pure_order(trial)
    assert seen.kept == "partly" and "2 workers: " in seen.told


# Damage


@pytest.fixture
def written(tmp_path: Path) -> Iterator[tuple[Trial, np.ndarray]]:
    """A trial whose dataset is one tar of the largest language."""
    trial = scripted(tmp_path)
    sequences = np.arange(480 * 4, dtype=np.uint16).reshape(480, 4)
    trial.data.folder.mkdir()
    np.save(trial.data.folder / "eng_Latn.npy", np.append(sequences.ravel(), np.uint16(0)))
    (trial.folder / "eng_Latn").mkdir(parents=True)
    for number in range(4):
        np.save(tmp_path / "block.npy", sequences[number * 120 : number * 120 + 120])
        with tarfile.open(trial.folder / "eng_Latn" / "0.tar", "a") as tar:
            tar.add(tmp_path / "block.npy", f"{number}.npy")
    yield trial, sequences


def test_a_silent_loss_is_not_called_detected(written: tuple[Trial, np.ndarray]) -> None:
    trial, _ = written
    cast(Script, trial.session).answers = [{"ids": [names("eng_Latn", *range(60), *range(30))]}]
    seen = promises.cut_shard(trial)
    assert seen.kept == "no" and "420 of 480 never came, 0 wrong ones did" in seen.told
    damaged = trial.session.work / "cut" / "eng_Latn" / "0.tar"
    with tarfile.open(damaged) as tar:
        assert 0 < len(tar.getnames()) < 4  # cut where no format error shows


def test_wrong_tokens_are_not_called_detected(written: tuple[Trial, np.ndarray]) -> None:
    trial, sequences = written
    cast(Script, trial.session).answers = [{"ids": [["never", "written"]]}]
    seen = promises.replaced_shard(trial)
    assert seen.kept == "no" and "2 wrong ones did" in seen.told
    damaged = trial.session.work / "replaced" / "eng_Latn" / "0.tar"
    original = trial.folder / "eng_Latn" / "0.tar"
    assert damaged.stat().st_size == original.stat().st_size
    assert sequences[0, ::-1].tobytes() in damaged.read_bytes()


def test_an_error_detects_and_a_hang_does_not(written: tuple[Trial, np.ndarray]) -> None:
    trial, _ = written
    error: Answer = {"ids": [], "error": "OSError: cut"}
    cast(Script, trial.session).answers = [error, error]
    assert promises.cut_shard(trial) == Outcome("yes", "OSError: cut")
    shutil.rmtree(trial.session.work / "cut")
    shutil.rmtree(trial.session.work / "cut-cache")
    cast(Script, trial.session).answers = [{"ids": [], "error": "no answer", "late": True}]
    assert promises.cut_shard(trial).told == "hangs: no answer"


def test_damage_that_is_seen_only_in_a_fetched_shard_is_partly_seen(
    written: tuple[Trial, np.ndarray],
) -> None:
    trial, _ = written
    cast(Script, trial.session).answers = [{"ids": [], "error": "hash"}, {"ids": [["wrong"]]}]
    seen = promises.replaced_shard(trial)
    assert seen.kept == "partly" and seen.told.startswith("when fetched to a cache: hash; ")


# The protocol

ADAPTER = """
import itertools, time, torch
from stream_peers.protocol import Peer, Stream, serve

def open_stream(folder, loader):
    seen = [loader.state or 0]
    def read():
        for n in itertools.count(seen[0]):
            if loader.seed == 1 and n == 2:
                raise ValueError("no more of it")
            if loader.seed == 2:
                time.sleep(60)
            seen[0] = n + 1
            print("chatter")
            yield torch.full((loader.batch, loader.sequence_length), n)
    return Stream(read(), lambda: seen[0])

serve(Peer(load=lambda: None, write=lambda source, folder: None, open=open_stream))
"""


def test_jobs_are_processes_of_their_own_and_failures_are_answers(tmp_path: Path) -> None:
    loader = {"sequence_length": 3, "batch": 2, "weights": {}}
    read: dict[str, Any] = {"do": "read", "folder": "", "loader": loader, "timeout": 30}
    state = str(tmp_path / "state")
    lines = [
        [{**read, "batches": 2, "save": state, "more": 5, "kill": True}],
        [{**read, "batches": 1, "loader": {**loader, "state": state}}],
        [{**read, "batches": 4, "loader": {**loader, "seed": 1}}],
        [
            {**read, "batches": 1, "timeout": 0.3, "loader": {**loader, "seed": 2}},
            {**read, "batches": 1},
        ],
        [{"do": "measure", "folder": "", "loader": loader, "timeout": 30, "seconds": 0.05}],
    ]
    done = subprocess.run(
        [sys.executable, "-c", ADAPTER],
        input="".join(json.dumps(line) + "\n" for line in lines),
        env={**os.environ, "PYTHONPATH": str(SCRIPTS), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    ready, *answers = map(json.loads, done.stdout.splitlines())
    assert ready == {"ready": True}
    (killed,), (resumed,), (failed,), (silent, beside), (measured,) = answers
    ids = [sequence_id(np.full(3, n)) for n in range(3)]
    assert killed["ids"] == [[ids[0]] * 2, [ids[1]] * 2]
    assert resumed["ids"] == [[ids[2]] * 2]  # from where it saved, not from where it was killed
    assert failed["error"] == "ValueError: no more of it" and failed["ids"] == killed["ids"]
    assert silent["late"] and silent["error"] == "no answer in 0.3 s"
    assert beside["ids"] == [[ids[0]] * 2]
    assert measured["tokens_per_second"] > 0 and measured["peak_bytes"] > 1e6


def test_an_id_is_of_the_tokens_whatever_their_type() -> None:
    tokens = np.arange(8, dtype=np.uint16)
    assert sequence_id(tokens) == sequence_id(tokens.astype(np.int64))
    assert sequence_id(tokens) != sequence_id(tokens[::-1])


def test_a_small_language_has_four_shards(tmp_path: Path) -> None:
    np.save(tmp_path / "eng_Latn.npy", np.arange(12 * 4 + 1, dtype=np.uint16))
    source = Source(tmp_path, 4, shard_sequences=1000)
    starts = [start for start, _ in source.shards("eng_Latn")]
    assert starts == [0, 3, 6, 9]
    assert sum(len(each) for _, each in source.shards("eng_Latn")) == 12


# The command


def measured(peer: str, tokens: float, resume: float) -> Speed:
    speed = Speed(peer, peer)
    speed.tokens, speed.resume = {0: [tokens]}, {0: [resume]}
    speed.first, speed.peak = {0: [resume]}, {0: [1.0]}
    return speed


def test_a_peer_without_an_environment_is_not_installed(tmp_path: Path) -> None:
    assert all(python_of(peer, tmp_path) is None for peer in PEERS)
    (tmp_path / "litdata" / "bin").mkdir(parents=True)
    (tmp_path / "litdata" / "bin" / "python").touch()
    assert python_of("litdata", tmp_path) is None  # half installed


def test_goals_are_missed_where_there_is_no_peer_to_compare_with() -> None:
    alone = [measured("xylem", 5.0, 1.0), Speed("litdata", "LitData", error="not installed")]
    assert ratio_to_fastest(alone) is None and resume_ratios(alone) is None
    goals = bench_stream.goals_of({512: alone}, {})
    assert len(goals) == 3 and not any(goal.met for goal in goals)


def test_goals_compare_with_the_fastest_and_the_slowest() -> None:
    speeds = [measured("xylem", 6.0, 0.1), measured("a", 5.0, 2.0), measured("b", 3.0, 0.2)]
    goals = bench_stream.goals_of({512: speeds}, {})
    assert all(goal.met for goal in goals)
    assert [goal.value for goal in goals] == pytest.approx([1.2, 0.05, 0.5])
    slower = [measured("xylem", 4.0, 0.3), *speeds[1:]]
    assert not any(goal.met for goal in bench_stream.goals_of({512: slower}, {}))
    assert bench_stream.peers_ahead(slower)[0] == "a wins in tokens/s: 1.25 of Xylem's"


def test_the_better_number_of_workers_counts() -> None:
    speed = measured("a", 5.0, 2.0)
    speed.tokens[2], speed.resume[2], speed.peak[2] = [7.0, 9.0, 8.0], [3.0], [4.0]
    assert (speed.workers, speed.tokens_per_second, speed.peak_bytes) == (2, 8.0, 4.0)
    assert speed.resume_seconds == 2.0


def test_a_corpus_without_text_is_the_users_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--corpus", str(tmp_path), "--work", str(tmp_path), "--peers"]
    assert bench_stream.main(options) == 2
    assert "holds no *.jsonl.gz: name a folder of raw text" in capsys.readouterr().err


# Xylem


def test_xylem_keeps_every_promise(tmp_path: Path) -> None:
    words = {"eng_Latn": 1800, "tur_Latn": 900, "eus_Latn": 240}
    data = promise_dataset(tmp_path, words)
    python = python_of("xylem", tmp_path)
    assert python is not None
    with Session("xylem", python, tmp_path / "work") as session:
        trial = Trial(session, data, identities(data), bench_stream.free_port())
        found = promises.try_all(trial)
    assert {p: outcome for p, outcome in found.items() if outcome.kept != "yes"} == {}
    Console(quiet=True).print(bench_stream.promise_table({"xylem": found}))
