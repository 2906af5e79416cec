"""What do family parallelism and engines cost, beside all-to-all, Megatron-core, DeepSpeed, DDP?

    python -m xylem.scripts.bench_engines [--quick] [--json]

Starts four gloo processes itself, each with one thread. Arms train one model on the same global
batches and must have the same losses; they take turns, and a ratio is the median over rounds of the
ratio in a round. Bytes are counted at the operations that reach the process group; what leaves a
process by a ring counts. CPU ms are those of all processes: on a busy machine they say more than
the clock. Weak scaling keeps four processes busy in every case, each with an equal
share of the cores: four jobs of one process, two of two, one of four. Read next: `engine_parts.py`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from .engine_arms import FULL, MIXTURES, QUICK
from .goals import Goal, print_goals

PROCESSES = 4
LIMIT = 1800
"""Seconds that a job may take."""
WANTED = {"all_to_all": 1.3, "megatron_moe": 1.5}
"""Times the tokens/s of these arms."""
OVERHEADS = (("torch", "ddp"), ("deepspeed", "ddp"), ("megatron", "ddp"), ("torch", "fsdp2"))
"""Engines, and plain PyTorch that they are measured by."""


def start(
    parts: str, file: Path, *, processes: int, quick: bool, place: int | None = None
) -> subprocess.Popen[str]:
    """Begins a job of some processes that measures parts."""
    module = "xylem.scripts.engine_parts"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, f"--nproc-per-node={processes}", "-m", module, parts, str(file)]
    command += ["--quick"] * quick + ([] if place is None else [f"--place={place}"])
    more = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TORCHDYNAMO_DISABLE": "1"}
    return subprocess.Popen(
        command, env={**os.environ, **more}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def finish(jobs: Sequence[subprocess.Popen[str]]) -> None:
    """Waits for jobs.

    Raises:
        RuntimeError: one failed; with the end of what it said.
    """
    try:
        for job in jobs:
            _, said = job.communicate(timeout=LIMIT)
            if job.returncode:
                raise RuntimeError(f"a measured process failed:\n{said[-4000:]}")
    finally:
        for job in jobs:
            if job.poll() is None:
                job.terminate()
                job.wait()


def measure(parts: str, folder: Path, *, quick: bool) -> dict[str, Any]:
    """What four processes found."""
    file = folder / "found.json"
    finish([start(parts, file, processes=PROCESSES, quick=quick)])
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def measure_scaling(folder: Path, *, quick: bool) -> dict[int, float]:
    """Tokens a second of a job of 1, 2 and 4 processes, four being busy each time."""
    rates: dict[int, float] = {}
    for processes in (1, 2, 4):
        files = [folder / f"scaling-{processes}-{at}" for at in range(0, PROCESSES, processes)]
        finish([
            start("scaling", file, processes=processes, quick=quick, place=number * processes)
            for number, file in enumerate(files)
        ])  # fmt: skip
        told = [json.loads(file.read_text())["scaling"] for file in files]
        rates[processes] = statistics.median(each["tokens"] / each["median"] for each in told)
    return rates


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """The median of the ratios of steps made one after the other."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def held(found: dict[str, Any], arm: str) -> int:
    """Most parameters that one process holds."""
    return max(process["parameters"][arm] for process in found["processes"])


def expert_bytes(found: dict[str, Any], arm: str) -> int:
    """Bytes that an arm's all-to-alls send in a step, all processes."""
    return sum(process["sent"][arm].get("all_to_all", 0) for process in found["processes"])


def expert_goals(found: dict[str, Any]) -> Iterator[Goal]:
    """Family parallelism against the other homes of experts."""
    sent = sum(expert_bytes(found[mixture], "family") for mixture in MIXTURES)
    yield Goal("expert_all_to_all", float(sent), 0.0, "bytes a step")
    for mixture in MIXTURES:
        seconds = found[mixture]["seconds"]
        for arm, wanted in WANTED.items():
            value = ratio(seconds[arm], seconds["family"]) if arm in seconds else None
            yield Goal(f"family_over_{arm}_{mixture}", value, wanted, "x tokens/s", at_least=True)
        memory = held(found[mixture], "family") / held(found[mixture], "all_to_all")
        yield Goal(f"family_memory_over_all_to_all_{mixture}", memory, 1.05, "x a process")
        slots = [process["slots"] for process in found[mixture]["processes"]]
        idle = 100 * (1 - min(slots) / max(slots))
        yield Goal(f"slots_idle_{mixture}", idle, 1.0, "%")


