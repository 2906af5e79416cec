"""What each process of the engines' bench measures; run by `bench_engines.py`: PARTS FILE.

Parts: `experts`, the arms against each other; `overhead`, the engine against plain PyTorch;
`checkpoint`, how long a save holds training up; `scaling`, one step's time. The first process
writes what was found, as JSON. Read next: `engine_arms.py`.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from ..data.ledger import Ledger
from ..model.decoder import Decoder, build_decoder
from ..model.layout import Layout
from ..model.objectives import next_token_loss
from ..model.routers import FamilySegment
from ..train.checkpoint_files import RunState
from ..train.checkpoint_writer import CheckpointWriter
from ..train.collective_bytes import count_collectives
from ..train.engines.processes import Processes
from .engine_arms import (
    FAMILIES,
    FULL,
    MIXTURES,
    OPTIMIZER,
    QUICK,
    Arm,
    Size,
    build_arm,
    build_trunk_arm,
    global_batches,
    model_config,
    run_config,
)

OWN = ("family", "all_to_all", "replicated")
PEERS = ("deepspeed_moe", "megatron_moe")
AGREE = 2e-5
"""Largest difference, relative, of two arms' losses."""


Measured = dict[str, list[float]]
"""Of every arm, a value a step."""


def alternate(
    arms: dict[str, Callable[[], float]], rounds: int
) -> tuple[Measured, Measured, Measured]:
    """Steps of every arm, one after another; the first round is not timed.

    Returns:
        Seconds; seconds of CPU of all processes, which a busy machine disturbs less; losses.
    """
    seconds, work, losses = ({name: list[float]() for name in arms} for _ in range(3))
    for number in range(rounds + 1):
        for name, step in arms.items():
            dist.barrier()
            started, worked = time.perf_counter(), time.process_time()
            losses[name].append(step())
            used = torch.tensor(time.process_time() - worked, dtype=torch.float64)
            dist.barrier()
            taken = time.perf_counter() - started
            dist.all_reduce(used)
            if number:
                seconds[name].append(taken)
                work[name].append(float(used))
    return seconds, work, losses


def check_losses(losses: dict[str, list[float]]) -> None:
    """Raises ValueError when arms do not train alike."""
    first, *others = losses
    for name in others:
        for step, (a, b) in enumerate(zip(losses[first], losses[name], strict=True)):
            if abs(a - b) > AGREE * abs(a):
                raise ValueError(f"{name} has the loss {b} at step {step}, {first} has {a}")


def experts(size: Size, processes: Processes) -> dict[str, Any]:
    """Every arm on every mixture: seconds, bytes sent and held, by process."""
    found: dict[str, Any] = {"not_measured": {}}
    for mixture in MIXTURES:
        arms: dict[str, Arm] = {}
        for name in (*OWN, *PEERS):
            try:
                arms[name] = build_arm(name, size, mixture, processes)
                arms[name].step()
            except Exception as error:
                if name in OWN:
                    raise
                # A peer that does not run here, on any process, is told as not measured.
                arms.pop(name, None)
                found["not_measured"][name] = f"{type(error).__name__}: {error}"
                traceback.print_exc()
        sent: dict[str, dict[str, int]] = {}
        steps = {name: arm.step for name, arm in arms.items()}
        seconds, work, losses = alternate(steps, size.rounds)
        check_losses(losses)
        for name, arm in arms.items():
            with count_collectives() as counted:
                arm.step()
            sent[name] = counted.by_kind(wire=True)
        mine = {
            "sent": sent,
            "parameters": {n: arm.parameters for n, arm in arms.items() if n != "megatron_moe"},
            "slots": len(arms["family"].steps[0].line) // processes.world,
        }
        every: list[Any] = [None] * processes.world
        dist.all_gather_object(every, mine)
        found[mixture] = {
            "seconds": seconds, "work": work, "losses": {n: each[-1] for n, each in losses.items()},
            "processes": every,
        }  # fmt: skip
    return found


class Plain:
    """The usual loop of PyTorch around the same decoder: DDP or FSDP2, clipping, fused AdamW."""

    def __init__(self, size: Size, processes: Processes, *, sharded: bool) -> None:
        self.steps, self.made, self.processes = global_batches(size, "uniform"), 0, processes
        decoder = build_decoder(model_config(size, experts=False), FAMILIES, seed=0)
        self.model: Any = _WithLoss(decoder)
        if sharded:
            for layer in decoder.layers:
                fully_shard(layer)
            fully_shard(decoder)
        else:
            self.model = DistributedDataParallel(self.model, gradient_as_bucket_view=True)
        decays = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim < 2]
        groups: list[dict[str, Any]] = [
            {"params": decays},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            groups, lr=OPTIMIZER.learning_rate, betas=(OPTIMIZER.beta1, OPTIMIZER.beta2),
            eps=OPTIMIZER.eps, weight_decay=OPTIMIZER.weight_decay, fused=True,
        )  # fmt: skip

    def step(self) -> float:
        """One step; its loss."""
        batch = self.steps[self.made % len(self.steps)]
        piece = batch.piece(self.processes.rank, self.processes.world)
        segments = [FamilySegment(*segment) for segment in piece.segments]
        loss = self.model(piece.inputs_BT, piece.documents_BT, segments, piece.targets_BT)
        # Their gradients are means over the processes.
        (loss * (self.processes.world / batch.predicted)).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), OPTIMIZER.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.made += 1
        total = loss.detach().double() / batch.predicted
        dist.all_reduce(total)
        return float(total)


