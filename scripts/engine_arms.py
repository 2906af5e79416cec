"""The arms of the engines' bench: one model, one stream of slots, and ways to train them together.

Run on several processes by `bench_engines.py`: PART FILE; the first process writes what the part
found. Every arm begins from the same weights and has the same global batches, so that their losses
must agree. Experts of the arms: with their families' data (family parallelism), reached by
all-to-all, replicated, in Megatron-core's expert layer, in DeepSpeed's.
Read next: `engine_parts.py`, what is measured with them.
"""

import atexit
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..data.allocation import Allocation
from ..data.ledger import SHARE_TOTAL
from ..data.order import SequenceId, Slot
from ..data.packing import IGNORED
from ..data.stream import MicroBatch
from ..model.config import LayerPlan, ModelConfig, RoutingConfig
from ..model.decoder import build_decoder, parameter_family, saved_tensors
from ..model.expert_parallel import expert_parallel_swiglu
from ..model.feed_forward import FeedForward, FeedForwardExtras, SwiGLU
from ..model.layout import Layout
from ..model.part import View, take
from ..model.routers import RoutingContext
from ..train.compose import compose_config
from ..train.config import EngineConfig, RunConfig
from ..train.engines.engine import Moves
from ..train.engines.placement import Holding
from ..train.engines.processes import Processes
from ..train.engines.torch import TorchEngine
from ..train.micro_batches import StepWork
from ..train.optimizer import OptimConfig, Optimizers

GIGABYTES = {
    "Afro-Asiatic": 412, "Austro-Asiatic": 353, "Austronesian": 424, "Indo-European": 15851,
    "Japonic": 1650, "Sino-Tibetan": 2682, "Turkic": 379, "Uralic": 413,
}  # fmt: skip
"""The eight largest families of FineWeb-2."""
FAMILIES = tuple(GIGABYTES)
MIXTURES = ("uniform", "real")
"""Families alike; shares by the square root of their sizes, which is data.mixture's default."""
OPTIMIZER = OptimConfig(learning_rate=1e-3, warmup_steps=0)
STEPS = 1_000_000
"""Steps that a schedule is told of: the rate stays at its peak."""
DISTINCT = 8
"""Global batches, used over and over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What is measured."""

    hidden_size: int
    width: int
    """Hidden units of a layer that a token uses."""
    expert_width: int
    """Of them, those of experts."""
    layers: int
    slots: int
    """Of a step, one sequence each."""
    sequence_length: int
    rounds: int

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.slots * self.sequence_length


FULL = Size(
    hidden_size=192, width=768, expert_width=384, layers=3, slots=16, sequence_length=256,
    rounds=5,
)  # fmt: skip
QUICK = Size(
    hidden_size=128, width=384, expert_width=192, layers=2, slots=16, sequence_length=128, rounds=4
)


def model_config(size: Size, *, router: str = "family", experts: bool = True) -> ModelConfig:
    """Experts in every layer; a token router has one a family."""
    trunk = size.width - size.expert_width * experts
    plan = LayerPlan(
        repeat=size.layers, trunk_width=trunk, expert_width=size.expert_width * experts,
        router=router,  # type: ignore[arg-type]
    )  # fmt: skip
    told = {} if router == "family" else {"top_k": 1, "experts_per_family": 1, "normalised": False}
    routing = RoutingConfig(**told)  # type: ignore[arg-type]
    return ModelConfig(
        vocab_size=512, hidden_size=size.hidden_size, heads=size.hidden_size // 32,
        kv_heads=size.hidden_size // 64, head_dim=32, layer_plan=(plan,), routing=routing,
    )  # fmt: skip


