"""Pipeline parallelism: micro-batches go through pieces of the layers, each on its own process.

PyTorch's schedules (1F1B; interleaved where a process has several pieces; fill and drain where
there are fewer micro-batches than stages) send hidden states forward and their gradients back. A
piece finds its micro-batch by number in the step's work, so only hidden states travel; the loss is
made on the last piece, losses of routers where they arise. Gradients are plain sums.
Shapes: B sequences, T positions, D model. Read next: `../stages.py`, who runs which layers.
"""

from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
)

from ...model.decoder import Decoder
from ...model.layout import Layout
from ...model.objectives import next_token_loss
from ...model.routers import FamilySegment
from ..micro_batches import Counter, StepWork
from .processes import Processes


class Piece(nn.Module):
    """Some layers of a decoder, as a schedule runs them."""

    def __init__(self, decoder: Decoder, layers: Sequence[int], *, sharded: bool) -> None:
        super().__init__()
        self.decoder, self.layers, self.sharded = decoder, tuple(layers), sharded
        self.work: StepWork | None = None

    def forward(self, hidden_BTD: Tensor | None = None, *, index: Tensor) -> Tensor:
        """Hidden states after these layers.

        Args:
            hidden_BTD: what the piece before sent; None on the first.
            index: number of the micro-batch, one element, on the CPU.
        """
        assert self.work is not None
        number, last = int(index), self.work.count - 1
        out_BTD = self.work.forward(self.decoder, number, hidden_BTD, self.layers)
        if self.sharded:
            # FSDP2 adds gradients up over the processes after the last micro-batch's backward pass.
            def begin(_: Tensor) -> None:
                self.decoder.set_requires_gradient_sync(number == last)  # type: ignore[operator]

            out_BTD.register_hook(begin)
        return out_BTD.float()


def _seen_before(work: StepWork) -> StepWork:
    """The same work for a process's later pieces: their layers are new, their tokens are not."""
    later = copy(work)

    def without_positions(counter: Counter) -> Counter:
        return lambda languages_B, extras, _: counter(languages_B, extras, 0)

    later.counters = tuple(map(without_positions, work.counters))
    return later


class _AlternatingStage(PipelineStage):
    """A stage of 1F1B, where micro-batches that are never here together share a buffer.

    PyTorch keeps one for each of a step's micro-batches, both ways, from step to step.
    """

    def _setup_forward_recv_info(self, num_microbatches: int, has_backward: bool) -> None:
        # The next one comes in after the backward pass of the oldest.
        together = min(num_microbatches, self.num_stages - self.stage_index)
        super()._setup_forward_recv_info(together, has_backward)
        for number in range(together, num_microbatches):
            self.args_recv_info[number] = self.args_recv_info[number % together]

    def _setup_backward_recv_info(self, num_microbatches: int) -> None:
        super()._setup_backward_recv_info(1)
        self.chunks = num_microbatches
        for number in range(1, num_microbatches):
            self.grad_recv_info[number] = self.grad_recv_info[0]


class Pipeline:
    """The pieces of a pipeline that are on this process, and its neighbours."""

    def __init__(
        self,
        decoder: Decoder,
        stages: Sequence[Sequence[int]],
        *,
        layout: Layout,
        group: dist.ProcessGroup,
        processes: Processes,
        rows: int,
        sequence_length: int,
        sharded: bool,
    ) -> None:
        """
        Args:
            decoder: this process's part.
            stages: layer numbers of each piece of the pipeline; this process has every n-th.
            group: the processes that these micro-batches go through.
            rows: sequences of a micro-batch.
            sharded: whether FSDP2 shards the trunk.
        """
        self.decoder, self.processes, self.layout = decoder, processes, layout
        self.group, self.stages = group, [tuple(stage) for stage in stages]
        mine = range(dist.get_rank(group), len(stages), layout.pipeline)
        self.pieces = {n: Piece(decoder, stages[n], sharded=sharded) for n in mine}
        self.shape = rows, self._positions(sequence_length), decoder.config.hidden_size
        self._work: StepWork | None = None
        self._schedule: Any = None
        self._count = 0

    def _positions(self, sequence_length: int) -> int:
        """Of a sequence, those that are here between products."""
        return sequence_length // (self.layout.tensor * self.layout.context)

    def forward_backward(self, work: StepWork) -> None:
        """Runs a step's micro-batches through the pipeline."""
        if work.count != self._count:
            self._schedule, self._count = self._scheduled(work.count), work.count
        self._work = work
        for number, piece in self.pieces.items():
            piece.work = work if number < self.layout.pipeline else _seen_before(work)
        numbers = torch.arange(work.count)
        try:
            self._schedule.step(index=numbers, target=numbers, return_outputs=False)
        finally:
            self._work = None
            for piece in self.pieces.values():
                piece.work = None

    def _scheduled(self, count: int) -> Any:
        """PyTorch's schedule of so many micro-batches."""
        # Shapes are told, so that no pass is run to find them.
        like = torch.empty(self.shape, device="meta", requires_grad=True)
        alternate = self.layout.virtual == 1 and count >= self.layout.pipeline
        stages = [
            (_AlternatingStage if alternate else PipelineStage)(
                piece, number, len(self.stages), self.processes.device,
                input_args=(like,) if number else (), output_args=(like,), group=self.group,
            )
            for number, piece in self.pieces.items()
        ]  # fmt: skip
        settings: dict[str, Any] = {"loss_fn": self._loss, "scale_grads": False}
        if self.layout.virtual > 1:
            return ScheduleInterleaved1F1B(stages, count, **settings)  # type: ignore[arg-type]
        return (Schedule1F1B if alternate else ScheduleGPipe)(stages[0], count, **settings)

    def _loss(self, hidden_BTD: Tensor, index: Tensor) -> Tensor:
        assert self._work is not None
        head_VD, sharing = self.decoder.head_weight_VD, self.decoder.sharing
        return self._work.loss(hidden_BTD, head_VD, int(index), sharing)

    @torch.no_grad()
    def score(
        self,
        inputs_BT: Tensor,
        targets_BT: Tensor,
        documents_BT: Tensor,
        segments: Sequence[FamilySegment],
    ) -> Tensor:
        """nll_BT of next tokens at this process's positions; nothing but on the last stage."""
        decoder, n = self.decoder, self.layout.pipeline
        B, T = inputs_BT.shape
        for number, piece in self.pieces.items():
            hidden_BTD = None
            if number:
                shape = B, self._positions(T), decoder.config.hidden_size
                hidden_BTD = torch.empty(shape, device=inputs_BT.device)
                dist.recv(hidden_BTD, group=self.group, group_src=(number - 1) % n)
            with self.processes.autocast():
                out_BTD = decoder(
                    inputs_BT, documents_BT, segments, hidden_BTD=hidden_BTD, layers=piece.layers
                )
                if number == len(self.stages) - 1:
                    targets_BT, sharing = decoder.sharing.here(targets_BT), decoder.sharing
                    head_VD = decoder.head_weight_VD
                    return next_token_loss(out_BTD, head_VD, targets_BT, sharing=sharing)[1]
            sent_BTD = out_BTD.float().contiguous()
            dist.send(sent_BTD, group=self.group, group_dst=(number + 1) % n)
        return inputs_BT.new_zeros(0, dtype=torch.float32)
