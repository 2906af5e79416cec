"""How fast each stream is, side by side: rounds in which the peers take turns, and medians.

A stream is tried with no workers and with two; what is reported is the better of the two, for each
number by itself. Resume is timed from opening the loader with a saved state to its next batch, in a
new process that has imported everything. Read next: `promises.py`.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .environments import XYLEM
from .neutral import Neutral
from .session import Session

BATCH = 8
BATCHES_A_STEP = 4
"""A step of 32 sequences, Xylem's default."""
SHARD_SEQUENCES = 1024


@dataclass(slots=True)
class Speed:
    """One peer at one sequence length, by number of workers."""

    peer: str
    title: str
    error: str = ""
    """Why there are no numbers."""
    write_seconds: float = 0.0
    written_bytes: int = 0
    tokens: dict[int, list[float]] = field(default_factory=dict)
    """Tokens a second, a number a round."""
    first: dict[int, list[float]] = field(default_factory=dict)
    """Seconds from opening the loader to its first batch."""
    resume: dict[int, list[float]] = field(default_factory=dict)
    """Seconds from opening the loader with a state of half an epoch to its next batch."""
    peak: dict[int, list[float]] = field(default_factory=dict)
    """Peak resident bytes of the process and its workers together."""
    failures: dict[int, str] = field(default_factory=dict)
    """Workers -> what went wrong with them."""

    @property
    def workers(self) -> int:
        """The number of workers with which most tokens a second were delivered."""
        return max(self.tokens, key=lambda n: statistics.median(self.tokens[n]))

    @property
    def tokens_per_second(self) -> float:
        """Median over the rounds, with the better number of workers."""
        return statistics.median(self.tokens[self.workers])

    @property
    def first_seconds(self) -> float:
        """Median over the rounds, with the better number of workers."""
        return min(map(statistics.median, self.first.values()))

    @property
    def resume_seconds(self) -> float | None:
        """Median over the rounds, with the better number of workers; None where it cannot."""
        return min(map(statistics.median, self.resume.values()), default=None)

    @property
    def peak_bytes(self) -> float:
        """Median over the rounds, where most tokens a second were delivered."""
        return statistics.median(self.peak[self.workers])


class Contest:
    """All streams at one sequence length."""

    def __init__(
        self, data: Neutral, sessions: Sequence[Session], workers: tuple[int, ...]
    ) -> None:
        """`workers` are the numbers of workers to try."""
        self.data, self.sessions, self.workers = data, sessions, workers
        self.speeds = [Speed(session.peer, session.title) for session in sessions]

    def run(
        self,
        rounds: int,
        seconds: float,
        progress: Callable[[str], object],
    ) -> list[Speed]:
        """Measures in turn, once every dataset is written."""
        pairs = list(zip(self.sessions, self.speeds, strict=True))
        for number in range(rounds):
            for session, speed in pairs:
                progress(
                    f"{session.title}: T = {self.data.sequence_length}, "
                    f"round {number + 1} of {rounds}"
                )
                if not speed.error:
                    self._measure(session, speed, seconds)
        for speed in self.speeds:
            if not speed.tokens and not speed.error:
                speed.error = "; ".join(speed.failures.values())
        return self.speeds

    def _workers(self, session: Session) -> tuple[int, ...]:
        """Xylem has no workers: its thread reads ahead."""
        return (0,) if session.peer == XYLEM else self.workers

    def _folder(self, session: Session) -> Path:
        return session.work / f"speed-{self.data.sequence_length}"

    def _state(self, session: Session, workers: int) -> Path:
        return session.work / f"speed-{self.data.sequence_length}-{workers}.pickle"

    def _job(self, session: Session, do: str, **loader: Any) -> dict[str, Any]:
        settings = {
            "sequence_length": self.data.sequence_length,
            "batch": BATCH,
            "batches_a_step": BATCHES_A_STEP,
            "weights": self.data.natural_weights,
            **loader,
        }
        return {"do": do, "folder": str(self._folder(session)), "loader": settings, "timeout": 300}

    def prepare(self, number: int) -> None:
        """Writes the number-th stream's dataset and saves its states; the order is free."""
        session, speed = self.sessions[number], self.speeds[number]
        T = self.data.sequence_length
        written = session.ask(
            {
                "do": "write", "source": str(self.data.folder), "sequence_length": T,
                "shard_sequences": SHARD_SEQUENCES, "folder": str(self._folder(session)),
                "timeout": 600,
            }
        )  # fmt: skip
        if "error" in written:
            speed.error = written["error"]
            return
        speed.write_seconds, speed.written_bytes = written["seconds"], written["bytes"]
        half = max(1, sum(self.data.sequences.values()) // (2 * BATCH * BATCHES_A_STEP))
        for workers in self._workers(session):
            saved = session.ask(
                {
                    **self._job(session, "read", workers=workers),
                    "batches": half * BATCHES_A_STEP, "ids": False, "kill": True,
                    "save": str(self._state(session, workers)),
                }
            )  # fmt: skip
            if "error" in saved:
                speed.failures[workers] = saved["error"]

    def _measure(self, session: Session, speed: Speed, seconds: float) -> None:
        for workers in self._workers(session):
            if workers in speed.failures:
                continue
            if len(speed.tokens) == 2 and workers != speed.workers:
                continue  # it was slower in the first round
            state = str(self._state(session, workers))
            resumed = session.ask(
                {
                    **self._job(session, "read", workers=workers, state=state),
                    "batches": 1, "ids": False,
                }
            )  # fmt: skip
            if "error" not in resumed:
                speed.resume.setdefault(workers, []).append(resumed["first_batch_seconds"])
            found = session.ask(
                {**self._job(session, "measure", workers=workers), "seconds": seconds}
            )
            if "error" in found:
                speed.failures[workers] = found["error"]
                continue
            speed.tokens.setdefault(workers, []).append(found["tokens_per_second"])
            speed.first.setdefault(workers, []).append(found["first_batch_seconds"])
            speed.peak.setdefault(workers, []).append(found["peak_bytes"])


def ratio_to_fastest(speeds: Sequence[Speed]) -> float | None:
    """Xylem's tokens a second over the fastest peer's; None without a peer."""
    ours = [s.tokens_per_second for s in speeds if s.peer == XYLEM and not s.error]
    theirs = [s.tokens_per_second for s in speeds if s.peer != XYLEM and not s.error]
    return ours[0] / max(theirs) if ours and theirs else None


def resume_ratios(speeds: Sequence[Speed]) -> tuple[float, float] | None:
    """Xylem's resume time over the slowest peer's and over the fastest's."""
    ours = [s.resume_seconds for s in speeds if s.peer == XYLEM]
    theirs = [
        s.resume_seconds
        for s in speeds
        if s.peer != XYLEM and not s.error and s.resume_seconds is not None
    ]
    if not ours or ours[0] is None or not theirs:
        return None
    return ours[0] / max(theirs), ours[0] / min(theirs)
