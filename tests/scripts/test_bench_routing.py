"""The routing benchmark compares like with like, and counts what it did not measure as missed."""

import json
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from xylem.scripts import bench_routing, cuda_peer_blocks, peer_blocks
from xylem.scripts.bench_routing import Measured
from xylem.scripts.peer_blocks import LOADS, Arm, Batch, Case, Load

TINY = Case(64, 32, 16, 16, 4)


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("name", ["prior", "topk"])
def test_our_routers_find_the_planted_choices(name: Any, load: Load) -> None:
    batch = peer_blocks.make_batch(TINY, load, torch.float32, "cpu")
    arm = peer_blocks.token_router(TINY, batch, name)
    seen: list[Tensor] = []
    router: Any = arm.module.router
    router.register_forward_hook(lambda module, inputs, output: seen.append(output.experts_NK))
    arm.run(batch.x_BTD)
    planted = (batch.x_BTD.flatten(0, 1) @ batch.router_ED.T) > peer_blocks.PLANTED / 2
    assert (planted.sum(-1) == TINY.top_k).all()
    assert planted.gather(-1, seen[0]).all()
    counts = planted.sum(0)
    if load == "one family":
        assert counts.tolist() == [TINY.tokens] * 4 + [0] * 12
    elif load == "zipf":
        assert counts[0] > 3 * counts[-1]


@pytest.mark.parametrize("peer", bench_routing.PEERS)
def test_peers_find_the_same_choices_eager_and_grouped(peer: str) -> None:
    batch = peer_blocks.make_batch(TINY, "uniform", torch.float32, "cpu")
    choices, outputs = [], []
    for implementation in ("eager", "grouped_mm"):
        torch.manual_seed(0)
        arm = peer_blocks.transformers_block(TINY, batch, peer, implementation)
        gate: Any = arm.module.gate
        gate.register_forward_hook(lambda module, inputs, output: choices.append(output[2]))
        outputs.append(arm.run(batch.x_BTD))
    assert torch.equal(*choices) and torch.allclose(*outputs, atol=1e-5)
    planted = (batch.x_BTD.flatten(0, 1) @ batch.router_ED.T) > peer_blocks.PLANTED / 2
    assert planted.gather(-1, choices[0]).all()


@pytest.mark.parametrize("load", LOADS)
def test_family_and_dense_have_the_active_width_and_families_the_load(load: Load) -> None:
    batch = peer_blocks.make_batch(TINY, load, torch.float32, "cpu")
    arm = peer_blocks.family(TINY, batch)
    experts: Any = arm.module.experts
    dense: Any = peer_blocks.dense(TINY, batch).module
    shapes = {tuple(expert.gate_up.weight.shape) for expert in experts.values()}
    assert shapes == {tuple(dense.gate_up.weight.shape)} == {(2 * 4 * 16, 32)}
    rows = torch.bincount(batch.families_B, minlength=4).tolist()
    assert rows == {"uniform": [8] * 4, "zipf": [15, 8, 5, 4], "one family": [32, 0, 0, 0]}[load]
    assert arm.run(batch.x_BTD).shape == batch.x_BTD.shape


def test_padded_products_are_the_routed_experts() -> None:
    batch = peer_blocks.make_batch(TINY, "zipf", torch.float64, "cpu")
    arm = cuda_peer_blocks.padded(TINY, batch)
    ours = peer_blocks.token_router(TINY, batch, "topk")
    weights: Any = arm.module
    with torch.no_grad():
        groups: Any = ours.module
        for number, group in enumerate(groups.experts.values()):
            group.gate_up.copy_(weights.gate_up[4 * number : 4 * number + 4])
            group.down.copy_(weights.down[4 * number : 4 * number + 4])
    assert torch.allclose(arm.run(batch.x_BTD), ours.run(batch.x_BTD), atol=1e-5)


@pytest.mark.skipif(find_spec("megatron") is None, reason="Megatron-core is not installed")
def test_megatrons_experts_are_the_routed_experts() -> None:
    batch = peer_blocks.make_batch(TINY, "zipf", torch.float32, "cpu")
    arm, ours = (
        peer_blocks.megatron_block(TINY, batch),
        peer_blocks.token_router(TINY, batch, "topk"),
    )
    theirs: Any = arm.module
    groups: Any = ours.module
    with torch.no_grad():
        for number, expert in enumerate(theirs.local_experts):
            group = list(groups.experts.values())[number // 4]
            group.gate_up[number % 4].copy_(expert.linear_fc1.weight)
            group.down[number % 4].copy_(expert.linear_fc2.weight)
    assert torch.allclose(arm.run(batch.x_BTD), ours.run(batch.x_BTD), atol=1e-5)
    torch.distributed.destroy_process_group()


def test_an_arm_that_fails_is_told_and_the_others_measured() -> None:
    def broken(case: Case, batch: Batch) -> Arm:
        raise ImportError("no such package")

    batch = peer_blocks.make_batch(TINY, "uniform", torch.float32, "cpu")
    console = Console(record=True, quiet=False, width=120)
    arms = {"dense": peer_blocks.dense, "broken": broken}
    found = bench_routing.measure(arms, TINY, batch, 2, console)
    assert list(found) == ["dense"] and len(found["dense"].seconds) == 2
    assert "broken: not measured: ImportError: no such package" in console.export_text()
    # gate and up (128 each) and their product, in float32; not the weights, not the input
    assert found["dense"].kept == 64 * (128 + 64) * 4


def times(**milliseconds: float) -> dict[str, Measured]:
    names = {"mixtral": "Mixtral, eager", "qwen": "Qwen3-MoE, grouped_mm"}
    return {names.get(k, k): Measured([v / 1e3], 0) for k, v in milliseconds.items()}


def test_goals_hold_the_worst_size_to_the_fastest_block() -> None:
    one, four = Case(8, 8, 8, 8, 1), Case(8, 8, 8, 8, 4)
    results: bench_routing.Results = {
        ("fp32", one, "uniform"): times(dense=1, family=1.0, prior=1.2, topk=1.3, mixtral=5),
        ("fp32", four, "uniform"): times(
            dense=1, family=1.1, prior=1.2, topk=1.1, mixtral=3.3, qwen=2.4
        ),
    }
    goals = {goal.name: goal for goal in bench_routing.cpu_goals(results, (one, four))}
    found = {name: goal for name, goal in goals.items() if goal.name.endswith("fp32, uniform")}
    assert [goal.value for goal in found.values()] == pytest.approx([1.1, 3.0, 1.3, 2.0])
    assert [goal.met for goal in found.values()] == [False, False, True, True]
    assert all(goal.value is None for goal in goals.values() if goal not in found.values())


def test_without_a_gpu_its_goals_are_not_measured() -> None:
    goals = bench_routing.cuda_goals({}, bench_routing.CUDA_CASES)
    assert len(goals) == 5 and not any(goal.met or goal.value for goal in goals)


def test_the_last_line_is_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_routing, "QUICK_CASES", (TINY,))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["bench_routing", "--quick", "--json"])
    bench_routing.main()
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert rows["cuda topk of cuBLAS, zipf"]["value"] is None
    assert rows["family over dense, bf16, zipf"]["value"] > 0


def test_the_bound_is_the_six_products_alone() -> None:
    batch = peer_blocks.make_batch(TINY, "uniform", torch.float32, "cpu")
    arm = cuda_peer_blocks.products(TINY, batch)
    with FlopCounterMode(display=False) as counter:
        bench_routing.one_pass(arm, batch.x_BTD, batch.x_BTD)
    assert counter.get_total_flops() == TINY.flops
    assert isinstance(arm.module, nn.Module)
