"""Optimisers and learning-rate schedules.

Every parameter's state is kept under its canonical name, whichever optimiser holds it. A parameter
without a gradient is left alone, with its state: a family that had no slot in a step does not
drift. Read next: `loop.py`.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..data.errors import check_minimums
from .errors import UserError
from .profiling import part


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """How parameters move."""

    name: Literal["adamw", "muon"] = "adamw"
    """`adamw` for all, or `muon` for the layers' matrices with AdamW for the rest, which holds
    routers and the experts of token routers."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    beta1: float = 0.9
    """Decay of AdamW's first moment."""
    beta2: float = 0.95
    """Decay of AdamW's second moment."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    weight_decay: float = 0.1
    """Decoupled decay of matrices; norms have none."""
    muon_learning_rate: float = 1e-3
    """Peak learning rate of Muon, in AdamW's units (updates are scaled to AdamW's size)."""
    muon_momentum: float = 0.95
    """Muon's momentum."""
    clip_norm: float = 1.0
    """Largest norm of the whole model's gradient; 0 does not clip."""
    z_loss: float = 1e-4
    """Weight of the squared log-partition."""
    schedule: Literal["wsd", "cosine"] = "wsd"
    """Warm-up, stable, decay; or warm-up and cosine."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    decay_share: float = 0.2
    """Share of the steps that decay linearly at the end (wsd)."""
    final_share: float = 0.1
    """Learning rate at the end, as a share of the peak."""

    def __post_init__(self) -> None:
        check_minimums(
            self, "optim", learning_rate=0, beta1=0, beta2=0, eps=0, weight_decay=0,
            muon_learning_rate=0, muon_momentum=0, clip_norm=0, z_loss=0, warmup_steps=0,
            decay_share=0, final_share=0,
        )  # fmt: skip


def learning_rate_factor(config: OptimConfig, step: int, steps: int) -> float:
    """The share of the peak learning rate at a step, counted from 0."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "cosine":
        progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return config.final_share + (1 - config.final_share) * cosine
    decay_steps = max(1, round(steps * config.decay_share))
    left = (steps - step) / decay_steps
    return 1.0 if left >= 1 else config.final_share + (1 - config.final_share) * max(0.0, left)


class Optimizers:
    """The optimisers of a model behind one step."""

    def __init__(self, model: nn.Module, config: OptimConfig, steps: int) -> None:
        self.config, self.steps = config, steps
        self.names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
        matrices, embeddings, norms = _split(model)
        self.optimizers: list[tuple[torch.optim.Optimizer, float]] = []
        rest = embeddings if config.name == "muon" else embeddings + matrices
        # One call moves either shards or whole tensors.
        adam_groups: list[dict[str, Any]] = [
            {"params": kept, "weight_decay": decay}
            for params, decay in ((rest, config.weight_decay), (norms, 0.0))
            for sharded in (False, True)
            if (kept := [p for p in params if isinstance(p, DTensor) == sharded])
        ]
        adamw = torch.optim.AdamW(
            adam_groups,
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            fused=True,
        )
        self.optimizers.append((adamw, config.learning_rate))
        if config.name == "muon":
            muon = torch.optim.Muon(
                matrices,
                lr=config.muon_learning_rate,
                momentum=config.muon_momentum,
                weight_decay=config.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
            self.optimizers.append((muon, config.muon_learning_rate))

    @part("optimizer")
    def step(self, step: int) -> float:
        """Moves every parameter that has a gradient.

        Args:
            step: the step being made, counted from 0.
        Returns:
            AdamW's learning rate.
        """
        factor = learning_rate_factor(self.config, step, self.steps)
        for optimizer, peak in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return self.optimizers[0][1] * factor

    def state(self) -> Iterator[tuple[str, str, Tensor]]:
        """(parameter name, state name, tensor) of everything held."""
        for optimizer, _ in self.optimizers:
            for parameter, state in optimizer.state.items():
                for key, value in state.items():
                    yield self.names[parameter], key, torch.as_tensor(value)

    def load(self, state_of: Callable[[str, str, Tensor], Tensor | None]) -> None:
        """Takes over a saved state.

        Args:
            state_of: parameter's name, state's name and the parameter -> the state, shaped as the
                parameter but for `step`; None where none was saved, for it never moved.
        Raises:
            UserError: the state belongs to another optimiser.
        """
        kinds = {"adamw": ("step", "exp_avg", "exp_avg_sq"), "muon": ("momentum_buffer",)}
        for optimizer, _ in self.optimizers:
            kind = "muon" if isinstance(optimizer, torch.optim.Muon) else "adamw"
            (other,) = kinds.keys() - {kind}
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    name = self.names[parameter]
                    held = {key: state_of(name, key, parameter) for key in kinds[kind]}
                    found = {key: value for key, value in held.items() if value is not None}
                    if len(found) == len(held):
                        optimizer.state[parameter] = {
                            # On the device, where the fused kernel reads it.
                            key: value.reshape(()).to(parameter.device) if key == "step" else value
                            for key, value in found.items()
                        }
                    elif found or state_of(name, kinds[other][-1], parameter) is not None:
                        raise UserError(
                            f"the checkpoint holds {sorted(found) or other} for {name}, optim.name="
                            f"{self.config.name} needs {list(kinds[kind])}: resume with the "
                            "optimiser that began the run"
                        )


def _split(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Matrices of the layers; embedding, head, routers, gates and stacks of experts; norms."""
    matrices, embeddings, norms = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            norms.append(parameter)
        elif name.startswith(("embed.", "head.")):
            embeddings.append(parameter)
        elif ".feed_forward.router." in name or name.endswith("gate.weight") or parameter.ndim > 2:
            # Rows of a router or a gate are vectors; stacks of experts are more than Muon takes.
            embeddings.append(parameter)
        else:
            matrices.append(parameter)
    return matrices, embeddings, norms


@part("optimizer")
def gradient_norm(gradients: list[Tensor]) -> Tensor:
    """The norm of all gradients together, scalar float32."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


@part("optimizer")
def clip_gradients(gradients: list[Tensor], norm: Tensor, limit: float) -> None:
    """Scales gradients so that their norm is at most `limit`; 0 leaves them."""
    if limit <= 0:
        return
    factor = (limit / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(gradients, factor)
