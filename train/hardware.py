"""What devices can do: peaks, memory and links, read from `configs/hardware.yaml`.

Read next: `layout_time.py`, which predicts a step's time from it.
"""

import dataclasses
import difflib
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from .build import build
from .errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """A device, its node, and what joins nodes."""

    bf16_tflops: float
    """Dense peak of bf16 matrix products, 10^12 FLOP/s."""
    fp32_tflops: float
    """The same in float32."""
    memory_gib: float
    """What a process can allocate, 2^30 bytes."""
    memory_gb_s: float
    """Bandwidth of that memory, 10^9 bytes a second."""
    node: int
    """Devices a node."""
    within_gb_s: float
    """From one device to the others of its node, one direction."""
    across_gb_s: float
    """From one device to other nodes, one direction."""
    within_latency_us: float
    """Of one message to the same node, 10^-6 s."""
    across_latency_us: float
    """Of one message to another node."""
    compute_share: float
    """Of the peak that a step without communication reaches."""
    link_share: float
    """Of a link's rate that a large collective reaches."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value <= 0:
                raise UserError(f"{field.name}={value} must be more than 0")
            if field.name.endswith("_share") and value > 1:
                raise UserError(f"{field.name}={value} must be at most 1: it is a share")

    def flops(self, precision: str) -> float:
        """FLOP/s that a step reaches where nothing waits; precision is `bf16` or `fp32`."""
        peak = self.bf16_tflops if precision == "bf16" else self.fp32_tflops
        return peak * 1e12 * self.compute_share


def known_hardware() -> dict[str, Hardware]:
    """Every device of `configs/hardware.yaml`, by its name.

    Raises:
        UserError: an entry lacks a number, or has one that cannot be; names both.
    """
    text = resources.files("xylem.configs").joinpath("hardware.yaml").read_text(encoding="utf-8")
    return {name: read_hardware(name, values) for name, values in yaml.safe_load(text).items()}


def read_hardware(name: str, values: Any) -> Hardware:
    """One entry.

    Raises:
        UserError: see `known_hardware`.
    """
    try:
        return build(Hardware, values)
    except UserError as error:
        raise UserError(f"configs/hardware.yaml, {name}: {error}") from None


def hardware_named(name: str) -> Hardware:
    """A device by its name.

    Raises:
        UserError: there is none; names the nearest.
    """
    known = known_hardware()
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, 1)
        told = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}."
        raise UserError(
            f"cluster.hardware={name!r} is not in configs/hardware.yaml; {told} Add what you have "
            "there"
        )
    return known[name]
