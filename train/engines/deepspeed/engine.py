"""engine=deepspeed: ZeRO 1, 2 and 3, with families' experts where their data is.

The step is the default engine's: gradients are sums, the norm is the whole model's, what a step
does not move stays as it is. ZeRO cuts optimiser state, gradients and weights over the processes;
families that only some processes host are cut over those alone. Checkpoints are the canonical ones:
DeepSpeed's own, which start anew without a word where a file is missing, are never used.
Read next: `zero.py`.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ....data.shards import write_atomically
from ....model.collectives import Sharing
from ....model.decoder import Decoder, build_decoder, canonical_views, saved_tensors
from ....model.layout import Layout
from ....model.objectives import next_token_loss
from ....model.part import part_of
from ....model.routers import FamilySegment, load_domain_rows
from ...config import RunConfig
from ...console import say
from ...errors import UserError
from ...micro_batches import StepWork
from ...optimizer import learning_rate_factor
from ...pieces import OPTIMIZER, WEIGHTS, Piece, Reader, whole_piece
from ...run_folder import run_folder
from ..checks import check_engine
from ..compiling import check_compiler, compiled_in_training, dense_parts
from ..engine import Moves, StepResult
from ..processes import Processes
from ..torch import check_norm
from .adamw import MOMENTS
from .library import open_deepspeed
from .settings import deepspeed_config
from .zero import Zero, expert_family


class DeepSpeedEngine:
    """DeepSpeed's ZeRO over the processes of torchrun or srun."""

    decoder: Decoder
    zero: Zero

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
        """Makes this process's decoder and hands it to ZeRO.

        Raises:
            ModelError: the layout cannot cut this model.
            UserError: DeepSpeed is missing, another version, or cannot do what is asked.
        """
        check_engine(config, self.layout, families)
        open_deepspeed(self.processes)
        self.config = config
        stages = [tuple(range(len(config.model.layers)))]
        part = part_of(self.layout, self.place, stages=stages, hosted=hosted)
        self.decoder = build_decoder(
            config.model, families, seed=config.run.seed, sharing=Sharing(part)
        )
        rows = config.model.routing.domain_rows
        if rows and Path(rows).exists():
            # Before ZeRO copies the weights; a checkpoint takes their place.
            load_domain_rows(self.decoder, Path(rows))
        self.decoder.to(self.processes.device)
        self.decoder.recompute = config.engine.recompute
        if config.engine.compile:
            check_compiler(self.processes.device)
            for module in dense_parts(self.decoder):
                module.forward = compiled_in_training(module.forward)
        self.views = canonical_views(self.decoder)
        self.hosts = {
            family: tuple(rank for rank, names in enumerate(hosted) if family in names)
            for family in families
        }
        self.together = config.engine.zero.stage == 3
        settings = deepspeed_config(
            config, self.layout.readers, pinned=self.processes.device.type == "cuda"
        )
        if self.processes.leader:
            tell(settings, run_folder(config))
        self.zero = Zero(self.decoder, settings, config.optim, self.hosts)

    def forward_backward(self, work: StepWork) -> None:
        """Runs the micro-batches one after the other."""

        def loss_of(decoder: Decoder, index: int) -> Tensor:
            hidden = work.forward(decoder, index)
            return work.loss(hidden, decoder.head_weight_VD, index, decoder.sharing)

        self.zero.forward_backward(work.count, loss_of)

    def update(self, step: int, moves: Moves) -> StepResult:
        """Adds up gradients, clips, and moves what the step moves."""
        optim = self.config.optim
        factor = learning_rate_factor(optim, step, self.config.run.steps)
        rate = optim.learning_rate * factor
        norm = self.zero.update(rate, moves, lambda norm: check_norm(norm, step))
        return StepResult(norm, rate)

    def layer_sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over the processes that hold the same layers, in place."""
        return self.processes.sum(values)

    @torch.no_grad()
    def score(
        self,
        inputs_BT: Tensor,
        targets_BT: Tensor,
        documents_BT: Tensor,
        segments: Sequence[FamilySegment],
    ) -> Tensor:
        """nll_BT of next tokens."""

        def run(decoder: Decoder) -> Tensor:
            hidden = decoder(inputs_BT, documents_BT, segments)
            return next_token_loss(hidden, decoder.head_weight_VD, targets_BT)[1]

        self.decoder.eval()
        try:
            with self.processes.autocast():
                nll_BT: Tensor = self.zero.engine.module(run)
        finally:
            self.decoder.train()
        return nll_BT

    def pieces(self) -> Iterator[Piece]:
        """What this process writes: no two processes hold the same elements of a partition."""
        optimizer = self.zero.optimizer
        for name, buffer in self._buffers().items():
            if self.processes.rank == self._first_host(name):
                yield whole_piece(WEIGHTS, name, buffer)
        for partition, line in optimizer.held.items():
            for held in line:
                shape, view = self.views[held.name]
                tensors = (
                    {"": partition}
                    if held.name not in optimizer.steps
                    else {
                        "": partition,
                        **{f"/{key}": optimizer.moments(partition)[key] for key in MOMENTS},
                    }
                )
                for state, flat in tensors.items():
                    yield Piece(
                        kind=OPTIMIZER if state else WEIGHTS, name=held.name + state, shape=shape,
                        view=view, start=held.start, stop=held.stop, tensor=held.of(flat.detach()),
                    )  # fmt: skip
                if held.start == 0 and held.name in optimizer.steps:
                    yield whole_piece(OPTIMIZER, f"{held.name}/step", optimizer.steps[held.name])

    @torch.no_grad()
    def load(self, reader: Reader, *, optimizer: bool = True) -> None:
        """Fills the partitions, then every process's weights from them.

        Raises:
            UserError: the state belongs to another optimiser.
        """
        for name, buffer in self._buffers().items():
            piece = whole_piece(WEIGHTS, name, buffer)
            values = reader.read(WEIGHTS, name, piece.shape, piece.view, 0, piece.stop)
            assert values is not None, f"the checkpoint's check let {name} pass"
            buffer.copy_(values.view_as(buffer))
        for partition, line in self.zero.optimizer.held.items():
            for held in line:
                place = (*self.views[held.name], held.start, held.stop)
                values = reader.read(WEIGHTS, held.name, *place)
                assert values is not None, f"the checkpoint's check let {held.name} pass"
                held.of(partition.detach()).copy_(values)
                if not optimizer:
                    continue
                step = reader.read(OPTIMIZER, f"{held.name}/step", (), (), 0, 1)
                moments = {
                    key: reader.read(OPTIMIZER, f"{held.name}/{key}", *place) for key in MOMENTS
                }
                if step is None:
                    other = reader.read(OPTIMIZER, f"{held.name}/momentum_buffer", *place)
                    if other is not None:
                        raise UserError(
                            f"the checkpoint holds momentum_buffer for {held.name}, optim.name="
                            f"adamw needs {['step', *MOMENTS]}: resume with the optimiser that "
                            "began the run"
                        )
                    continue
                self.zero.optimizer.steps[held.name] = step.reshape(()).to(partition.device)
                for key, values in moments.items():
                    assert values is not None, f"{held.name}/step without {key}"
                    held.of(self.zero.optimizer.moments(partition)[key]).copy_(values)
        self.zero.publish()

    def _buffers(self) -> dict[str, Tensor]:
        """What routers keep that no gradient moves."""
        parameters = {name for name, _ in self.decoder.named_parameters()}
        return {n: t for n, t in saved_tensors(self.decoder).items() if n not in parameters}

    def _first_host(self, name: str) -> int:
        family = expert_family(name, self.config.model)
        return 0 if family is None else self.hosts[family][0]


def tell(settings: dict[str, object], folder: Path) -> None:
    """Writes DeepSpeed's config into the run folder, and says what it is."""
    write_atomically(folder / "deepspeed.json", json.dumps(settings, indent=1).encode() + b"\n")
    say(f"{folder / 'deepspeed.json'}: {json.dumps(settings)}")
