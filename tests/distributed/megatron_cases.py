"""A small model, its batches and its plain training, which every Megatron layout must repeat.

Batches are made by hand: slots of uneven families in the line's order, documents of unequal length,
targets that are not predicted, and steps in which a family has no slot.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from xylem.data.order import SequenceId, Slot
from xylem.data.stream import MicroBatch
from xylem.model.config import LayerPlan, ModelConfig
from xylem.model.decoder import Decoder, build_decoder, parameter_family
from xylem.model.layout import Layout
from xylem.model.objectives import IGNORED, next_token_loss
from xylem.model.routers import FamilySegment
from xylem.train.engines.megatron.config import MegatronConfig
from xylem.train.optimizer import OptimConfig, Optimizers, clip_gradients, gradient_norm

FAMILIES = ("bantu", "germanic", "turkic", "uralic")
POSITIONS, ROWS, SLOTS, TOGETHER = 32, 2, 8, 2


def model(tied: bool = True) -> ModelConfig:
    """Three layers of unequal width, the middle one without experts."""
    return ModelConfig(
        vocab_size=96, hidden_size=32, heads=4, kv_heads=2, head_dim=8, tied_embeddings=tied,
        layer_plan=(
            LayerPlan(trunk_width=64, expert_width=16),
            LayerPlan(trunk_width=80),
            LayerPlan(trunk_width=48, expert_width=32),
            LayerPlan(trunk_width=64),
        ),
    )  # fmt: skip


OPTIM = OptimConfig(learning_rate=3e-3, warmup_steps=4, clip_norm=0.7, z_loss=1e-3)


def families_of(step: int) -> tuple[str, ...]:
    """The line of slots: uneven, and bare of the first family in two steps of three."""
    rare = ("bantu",) if step % 3 == 0 else ("germanic",)
    return (*rare, *("germanic",) * 4, *("turkic",) * (1 - step % 2), *("uralic",) * (2 + step % 2))


@dataclass(frozen=True)
class Step:
    """A global batch."""

    micros: list[MicroBatch]
    families: tuple[str, ...]

    @property
    def predicted(self) -> int:
        """Targets that are predicted."""
        return sum(int((m.targets_BT != IGNORED).sum()) for m in self.micros)

    def moves(self, name: str) -> bool:
        """Whether some token uses a parameter."""
        family = parameter_family(name)
        return family is None or family in self.families


def step_batch(step: int) -> Step:
    """The global batch of a step, two slots a micro-batch."""
    generator = torch.Generator().manual_seed(step)
    line = families_of(step)
    rows: list[tuple[Tensor, Tensor, Tensor, Slot]] = []
    for number, family in enumerate(line):
        begin = torch.randint(0, 96, (ROWS, 1), generator=generator)
        pace = 1 + FAMILIES.index(family)
        tokens = (begin + pace * torch.arange(POSITIONS + 1)) % 96
        lengths = torch.randint(5, 20, (ROWS, 1), generator=generator)
        documents = torch.arange(POSITIONS) // lengths
        targets = tokens[:, 1:].clone()
        targets[:, :-1][documents[:, 1:] != documents[:, :-1]] = IGNORED
        ids = tuple(SequenceId("made", 0, ROWS * number + row) for row in range(ROWS))
        rows.append((tokens[:, :-1], targets, documents, Slot(number, family, ids)))
    micros = [_micro(*zip(*rows[i : i + TOGETHER], strict=True)) for i in range(0, SLOTS, TOGETHER)]
    return Step(micros, tuple(dict.fromkeys(line)))


def _micro(
    tokens: tuple[Tensor, ...], targets: tuple[Tensor, ...], documents: tuple[Tensor, ...],
    slots: tuple[Slot, ...],
) -> MicroBatch:  # fmt: skip
    segments: list[tuple[str, int, int]] = []
    for at, slot in enumerate(slots):
        if segments and segments[-1][0] == slot.family:
            segments[-1] = (slot.family, segments[-1][1], (at + 1) * ROWS)
        else:
            segments.append((slot.family, at * ROWS, (at + 1) * ROWS))
    return MicroBatch(
        torch.cat(tokens), torch.cat(targets), torch.cat(documents),
        torch.zeros(ROWS * len(slots), dtype=torch.int64), tuple(segments), slots,
    )  # fmt: skip


@dataclass
class Course:
    """What training gave."""

    losses: list[float]
    """Nats a token."""
    norms: list[float]
    weights: dict[str, Tensor]
    state: dict[str, Tensor]
    """`parameter/state` -> Adam's state."""


def plain_course(config: ModelConfig, steps: int, *, all_steps: int | None = None) -> Course:
    """The course of the canonical decoder on one process."""
    decoder = build_decoder(config, FAMILIES, seed=5)
    optimizers = Optimizers(decoder, OPTIM, all_steps or steps)
    losses, norms = [], []
    for step in range(steps):
        batch = step_batch(step)
        total = 0.0
        for micro in batch.micros:
            loss, nll_BT = _loss(decoder, micro)
            (loss / batch.predicted).backward()
            total += float(nll_BT.double().sum()) / batch.predicted
        gradients = [p.grad for p in decoder.parameters() if p.grad is not None]
        norm = gradient_norm(gradients)
        clip_gradients(gradients, norm, OPTIM.clip_norm)
        optimizers.step(step)
        losses.append(total)
        norms.append(norm.item())
    names = {p: name for name, p in decoder.named_parameters()}
    state = {
        f"{names[p]}/{key}": value
        for optimizer, _ in optimizers.optimizers
        for p, held in optimizer.state.items()
        for key, value in held.items()
    }
    weights = {name: p.detach() for name, p in decoder.named_parameters()}
    return Course(losses, norms, weights, state)


def _loss(decoder: Decoder, micro: MicroBatch) -> tuple[Tensor, Tensor]:
    segments = [FamilySegment(*segment) for segment in micro.segments]
    hidden = decoder(micro.inputs_BT, micro.documents_BT, segments)
    return next_token_loss(hidden, decoder.head_weight_VD, micro.targets_BT, z_weight=OPTIM.z_loss)


def run_config(
    config: ModelConfig, layout: Layout, steps: int, *, optimizer: str = "distributed",
    recompute: int = 0, precision: str = "fp32", **settings: Any,
) -> Any:  # fmt: skip
    """What of a run's config an engine reads."""
    return SimpleNamespace(
        run=SimpleNamespace(seed=5, steps=steps),
        model=config,
        optim=OPTIM,
        logging=SimpleNamespace(samples_every=0, parallel_sentences=None),
        data=SimpleNamespace(
            sequence_length=POSITIONS, slots_per_step=SLOTS, slot_sequences=ROWS
        ),
        engine=SimpleNamespace(
            name="megatron", layout=layout, optimizer=optimizer, recompute=recompute,
            compile=False, shard="none", micro_slots=TOGETHER, timeout_minutes=1.0, threads=1,
            precision=precision, peak_tflops=0.0, megatron=MegatronConfig(**settings),
        ),
    )  # fmt: skip
