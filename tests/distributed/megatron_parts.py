"""Run as a module by test_megatron.py on several processes: FOLDER CASES…; writes what each gave.

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
from xylem.model.decoder import build_decoder
from xylem.model.layout import Layout
from xylem.model.objectives import next_token_loss
from xylem.model.part import View, runs, share, take
from xylem.model.routers import FamilySegment
from xylem.train.micro_batches import StepWork
from xylem.train.pieces import OPTIMIZER, WEIGHTS

from .. import megatron_on_cpu
from . import megatron_cases as cases

STEPS, FEW = 20, 5
LAYOUT = ("data", "family", "tensor", "context", "pipeline", "virtual", "expert")


Whole = dict[tuple[str, str], Tensor]
"""(kind, name) -> a canonical tensor, flat."""


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


def open_engine(config: Any, dispatcher: str = "") -> Any:
    """The engine of a case, built; with a dispatcher Megatron's own expert layer."""
    from megatron.core import parallel_state

    from xylem.scripts.megatron_moe_arm import MegatronMoeArm
    from xylem.train.engines.megatron.engine import MegatronEngine
    from xylem.train.engines.processes import Processes

    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    with mock.patch.object(dist, "init_process_group"):  # it is there already
        processes = Processes(config.engine)
    layout = config.engine.layout.resolved(processes.world)
    engine: Any = MegatronEngine(processes, layout)
    if dispatcher:
        engine = MegatronMoeArm(processes, layout, dispatcher)  # type: ignore[arg-type]
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


def gathered(engine: Any) -> Whole:
    """Whole canonical tensors from all processes' pieces; every element exactly once."""
    mine = [(p.kind, p.name, p.shape, list(runs(p.shape, p.view, p.start, p.stop)),
             p.tensor.detach().float().flatten().clone()) for p in engine.pieces()]  # fmt: skip
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, mine)
    whole: Whole = {}
    written: Whole = {}
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

    def __init__(self, whole: Whole) -> None:
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


def of_course(course: cases.Course) -> Whole:
    """A plain course's end as a checkpoint."""
    whole = {(WEIGHTS, name): w.flatten().clone() for name, w in course.weights.items()}
    return whole | {(OPTIMIZER, n): s.flatten().clone() for n, s in course.state.items()}


def difference(whole: Whole, other: Whole) -> float:
    """The largest norm of a tensor's difference, against its own."""
    assert whole.keys() == other.keys(), sorted(whole.keys() ^ other.keys())[:4]
    return max(
        float((whole[key] - values).norm() / values.norm().clamp_min(1e-12))
        for key, values in other.items()
    )


def course(
    config: ModelConfig, layout: Layout, plain: cases.Course, dispatcher: str = "",
    **settings: Any,
) -> Any:  # fmt: skip
    """Trains as `plain` did; says how far the course went apart."""
    steps = len(plain.losses)
    engine = open_engine(cases.run_config(config, layout, STEPS, **settings), dispatcher)
    losses, norms = train(engine, range(steps))
    end, expected = gathered(engine), of_course(plain)
    return {
        "losses": losses,
        "norms": norms,
        "weights": difference(only(end, WEIGHTS), only(expected, WEIGHTS)),
        "state": difference(only(end, OPTIMIZER), only(expected, OPTIMIZER)),
    }


def only(whole: Whole, kind: str) -> Whole:
    """The tensors of a kind."""
    return {key: value for key, value in whole.items() if key[0] == kind}


