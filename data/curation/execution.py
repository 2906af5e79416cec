"""How does a stage run: as processes of this machine, or as a Slurm job array?

A stage is a datatrove pipeline cut into tasks. A task that ends leaves a completion marker, and a
second run repeats only tasks without one. What a step must do for that: write each file under
another name and rename it, so that a killed task leaves nothing half-written (`language_files.py`).
This file needs datatrove (the extra `curation`). Read next: `pipeline.py`, which orders the stages.
"""

import contextlib
import copy
import multiprocessing
import multiprocessing.connection
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from pathlib import Path
from typing import Any

from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from loguru import logger

from ..errors import DataError
from .config import CurationConfig, SlurmConfig

_ERRORS = "errors"
_JOB = "job_id"
_PRELOADED = ("filtering", "duplicates", "contamination", "writing")
"""Modules that a server imports once for the worker processes of all stages."""
_TASK_OF_AN_ARRAY = "SLURM_ARRAY_TASK_ID"


class StageFailed(RuntimeError):
    """A stage ended without all of its tasks; the message names the stage and its log."""


def run_stage(
    name: str, pipeline: list[Any], tasks: int, config: CurationConfig, work: Path
) -> None:
    """Runs every task of a stage that has not been completed, and returns when all have.

    `pipeline` holds datatrove steps or callables `(documents, rank, world_size)`; both are pickled
    for other processes. Logs and completion markers stand in `work/logs/<name>`. Raises DataError
    (the user's mistake, found by a task), OSError (a full disk), StageFailed (anything else).
    """
    logs = work / "logs" / name
    if config.executor == "slurm":
        _run_on_slurm(name, slurm_executor(name, pipeline, tasks, config, work), logs, config.slurm)
        return
    workers = tasks if config.workers == -1 else min(config.workers, tasks)
    local = LocalStage(
        pipeline=pipeline, tasks=tasks, workers=workers, logging_dir=str(logs), skip_completed=True
    )
    try:
        local.run()
    except (DataError, OSError):
        raise
    except BrokenProcessPool:
        raise StageFailed(
            f"curation stage {name!r} failed: a process of it was killed (out of memory? then set "
            f"curation.workers below {workers}); see {logs}/logs, then run the same command again"
        ) from None
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise StageFailed(f"curation stage {name!r} failed: {what}; see {logs}/logs") from error


def slurm_executor(
    name: str, pipeline: list[Any], tasks: int, config: CurationConfig, work: Path
) -> "SlurmStage":
    """The executor that submits a stage as a job array; nothing is submitted yet."""
    slurm = config.slurm
    first_on_path = shlex.quote(str(Path(sys.executable).parent))
    return SlurmStage(
        pipeline=pipeline,
        tasks=tasks,
        workers=config.workers,
        time=slurm.time,
        partition=slurm.partition,
        cpus_per_task=slurm.cpus,
        mem_per_cpu_gb=slurm.memory_gb,
        job_name=f"curate-{name}",
        qos=slurm.qos,
        env_command=slurm.setup or f"export PATH={first_on_path}:$PATH",
        sbatch_args=({"account": slurm.account} if slurm.account else {}) | slurm.arguments,
        max_array_size=slurm.max_array_size,
        logging_dir=str((work / "logs" / name).resolve()),
        skip_completed=True,
    )


class LocalStage(LocalPipelineExecutor):
    """datatrove's local executor, on a pool that notices when a process of it is killed.

    datatrove's own waits for ever for a task whose process ran out of memory.
    """

    def run(self) -> None:
        """Runs the tasks that have not been completed; the first error ends the stage."""
        ranks = self.get_incomplete_ranks()
        if not ranks:
            return
        if self.workers == 1:
            for rank in ranks:
                run_task(self, rank)
            return
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([f"{__package__}.{name}" for name in _PRELOADED])
        with ProcessPoolExecutor(min(self.workers, len(ranks)), mp_context=context) as pool:
            running = [pool.submit(run_task, self, rank) for rank in ranks]
            try:
                for done in as_completed(running):
                    done.result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise


def run_task(stage: LocalStage, rank: int) -> None:
    """Runs one task of a stage, in this process."""
    _end_with_parent()
    with _quiet():
        copy.deepcopy(stage)._run_for_rank(rank, rank)


class SlurmStage(SlurmPipelineExecutor):
    """A Slurm executor whose tasks leave a user's mistake where the waiting command finds it."""

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        try:
            return super()._run_for_rank(rank, local_rank, node_rank)
        except DataError as error:
            with self.logging_dir.open(f"{_ERRORS}/{rank:05d}", "w") as file:
                file.write(str(error))
            raise

    def launch_merge_stats(self) -> None:
        """No job to merge datatrove's statistics: the report counts what was dropped itself."""


def _run_on_slurm(name: str, executor: SlurmStage, logs: Path, slurm: SlurmConfig) -> None:
    """Submits a stage, or finds it submitted, and waits until no job of it is left."""
    if _TASK_OF_AN_ARRAY in os.environ:
        raise DataError(
            f"{_TASK_OF_AN_ARRAY} is set: curation.executor=slurm submits jobs, so it cannot run "
            "as a task of a job array: start it from a login node or a plain job"
        )
    if not executor.get_incomplete_ranks():
        return
    job_file = logs / _JOB
    job = job_file.read_text() if job_file.exists() else ""
    if not (job and _is_queued(job)):
        for error in (logs / _ERRORS).glob("*"):
            error.unlink()
        try:
            with _quiet():
                executor.run()
        except FileNotFoundError:
            raise DataError(
                "sbatch: no such command: curation.executor=slurm runs where jobs can be "
                "submitted; use curation.executor=local elsewhere"
            ) from None
        except subprocess.CalledProcessError as error:
            raise DataError(
                f"sbatch refused curation stage {name!r} (exit code {error.returncode}, its reason "
                f"is above): correct curation.slurm, see {logs}/launch_script.slurm"
            ) from None
        job = str(executor.job_id)
        job_file.write_text(job)
    while executor.get_incomplete_ranks() and _is_queued(job):
        time.sleep(slurm.poll_seconds)
    # A shared file system may show a marker later than the queue forgets the job.
    patience = time.monotonic() + 3 * slurm.poll_seconds
    while executor.get_incomplete_ranks() and time.monotonic() < patience:
        time.sleep(slurm.poll_seconds / 4)
    missing = executor.get_incomplete_ranks()
    if not missing:
        return
    for error_file in sorted((logs / _ERRORS).glob("*")):
        raise DataError(error_file.read_text())
    raise StageFailed(
        f"curation stage {name!r} failed: Slurm job {job} ended without {len(missing)} of "
        f"{executor.tasks} tasks; see {logs}/slurm_logs, then run the same command again"
    )


def _is_queued(job: str) -> bool:
    """Whether Slurm still has a job to run or running; it forgets finished ones."""
    shown = subprocess.run(["squeue", "-h", "-j", job], capture_output=True, text=True, check=False)
    return shown.returncode == 0 and bool(shown.stdout.strip())


@cache
def _end_with_parent() -> None:
    """Ends this process when the command that started it is killed: nobody writes after that."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """While it runs, datatrove's log messages do not go to the terminal."""
    logger.remove()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield
    logger.remove()
