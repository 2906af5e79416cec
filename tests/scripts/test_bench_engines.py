"""The engines' bench: equal batches for every arm, and goals that follow from the numbers."""

import json
from typing import Any

import pytest
import torch

from xylem.scripts import bench_engines
from xylem.scripts.bench_engines import engine_goals, expert_goals
from xylem.scripts.engine_arms import (
    FAMILIES,
    MIXTURES,
    QUICK,
    InMemory,
    global_batches,
    hosts,
    model_config,
)
from xylem.scripts.engine_parts import check_losses


def found(**more: Any) -> dict[str, Any]:
    """What processes tell, of two."""
    process = {
        "sent": {"family": {"all_reduce": 8}, "all_to_all": {"all_to_all": 6, "all_reduce": 8}},
        "parameters": {"family": 10, "all_to_all": 10},
        "slots": 4,
    }
    part = {
        "seconds": {"family": [1.0, 1.0, 4.0], "all_to_all": [1.5, 2.0, 4.0]},
        "processes": [process, process],
    }
    arms = {"seconds": {"torch": [1.02, 1.0], "ddp": [1.0, 1.0], "fsdp2": [0.5, 0.5]}}
    return {
        "experts": {mixture: part for mixture in MIXTURES},
        "overhead": {"ddp": arms, "fsdp2": arms, "not_measured": {}},
        "checkpoint": {"stall": [0.1], "whole": [0.5], "state": 1000, "written": 1003},
    } | more


@pytest.mark.parametrize("mixture", MIXTURES)
def test_pieces_of_a_step_are_the_whole_in_the_line_s_order(mixture: str) -> None:
    for step in global_batches(QUICK, mixture):
        assert list(step.line) == sorted(step.line) and len(step.line) == QUICK.slots
        pieces = [step.piece(index, 4) for index in range(4)]
        assert torch.equal(torch.cat([piece.inputs_BT for piece in pieces]), step.inputs_BT)
        told = [f for piece in pieces for f, a, b in piece.segments for _ in range(a, b)]
        assert tuple(told) == step.line
        assert [slot.number for piece in pieces for slot in piece.slots] == list(range(QUICK.slots))


def test_real_shares_follow_the_square_root_of_the_sizes() -> None:
    lines = [step.line for step in global_batches(QUICK, "real")]
    largest = sum(line.count("Indo-European") for line in lines) / sum(map(len, lines))
    assert largest == pytest.approx(0.40, abs=0.02)
    assert {family for line in lines for family in line} == set(FAMILIES)


def test_hosts_have_every_family_that_their_pieces_touch() -> None:
    steps = global_batches(QUICK, "real")
    held = hosts(steps, 4)
    for step in steps:
        for slot, family in enumerate(step.line):
            assert family in held[slot // 4]
    assert len(hosts([steps[0]], 1)[0]) == len(FAMILIES)


def test_a_token_router_s_expert_begins_as_its_family_s() -> None:
    first = InMemory(QUICK)
    name, D, F = "layers.0.feed_forward.experts.Turkic.down", QUICK.hidden_size, QUICK.expert_width
    view = (((0, 1),), ((0, D),), ((0, F),))
    told = first.read("", name, (1, D, F), view, 0, D * F)
    assert told is not None and torch.equal(told, first.whole[f"{name}.weight"].flatten())
    assert model_config(QUICK, router="topk").routing.top_k == 1


def test_arms_whose_losses_differ_are_refused() -> None:
    check_losses({"family": [2.0, 1.0], "other": [2.0, 1.00001]})
    with pytest.raises(ValueError, match="other has the loss 1.1 at step 1, family has 1.0"):
        check_losses({"family": [2.0, 1.0], "other": [2.0, 1.1]})


def test_goals_follow_from_the_numbers() -> None:
    told = found()
    goals = {g.name: g for g in [*expert_goals(told["experts"]), *engine_goals(told)]}
    assert goals["expert_all_to_all"].met
    assert goals["family_over_all_to_all_real"].value == 1.5
    assert goals["family_over_all_to_all_real"].met
    assert goals["family_over_megatron_moe_real"].value is None
    assert not goals["family_over_megatron_moe_real"].met
    assert goals["family_memory_over_all_to_all_uniform"].value == 1.0
    assert goals["slots_idle_real"].value == 0.0
    assert goals["torch_over_ddp"].met and not goals["torch_over_fsdp2"].met
    assert goals["megatron_over_ddp"].value is None
    assert goals["checkpoint_stall"].value == pytest.approx(20.0)
    assert goals["checkpoint_bytes"].value == 1.0


def test_bytes_of_an_all_to_all_under_family_parallelism_are_told() -> None:
    told = found()["experts"]
    told["uniform"]["processes"][0]["sent"]["family"]["all_to_all"] = 5
    goal = next(iter(expert_goals(told)))
    assert goal.name == "expert_all_to_all" and goal.value and not goal.met


def test_the_last_line_is_the_goals(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = found()
    for part in told["experts"].values():
        part["work"] = part["seconds"]
        part["losses"] = {"family": 2.0, "all_to_all": 2.0}
    told["experts"]["not_measured"] = {"megatron_moe": "ImportError: none"}
    for peer in ("ddp", "fsdp2"):
        told["overhead"][peer]["work"] = told["overhead"][peer]["seconds"]
    monkeypatch.setattr(bench_engines, "measure", lambda *_, **__: told)
    bench_engines.main(["--quick", "--json"])
    printed = capsys.readouterr()
    rows = json.loads(printed.out.splitlines()[-1])
    assert rows["slots_idle_real"] == {"value": 0.0, "goal": 1.0, "met": True, "unit": "%"}
    assert "megatron_moe was not measured: ImportError: none" in printed.err
