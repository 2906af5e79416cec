"""Run by test_megatron.py on each of several processes: FOLDER CASES…; writes what each case gave.

A case is `name:key=value,…`: sizes of the layout, the optimiser, Megatron's switches, or one of the
fixes taken out. Layouts follow one another in the same processes.
"""

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from xylem.model.config import ModelConfig
from xylem.model.layout import Layout
from xylem.model.part import View, runs, take
from xylem.tests import megatron_on_cpu
from xylem.tests.distributed import megatron_cases as cases
from xylem.train.micro_batches import StepWork
from xylem.train.pieces import OPTIMIZER, WEIGHTS, Piece

STEPS = 20
LAYOUT = ("data", "family", "tensor", "context", "pipeline", "virtual", "expert")


class Sums:
    """Takes losses as the metrics do."""

    def __init__(self) -> None:
        self.nll = torch.zeros((), dtype=torch.float64)

    def add(self, languages_B: Tensor, nll_BT: Tensor, kept_BT: Tensor, bytes_BT: Tensor) -> None:
        """Adds a micro-batch."""
        self.nll += nll_BT.double().sum()


def work_of(batch: cases.Step, engine: Any, sums: Any) -> StepWork:
    """This process's share of a step."""
    readers, index = engine.layout.readers, engine.place.data
    each = len(batch.micros) // readers
    mine = batch.micros[index * each : (index + 1) * each]
    return StepWork(
        mine, keyed=(0, 0), predicted=batch.predicted,
        size=sum(m.inputs_BT.numel() for m in batch.micros), z_weight=cases.OPTIM.z_loss,
        token_bytes=torch.ones(96, dtype=torch.int64), sums=sums, counters=(),
        autocast=nullcontext,
    )  # fmt: skip


def open_engine(config: Any) -> Any:
    """The engine of a case, built."""
    from megatron.core import parallel_state

    from xylem.train.engines.megatron.engine import MegatronEngine
    from xylem.train.engines.processes import Processes

    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    with mock.patch.object(dist, "init_process_group"):  # it is there already
        processes = Processes(config.engine)
    engine = MegatronEngine(processes, config.engine.layout.resolved(processes.world))
    engine.build(config, cases.FAMILIES, [frozenset(cases.FAMILIES)] * engine.layout.readers)
    return engine


def train(engine: Any, steps: range) -> tuple[list[float], list[float]]:
    """Losses and norms of some steps."""
    losses, norms = [], []
    for step in steps:
        batch, sums = cases.step_batch(step), Sums()
        engine.forward_backward(work_of(batch, engine, sums))
        norms.append(engine.update(step, batch.moves).norm)
        dist.all_reduce(sums.nll)
        losses.append(float(sums.nll) / batch.predicted)
    return losses, norms


def gathered(engine: Any) -> dict[tuple[str, str], Tensor]:
    """Whole canonical tensors from all processes' pieces; every element exactly once."""
    mine = [(p.kind, p.name, p.shape, list(runs(p.shape, p.view, p.start, p.stop)),
             p.tensor.detach().float().flatten().clone()) for p in engine.pieces()]  # fmt: skip
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, mine)
    whole: dict[tuple[str, str], Tensor] = {}
    written: dict[tuple[str, str], Tensor] = {}
    for kind, name, shape, stretches, values in (piece for rank in every for piece in rank):
        key = kind, name
        flat = whole.setdefault(key, torch.zeros(torch.Size(shape).numel()))
        count = written.setdefault(key, torch.zeros(flat.shape))
        at = 0
        for offset, length in stretches:
            flat[offset : offset + length] = values[at : at + length]
            count[offset : offset + length] += 1
            at += length
    for key, count in written.items():
        assert bool((count == 1).all()), f"{key} is not written exactly once"
    return whole


class Memory:
    """A checkpoint that lies in memory."""

    def __init__(self, whole: dict[tuple[str, str], Tensor]) -> None:
        self.whole = whole

    def read(
        self, kind: str, name: str, shape: tuple[int, ...], view: View, start: int, stop: int
    ) -> Tensor | None:
        """A piece's values."""
        flat = self.whole.get((kind, name))
        if flat is None:
            return None
        local = take(flat.view(shape), view) if shape else flat
        return local.reshape(-1)[start:stop]


def of_course(course: cases.Course) -> dict[tuple[str, str], Tensor]:
    """A plain course's end as a checkpoint."""
    whole = {(WEIGHTS, name): w.flatten().clone() for name, w in course.weights.items()}
    return whole | {(OPTIMIZER, n): s.flatten().clone() for n, s in course.state.items()}


