"""What an engine is to the training loop.

An engine runs a step over many processes: it holds this process's part of the model and its
optimisers, and gives and takes state as pieces of canonical tensors, so that a checkpoint does not
know who wrote it. Read next: `torch.py`, the default.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ...model.decoder import Decoder
from ...model.layout import Layout, Place
from ...model.routers import FamilySegment
from ..config import RunConfig
from ..micro_batches import StepWork
from ..pieces import Piece, Reader
from .processes import Processes

Moves = Callable[[str], bool]
"""Canonical name -> whether some process has a gradient for it in this step."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What came of a step."""

    norm: float
    """Of the whole model's gradient, before clipping."""
    rate: float
    """AdamW's learning rate."""


class Engine(Protocol):
    """Runs steps over many processes."""

    processes: Processes
    layout: Layout
    place: Place
    together: bool
    """Whether all data indices must run forward passes equally often."""

    @property
    def decoder(self) -> Decoder | None:
        """This process's part; None where the model is another library's."""

    def build(
        self, config: RunConfig, families: Sequence[str], hosted: Sequence[frozenset[str]]
    ) -> None:
        """Makes this process's part of the model, freshly initialised, and its optimisers.

        Args:
            hosted: families whose experts each data index hosts.
        Raises:
            UserError, ModelError: the engine cannot do what the config asks.
        """

    def load(self, reader: Reader, *, optimizer: bool = True) -> None:
        """Fills weights and, where asked, optimiser state from a canonical checkpoint."""

    def pieces(self) -> Iterator[Piece]:
        """Weights and optimiser state that this process writes: of replicas exactly one does."""

    def forward_backward(self, work: StepWork) -> None:
        """Runs a step's micro-batches and accumulates their gradients."""

    def update(self, step: int, moves: Moves) -> StepResult:
        """Adds up gradients, clips the whole model's, moves what the step moves, forgets them.

        What does not move keeps weights and optimiser state as they are.

        Args:
            step: the step being made, counted from 0.
        Raises:
            FloatingPointError: the gradient's norm is infinite or NaN.
        """

    def layer_sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over the processes that hold the same layers, in place."""

    def score(
        self,
        inputs_BT: Tensor,
        targets_BT: Tensor,
        documents_BT: Tensor,
        segments: Sequence[FamilySegment],
    ) -> Tensor:
        """nll_BT of next tokens, in evaluation mode; zeros where another process counts them."""
