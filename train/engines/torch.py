"""The default engine: PyTorch's own parallelism, with experts where their families' data is.

One rule covers every layout: a parameter's gradient is the sum over the processes that hold the
same piece of it. Losses are sums over tokens, divided by those of the global batch, so that nothing
is averaged. FSDP2 adds up the trunk's where it shards it; the rest is added here.
Read next: `placement.py`, who holds what; `../../model/part.py`.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from ...model.collectives import Sharing
from ...model.decoder import (
    Decoder,
    build_decoder,
    canonical_views,
    is_trunk,
    parameter_family,
    saved_tensors,
)
from ...model.layout import Layout
from ...model.objectives import next_token_loss
from ...model.routers import FamilySegment
from ..config import RunConfig
from ..micro_batches import StepWork
from ..optimizer import Optimizers, clip_gradients, gradient_norm
from ..pieces import OPTIMIZER, WEIGHTS, Piece, Reader, whole_piece
from ..stages import chosen_stages
from .checks import check_engine
from .compiling import compile_dense
from .engine import Moves, StepResult
from .pipeline import Pipeline
from .placement import Placement, local_stretch
from .processes import Processes
from .sums import sum_together


class TorchEngine:
    """PyTorch over the processes of torchrun or srun."""

    decoder: Decoder
    optimizers: Optimizers

    def __init__(self, processes: Processes, layout: Layout) -> None:
        """
        Args:
            layout: resolved.
        """
        self.processes, self.layout = processes, layout
        self.place = layout.place(processes.rank)

    def build(
        self, config: RunConfig, families: Sequence[str], hosted: Sequence[frozenset[str]]
    ) -> None:
        """Makes this process's part of the decoder, and its optimisers.

        Raises:
            ModelError: the layout cannot cut this model.
            UserError: there is no compiler, or an optimiser that cannot work on parts.
        """
        check_engine(config, self.layout, families)
        stages = chosen_stages(config, families, self.layout, self.processes)
        self.placement = Placement(config.model, families, self.layout, hosted, stages)
        groups = self.placement.groups(self.processes)
        sharing = Sharing(self.placement.parts[self.processes.rank], groups)
        self.decoder = build_decoder(config.model, families, seed=config.run.seed, sharing=sharing)
        self.decoder.to(self.processes.device)
        self.views = canonical_views(self.decoder)
        self.decoder.recompute = config.engine.recompute
        if config.engine.compile:
            compile_dense(self.decoder, self.processes.device)
        self.sharded = config.engine.shard == "full" and self.processes.world > 1
        if self.sharded:
            self._shard()
        self.together = self.sharded or self.layout.expert > 1
        self.pipeline: Pipeline | None = None
        if self.layout.pipeline > 1:
            self.pipeline = Pipeline(
                self.decoder, stages, layout=self.layout, processes=self.processes,
                group=self.placement.pipeline_group(self.processes),
                rows=config.engine.micro_slots * config.data.slot_sequences,
                sequence_length=config.data.sequence_length, sharded=self.sharded,
            )  # fmt: skip
        self.layer_group = self.placement.stage_group(self.processes)
        self.sum_groups = self.placement.sum_groups(self.decoder, self.processes, self.sharded)
        self.optimizers = Optimizers(self.decoder, config.optim, config.run.steps)
        self.clip_norm = config.optim.clip_norm

    def _shard(self) -> None:
        """FSDP2 on the trunk; experts stay whole where they are hosted."""
        experts = {p for n, p in self.decoder.named_parameters() if not is_trunk(n)}
        half = self.processes.precision == "bf16"
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        settings: dict[str, Any] = {
            "mesh": self.placement.shard_mesh(self.processes),
            "ignored_params": experts,
            "mp_policy": policy if half else MixedPrecisionPolicy(),
        }
        for module in (*self.decoder.layers, self.decoder):
            fully_shard(module, **settings)
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)

    def forward_backward(self, work: StepWork) -> None:
        """Runs the micro-batches one after the other, or through the pipeline."""
        if self.pipeline is not None:
            return self.pipeline.forward_backward(work)
        for index in range(work.count):
            if self.sharded:
                last = index == work.count - 1
                self.decoder.set_requires_gradient_sync(last)  # type: ignore[operator]
            hidden = work.forward(self.decoder, index)
            work.loss(hidden, self.decoder.head_weight_VD, index, self.decoder.sharing).backward()

    def update(self, step: int, moves: Moves) -> StepResult:
        """Adds up gradients, clips, and moves what has one."""
        self.reduce_gradients(moves)
        norm = self.gradient_norm()
        check_norm(norm.item(), step)
        clip_gradients(self._gradients(), norm, self.clip_norm)
        return StepResult(norm.item(), self.optimizers.step(step))

    def reduce_gradients(self, moves: Moves) -> None:
        """Sums each gradient over those who hold the same piece; what does not move has none."""
        forget_unmoved(self.decoder, moves)
        groups: dict[tuple[str | None, int], tuple[dist.ProcessGroup, list[Tensor]]] = {}
        for name, parameter in self.decoder.named_parameters():
            if self.processes.world == 1 or not moves(name):
                continue
            # Where no token came: another process may hold the rest of it, which moves.
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            group = self.sum_groups[name].group
            if group is None:
                continue
            key = parameter_family(name), id(group)
            groups.setdefault(key, (group, []))[1].append(local(parameter.grad))
        for group, gradients in groups.values():
            sum_together(gradients, group)

    def _gradients(self) -> list[Tensor]:
        return [local(p.grad) for p in self.decoder.parameters() if p.grad is not None]

    def gradient_norm(self) -> Tensor:
        """The norm of the whole model's gradient, each piece counted once; scalar float32."""
        if self.processes.world == 1:
            return gradient_norm(self._gradients())
        square = torch.zeros((), dtype=torch.float64, device=self.processes.device)
        gradients, copies = [], []
        for name, parameter in self.decoder.named_parameters():
            if parameter.grad is not None and local(parameter.grad).numel():
                gradients.append(local(parameter.grad))
                copies.append(self.sum_groups[name].holders)
        if gradients:
            norms = torch.stack(torch._foreach_norm(gradients)).double()
            square = (norms.square() / norms.new_tensor(copies)).sum()
        return self.processes.sum(square).sqrt().float()

    def layer_sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over the processes that hold the same layers, in place."""
        if self.layer_group is not None:
            dist.all_reduce(values, group=self.layer_group)
        return values

    @torch.no_grad()
    def score(
        self,
        inputs_BT: Tensor,
        targets_BT: Tensor,
        documents_BT: Tensor,
        segments: Sequence[FamilySegment],
    ) -> Tensor:
        """nll_BT of next tokens; zeros at positions that another process counts."""
        sharing = self.decoder.sharing
        self.decoder.eval()
        try:
            if self.pipeline is not None:
                nll_BT = self.pipeline.score(inputs_BT, targets_BT, documents_BT, segments)
                return spread(nll_BT, inputs_BT, sharing)
            with self.processes.autocast():
                hidden = self.decoder(inputs_BT, documents_BT, segments)
                _, nll_BT = next_token_loss(
                    hidden, self.decoder.head_weight_VD, sharing.here(targets_BT), sharing=sharing
                )
            return spread(nll_BT, inputs_BT, sharing)
        finally:
            self.decoder.train()

    def pieces(self) -> Iterator[Piece]:
        """What this process writes."""
        for name, tensor in saved_tensors(self.decoder).items():
            if self.sum_groups[name].writes:
                yield self._piece(WEIGHTS, name, name, tensor)
        for name, key, value in self.optimizers.state():
            holding = self.sum_groups[name]
            if value.ndim:
                if holding.writes:
                    yield self._piece(OPTIMIZER, name, f"{name}/{key}", value)
            elif holding.writes_scalars:
                yield whole_piece(OPTIMIZER, f"{name}/{key}", value)

    def _piece(self, kind: str, parameter: str, name: str, tensor: Tensor) -> Piece:
        shape, view = self.views[parameter]
        start, stop = local_stretch(tensor, view)
        return Piece(
            kind=kind, name=name, shape=shape, view=view, start=start, stop=stop,
            tensor=local(tensor),
        )  # fmt: skip

    @torch.no_grad()
    def load(self, reader: Reader, *, optimizer: bool = True) -> None:
        """Fills weights and optimiser state; a parameter that was never moved has none."""

        def read(kind: str, parameter: str, name: str, like: Tensor) -> Tensor | None:
            shape, view = self.views[parameter]
            return reader.read(kind, name, shape, view, *local_stretch(like, view))

        for name, tensor in saved_tensors(self.decoder).items():
            values = read(WEIGHTS, name, name, tensor)
            assert values is not None, f"the checkpoint's check let {name} pass"
            local(tensor).copy_(values.view_as(local(tensor)))
        if not optimizer:
            return

        def state_of(name: str, key: str, parameter: Tensor) -> Tensor | None:
            if key == "step":
                return reader.read(OPTIMIZER, f"{name}/step", (), (), 0, 1)
            values = read(OPTIMIZER, name, f"{name}/{key}", parameter)
            if values is None:
                return None
            held = torch.zeros_like(parameter)
            local(held).copy_(values.view_as(local(held)))
            return held

        self.optimizers.load(state_of)


def forget_unmoved(decoder: nn.Module, moves: Moves) -> None:
    """Drops the gradients of what a step does not move, zeros included."""
    for name, parameter in decoder.named_parameters():
        if not moves(name):
            parameter.grad = None


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a DTensor; other tensors as they are."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def spread(nll_BT: Tensor, inputs_BT: Tensor, sharing: Sharing) -> Tensor:
    """A process's token losses at their places in the whole sequences, zeros elsewhere."""
    if sharing.part.tensor[0] or not sharing.part.last:
        return nll_BT.new_zeros(inputs_BT.shape)
    positions = sharing.positions(inputs_BT.shape[1], inputs_BT.device)
    if positions is None:
        return nll_BT
    whole_BT = nll_BT.new_zeros(inputs_BT.shape)
    whole_BT[:, positions] = nll_BT
    return whole_BT


def check_norm(norm: float, step: int) -> None:
    """Stops before a gradient that is no number reaches the weights.

    Raises:
        FloatingPointError: it is infinite or NaN.
    """
    if not math.isfinite(norm):
        raise FloatingPointError(
            f"the gradient's norm is {norm} at step {step + 1}: resume the last checkpoint with a "
            "lower optim.learning_rate, or with debug.anomaly=true to find the operation"
        )
