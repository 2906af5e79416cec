"""`xylem pretrain engine=megatron`: a run like any other, and one checkpoint for all engines."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ..conftest import Command, Prepared, environment, run_settings, train_losses

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("megatron") is None, reason="needs megatron-core"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU shim is for machines without"),
]


def megatron(*settings: str, processes: int) -> str:
    """Runs `xylem pretrain engine=megatron` and returns what it said."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = ["-m", "tests.distributed.megatron_command", "pretrain", "engine=megatron"]
    done = subprocess.run(
        [sys.executable, *launcher, *command, *settings],
        cwd=Path(__file__).resolve().parents[2], env=environment(TORCHDYNAMO_DISABLE="1"),
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout + done.stderr


MORE = ("run.steps=6", "checkpoint.every=3", "checkpoint.keep=5")


@pytest.fixture(scope="module")
def torch_run(prepared: Prepared, xylem: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the default engine on one process."""
    root = tmp_path_factory.mktemp("runs")
    done = xylem("pretrain", *run_settings(prepared, root, "torch", *MORE), timeout=400)
    assert done.returncode == 0, done.stderr
    return root / "torch"


def test_a_run_begun_by_torch_is_finished_by_megatron(
    prepared: Prepared, torch_run: Path, tmp_path: Path
) -> None:
    settings = run_settings(prepared, tmp_path, "megatron", *MORE)
    halfway = torch_run / "checkpoints" / "step-3"
    megatron(*settings, "engine.layout.tensor=2", f"checkpoint.resume={halfway}", processes=2)
    ends = [run / "checkpoints" / "step-6" for run in (torch_run, tmp_path / "megatron")]
    files = sorted(file.name for file in ends[0].glob("*.safetensors"))
    assert files == sorted(file.name for file in ends[1].glob("*.safetensors"))
    for name in files:
        ours, theirs = (load_file(end / name) for end in ends)
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            if name != "rng.safetensors":
                assert (value - theirs[key]).norm() <= 1e-5 * value.norm(), key


def test_a_megatron_run_has_the_losses_of_torch(
    prepared: Prepared, torch_run: Path, tmp_path: Path
) -> None:
    settings = run_settings(prepared, tmp_path, "megatron", *MORE)
    megatron(*settings, "engine.layout.pipeline=2", "engine.optimizer=zero", processes=2)
    expected = train_losses(torch_run)
    assert train_losses(tmp_path / "megatron") == pytest.approx(expected, rel=1e-5)
