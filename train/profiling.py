"""Where a step's time goes: a trace for chrome://tracing or Perfetto, and a table by part.

Parts are labels around the forward pass's modules and the loop's stages. An operation of the
backward pass belongs to the part whose forward operation it differentiates, which autograd's
sequence numbers tell. Times are those of the device: kernels on a GPU, operators on a CPU.
Read next: `loop.py`, which has the stages.
"""

import gzip
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch._C._autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, record_function
from torch.utils.hooks import RemovableHandle

from ..model.decoder import Decoder
from .console import say

WARM_UP = 3
"""Steps that are left out: allocators and caches fill, compilers compile."""
TOP = 20
"""Operators in the table."""
OTHER = "other"
"""What has no label: embedding, masks, telemetry, logging, Python between operators."""
_LABEL = "xylem: "
_NODE = "autograd::engine::evaluate_function: "


def part(name: str) -> record_function:
    """A label for what runs inside, as `with` or as a decorator; costs a microsecond."""
    return record_function(_LABEL + name)


@dataclass(slots=True)
class Times:
    """Seconds over the traced steps."""

    wall: float
    forward: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Of each part, outside the backward pass."""
    backward: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    operators: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Name -> (calls, seconds of its own)."""

    def of(self, name: str) -> float:
        """A part's time in both directions."""
        return self.forward.get(name, 0.0) + self.backward.get(name, 0.0)

    @property
    def unseen(self) -> float:
        """Wall time in which no operator ran."""
        parts = self.forward.keys() | self.backward.keys()
        return max(0.0, self.wall - sum(self.of(name) for name in parts))


