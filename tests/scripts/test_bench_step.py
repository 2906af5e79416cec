"""The step's bench: equal batches, equal parameters, and goals that follow from the numbers."""

import dataclasses

import pytest
import torch

from xylem.model.accounting import count_parameters
from xylem.scripts import bench_step, step_arms
from xylem.scripts.bench_step import mean_document, median_ratio, speed_and_memory_goals
from xylem.scripts.peer_models import positions_in_documents
from xylem.scripts.step_arms import (
    FAMILIES,
    LOADS,
    PEERS,
    QUICK,
    ROUTERS,
    Ours,
    Theirs,
    build_arm,
    model_config,
    packed_batch,
    parameters_of,
    row_families,
)
from xylem.train.config import EngineConfig
from xylem.train.engines.processes import Processes

SMALL = dataclasses.replace(QUICK, vocab_size=256)


@pytest.fixture(scope="module")
def engine() -> Processes:
    return Processes(EngineConfig(precision="fp32"))


@pytest.mark.parametrize("load", LOADS)
def test_rows_are_given_to_families_in_order(load: str) -> None:
    segments = row_families(8, load, FAMILIES[:4])
    assert [segment.start for segment in segments] == [0, *(s.stop for s in segments[:-1])]
    assert segments[-1].stop == 8
    counts = [segment.stop - segment.start for segment in segments]
    assert counts == {"uniform": [2, 2, 2, 2], "zipf": [4, 2, 1, 1], "one": [8]}[load]


def test_documents_are_packed_and_their_borders_are_not_predicted() -> None:
    batch = packed_batch(256, 2, 3000, "uniform", FAMILIES)
    for documents, targets in zip(batch.documents_BT, batch.targets_BT, strict=True):
        lengths = documents.unique_consecutive(return_counts=True)[1]
        assert lengths.sum() == 3000 and all(100 <= n <= 2000 for n in lengths[:-1].tolist())
        borders = documents[1:] != documents[:-1]
        assert torch.equal(targets[:-1] == -100, borders)
    documents = torch.tensor([[0, 0, 0, 1], [2, 2, 3, 3]])
    assert positions_in_documents(documents).tolist() == [[0, 1, 2, 0], [0, 1, 0, 1]]
    assert mean_document(documents) == round((9 + 1 + 4 + 4) / 8)


def test_arms_have_equal_parameters_and_losses_near_those_of_chance(engine: Processes) -> None:
    batch = packed_batch(SMALL.vocab_size, 2, 256, "uniform", FAMILIES)
    counts = count_parameters(model_config(SMALL, "family"), FAMILIES)
    for name in (*ROUTERS, *PEERS):
        arm = build_arm(name, SMALL, engine)
        active, total = parameters_of(arm)
        if name in ("family", "qwen3"):
            assert active == pytest.approx(counts.active, rel=0.02), name
        if name != "qwen3":
            assert total == pytest.approx(counts.total, rel=0.05), name
        first = arm.step(batch, "fp32")
        assert first == pytest.approx(torch.tensor(256.0).log().item(), abs=0.3), name
        assert arm.step(batch, "fp32") < first


def test_theirs_masks_documents(engine: Processes) -> None:
    arm = build_arm("qwen3", SMALL, engine)
    assert isinstance(arm, Theirs)
    documents = (torch.arange(64) >= 40).long()[None]
    tokens = torch.arange(64)[None]
    changed = tokens.clone()
    changed[:, :40] += 1
    positions = positions_in_documents(documents)
    with torch.no_grad():
        before, after = (
            arm.model(input_ids=t, position_ids=positions).logits for t in (tokens, changed)
        )
    torch.testing.assert_close(before[:, 40:], after[:, 40:])
    assert not torch.allclose(before[:, :40], after[:, :40])


def test_a_mixture_takes_the_faster_path_of_its_experts(
    engine: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm = build_arm("mixtral", SMALL, engine)
    assert isinstance(arm, Theirs)
    batch = packed_batch(SMALL.vocab_size, 1, 64, "uniform", FAMILIES)
    monkeypatch.setattr(
        step_arms, "timed",
        lambda arm, *rest: {"grouped_mm": 2.0, "eager": 1.0}[arm.implementations["fp32"]],
    )  # fmt: skip
    arm.choose_implementation(batch, "fp32")
    assert arm.implementations == {"fp32": "eager"}


def test_goals_are_ratios_within_rounds_of_the_slowest_load() -> None:
    seconds = {(name, "uniform", p): [1.0, 2.0, 4.0] for name in ROUTERS for p in ("bf16", "fp32")}
    seconds |= {(name, "uniform", p): [3.0, 6.0, 8.0] for name in PEERS for p in ("bf16", "fp32")}
    seconds["family", "one", "bf16"] = [1.5, 3.0, 2.0]
    memory = {(name, p): 100.0 for name in (*ROUTERS, *PEERS) for p in ("bf16", "fp32")}
    memory["topk", "fp32"] = 150.0
    goals = {goal.name: goal for goal in speed_and_memory_goals(seconds, memory)}
    assert len(goals) == 2 * 2 * 3 * 3
    assert goals["family_over_qwen3_bf16"].value == 2.0 and goals["family_over_qwen3_bf16"].met
    assert goals["family_over_qwen3_fp32"].value == 3.0
    assert goals["prior_over_mixtral_bf16"].goal == 2.0
    assert not goals["topk_memory_over_qwen3_fp32"].met
    assert goals["topk_memory_over_qwen3_bf16"].met
    assert median_ratio([1.0, 9.0, 4.0], [1.0, 3.0, 1.0]) == 3.0


def test_without_a_gpu_nothing_is_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (goal,) = bench_step.cuda_goals(True, Console(quiet=True))
    assert goal.value is None and not goal.met


def test_ours_is_the_real_step(engine: Processes) -> None:
    arm = build_arm("topk", SMALL, engine)
    assert isinstance(arm, Ours)
    before = {n: p.detach().clone() for n, p in arm.decoder.named_parameters()}
    batch = packed_batch(SMALL.vocab_size, 2, 256, "uniform", FAMILIES)
    arm.step(batch, "bf16")
    assert not torch.are_deterministic_algorithms_enabled()
    moved = {n for n, p in arm.decoder.named_parameters() if not torch.equal(p, before[n])}
    assert {n for n in before if "attention" in n or "trunk" in n} <= moved
    load = arm.decoder.layers[0].feed_forward.router.load_E
    assert float(load.sum()) > 0
