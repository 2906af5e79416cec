"""Lets megatron-core 0.16.1 run on the CPU with gloo, for tests; never part of the package.

Megatron asks for CUDA by name in a handful of places: the device of its buffers, random streams,
streams and events, and literals such as `device="cuda"`. `install` answers those in Megatron's own
modules. It refuses to load where CUDA is, and on any other version than the one it was read for.
"""

import contextlib
import importlib
import importlib.metadata
import sys
from types import ModuleType
from typing import Any

import torch

VERSION = "0.16.1"
CPU = torch.device("cpu")

LITERALS = (
    "megatron.core.pipeline_parallel.schedules",
    "megatron.core.optimizer.optimizer",
    "megatron.core.optimizer.clip_grads",
    "megatron.core.models.common.embeddings.rope_utils",
    "megatron.core.utils",
)
"""Modules that write `device="cuda"` or pin memory themselves."""

_installed = False


class _Nothing:
    """A stream or an event of a machine that has neither."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **named: _Nothing()


class _OnCpu:
    """`torch` as one module sees it: tensors asked for on CUDA are made on the CPU."""

    def __init__(self, real: ModuleType) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._real, name)
        if name not in ("zeros", "ones", "tensor", "empty", "full"):
            return value

        def made(*arguments: Any, **named: Any) -> Any:
            if str(named.get("device")).startswith("cuda"):
                named["device"] = CPU
            named.pop("pin_memory", None)
            return value(*arguments, **named)

        return made


def install() -> None:
    """Makes Megatron-core believe in the CPU.

    Raises:
        RuntimeError: there is CUDA, or another megatron-core.
    """
    global _installed
    if torch.cuda.is_available():
        raise RuntimeError("this machine has CUDA: megatron-core runs there as it is")
    found = importlib.metadata.version("megatron-core")
    if found != VERSION:
        raise RuntimeError(
            f"megatron_on_cpu was written for megatron-core {VERSION}, this is {found}"
        )
    if _installed:
        return
    _installed = True
    # Only what Megatron calls; torch itself goes on knowing that there is no CUDA.
    torch.cuda.current_device = lambda: CPU  # type: ignore[assignment,return-value]
    torch.cuda.synchronize = lambda *_: None
    torch.cuda.Stream = _Nothing  # type: ignore[assignment,misc]
    torch.cuda.Event = _Nothing  # type: ignore[assignment,misc]
    torch.cuda.current_stream = lambda *_: _Nothing()  # type: ignore[assignment,return-value]
    torch.cuda.default_stream = lambda *_: _Nothing()  # type: ignore[assignment,return-value]
    torch.cuda.stream = lambda _: contextlib.nullcontext()  # type: ignore[assignment,return-value]
    torch.cuda.get_rng_state = lambda *_: torch.get_rng_state()
    torch.cuda.set_rng_state = lambda state, *_: torch.set_rng_state(state)
    torch.cuda.manual_seed = lambda seed: torch.manual_seed(seed)
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign,assignment]

    random = importlib.import_module("megatron.core.tensor_parallel.random")
    random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    for name in LITERALS:
        importlib.import_module(name).torch = _OnCpu(torch)  # type: ignore[attr-defined]
    _name_types_as_on_cuda()
    _experts()


def _name_types_as_on_cuda() -> None:
    """Megatron's optimiser tells float32 from bf16 by the name of a CUDA tensor's type."""
    real = torch.Tensor.type

    def named(self: torch.Tensor, *arguments: Any, **others: Any) -> Any:
        answer = real(self, *arguments, **others)
        asker = sys._getframe(1).f_code.co_filename
        if not arguments and not others and "megatron/core/optimizer" in asker:
            return answer.replace("torch.", "torch.cuda.", 1)
        return answer

    torch.Tensor.type = named  # type: ignore[method-assign,assignment]


def _experts() -> None:
    """What Megatron's expert layer needs: a name it never binds, and split sizes as numbers."""
    utilities = importlib.import_module("megatron.core.transformer.moe.moe_utils")
    dispatcher = importlib.import_module("megatron.core.transformer.moe.token_dispatcher")
    if not hasattr(utilities, "te_general_gemm"):
        utilities.te_general_gemm = None  # type: ignore[attr-defined]

    def moved(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
        return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor

    utilities.maybe_move_tensor_to_cpu = moved  # type: ignore[attr-defined]
    dispatcher.maybe_move_tensor_to_cpu = moved  # type: ignore[attr-defined]