class Profile:
    """Traces some steps of a run into a folder; the run goes on."""

    def __init__(
        self, decoder: Decoder, folder: Path, steps: int, steps_left: int, device: torch.device
    ) -> None:
        """
        Args:
            steps: to trace after the warm-up; 0 traces nothing.
            steps_left: that the run will make.
        """
        self.decoder, self.folder, self.steps, self.device = decoder, folder, steps, device
        self.done = 0
        self.began = 0.0
        self.handles: list[RemovableHandle] = []
        self.tracer: torch.profiler.profile | None = None
        if steps and steps_left < WARM_UP + steps:
            say(
                f"debug.profile={steps} needs {WARM_UP + steps} steps, and {steps_left} are left: "
                "nothing is profiled; raise run.steps"
            )
            self.steps = 0

    def step(self) -> None:
        """A step is over: begins or ends the trace where it is time."""
        self.done += 1
        if not self.steps:
            return
        if self.done == WARM_UP:
            self._begin()
        elif self.done == WARM_UP + self.steps:
            self._end()

    def close(self) -> None:
        """Drops a trace that the run's end has cut."""
        if self.tracer is not None:
            self.tracer.stop()
            self._unmark()
            say("the run ended while it was being profiled: no profile")

    def _begin(self) -> None:
        self.handles = list(mark_parts(self.decoder))
        activities = [ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self.tracer = torch.profiler.profile(activities=activities)
        self.tracer.start()
        self._synchronize()
        self.began = time.perf_counter()

    def _end(self) -> None:
        assert self.tracer is not None
        self._synchronize()
        wall = time.perf_counter() - self.began
        self.tracer.stop()
        self._unmark()
        tracer, self.tracer = self.tracer, None
        times = read_times(cast(Iterable[FunctionEvent], tracer.events()), wall, self.device)
        folder = self.folder / "profile"
        try:
            folder.mkdir(exist_ok=True)
            with (folder / "time.txt").open("w", encoding="utf-8") as file:
                for table in tables(times, self.steps, self.device):
                    Console(file=file, width=110).print(table)
            export_trace(tracer, folder / "trace.json.gz")
        except OSError as error:
            say(f"the profile could not be written ({error}): make room; the run goes on")
            return
        names = sorted(times.forward.keys() | times.backward.keys(), key=times.of, reverse=True)
        told = ", ".join(f"{name} {times.of(name) / wall:.0%}" for name in names[:4])
        say(
            f"profiled {self.steps} steps of {wall / self.steps:.3g} s: {told}; "
            f"{folder / 'time.txt'} has the table, {folder / 'trace.json.gz'} is for "
            "ui.perfetto.dev; the run goes on"
        )

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _unmark(self) -> None:
        for handle in self.handles:
            handle.remove()


def mark_parts(decoder: Decoder) -> Iterable[RemovableHandle]:
    """Labels a decoder's modules; a label inside another takes its operations from it."""
    marks: list[tuple[nn.Module | None, str]] = [
        (decoder.embed, "embedding"), (decoder.family_head, "router"), (decoder.final_norm, "norms")
    ]  # fmt: skip
    for layer in decoder.layers:
        block = layer.feed_forward
        marks += [(layer.attention_norm, "norms"), (layer.feed_forward_norm, "norms")]
        marks += [(layer.attention, "attention"), (block.trunk, "trunk")]
        if block.router is not None:
            marks.append((block, "experts"))
        if isinstance(block.router, nn.Module):
            marks.append((block.router, "router"))
    for module, name in marks:
        if module is not None:
            yield from _mark(module, name)


def _mark(module: nn.Module, name: str) -> tuple[RemovableHandle, RemovableHandle]:
    open_labels: list[record_function] = []

    def begin(*_: Any) -> None:
        open_labels.append(part(name))
        open_labels[-1].__enter__()

    def end(*_: Any) -> None:
        open_labels.pop().__exit__(None, None, None)

    # A recomputed layer ends by an exception, as soon as it has what it was recomputed for.
    return (
        module.register_forward_pre_hook(begin, prepend=True),
        module.register_forward_hook(end, always_call=True),
    )


def export_trace(tracer: torch.profiler.profile, path: Path) -> None:
    """Writes a Chrome trace, whole or not at all.

    Raises:
        OSError: it cannot be written; names the file.
    """
    reason = "the disk or the limit on a file's size is full"
    try:
        tracer.export_chrome_trace(str(path))
        with gzip.open(path) as file:
            # Where PyTorch runs out of room, it writes nothing and goes on.
            if file.read(80).strip().startswith(b"{"):
                return
    except (OSError, EOFError, RuntimeError) as error:
        reason = str(error)
    path.unlink(missing_ok=True)
    raise OSError(f"{path}: {reason}")


def read_times(events: Iterable[FunctionEvent], wall: float, device: torch.device) -> Times:
    """Adds up operators by part and by name.

    Args:
        events: of a trace, with their parents.
        wall: seconds that it took.
    """
    times = Times(wall=wall)
    events = [event for event in events if event.device_type == DeviceType.CPU]
    of_node: dict[tuple[int | None, int], str] = {}
    # The last operator with a number is the one that made the node: its parents have the same. What
    # is labelled inside the backward pass is a forward operator again, of a recomputed layer.
    for event in sorted(events, key=lambda event: event.time_range.start):
        name = _label(event)
        if event.sequence_nr >= 0 and (name is not None or _node(event) is None):
            of_node[event.thread, event.sequence_nr] = name or OTHER
    for event in events:
        on_device = device.type == "cuda"
        own = event.self_device_time_total if on_device else event.self_cpu_time_total
        name, node = _label(event), _node(event)
        if name is None and node is not None:
            name = of_node.get((node.fwd_thread, node.sequence_nr))
        side = times.forward if node is None else times.backward
        side[name or OTHER] += own / 1e6
        if not event.name.startswith(_LABEL):
            calls, seconds = times.operators.get(event.name, (0, 0.0))
            times.operators[event.name] = calls + 1, seconds + own / 1e6
    return times


def _label(event: FunctionEvent) -> str | None:
    """The innermost part around an operator."""
    found: FunctionEvent | None = event
    while found is not None:
        if found.name.startswith(_LABEL):
            return found.name.removeprefix(_LABEL)
        if found.name.startswith("Optimizer.step"):
            return "optimizer"
        found = found.cpu_parent
    return None


def _node(event: FunctionEvent) -> FunctionEvent | None:
    """The node of the backward pass in which an operator runs; None outside it."""
    found: FunctionEvent | None = event
    while found is not None and not found.name.startswith(_NODE):
        found = found.cpu_parent
    return found


def tables(times: Times, steps: int, device: torch.device) -> Sequence[Table]:
    """By part, and the operators that take most."""
    of_parts = Table(
        title=f"{steps} steps of {1e3 * times.wall / steps:,.1f} ms, times of the {device.type}",
        title_justify="left",
    )
    of_parts.add_column("part")
    for name in ("forward ms a step", "backward ms a step", "share"):
        of_parts.add_column(name, justify="right")
    names = sorted(times.forward.keys() | times.backward.keys(), key=times.of, reverse=True)
    for name in names:
        forward, backward = times.forward.get(name, 0.0), times.backward.get(name, 0.0)
        of_parts.add_row(
            name, _milliseconds(forward / steps), _milliseconds(backward / steps),
            f"{(forward + backward) / times.wall:.1%}",
        )  # fmt: skip
    idle = "no operator" if device.type == "cpu" else "idle"
    of_parts.add_row(
        idle, _milliseconds(times.unseen / steps), "", f"{times.unseen / times.wall:.1%}"
    )
    operators = Table(title="operators, without those they call", title_justify="left")
    operators.add_column("operator")
    for name in ("calls a step", "ms a step", "share"):
        operators.add_column(name, justify="right")
    ranked = sorted(times.operators.items(), key=lambda item: -item[1][1])
    for name, (calls, seconds) in ranked[:TOP]:
        operators.add_row(
            name, f"{calls / steps:,.1f}", _milliseconds(seconds / steps),
            f"{seconds / times.wall:.1%}",
        )  # fmt: skip
    return of_parts, operators


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.2f}"
