"""What each stream keeps of eight promises: the same scripted tests for every peer, over ids.

Each test opens the stream as its manual says, in processes of its own, and compares the ids that
come with those that should: an uninterrupted run's, or the dataset's. A resume is always that of a
process which was killed with SIGKILL some batches after it had saved its state.
Read next: `session.py` (how a job reaches a peer), `neutral.py` (the dataset).
"""

import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .neutral import Neutral
from .protocol import Source
from .session import Answer, Session, rank_environment

BATCH = 8
KILLED_AFTER = 20
STEPS = 60
WORKERS = 2
SHARD_SEQUENCES = 64
BUFFER = 8
"""Of peers that shuffle in a buffer: small against a language, so that passes hardly mix in it."""
PATIENCE = 30.0
"""Seconds without an answer after which a stream is said to hang."""

Batches = list[list[str]]
Kept = Literal["yes", "partly", "no"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one peer does in one test."""

    kept: Kept
    told: str
    """What was seen, in words and numbers."""


@dataclass(slots=True)
class Trial:
    """One peer with its dataset written, and what it delivered so far."""

    session: Session
    data: Neutral
    ids: Mapping[str, tuple[str, int]]
    """Hash -> (language, position) of every sequence of the dataset."""
    port: int
    """A free port for two ranks."""
    straight: dict[int, Answer] = field(default_factory=dict)
    """Workers -> an uninterrupted run of STEPS batches."""
    again: Answer = field(default_factory=dict)
    """The run without workers that saved its state: KILLED_AFTER batches."""
    ranks: Answer = field(default_factory=dict)
    """STEPS batches by two processes of half the batch each, put together."""

    @property
    def folder(self) -> Path:
        """The peer's own dataset."""
        return self.session.work / "promises"

    @property
    def long(self) -> int:
        """Batches of a pass and a half over the dataset."""
        return 3 * sum(self.data.sequences.values()) // (2 * BATCH)

    def state(self, workers: int) -> Path:
        """The state that a killed run of so many workers had saved."""
        return self.session.work / f"state-{workers}.pickle"

    def job(self, batches: int, folder: Path | None = None, **loader: Any) -> dict[str, Any]:
        """A job that reads batches."""
        settings = {
            "sequence_length": self.data.sequence_length,
            "batch": BATCH,
            "weights": self.data.natural_weights,
            "buffer": BUFFER,
            **loader,
        }
        place = str(self.folder if folder is None else folder)
        return {
            "do": "read", "folder": place, "batches": batches, "loader": settings,
            "timeout": PATIENCE,
        }  # fmt: skip

    def two_ranks(self, batches: int, **loader: Any) -> Answer:
        """What two processes read together: a batch is both halves."""
        jobs = [
            {
                **self.job(batches, rank=rank, world=2, **{**loader, "batch": BATCH // 2}),
                "environment": rank_environment(rank, 2, self.port),
            }
            for rank in range(2)
        ]
        first, second = self.session.ask_together(jobs)
        for answer in (first, second):
            if "error" in answer:
                return answer
        return {"ids": [a + b for a, b in zip(first["ids"], second["ids"], strict=True)]}

    def prepare(self) -> str:
        """Writes the dataset and does the runs that several tests compare with; an error, or ''."""
        written = self.session.ask(
            {
                "do": "write", "source": str(self.data.folder), "folder": str(self.folder),
                "sequence_length": self.data.sequence_length, "shard_sequences": SHARD_SEQUENCES,
            }
        )  # fmt: skip
        if "error" in written:
            return str(written["error"])
        for workers in (0, WORKERS):
            self.straight[workers] = self.session.ask(self.job(STEPS, workers=workers))
            saving = self.job(KILLED_AFTER, workers=workers)
            saving |= {"save": str(self.state(workers)), "more": 3, "kill": True}
            answer = self.session.ask(saving)
            self.again = self.again or answer
        self.ranks = self.two_ranks(STEPS)
        return ""


def differing(expected: Batches, found: Batches) -> int:
    """Sequences that are not where they should be, batch by batch; order inside is free."""
    missing = sum(len(batch) for batch in expected[len(found) :])
    return missing + sum(
        (Counter(a) - Counter(b)).total() for a, b in zip(expected, found, strict=False)
    )


def repeated(trial: Trial, batches: Batches) -> int:
    """Sequences that came twice before their language was through once.

    The last BUFFER reads of a pass do not count: a shuffle buffer then holds some of the next.
    """
    seen: set[str] = set()
    read: Counter[str] = Counter()
    twice = 0
    for each in chain.from_iterable(batches):
        language = trial.ids[each][0] if each in trial.ids else ""
        if read[language] < trial.data.sequences.get(language, 0) - BUFFER:
            twice += each in seen
        seen.add(each)
        read[language] += 1
    return twice


def passed_over(trial: Trial, batches: Batches) -> int:
    """Sequences that did not come although their language was through.

    What a shuffle buffer holds back comes within ten times its size, but for one in 10^4.
    """
    read: dict[str, list[str]] = {}
    for each in chain.from_iterable(batches):
        if each in trial.ids:
            read.setdefault(trial.ids[each][0], []).append(each)
    return sum(
        size - len(set(read[code][: size + 10 * BUFFER]))
        for code, size in trial.data.sequences.items()
        if len(read.get(code, [])) >= size + 10 * BUFFER
    )


def resumed(trial: Trial, answer: Answer, workers: int, *, strict: bool = True) -> Outcome:
    """Compares what followed a saved state with the uninterrupted run of so many workers."""
    straight: Batches = trial.straight[workers]["ids"]
    if "error" in answer:
        return Outcome("no", answer["error"])
    before, expected = straight[:KILLED_AFTER], straight[KILLED_AFTER:]
    off = differing(expected, answer["ids"])
    if not off:
        return Outcome("yes", "the ids of the uninterrupted run")
    twice = repeated(trial, [*before, *answer["ids"]])
    told = f"{off} of {sum(map(len, expected))} sequences differ, {twice} come twice"
    return Outcome("no" if strict or twice else "partly", told)


def exact_resume(trial: Trial) -> Outcome:
    """Killed and resumed: the ids are those of the uninterrupted run."""
    outcomes = {}
    for workers in (0, WORKERS):
        job = trial.job(STEPS - KILLED_AFTER, workers=workers, state=str(trial.state(workers)))
        outcomes[workers] = resumed(trial, trial.session.ask(job), workers)
    return together({f"{workers} workers": each for workers, each in outcomes.items()})


def other_workers(trial: Trial) -> Outcome:
    """Saved with two workers, resumed with one: the same ids follow."""
    job = trial.job(STEPS - KILLED_AFTER, workers=WORKERS - 1, state=str(trial.state(WORKERS)))
    return resumed(trial, trial.session.ask(job), WORKERS, strict=False)


def other_world(trial: Trial) -> Outcome:
    """Saved by one process, resumed by two of half the batch: the same global batches follow."""
    answer = trial.two_ranks(STEPS - KILLED_AFTER, state=str(trial.state(0)))
    return resumed(trial, answer, 0, strict=False)


def edited_mixture(trial: Trial) -> Outcome:
    """Resumed under other weights: each language goes on where it was, for a pass and a half."""
    return together({f"{n} workers": _edited(trial, n) for n in (0, WORKERS)})


def _edited(trial: Trial, workers: int) -> Outcome:
    weights = trial.data.natural_weights
    rising = sorted(weights)[1::2]
    tilted = {code: weight * (1.5 if code in rising else 0.7) for code, weight in weights.items()}
    edited = {code: weight / sum(tilted.values()) for code, weight in tilted.items()}
    batches = trial.long
    job = trial.job(batches, state=str(trial.state(workers)), weights=edited, workers=workers)
    answer = trial.session.ask(job)
    if "error" in answer:
        return Outcome("no", answer["error"])
    after: Batches = answer["ids"]
    found = [*trial.straight[workers]["ids"][:KILLED_AFTER], *after]
    twice, skipped = repeated(trial, found), passed_over(trial, found)
    told = f"{twice} come twice, {skipped} are passed over, of {sum(map(len, found))}"
    risen = {each for each, (code, _) in trial.ids.items() if code in rising}
    share = sum(each in risen for each in chain.from_iterable(after)) / sum(map(len, after))
    before, wanted = (sum(w[code] for code in rising) for w in (weights, edited))
    if share < (before + wanted) / 2:
        return Outcome("no", f"the new weights have no effect; {told}")
    if not twice and not skipped:
        return Outcome("yes", told)
    control = trial.session.ask(trial.job(len(found), workers=workers))
    if "error" in control:
        return Outcome("no", told)
    usual = repeated(trial, control["ids"]), passed_over(trial, control["ids"])
    told += f"; without the edit {usual[0]} and {usual[1]}"
    return Outcome("partly" if twice <= usual[0] and skipped <= usual[1] else "no", told)


def cut_shard(trial: Trial) -> Outcome:
    """A shard of the largest language is cut; a tar at a border of its members, where no format
    error shows."""
    return _damaged(trial, "cut", cut)


def replaced_shard(trial: Trial) -> Outcome:
    """A shard holds other tokens in the place of some, at equal length."""
    source = Source(trial.data.folder, trial.data.sequence_length, SHARD_SEQUENCES)
    sequences = source.sequences(largest(trial.data))
    return _damaged(trial, "replaced", lambda file: replace_tokens(file, sequences))


def _damaged(trial: Trial, name: str, damage: Callable[[Path], bool]) -> Outcome:
    folder, code = trial.session.work / name, largest(trial.data)
    shutil.copytree(trial.folder, folder)
    if not any(damage(file) for file in data_files(folder, code)):
        return Outcome("no", "nothing to damage was found")
    cache = trial.session.work / f"{name}-cache"
    cache.mkdir()
    fetched = trial.session.ask(trial.job(trial.long, folder, cache=str(cache)))
    outcome = _detected(trial, fetched, code)
    if outcome.kept != "yes":
        return outcome
    in_place = _detected(trial, trial.session.ask(trial.job(trial.long, folder)), code)
    if in_place.kept == "yes":
        return outcome
    return together({"when fetched to a cache": outcome, "read in place": in_place})


def _detected(trial: Trial, answer: Answer, code: str) -> Outcome:
    if answer.get("late"):
        return Outcome("no", f"hangs: {answer['error']}")
    if "error" in answer:
        return Outcome("yes", answer["error"])
    delivered = set(chain.from_iterable(answer["ids"]))
    foreign = sum(each not in trial.ids for each in chain.from_iterable(answer["ids"]))
    absent = sum(each not in delivered for each, (of, _) in trial.ids.items() if of == code)
    told = f"a pass and a half without a word: {absent} of {trial.data.sequences[code]} never came"
    return Outcome("no", f"{told}, {foreign} wrong ones did")


def largest(data: Neutral) -> str:
    """The language with the most sequences."""
    return max(data.sequences, key=lambda code: (data.sequences[code], code))


def data_files(folder: Path, code: str) -> list[Path]:
    """The data files of a language, largest first: what is not an index, a table or a manual."""
    found = [
        path
        for path in folder.rglob("*")
        if path.suffix in {".tar", ".mds", ".bin", ".arrow"} and code in path.parts
    ]
    kept = [path for path in found if "heldout" not in path.parts]
    return sorted(kept, key=lambda path: (-path.stat().st_size, path))


def cut(file: Path) -> bool:
    """Cuts a file in half; a tar where a sample begins."""
    size = file.stat().st_size // 2
    if file.suffix == ".tar":
        with tarfile.open(file) as tar:
            borders = [member.offset for member in tar if member.offset]
        if not borders:
            return False
        size = min(borders, key=lambda border: abs(border - size))
    with open(file, "r+b") as opened:
        opened.truncate(size)
    return True


def replace_tokens(file: Path, sequences: np.ndarray) -> bool:
    """Turns the tokens of every sequence that lies in a file in one piece around; True if any."""
    data, found = file.read_bytes(), False
    for dtype in ("<u2", "<u4", "<i8"):
        for tokens in sequences:
            old = tokens.astype(dtype).tobytes()
            if old in data:
                data, found = data.replace(old, tokens[::-1].astype(dtype).tobytes()), True
        if found:
            break
    file.write_bytes(data)
    return found


def pure_order(trial: Trial) -> Outcome:
    """The batch of a step depends on the seed and the step alone: not on workers or ranks."""
    straight = trial.straight[0]
    if "error" in straight:
        return Outcome("no", straight["error"])
    outcomes = {}
    for name, answer in {
        "a second run": trial.again,
        "2 workers": trial.straight[WORKERS],
        "2 processes": trial.ranks,
    }.items():
        if "error" in answer:
            outcomes[name] = Outcome("no", answer["error"])
            continue
        expected = straight["ids"][: len(answer["ids"])]
        off = differing(expected, answer["ids"])
        told = f"{off} of {sum(map(len, expected))} sequences in other steps"
        outcomes[name] = Outcome("no", told) if off else Outcome("yes", "the same")
    return together(outcomes)


def fair_share(trial: Trial) -> Outcome:
    """After every batch each language has its share of what was read, within one sequence."""
    straight = trial.straight[0]
    if "error" in straight:
        return Outcome("no", straight["error"])
    weights, read, worst = trial.data.natural_weights, Counter[str](), (0.0, "")
    total = 0
    for batch in straight["ids"]:
        total += len(batch)
        read.update(trial.ids[each][0] for each in batch if each in trial.ids)
        off, code = max((abs(read[c] - w * total), c) for c, w in weights.items())
        worst = max(worst, (off, code))
    rarest = min(weights, key=lambda code: (weights[code], code))
    told = f"off by up to {worst[0]:.2f} ({worst[1]}); {rarest}: {read[rarest]} sequences, "
    told += f"its share is {weights[rarest] * total:.1f}"
    return Outcome("yes" if worst[0] < 1 else "no", told)


def together(parts: Mapping[str, Outcome]) -> Outcome:
    """Yes if all are, no if none is; what was seen where they differ."""
    kept = {part.kept for part in parts.values()}
    if len({part.told for part in parts.values()}) == 1:
        told = next(iter(parts.values())).told
    else:
        told = "; ".join(f"{name}: {part.told}" for name, part in parts.items())
    return Outcome(kept.pop() if len(kept) == 1 else "partly", told)


PROMISES: Mapping[str, Callable[[Trial], Outcome]] = {
    "exact resume after a kill": exact_resume,
    "resume with another world size": other_world,
    "resume with other workers": other_workers,
    "edited mixture, nothing twice or skipped": edited_mixture,
    "cut shard is detected": cut_shard,
    "replaced shard of equal length is detected": replaced_shard,
    "order depends on seed and step alone": pure_order,
    "a rare language gets its share within one": fair_share,
}


def try_all(trial: Trial, progress: Callable[[str], object] = lambda _: None) -> dict[str, Outcome]:
    """Every promise's outcome for one peer."""
    error = trial.prepare()
    outcomes = {}
    for promise, test in PROMISES.items():
        progress(f"{trial.session.title}: {promise}")
        try:
            outcomes[promise] = Outcome("no", error) if error else test(trial)
        except Exception as problem:
            told = f"the test failed: {type(problem).__name__}: {problem}"
            outcomes[promise] = Outcome("no", told)
    return outcomes


def kept(outcomes: Sequence[Outcome]) -> int:
    """How many are kept in full."""
    return sum(outcome.kept == "yes" for outcome in outcomes)
