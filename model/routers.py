"""Which experts a token uses, and with what weight: one code path in training, evaluation, export.

A router is called with the block's input and the batch's family segments, and answers with expert
choices over contiguous rows, in order. `family` needs no parameters: the expert of the
sequence's family, weight 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class FamilySegment:
    """Rows [start, stop) of the batch belong to one family."""

    family: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class ExpertChoice:
    """An expert for the next `rows` rows of the batch, and the weight of its output."""

    expert: str
    rows: int
    weight: float = 1.0

    def scale(self, y_BTD: Tensor) -> Tensor:
        """The expert's output times its weight."""
        return y_BTD if self.weight == 1.0 else self.weight * y_BTD


class FamilyRouter:
    """The expert of the sequence's family, weight 1."""

    def __init__(self, families: Sequence[str]) -> None:
        self.families = frozenset(families)

    def __call__(self, x_BTD: Tensor, segments: Sequence[FamilySegment]) -> list[ExpertChoice]:
        """One choice a segment.

        Raises:
            KeyError: a segment's family has no expert.
            ValueError: the segments do not cover the batch in order.
        """
        choices, row = [], 0
        for segment in segments:
            if segment.family not in self.families:
                raise KeyError(
                    f"family {segment.family!r} has no expert; the model hosts "
                    f"{', '.join(sorted(self.families))}"
                )
            if segment.start != row:
                raise ValueError(f"family segments leave a gap at row {row}")
            choices.append(ExpertChoice(segment.family, segment.stop - segment.start))
            row = segment.stop
        if row != x_BTD.shape[0]:
            raise ValueError(f"family segments cover {row} of {x_BTD.shape[0]} rows")
        return choices
