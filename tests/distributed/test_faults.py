"""Faults of one process: every other ends in time, with one line that says why.

Processes are started one by one, as srun does, so that no launcher ends the others.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from ..conftest import Prepared, environment, run_settings, xylem_command

LIMIT_MINUTES = 0.3


def start_two(commands: Sequence[Sequence[str]], folder: Path) -> list["subprocess.Popen[bytes]"]:
    """Starts a command a process; each writes to rank-N in a folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank, command in enumerate(commands):
        place = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(len(commands)),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        with (folder / f"rank-{rank}").open("wb") as out:
            env = environment(OMP_WAIT_POLICY="PASSIVE", **place)
            started.append(subprocess.Popen(command, env=env, stdout=out, stderr=out))
    return started


def ended(processes: Sequence["subprocess.Popen[bytes]"], folder: Path) -> list[tuple[int, str]]:
    """Each process's exit code and what it said."""
    codes = [process.wait(timeout=150) for process in processes]
    return [(code, (folder / f"rank-{rank}").read_text()) for rank, code in enumerate(codes)]


def last_words(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("xylem pretrain:")]


@pytest.mark.parametrize(("by", "victim"), [("SIGKILL", 1), ("SIGKILL", 0), ("SIGSTOP", 1)])
def test_a_process_that_dies_or_hangs_in_a_collective_ends_the_other(
    by: str, victim: int, prepared: Prepared, tmp_path: Path
) -> None:
    more = ("run.steps=100000", f"engine.timeout_minutes={LIMIT_MINUTES}")
    command = xylem_command("pretrain", *run_settings(prepared, tmp_path, "run", *more))
    both = start_two([command, command], tmp_path)
    try:
        metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 120
        while time.monotonic() < deadline and all(p.poll() is None for p in both):
            lines = metrics.read_text().splitlines() if metrics.exists() else []
            if len(lines) > 2 and json.loads(lines[-2])["step"] >= 2:
                break
            time.sleep(0.05)
        os.kill(both[victim].pid, getattr(signal, by))
        code = both[1 - victim].wait(timeout=60 * LIMIT_MINUTES + 60)
    finally:
        for process in both:
            process.kill()
            process.wait()
    said = (tmp_path / f"rank-{1 - victim}").read_text()
    assert code == 1, said
    (line,) = last_words(said)
    assert line == (
        "xylem pretrain: another process ended, or did not answer within 0.3 minutes "
        "(engine.timeout_minutes): its own output says why; start the same command again"
    )
    assert "Traceback" not in said


def test_a_process_of_another_version_is_refused_by_all(prepared: Prepared, tmp_path: Path) -> None:
    command = xylem_command("pretrain", *run_settings(prepared, tmp_path, "run"))
    other = (
        "import sys\n"
        "from xylem.train.__main__ import main\n"
        "from xylem.train.engines import processes\n"
        "processes.code_version = lambda: 'xylem 0.0, torch 1.0, source 0'\n"
        "main(sys.argv[1:])\n"
    )
    changed = [sys.executable, "-c", other, *command[command.index("pretrain") :]]
    for code, said in ended(start_two([command, changed], tmp_path), tmp_path):
        assert code == 2, said
        (line,) = last_words(said)
        assert "rank 1 has another version of Xylem or PyTorch than rank 0 ('xylem 0.0," in line
        assert "start every process with the same code and the same command" in line
    assert not (tmp_path / "run").exists()


def test_a_process_of_another_config_is_refused_by_all(prepared: Prepared, tmp_path: Path) -> None:
    command = xylem_command("pretrain", *run_settings(prepared, tmp_path, "run"))
    changed = [*command, "optim.weight_decay=0.3"]
    for code, said in ended(start_two([command, changed], tmp_path), tmp_path):
        assert code == 2, said
        (line,) = last_words(said)
        assert (
            "rank 1 has another config than rank 0 ('weight_decay: 0.3', not 'weight_decay: 0."
            in line
        )


def test_a_process_that_leaves_with_a_mistake_of_its_own_ends_the_other(
    prepared: Prepared, tmp_path: Path
) -> None:
    more = (f"engine.timeout_minutes={LIMIT_MINUTES}",)
    command = xylem_command("pretrain", *run_settings(prepared, tmp_path, "run", *more))
    other = (
        "import sys\n"
        "from xylem.data.errors import DataError\n"
        "from xylem.train import assembly\n"
        "from xylem.train.__main__ import main\n"
        "def lost(storage):\n"
        "    raise DataError('the prepared folder is not on this node')\n"
        "assembly.load_prepared = lost\n"
        "main(sys.argv[1:])\n"
    )
    changed = [sys.executable, "-c", other, *command[command.index("pretrain") :]]
    (first, said), (second, told) = ended(start_two([command, changed], tmp_path), tmp_path)
    assert second == 2 and "the prepared folder is not on this node" in last_words(told)[0]
    assert first in (1, 2) and len(last_words(said)) == 1, said
