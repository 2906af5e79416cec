"""Resume: bitwise after kill -9, twice; within 1e-6 with another number of processes."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from ..conftest import (
    Command,
    Prepared,
    environment,
    run_settings,
    train_losses,
    xylem_command,
)

STEPS = 60


@pytest.fixture(scope="module")
def uninterrupted(
    prepared: Prepared, xylem: Command, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    root = tmp_path_factory.mktemp("uninterrupted")
    settings = run_settings(prepared, root, "whole", f"run.steps={STEPS}", "checkpoint.every=10")
    done = xylem("pretrain", *settings)
    assert done.returncode == 0, done.stderr
    return root / "whole"


def kill_at(command: list[str], run: Path, step: int) -> None:
    """Starts a command and kills it hard once its metrics reach a step."""
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    metrics, deadline = run / "metrics.jsonl", time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        if lines and lines[-1].endswith("}") and json.loads(lines[-1])["step"] >= step:
            break
        time.sleep(0.002)
    assert process.poll() is None, "the run ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_killed_twice_and_resumed_equals_uninterrupted_bit_for_bit(
    optimiser: str, prepared: Prepared, xylem: Command, uninterrupted: Path, tmp_path: Path
) -> None:
    more = (f"run.steps={STEPS}", "checkpoint.every=10", f"optim={optimiser}")
    whole = uninterrupted
    if optimiser != "adamw":
        done = xylem("pretrain", *run_settings(prepared, tmp_path, "whole", *more))
        assert done.returncode == 0, done.stderr
        whole = tmp_path / "whole"
    settings = run_settings(prepared, tmp_path, "killed", *more)
    command, run = xylem_command("pretrain", *settings), tmp_path / "killed"
    kill_at(command, run, 13)
    kill_at(command, run, 34)
    resumed_from = (run / "checkpoints" / "latest").read_text().strip()
    last = xylem("pretrain", *settings)
    assert last.returncode == 0, last.stderr
    assert f"from {run / 'checkpoints' / resumed_from}" in last.stdout
    assert train_losses(run) == train_losses(whole)
    for file in (whole / "checkpoints" / f"step-{STEPS}").glob("*.safetensors"):
        other = run / "checkpoints" / f"step-{STEPS}" / file.name
        assert file.read_bytes() == other.read_bytes(), file.name


@pytest.mark.parametrize("processes", [2, 4])
def test_resumed_with_another_number_of_processes_agrees_within_1e_6(
    processes: int, prepared: Prepared, xylem: Command, uninterrupted: Path, tmp_path: Path
) -> None:
    settings = run_settings(prepared, tmp_path, "elastic", f"run.steps={STEPS}")
    shutil.copytree(uninterrupted, tmp_path / "elastic")
    run = tmp_path / "elastic"
    checkpoints = run / "checkpoints"
    # Go back to the older of the two kept checkpoints, as if the rest had never been.
    (checkpoints / "latest").write_text("step-50\n")
    shutil.rmtree(checkpoints / "step-60")
    config = (run / "config.yaml").read_text().replace("name: whole", "name: elastic")
    (run / "config.yaml").write_text(config)
    done = xylem("pretrain", *settings, processes=processes)
    assert done.returncode == 0, done.stderr
    assert "resumed at step 50" in done.stdout
    assert train_losses(run) == pytest.approx(train_losses(uninterrupted), rel=1e-6)
