"""Run by test_layout_traffic.py: on each process, what steps of some layouts send and allocate.

SETTINGS.json FOLDER: a list of (name, config overrides); writes what each rank counted.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from xylem.data.stream import build_order
from xylem.train import loop
from xylem.train.assembly import start
from xylem.train.collective_bytes import CollectiveBytes, count_collectives
from xylem.train.compose import compose_config
from xylem.train.config import RunConfig
from xylem.train.engines.processes import Processes
from xylem.train.engines.torch import TorchEngine

STEPS = 3


def steps_of(config: RunConfig, processes: Processes) -> list[dict[str, Any]]:
    """What each of a few steps sent: by kind, bytes put in; and the families it had slots of."""
    engine = TorchEngine(processes, config.engine.layout.resolved(processes.world))
    trainer = start(config, engine)
    counted: list[CollectiveBytes] = []

    def counting(call: Callable[..., Any], first: bool) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            with count_collectives() as counts:
                result = call(*arguments)
            if first:
                counted.append(counts)
            else:
                counted[-1].calls.extend(counts.calls)
            return result

        return run

    engine.forward_backward = counting(engine.forward_backward, True)  # type: ignore[method-assign]
    engine.update = counting(engine.update, False)  # type: ignore[method-assign]
    loop.fit(trainer)
    order = build_order(trainer.ledger, trainer.manifest)
    return [
        {
            "sent": counts.by_kind(),
            "families": sorted({slot.family for slot in order.step(step)}),
            "calls": [[c.kind, len(c.group), c.bytes] for c in counts.calls if c.data],
        }
        for step, counts in enumerate(counted)
    ]


def peak_of(config: RunConfig, processes: Processes, folder: Path) -> int:
    """The most that a run's tensors took at any time, bytes."""
    engine = TorchEngine(processes, config.engine.layout.resolved(processes.world))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as traced:
        loop.fit(start(config, engine))
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
    for name, overrides in cases:
        config = compose_config([*overrides, f"run.root={folder}", f"run.name={name}"])
        processes = processes or Processes(config.engine)
        torch.manual_seed(0)
        if name.startswith("peak"):
            told[name] = peak_of(config, processes, folder)
        else:
            told[name] = steps_of(config, processes)
    assert processes is not None
    (folder / f"rank-{processes.rank}.json").write_text(json.dumps(told))
    processes.barrier()
    processes.close()
