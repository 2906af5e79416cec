"""Who adds up gradients and moves weights: Megatron's distributed optimiser, or DeepSpeed's ZeRO.

Both shard main weights and Adam's state over the ranks that see different tokens; here both give
them as stretches of canonical tensors. A family without a token in a step keeps weights and state:
its parameters are groups of their own in Megatron's, ranges of their own in ZeRO's, and are left
out of the step. Read next: `zero.py`, the other one; `weights.py`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.optimizer_config import ParamKey, ParamWithNamePredicate
from torch import Tensor, nn

from ....model.decoder import parameter_family
from ...optimizer import OptimConfig
from .config import MegatronConfig
from .model import FamilyGPT
from .weights import Held, by_parameter

MOMENTS = ("exp_avg", "exp_avg_sq")
TRUNK = ""
"""The owner of what every step moves."""


@dataclass(frozen=True, slots=True)
class Shard:
    """The stretch of a parameter whose main weights and state this process keeps."""

    held: Held
    start: int
    stop: int
    main: Tensor
    """Its main weights, float32, flat."""
    state: dict[str, Tensor]
    """`step` and Adam's moments, flat; empty where it never moved."""


class Updates(Protocol):
    """What makes a step of accumulated gradients."""

    chunks: list[nn.Module]
    """The model as the schedule runs it."""

    def begin(self) -> None:
        """Forgets gradients, before a step."""

    def around(self, backward: Callable[[], None]) -> None:
        """Runs a step's micro-batches, with what they need around them."""

    def norm(self, moves: Callable[[str], bool]) -> float:
        """Adds gradients up; the norm of the whole model's."""

    def step(self, moves: Callable[[str], bool], rate: float, factor: float) -> None:
        """Moves what the step moves, by gradients times a factor."""

    def shards(self) -> Iterator[Shard]:
        """What this process keeps."""

    def restore(self, state_of: Callable[[Shard], dict[str, Tensor] | None]) -> None:
        """Takes over Adam's state of each shard."""


def owner(name: str) -> str:
    """The family whose parameter it is, or the trunk."""
    return parameter_family(name) or TRUNK


