"""`engine=megatron`: Megatron-core's layers, schedules and optimiser behind the one contract.

Every data rank holds every family's experts; tensor, pipeline, virtual pipeline and context
parallelism are Megatron's. Read next: `model.py`, `schedule.py`, `optimizer.py`, `zero.py`.
"""

import contextlib
import importlib
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from ....model.collectives import Sharing
from ....model.config import LayerPlan
from ....model.decoder import Decoder
from ....model.layout import Layout
from ....model.objectives import next_token_loss
from ....model.part import ParallelGroups, part_of
from ....model.routers import FamilySegment
from ...config import RunConfig
from ...errors import UserError
from ...micro_batches import StepWork
from ...optimizer import learning_rate_factor
from ...pieces import OPTIMIZER, WEIGHTS, Piece, Reader, elements
from ...stages import planned_stages
from ..checks import check_engine
from ..deepspeed.library import open_deepspeed
from ..engine import Moves, StepResult
from ..processes import Processes
from ..torch import check_norm, spread
from .checks import check_packages
from .config import check_installed

if TYPE_CHECKING:
    from megatron.core.transformer import ModuleSpec, TransformerConfig

    from .optimizer import Shard, Updates
    from .schedule import Rows


class MegatronEngine:
    """Megatron-core over the processes of torchrun or srun."""

    updates: "Updates"
    decoder: Decoder
    """Layers and families of this process's part, on the meta device: Megatron holds the values."""
    together = False

    def __init__(self, processes: Processes, layout: Layout) -> None:
        """
        Args:
            layout: resolved.
        Raises:
            UserError: Megatron-core is not here, is another version, or cannot run.
        """
        check_installed()
        # Kernels of products begin in the order in which communication was asked for.
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
        self.processes, self.layout = processes, layout
        self.place = layout.place(processes.rank)

    def build(
        self, config: RunConfig, families: Sequence[str], hosted: Sequence[frozenset[str]]
    ) -> None:
        """Makes this process's layers, and its optimiser.

        Raises:
            ModelError: the layout cannot cut this model.
            UserError: Megatron-core cannot do what the config asks.
        """
        engine, layout, model = config.engine, self.layout, config.model
        self.check(config, families)
        check_packages(config)
        with quiet():
            self._open_groups(config)
            from .attention import Prepared
            from .model import build_chunks, layer_spec
            from .weights import fill, held_parameters, initial_values

        stages = planned_stages(model, families, layout, config.data.sequence_length)
        here = self.hosted(families)
        part = part_of(layout, self.place, stages=stages, hosted=[here] * layout.readers)
        half = self.processes.precision == "bf16"
        if engine.megatron.tp_comm_overlap:
            self._open_overlap(config)
        with quiet():
            prepared = Prepared()
            specs = [
                layer_spec(
                    self.feed_forward(config, plan, families), engine.megatron, model.attention,
                    prepared,
                )
                for plan in model.layers
            ]  # fmt: skip
            core = self.core_config(config, families, stages)
            chunks = build_chunks(core, model, specs, stages, config.data.sequence_length)
        self.held = held_parameters(
            chunks, model, families, part, lambda name: self.renamed(name, families)
        )
        initial = initial_values(model, families, part, config.run.seed)
        fill(self.held, lambda one: initial[one.name])
        for chunk in chunks:
            chunk.to(self.processes.device)
        self.families = {name: index for index, name in enumerate(families)}
        self.part, self.optim, self.steps = part, config.optim, config.run.steps
        self.sharing = Sharing(part, self._groups())
        with torch.device("meta"):
            self.decoder = Decoder(model, families, self.sharing)
        self.together = engine.megatron.overlap_param_gather or layout.expert > 1
        with quiet():
            if engine.optimizer == "zero":
                open_deepspeed(self.processes)
                from .zero import ZeroUpdates

                self.updates = ZeroUpdates(chunks, self.held, config.optim)
            else:
                from .optimizer import DistributedUpdates

                self.updates = DistributedUpdates(chunks, self.held, config.optim, engine.megatron)
        if half:
            self._keep_exact(initial)
        self.updates.begin()

    # What another kind of expert layer does in another way (`scripts/megatron_moe_arm.py`).

    def check(self, config: RunConfig, families: Sequence[str]) -> None:
        """Whether the layers can be this model.

        Raises:
            UserError, ModelError: they cannot.
        """
        check_engine(config, self.layout, families)

    def hosted(self, families: Sequence[str]) -> frozenset[str]:
        """Families whose experts are here."""
        return frozenset(families)

    def feed_forward(
        self, config: RunConfig, plan: LayerPlan, families: Sequence[str]
    ) -> "ModuleSpec":
        """A layer's feed-forward."""
        from .model import family_feed_forward

        return family_feed_forward(plan, families, config.engine.megatron)

    def core_config(
        self, config: RunConfig, families: Sequence[str], stages: Sequence[Sequence[int]]
    ) -> "TransformerConfig":
        """Megatron's settings."""
        from .model import transformer_config

        half = self.processes.precision == "bf16"
        return transformer_config(
            config.model, self.layout, config.engine.megatron, stages=stages,
            recompute=config.engine.recompute, dtype=torch.bfloat16 if half else torch.float32,
            on_gpu=self.processes.device.type == "cuda",
        )  # fmt: skip

    def renamed(self, name: str, families: Sequence[str]) -> str:
        """A chunk's name of a parameter, as `FamilyGPT` calls it."""
        return name

    def _open_groups(self, config: RunConfig) -> None:
        """Megatron's process groups; a lone process is a group too."""
        from megatron.core import parallel_state
        from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

        if not dist.is_initialized():
            backend = "nccl" if self.processes.device.type == "cuda" else "gloo"
            dist.init_process_group(
                backend, store=dist.HashStore(), rank=0, world_size=1,  # type: ignore[attr-defined]
                timeout=self.processes.timeout,
            )  # fmt: skip
        layout = self.layout
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=layout.tensor,
            pipeline_model_parallel_size=layout.pipeline,
            virtual_pipeline_model_parallel_size=layout.virtual if layout.virtual > 1 else None,
            context_parallel_size=layout.context,
            expert_model_parallel_size=layout.expert,
            expert_tensor_parallel_size=1,
            distributed_timeout_minutes=max(1, round(config.engine.timeout_minutes)),
            create_gloo_process_groups=False,
        )
        model_parallel_cuda_manual_seed(config.run.seed)

    def _open_overlap(self, config: RunConfig) -> None:
        """Transformer Engine's buffers, through which products and communication overlap."""
        rows = config.engine.micro_slots * config.data.slot_sequences
        positions = config.data.sequence_length // self.layout.context
        importlib.import_module("transformer_engine.pytorch.module.base").initialize_ub(
            shape=[positions * rows, config.model.hidden_size], tp_size=self.layout.tensor,
            use_fp8=False, bootstrap_backend="nccl",
        )  # fmt: skip

    def _groups(self) -> ParallelGroups:
        """The processes that share this one's forward pass."""
        from megatron.core import parallel_state

        layout = self.layout
        tensor, context = (
            parallel_state.get_tensor_model_parallel_group(),
            parallel_state.get_context_parallel_group(),
        )
        return ParallelGroups(
            tensor=tensor if layout.tensor > 1 else None,
            context=context if layout.context > 1 else None,
        )

    @torch.no_grad()
    def _keep_exact(self, values: dict[str, Tensor]) -> None:
        """Main weights begin as they were drawn, not as bf16 rounded them."""
        for shard in self.updates.shards():
            flat = values[shard.held.name].reshape(-1)
            shard.main.copy_(flat[shard.start : shard.stop])

    def forward_backward(self, work: StepWork) -> None:
        """Runs the micro-batches by Megatron's schedule."""
        from .schedule import run_schedule

        def loss(hidden_BTD: Tensor, head_VD: Tensor, index: int) -> Tensor:
            return work.loss(hidden_BTD, head_VD, index, self.sharing)

        def rows(index: int) -> "Rows":
            micro = work.micro(index)
            return self._rows(micro.inputs_BT, micro.documents_BT, micro.segments)

        def backward() -> None:
            run_schedule(
                self.updates.chunks, count=work.count, rows=rows, result=loss, backward=True
            )

        self.updates.around(backward)

    def _rows(
        self, tokens_BT: Tensor, documents_BT: Tensor, segments: Sequence[FamilySegment]
    ) -> "Rows":
        from .schedule import Rows

        families = [self.families[s.family] for s in segments for _ in range(s.start, s.stop)]
        return Rows(tokens_BT, documents_BT, torch.tensor(families, dtype=torch.int64))

    def update(self, step: int, moves: Moves) -> StepResult:
        """Adds up gradients, clips, and moves what the step moves."""
        norm = self.updates.norm(moves)
        check_norm(norm, step)
        limit = self.optim.clip_norm
        factor = min(1.0, limit / (norm + 1e-6)) if limit > 0 else 1.0
        rate = self.optim.learning_rate * learning_rate_factor(self.optim, step, self.steps)
        self.updates.step(moves, rate, factor)
        self.updates.begin()
        return StepResult(norm, rate)

    def layer_sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over the processes that hold the same layers, in place."""
        from megatron.core import parallel_state

        group = parallel_state.get_tensor_and_data_parallel_group(with_context_parallel=True)
        dist.all_reduce(values, group=group)
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
        from .schedule import run_schedule

        def nll(hidden_BTD: Tensor, head_VD: Tensor, index: int) -> Tensor:
            here_BT = self.sharing.here(targets_BT)
            return next_token_loss(hidden_BTD, head_VD, here_BT, sharing=self.sharing)[1]

        rows = self._rows(inputs_BT, documents_BT, segments)
        values = run_schedule(
            self.updates.chunks, count=1, rows=lambda _: rows, result=nll, backward=False
        )
        none_BT = torch.zeros(inputs_BT.shape, device=inputs_BT.device)
        return spread(values[0] if values else none_BT, inputs_BT, self.sharing)

    def pieces(self) -> Iterator[Piece]:
        """What this process writes: main weights and Adam's state of its shards."""
        for shard in self.updates.shards():
            one, first = shard.held, self.place.tensor == 0
            if one.copy:
                continue
            if one.cut or first:
                yield self._piece(WEIGHTS, one.name, shard, shard.main)
            for key, value in shard.state.items():
                name = f"{one.name}/{key}"
                if key == "step":
                    if first and shard.start == 0:
                        yield Piece(
                            kind=OPTIMIZER, name=name, shape=(), view=(), start=0, stop=1,
                            tensor=value,
                        )  # fmt: skip
                elif one.cut or first:
                    yield self._piece(OPTIMIZER, name, shard, value)

    def _piece(self, kind: str, name: str, shard: "Shard", tensor: Tensor) -> Piece:
        one = shard.held
        return Piece(
            kind=kind, name=name, shape=one.shape, view=one.view, start=shard.start,
            stop=shard.stop, tensor=tensor,
        )  # fmt: skip

    @torch.no_grad()
    def load(self, reader: Reader, *, optimizer: bool = True) -> None:
        """Fills weights and Adam's state; a parameter that was never moved has none."""
        shards: dict[str, list[Shard]] = {}
        for shard in self.updates.shards():
            shards.setdefault(shard.held.name, []).append(shard)
        for one in self.held:
            values = reader.read(WEIGHTS, one.name, one.shape, one.view, 0, elements(one.view))
            assert values is not None, f"the checkpoint's check let {one.name} pass"
            one.parameter.copy_(values.view(one.parameter.shape))
            for shard in shards.get(one.name, []):
                shard.main.copy_(values[shard.start : shard.stop])
        if optimizer:
            self.updates.restore(lambda shard: self._saved_state(reader, shard))

    def _saved_state(self, reader: Reader, shard: "Shard") -> "dict[str, Tensor] | None":
        one = shard.held
        state = {}
        for key in ("step", "exp_avg", "exp_avg_sq"):
            where = (one.shape, one.view, shard.start, shard.stop)
            place = ((), (), 0, 1) if key == "step" else where
            values = reader.read(OPTIMIZER, f"{one.name}/{key}", *place)
            if values is not None:
                state[key] = values
        if state and len(state) < 3:
            raise UserError(
                f"the checkpoint holds {sorted(state)} for {one.name}, optim.name=adamw needs "
                "step, exp_avg and exp_avg_sq: resume with the optimiser that began the run"
            )
        return state or None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without Megatron's and DeepSpeed's remarks about parts that are not installed."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