def difference(whole: dict[tuple[str, str], Tensor], other: dict[tuple[str, str], Tensor]) -> float:
    """The largest norm of a tensor's difference, against its own."""
    assert whole.keys() == other.keys(), sorted(whole.keys() ^ other.keys())[:4]
    return max(
        float((whole[key] - values).norm() / values.norm().clamp_min(1e-12))
        for key, values in other.items()
    )


def course(config: ModelConfig, layout: Layout, plain: cases.Course, **settings: Any) -> Any:
    """Trains as `plain` did; says how far the course went apart."""
    engine = open_engine(cases.run_config(config, layout, STEPS, **settings))
    losses, norms = train(engine, range(STEPS))
    end = gathered(engine)
    weights = {key: value for key, value in end.items() if key[0] == WEIGHTS}
    expected = of_course(plain)
    return {
        "losses": losses, "norms": norms,
        "weights": difference(weights, {k: v for k, v in expected.items() if k[0] == WEIGHTS}),
        "state": difference(
            {k: v for k, v in end.items() if k[0] == OPTIMIZER},
            {k: v for k, v in expected.items() if k[0] == OPTIMIZER},
        ),
    }  # fmt: skip


def resumed(
    config: ModelConfig, layout: Layout, plain: cases.Course, halfway: cases.Course,
    **settings: Any,
) -> Any:  # fmt: skip
    """Takes over the plain course's checkpoint of step 10 and goes on from there."""
    engine = open_engine(cases.run_config(config, layout, STEPS, **settings))
    saved = of_course(halfway)
    engine.load(Memory(saved))
    held = difference(gathered(engine), saved)
    losses, norms = train(engine, range(STEPS // 2, STEPS))
    return {"held": held, "losses": losses, "norms": norms}


FIXES: dict[str, Callable[[], Any]] = {}


def fix(name: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """A way to take one of the fixes out."""

    def named(make: Callable[[], Any]) -> Callable[[], Any]:
        FIXES[name] = make
        return make

    return named


@fix("parts")
def _parts() -> Any:
    from xylem.train.engines.megatron.zero import ZeroUpdates

    return mock.patch.object(ZeroUpdates, "_sum_parts", lambda self: None)


@fix("ends")
def _ends() -> Any:
    from xylem.train.engines.megatron.zero import ZeroUpdates

    return mock.patch.object(ZeroUpdates, "_sum_ends", lambda self: None)


@fix("boundary")
def _boundary() -> Any:
    from xylem.train.engines.megatron.zero import ZeroUpdates

    return mock.patch.object(ZeroUpdates, "_boundary", lambda self, last: None)


@fix("division")
def _division() -> Any:
    from xylem.train.engines.megatron import model

    real = model.TransformerConfig

    def averaged(**settings: Any) -> Any:
        return real(**{**settings, "calculate_per_token_loss": False})

    return mock.patch.object(model, "TransformerConfig", averaged)


def main() -> None:
    """Runs the cases."""
    folder, *wanted = sys.argv[1:]
    torch.set_num_threads(1)
    megatron_on_cpu.install()
    dist.init_process_group("gloo")
    plain = {tied: cases.plain_course(cases.model(tied), STEPS) for tied in (True, False)}
    halfway = cases.plain_course(cases.model(), STEPS // 2, all_steps=STEPS)
    results: dict[str, Any] = {
        name: {"losses": plain[tied].losses, "norms": plain[tied].norms}
        for name, tied in (("plain", True), ("plain_untied", False))
    }
    for case in wanted:
        name, _, told = case.partition(":")
        pairs = dict(pair.split("=") for pair in told.split(",") if pair)
        kind, without = pairs.pop("kind", "course"), pairs.pop("without", "")
        tied = pairs.pop("tied", "true") == "true"
        sizes = {key: int(pairs.pop(key)) for key in LAYOUT if key in pairs}
        settings: dict[str, Any] = {}
        for key, value in pairs.items():
            flags = {"true": True, "false": False}
            settings[key] = flags.get(value, int(value) if value.isdigit() else value)
        with FIXES[without]() if without else nullcontext():
            if kind == "course":
                given = course(cases.model(tied), Layout(**sizes), plain[tied], **settings)
            else:
                given = resumed(cases.model(), Layout(**sizes), plain[True], halfway, **settings)
        results[name] = given
    if dist.get_rank() == 0:
        Path(folder, "results.json").write_text(json.dumps(results), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
