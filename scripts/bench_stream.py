"""The stream beside five others, on one text and one tokenizer, in one run.

    python -m xylem.scripts.bench_stream --install     the peers' environments, once
    python -m xylem.scripts.bench_stream [--quick] [--json]

Measured: tokens a second delivered by one process, seconds to the first batch and to the next
batch after a resume in the middle of an epoch, peak memory; and which of eight promises each keeps,
by the same scripted tests (`stream_peers/promises.py`). A peer without an environment is "not
installed". The text is the corpora of `XYLEM_SHARED`, or the embedded world where there are none,
and with `--quick`. Exit code 1 where a goal is missed, 2 for a user's mistake.
"""

import argparse
import os
import shutil
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from rich.console import Console
from rich.table import Table

from xylem.data.config import DataConfig, TokenizerConfig
from xylem.data.errors import DataError
from xylem.data.prepare import prepare
from xylem.data.world.render import build_world
from xylem.scripts.goals import Goal, print_goals
from xylem.scripts.stream_peers.environments import (
    PEERS,
    XYLEM,
    install,
    installed_versions,
    python_of,
    title_of,
)
from xylem.scripts.stream_peers.neutral import (
    Neutral,
    identities,
    neutral_dataset,
    promise_dataset,
)
from xylem.scripts.stream_peers.promises import PROMISES, Outcome, Trial, kept, try_all
from xylem.scripts.stream_peers.session import Session
from xylem.scripts.stream_peers.speed import (
    Contest,
    Speed,
    ratio_to_fastest,
    resume_ratios,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is measured."""

    lengths: tuple[int, ...]
    """Tokens a sequence."""
    rounds: int
    seconds: float
    """Of each measurement."""
    workers: tuple[int, ...]
    """Numbers of workers that the peers try; the better one counts."""
    vocabulary: int
    world: float
    """Factor on the embedded world's text."""


FULL = Size(
    lengths=(512, 2048), rounds=5, seconds=3.0, workers=(0, 2), vocabulary=16_384, world=1.0
)
QUICK = Size(lengths=(512,), rounds=3, seconds=0.3, workers=(0,), vocabulary=1_500, world=0.1)


def speed_dataset(corpus: Path | None, languages: int, size: Size, work: Path) -> Path:
    """A prepared folder of the corpus's largest to smallest languages, or of the embedded world.

    Raises:
        DataError: the corpus cannot be prepared.
    """
    chosen: tuple[str, ...] = ()
    if corpus is None:
        if not (work / "corpus").exists():
            build_world(work / "building", size=size.world)
            (work / "building" / "corpus").rename(work / "corpus")
        corpus = work / "corpus"
    else:
        files = sorted(corpus.glob("*.jsonl.gz"), key=lambda f: (-f.stat().st_size, f.name))
        step = max(1, len(files) // languages)
        chosen = tuple(sorted(f.name.removesuffix(".jsonl.gz") for f in files[::step][:languages]))
    config = DataConfig(
        corpus=str(corpus),
        prepared=str(work / "prepared"),
        languages=chosen,
        heldout_share=0.0,
        tokenizer=TokenizerConfig(vocab_size=size.vocabulary, sample_bytes=10_000_000),
        sequence_length=max(size.lengths),
    )
    prepare(config, console=Console(quiet=True))
    return work / "prepared"


def speed_table(data: Neutral, speeds: list[Speed]) -> Table:
    """One row a stream."""
    total = sum(data.sequences.values())
    table = Table(
        title=f"8 x {data.sequence_length} tokens a batch, {len(data.sequences)} languages, "
        f"{total * data.sequence_length / 1e6:.1f} M tokens"
    )
    table.add_column("stream")
    for heading in (
        "tokens/s", "workers", "first batch", "resume", "peak memory", "write", "on disk",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    for speed in speeds:
        if speed.error:
            table.add_row(speed.title, speed.error)
            continue
        resume = speed.resume_seconds
        table.add_row(
            speed.title,
            f"{speed.tokens_per_second / 1e6:.2f} M",
            str(speed.workers),
            f"{speed.first_seconds * 1000:.0f} ms",
            "none" if resume is None else f"{resume * 1000:.0f} ms",
            f"{speed.peak_bytes / 2**20:.0f} MB",
            f"{speed.write_seconds:.1f} s",
            f"{speed.written_bytes / 2**20:.1f} MB",
        )
    return table


def promise_table(found: dict[str, dict[str, Outcome]]) -> Table:
    """A row a promise, a column a stream."""
    table = Table(title="promises kept, by the same scripted tests")
    table.add_column("promise")
    for peer in found:
        table.add_column(title_of(peer), justify="center")
    for promise in PROMISES:
        table.add_row(promise, *(of_peer[promise].kept for of_peer in found.values()))
    table.add_section()
    totals = [f"{kept(list(each.values()))} of {len(PROMISES)}" for each in found.values()]
    table.add_row("kept", *totals)
    return table


def peers_ahead(speeds: list[Speed]) -> list[str]:
    """Where a peer's number is better than Xylem's, in words."""
    ours = next((s for s in speeds if s.peer == XYLEM and not s.error), None)
    if ours is None:
        return []
    ahead = []
    for peer in (s for s in speeds if s.peer != XYLEM and not s.error):
        pairs = {
            "tokens/s": (peer.tokens_per_second, ours.tokens_per_second, True),
            "first batch": (peer.first_seconds, ours.first_seconds, False),
            "resume": (peer.resume_seconds, ours.resume_seconds, False),
            "peak memory": (peer.peak_bytes, ours.peak_bytes, False),
            "bytes on disk": (peer.written_bytes, ours.written_bytes, False),
        }
        for name, (theirs, mine, more) in pairs.items():
            if theirs is None or mine is None:
                continue
            if (theirs > mine) if more else (theirs < mine):
                ahead.append(f"{peer.title} wins in {name}: {theirs / mine:.2f} of Xylem's")
    return ahead


def goals_of(contests: dict[int, list[Speed]], found: dict[str, dict[str, Outcome]]) -> list[Goal]:
    """The issue's goals, and what was reached."""
    goals: list[Goal] = []
    for length, speeds in contests.items():
        to_slowest, to_fastest = resume_ratios(speeds) or (None, None)
        goals += [
            Goal(
                f"tokens/s, T={length}", ratio_to_fastest(speeds), 1.0, "of the fastest peer's",
                at_least=True,
            ),
            Goal(f"resume, T={length}, slowest", to_slowest, 0.1, "of the slowest peer's"),
            Goal(f"resume, T={length}, fastest", to_fastest, 1.0, "of the fastest peer's"),
        ]  # fmt: skip
    if XYLEM in found:
        ours = kept(list(found[XYLEM].values()))
        goals.append(Goal("promises", ours, len(PROMISES), "kept", at_least=True))
    return goals


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def run(arguments: argparse.Namespace, console: Console) -> list[Goal]:
    """The whole bench; prints the tables."""
    size = QUICK if arguments.quick else FULL
    corpus = None if arguments.quick else find_corpus(arguments.corpus)
    work = (arguments.work / ("quick" if arguments.quick else "full")).resolve()
    environments = arguments.environments.resolve()
    peers = [XYLEM, *(p for p in PEERS if p in arguments.peers)]
    pythons = {peer: python_of(peer, environments) for peer in peers}
    shutil.rmtree(work / "peers", ignore_errors=True)
    clock = [time.perf_counter()]
    with ExitStack() as stack, console.status("starting") as status:
        sessions = [
            stack.enter_context(Session(peer, python, work / "peers" / peer))
            for peer, python in pythons.items()
            if python is not None
        ]
        status.update("preparing the text")
        # Not measured, so side by side: they mostly wait for processes to begin and to end.
        with ThreadPoolExecutor(max_workers=(os.cpu_count() or 1) + 1) as pool:
            small = pool.submit(promise_dataset, work / "promises")
            name = "world" if corpus is None else f"corpora-{arguments.languages}"
            prepared = speed_dataset(corpus, arguments.languages, size, work / name)
            contests = [
                Contest(
                    neutral_dataset(prepared, work / name / "neutral", length),
                    sessions,
                    size.workers,
                )
                for length in size.lengths
            ]
            data = small.result()
            ids = identities(data)
            clock.append(time.perf_counter())
            trials = [Trial(session, data, ids, free_port()) for session in sessions]

            def before(number: int) -> dict[str, Outcome]:
                outcomes = try_all(trials[number], status.update)
                for contest in contests:
                    status.update(f"{sessions[number].title}: writing")
                    contest.prepare(number)
                return outcomes

            outcomes = list(pool.map(before, range(len(sessions))))
            found = {s.peer: each for s, each in zip(sessions, outcomes, strict=True)}
        clock.append(time.perf_counter())
        for contest in contests:
            contest.run(size.rounds, size.seconds, status.update)
            absent = [p for p, python in pythons.items() if python is None]
            contest.speeds += [Speed(p, title_of(p), error="not installed") for p in absent]
            console.print(speed_table(contest.data, contest.speeds))
            for line in peers_ahead(contest.speeds):
                console.print(f"  {line}")
        clock.append(time.perf_counter())
    shutil.rmtree(work / "peers", ignore_errors=True)
    console.print(promise_table(found))
    text, promises, speed = (b - a for a, b in pairwise(clock))
    console.print(f"  took: text {text:.0f} s, promises {promises:.0f} s, speed {speed:.0f} s")
    for peer, of_peer in found.items():
        for promise, outcome in of_peer.items():
            console.print(f"  {title_of(peer)}, {promise}: {outcome.kept}: {outcome.told}")
    for peer in pythons:
        if peer != XYLEM and pythons[peer] is not None:
            pins = {line.split("==")[0] for line in PEERS[peer].packages}
            versions = [
                v for v in installed_versions(peer, environments) if v.split("==")[0] in pins
            ]
            console.print(f"  {title_of(peer)}: {' '.join(versions)}")
    return goals_of({c.data.sequence_length: c.speeds for c in contests}, found)


def find_corpus(given: Path | None) -> Path | None:
    """The folder of raw text; None for the embedded world."""
    shared = Path(os.environ.get("XYLEM_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    corpus = given or shared / "data" / "corpora"
    if given is not None and not any(given.glob("*.jsonl.gz")):
        raise DataError(f"--corpus {given} holds no *.jsonl.gz: name a folder of raw text")
    return corpus if corpus.is_dir() else None


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = argparse.ArgumentParser(
        prog="bench_stream", description=(__doc__ or "").splitlines()[0]
    )
    options.add_argument("--quick", action="store_true", help="smaller sizes, at most 45 s")
    options.add_argument("--json", action="store_true", help="last line: the goals as JSON")
    options.add_argument("--install", action="store_true", help="make the environments, and end")
    options.add_argument("--environments", type=Path, default=Path("runs/bench_environments"))
    options.add_argument("--work", type=Path, default=Path("runs/bench_stream"))
    options.add_argument("--corpus", type=Path, help="raw text, <language>.jsonl.gz")
    options.add_argument("--languages", type=int, default=24, help="languages of the corpus")
    options.add_argument(
        "--peers", nargs="*", default=list(PEERS), choices=list(PEERS), help="default: all"
    )
    return options


def main(arguments: list[str] | None = None) -> int:
    """The command: 0, 1 where a goal is missed, 2 for a user's mistake."""
    chosen = parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 150, soft_wrap=False)
    if chosen.install:
        return int(bool(install(chosen.environments.resolve(), console.print)))
    if chosen.languages < 1:
        print(f"bench_stream: --languages {chosen.languages}: at least 1", file=sys.stderr)
        return 2
    try:
        goals = run(chosen, console)
    except DataError as mistake:
        print(f"bench_stream: {mistake}", file=sys.stderr)
        return 2
    print_goals(goals, console, as_json=chosen.json)
    return int(not all(goal.met for goal in goals))


if __name__ == "__main__":
    sys.exit(main())
