"""DeepSpeed's ZeRO 1 under Megatron's schedules: the classical Megatron-DeepSpeed in three axes.

Megatron's schedule runs the bare model; DeepSpeed sees nothing until the step's last gradient, so
what Megatron does after a step is done here: the tensor ranks' parts of norms' gradients are added
up, and both ends' gradients of tied embeddings. Private names of DeepSpeed are touched.
Read next: `../deepspeed/adamw.py`, the optimiser over ZeRO's partitions.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor, nn

from ...optimizer import OptimConfig
from ..deepspeed.adamw import MOMENTS, PartitionedAdamW
from ..deepspeed.partitions import partitions_of
from .model import FamilyGPT
from .optimizer import Shard
from .weights import Held, attribute


class Mpu:
    """Megatron's process groups, asked for as DeepSpeed asks."""

    get_model_parallel_rank = staticmethod(parallel_state.get_tensor_model_parallel_rank)
    get_model_parallel_group = staticmethod(parallel_state.get_model_parallel_group)
    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = staticmethod(
        parallel_state.get_tensor_model_parallel_world_size
    )
    get_tensor_model_parallel_group = staticmethod(parallel_state.get_tensor_model_parallel_group)

    @staticmethod
    def get_model_parallel_world_size() -> int:
        """Ranks that share one model."""
        return parallel_state.get_model_parallel_group().size()

    @staticmethod
    def get_data_parallel_group() -> dist.ProcessGroup:
        """Ranks that hold the same and see other tokens."""
        return parallel_state.get_data_parallel_group(with_context_parallel=True)

    @staticmethod
    def get_data_parallel_rank() -> int:
        """This process's number among them."""
        return parallel_state.get_data_parallel_rank(with_context_parallel=True)

    @staticmethod
    def get_data_parallel_world_size() -> int:
        """How many they are."""
        return parallel_state.get_data_parallel_world_size(with_context_parallel=True)


