"""One step by Megatron's schedules: plain, 1F1B over a pipeline, or interleaved.

Losses come in as sums over tokens already divided by the global batch's, so Megatron is told that
they are per token and given no tokens to divide by: nothing is averaged, over micro-batches or
ranks. Shapes: B sequences, T positions, D model. Read next: `engine.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor, nn

from .model import FamilyGPT


@dataclass(frozen=True, slots=True)
class Rows:
    """What the model reads of a micro-batch."""

    tokens_BT: Tensor
    documents_BT: Tensor
    families_B: Tensor
    """Index of each row's family, int64 on the CPU."""


def run_schedule(
    chunks: Sequence[nn.Module], *, count: int, rows: Callable[[int], Rows],
    result: Callable[[Tensor, Tensor, int], Tensor], backward: bool,
) -> list[Tensor]:  # fmt: skip
    """Runs micro-batches through all stages; accumulates gradients where asked.

    Args:
        chunks: this process's pieces of the decoder, wrapped or not.
        count: micro-batches, the same on every process.
        rows: number of a micro-batch -> what the model reads.
        result: (final hidden states [B, T, D] at this process's positions, the head's rows, number)
            -> the micro-batch's loss, scalar; without `backward` anything. Called on the last
            stage alone.
    Returns:
        On the last stage what `result` gave, by micro-batch; a copy, for Megatron changes losses
        in their place. Elsewhere nothing.
    """
    inner = [unwrapped(chunk) for chunk in chunks]
    shapes = {tuple(rows(index).tokens_BT.shape) for index in range(count)}
    config = inner[0].config
    config.variable_seq_lengths = len(shapes) > 1  # stages then tell each other every shape
    B, T = next(iter(shapes))

    def last(
        index: int, head_VD: Tensor | None, hidden_TBD: Tensor, non_loss_data: bool = False
    ) -> Any:
        assert head_VD is not None, "only the last stage is asked for a loss"
        value = result(hidden_TBD.transpose(0, 1), head_VD, index)
        if non_loss_data:
            return value
        return value, torch.zeros((), dtype=torch.int), reported(value)

    def forward(numbers: Any, model: nn.Module) -> tuple[Tensor, Callable[..., Any]]:
        index = next(numbers)
        at = rows(index)
        hidden_TBD = model(at.tokens_BT, at.documents_BT, at.families_B)
        chunk = unwrapped(model)
        head_VD = chunk.head_weight_VD() if chunk.post_process else None
        return hidden_TBD, partial(last, index, head_VD)

    several = len(chunks) > 1
    values: list[Tensor] = get_forward_backward_func()(
        forward_step_func=forward,
        data_iterator=[iter(range(count)) for _ in chunks] if several else iter(range(count)),
        model=list(chunks) if several else chunks[0],
        num_microbatches=count,
        seq_length=T,
        micro_batch_size=B,
        forward_only=not backward,
        collect_non_loss_data=not backward,
    )
    return values


def reported(loss: Tensor) -> Tensor:
    """A loss to be told, which nothing that Megatron does to the loss itself reaches."""
    return loss.detach().clone()


def unwrapped(chunk: nn.Module) -> FamilyGPT:
    """The model within Megatron's data parallel wrapper, or as it is."""
    inner = chunk.module if hasattr(chunk, "module") else chunk
    assert isinstance(inner, FamilyGPT)
    return inner