def engine_goals(found: dict[str, Any]) -> Iterator[Goal]:
    """A step beside plain PyTorch's, and a save."""
    for engine, peer in OVERHEADS:
        seconds = found["overhead"][peer]["seconds"]
        value = ratio(seconds[engine], seconds[peer]) if engine in seconds else None
        yield Goal(f"{engine}_over_{peer}", value, 1.03, "x a step's time")
    saved = found["checkpoint"]
    stall = 100 * ratio(saved["stall"], saved["whole"])
    yield Goal("checkpoint_stall", stall, 10.0, "% of a whole save")
    size = round(saved["written"] / saved["state"], 2)
    yield Goal("checkpoint_bytes", size, 1.0, "x state")


def print_experts(found: dict[str, Any], tokens: int, console: Console) -> None:
    """A table of every arm on every mixture."""
    table = Table(title="homes of experts, four processes", title_justify="left")
    columns = "mixture", "arm", "ms", "CPU ms", "tokens/s", "all-to-all B/token", "other B/token"
    for column in (*columns, "MiB held, most", "loss"):
        table.add_column(column, justify="left" if column in ("mixture", "arm") else "right")
    for mixture in MIXTURES:
        part = found[mixture]
        for arm, seconds in part["seconds"].items():
            median = statistics.median(seconds)
            routed = expert_bytes(part, arm) / tokens
            sent = sum(sum(p["sent"][arm].values()) for p in part["processes"]) / tokens
            # float32 weights and gradients, and two moments.
            known = arm in part["processes"][0]["parameters"]
            memory = f"{16 * held(part, arm) / 2**20:,.1f}" if known else ""
            table.add_row(
                mixture, arm, f"{1e3 * median:,.0f}",
                f"{1e3 * statistics.median(part['work'][arm]):,.0f}", f"{tokens / median:,.0f}",
                f"{routed:,.0f}", f"{sent - routed:,.0f}", memory, f"{part['losses'][arm]:.6f}",
            )  # fmt: skip
    console.print(table)
    for name, cause in found["not_measured"].items():
        console.print(f"{name} was not measured: {cause}")


def print_engines(found: dict[str, Any], console: Console) -> None:
    """Our engine's steps and saves."""
    for engine, peer in OVERHEADS:
        measured = found["overhead"][peer]
        if engine in measured["seconds"]:
            told = [
                f"{1e3 * statistics.median(measured[what][name]):,.1f}"
                for what in ("seconds", "work")
                for name in (engine, peer)
            ]
            console.print(
                f"a step of the trunk alone: engine={engine} {told[0]} ms, {peer} {told[1]} ms; "
                f"of CPU {told[2]} and {told[3]} ms"
            )
    for name, cause in found["overhead"]["not_measured"].items():
        console.print(f"{name} was not measured: {cause}")
    saved = found["checkpoint"]
    stall, whole = (1e3 * statistics.median(saved[name]) for name in ("stall", "whole"))
    console.print(
        f"a save holds training up {stall:,.1f} ms and is written after {whole:,.1f} ms; "
        f"{saved['written']:,} bytes for {saved['state']:,} of state"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small model, without weak scaling")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    chosen = parser.parse_args(arguments)
    console = Console(stderr=chosen.json, width=120)
    size = QUICK if chosen.quick else FULL
    console.print(
        f"{size.slots} slots of {size.sequence_length} tokens, {size.layers} layers of "
        f"{size.hidden_size}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
        f"torch {torch.__version__}"
    )
    with tempfile.TemporaryDirectory() as name:
        found = measure("overhead,checkpoint,experts", Path(name), quick=chosen.quick)
        print_experts(found["experts"], size.tokens, console)
        print_engines(found, console)
        if not chosen.quick:
            rates = measure_scaling(Path(name), quick=False)
            for processes, rate in rates.items():
                console.print(
                    f"weak scaling: {processes} processes {rate:,.0f} tokens/s, "
                    f"{rate / processes / rates[1]:.1%} of one process's each"
                )
    print_goals(
        [*expert_goals(found["experts"]), *engine_goals(found)], console, as_json=chosen.json
    )


if __name__ == "__main__":
    main()
