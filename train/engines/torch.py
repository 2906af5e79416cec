"""The default engine: data parallel over the processes of torchrun or srun.

Each process runs an equal piece of the step's slots. Gradients are sums over the whole global
batch, already divided by its tokens, so that processes need only add theirs; a family's experts
are reduced only in steps in which they have tokens, which every process knows.
Read next: `../loop.py`.
"""

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ...model.decoder import Decoder, Layer, parameter_family
from ..config import EngineConfig
from ..errors import UserError

PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "GH200": 989.0, "A100": 312.0}
"""Dense bf16 peak of a device by datasheet."""


class TorchEngine:
    """Processes, device and precision of a run."""

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
        self.device = torch.device("cpu")
        if torch.cuda.is_available():
            self.device = torch.device("cuda", local_rank)
            torch.cuda.set_device(self.device)
        if self.world > 1:
            dist.init_process_group(
                "nccl" if self.device.type == "cuda" else "gloo",
                timeout=timedelta(minutes=config.timeout_minutes),
            )
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

    def prepare(self, decoder: Decoder) -> None:
        """How the decoder's layers run in training: compiled, recomputed. Names stay as they are.

        Raises:
            UserError: there is no compiler.
        """
        decoder.recompute = self.config.recompute
        if self.config.compile:
            check_compiler(self.device)
            for module in dense_parts(decoder):
                module.forward = compiled_in_training(module.forward)

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def reduce_gradients(self, model: nn.Module, moves: Callable[[str], bool]) -> None:
        """Adds up gradients over the processes; what the step does not move has none.

        Args:
            moves: canonical name -> whether some process has a gradient for it; the same answers
                on every process.
        """
        groups: dict[str | None, list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if not moves(name):
                parameter.grad = None
            elif self.world > 1:
                groups.setdefault(parameter_family(name), []).append(parameter)
        for parameters in groups.values():
            for parameter in parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            _sum_together([p.grad for p in parameters if p.grad is not None])

    def leader_says(self, text: str) -> str:
        """What the leader passes, on every process."""
        if self.world == 1:
            return text
        said = [text]
        dist.broadcast_object_list(said, src=0)
        return said[0]

    def same_everywhere(self, what: str, value: str) -> None:
        """Checks that every process holds the same text.

        Raises:
            UserError: one differs; names both ranks.
        """
        if self.world == 1:
            return
        values: list[str | None] = [None] * self.world
        dist.all_gather_object(values, value)
        for rank, other in enumerate(values):
            if other != values[0]:
                raise UserError(
                    f"rank {rank} has another {what} than rank 0: start every process with the "
                    "same code and the same command"
                )

    def barrier(self) -> None:
        """Waits for all processes."""
        if self.world > 1:
            dist.barrier()

    def close(self) -> None:
        """Leaves the process group."""
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def peak_flops(self) -> tuple[float, str]:
        """Peak FLOP/s of one device and where the number comes from."""
        if self.config.peak_tflops:
            return self.config.peak_tflops * 1e12, "engine.peak_tflops"
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
            for key, tflops in PEAK_TFLOPS.items():
                if key in name:
                    return tflops * 1e12, f"datasheet of {key}"
        return measured_matmul_flops(self.device, self.precision), "measured 1024^3 product"


def resolve_precision(name: str, device: torch.device) -> str:
    """`auto` becomes bf16 where the device multiplies it natively, else fp32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if torch.cpu._is_amx_tile_supported() else "fp32"


def dense_parts(decoder: Decoder) -> Iterator[nn.Module]:
    """What torch.compile is given: every token goes through it, whatever the router says."""
    yield decoder.final_norm
    for layer in cast(Iterable[Layer], decoder.layers):
        yield from (layer.attention_norm, layer.attention)
        yield from (layer.feed_forward_norm, layer.feed_forward.trunk)


def compiled_in_training(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The compiled function where gradients are wanted, and the plain one elsewhere.

    Evaluation and samples come in many shapes, each of which would be compiled anew.
    """
    compiled = torch.compile(forward)

    def chosen(*arguments: Any) -> Any:
        return (compiled if torch.is_grad_enabled() else forward)(*arguments)

    return chosen


def check_compiler(device: torch.device) -> None:
    """Whether torch.compile has what it needs.

    Raises:
        UserError: it has not.
    """
    if device.type == "cuda":
        found, needed = importlib.util.find_spec("triton") is not None, "Triton on a GPU"
    else:
        names = (os.environ.get("CXX", ""), "g++", "clang++")
        found = any(shutil.which(name) for name in names if name)
        needed = "a C++ compiler on a CPU (g++ or clang++)"
    if not found:
        raise UserError(
            f"engine.compile=true needs {needed}, and there is none: install it, or set "
            "engine.compile=false"
        )


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


def _sum_together(tensors: Sequence[Tensor]) -> None:
    """One all-reduce for many tensors: latency is paid once a group, not once a parameter."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
