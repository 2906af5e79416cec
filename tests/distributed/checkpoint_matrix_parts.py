"""Run by test_checkpoint_matrix.py on each of two processes: FOLDER SETTINGS...; one launch.

Every layout trains a run; then every layout loads every other's checkpoint, and goes on from one.
Writes `found-RANK.json`: layout that loads -> layout that saved -> what differs.
"""

import faulthandler
import importlib.util
import json
import sys
from collections import Counter
from math import prod
from pathlib import Path

import torch

from xylem.train.assembly import Trainer, start
from xylem.train.checkpoint import CheckpointReader
from xylem.train.compose import compose_config
from xylem.train.config import EngineConfig
from xylem.train.engines import choice
from xylem.train.engines.processes import Processes
from xylem.train.loop import fit

FAMILY_EXPERTS = "model.layer_plan=[{trunk_width: 64, expert_width: 32}, {trunk_width: 96}]"
TOKEN_EXPERTS = (
    "model.layer_plan=[{trunk_width: 64, expert_width: 32, router: topk}, {trunk_width: 96}]"
)

LAYOUTS: dict[str, tuple[str, ...]] = {
    "data": (FAMILY_EXPERTS,),
    "shard": (FAMILY_EXPERTS, "engine.shard=full"),
    "family": (FAMILY_EXPERTS, "engine.layout.family=2"),
    "family and shard": (FAMILY_EXPERTS, "engine.layout.family=2", "engine.shard=full"),
    "tensor": (FAMILY_EXPERTS, "engine.layout.tensor=2"),
    "context": (FAMILY_EXPERTS, "engine.layout.context=2"),
    "pipeline": (FAMILY_EXPERTS, "engine.layout.pipeline=2"),
    "zero 1": (FAMILY_EXPERTS, "engine=deepspeed", "engine.zero.stage=1"),
    "zero 2": (FAMILY_EXPERTS, "engine=deepspeed", "engine.zero.stage=2"),
    "zero 3": (
        FAMILY_EXPERTS, "engine=deepspeed", "engine.zero.stage=3",
        "engine.zero.persistent_elements=100",
    ),
    "megatron tensor": (FAMILY_EXPERTS, "engine=megatron", "engine.layout.tensor=2"),
    "megatron pipeline": (FAMILY_EXPERTS, "engine=megatron", "engine.layout.pipeline=2"),
    "data of token experts": (TOKEN_EXPERTS,),
    "tensor of token experts": (TOKEN_EXPERTS, "engine.layout.tensor=2"),
    "expert": (TOKEN_EXPERTS, "engine.layout.expert=2"),
}  # fmt: skip
"""Settings of each layout of two processes; those of one model are loaded by each other."""

NEEDED = {"deepspeed": ("deepspeed",), "megatron": ("megatron", "deepspeed")}
STEPS, SAVED = 6, 3


def missing(name: str) -> str:
    """The package that a layout needs and that is not installed, or nothing."""
    engine = next((s for s in LAYOUTS[name] if s.startswith("engine=")), "engine=torch")[7:]
    absent = [n for n in NEEDED.get(engine, ()) if importlib.util.find_spec(n) is None]
    return absent[0] if absent else ""


def model_of(name: str) -> str:
    return LAYOUTS[name][0]


def step_folder(root: Path, run: str, step: int = SAVED) -> Path:
    return root / run / "checkpoints" / f"step-{step}"


def open_run(settings: list[str], processes: Processes) -> Trainer:
    config = compose_config(settings)
    if config.engine.name == "megatron":
        from megatron.core import parallel_state

        if parallel_state.model_parallel_is_initialized():
            parallel_state.destroy_model_parallel()
    choice.Processes = lambda _: processes  # type: ignore[assignment,misc]
    return start(config, choice.open_engine(config))


def differences(trainer: Trainer, folder: Path) -> list[str]:
    """What a process's pieces differ in from a checkpoint's files, and what no process has."""
    reader, found = CheckpointReader(folder), []
    held: Counter[str] = Counter()
    for piece in trainer.engine.pieces():
        values = reader.read(
            piece.kind, piece.name, piece.shape, piece.view, piece.start, piece.stop
        )
        held[f"{piece.kind}{piece.name}"] += piece.stop - piece.start
        ours = piece.tensor.detach().cpu().reshape(-1)
        if values is None or not torch.equal(values, ours):
            found.append(f"{piece.kind}{piece.name}")
    everywhere: Counter[str] = Counter()
    for told in trainer.processes.all_say(json.dumps(held)):
        everywhere.update(json.loads(told))
    saved = {
        f"{'optimizer-' if file.startswith('optimizer-') else ''}{name}": prod(entry.shape)
        for file in reader.files - {"rng.safetensors"}
        for name, entry in reader.entries(file).items()
    }
    return found + sorted(n for n in saved.keys() | everywhere if saved.get(n) != everywhere[n])


if __name__ == "__main__":
    root, settings = Path(sys.argv[1]), sys.argv[2:]
    faulthandler.dump_traceback_later(380, exit=True)
    names = [name for name in LAYOUTS if not missing(name)]
    if any("engine=megatron" in LAYOUTS[name] for name in names):
        from ..megatron_on_cpu import install

        install()
    processes = Processes(EngineConfig(threads=1, precision="fp32", timeout_minutes=1.0))
    for name in names:
        fit(open_run([*settings, *LAYOUTS[name], f"run.name={name}"], processes))
    found: dict[str, dict[str, list[str]]] = {}
    for name in names:
        others = [other for other in names if model_of(other) == model_of(name)]
        before = others[others.index(name) - 1]
        resume = f"checkpoint.resume={step_folder(root, before)}"
        run = [*settings, *LAYOUTS[name], f"run.name=resumed {name}", resume]
        trainer = open_run(run, processes)
        found[name] = {before: differences(trainer, step_folder(root, before))}
        for other in others:
            folder = step_folder(root, other)
            trainer.engine.load(CheckpointReader(folder))
            found[name][other] = differences(trainer, folder)
        trainer.engine.load(CheckpointReader(step_folder(root, before)))
        fit(trainer)
    (root / f"found-{processes.rank}.json").write_text(json.dumps(found))
    processes.barrier()
    processes.close()
