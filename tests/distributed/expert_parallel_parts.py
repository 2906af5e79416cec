"""Run by test_expert_parallel.py on each of four processes: writes the errors found there."""

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from xylem.model.expert_parallel import agree_exchange, expert_parallel_swiglu
from xylem.model.experts import ExpertGroup, reference_routed_swiglu
from xylem.model.layout import Layout
from xylem.model.part import experts_here, part_of

SIZES = (3, 1, 2, 1)
"""Three families and the shared experts: seven on four processes, ranges cut through families."""
D, WIDTH, K = 16, 8, 2
CASES: dict[str, tuple[list[int], Sequence[int]]] = {
    "ragged": ([9, 4, 13, 6], range(7)),
    "a process without tokens": ([5, 0, 7, 3], range(7)),
    "hosts without rows": ([8, 8, 3, 5], (0, 2)),
    "one token": ([0, 0, 1, 0], (4, 5)),
    "no tokens": ([0, 0, 0, 0], range(7)),
}


def drawn(dtype: torch.dtype) -> list[ExpertGroup]:
    """All experts, the same on every process."""
    groups = [ExpertGroup(size, D, WIDTH) for size in SIZES]
    for group in groups:
        for parameter in group.parameters():
            parameter.data = (torch.randn(parameter.shape) / 4).to(dtype)
    return groups


def here(groups: Sequence[ExpertGroup]) -> tuple[list[ExpertGroup], list[tuple[int, int]]]:
    """Of all experts those of this process, and their ranges."""
    rank, world = dist.get_rank(), dist.get_world_size()
    layout = Layout(data=world, expert=world)
    part = part_of(layout, layout.place(rank), stages=[[0]], hosted=[()] * world)
    ranges, held = experts_here(SIZES, part), []
    for group, (start, stop) in zip(groups, ranges, strict=True):
        if stop > start:
            own = ExpertGroup(stop - start, D, WIDTH)
            own.gate_up.data = group.gate_up.data[start:stop].clone()
            own.down.data = group.down.data[start:stop].clone()
            held.append(own)
    return held, ranges


def error(found: Tensor, true: Tensor) -> float:
    """The largest error over the largest value."""
    if not true.numel():
        return 0.0
    return float((found.double() - true).abs().max() / true.abs().max().clamp_min(1e-9))


def compare(name: str, dtype: torch.dtype, *, again: bool = False) -> dict[str, float]:
    """Errors of one process's output and gradients against the reference on all tokens.

    Args:
        again: compute it a second time in the backward pass.
    """
    torch.manual_seed(3)
    counts, allowed = CASES[name]
    N = sum(counts)
    rank = dist.get_rank()
    mine = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
    groups = drawn(dtype)
    order = torch.rand(N, len(allowed)).argsort(-1)[:, :K]
    experts_NK = torch.tensor(allowed)[order]
    x_ND, dy_ND, weights_NK = torch.randn(N, D), torch.randn(N, D), torch.rand(N, K)
    weights_NK = weights_NK * (torch.rand(N, K) > 0.2)  # masked choices
    x_ND, dy_ND = x_ND.to(dtype), dy_ND.to(dtype)
    own, ranges = here(groups)
    x, weights = x_ND[mine].clone().requires_grad_(), weights_NK[mine].clone().requires_grad_()
    world = dist.group.WORLD
    assert world is not None
    run = partial(expert_parallel_swiglu, x, experts_NK[mine], weights, own, sum(SIZES), world)
    y = checkpoint(run, use_reentrant=False) if again else run()
    y.backward(dy_ND[mine])

    exact = [group.double() for group in groups]
    x_ND, weights_NK = x_ND.double().requires_grad_(), weights_NK.double().requires_grad_()
    true = reference_routed_swiglu(x_ND, experts_NK, weights_NK, exact)
    if N:
        true.backward(dy_ND.double())
    assert x.grad is not None and weights.grad is not None
    none = torch.zeros(0, D)
    errors = {
        "output": error(y, true[mine]),
        "tokens": error(x.grad, x_ND.grad[mine] if x_ND.grad is not None else none),
        "weights": error(weights.grad, weights_NK.grad[mine] if N else none),
    }
    held = iter(own)
    for index, (start, stop) in enumerate(ranges):
        if stop > start:
            group = next(held)
            pairs = (group.gate_up, exact[index].gate_up), (group.down, exact[index].down)
            for part, (parameter, all_of) in zip("gd", pairs, strict=True):
                expected = torch.zeros(1) if all_of.grad is None else all_of.grad[start:stop]
                # None where nobody chose an expert of the group that is here.
                assert parameter.grad is not None or not expected.any(), (name, index)
                if parameter.grad is not None:
                    errors[f"group {index} {part}"] = error(parameter.grad, expected)
    return errors


def said(folder: Path) -> dict[str, object]:
    """Errors of every case, the rows of an exchange, and whether evaluation works."""
    found: dict[str, object] = {
        f"{name} {dtype}": max(compare(name, dtype).values())
        for dtype in (torch.float32, torch.bfloat16)
        for name in CASES
    }
    for name in CASES:
        errors = compare(name, torch.float32, again=True)
        found[f"{name} float32, computed again"] = max(errors.values())
    world = dist.group.WORLD
    assert world is not None
    exchange = agree_exchange(torch.full((2, 1), dist.get_rank()), 7, world)
    found["rows"] = [exchange.sent_P, exchange.received_P, exchange.experts_R.tolist()]
    groups, _ = here(drawn(torch.float32))
    with torch.no_grad():
        choice_N1 = torch.full((3, 1), 6 - dist.get_rank())
        y_ND = expert_parallel_swiglu(torch.ones(3, D), choice_N1, None, groups, 7, world)
    found["without gradients"] = list(y_ND.shape)
    return found


if __name__ == "__main__":
    dist.init_process_group("gloo")
    folder = Path(sys.argv[1])
    (folder / f"rank-{dist.get_rank()}").write_text(json.dumps(said(folder)))
    dist.barrier()
    dist.destroy_process_group()