@dataclass(frozen=True)
class Step:
    """A global batch."""

    line: tuple[str, ...]
    """The family of every slot, in order."""
    inputs_BT: Tensor
    targets_BT: Tensor
    documents_BT: Tensor

    @cached_property
    def predicted(self) -> int:
        """Targets that are predicted."""
        return int((self.targets_BT != IGNORED).sum())

    def piece(self, index: int, of: int) -> MicroBatch:
        """One reader's slots, as one micro-batch."""
        each = len(self.line) // of
        rows = slice(index * each, (index + 1) * each)
        segments: list[tuple[str, int, int]] = []
        for row, family in enumerate(self.line[rows]):
            begin = segments.pop()[1] if segments and segments[-1][0] == family else row
            segments.append((family, begin, row + 1))
        slots = tuple(
            Slot(number, self.line[number], (SequenceId("made", 0, number),))
            for number in range(rows.start, rows.stop)
        )
        return MicroBatch(
            self.inputs_BT[rows], self.targets_BT[rows], self.documents_BT[rows],
            torch.zeros(each, dtype=torch.int64), tuple(segments), slots,
        )  # fmt: skip

    def moves(self, name: str) -> bool:
        """Whether some token uses a parameter."""
        family = parameter_family(name)
        return family is None or family in self.line


def global_batches(size: Size, mixture: str) -> list[Step]:
    """Random tokens; slots are dealt to families as the order deals them."""
    weights = [GIGABYTES[f] ** 0.5 if mixture == "real" else 1.0 for f in FAMILIES]
    shares = [round(SHARE_TOTAL * w / sum(weights)) for w in weights]
    shares[0] += SHARE_TOTAL - sum(shares)
    allocation, steps = Allocation(shares, size.slots), []
    for number in range(DISTINCT):
        generator = torch.Generator().manual_seed(number)
        given = allocation.given(number)
        line = tuple(FAMILIES[i] for i, first, last in given for _ in range(first, last))
        tokens = torch.randint(0, 512, (size.slots, size.sequence_length + 1), generator=generator)
        documents = torch.arange(size.sequence_length + 1) // (size.sequence_length // 2)
        documents = documents.expand(size.slots, -1)
        targets = tokens[:, 1:].where(documents[:, 1:] == documents[:, :-1], IGNORED)
        steps.append(Step(line, tokens[:, :-1].contiguous(), targets, documents[:, :-1]))
    return steps


