"""From runs to lines of shards: which lines there are, and the tasks that pack them.

Each stage is a list of tasks, a pure function of the corpus and the settings. Read next:
`reading.py` (the stage before), `tasks.py` (what a task does), `execution.py` (how tasks are run).
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..config import DataConfig
from ..errors import DataError
from ..manifest import LanguageEntry, Source
from ..shards import Shard, ShardSet, write_table
from ..tokenizer import Tokenizer
from .documents import Corpus
from .execution import run_tasks
from .progress import stage_progress
from .reading import Job, Reading, check_lengths
from .runs import bucket_count
from .tasks import HELDOUT, DeriveTask, PackTask


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Documents that become one line of tokens, in runs."""

    name: str
    """The source's name, or HELDOUT."""
    source: Source | None
    """The source without its shards; None for held-out documents."""
    language: str
    """Language code."""
    folder: str
    """Of its shards."""
    readers: tuple[str, ...]
    """Names of the tasks whose runs hold it."""
    documents: int
    """Its documents."""
    text_bytes: int
    """UTF-8 bytes of their text."""


_NO_SHARDS = write_table(Path(), "", ())


def text_lines(job: Job, reading: Reading) -> list[Line]:
    """The lines of the corpus as it is: sources by copies, then held-out documents, by language.

    In the same order whichever document comes first in a file.
    """
    lines = []
    for code in sorted(job.corpus.files):
        found = reading.lines[code]
        names = [name for name in found if name != HELDOUT] or [job.source_of[code]]
        for name in [*names, HELDOUT] if code in job.heldout else names:
            documents, text_bytes, copies = found.get(name, (0, 0, 1))
            source = Source(
                name=name, language=code, languages=(code,), copies=copies, shards=_NO_SHARDS
            )
            copied = name.removeprefix(job.source_of[code])
            place = f"heldout/{code}" if name == HELDOUT else f"train/{code}{copied}"
            lines.append(
                Line(
                    name=name,
                    source=None if name == HELDOUT else source,
                    language=code,
                    folder=job.folder + place,
                    readers=tuple(reading.readers[code]),
                    documents=documents,
                    text_bytes=text_bytes,
                )
            )
    return lines


def derived_lines(job: Job) -> list[Line]:
    """Writes the documents of the derived sources, and gives their lines; raises DataError."""
    if not job.config.derived:
        return []
    from ..transforms.derive import declared_languages, spec

    tasks = []
    for name, transform in sorted(job.config.derived.items()):
        read = [c for c in job.corpus.files if c in (transform.language, transform.other)]
        tasks.append(
            DeriveTask(
                corpus=job.corpus,
                source=f"{name}@{job.set_name}" if job.set_name else name,
                derived=name,
                transform=transform,
                size=sum(p.stat().st_size for code in read for p in job.corpus.files[code]),
            )
        )
    with stage_progress(job.console, "derive", sum(task.size for task in tasks)) as step:
        results = run_tasks("derive", tasks, job.staging, job.config, step)
    lines = []
    for task, result in zip(tasks, results, strict=True):
        ((documents, text_bytes, _),) = result["lines"].values()
        if not documents:
            raise DataError(
                f"data.derived.{task.derived}: no document of {task.language} gives any: correct "
                "its settings, or take it out"
            )
        source = Source(
            name=task.source,
            language=task.language,
            languages=declared_languages(task.transform),
            transform=spec(task.transform),
            shards=_NO_SHARDS,
        )
        lines.append(
            Line(
                name=task.source,
                source=source,
                language=task.language,
                folder=f"{job.folder}train/{task.derived}",
                readers=(task.name,),
                documents=documents,
                text_bytes=text_bytes,
            )
        )
    return lines


def check_derived(corpus: Corpus) -> None:
    """Checks the settings of derived sources before anything is read; raises DataError."""
    if corpus.config.derived:
        from ..transforms.derive import check

        for name, transform in sorted(corpus.config.derived.items()):
            check(name, transform, sorted(corpus.files))


def pack_lines(
    job: Job, lines: Sequence[Line], tokenizer: Tokenizer, folder: Path
) -> dict[str, tuple[tuple[Source, ...], ShardSet]]:
    """Writes the lines' shards: language code -> its sources, its held-out shards.

    `folder` holds the tokenizer, for the processes that do it. Raises OSError (a full disk).
    """
    tasks = [
        task
        for line in lines
        for task in _pack_tasks(job, line, tokenizer.sha256, folder.resolve())
    ]
    with stage_progress(job.console, "shards", sum(task.size for task in tasks)) as step:
        results = run_tasks("pack", tasks, job.staging, job.config, step)
    shards: dict[str, list[Shard]] = {line.folder: [] for line in lines}
    for task, result in zip(tasks, results, strict=True):
        shards[task.folder].extend(Shard(**fields) for fields in result["shards"])
    packed: dict[str, tuple[tuple[Source, ...], ShardSet]] = {}
    for line in lines:
        table = write_table(job.staging, f"{line.folder}/shards.jsonl", shards[line.folder])
        sources, heldout = packed.get(line.language, ((), _NO_SHARDS))
        if line.source is None:
            heldout = table
        else:
            sources = (*sources, replace(line.source, shards=table))
        packed[line.language] = sources, heldout
    return packed


def check_entries(languages: Mapping[str, LanguageEntry], config: DataConfig) -> None:
    """Every language must hold a training sequence of its text as it is; raises DataError."""
    check_lengths(
        {
            code: max((s.shards.tokens for s in entry.sources if not s.transform), default=0)
            for code, entry in languages.items()
        },
        config,
    )


def _pack_tasks(job: Job, line: Line, sha256: str, folder: Path) -> list[PackTask]:
    config = job.config
    heldout = line.source is None
    buckets = bucket_count(line.text_bytes, line.documents, config.bucket_bytes)
    # Held-out documents are few, and where they end is known only when they are written.
    width = buckets if heldout else 1
    return [
        PackTask(
            line=line.name,
            language=line.language,
            folder=line.folder,
            readers=line.readers,
            first=first,
            stop=first + width,
            buckets=buckets,
            most=config.heldout_documents if heldout else None,
            shard_tokens=config.shard_tokens,
            tokenizer=folder.resolve(),
            tokenizer_sha256=sha256,
            threads=_threads(config),
            size=line.text_bytes // buckets * width,
        )
        for first in range(0, buckets, width)
    ]


def _threads(config: DataConfig) -> int | None:
    if config.curation.executor == "slurm":
        return config.curation.slurm.cpus
    cores = os.cpu_count() or 1
    return None if config.prepare_workers == 1 else max(1, cores // config.prepare_workers)
