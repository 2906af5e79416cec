"""Token routing over several processes: one process's losses, and its balance to the bit."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from ..conftest import Command, Prepared, run_settings, train_losses

EXPERT = "{trunk_width:48,expert_width:16,router:prior}"
SETTINGS = (
    f"model.layer_plan=[{EXPERT},{{trunk_width:64}},{EXPERT}]",
    "model.routing.shared_experts=1",
    "model.routing.expert_masking=0.2",
    "model.routing.output_masking=0.1",
    "model.routing.tag_dropout=0.3",
    "model.routing.gate=true",
    "model.routing.gate_budget=0.6",
    "model.routing.gate_dropout=0.1",
    "model.routing.sequence_loss=0.01",
    "model.routing.global_loss=0.01",
    "model.routing.z_loss=0.001",
    "run.steps=8",
)
STATE = ("balance", "load", "budget_pull")


def state(run: Path) -> dict[str, list[float]]:
    """What counts of the global batch moved, by canonical name."""
    return {
        name: tensor.tolist()
        for file in (run / "checkpoints" / "step-8").glob("[ft]*.safetensors")
        for name, tensor in load_file(file).items()
        if name.endswith(STATE)
    }


@pytest.mark.parametrize("balance", ["bias", "quantile"])
def test_processes_and_micro_batches_change_neither_losses_nor_balance(
    balance: str, prepared: Prepared, xylem: Command, tmp_path: Path
) -> None:
    runs = []
    for name, processes, more in (("one", 1, "4"), ("two", 2, "1")):
        settings = (*SETTINGS, f"model.routing.balance={balance}", f"engine.micro_slots={more}")
        done = xylem(
            "pretrain", *run_settings(prepared, tmp_path, name, *settings), processes=processes
        )
        assert done.returncode == 0, done.stderr
        runs.append(tmp_path / name)
    one, two = runs
    assert train_losses(two) == pytest.approx(train_losses(one), rel=1e-5)
    moved = state(one)
    assert state(two) == moved
    assert len(moved) == 2 * (2 * 5 + 4)  # four families and the shared experts, in two layers
    assert all(any(values) for name, values in moved.items() if "shared" in name)