def hosts(steps: Sequence[Step], pieces: int) -> list[frozenset[str]]:
    """Families that each piece of the line touches in some step; one never read is the first's."""
    held: list[set[str]] = [set() for _ in range(pieces)]
    for step in steps:
        each = len(step.line) // pieces
        for slot, family in enumerate(step.line):
            held[slot // each].add(family)
    held[0] |= set(FAMILIES) - set().union(*held)
    return [frozenset(names) for names in held]


class InMemory:
    """The first weights, of the decoder with family experts, by any arm's names."""

    def __init__(self, size: Size, *, experts: bool = True) -> None:
        decoder = build_decoder(model_config(size, experts=experts), FAMILIES, seed=0)
        self.whole = {name: t.detach().clone() for name, t in saved_tensors(decoder).items()}

    def read(
        self, kind: str, name: str, shape: tuple[int, ...], view: View, start: int, stop: int
    ) -> Tensor | None:
        """A piece; a token router's expert is a family's, its rows are not used."""
        whole = self.whole.get(name, self.whole.get(f"{name}.weight"))
        whole = torch.zeros(shape) if whole is None else whole
        return take(whole.reshape(shape), view).flatten()[start:stop].clone()


class Sums:
    """Takes losses as the metrics do."""

    def __init__(self) -> None:
        self.nll = torch.zeros((), dtype=torch.float64)

    def add(self, languages_B: Tensor, nll_BT: Tensor, kept_BT: Tensor, bytes_BT: Tensor) -> None:
        """Adds a micro-batch."""
        self.nll += nll_BT.detach().double().sum()


class Arm:
    """An engine in training."""

    def __init__(self, engine: Any, steps: Sequence[Step]) -> None:
        self.engine, self.steps, self.made = engine, steps, 0

    def step(self) -> float:
        """One step; its loss."""
        batch, sums = self.steps[self.made % len(self.steps)], Sums()
        readers = self.engine.layout.readers
        work = StepWork(
            [batch.piece(self.engine.place.data, readers)], keyed=(0, self.made),
            predicted=batch.predicted, size=batch.inputs_BT.numel(), z_weight=0.0,
            token_bytes=torch.ones(512, dtype=torch.int64), sums=sums,  # type: ignore[arg-type]
            counters=(), autocast=nullcontext,
        )  # fmt: skip
        self.engine.forward_backward(work)
        self.engine.update(self.made, batch.moves)
        self.made += 1
        dist.all_reduce(sums.nll)
        return float(sums.nll) / batch.predicted

    @property
    def parameters(self) -> int:
        """Parameters that this process holds."""
        return sum(p.numel() for p in self.engine.decoder.parameters())


def told_by_all_to_all(block: FeedForward) -> None:
    """Sends every token to its family's expert over the expert group, and no router's weights."""
    group = block.sharing.groups.expert
    assert group is not None

    def products(x_BTD: Tensor, context: RoutingContext) -> tuple[Tensor, FeedForwardExtras]:
        x_ND = x_BTD.flatten(0, 1)
        experts_N1 = context.families_B.repeat_interleave(x_BTD.shape[1])[:, None]
        routed_ND = expert_parallel_swiglu(
            x_ND, experts_N1, None, block._groups(), len(FAMILIES), group
        )
        return block.trunk(x_BTD) + routed_ND.view_as(x_BTD), FeedForwardExtras()

    block._products = products  # type: ignore[method-assign]


def told_by_deepspeed(block: FeedForward, index: int, processes: int) -> None:
    """DeepSpeed's expert layer, whose top-1 gate is told the family and drops no token."""
    from deepspeed.moe.layer import MoE
    from deepspeed.moe.sharded_moe import top1gating

    hidden_size = block.trunk.gate_up.in_features
    first = block.experts[FAMILIES[0]]
    assert isinstance(first, SwiGLU)
    width = first.down.in_features
    each = len(FAMILIES) // processes
    moe = MoE(
        hidden_size, SwiGLU(hidden_size, width), num_experts=len(FAMILIES), ep_size=processes,
        k=1, drop_tokens=False, use_rts=False,
    )  # fmt: skip
    moe.set_deepspeed_parallelism()
    told: dict[str, Tensor] = {}
    layer = moe.deepspeed_moe
    for local, expert in enumerate(layer.experts.deepspeed_experts):
        expert.load_state_dict(block.experts[FAMILIES[index * each + local]].state_dict())
    gate = layer.gate
    gate.wg.weight.requires_grad_(False)

    def choose(x_ND: Tensor, used: Any = None, sparse: bool = False, tutel: bool = False) -> Any:
        logits_NE = 1e4 * nn.functional.one_hot(told["N"], len(FAMILIES)).float()
        return top1gating(
            logits_NE, gate.capacity_factor, gate.min_capacity, None, None, False, False,
            gate.ep_group, sparse, tutel,
        )  # fmt: skip

    def products(x_BTD: Tensor, context: RoutingContext) -> tuple[Tensor, FeedForwardExtras]:
        told["N"] = context.families_B.repeat_interleave(x_BTD.shape[1])
        return block.trunk(x_BTD) + moe(x_BTD)[0], FeedForwardExtras()

    gate.forward = choose
    block.experts = nn.ModuleDict({"moe": moe})
    block._products = products  # type: ignore[method-assign]


class DeepSpeedMoeEngine(TorchEngine):
    """`engine=torch` with DeepSpeed's expert layer: the trunk is added up as in every arm."""

    def replace_experts(self, config: RunConfig) -> None:
        """After the first weights are there."""
        import deepspeed
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else it is compiled
        deepspeed.init_distributed("gloo", dist_init_required=False, verbose=False)
        for layer in self.decoder.layers:
            told_by_deepspeed(layer.feed_forward, self.processes.rank, self.processes.world)
        alone = Holding(group=None, holders=1, writes=False, writes_scalars=False)
        self.sum_groups |= {
            name: alone for name, _ in self.decoder.named_parameters() if ".moe." in name
        }
        self.optimizers = Optimizers(self.decoder, config.optim, config.run.steps)

    def update(self, step: int, moves: Moves) -> Any:
        """Moves experts by the families whose they are."""
        each = len(FAMILIES) // self.processes.world
        mark = "deepspeed_experts."

        def moves_here(name: str) -> bool:
            if ".moe." not in name:
                return moves(name)
            number = int(name.partition(mark)[2].split(".")[0]) if mark in name else None
            if number is None:
                return False
            family = FAMILIES[self.processes.rank * each + number]
            return moves(f"layers.0.feed_forward.experts.{family}.down.weight")

        return super().update(step, moves_here)


@cache
def run_root() -> Path:
    """A folder for what engines write beside a run, while this process lives."""
    root = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    (root / "bench").mkdir()
    return root


def run_config(size: Size, layout: Layout, **engine: Any) -> RunConfig:
    """The settings of an arm's run."""
    config = compose_config([f"run.steps={STEPS}", f"run.root={run_root()}", "run.name=bench"])
    chosen = EngineConfig(precision="fp32", threads=1, timeout_minutes=5, layout=layout, **engine)
    data = replace(config.data, sequence_length=size.sequence_length)
    return replace(config, optim=OPTIMIZER, engine=chosen, data=data)


def build_arm(name: str, size: Size, mixture: str, processes: Processes) -> Arm:
    """An arm by its name."""
    world, steps = processes.world, global_batches(size, mixture)
    layouts = {
        "family": Layout(data=1, family=world),
        "all_to_all": Layout(data=world, expert=world),
        "replicated": Layout(data=world),
        "deepspeed_moe": Layout(data=world),
        "megatron_moe": Layout(data=world, expert=world),
    }
    layout = layouts[name]
    config = run_config(size, layout, name="megatron" if name == "megatron_moe" else "torch")
    config = replace(
        config, model=model_config(size, router="topk" if name == "all_to_all" else "family")
    )
    hosted = hosts(steps, world) if name == "family" else [frozenset(FAMILIES)] * world
    if name == "megatron_moe":
        engine: Any = megatron_engine(config, layout)
    else:
        made: Callable[..., TorchEngine] = TorchEngine
        engine = (DeepSpeedMoeEngine if name == "deepspeed_moe" else made)(processes, layout)
    engine.build(config, FAMILIES, hosted)
    engine.load(InMemory(size), optimizer=False)
    if name == "deepspeed_moe":
        engine.replace_experts(config)
    if name == "all_to_all":
        for layer in engine.decoder.layers:
            told_by_all_to_all(layer.feed_forward)
    return Arm(engine, steps)


def megatron_engine(config: RunConfig, layout: Layout, *, told: bool = True) -> Any:
    """Megatron-core's layers; on the CPU they need the tests' stand-ins for CUDA's calls.

    Args:
        told: with Megatron's expert layer, told the family; else `engine=megatron`.
    """
    if not torch.cuda.is_available():
        import importlib

        importlib.import_module("tests.megatron_on_cpu").install()
    from megatron.core import parallel_state

    from ..train.engines.megatron.engine import MegatronEngine
    from .megatron_moe_arm import MegatronMoeArm

    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    with mock.patch.object(dist, "init_process_group"):  # it is there already
        processes = Processes(config.engine)
    return (MegatronMoeArm if told else MegatronEngine)(processes, layout)


def build_trunk_arm(name: str, size: Size, processes: Processes, *, shard: str = "none") -> Arm:
    """An engine by its name on the trunk alone, processes reading different slots."""
    layout = Layout(data=processes.world)
    config = run_config(size, layout, name=name, shard=shard)
    config = replace(config, model=model_config(size, experts=False))
    if name == "megatron":
        engine: Any = megatron_engine(config, layout, told=False)
    elif name == "deepspeed":
        from ..train.engines.deepspeed.engine import DeepSpeedEngine

        engine = DeepSpeedEngine(processes, layout)
    else:
        engine = TorchEngine(processes, layout)
    engine.build(config, FAMILIES, [frozenset(FAMILIES)] * processes.world)
    engine.load(InMemory(size, experts=False), optimizer=False)
    return Arm(engine, global_batches(size, "uniform"))
