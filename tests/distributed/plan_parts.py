"""Run by test_layout_traffic.py: on each process, what steps of some layouts send and allocate.

SETTINGS.json FOLDER: a list of (name, config overrides); writes what each rank counted.
"""

import ctypes
import gc
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from xylem.train import loop
from xylem.train.assembly import Trainer, start
from xylem.train.collective_bytes import CollectiveBytes, count_collectives
from xylem.train.compose import compose_config
from xylem.train.config import RunConfig
from xylem.train.engines.processes import Processes, resolve_precision
from xylem.train.engines.torch import TorchEngine
from xylem.train.metrics import Meter
from xylem.train.routing import StepRouting
from xylem.train.routing_telemetry import RoutingTelemetry


def steps(config: RunConfig, processes: Processes) -> Iterator[tuple[Trainer, set[str]]]:
    """Runs a few steps of the loop, without saving or evaluating; yields after each."""
    processes.precision = resolve_precision(config.engine.precision, processes.device)
    engine = TorchEngine(processes, config.engine.layout.resolved(processes.world))
    trainer = start(config, engine)
    meter = Meter(config, processes, trainer.stream)
    routing = StepRouting(trainer.decoder, processes, engine.layer_sum)
    telemetry = RoutingTelemetry(trainer)
    for step in range(config.run.steps):
        batch = trainer.stream.batch(step)
        loop.run_micro_batches(trainer, batch, meter.sums, routing, telemetry)
        routing.gather(step)
        engine.update(step, routing.touched(batch.families))
        routing.move()
        trainer.step += 1
        yield trainer, set(batch.families)
    trainer.stream.close()


def sent(config: RunConfig, processes: Processes) -> list[dict[str, Any]]:
    """What the engine sent in each step, by kind, and the families that had a slot in it."""
    told: list[dict[str, Any]] = []
    counted = CollectiveBytes()

    def counting(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            with count_collectives() as counts:
                result = call(*arguments)
            counted.calls.extend(counts.calls)
            return result

        return run

    plain = TorchEngine.forward_backward, TorchEngine.update
    TorchEngine.forward_backward = counting(plain[0])  # type: ignore[method-assign]
    TorchEngine.update = counting(plain[1])  # type: ignore[method-assign]
    for _, families in steps(config, processes):
        calls = [[c.kind, len(c.group), c.bytes] for c in counted.calls if c.data]
        told.append({"sent": counted.by_kind(), "families": sorted(families), "calls": calls})
        counted.calls.clear()
    TorchEngine.forward_backward, TorchEngine.update = plain  # type: ignore[method-assign]
    return told


def count_everywhere() -> None:
    """Lets PyTorch count what is freed in threads that are not profiled.

    gloo's threads may be the last to hold what they have sent; uncounted, it stayed allocated for
    ever in the profiler's sums, in some runs and not in others.
    """
    library = str(Path(torch.__file__).parent / "lib" / "libc10.so")
    name = "FLAGS_caffe2_report_cpu_memory_usage"
    ctypes.c_bool.in_dll(ctypes.CDLL(library), name).value = True


def peak(config: RunConfig, processes: Processes, folder: Path) -> int:
    """The most that tensors took at any time of a few steps, bytes."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as traced:
        for _ in steps(config, processes):
            pass
    path = folder / f"trace-{processes.rank}.json"
    traced.export_chrome_trace(str(path))
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    path.unlink()
    memory = [
        (event["ts"], event["args"]["Total Allocated"], event["args"]["Bytes"])
        for event in events
        if event.get("name") == "[memory]" and event["args"]["Device Type"] == 0
    ]
    _, total, size = min(memory)
    return max(each for _, each, _ in memory) - (total - size)


if __name__ == "__main__":
    cases = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    folder = Path(sys.argv[2])
    told: dict[str, Any] = {}
    processes = None
    count_everywhere()
    for name, overrides in cases:
        config = compose_config([*overrides, f"run.root={folder}", f"run.name={name}"])
        processes = processes or Processes(config.engine)
        gc.collect()  # what an earlier case left
        measures_memory = name.startswith("peak")
        told[name] = peak(config, processes, folder) if measures_memory else sent(config, processes)
    assert processes is not None
    (folder / f"rank-{processes.rank}.json").write_text(json.dumps(told))
    processes.barrier()
    processes.close()
