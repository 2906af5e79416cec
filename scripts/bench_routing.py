"""How fast is a layer of experts beside a dense one, and beside those of others?

    python -m xylem.scripts.bench_routing [--quick] [--json]

Forward and backward of one layer, its router included, under uniform, Zipf and one-family loads.
All arms run in one process, one after the other and round after round; medians count. The limit is
a dense feed-forward layer of equal active width. Without CUDA its section says "not measured".
Read next: `peer_blocks.py`.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from xylem.scripts import cuda_peer_blocks as cuda_blocks
from xylem.scripts import peer_blocks as blocks
from xylem.scripts.goals import Goal, print_goals
from xylem.scripts.peer_blocks import LOADS, Arm, Batch, Case, Load

CPU_CASES = (Case(4096, 512, 1024, 8, 1), Case(8192, 768, 256, 32, 4))
QUICK_CASES = (Case(1024, 256, 512, 8, 1), Case(1024, 384, 128, 16, 4))
CUDA_CASES = (Case(32768, 4096, 1024, 128, 8), Case(8192, 1536, 256, 128, 8))
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PEERS = ("Mixtral", "Qwen3-MoE", "Glm4Moe")


@dataclass(slots=True)
class Measured:
    """An arm's times and memory."""

    seconds: list[float]
    kept: int
    """Bytes kept from forward to backward; on CUDA the peak of both, without the weights."""

    @property
    def median(self) -> float:
        """Seconds of a forward and a backward pass."""
        return statistics.median(self.seconds)


Builder = Callable[[Case, Batch], Arm]


def cpu_arms() -> dict[str, Builder]:
    """Every arm of the CPU section."""
    arms: dict[str, Builder] = {
        "dense": blocks.dense,
        "dense, plain": blocks.plain_dense,
        "family": blocks.family,
        "prior": partial(blocks.token_router, name="prior"),
        "topk": partial(blocks.token_router, name="topk"),
    }
    if find_spec("megatron"):
        arms["Megatron-core, SequentialMLP"] = blocks.megatron_block
    for peer in PEERS:
        for implementation in ("eager", "grouped_mm"):
            arms[f"{peer}, {implementation}"] = partial(
                blocks.transformers_block, name=peer, implementation=implementation
            )
    return arms


def cuda_arms() -> dict[str, Builder]:
    """Every arm of the CUDA section."""
    others = {
        "scattermoe": cuda_blocks.scattermoe,
        "sonicmoe": cuda_blocks.sonicmoe,
        "megablocks": cuda_blocks.megablocks,
    }
    installed = {name: build for name, build in others.items() if find_spec(name)}
    return (
        cpu_arms()
        | installed
        | {
            "topk, grouped_mm": partial(blocks.token_router, name="topk", grouped=True),
            "padded bmm": cuda_blocks.padded,
            "products": cuda_blocks.products,
        }
    )


def one_pass(arm: Arm, x_BTD: Tensor, dy_BTD: Tensor) -> float:
    """Seconds of forward and backward."""
    x_BTD.grad = None
    arm.module.zero_grad(set_to_none=True)
    wait(x_BTD)
    started = time.perf_counter()
    arm.run(x_BTD).backward(dy_BTD)
    wait(x_BTD)
    return time.perf_counter() - started


def wait(x: Tensor) -> None:
    """Until the device is done."""
    if x.is_cuda:
        torch.cuda.synchronize()


