"""ZeRO around a decoder: DeepSpeed set up for sums, families in groups of their own, our norm.

What DeepSpeed would do by itself and must not here: average gradients; reduce them in the order in
which backward passes make them (processes run different families, so the orders differ); count
norms group by group; skip a step whose gradient is no number. Read next: `engine.py`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ....model.config import ModelConfig
from ....model.decoder import Decoder, is_trunk
from ....model.feed_forward import FeedForward
from ....model.routers import TokenRouter
from ...optimizer import OptimConfig
from ..processes import Processes
from .adamw import PartitionedAdamW
from .partitions import partitions_of


class LossOf(Protocol):
    """A micro-batch's share of the step's loss."""

    def __call__(self, decoder: Decoder, index: int) -> Tensor:
        """
        Args:
            index: number of the micro-batch.
        """


class WholeStep(nn.Module):
    """Forward pass and loss in one module, so that ZeRO's hooks see every use of a weight."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, run: Callable[[Decoder], Any]) -> Any:
        """What `run` returns of the decoder."""
        return run(self.decoder)


class Zero:
    """DeepSpeed's engine and its ZeRO optimiser over one decoder."""

    def __init__(
        self,
        decoder: Decoder,
        settings: dict[str, Any],
        optim: OptimConfig,
        hosts: dict[str, tuple[int, ...]],
    ) -> None:
        """
        Args:
            settings: DeepSpeed's config.
            hosts: ranks that host each family's experts, in one order everywhere.
        """
        import deepspeed

        self.stage = int(settings["zero_optimization"]["stage"])
        self.offloads = "offload_optimizer" in settings["zero_optimization"]
        self.names = {id(p): name for name, p in decoder.named_parameters()}
        self.shapes = {name: tuple(p.shape) for name, p in decoder.named_parameters()}
        module = WholeStep(decoder)
        groups = parameter_groups(module, hosts)
        vectors = {name for name, shape in self.shapes.items() if len(shape) < 2}
        self.optimizer = PartitionedAdamW(groups, optim, vectors, self._limited(decoder))
        if self.stage == 3:
            # A feed-forward is fetched and reduced whole: each process runs other families in it.
            deepspeed.utils.set_z3_leaf_modules(module, [FeedForward], raise_if_not_found=False)
        self.engine: Any
        self.engine, *_ = deepspeed.initialize(
            model=module, optimizer=self.optimizer, config=settings, dist_init_required=False
        )
        self.zero: Any = self.engine.optimizer
        self.optimizer.take(partitions_of(self.zero, self.names))
        self.norm = torch.zeros(())
        self.check: Callable[[float], None] = lambda norm: None
        if self.stage == 3:
            self.zero._get_norm_groups = lambda: [self._whole_norm()]
        else:
            self.zero.scaled_global_norm = self._whole_norm
        if self.stage == 2:
            self.zero.process_gradients = self._reduce_trunk

    def _limited(self, decoder: Decoder) -> set[str]:
        """Names of what is at most 0: `TokenRouter.limit_biases` reaches no float32 partition."""
        routers = [m for m in decoder.modules() if isinstance(m, TokenRouter)]
        biases = [group.bias for router in routers for group in router.groups]
        return {self.names[id(bias)] for bias in biases if bias is not None}

    def forward_backward(self, count: int, loss_of: LossOf) -> None:
        """Accumulates the gradients of so many micro-batches."""
        for index in range(count):
            self.engine.set_gradient_accumulation_boundary(index == count - 1)
            run = partial(loss_of, index=index)
            if self.stage == 3:
                self.engine.backward(self.engine(run), scale_wrt_gas=False)
                continue
            self.engine.inside_no_sync_ctxt = True
            self.zero._coalesce_grad_reduction = self.stage == 1
            try:
                self.engine.backward(self.engine(run), scale_wrt_gas=False)
            finally:
                self.engine.inside_no_sync_ctxt = self.zero._coalesce_grad_reduction = False
            if self.stage == 2:
                self._reduce(lambda name: True)

    def update(
        self, rate: float, moves: Callable[[str], bool], check: Callable[[float], None]
    ) -> float:
        """Reduces what is not yet, clips, and moves what the step moves.

        Args:
            check: raises where the norm is no number; DeepSpeed would skip the step, and say
                nothing.
        Returns:
            The norm of the whole model's gradient before clipping.
        """
        self.optimizer.moves, self.check = moves, check
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.stage == 1:
            self.zero.set_gradient_accumulation_boundary(True)
            self._reduce(moves)
        self.engine.step()
        return float(self.norm)

    def _reduce(self, moves: Callable[[str], bool]) -> None:
        """Stages 1 and 2: the sum of gradients, in one order on every process."""
        zero = self.zero
        zero.setup_buckets()
        zero.reduce_ipg_grads()
        for number, group in enumerate(zero.bit16_groups):
            for parameter in group:
                name = self.names[id(parameter)]
                if self.stage == 2 and is_trunk(name):
                    continue
                if not moves(name):
                    parameter.grad = None
                    continue
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                zero.reduce_ready_partitions_and_remove_grads(parameter, number)
            # Processes that share this group may hold other groups before it: no bucket spans two.
            zero.reduce_ipg_grads()
        zero.overlapping_partition_gradients_reduce_epilogue()

    def _reduce_trunk(self, parameter: nn.Parameter, group: int) -> None:
        """Stage 2: the trunk's gradients are reduced and freed as the backward pass makes them, in
        one order everywhere; those of experts and routers wait for its end."""
        if is_trunk(self.names[id(parameter)]):
            self.zero.setup_buckets()
            self.zero.reduce_ready_partitions_and_remove_grads(parameter, group)

    @torch.no_grad()
    def _whole_norm(self) -> Tensor:
        """The norm over all processes; every element of the model is in one partition somewhere.

        Stage 3 knows averages only: they become sums here. Multiplying the loss instead would
        leave out what `attach_loss` gives a gradient of 1.
        """
        if self.offloads:
            gradients = [
                held.of(cast(Tensor, partition.grad))
                for partition in self.optimizer.held
                for held in self.optimizer.moved(partition)
            ]
        else:
            gradients = [g for group in self.zero.averaged_gradients.values() for g in group]
        if self.stage == 3 and gradients:
            torch._foreach_mul_(gradients, dist.get_world_size())
        square = torch.zeros((), device=self.engine.device)
        if gradients:
            norms = torch.stack(torch._foreach_norm(gradients))
            square += norms.square().sum().to(square.device)
        dist.all_reduce(square)
        self.norm = square.sqrt()
        self.check(float(self.norm))
        return self.norm

    def publish(self) -> None:
        """Gives every process the weights that its own and the others' partitions now hold."""
        zero = self.zero
        if self.stage < 3:
            zero.update_lp_params()
            return
        zero._partition_all_parameters()
        for number in range(len(zero.fp16_groups)):
            zero._reassign_or_swap_out_partitioned_parameters(number)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)


