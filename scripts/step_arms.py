"""The arms of the step's bench: our decoder and Transformers' models, a batch, and a step of each.

A step is forward, backward, clipping and fused AdamW on packed documents of 100-2000 tokens, with
float32 weights in every arm. Read next: `bench_step.py`, which measures them; `peer_models.py`.
"""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..model.accounting import count_parameters
from ..model.config import LayerPlan, ModelConfig, RouterName, RoutingConfig
from ..model.decoder import DecoderExtras
from ..model.layout import Layout
from ..model.noise import row_keys
from ..model.objectives import IGNORED, next_token_loss
from ..model.routers import FamilySegment
from ..train.compose import compose_config
from ..train.engines.processes import Processes
from ..train.engines.torch import TorchEngine
from ..train.optimizer import OptimConfig
from ..train.profiling import part
from ..train.routing import StepRouting

FAMILIES = tuple(f"family_{number:02d}" for number in range(16))
LOADS = ("uniform", "zipf", "one")
"""Families of the batch's rows: all different, by a power law, all the same."""
ROUTERS: tuple[RouterName, ...] = ("family", "prior", "topk")
PEERS = ("qwen3", "mixtral", "qwen3_moe")
PRECISIONS = ("bf16", "fp32")
OPTIMIZER = OptimConfig(learning_rate=1e-3, warmup_steps=0)
STEPS = 1_000_000
"""Steps that a schedule is told of: the rate stays at its peak."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What a step is measured at."""

    hidden_size: int
    heads: int
    layers: tuple[int, int, int]
    """With experts, without, and with again."""
    width: int
    """Hidden units that a token uses in each layer."""
    expert_width: int
    """Of them, those of experts."""
    vocab_size: int
    rows: int
    sequence_length: int
    rounds: int

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.rows * self.sequence_length


FULL = Size(
    hidden_size=384, heads=6, layers=(3, 2, 3), width=1536, expert_width=512, vocab_size=8192,
    rows=4, sequence_length=2048, rounds=3,
)  # fmt: skip
QUICK = Size(
    hidden_size=192, heads=3, layers=(1, 1, 1), width=768, expert_width=256, vocab_size=4096,
    rows=2, sequence_length=1024, rounds=2,
)  # fmt: skip


def model_config(size: Size, router: RouterName) -> ModelConfig:
    """Our model: token routers have two experts a family of half the width, two for each token."""
    early, middle, late = size.layers
    each = size.expert_width if router == "family" else size.expert_width // 2
    routed = LayerPlan(
        repeat=early, trunk_width=size.width - size.expert_width, expert_width=each, router=router
    )
    return ModelConfig(
        vocab_size=size.vocab_size, hidden_size=size.hidden_size, heads=size.heads,
        kv_heads=size.heads // 3, head_dim=64,
        layer_plan=(
            routed, LayerPlan(repeat=middle, trunk_width=size.width), replace(routed, repeat=late)
        ),
        routing=RoutingConfig(),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Batch:
    """A step's tokens."""

    inputs_BT: Tensor
    targets_BT: Tensor
    documents_BT: Tensor
    segments: list[FamilySegment]

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        return Batch(
            self.inputs_BT.to(device), self.targets_BT.to(device), self.documents_BT.to(device),
            self.segments,
        )  # fmt: skip


def packed_batch(
    vocab_size: int, rows: int, sequence_length: int, load: str, families: Sequence[str]
) -> Batch:
    """Random tokens in documents of 100-2000, cut at the row's end as packing does."""
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, vocab_size, (rows, sequence_length + 1), generator=draw)
    documents = torch.zeros(rows, sequence_length + 1, dtype=torch.int64)
    for row in documents:
        place = 0
        while place <= sequence_length:
            place += int(torch.randint(100, 2001, (1,), generator=draw))
            row[place:] += 1
    targets = tokens[:, 1:].where(documents[:, 1:] == documents[:, :-1], IGNORED)
    return Batch(
        tokens[:, :-1].contiguous(), targets.contiguous(), documents[:, :-1].contiguous(),
        row_families(rows, load, families),
    )  # fmt: skip


