"""What processes must agree on, with two of them over gloo: leaving, refusals, equal starts."""

import subprocess
import sys
from pathlib import Path

import pytest

from xylem.train.errors import Preempted, UserError
from xylem.train.leaving import EXIT, SAVE

from ..conftest import Command, Prepared, environment, run_settings


def on_two_processes(part: str, folder: Path) -> list[str]:
    """What a part of agreement_parts.py returned on each of two processes."""
    script = str(Path(__file__).with_name("agreement_parts.py"))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*launcher, script, part, str(folder)], env=environment(), check=True)
    return [(folder / f"rank-{rank}").read_text() for rank in range(2)]


def test_a_signal_to_one_process_is_every_process_cause(tmp_path: Path) -> None:
    assert on_two_processes("signal_one", tmp_path) == ["None SIGUSR1", "None SIGUSR1"]
    assert Preempted(3, "SIGUSR1").exit_code == 75
    assert Preempted(3, EXIT).exit_code == 0


def test_triggers_reach_every_process_once_and_stale_ones_are_cleared(tmp_path: Path) -> None:
    (tmp_path / "triggers").mkdir()
    (tmp_path / EXIT).touch()
    expected = f"{SAVE} None {EXIT} None"
    assert on_two_processes("triggers", tmp_path) == [expected, expected]


def test_another_config_on_one_process_is_refused_by_both(tmp_path: Path) -> None:
    said = on_two_processes("differ", tmp_path)
    assert said[0] == said[1] and "rank 1 has another config than rank 0" in said[0]


def test_a_leaders_refusal_is_every_process_refusal(
    prepared: Prepared, xylem: Command, tmp_path: Path
) -> None:
    settings = run_settings(prepared, tmp_path, "run", "run.steps=1")
    assert xylem("pretrain", *settings).returncode == 0
    done = xylem("pretrain", *settings, "optim.weight_decay=0.3", processes=2)
    told = [line for line in done.stderr.splitlines() if line.startswith("xylem pretrain:")]
    # The launcher may end the second process before it has spoken; neither may blame the network.
    assert told and all("holds a run of another config" in line for line in told)
    assert "DistBackendError" not in done.stderr and "Connection" not in done.stderr


def test_a_run_is_trained_by_one_command_at_a_time(tmp_path: Path) -> None:
    from xylem.train.run_folder import run_lock

    refused = pytest.raises(UserError, match="another process trains this run")
    with run_lock(tmp_path), refused, run_lock(tmp_path):
        pass
    with run_lock(tmp_path):
        pass
