"""A step's micro-batches, as an engine runs them: forward through some layers, then the loss.

Losses are divided by the tokens of the whole global batch (those of prediction by the predicted
ones, those of routers by all), so that a gradient means the same wherever it was made.
Read next: `loop.py`, `engines/torch.py`.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.packing import IGNORED
from ..data.stream import MicroBatch
from ..model.collectives import Sharing, attach_loss
from ..model.decoder import Decoder, DecoderExtras
from ..model.noise import row_keys
from ..model.objectives import next_token_loss
from ..model.routers import FamilySegment
from .metrics import LanguageSums
from .profiling import part

Counter = Callable[[Tensor, DecoderExtras, int], None]
"""Is told of a micro-batch: languages_B, what routers did, and positions a row."""


@dataclass(frozen=True, slots=True)
class Micro:
    """A micro-batch on the device."""

    inputs_BT: Tensor
    targets_BT: Tensor
    documents_BT: Tensor
    languages_B: Tensor
    segments: tuple[FamilySegment, ...]
    keys_B: Tensor
    """Random keys of the rows."""


class StepWork:
    """A process's micro-batches of one step."""

    def __init__(
        self,
        micro_batches: Sequence[MicroBatch],
        *,
        keyed: tuple[int, int],
        predicted: int,
        size: int,
        z_weight: float,
        token_bytes: Tensor,
        sums: LanguageSums,
        counters: Sequence[Counter],
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> None:
        """
        Args:
            keyed: seed of the run and the step, which random numbers are drawn by.
            predicted: targets of the global batch that are predicted.
            size: its tokens.
            z_weight: weight of the squared log-partition.
            token_bytes: UTF-8 bytes of each token [V], on the device.
            sums: takes losses by language.
            counters: take what routers did, of every micro-batch.
        """
        self.batches, self.keyed = tuple(micro_batches), keyed
        self.predicted, self.size, self.z_weight = predicted, size, z_weight
        self.token_bytes, self.sums, self.counters = token_bytes, sums, tuple(counters)
        self.autocast = autocast
        self._micros: dict[int, Micro] = {}

    @property
    def count(self) -> int:
        """How many micro-batches there are."""
        return len(self.batches)

    def micro(self, index: int) -> Micro:
        """A micro-batch, moved to the device once."""
        if index not in self._micros:
            batch, device = self.batches[index], self.token_bytes.device
            inputs, targets, documents, rows = (
                t.to(device, non_blocking=True)
                for t in (batch.inputs_BT, batch.targets_BT, batch.documents_BT, global_rows(batch))
            )
            self._micros[index] = Micro(
                inputs, targets, documents, batch.languages_B,
                tuple(FamilySegment(*segment) for segment in batch.segments),
                row_keys(*self.keyed, rows),
            )  # fmt: skip
        return self._micros[index]

    def forward(
        self,
        decoder: Decoder,
        index: int,
        hidden_BTD: Tensor | None = None,
        layers: Sequence[int] | None = None,
    ) -> Tensor:
        """Hidden states after some layers, with the routers' losses attached to their graph.

        Args:
            index: of the micro-batch.
            hidden_BTD: what the layer before gave; None embeds the tokens.
            layers: to run; None runs all that the decoder holds.
        """
        micro, extras = self.micro(index), DecoderExtras()
        with self.autocast():
            hidden_BTD = decoder(
                micro.inputs_BT, micro.documents_BT, micro.segments, keys_B=micro.keys_B,
                extras=extras, hidden_BTD=hidden_BTD, layers=layers,
            )  # fmt: skip
        sharing = decoder.sharing
        if extras.auxiliary is not None:
            # Every process of a tensor group has the whole of it, and their gradients are added.
            scale = self.size * sharing.part.tensor[1]
            hidden_BTD = attach_loss(hidden_BTD, extras.auxiliary / scale)
        if sharing.part.tensor[0] == 0:
            positions = micro.inputs_BT.shape[1] // sharing.part.context[1]
            for counter in self.counters:
                counter(micro.languages_B, extras, positions)
        return hidden_BTD

    def loss(
        self, hidden_BTD: Tensor, head_weight_VD: Tensor, index: int, sharing: Sharing
    ) -> Tensor:
        """The micro-batch's share of the global batch's loss; its sums go to the metrics.

        Args:
            hidden_BTD: final hidden states, at this process's positions.
        """
        micro = self.micro(index)
        targets_BT = sharing.here(micro.targets_BT)
        with self.autocast(), part("loss"):
            loss, nll_BT = next_token_loss(
                hidden_BTD, head_weight_VD, targets_BT, z_weight=self.z_weight, sharing=sharing
            )
        if sharing.part.tensor[0] == 0:
            predicted_BT = targets_BT != IGNORED
            bytes_BT = self.token_bytes[targets_BT.clamp_min(0)] * predicted_BT
            self.sums.add(micro.languages_B, nll_BT, predicted_BT, bytes_BT)
        return loss / self.predicted


def global_rows(batch: MicroBatch) -> Tensor:
    """Each row's place among those of the global batch, int64."""
    return torch.tensor(
        [slot.number * len(slot.sequences) + i
         for slot in batch.slots for i in range(len(slot.sequences))]
    )  # fmt: skip
