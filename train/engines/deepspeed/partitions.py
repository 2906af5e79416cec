"""Which elements of which parameters lie where in ZeRO's flat float32 partitions.

ZeRO lines parameters up and cuts the line into equal partitions, one a process (stages 1 and 2), or
cuts every parameter and lines up the cuts (stage 3). Both come down to ranges, which the optimiser,
the norm and the checkpoint go by. Private names of DeepSpeed are read here and in `zero.py` alone.
Read next: `adamw.py`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Elements of one parameter in a partition."""

    name: str
    """Canonical name."""
    start: int
    """First of the parameter's flat elements that is held."""
    stop: int
    """The one after the last."""
    at: int
    """Where the first lies in the partition."""

    def of(self, partition: Tensor) -> Tensor:
        """The elements in a flat tensor laid out as the partition."""
        return partition.narrow(0, self.at, self.stop - self.start)


def partitions_of(zero: Any, names: Mapping[int, str]) -> list[tuple[Tensor, tuple[Held, ...]]]:
    """Every float32 partition of this process, and what lies in it.

    Args:
        zero: DeepSpeed's optimiser of stage 1, 2 or 3.
        names: id of a parameter -> canonical name.
    """
    if hasattr(zero, "fp32_partitioned_groups_flat"):
        return [
            (flat, tuple(_cut(parameters, names)))
            for flat, parameters in zip(
                zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True
            )
        ]
    return [
        (flat, tuple(_line(zero, group, flat.numel(), names)))
        for group, flat in enumerate(zero.single_partition_of_fp32_groups)
    ]


def _line(zero: Any, group: int, size: int, names: Mapping[int, str]) -> Iterator[Held]:
    """Stages 1 and 2: the index-th of equal pieces of all parameters in a line."""
    begin = zero.real_dp_process_group[group].rank() * size
    for parameter, offset in zip(
        zero.round_robin_bit16_groups[group], zero.round_robin_bit16_offsets[group], strict=True
    ):
        low = max(begin, offset)
        high = min(begin + size, offset + parameter.numel())
        if high > low:
            yield Held(
                name=names[id(parameter)], start=low - offset, stop=high - offset, at=low - begin
            )


def _cut(parameters: list[Any], names: Mapping[int, str]) -> Iterator[Held]:
    """Stage 3: the index-th piece of each parameter, one after the other, each padded to size."""
    at = 0
    for parameter in parameters:
        size = parameter.partition_numel()
        begin = parameter.ds_process_group.rank() * size
        end = min(begin + size, parameter.ds_numel)
        if end > begin:
            yield Held(name=names[id(parameter)], start=begin, stop=end, at=at)
        at += size