class DistributedUpdates:
    """Megatron's data parallel wrapper and its distributed optimiser."""

    def __init__(
        self, chunks: Sequence[FamilyGPT], held: Sequence[Held], optim: OptimConfig,
        settings: MegatronConfig,
    ) -> None:  # fmt: skip
        self.held, self.optim, self.settings = by_parameter(held), optim, settings
        config = chunks[0].config
        half = config.bf16
        wrapping = DistributedDataParallelConfig(
            use_distributed_optimizer=True,
            grad_reduce_in_fp32=settings.grad_reduce_in_fp32 and half,
            overlap_grad_reduce=settings.overlap_grad_reduce,
            overlap_param_gather=settings.overlap_param_gather,
            bucket_size=settings.bucket_size or None,
        )
        self.chunks: list[nn.Module] = [
            DistributedDataParallel(config, wrapping, chunk, disable_bucketing=number > 0)
            for number, chunk in enumerate(chunks)
        ]
        config.finalize_model_grads_func = without_division
        config.grad_scale_func = None
        if settings.overlap_grad_reduce:
            waits = [cast(Any, chunk).no_sync for chunk in self.chunks]
            config.no_sync_func = waits if len(waits) > 1 else waits[0]
        # Experts that Megatron shares out have an optimiser of their own.
        self.optimizers = get_megatron_optimizer(
            OptimizerConfig(
                optimizer="adam", lr=optim.learning_rate, weight_decay=optim.weight_decay,
                adam_beta1=optim.beta1, adam_beta2=optim.beta2, adam_eps=optim.eps,
                bf16=half, params_dtype=config.params_dtype, use_distributed_optimizer=True,
                overlap_param_gather=settings.overlap_param_gather, clip_grad=0.0,
            ),
            cast(Any, self.chunks),
            config_overrides=self._groups(),
            use_gloo_process_groups=False,
        ).chained_optimizers  # fmt: skip
        for optimizer in self.optimizers:
            for group in optimizer.optimizer.param_groups:
                group["weight_decay"] = optim.weight_decay * group["wd_mult"]

    def _groups(self) -> dict[ParamKey, Any]:
        """One group for each owner, and in it one for matrices and one for norms."""
        groups: dict[ParamKey, Any] = {}
        for family in sorted({owner(one.name) for one in self.held.values()}):
            for decay in (1.0, 0.0):

                def matches(
                    parameter: nn.Parameter, _: str, family: str = family, decay: float = decay
                ) -> bool:
                    one = self.held[parameter]
                    return owner(one.name) == family and (len(one.shape) > 1) == bool(decay)

                chosen = ParamWithNamePredicate(name=f"{family}/{decay}", fn=matches)
                key = ParamKey(with_name_predicate=chosen)
                groups[key] = {"family": family, "wd_mult": decay}
        return groups

    def begin(self) -> None:
        for chunk in self.chunks:
            cast(Any, chunk).zero_grad_buffer()
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def around(self, backward: Callable[[], None]) -> None:
        backward()
        for chunk in self.chunks:
            for bucket in cast(Any, chunk).bucket_groups:
                # Gathered ahead for a module that did not run.
                if bucket.param_gather_handle is not None:
                    bucket.param_gather_handle.wait()
                    bucket.param_gather_handle = None

    def norm(self, moves: Callable[[str], bool]) -> float:
        for optimizer in self.optimizers:
            optimizer.prepare_grads()
        return math.hypot(*(float(each.get_grad_norm()) for each in self.optimizers))

    def step(self, moves: Callable[[str], bool], rate: float, factor: float) -> None:
        moving = {owner(one.name) for one in self.held.values() if moves(one.name)}
        for optimizer in self.optimizers:
            if factor != 1:
                gradients = [p.grad for p in optimizer.get_parameters() if p.grad is not None]
                torch._foreach_mul_(gradients, factor)
            # Adam over shards: Transformer Engine's or Apex's where installed, else PyTorch's.
            inner = optimizer.optimizer
            every = inner.param_groups
            for group in every:
                group["lr"] = rate
            inner.param_groups = [group for group in every if group["family"] in moving]
            try:
                optimizer.step_with_ready_grads()
            finally:
                inner.param_groups = every

    def shards(self) -> Iterator[Shard]:
        for optimizer in self.optimizers:
            for held, start, stop, main, group in self._mains(optimizer):
                state = dict(optimizer.optimizer.state.get(main, {}))
                if state and "step" not in state:  # Apex's and Transformer Engine's Adam
                    state["step"] = torch.tensor(float(group["step"]))
                yield Shard(held, start, stop, main.detach(), state)

    def _mains(self, optimizer: Any) -> Iterator[tuple[Held, int, int, Tensor, dict[str, Any]]]:
        """What a parameter's stretch is kept as here, and the group it is stepped with."""
        groups = {main: group for group in optimizer.optimizer.param_groups
                  for main in group["params"]}  # fmt: skip
        for models, mains in (
            (optimizer.model_fp32_groups, optimizer.shard_fp32_groups),
            (optimizer.model_float16_groups, optimizer.shard_fp32_from_float16_groups),
        ):
            for parameters, shards in zip(models, mains, strict=True):
                for parameter, main in zip(parameters, shards, strict=True):
                    at = optimizer._get_model_param_range_map(parameter)["param"]
                    yield self.held[parameter], at.start, at.end, main, groups[main]

    def restore(self, state_of: Callable[[Shard], dict[str, Tensor] | None]) -> None:
        for optimizer in self.optimizers:
            inner = optimizer.optimizer
            for held, start, stop, main, group in self._mains(optimizer):
                state = state_of(Shard(held, start, stop, main, {}))
                if state is None:
                    continue
                kept = {key: state[key].to(main.device, copy=True) for key in MOMENTS}
                if isinstance(inner, torch.optim.AdamW):
                    kept["step"] = state["step"].reshape(()).float()
                else:
                    group["step"] = int(state["step"])
                inner.state[main] = kept


def without_division(chunks: list[Any], tokens: Tensor | None = None, **others: Any) -> None:
    """Megatron's sums over ranks, and none of its divisions by tokens."""
    finalize_model_grads(chunks, None, **others)
