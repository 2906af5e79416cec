"""From a corpus to sorted runs, every file read once, and to a tokenizer, where none is given.

Read next: `building.py` (from runs to lines of shards), `tasks.py`, `sample.py`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ..config import DataConfig
from ..errors import DataError
from ..sources import ReadCounts
from ..staging import WORK_FOLDER
from ..tokenizer import Tokenizer, sample_budgets, train_tokenizer
from .documents import Corpus
from .execution import Result, run_tasks
from .progress import say, stage_progress
from .sample import sample_texts
from .tasks import HELDOUT, SAMPLE_NAME, ReadTask

_GROUP_BYTES = 256_000_000
"""Files of a language are read in groups of about this size, a task each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A corpus on its way to shards."""

    corpus: Corpus
    """The text."""
    staging: Path
    """Where everything is written."""
    console: Console
    """Where progress is shown."""
    source_of: Mapping[str, str]
    """Language code -> name of the source that its text becomes."""
    heldout: Collection[str]
    """Languages whose held-out documents are written; the others have theirs already."""
    set_name: str = ""
    """Name of the shard set that an existing folder is extended by."""

    @property
    def config(self) -> DataConfig:
        """The settings."""
        return self.corpus.config

    @property
    def folder(self) -> str:
        """Where the lines lie in the prepared folder, with the slash."""
        return f"sets/{self.set_name}/" if self.set_name else ""


@dataclass(frozen=True, slots=True)
class Reading:
    """What reading the corpus gave."""

    readers: Mapping[str, Sequence[str]]
    """Language code -> names of its tasks, in the order of the files."""
    counts: Mapping[str, ReadCounts]
    """Language code -> what was come across."""
    lines: Mapping[str, Mapping[str, tuple[int, int, int]]]
    """Language code -> line -> documents, bytes, copies; sources by copies."""

    def training(self, code: str) -> list[tuple[int, int]]:
        """Documents and bytes of each training line of a language."""
        return [(d, n) for name, (d, n, _) in self.lines[code].items() if name != HELDOUT]


def read_corpus(job: Job, *, sample: bool, runs: bool = True) -> Reading:
    """Reads every file once; raises DataError for bad text and languages that are too short."""
    tasks = [
        ReadTask(
            config=job.config,
            language=code,
            number=number,
            paths=tuple(group),
            size=sum(path.stat().st_size for path in group),
            source=job.source_of[code],
            heldout=code in job.heldout,
            runs=runs,
            sample=sample,
        )
        for code in sorted(job.corpus.files)
        for number, group in enumerate(_groups(job.corpus.files[code]))
    ]
    with stage_progress(job.console, "read", sum(task.size for task in tasks)) as step:
        reading = _reading(tasks, run_tasks("read", tasks, job.staging, job.config, step))
    if runs:
        _report_counts(reading, job.console)
        # A token stands for one byte at least, and a document has a begin and an end token.
        most = {
            code: max((n + 2 * d for d, n in reading.training(code)), default=0)
            for code in job.corpus.files
        }
        check_lengths(most, job.config, "at most ")
    return reading


def train_on_sample(job: Job, reading: Reading, folder: Path) -> Tokenizer:
    """Trains a tokenizer on a fair sample of what was read; raises DataError."""
    config = job.config.tokenizer
    sizes = {c: sum(n for _, n in reading.training(c)) for c in job.corpus.files}
    budgets = sample_budgets(sizes, config)
    sample: dict[str, list[str]] = {}
    work = job.staging / WORK_FOLDER
    with stage_progress(job.console, "sample", sum(budgets.values())) as step:
        for code, budget in budgets.items():
            step.label(code)
            candidates = [work / name / SAMPLE_NAME for name in reading.readers[code]]
            sample[code] = list(sample_texts(candidates, budget))
            step.advance(budget)
    size = sum(budgets.values()) / 1e6
    title = f"tokenizer ({config.vocab_size} tokens from {size:.1f} MB)"
    with stage_progress(job.console, title, None):
        return train_tokenizer(sample, config, folder)


def check_lengths(tokens: Mapping[str, int], config: DataConfig, qualifier: str = "") -> None:
    """Every language must hold one training sequence and the token that follows it."""
    least = config.sequence_length + 1
    short = [f"{code} ({qualifier}{n})" for code, n in sorted(tokens.items()) if n < least]
    if short:
        raise DataError(
            f"too few training tokens: {', '.join(short)}: a sequence of "
            f"data.sequence_length={config.sequence_length} needs {least}: leave them out with "
            "data.languages, or shorten data.sequence_length"
        )


def _groups(paths: Sequence[Path]) -> list[list[Path]]:
    groups: list[list[Path]] = []
    size = _GROUP_BYTES
    for path in paths:
        if size >= _GROUP_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(path)
        size += path.stat().st_size
    return groups


def _reading(tasks: Sequence[ReadTask], results: Sequence[Result]) -> Reading:
    readers: dict[str, list[str]] = {}
    counts: dict[str, ReadCounts] = {}
    lines: dict[str, dict[str, tuple[int, int, int]]] = {}
    for task, result in zip(tasks, results, strict=True):
        readers.setdefault(task.language, []).append(task.name)
        total, more = counts.setdefault(task.language, ReadCounts()), ReadCounts(**result["counts"])
        total.documents += more.documents
        total.empty += more.empty
        total.bad += more.bad
        total.first_bad = total.first_bad or more.first_bad
        of_language = lines.setdefault(task.language, {})
        for name, (documents, size, copies) in result["lines"].items():
            before = of_language.get(name, (0, 0, copies))
            of_language[name] = before[0] + documents, before[1] + size, copies
    by_copies = {
        code: dict(sorted(found.items(), key=lambda item: item[1][2]))
        for code, found in lines.items()
    }
    return Reading(readers, counts, by_copies)


def _report_counts(reading: Reading, console: Console) -> None:
    if empty := sum(each.empty for each in reading.counts.values()):
        say(console, f"{empty} documents without text left out")
    for code, each in reading.counts.items():
        if each.bad:
            say(console, f"{code}: {each.bad} malformed lines skipped, first {each.first_bad}")
