"""How is work cut into tasks that several processes share, and of which a kill costs only some?

A task writes files of its own, then its result, atomically: the result is its completion marker. A
second run takes the results that are there and runs the other tasks again. Tasks run in this
process, in several of this machine, or, with `data.curation.executor=slurm`, as a Slurm job array
through datatrove. Read next: `tasks.py`.
"""

import fcntl
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..config import DataConfig
from ..shards import write_atomically
from ..staging import PLAN_NAME, WORK_FOLDER, WORKERS_LOCK_NAME
from .progress import StageProgress

Result = dict[str, Any]
"""What a task leaves, as JSON has it."""


class Task(Protocol):
    """A piece of work; pickled for other processes."""

    @property
    def name(self) -> str:
        """Path of its result, without suffix, in the work folder."""
        ...

    @property
    def language(self) -> str:
        """What the user sees of it."""
        ...

    @property
    def size(self) -> int:
        """Bytes, for the progress bar."""
        ...

    def run(self, staging: Path) -> Result:
        """Does the work; writes only below the staging folder, and nothing that another does."""
        ...


class ProcessDied(RuntimeError):
    """A process of `xylem prepare` was killed from outside; what is done is kept."""


def run_tasks(
    stage: str, tasks: Sequence[Task], staging: Path, config: DataConfig, step: StageProgress
) -> list[Result]:
    """The results of tasks, in their order; runs those that have none.

    Raises whatever a task raises (DataError, OSError), and ProcessDied.
    """
    waiting = [task for task in tasks if not result_path(staging, task.name).is_file()]
    step.advance(sum(task.size for task in tasks) - sum(task.size for task in waiting))
    if waiting and config.curation.executor == "slurm":
        _run_on_slurm(stage, tasks, staging, config)
    elif config.prepare_workers > 1 and len(waiting) > 1:
        _run_in_processes(waiting, staging, config.prepare_workers, step)
    else:
        for task in waiting:
            step.label(task.language)
            complete(task, staging)
            step.advance(task.size)
    return [read_result(staging, task.name) for task in tasks]


def complete(task: Task, staging: Path) -> None:
    """Runs a task and leaves its result, which says that it is complete."""
    path = result_path(staging, task.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(task.run(staging)).encode())


def read_result(staging: Path, name: str) -> Result:
    """What a completed task left."""
    result: Result = json.loads(result_path(staging, name).read_bytes())
    return result


def result_path(staging: Path, name: str) -> Path:
    """Where a task's result lies."""
    return staging / WORK_FOLDER / f"{name}.json"


def _run_in_processes(
    tasks: Sequence[Task], staging: Path, workers: int, step: StageProgress
) -> None:
    with ProcessPoolExecutor(
        min(workers, len(tasks)),
        # A forked process would inherit Arrow's and SentencePiece's threads as locks nobody opens.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin_process,
        initargs=(staging,),
    ) as pool:
        running = {pool.submit(complete, task, staging): task for task in tasks}
        try:
            for done in as_completed(running):
                done.result()
                step.label(running[done].language)
                step.advance(running[done].size)
        except BrokenProcessPool:
            raise ProcessDied(
                f"{staging}: a process of `xylem prepare` was killed (out of memory?): the same "
                "command goes on from here; a smaller data.bucket_bytes or data.prepare_workers "
                "needs less memory"
            ) from None
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _begin_process(staging: Path) -> None:
    """A worker ends at once with Ctrl-C or with its parent, and holds a lock until it has ended."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    fcntl.flock(os.open(staging / WORKERS_LOCK_NAME, os.O_RDWR | os.O_CREAT), fcntl.LOCK_SH)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


@dataclass(frozen=True, slots=True)
class _TaskOfRank:
    """A datatrove step: the rank's task, if this is still the folder that it was meant for."""

    tasks: tuple[Task, ...]
    staging: Path
    plan: bytes

    def __call__(self, documents: object, rank: int, world_size: int) -> None:
        if (self.staging / PLAN_NAME).read_bytes() != self.plan:
            raise RuntimeError(f"{self.staging}: another `xylem prepare` writes here now")
        if not result_path(self.staging, self.tasks[rank].name).is_file():
            complete(self.tasks[rank], self.staging)


def _run_on_slurm(stage: str, tasks: Sequence[Task], staging: Path, config: DataConfig) -> None:
    from ..curation.execution import run_stage  # needs datatrove, which the rest does not

    staging = staging.resolve()
    step = _TaskOfRank(tuple(tasks), staging, (staging / PLAN_NAME).read_bytes())
    run_stage(f"prepare-{stage}", [step], len(tasks), config.curation, staging / WORK_FOLDER)
