"""A pipeline of two processes does what one process does with the whole decoder."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from xylem.train.compose import compose_config
from xylem.train.engines.checks import check_pipeline
from xylem.train.errors import UserError

from ..conftest import environment

SCHEDULES = ("1f1b", "two", "fewer", "untied", "interleaved")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes compared."""
    folder = tmp_path_factory.mktemp("pipeline")
    script = str(Path(__file__).with_name("pipeline_parts.py"))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*launcher, script, str(folder)], env=environment(), check=True, timeout=180)
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_gradients_are_those_of_one_process(told: list[dict[str, Any]], schedule: str) -> None:
    for rank in told:
        assert rank[schedule]["gradients"] < 2e-6
        assert rank[schedule]["none missing"]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_losses_are_counted_once(told: list[dict[str, Any]], schedule: str) -> None:
    for rank in told:
        assert rank[schedule]["losses"] < 1e-6


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_routers_are_counted_where_they_are_and_tokens_once(
    told: list[dict[str, Any]], schedule: str
) -> None:
    for rank in told:
        assert rank[schedule]["telemetry"] < 1e-6
        assert rank[schedule]["tokens"] and rank[schedule]["choices"]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rows_of_any_shape_are_scored_on_the_last_stage(
    told: list[dict[str, Any]], schedule: str
) -> None:
    first, last = (rank[schedule]["score"] for rank in told)
    assert first is None and last < 1e-6


def test_micro_batches_of_1f1b_take_turns_in_a_buffer(told: list[dict[str, Any]]) -> None:
    # Of five micro-batches the first stage receives gradients alone, the last hidden states.
    assert [rank["1f1b"]["buffers"] for rank in told] == [1, 1]
    # Stages 1 to 3 of four hold three, two and one at a time.
    assert told[0]["turns"] == [[0, 1, 2, 0, 1], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0]]


def test_all_processes_split_the_layers_as_the_leader_measured(told: list[dict[str, Any]]) -> None:
    stages = told[0]["stages"]
    assert stages == told[1]["stages"] and len(stages) == 2
    assert [number for stage in stages for number in stage] == [0, 1, 2]


def test_an_interleaved_pipeline_wants_rounds_of_micro_batches() -> None:
    def check(*settings: str) -> None:
        layout = ("engine.layout.data=2", "engine.layout.pipeline=4")
        data = ("data=default", "data.prepared=nowhere", "data.corpus=nowhere")
        config = compose_config((*data, "run.name=refused", *layout, *settings))
        check_pipeline(config, config.engine.layout)

    check("engine.layout.virtual=2", "data.slots_per_step=16")
    check("data.slots_per_step=12", "engine.micro_slots=2")
    with pytest.raises(UserError) as refused:
        check("engine.layout.virtual=2", "data.slots_per_step=24", "engine.micro_slots=2")
    assert str(refused.value) == (
        "engine.layout.virtual=2 runs micro-batches 4 at a time, as many as "
        "engine.layout.pipeline, and data.slots_per_step=24 gives each process 6 (2 processes read "
        "different slots, engine.micro_slots=2): take data.slots_per_step=16 or 32, or "
        "engine.layout.virtual=1"
    )