class _WithLoss(nn.Module):
    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, inputs: Tensor, documents: Tensor, segments: Any, targets: Tensor) -> Tensor:
        hidden = self.decoder(inputs, documents, segments)
        loss, _ = next_token_loss(hidden, self.decoder.head_weight_VD, targets)
        return loss


def overhead(size: Size, processes: Processes) -> dict[str, Any]:
    """The engines beside DDP, and sharded beside FSDP2, on a model without experts."""
    found: dict[str, Any] = {"not_measured": {}}
    for peer, shard, engines in (
        ("ddp", "none", ("torch", "deepspeed", "megatron")),
        ("fsdp2", "full", ("torch",)),
    ):
        steps = {peer: Plain(size, processes, sharded=shard == "full").step}
        steps[peer]()
        for name in engines:
            try:
                arm = build_trunk_arm(name, size, processes, shard=shard)
                arm.step()
                steps[name] = arm.step
            except Exception as error:
                if name == "torch":
                    raise
                found["not_measured"][f"engine={name}"] = f"{type(error).__name__}: {error}"
                traceback.print_exc()
        seconds, work, losses = alternate(steps, 2 * size.rounds)
        check_losses(losses)
        found[peer] = {"seconds": seconds, "work": work}
    return found


def checkpoint(size: Size, processes: Processes) -> dict[str, Any]:
    """How long `save` holds up the loop, and until all is written; bytes written and held."""
    arm = build_arm("family", size, "uniform", processes)
    arm.step()
    told: list[Any] = [tempfile.mkdtemp() if processes.leader else None]
    dist.broadcast_object_list(told)
    folder = Path(told[0])
    writer = CheckpointWriter(
        folder, keep=1, keep_every=0, rank=processes.rank, world=processes.world,
        nonce=processes.nonce,
    )  # fmt: skip
    stalls, wholes = [], []
    for step in range(1, size.rounds + 1):
        state = RunState(
            step=step, ledger=Ledger(entries=(), seed=0, sequence_length=1, slot_sequences=1),
            stream={}, order_fingerprint="", tokens_seen=0, seconds=0.0,
        )  # fmt: skip
        dist.barrier()
        started = time.perf_counter()
        writer.save(arm.engine.pieces(), state)
        stalls.append(time.perf_counter() - started)
        writer.wait()
        dist.barrier()
        wholes.append(time.perf_counter() - started)
    writer.close()
    held = torch.tensor(sum(p.tensor.nbytes for p in arm.engine.pieces()))
    dist.all_reduce(held)
    files = folder.glob(f"checkpoints/step-{size.rounds}/*.safetensors")
    written = sum(file.stat().st_size for file in files if not file.name.startswith("rng"))
    dist.barrier()
    if processes.leader:
        shutil.rmtree(folder)
    return {"stall": stalls[1:], "whole": wholes[1:], "state": int(held), "written": written}


def scaling(size: Size, processes: Processes) -> dict[str, Any]:
    """Seconds of a step with as many slots a process as in every other case."""
    size = replace(size, slots=4 * processes.world)
    arm = build_trunk_arm("torch", size, processes)
    arm.step()
    seconds = []
    for _ in range(3 * size.rounds):
        started = time.perf_counter()
        arm.step()
        seconds.append(time.perf_counter() - started)
    return {"seconds": seconds, "tokens": size.tokens, "median": statistics.median(seconds)}


PARTS = {"experts": experts, "overhead": overhead, "checkpoint": checkpoint, "scaling": scaling}


def main() -> None:
    """Measures some parts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", help="names, with commas between them")
    parser.add_argument("file", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--place", type=int, help="number of the first process among all that run")
    chosen = parser.parse_args()
    if chosen.place is not None:
        cores = sorted(os.sched_getaffinity(0))
        number = chosen.place + int(os.environ["LOCAL_RANK"])
        os.sched_setaffinity(0, {cores[number % len(cores)]})
    size = QUICK if chosen.quick else FULL
    processes = Processes(run_config(size, Layout()).engine)
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    found = {name: PARTS[name](size, processes) for name in chosen.parts.split(",")}
    if processes.leader:
        chosen.file.write_text(json.dumps(found))
    dist.barrier()
    processes.close()


if __name__ == "__main__":
    main()
