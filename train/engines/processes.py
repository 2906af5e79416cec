"""The processes of a run: who is who, on which device, in which precision, and what they agree on.

Read next: `engine.py`, what an engine does with them.
"""

import hashlib
import os
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from itertools import zip_longest
from pathlib import Path
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor

from ... import __version__
from ..config import EngineConfig
from ..errors import UserError
from ..hardware import known_hardware


class Processes:
    """The processes of a run, from one of them."""

    time_limit: timedelta | None = None
    """How long one waits for another in a collective; None where there are no others."""
    nonce: str
    """The same on all processes of this start, and on those of no other."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.rank = int(os.environ.get("RANK", "0"))
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.set_flush_denormal(True)
        # Equal runs give equal losses; where an operation cannot, PyTorch says so once.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        self.timeout = timedelta(minutes=config.timeout_minutes)
        self.device = torch.device("cpu")
        if torch.cuda.is_available():
            self.device = torch.device("cuda", local_rank)
            torch.cuda.set_device(self.device)
        if self.world > 1 and not dist.is_initialized():
            dist.init_process_group(
                "nccl" if self.device.type == "cuda" else "gloo",
                timeout=self.timeout,
            )
            Processes.time_limit = self.timeout
            try:
                self.same_everywhere("version of Xylem or PyTorch", code_version())
            except UserError:
                self.close()
                raise
        self.nonce = self.leader_says(uuid4().hex[:12])
        self.precision = resolve_precision(config.precision, self.device)

    @property
    def leader(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of matrix products."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def leader_says(self, text: str) -> str:
        """What the leader passes, on every process."""
        if self.world == 1:
            return text
        said = [text]
        dist.broadcast_object_list(said, src=0)
        return said[0]

    def all_say(self, text: str) -> list[str]:
        """What every process passes, by rank."""
        if self.world == 1:
            return [text]
        said: list[str | None] = [None] * self.world
        dist.all_gather_object(said, text)
        return [each or "" for each in said]

    def same_everywhere(self, what: str, value: str) -> None:
        """Checks that every process holds the same text.

        Raises:
            UserError: one differs; names both ranks, and the first line that differs.
        """
        values = self.all_say(value)
        for rank, other in enumerate(values):
            if other != values[0]:
                pairs = zip_longest(other.splitlines(), values[0].splitlines(), fillvalue="")
                here, there = next(pair for pair in pairs if pair[0] != pair[1])
                raise UserError(
                    f"rank {rank} has another {what} than rank 0 ({here.strip()!r}, not "
                    f"{there.strip()!r}): start every process with the same code and the same "
                    "command"
                )

    def barrier(self) -> None:
        """Waits for all processes."""
        if self.world > 1:
            dist.barrier()

    def close(self) -> None:
        """Leaves the process group."""
        if dist.is_initialized():  # an engine may have made one for a single process
            dist.destroy_process_group()

    def peak_flops(self) -> tuple[float, str]:
        """Peak FLOP/s of one device and where the number comes from."""
        if self.config.peak_tflops:
            return self.config.peak_tflops * 1e12, "engine.peak_tflops"
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
            # The longest name first: GH200 is no H200.
            for key, known in sorted(known_hardware().items(), key=lambda row: -len(row[0])):
                if key.upper() in name:
                    return known.bf16_tflops * 1e12, f"datasheet of {key.upper()}"
        return measured_matmul_flops(self.device, self.precision), "measured 1024^3 product"


def code_version() -> str:
    """The versions of Xylem and PyTorch, and a digest of the rooms' source."""
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for room in ("model", "data", "train"):
        for file in sorted((root / room).rglob("*.py")):
            digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return f"xylem {__version__}, torch {torch.__version__}, source {digest.hexdigest()[:12]}"


def lost_process(failure: BaseException) -> str:
    """What to say where a collective failed because another process is gone; else nothing.

    Gloo, NCCL and the store behind them each say it in words of their own, about sockets.
    """
    words = str(failure)
    by_gloo = isinstance(failure, RuntimeError) and "gloo" in words
    if Processes.time_limit is None or not (by_gloo or isinstance(failure, dist.DistError)):
        return ""
    minutes = Processes.time_limit.total_seconds() / 60
    return (
        f"another process ended, or did not answer within {minutes:g} minutes "
        "(engine.timeout_minutes): its own output says why; start the same command again"
    )


def resolve_precision(name: str, device: torch.device) -> str:
    """`auto` becomes bf16 where the device multiplies it natively, else fp32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if torch.cpu._is_amx_tile_supported() else "fp32"


def measured_matmul_flops(device: torch.device, precision: str) -> float:
    """FLOP/s of the best of ten square products."""
    import time

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.ones(1024, 1024, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * 1024**3 / best