def resumed(config: ModelConfig, layout: Layout, halfway: cases.Course, **settings: Any) -> Any:
    """Takes over the plain course's checkpoint of step 10 and goes on from there."""
    engine = open_engine(cases.run_config(config, layout, STEPS, **settings))
    saved = of_course(halfway)
    engine.load(Memory(saved))
    held = difference(gathered(engine), saved)
    losses, norms = train(engine, range(STEPS // 2, STEPS // 2 + FEW))
    return {"held": held, "losses": losses, "norms": norms}


def resharded(config: ModelConfig, layout: Layout, **settings: Any) -> Any:
    """Trains some steps, gives the end to the layout of data ranks alone, and makes one more."""
    engine = open_engine(cases.run_config(config, layout, STEPS, **settings))
    train(engine, range(FEW))
    between = gathered(engine)
    engine = open_engine(cases.run_config(config, Layout(), STEPS, **settings))
    engine.load(Memory(between))
    losses, norms = train(engine, range(FEW, FEW + 1))
    return {"loss": losses[0], "norm": norms[0]}


def rare(config: ModelConfig, layout: Layout, *, moves_all: bool = False, **settings: Any) -> Any:
    """How far a family goes in the two steps in which it has no slot, and in the one it has."""
    engine = open_engine(cases.run_config(config, layout, STEPS, **settings))

    def bantu() -> Whole:
        return {key: value for key, value in gathered(engine).items() if ".bantu." in key[1]}

    def after(steps: range) -> Whole:
        for step in steps:
            batch = cases.step_batch(step)
            engine.forward_backward(work_of(batch, engine, Sums()))
            engine.update(step, (lambda name: True) if moves_all else batch.moves)
        return bantu()

    first, idle, used = after(range(1)), after(range(1, 3)), after(range(3, 4))
    return {"idle": difference(idle, first), "used": difference(used, idle)}


def scored(config: ModelConfig, layout: Layout, **settings: Any) -> Any:
    """How far held-out losses are from the canonical decoder's."""
    engine = open_engine(cases.run_config(config, layout, STEPS, **settings))
    micro = cases.step_batch(0).micros[0]
    segments = [FamilySegment(*segment) for segment in micro.segments]
    nll_BT = engine.score(micro.inputs_BT, micro.targets_BT, micro.documents_BT, segments)
    nll_BT = nll_BT.detach().clone()
    dist.all_reduce(nll_BT)
    decoder = build_decoder(config, cases.FAMILIES, seed=5)
    with torch.no_grad():
        hidden = decoder(micro.inputs_BT, micro.documents_BT, segments)
        _, expected_BT = next_token_loss(hidden, decoder.head_weight_VD, micro.targets_BT)
    return {"nll": float((nll_BT / engine.layout.readers - expected_BT).abs().max())}


def told(config: ModelConfig, layout: Layout, **settings: Any) -> Any:
    """The losses that a schedule tells, where Megatron divides losses in their place."""
    from xylem.train.engines.megatron.schedule import run_schedule, unwrapped

    engine = open_engine(cases.run_config(config, layout, STEPS, **settings))
    chunks = engine.updates.chunks
    unwrapped(chunks[0]).config.calculate_per_token_loss = False
    work = work_of(cases.step_batch(0), engine, Sums())
    made: list[float] = []

    def loss(hidden_BTD: Tensor, head_VD: Tensor, index: int) -> Tensor:
        value = work.loss(hidden_BTD, head_VD, index, engine.sharing)
        made.append(float(value))
        return value

    def rows(index: int) -> Any:
        micro = work.micro(index)
        return engine._rows(micro.inputs_BT, micro.documents_BT, micro.segments)

    values = run_schedule(chunks, count=work.count, rows=rows, result=loss, backward=True)
    return {"made": made, "told": [float(value) for value in values]}


FIXES: dict[str, Callable[[], Any]] = {}


def fix(name: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """A way to take one of the fixes out."""

    def named(make: Callable[[], Any]) -> Callable[[], Any]:
        FIXES[name] = make
        return make

    return named


def _but(skipped: Callable[[str], bool]) -> Any:
    from xylem.train.engines.megatron.zero import ZeroUpdates

    real = ZeroUpdates._sum_parts

    def some(self: Any) -> None:
        every = self.held
        self.held = {name: one for name, one in every.items() if not skipped(name)}
        real(self)
        self.held = every

    return mock.patch.object(ZeroUpdates, "_sum_parts", some)


@fix("qk_norms")
def _qk_norms() -> Any:
    return _but(lambda name: "q_norm" in name or "k_norm" in name)


@fix("layer_norms")
def _layer_norms() -> Any:
    return _but(lambda name: name.endswith(("attention_norm.weight", "feed_forward_norm.weight")))


@fix("ends")
def _ends() -> Any:
    from xylem.train.engines.megatron.zero import ZeroUpdates

    return mock.patch.object(ZeroUpdates, "_sum_ends", lambda self: None)


@fix("sum")
def _sum() -> Any:
    import deepspeed

    real = deepspeed.initialize

    def averaged(*, config: dict[str, Any], **others: Any) -> Any:
        return real(config={**config, "gradient_allreduce_op": "mean"}, **others)

    return mock.patch.object(deepspeed, "initialize", averaged)


@fix("division")
def _division() -> Any:
    from xylem.train.engines.megatron import model

    real = model.TransformerConfig

    def averaged(**settings: Any) -> Any:
        return real(**{**settings, "calculate_per_token_loss": False})

    return mock.patch.object(model, "TransformerConfig", averaged)


@fix("halves")
def _halves() -> Any:
    """Gate and up in one stretch a rank, as a merge that does not know of halves takes them."""
    from xylem.train.engines.megatron import weights

    real = weights.parameter_view

    def merged(name: str, shape: Any, part: Any, *others: Any) -> Any:
        view = real(name, shape, part, *others)
        if view is not None and "gate_up" in name:
            view = ((share(shape[0], *part.tensor),), *view[1:])
        return view

    return mock.patch.object(weights, "parameter_view", merged)


@fix("copy")
def _copy() -> Any:
    from xylem.train.engines.megatron import schedule

    return mock.patch.object(schedule, "reported", lambda loss: loss.detach())


def main() -> None:
    """Runs the cases."""
    folder, *wanted = sys.argv[1:]
    torch.set_num_threads(1)
    megatron_on_cpu.install()
    dist.init_process_group("gloo")
    plain = {
        (tied, steps): cases.plain_course(cases.model(tied), steps, all_steps=STEPS)
        for tied, steps in ((True, STEPS), (True, STEPS // 2), (True, FEW), (False, FEW))
    }
    results: dict[str, Any] = {
        name: {"losses": plain[key].losses, "norms": plain[key].norms}
        for name, key in (("plain", (True, STEPS)), ("plain_untied", (False, FEW)))
    }
    for case in wanted:
        name, _, told_by = case.partition(":")
        pairs = dict(pair.split("=") for pair in told_by.split(",") if pair)
        kind, without = pairs.pop("kind", "course"), pairs.pop("without", "")
        tied, steps = pairs.pop("tied", "true") == "true", int(pairs.pop("steps", STEPS))
        layout = Layout(**{key: int(pairs.pop(key)) for key in LAYOUT if key in pairs})
        config, halfway = cases.model(tied), plain[True, STEPS // 2]
        together = mock.patch.object(cases, "TOGETHER", int(pairs.pop("together", 2)))
        settings = {key: setting(value) for key, value in pairs.items()}
        with together, FIXES[without]() if without else nullcontext():
            match kind:
                case "course":
                    results[name] = course(config, layout, plain[tied, steps], **settings)
                case "resumed":
                    results[name] = resumed(config, layout, halfway, **settings)
                case _:
                    parts = {"resharded": resharded, "rare": rare, "scored": scored, "told": told}
                    results[name] = parts[kind](config, layout, **settings)
    if dist.get_rank() == 0:
        Path(folder, "results.json").write_text(json.dumps(results), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


def setting(value: str) -> bool | int | str:
    """A setting's value."""
    flags = {"true": True, "false": False}
    return flags.get(value, int(value) if value.isdigit() else value)


if __name__ == "__main__":
    main()