def parameter_groups(module: WholeStep, hosts: dict[str, tuple[int, ...]]) -> list[dict[str, Any]]:
    """What all processes hold, then family experts by the processes that host them.

    Process groups are made on all processes for all hosts, in one order.
    """
    from deepspeed.moe.layer import MoE
    from deepspeed.utils import groups

    everyone = tuple(range(dist.get_world_size()))
    apart = {family: ranks for family, ranks in hosts.items() if ranks != everyone}
    if not apart:
        return [{"params": list(module.parameters())}]

    class Families(MoE):
        """Tells DeepSpeed that some parameters have process groups of their own."""

        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.num_experts = len(apart)

        def set_deepspeed_parallelism(self, *_: Any) -> None:
            """Nothing: the groups are ours."""

    module.add_module("families", Families())
    shared: list[nn.Parameter] = []
    hosted: dict[str, list[nn.Parameter]] = {}
    for ranks in dict.fromkeys(apart.values()):
        group = dist.new_group(list(ranks), timeout=Processes.time_limit)
        if dist.get_rank() in ranks:
            name = host_group(ranks)
            groups._EXPERT_DATA_PARALLEL_GROUP[name] = group
            hosted[name] = []
    for name, parameter in module.decoder.named_parameters():
        family = expert_family(name, module.decoder.config)
        if family not in apart:
            shared.append(parameter)
            continue
        parameter.allreduce = False  # type: ignore[attr-defined]
        parameter.group_name = host_group(apart[family])  # type: ignore[attr-defined]
        hosted[parameter.group_name].append(parameter)  # type: ignore[attr-defined]
    experts = [{"params": p, "moe": True, "name": name} for name, p in hosted.items() if p]
    return [{"params": shared, "name": "all"}, *experts]


def host_group(ranks: Sequence[int]) -> str:
    """The name of the processes that host the same families."""
    return f"hosts-{'-'.join(map(str, ranks))}"


def expert_family(name: str, config: ModelConfig) -> str | None:
    """The family of an expert that family parallelism places; None of any other parameter."""
    words = name.split(".")
    if words[3:4] == ["experts"] and config.layers[int(words[1])].router == "family":
        return words[4]
    return None
