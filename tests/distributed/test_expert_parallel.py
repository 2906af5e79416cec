"""Expert parallelism on four processes is the reference, and a run of one process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ..conftest import Command, Prepared, environment, run_settings, train_losses

EXPERT = "{{trunk_width:48,expert_width:16,router:{}}}"
SETTINGS = (
    f"model.layer_plan=[{EXPERT.format('prior')},{{trunk_width:64}},{EXPERT.format('topk')}]",
    "model.routing.shared_experts=1", "model.routing.experts_per_family=24",
    "model.routing.family_experts={balto_slavic:40}",
    "model.routing.top_k=1", "model.routing.normalised=false", "model.routing.tag_dropout=0",
    "model.routing.prior_smoothing=0", "model.routing.expert_masking=0.2",
    "model.routing.output_masking=0.1", "model.routing.z_loss=0.001", "data.slot_sequences=1",
    "logging.samples_every=0", "run.steps=8",
)  # fmt: skip
"""A token uses one of 113 experts, hosts share families, and some families miss a step."""


def test_outputs_and_gradients_are_the_references_on_all_tokens(tmp_path: Path) -> None:
    script = str(Path(__file__).with_name("expert_parallel_parts.py"))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"]
    subprocess.run([*launcher, script, str(tmp_path)], env=environment(), check=True, timeout=120)
    ranks = [json.loads((tmp_path / f"rank-{rank}").read_text()) for rank in range(4)]
    # Seven experts on four processes: 1, 2, 2, 2; each process chose the expert of its number.
    rows = [
        [[2, 0, 0, 0], [2, 0, 0, 0], [0, 0]],
        [[0, 2, 0, 0], [0, 2, 2, 0], [0, 0, 1, 1]],
        [[0, 2, 0, 0], [0, 0, 0, 2], [0, 0]],
        [[0, 0, 2, 0], [0, 0, 0, 0], []],
    ]
    assert [rank.pop("rows") for rank in ranks] == rows
    for rank in ranks:
        assert rank.pop("without gradients") == [3, 16]
        assert len(rank) == 15
        for name, error in rank.items():
            assert error < (5e-6 if "float32" in name else 3e-2), name


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """Weights and optimiser state of a run's last checkpoint."""
    (folder,) = (run / "checkpoints").glob("step-*")
    files = [file for file in folder.glob("*.safetensors") if not file.name.startswith("rng")]
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def test_losses_weights_and_optimiser_state_are_those_of_one_process(
    prepared: Prepared, xylem: Command, tmp_path: Path
) -> None:
    layouts = {"one": (), "expert 4": ("expert=4",), "tensor 2": ("expert=2", "tensor=2")}
    for name, layout in layouts.items():
        chosen = [f"engine.layout.{size}" for size in layout]
        settings = run_settings(prepared, tmp_path, name, *SETTINGS, *chosen)
        done = xylem("pretrain", *settings, processes=4 if layout else 1)
        assert done.returncode == 0, done.stderr
    expected = tensors(tmp_path / "one")
    for name in ("expert 4", "tensor 2"):
        losses = train_losses(tmp_path / "one")
        assert train_losses(tmp_path / name) == pytest.approx(losses, rel=1e-5)
        found = tensors(tmp_path / name)
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            scale = float(tensor.float().abs().max()) or 1.0
            worst = float((found[key].float() - tensor.float()).abs().max())
            assert worst <= 2e-5 * scale, (name, key)