class ZeroUpdates:
    """ZeRO's optimiser over the chunks of one process."""

    def __init__(
        self, chunks: Sequence[FamilyGPT], held: Sequence[Held], optim: OptimConfig
    ) -> None:
        import deepspeed

        self.chunks: list[nn.Module] = list(chunks)
        self.held = {one.name: one for one in held}
        self.names = {id(one.parameter): one.name for one in held}
        half = chunks[0].config.bf16
        undecayed = {one.name for one in held if len(one.shape) < 2}
        groups = [{"params": [one.parameter for one in held]}]
        self.optimizer = PartitionedAdamW(groups, optim, undecayed)
        settings = {
            # Megatron's schedule accumulates: DeepSpeed is only told the sum.
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_allreduce_op": "sum",
            "communication_data_type": "fp32",
            "gradient_clipping": 0.0,
            "bf16": {"enabled": half},
            "data_types": {"grad_accum_dtype": "bf16" if half else "fp32"},
            "zero_optimization": {"stage": 1, "overlap_comm": False},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }
        self.engine: Any
        self.engine, *_ = deepspeed.initialize(
            model=nn.ModuleList(self.chunks), optimizer=self.optimizer, config=settings, mpu=Mpu,
            dist_init_required=False,
        )  # fmt: skip
        self.zero: Any = self.engine.optimizer
        self.optimizer.take(partitions_of(self.zero, self.names))
        self.zero.scaled_global_norm = lambda: torch.ones(())  # counted, and clipped by, below
        self.where = "grad"
        if half:
            # Micro-batches are added up in float32, and rounded once.
            self.where = "summed"
            for one in held:
                one.parameter.register_post_accumulate_grad_hook(add_widely)
        chunks[0].config.finalize_model_grads_func = None

    def begin(self) -> None:
        """Forgets gradients."""
        for one in self.held.values():
            one.parameter.grad = None
            attribute(one.parameter, self.where, None)

    def around(self, backward: Callable[[], None]) -> None:
        """Runs a step's micro-batches: ZeRO 1 without overlap has no part in backward passes."""
        backward()

    def norm(self, moves: Callable[[str], bool]) -> float:
        """Adds gradients up; the norm of the whole model's."""
        for one in self.held.values():
            if (
                getattr(one.parameter, self.where) is None
            ):  # ranks run other families, and reduce in one order
                zeros = torch.zeros_like(one.parameter, dtype=torch.float32)
                attribute(one.parameter, self.where, zeros)
        self._sum_parts()
        self._sum_ends()
        for one in self.held.values():
            one.parameter.grad = self._some(one).to(one.parameter.dtype)
        self.zero.reduce_gradients(pipeline_parallel=True)
        square = torch.zeros((), dtype=torch.float64, device=self.engine.device)
        for partition, ranges in self.optimizer.held.items():
            gradient = self._gradient(partition)
            for part in ranges:
                one = self.held[part.name]
                first = parallel_state.get_tensor_model_parallel_rank() == 0
                if not one.copy and (one.cut or first):
                    square += torch.linalg.vector_norm(part.of(gradient)).double().square()
        dist.all_reduce(square)
        return float(square.sqrt())

    def _some(self, one: Held) -> Tensor:
        """What this process's micro-batches summed up to."""
        return cast(Tensor, getattr(one.parameter, self.where))

    def _gradient(self, partition: Tensor) -> Tensor:
        """The reduced gradient of a partition, flat."""
        (number,) = [n for n, flat in enumerate(self.zero.single_partition_of_fp32_groups)
                     if flat is partition]  # fmt: skip
        pieces = [piece.reshape(-1).float() for piece in self.zero.averaged_gradients[number]]
        return torch.cat(pieces)

    def _sum_parts(self) -> None:
        """Adds up what the tensor ranks have of norms' gradients."""
        group = parallel_state.get_tensor_model_parallel_group()
        if group.size() > 1:
            add_up([self._some(one) for one in self.held.values() if one.partial], group)

    def _sum_ends(self) -> None:
        """Adds up what the first and the last stage have of tied embeddings' gradient."""
        one = self.held.get("embed.weight")
        group = parallel_state.get_embedding_group(check_initialized=False)
        if one is not None and getattr(one.parameter, "shared_embedding", False):
            dist.all_reduce(self._some(one), group=group)

    def step(self, moves: Callable[[str], bool], rate: float, factor: float) -> None:
        """Moves what the step moves, by gradients times a factor."""
        self.optimizer.moves = moves
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        for pieces in self.zero.averaged_gradients.values():
            torch._foreach_mul_(list(pieces), factor)
        self.engine.step()

    def shards(self) -> Iterator[Shard]:
        """What this process keeps."""
        for partition, ranges in self.optimizer.held.items():
            moments = self.optimizer.state.get(partition, {})
            for part in ranges:
                state: dict[str, Tensor] = {}
                if part.name in self.optimizer.steps:
                    state = {key: part.of(moments[key]) for key in MOMENTS}
                    state["step"] = self.optimizer.steps[part.name]
                one = self.held[part.name]
                yield Shard(one, part.start, part.stop, part.of(partition).detach(), state)

    def restore(self, state_of: Callable[[Shard], dict[str, Tensor] | None]) -> None:
        """Takes over Adam's state of each shard."""
        self.optimizer.steps.clear()
        for partition, ranges in self.optimizer.held.items():
            moments = self.optimizer.moments(partition)
            for part in ranges:
                one = self.held[part.name]
                shard = Shard(one, part.start, part.stop, part.of(partition), {})
                state = state_of(shard)
                if state is not None:
                    step = state["step"].reshape(()).float()
                    self.optimizer.steps[part.name] = step.to(partition.device)
                    for key in MOMENTS:
                        part.of(moments[key]).copy_(state[key])


def add_widely(parameter: Tensor) -> None:
    """Adds a micro-batch's gradient to the float32 sum of those before it."""
    gradient = cast(Tensor, parameter.grad).float()
    before = getattr(parameter, "summed", None)
    attribute(
        cast(nn.Parameter, parameter), "summed", gradient if before is None else before + gradient
    )
    parameter.grad = None


def add_up(tensors: Sequence[Tensor], group: dist.ProcessGroup) -> None:
    """Sums tensors over a group, in their place, in one message."""
    if not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat, group=group)
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
