"""AdamW over ZeRO's flat partitions, which moves only the parameters that a step moves.

DeepSpeed gives its optimiser one flat tensor for many parameters. Each range of it is stepped on
its own, with its own count of steps and its own decay, so that a family without a token in a step
keeps weights and state to the bit, and state has canonical names. Read next: `engine.py`.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from ...optimizer import OptimConfig
from .partitions import Held

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Names of the state that lies in tensors as large as the weights."""


class PartitionedAdamW(torch.optim.Optimizer):
    """AdamW whose tensors are partitions of many parameters."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        config: OptimConfig,
        undecayed: Collection[str],
        limited: Collection[str] = (),
    ) -> None:
        """
        Args:
            groups: as of PyTorch's optimisers, before ZeRO takes the parameters over.
            undecayed: canonical names of the parameters without weight decay.
            limited: of those that a step must leave at 0 or below.
        """
        super().__init__(groups, {"lr": config.learning_rate})
        self.config = config
        self.undecayed, self.limited = frozenset(undecayed), frozenset(limited)
        self.moves: Callable[[str], bool] = lambda name: True
        """Which parameters the step under way moves."""
        self.held: dict[Tensor, tuple[Held, ...]] = {}
        """What lies in each partition of this process."""
        self.steps: dict[str, Tensor] = {}
        """Steps that each parameter was moved by, scalar float32; none was never moved."""

    def take(self, partitions: Sequence[tuple[Tensor, tuple[Held, ...]]]) -> None:
        """What ZeRO made of the parameters."""
        self.held = dict(partitions)

    def moments(self, partition: Tensor) -> dict[str, Tensor]:
        """Both moments of a partition, zeros at first."""
        state = self.state[partition]
        for key in MOMENTS:
            if key not in state:
                state[key] = torch.zeros_like(partition, requires_grad=False)
        return state

    def moved(self, partition: Tensor) -> list[Held]:
        """What the step under way moves in a partition."""
        return [held for held in self.held[partition] if self.moves(held.name)]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Moves what is to move in the partitions that have a gradient."""
        for group in self.param_groups:
            for partition in group["params"]:
                if partition.grad is None:
                    continue
                moved = self.moved(partition)
                decayed = [held for held in moved if held.name not in self.undecayed]
                others = [held for held in moved if held.name in self.undecayed]
                self._move(partition, decayed, group["lr"], self.config.weight_decay)
                self._move(partition, others, group["lr"], 0.0)

    def _move(self, partition: Tensor, moved: list[Held], rate: float, decay: float) -> None:
        if not moved:
            return
        moments = self.moments(partition)
        for held in moved:
            if held.name not in self.steps:
                self.steps[held.name] = torch.zeros((), device=partition.device)
        adamw(
            [held.of(partition) for held in moved],
            [held.of(cast(Tensor, partition.grad)) for held in moved],
            [held.of(moments["exp_avg"]) for held in moved],
            [held.of(moments["exp_avg_sq"]) for held in moved],
            [],
            [self.steps[held.name] for held in moved],
            fused=True,
            amsgrad=False,
            beta1=self.config.beta1,
            beta2=self.config.beta2,
            lr=rate,
            weight_decay=decay,
            eps=self.config.eps,
            maximize=False,
        )
        for held in moved:
            if held.name in self.limited:
                held.of(partition).clamp_(max=0.0)
