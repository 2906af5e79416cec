"""What can be set about `engine=megatron` beyond every engine's settings; whether it is installed.

Read next: `checks.py`, what it refuses; `model.py`, which builds the decoder with it.
"""

import importlib.metadata
from dataclasses import dataclass
from typing import Literal

import torch

from ....data.errors import check_minimums
from ...errors import UserError

VERSION = "0.16.1"
"""Of megatron-core: names are used here that it does not promise to keep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MegatronConfig:
    """Megatron-core's own switches; those that need CUDA say so themselves when it is missing."""

    overlap_grad_reduce: bool = False
    """Reduce gradients over the data ranks while the backward pass still runs
    (engine.optimizer=distributed)."""
    overlap_param_gather: bool = False
    """Gather updated weights while the next forward pass runs; needs overlap_grad_reduce."""
    overlap_p2p_comm: bool = False
    """Send between the stages while they compute; needs engine.layout.virtual > 1, where two stages
    always do."""
    tp_comm_overlap: bool = False
    """Overlap tensor parallelism's communication with its products; needs Transformer Engine."""
    transformer_engine: Literal["auto", "off"] = "auto"
    """Attention's products from Transformer Engine where it is installed (`auto`), or Megatron's
    own everywhere."""
    gradient_accumulation_fusion: bool = False
    """Add weight gradients up inside the products; needs Apex."""
    bucket_size: int = 0
    """Parameters of a bucket that is reduced together, with overlap_grad_reduce; 0 is Megatron's
    own choice."""
    grad_reduce_in_fp32: bool = True
    """Accumulate and reduce bf16 gradients in float32 (engine.optimizer=distributed)."""
    deallocate_pipeline_outputs: bool = True
    """Free a stage's output once it is sent; gloo's messages may still be on their way, so that it
    is kept on the CPU."""

    def __post_init__(self) -> None:
        check_minimums(self, "engine.megatron", bucket_size=0)
        if self.overlap_param_gather and not self.overlap_grad_reduce:
            raise UserError(
                "engine.megatron.overlap_param_gather=true needs "
                "engine.megatron.overlap_grad_reduce=true: set both, or neither"
            )
        if self.bucket_size and not self.overlap_grad_reduce:
            raise UserError(
                f"engine.megatron.bucket_size={self.bucket_size} has no effect without "
                "engine.megatron.overlap_grad_reduce=true: set both, or neither"
            )


def check_installed() -> None:
    """Whether the one Megatron-core that is known to fit is here, and can run.

    Raises:
        UserError: it is not installed, is another version, or there is no CUDA.
    """
    try:
        found = importlib.metadata.version("megatron-core")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            "engine=megatron needs megatron-core, which is not installed: pip install "
            "'xylem[megatron]', or set engine=torch"
        ) from None
    if found != VERSION:
        raise UserError(
            f"engine=megatron is written for megatron-core {VERSION}, and {found} is installed: "
            f"pip install megatron-core=={VERSION}"
        )
    # Megatron asks this for the device of its buffers, so what it says is what they will be on.
    try:
        torch.cuda.current_device()
    except (AssertionError, RuntimeError):
        raise UserError(
            "engine=megatron needs CUDA: Megatron-core asks for a GPU in its schedules, "
            "optimiser and random streams; set engine=torch, which runs the same layouts here"
        ) from None