def memory(arm: Arm, x_BTD: Tensor, dy_BTD: Tensor) -> int:
    """Bytes that a pass takes beside weights and input."""
    if x_BTD.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        one_pass(arm, x_BTD, dy_BTD)
        return torch.cuda.max_memory_allocated() - before
    known = {p.untyped_storage().data_ptr() for p in (x_BTD, *arm.module.parameters())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        one_pass(arm, x_BTD, dy_BTD)
    return sum(kept.values())


def measure(
    arms: dict[str, Builder], case: Case, batch: Batch, rounds: int, console: Console
) -> dict[str, Measured]:
    """All arms in turn, round after round; one that fails is told and left out."""
    x_BTD = batch.x_BTD.requires_grad_()
    dy_BTD = torch.randn_like(x_BTD)
    built, measured = {}, {}
    for name, build in arms.items():
        try:
            arm = build(case, batch)
            measured[name] = Measured([], memory(arm, x_BTD, dy_BTD))
            one_pass(arm, x_BTD, dy_BTD)
        except Exception as error:  # a peer's failure is its result
            measured.pop(name, None)
            console.print(f"{name}: not measured: {type(error).__name__}: {error}"[:200])
        else:
            built[name] = arm
    for _ in range(rounds):
        for name, arm in built.items():
            measured[name].seconds.append(one_pass(arm, x_BTD, dy_BTD))
            arm.module.zero_grad(set_to_none=True)
    return measured


def show(title: str, case: Case, measured: dict[str, Measured], console: Console) -> None:
    """A table of every arm."""
    table = Table(title=title, title_justify="left")
    for name in ("arm", "ms", "× dense", "TFLOP/s", "memory, MiB"):
        table.add_column(name, justify="left" if name == "arm" else "right")
    limit = measured["dense"].median
    for name, arm in measured.items():
        table.add_row(
            name, f"{1e3 * arm.median:.2f}", f"{arm.median / limit:.2f}",
            f"{case.flops / arm.median / 1e12:.3g}", f"{arm.kept / 2**20:.0f}",
        )  # fmt: skip
    console.print(table)


Results = dict[tuple[str, Case, Load], dict[str, Measured]]


def worst(values: Sequence[float], *, at_least: bool = False) -> float | None:
    """The value that is furthest from its goal."""
    if not values:
        return None
    return min(values) if at_least else max(values)


def ratios(
    results: Results,
    top: Sequence[str],
    bottom: Sequence[str],
    dtype: str,
    load: Load,
    cases: Sequence[Case],
) -> Iterator[float]:
    """The time of every arm of `top` over that of the fastest of `bottom`."""
    for case in cases:
        measured = results.get((dtype, case, load), {})
        below = [measured[name].median for name in bottom if name in measured]
        yield from (measured[n].median / min(below) for n in top if n in measured and below)


def cpu_goals(results: Results, cases: Sequence[Case]) -> list[Goal]:
    """The worst size for each dtype and load; others' fastest block counts."""
    eager = [f"{peer}, eager" for peer in PEERS]
    grouped = [f"{peer}, grouped_mm" for peer in PEERS]
    fourfold = [case for case in cases if case.top_k == 4]
    goals = []
    for dtype in DTYPES:
        for load in LOADS:
            find = partial(ratios, results, dtype=dtype, load=load)
            where = f"{dtype}, {load}"
            over = worst([*find(top=["family"], bottom=["dense"], cases=cases)])
            goals.append(Goal(f"family over dense, {where}", over, 1.05, "×"))
            faster = [1 / r for r in find(top=["family"], bottom=eager, cases=cases)]
            goals.append(
                Goal(f"eager over family, {where}", worst(faster, at_least=True), 4, "×",
                     at_least=True)
            )  # fmt: skip
            over = worst([*find(top=["prior", "topk"], bottom=["dense"], cases=cases)])
            goals.append(Goal(f"prior and topk over dense, {where}", over, 1.35, "×"))
            faster = [1 / r for r in find(top=["prior", "topk"], bottom=grouped, cases=fourfold)]
            goals.append(
                Goal(f"grouped_mm over prior and topk, k=4, {where}",
                     worst(faster, at_least=True), 1.5, "×", at_least=True)
            )  # fmt: skip
    return goals


def cuda_goals(results: Results, cases: Sequence[Case]) -> list[Goal]:
    """Shares of what cuBLAS takes: for `family` of a dense layer, for `topk` of bare products."""
    goals = []
    for load, bound in (("uniform", 0.80), ("zipf", 0.75)):
        found = ratios(results, ["topk"], ["products"], "bf16", load, cases)  # type: ignore[arg-type]
        share = worst([1 / ratio for ratio in found], at_least=True)
        goals.append(Goal(f"cuda topk of cuBLAS, {load}", share, bound, "×", at_least=True))
    for load in LOADS:
        found = ratios(results, ["family"], ["dense, plain"], "bf16", load, cases)
        share = worst([1 / ratio for ratio in found], at_least=True)
        goals.append(Goal(f"cuda family of dense, {load}", share, 0.95, "×", at_least=True))
    return goals


def section(
    arms: dict[str, Builder],
    cases: Sequence[Case],
    dtypes: Sequence[str],
    device: str,
    rounds: int,
    console: Console,
) -> Results:
    """All sizes, dtypes and loads on one device."""
    results: Results = {}
    for case in cases:
        for dtype in dtypes:
            for load in LOADS:
                batch = blocks.make_batch(case, load, DTYPES[dtype], device)
                found = measure(arms, case, batch, rounds, console)
                title = (
                    f"{device}: {case.tokens} tokens, d {case.hidden_size}, hidden {case.width}, "
                    f"{case.experts} experts, k {case.top_k}, {dtype}, {load}"
                )
                show(title, case, found, console)
                results[dtype, case, load] = found
    return results


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer rounds")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    arguments = parser.parse_args()
    console = Console(stderr=arguments.json)
    torch.set_flush_denormal(True)
    cases, rounds = (QUICK_CASES, 3) if arguments.quick else (CPU_CASES, 5)
    for package in ("megatron", "scattermoe", "sonicmoe", "megablocks"):
        if find_spec(package) is None:
            console.print(f"{package}: not installed")
    results = section(cpu_arms(), cases, tuple(DTYPES), "cpu", rounds, console)
    goals = cpu_goals(results, cases)
    on_cuda: Results = {}
    if torch.cuda.is_available():
        rounds = 5 if arguments.quick else 20
        on_cuda = section(cuda_arms(), CUDA_CASES, ("bf16",), "cuda", rounds, console)
    else:
        console.print("cuda: not measured, there is none")
    print_goals(goals + cuda_goals(on_cuda, CUDA_CASES), console, as_json=arguments.json)


if __name__ == "__main__":
    main()
