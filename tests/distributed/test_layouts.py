"""Layout parity: every layout of engine=torch has the losses, norms and weights of one process.

The runs accumulate gradients, clip them, read families of uneven size, some of which miss steps,
and tie the embeddings. What is compared with is a run of one process and its golden losses.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ..conftest import Prepared, environment, run_settings, train_losses
from .test_processes import results

GOLDEN = Path(__file__).parent.parent / "golden" / "debug_losses.txt"

SLOTS = ("data.slots_per_step=8", "engine.micro_slots=1")
UNTIED = "model.tied_embeddings=false"
TOPK = (
    "model.layer_plan=[{trunk_width:64,expert_width:16,router:topk},{trunk_width:64}]",
    "model.routing.shared_experts=1", "model.routing.balance=bias",
    "model.routing.expert_masking=0.2",
)  # fmt: skip

PAIRS: dict[str, tuple[str, ...]] = {
    "data2": (),
    "shard2": ("engine.shard=full",),
    "family2": ("engine.layout.family=2",),
    "tensor2": ("engine.layout.tensor=2",),
    "pipeline2": ("engine.layout.pipeline=2",),
    "context2": ("engine.layout.context=2",),
}
"""Layouts of two processes."""
FOURS: dict[str, tuple[str, ...]] = {
    "data4": (),
    "family4": ("engine.layout.family=4",),
    "family2_shard": ("engine.layout.family=2", "engine.shard=full"),
    "family2_tensor2": ("engine.layout.family=2", "engine.layout.tensor=2"),
    "tensor2_pipeline2": ("engine.layout.tensor=2", "engine.layout.pipeline=2"),
    "context2_family2": ("engine.layout.context=2", "engine.layout.family=2"),
    "tensor2_shard": ("engine.layout.tensor=2", "engine.shard=full"),
    "pipeline2_shard": ("engine.layout.pipeline=2", "engine.shard=full"),
}
"""Layouts of four."""


def train(prepared: Prepared, root: Path, processes: int, runs: dict[str, tuple[str, ...]]) -> Path:
    """Trains runs one after the other, on processes that are started once."""
    listed = [[name, [*run_settings(prepared, root, name), *more]] for name, more in runs.items()]
    (root / "runs.json").write_text(json.dumps(listed))
    script = [str(Path(__file__).with_name("layout_parts.py")), str(root / "runs.json")]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), *script],
        env=environment(), capture_output=True, text=True, check=False, timeout=400,
    )  # fmt: skip
    traces = "Traceback".join(["", *done.stderr.split("Traceback")[1:3]])
    assert done.returncode == 0, traces[:3000]
    return root


@pytest.fixture(scope="module")
def alone(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = {"tied": (), "untied": (UNTIED, *SLOTS), "topk": TOPK}
    return train(prepared, tmp_path_factory.mktemp("alone"), 1, runs)


@pytest.fixture(scope="module")
def pairs(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    untied = {f"{name}_untied": (*more, UNTIED, *SLOTS) for name, more in PAIRS.items()}
    expert = {"expert2": (*TOPK, "engine.layout.expert=2")}
    root = tmp_path_factory.mktemp("pairs")
    return train(prepared, root, 2, {**PAIRS, **untied, **expert})


@pytest.fixture(scope="module")
def fours(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    expert = {"expert2_tensor2": (*TOPK, "engine.layout.expert=2", "engine.layout.tensor=2")}
    return train(prepared, tmp_path_factory.mktemp("fours"), 4, {**FOURS, **expert})


def same(run: Path, one: Path) -> None:
    """Losses, norms, held-out bits and the final weights of a run are another's."""
    losses, norms, heldout = results(run)
    expected = results(one)
    assert losses == pytest.approx(expected[0], rel=1e-5)
    assert norms == pytest.approx(expected[1], rel=1e-4)
    assert heldout == pytest.approx(expected[2], rel=1e-5)
    assert len(losses) == 20
    folder = run / "checkpoints" / "step-20"
    files = sorted(p.name for p in (one / "checkpoints" / "step-20").glob("*.safetensors"))
    assert sorted(p.name for p in folder.glob("*.safetensors")) == files
    for file in files:
        theirs = load_file(folder / file)
        ours = load_file(one / "checkpoints" / "step-20" / file)
        assert theirs.keys() == ours.keys()
        for name, tensor in ours.items():
            distance = torch.linalg.vector_norm((tensor - theirs[name]).double())
            assert distance <= 1e-5 * torch.linalg.vector_norm(tensor.double()), (file, name)


@pytest.mark.parametrize("name", [*PAIRS, *(f"{name}_untied" for name in PAIRS), "expert2"])
def test_two_processes_are_one(name: str, pairs: Path, alone: Path) -> None:
    kind = "untied" if "untied" in name else "topk" if "expert" in name else "tied"
    same(pairs / name, alone / kind)


@pytest.mark.parametrize("name", [*FOURS, "expert2_tensor2"])
def test_four_processes_are_one(name: str, fours: Path, alone: Path) -> None:
    same(fours / name, alone / ("topk" if "expert" in name else "tied"))


def test_losses_of_one_process_are_the_golden_ones(alone: Path) -> None:
    expected = [float(line) for line in GOLDEN.read_text().split()]
    assert train_losses(alone / "tied") == pytest.approx(expected, rel=1e-5)
