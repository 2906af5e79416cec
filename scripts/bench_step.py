"""How fast is a whole training step, and how much memory does it take, beside Transformers' models?

    python -m xylem.scripts.bench_step [--quick] [--json] [--profile]

A step is forward, backward, clipping and fused AdamW on packed documents of 100-2000 tokens. All
arms run in one process, alternating; a ratio is the median over rounds of the ratio in a round.
Weights are float32 in every arm; bf16 is autocast, in every arm. Each row of the batch is one
family's. Transformers masks packed documents by positions that begin anew; of its paths for experts
each mixture takes the faster. Memory is the peak of a process of its own over what it held before
the model was built. Read next: `step_arms.py`.
"""

import argparse
import multiprocessing
import resource
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ..model.accounting import training_flops_per_token
from ..train.compose import compose_config
from ..train.config import EngineConfig
from ..train.engines.processes import Processes
from ..train.hardware import hardware_named
from ..train.profiling import mark_parts, read_times, tables
from .goals import Goal, print_goals
from .step_arms import (
    FAMILIES,
    FULL,
    LOADS,
    PEERS,
    PRECISIONS,
    QUICK,
    ROUTERS,
    Arm,
    Batch,
    Ours,
    Size,
    Theirs,
    build_arm,
    packed_batch,
    parameters_of,
    timed,
)

Key = tuple[str, str, str]
"""Arm, load, precision."""


def measure_times(
    arms: dict[str, Arm], batches: dict[str, Batch], rounds: int, device: torch.device
) -> dict[Key, list[float]]:
    """Seconds of every round, arms alternating."""
    for arm in arms.values():
        for precision in PRECISIONS:
            if isinstance(arm, Theirs):
                arm.choose_implementation(batches["uniform"], precision)
            else:
                arm.step(batches["uniform"], precision)
    seconds: dict[Key, list[float]] = {}
    for _ in range(rounds):
        for precision in PRECISIONS:
            for load, batch in batches.items():
                for name, arm in arms.items():
                    if load == "uniform" or name == "family":
                        # What chooses token by token has no rows of a family to run together.
                        seconds.setdefault((name, load, precision), []).append(
                            timed(arm, batch, precision, device)
                        )
    return seconds


