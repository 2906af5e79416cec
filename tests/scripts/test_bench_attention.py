"""The attention bench: its batches are what it says, and its goals tell the worst case."""

import json

import pytest
import torch

from xylem.model.documents import document_bounds, document_starts
from xylem.scripts import bench_attention
from xylem.scripts.bench_attention import (
    LENGTHS,
    TYPICAL,
    Measured,
    Setting,
    documents_of,
    goals_of,
    settings,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def setting(lengths: str, positions: int = 4000) -> Setting:
    return Setting(
        lengths=lengths, rows=2, positions=positions, dtype=torch.float32,
        heads=2, kv_heads=1, head_dim=8,
    )  # fmt: skip


@pytest.mark.parametrize("lengths", LENGTHS)
def test_documents_have_the_lengths_of_their_name(lengths: str) -> None:
    documents = documents_of(setting(lengths))
    assert documents.shape == (2, 4000)
    low, high = LENGTHS[lengths] or (4000, 4000)
    for row in documents:
        sizes = row.unique_consecutive(return_counts=True)[1]
        # The last document of a row is cut by the row's end.
        assert sizes.max() <= high and (len(sizes) == 1 or sizes[:-1].min() >= low)
    bounds = document_bounds(document_starts(documents))
    assert (len(bounds.cumulative) == 3) == (LENGTHS[lengths] is None)


def test_quick_makes_the_same_comparison_on_fewer_sizes() -> None:
    for device in (CPU, CUDA):
        full, quick = settings(device, False), settings(device, True)
        assert {s.lengths for s in quick} == {s.lengths for s in full} == set(LENGTHS)
        assert {s.dtype for s in quick} == {s.dtype for s in full} and len(quick) < len(full)


def test_goals_are_those_of_the_worst_batch_and_of_this_device_only() -> None:
    measured = {
        setting(TYPICAL, positions=1024): Measured(
            attend={"documents": 1.0, "sdpa": 1.5}, prepare={}, auto="documents"
        ),
        setting(TYPICAL): Measured(
            attend={"documents": 1.0, "sdpa": 3.0}, prepare={}, auto="documents"
        ),
        setting("whole rows"): Measured(
            attend={"documents": 1.2, "sdpa": 1.0}, prepare={}, auto="documents"
        ),
    }
    goals = {goal.name: goal for goal in goals_of(measured, CPU)}
    assert goals["cpu_auto_over_the_fastest"].value == 1.2
    assert not goals["cpu_auto_over_the_fastest"].met
    assert goals["cpu_auto_faster_than_a_full_mask_from_2048_positions"].value == 3.0
    assert goals["cpu_auto_faster_than_a_full_mask_from_2048_positions"].met
    assert goals["gpu_auto_over_the_fastest"].value is None
    on_gpu = {goal.name: goal.value for goal in goals_of(measured, CUDA)}
    assert on_gpu["cpu_auto_over_the_fastest"] is None
    assert on_gpu["gpu_auto_over_the_fastest"] == 1.2


def test_the_last_line_is_json_and_backends_that_cannot_run_are_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(
        bench_attention, "settings", lambda device, quick: [setting(TYPICAL, positions=64)]
    )
    monkeypatch.setattr("sys.argv", ["bench_attention", "--quick", "--json"])
    bench_attention.main()
    printed = capsys.readouterr()
    goals = json.loads(printed.out.splitlines()[-1])
    assert goals["cpu_auto_over_the_fastest"]["value"] >= 1
    assert goals["gpu_auto_over_the_fastest"] == {
        "value": None, "goal": 1.05, "met": False, "unit": "x"
    }  # fmt: skip
    assert "documents" in printed.err and "flash4" not in printed.err
    assert "not measured" in printed.err
