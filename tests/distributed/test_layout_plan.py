"""Plans against runs: bytes exactly those that the engine sends, memory within a tenth."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from xylem.data.hosting import hosted_families
from xylem.data.manifest import Manifest
from xylem.data.stream import build_order, first_ledger
from xylem.train.compose import compose_config
from xylem.train.config import RunConfig
from xylem.train.hardware import hardware_named
from xylem.train.layout_plan import LayoutPlan, plan_layout
from xylem.train.plan import planned_work

from ..conftest import Prepared, environment

LARGE = ("engine.micro_slots=2", "data.slot_sequences=8")
BYTES: dict[int, dict[str, tuple[str, ...]]] = {
    2: {
        "family": ("engine.layout.family=2",),
        "context-recomputed": ("engine.layout.context=2", "engine.recompute=2"),
        "pipeline": ("engine.layout.pipeline=2",),  # tied embeddings on both stages
        "virtual": (
            "engine.layout.pipeline=2",
            "engine.layout.virtual=2",
            "model.layer_plan=[{repeat: 6, trunk_width: 64, expert_width: 32}]",
        ),
        "sharded-pipeline": ("engine.shard=full", "engine.layout.pipeline=2"),
        "sharded": ("engine.shard=full", "engine.recompute=1"),
        "sharded-bf16": ("engine.shard=full", "engine.precision=bf16", "engine.micro_slots=2"),
    },
    4: {
        "tensor-pipeline": ("engine.layout.tensor=2", "engine.layout.pipeline=2"),
        "tensor-family-bf16": (
            "engine.layout.tensor=2",
            "engine.layout.family=2",
            "engine.precision=bf16",
        ),
        "data-family": ("engine.layout.family=2",),
        "family-context": ("engine.layout.family=2", "engine.layout.context=2"),
        "sharded-tensor": ("engine.layout.tensor=2", "engine.shard=full"),
    },
}
MEMORY: dict[int, dict[str, tuple[str, ...]]] = {
    2: {
        "peak-fp32": LARGE,
        "peak-bf16": (*LARGE, "engine.precision=bf16"),
        "peak-recomputed": (*LARGE, "engine.recompute=1"),
        "peak-family": (*LARGE, "engine.layout.family=2"),
        "peak-sharded": (*LARGE, "engine.shard=full"),
    },
}

Runs = dict[tuple[int, str], tuple[RunConfig, list[Any]]]
"""(processes, name) -> config, and what each rank told."""


@pytest.fixture(scope="module")
def runs(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    done: Runs = {}
    for processes in (2, 4):
        cases = {**BYTES.get(processes, {}), **MEMORY.get(processes, {})}
        folder = tmp_path_factory.mktemp(f"plans-{processes}")
        common = [
            *prepared.settings, "model=debug", "run.steps=3", "data.slots_per_step=8",
            "engine.peak_tflops=1", "engine.timeout_minutes=1",
        ]  # fmt: skip
        settings = {name: [*common, *more] for name, more in cases.items()}
        listed = folder / "cases.json"
        listed.write_text(json.dumps(list(settings.items())))
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        script = str(Path(__file__).with_name("plan_parts.py"))
        subprocess.run(
            [sys.executable, *launcher, script, str(listed), str(folder)],
            env=environment(), check=True, timeout=200,
        )  # fmt: skip
        told = [json.loads((folder / f"rank-{r}.json").read_text()) for r in range(processes)]
        for name in cases:
            config = compose_config([*settings[name], "run.name=planned"])
            done[processes, name] = config, [rank[name] for rank in told]
    return done


def planned(
    config: RunConfig, prepared: Prepared, processes: int, present: list[str] | None = None
) -> LayoutPlan:
    """The plan of a run that was made."""
    manifest = Manifest.load(prepared.folder)
    order = build_order(first_ledger(config.data, manifest, config.run.steps), manifest)
    layout = config.engine.layout.resolved(processes)
    hosted = hosted_families(
        order, manifest.families, 0, config.run.steps, family=layout.family, data=layout.data
    )
    work = dataclasses.replace(planned_work(config, manifest), device="cpu")
    return plan_layout(
        work, layout, lambda layout: hosted[:: layout.data], hardware_named("cpu"),
        node=processes, present=present,
    )  # fmt: skip


@pytest.mark.parametrize(("processes", "name"), [(n, name) for n in BYTES for name in BYTES[n]])
def test_bytes_are_exactly_those_that_are_sent(
    processes: int, name: str, runs: Runs, prepared: Prepared
) -> None:
    config, told = runs[processes, name]
    for rank, steps in enumerate(told):
        for step in steps:
            plan = planned(config, prepared, processes, step["families"])
            (mine,) = (c for c in plan.classes if rank in c.ranks.ranks(plan.layout))
            predicted: dict[str, int] = {}
            for traffic in mine.traffic:
                predicted[traffic.kind] = predicted.get(traffic.kind, 0) + traffic.bytes
            assert predicted == step["sent"], f"rank {rank}: {mine.traffic} but {step['calls']}"


@pytest.mark.parametrize(("processes", "name"), [(n, name) for n in MEMORY for name in MEMORY[n]])
def test_memory_is_within_a_tenth_of_what_is_allocated(
    processes: int, name: str, runs: Runs, prepared: Prepared
) -> None:
    config, told = runs[processes, name]
    plan = planned(config, prepared, processes)
    for rank, allocated in enumerate(told):
        (mine,) = (c for c in plan.classes if rank in c.ranks.ranks(plan.layout))
        assert mine.memory.peak == pytest.approx(allocated, rel=0.1), mine.memory.parts