def row_families(rows: int, load: str, families: Sequence[str]) -> list[FamilySegment]:
    """The rows' families, in order."""
    if load == "one":
        counts = [rows]
    elif load == "uniform":
        counts = [rows // len(families) + (i < rows % len(families)) for i in range(len(families))]
    else:
        weights = [1 / (i + 1) for i in range(len(families))]
        ends = [round(rows * sum(weights[: i + 1]) / sum(weights)) for i in range(len(families))]
        counts = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    segments, row = [], 0
    for family, count in zip(families, counts, strict=False):
        if count:
            segments.append(FamilySegment(family, row, row + count))
            row += count
    return segments


class Arm(Protocol):
    """A model in training."""

    def step(self, batch: Batch, precision: str) -> float:
        """One step; its loss."""


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """bf16 is autocast over float32 weights."""
    return nullcontext() if precision == "fp32" else torch.autocast(device.type, torch.bfloat16)


class Ours:
    """The decoder as the training loop runs it."""

    def __init__(self, config: ModelConfig, families: Sequence[str], processes: Processes) -> None:
        self.processes = processes
        run = compose_config([f"run.steps={STEPS}"])
        self.engine = TorchEngine(processes, Layout(data=processes.world))
        self.engine.build(
            replace(run, model=config, optim=OPTIMIZER, engine=processes.config),
            families,
            [frozenset(families)] * processes.world,
        )
        self.decoder = self.engine.decoder
        self.routing = StepRouting(self.decoder, processes)
        self.steps = 0

    def step(self, batch: Batch, precision: str) -> float:
        """As `train/loop.py`."""
        torch.use_deterministic_algorithms(True, warn_only=True)
        device = self.processes.device
        keys = row_keys(0, self.steps, torch.arange(len(batch.inputs_BT), device=device))
        extras = DecoderExtras()
        with autocast(precision, device):
            hidden = self.decoder(
                batch.inputs_BT, batch.documents_BT, batch.segments, keys_B=keys, extras=extras
            )
            with part("loss"):
                loss, _ = next_token_loss(hidden, self.decoder.head_weight_VD, batch.targets_BT)
        loss = loss / int((batch.targets_BT != IGNORED).sum())
        if extras.auxiliary is not None:
            loss = loss + extras.auxiliary / batch.inputs_BT.numel()
        loss.backward()
        self.routing.add(batch.inputs_BT, extras, batch.inputs_BT.shape[1])
        self.routing.gather(self.steps)
        families = tuple(segment.family for segment in batch.segments)
        self.engine.update(self.steps, self.routing.touched(families))
        self.routing.move()
        self.steps += 1
        torch.use_deterministic_algorithms(False)
        return loss.item()


class Theirs:
    """One of Transformers' models in the usual loop."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model: Any = model.to(device).train()
        self.device = device
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=OPTIMIZER.learning_rate, fused=True,
            betas=(OPTIMIZER.beta1, OPTIMIZER.beta2), weight_decay=OPTIMIZER.weight_decay,
        )  # fmt: skip
        self.implementations: dict[str, str] = {}

    def step(self, batch: Batch, precision: str) -> float:
        """Loss from the model, clipping and AdamW from PyTorch."""
        from .peer_models import positions_in_documents

        if precision in self.implementations:
            self.model.set_experts_implementation(self.implementations[precision])
        with autocast(precision, self.device):
            loss = self.model(
                input_ids=batch.inputs_BT, position_ids=positions_in_documents(batch.documents_BT),
                labels=batch.targets_BT, shift_labels=batch.targets_BT,
            ).loss  # fmt: skip
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), OPTIMIZER.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.item())

    def choose_implementation(self, batch: Batch, precision: str) -> None:
        """Takes the faster path of a mixture's experts."""
        from .peer_models import IMPLEMENTATIONS

        if not hasattr(self.model.config, "num_experts_per_tok"):
            self.step(batch, precision)
            return
        seconds = {}
        for name in IMPLEMENTATIONS:
            self.implementations[precision] = name
            self.step(batch, precision)
            seconds[name] = timed(self, batch, precision, self.device)
        self.implementations[precision] = min(seconds, key=lambda name: seconds[name])


def build_arm(name: str, size: Size, engine: Processes) -> Arm:
    """An arm by its name; the peers have the `family` arm's active or total parameters."""
    if name in ROUTERS:
        return Ours(model_config(size, name), FAMILIES, engine)
    from . import peer_models

    torch.manual_seed(0)
    config = model_config(size, "family")
    counts = count_parameters(config, FAMILIES)
    build = getattr(peer_models, name)
    return Theirs(build(config, counts.active if name == "qwen3" else counts.total), engine.device)


def parameters_of(arm: Arm) -> tuple[int, int]:
    """Active and all."""
    if isinstance(arm, Ours):
        counts = count_parameters(arm.decoder.config, arm.decoder.families)
        return counts.active, counts.total
    assert isinstance(arm, Theirs)
    from .peer_models import active_parameters

    return active_parameters(arm.model), sum(p.numel() for p in arm.model.parameters())


def timed(arm: Arm, batch: Batch, precision: str, device: torch.device) -> float:
    """Seconds of one step."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    arm.step(batch, precision)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started
