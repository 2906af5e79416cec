"""engine.compile: what torch.compile is given of a decoder, and whether there is a compiler.

Read next: `torch.py`.
"""

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from ...model.decoder import Decoder
from ..errors import UserError


def dense_parts(decoder: Decoder) -> Iterator[nn.Module]:
    """What torch.compile is given: every token goes through it, whatever the router says."""
    if decoder.final_norm is not None:
        yield decoder.final_norm
    for layer in decoder.layers:
        yield from (layer.attention_norm, layer.attention)
        yield from (layer.feed_forward_norm, layer.feed_forward.trunk)


def compile_dense(decoder: Decoder, device: torch.device) -> None:
    """Compiles what every token goes through; names stay as they are.

    Raises:
        UserError: there is no compiler.
    """
    check_compiler(device)
    for module in dense_parts(decoder):
        module.forward = compiled_in_training(module.forward)


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
