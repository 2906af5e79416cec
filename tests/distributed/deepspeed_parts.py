"""Run by test_deepspeed.py on each of two processes: FOLDER SETTINGS...; many runs, one launch."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from xylem.model.routers import FamilySegment
from xylem.train.assembly import Trainer, start
from xylem.train.compose import compose_config
from xylem.train.config import EngineConfig
from xylem.train.engines.deepspeed.engine import DeepSpeedEngine
from xylem.train.engines.processes import Processes
from xylem.train.loop import fit

RUNS = {
    "zero-1": ("engine.zero.stage=1",),
    "zero-2": ("engine.zero.stage=2", "engine.zero.bucket_elements=5000"),
    "zero-3": ("engine.zero.stage=3", "engine.zero.persistent_elements=100"),
    "zero-1-family-2": ("engine.zero.stage=1", "engine.layout.family=2"),
    "zero-2-family-2-offload": (
        "engine.zero.stage=2", "engine.layout.family=2", "engine.zero.offload=cpu",
    ),
}  # fmt: skip
"""From the first step to the last."""

RESUMED = {
    "resumed-zero-1-family-2": ("engine.zero.stage=1", "engine.layout.family=2"),
    "resumed-zero-3-offload": ("engine.zero.stage=3", "engine.zero.offload=cpu"),
    "resumed-bf16": ("engine.zero.stage=2", "engine.precision=bf16"),
}
"""From the step that one process saved in its middle."""


def open_run(processes: Processes, settings: Sequence[str]) -> Trainer:
    config = compose_config(settings)
    layout = config.engine.layout.resolved(processes.world)
    return start(config, DeepSpeedEngine(processes, layout))


def refusal(act: Callable[[], object]) -> str:
    try:
        act()
    except (FloatingPointError, RuntimeError, ValueError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def write_held(trainer: Trainer, path: Path) -> None:
    """Which elements of which parameters this process keeps, and what families it hosts."""
    engine = trainer.engine
    assert isinstance(engine, DeepSpeedEngine)
    lines = engine.zero.optimizer.held.values()
    held = [(each.name, each.start, each.stop) for line in lines for each in line]
    hosted = sorted(f for f, ranks in engine.hosts.items() if engine.processes.rank in ranks)
    path.write_text(json.dumps({"held": held, "hosted": hosted}))


def not_a_number(trainer: Trainer) -> str:
    """What a step says whose gradient is no number on one process, and that nothing moved."""
    engine = trainer.engine
    assert isinstance(engine, DeepSpeedEngine)
    (partition, *_) = engine.zero.optimizer.held
    before = partition.detach().clone()
    inputs = torch.zeros(1, 8, dtype=torch.int64)
    segments = (FamilySegment(engine.decoder.families[0], 0, 1),)
    factor = float("nan") if engine.processes.rank else 1.0
    engine.zero.forward_backward(
        1, lambda decoder, index: factor * decoder(inputs, inputs, segments).sum()
    )
    said = refusal(lambda: engine.update(6, lambda name: True))
    assert torch.equal(partition, before)
    return said


if __name__ == "__main__":
    folder, settings = Path(sys.argv[1]), sys.argv[2:]
    processes = Processes(EngineConfig(threads=1, precision="fp32", timeout_minutes=1.0))
    for name, more in RUNS.items():
        trainer = open_run(processes, [*settings, "engine=deepspeed", *more, f"run.name={name}"])
        fit(trainer)
        write_held(trainer, folder / f"held-{name}-{processes.rank}")
        if name == "zero-1":
            (folder / f"nan-{processes.rank}").write_text(not_a_number(trainer))
    middle = f"checkpoint.resume={folder / 'alone' / 'checkpoints' / 'step-10'}"
    for name, more in RESUMED.items():
        processes.precision = "bf16" if "bf16" in name else "fp32"
        more = (*more, middle, f"run.name={name}")
        fit(open_run(processes, [*settings, "engine=deepspeed", *more]))
    processes.barrier()
    processes.close()
