"""Run by test_collective_bytes.py on each of two processes: writes what was counted there."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module

from xylem.train.collective_bytes import count_collectives


def plain() -> None:
    x = torch.ones(8)
    dist.all_reduce(x)
    dist.all_gather([torch.empty(8), torch.empty(8)], x)
    dist.all_gather_into_tensor(torch.empty(16), x)
    dist.reduce_scatter_tensor(torch.empty(4), x)
    dist.all_to_all_single(torch.empty(8), x)
    dist.all_to_all_single(torch.empty(8, dtype=torch.bfloat16), x.bfloat16(), [4, 4], [4, 4])
    peer = 1 - dist.get_rank()
    sent = dist.P2POp(dist.isend, x, peer), dist.P2POp(dist.irecv, torch.empty(8), peer)
    for work in dist.batch_isend_irecv(list(sent)):
        work.wait()
    dist.broadcast(x, 0)


def control() -> None:
    said: list[object] = [None, None]
    dist.all_gather_object(said, "equal")
    dist.all_reduce(torch.ones(4, dtype=torch.int64))
    dist.barrier()


def backward() -> None:
    class Sum(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: object, *gradients: Tensor) -> Tensor:
            total = gradients[0].clone()
            dist.all_reduce(total)
            return total

    Sum.apply(torch.ones(3, requires_grad=True)).sum().backward()
    functional.all_reduce(torch.ones(5), "sum", dist.group.WORLD)


def forward(model: nn.Module) -> Tensor:
    result: Tensor = model(torch.ones(2, 16))
    return result


if __name__ == "__main__":
    dist.init_process_group("gloo")
    fsdp = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    fully_shard(fsdp[0])
    fully_shard(fsdp)
    mesh = init_device_mesh("cpu", (2,))
    rows = parallelize_module(nn.Linear(32, 16), mesh, RowwiseParallel())
    alone = dist.new_group([dist.get_rank()], use_local_synchronization=True)
    counts = {}
    for name, run in (
        ("plain", plain),
        ("control", control),
        ("backward", backward),
        ("fsdp", lambda: forward(fsdp).sum().backward()),
        ("rows", lambda: forward(rows)),
        ("alone", lambda: dist.all_reduce(torch.ones(8), group=alone)),
    ):
        with count_collectives() as counted:
            run()
        wire = counted.by_kind(wire=True)
        counts[name] = {"put in": counted.by_kind(), "sent": wire, "calls": len(counted.calls)}
    outside = torch.ones(8)
    dist.all_reduce(outside)
    counts["world"] = {"total": counted.total(group=[0, 1])}
    Path(sys.argv[1], f"rank-{dist.get_rank()}").write_text(json.dumps(counts))
    dist.barrier()
    dist.destroy_process_group()
