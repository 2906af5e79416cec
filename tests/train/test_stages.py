"""Layers are split over a pipeline at least cost, and by the numbers a user gives."""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from xylem.model.config import LayerPlan, ModelConfig
from xylem.model.errors import ModelError
from xylem.model.layout import Layout, check_layout
from xylem.train.compose import compose_config
from xylem.train.config import EngineConfig, RunConfig
from xylem.train.engines.processes import Processes
from xylem.train.stages import (
    _seconds,
    chosen_stages,
    counted_costs,
    cut_stages,
    measured_costs,
    planned_stages,
    split_layers,
)

FAMILIES = ("alpha", "beta")
MODEL = ModelConfig(
    vocab_size=64, hidden_size=32, heads=2, kv_heads=1, head_dim=16,
    layer_plan=(
        LayerPlan(trunk_width=64),
        LayerPlan(trunk_width=64, expert_width=16, router="topk"),
        LayerPlan(trunk_width=64),
        LayerPlan(trunk_width=2048, expert_width=64),
    ),
)  # fmt: skip


def config_of(model: ModelConfig, *more: str) -> RunConfig:
    data = ("data=default", "data.prepared=none", "data.corpus=none", "run.name=stages")
    config = compose_config(
        (
            *data,
            "data.tokenizer.vocab_size=64",
            "data.sequence_length=32",
            "data.slot_sequences=2",
            *more,
        )
    )
    return replace(config, model=model)


@settings(max_examples=200, deadline=None)
@given(
    costs=st.lists(st.integers(1, 20), min_size=1, max_size=8),
    first=st.integers(0, 20),
    last=st.integers(0, 40),
    data=st.data(),
)
def test_the_split_is_the_best_of_all(
    costs: list[int], first: int, last: int, data: st.DataObject
) -> None:
    pieces = data.draw(st.integers(1, len(costs)))

    def worth(bounds: tuple[int, ...]) -> tuple[int, int]:
        sums = [sum(costs[a:b]) for a, b in pairwise(bounds)]
        sums[0] += first
        sums[-1] += last
        return max(sums), sum(each**2 for each in sums)

    cuts = combinations(range(1, len(costs)), pieces - 1)
    best = min(worth((0, *cut, len(costs))) for cut in cuts)
    found = split_layers(costs, first, last, pieces)
    assert [number for stage in found for number in stage] == list(range(len(costs)))
    assert len(found) == pieces and all(found)
    assert worth((0, *(stage[-1] + 1 for stage in found))) == best


def test_a_dear_head_leaves_the_last_piece_fewer_layers() -> None:
    assert split_layers([1.0] * 8, 0.0, 0.0, 2) == cut_stages((4, 4))
    assert split_layers([1.0] * 8, 0.0, 3.0, 2) == cut_stages((5, 3))
    assert split_layers([1.0] * 8, 2.0, 0.0, 2) == cut_stages((3, 5))


def test_a_plan_splits_by_products() -> None:
    costs = counted_costs(MODEL, FAMILIES, 32)
    assert costs.layers[0] == costs.layers[2] < costs.layers[1] < costs.layers[3]
    assert planned_stages(MODEL, FAMILIES, Layout(pipeline=2), 32) == cut_stages((3, 1))


def test_numbers_of_layers_that_are_given_are_taken() -> None:
    layout = Layout(pipeline=2, stages=(1, 3))
    assert planned_stages(MODEL, FAMILIES, layout, 32) == ((0,), (1, 2, 3))
    config = config_of(MODEL, "engine.layout.pipeline=2", "engine.layout.stages=[1,3]")
    assert config.engine.layout.stages == (1, 3)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Processes:
    """One process, whose clock goes by products instead of seconds."""

    def products(run: Callable[[], None], _: torch.device) -> float:
        with FlopCounterMode(display=False) as counted:
            run()
        return float(counted.get_total_flops()) + 1

    monkeypatch.setattr("xylem.train.stages._seconds", products)
    return Processes(EngineConfig(threads=1, precision="fp32"))


def test_a_run_measures_each_sort_of_layer_and_both_ends(
    clock: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    before = torch.random.get_rng_state()
    costs = measured_costs(config_of(MODEL), FAMILIES, clock)
    assert torch.equal(before, torch.random.get_rng_state())
    assert costs.layers[0] == costs.layers[2] < costs.layers[1] < costs.layers[3]
    assert 1 == costs.first < costs.last
    double = measured_costs(config_of(MODEL, "engine.micro_slots=2"), FAMILIES, clock)
    assert double.layers == tuple(2 * cost - 1 for cost in costs.layers)
    layout = Layout(data=1, pipeline=2)
    assert chosen_stages(config_of(MODEL), FAMILIES, layout, clock) == cut_stages((3, 1))
    assert "pipeline: pieces of 3, 1 layers by measured cost" in capsys.readouterr().out


def test_what_is_computed_again_is_measured_so(clock: Processes) -> None:
    same = replace(MODEL, layer_plan=(LayerPlan(trunk_width=64),) * 3)
    costs = measured_costs(config_of(same, "engine.recompute=2"), FAMILIES, clock)
    assert costs.layers[0] == costs.layers[2] > costs.layers[1]


def test_seconds_are_what_one_run_takes() -> None:
    ran: list[int] = []
    assert 0 < _seconds(lambda: ran.append(len(ran)), torch.device("cpu")) < 60
    assert len(ran) == 11  # once to begin, and until they are ten


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        ((4,), "engine.layout.stages=[4] must be 2 numbers of layers, 1 at least, for pipeline=2 x "
               "virtual=1; leave it out to split by cost"),
        ((4, 0), "engine.layout.stages=[4, 0] must be 2 numbers of layers"),
        ((2, 3), "engine.layout.stages=[2, 3] has 5 layers, the model 4: their sum must be that"),
    ],
)  # fmt: skip
def test_stages_that_are_no_split_of_the_model_are_refused(
    stages: tuple[int, ...], told: str
) -> None:
    with pytest.raises(ModelError) as refused:
        check_layout(MODEL, FAMILIES, Layout(data=1, pipeline=2, stages=stages), 32)
    assert told in str(refused.value)
