"""How long a step takes: products, what nothing hides of what is sent, bubbles, the optimiser.

A model, not a measurement: peaks and links come from `configs/hardware.yaml`, and every assumption
stands in `docs/SCALING.md`. Read next: `layout_search.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log2

from ..model.accounting import layer_flops_per_token
from ..model.layout import Layout
from .hardware import Hardware
from .layout_parts import Work
from .layout_traffic import Traffic

IN_PASSES = ("tensor", "context", "experts", "pipeline", "loss")
"""Sent between products that wait for it."""
HIDDEN_SHARE = 0.8
"""Of a pass's products that FSDP2's gathers and sums run beside."""
OPTIMISER_PASSES = 7
"""Reads and writes of a float32 value by AdamW: weight, gradient, two states; three written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds of a step on one rank."""

    compute: float
    """Products of its micro-batches, recomputation included."""
    passes: float
    """Collectives inside forward and backward passes."""
    weights: float
    """FSDP2's gathers and sums that products do not hide."""
    gradients: float
    """Gradients added up after the last micro-batch."""
    bubble: float
    """Waiting for the pipeline to fill and to empty."""
    optimiser: float

    @property
    def total(self) -> float:
        """All of it."""
        return (
            self.compute + self.passes + self.weights + self.gradients + self.bubble
            + self.optimiser
        )  # fmt: skip


def collective_seconds(traffic: Traffic, hardware: Hardware) -> float:
    """How long collectives take.

    Rings over several nodes leave each by as many network cards as it has members there; what
    goes to everyone leaves by one's own. Latency grows with the logarithm of the group.
    """
    size, together = traffic.group.size, traffic.group.together
    if size < 2:
        return 0.0
    within, across = hardware.within_gb_s * 1e9, hardware.across_gb_s * 1e9
    latency = hardware.within_latency_us if size <= together else hardware.across_latency_us
    waiting = traffic.calls * latency * 1e-6 * max(1.0, log2(size))
    if size <= together:
        seconds = traffic.wire / within
    elif traffic.kind == "all_to_all":
        seconds = max(traffic.across / across, (traffic.wire - traffic.across) / within)
    elif traffic.kind == "send":
        seconds = traffic.wire / across
    else:
        seconds = traffic.wire / min(within, together * across)
    return seconds / hardware.link_share + waiting


def stage_flops(work: Work, layout: Layout, layers: Sequence[int], *, last: bool) -> float:
    """A process's floating-point operations of one micro-batch on a stage, forward and backward."""
    model, T = work.model, work.sequence_length
    forward, again, plans = 0, 0, model.layers
    for number in layers:
        flops = layer_flops_per_token(model, plans[number], work.families, T)
        forward += flops
        again += flops if work.recompute and number % work.recompute == 0 else 0
    if last:
        forward += 2 * model.hidden_size * model.vocab_size
    tokens = work.micro_tokens / (layout.context * layout.tensor)
    return (3 * forward + again) * tokens


def step_time(
    work: Work,
    layout: Layout,
    stages: Sequence[Sequence[int]],
    traffic: Sequence[Traffic],
    parameters: int,
    hardware: Hardware,
) -> StepTime:
    """The predicted step of a rank; the pipeline moves at the pace of its slowest stage.

    Args:
        parameters: bytes of float32 weights that this rank's optimiser moves.
    """
    p, m = layout.pipeline, work.micro_batches(layout)
    per_stage = [
        stage_flops(
            work, layout, [n for i in range(s, len(stages), p) for n in stages[i]], last=s == p - 1
        )
        for s in range(p)
    ]
    rate = hardware.flops(work.precision)
    compute = m * max(per_stage) / rate
    seconds: dict[str, float] = {}
    for each in traffic:
        named = each.what if each.what in (*IN_PASSES, "weights") else "gradients"
        seconds[named] = seconds.get(named, 0.0) + collective_seconds(each, hardware)
    passes = sum(seconds.get(name, 0.0) for name in IN_PASSES)
    weights = max(0.0, seconds.get("weights", 0.0) - HIDDEN_SHARE * compute)
    bubble = (p - 1) / layout.virtual * (compute + passes) / m
    return StepTime(
        compute=compute,
        passes=passes,
        weights=weights,
        gradients=seconds.get("gradients", 0.0),
        bubble=bubble,
        optimiser=OPTIMISER_PASSES * parameters / (hardware.memory_gb_s * 1e9),
    )