def peak_mib(name: str, size: Size, precision: str) -> float:
    """Peak memory of a process that trains one arm, over what it held before, MiB."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_report_peak, args=(name, size, precision, sender))
    child.start()
    sender.close()
    try:
        peak = float(receiver.recv())
    except EOFError as error:
        raise RuntimeError(f"the process that measures {name}'s memory died") from error
    child.join()
    return peak


def _report_peak(name: str, size: Size, precision: str, sender: Any) -> None:
    before = psutil.Process().memory_info().rss
    engine = Processes(EngineConfig(precision="fp32"))
    arm = build_arm(name, size, engine)
    # Every family has been seen, so that all of the optimiser's state is there.
    every = packed_batch(size.vocab_size, len(FAMILIES), 16, "uniform", FAMILIES)
    arm.step(every, precision)
    batch = packed_batch(size.vocab_size, size.rows, size.sequence_length, "uniform", FAMILIES)
    arm.step(batch, precision)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sender.send((peak - before) / 2**20)


def cpu_goals(size: Size, console: Console) -> list[Goal]:
    """Speed and memory on the CPU."""
    import transformers  # before processes are forked, so that all hold it alike

    names = (*ROUTERS, *PEERS)
    memory = {(name, p): peak_mib(name, size, p) for p in PRECISIONS for name in names}
    engine = Processes(EngineConfig(precision="fp32"))
    arms = {name: build_arm(name, size, engine) for name in names}
    batches = {
        load: packed_batch(size.vocab_size, size.rows, size.sequence_length, load, FAMILIES)
        for load in LOADS
    }
    seconds = measure_times(arms, batches, size.rounds, engine.device)
    console.print(
        f"{size.rows} rows of {size.sequence_length} tokens, vocabulary {size.vocab_size}, "
        f"{len(FAMILIES)} families, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )
    table = Table(title="a training step on the CPU", title_justify="left")
    for column in ("arm", "load", "precision", "active M", "total M", "ms", "tokens/s", "peak MiB"):
        table.add_column(column, justify="left" if column in ("arm", "load") else "right")
    for (name, load, precision), each in seconds.items():
        arm, median = arms[name], statistics.median(each)
        active, total = parameters_of(arm)
        path = arm.implementations.get(precision, "") if isinstance(arm, Theirs) else ""
        table.add_row(
            f"{name} {path}".strip(), load, precision, f"{active / 1e6:.1f}", f"{total / 1e6:.1f}",
            f"{1e3 * median:,.0f}", f"{size.tokens / median:,.0f}",
            f"{memory[name, precision]:,.0f}" if load == "uniform" else "",
        )  # fmt: skip
    console.print(table)
    return list(speed_and_memory_goals(seconds, memory))


def speed_and_memory_goals(
    seconds: dict[Key, list[float]], memory: dict[tuple[str, str], float]
) -> Iterator[Goal]:
    """Of every router against every peer; of the loads, the slowest counts."""
    for precision in PRECISIONS:
        for name in ROUTERS:
            for peer in PEERS:
                theirs = seconds[peer, "uniform", precision]
                ratios = [
                    median_ratio(theirs, each)
                    for (arm, _, which), each in seconds.items()
                    if (arm, which) == (name, precision)
                ]
                wanted = 1.25 if peer == "qwen3" else 2.0
                yield Goal(
                    f"{name}_over_{peer}_{precision}", min(ratios), wanted, "x tokens/s",
                    at_least=True,
                )  # fmt: skip
                yield Goal(
                    f"{name}_memory_over_{peer}_{precision}",
                    memory[name, precision] / memory[peer, precision], 1.0, "x peak",
                )  # fmt: skip


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """The median of the ratios of pairs measured one after another."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def cuda_goals(quick: bool, console: Console) -> list[Goal]:
    """Model FLOP utilisation of a 1 B-active model, plain and compiled; the better counts."""
    name = "mfu_of_1b_active_bf16"
    if not torch.cuda.is_available():
        console.print("no CUDA device: the 1 B-active model is not measured")
        return [Goal(name, None, 50.0, "%", at_least=True)]
    config = compose_config(["model=1b", "data.tokenizer.vocab_size=131072"]).model
    families = FAMILIES[:4]
    rows, length = (4, 4096) if quick else (8, 4096)
    table = Table(title="a training step of 1 B active parameters", title_justify="left")
    for column in ("router", "compiled", "ms", "tokens/s", "TFLOP/s", "MFU", "peak GiB"):
        table.add_column(column, justify="right")
    best = 0.0
    for compiled in (False, True):
        engine = Processes(EngineConfig(precision="bf16", compile=compiled))
        torch.cuda.reset_peak_memory_stats()
        arm = Ours(config, families, engine)
        batch = packed_batch(config.vocab_size, rows, length, "uniform", families)
        batch = batch.to(engine.device)
        for _ in range(3):
            arm.step(batch, "bf16")
        rounds = 5 if quick else 15
        median = statistics.median(timed(arm, batch, "bf16", engine.device) for _ in range(rounds))
        # Attention sees documents only: their mean length over tokens, not the row's.
        flops = training_flops_per_token(config, families, mean_document(batch.documents_BT))
        rate = rows * length * flops / median
        peak = hardware_named("h200").bf16_tflops * 1e12
        best = max(best, rate / peak)
        table.add_row(
            "family", str(compiled), f"{1e3 * median:,.1f}", f"{rows * length / median:,.0f}",
            f"{rate / 1e12:,.0f}", f"{rate / peak:.1%}",
            f"{torch.cuda.max_memory_allocated() / 2**30:,.1f}",
        )  # fmt: skip
        del arm
        torch.cuda.empty_cache()
    console.print(table)
    return [Goal(name, 100 * best, 50.0, "%", at_least=True)]


def mean_document(documents_BT: Tensor) -> int:
    """The length of a token's document, on average over tokens."""
    squares = sum(
        int(row.unique_consecutive(return_counts=True)[1].square().sum()) for row in documents_BT
    )
    return round(squares / documents_BT.numel())


def profile(size: Size, console: Console) -> None:
    """Where the time of our own arms goes."""
    engine = Processes(EngineConfig(precision="fp32"))
    batch = packed_batch(size.vocab_size, size.rows, size.sequence_length, "uniform", FAMILIES)
    batch = batch.to(engine.device)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if engine.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    for name in ROUTERS:
        for precision in PRECISIONS:
            arm = build_arm(name, size, engine)
            assert isinstance(arm, Ours)
            arm.step(batch, precision)
            handles = list(mark_parts(arm.decoder))
            with torch.profiler.profile(activities=activities) as tracer:
                wall = timed(arm, batch, precision, engine.device)
            for handle in handles:
                handle.remove()
            console.print(f"{name}, {precision}")
            for table in tables(read_times(tracer.events(), wall, engine.device), 1, engine.device):
                console.print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small model, fewer tokens")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--profile", action="store_true", help="show where our steps' time goes")
    chosen = parser.parse_args(arguments)
    console = Console(stderr=chosen.json, width=120)
    size = QUICK if chosen.quick else FULL
    if chosen.profile:
        profile(size, console)
        return
    goals = cuda_goals(chosen.quick, console)
    if torch.cuda.is_available():
        console.print("the CPU is measured where no GPU is seen: CUDA_VISIBLE_DEVICES=")
    else:
        goals = [*cpu_goals(size, console), *goals]
    print_goals(goals, console, as_json=chosen.json)


if __name__ == "__main__":
    main()
