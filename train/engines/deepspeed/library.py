"""DeepSpeed itself: the version that is known, opened quietly, without a compiler on a CPU.

Read next: `engine.py`.
"""

import importlib.metadata
import logging
import os
import warnings

import torch.distributed as dist

from ...errors import UserError
from ..processes import Processes

VERSION = "0.19.8"
"""The one whose private names `zero.py` and `partitions.py` read."""


def open_deepspeed(processes: Processes) -> None:
    """Makes DeepSpeed ready to be used by these processes.

    Raises:
        UserError: it is not installed, or is another version.
    """
    check_version()
    on_cpu = processes.device.type == "cpu"
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    for name in ("all_gather_into", "reduce_scatter"):
        warnings.filterwarnings("ignore", f"`torch.distributed.{name}_tensor`", FutureWarning)
    if on_cpu:
        # Collectives through shared memory, which would be compiled at the first use.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # DeepSpeed asks for it; a process that no launcher started has none.
    os.environ.setdefault("LOCAL_RANK", str(processes.device.index or 0))
    if not dist.is_initialized():
        # ZeRO asks for process groups even where a process is alone.
        alone = dist.HashStore()  # type: ignore[attr-defined]
        backend = "gloo" if on_cpu else "nccl"
        dist.init_process_group(backend, store=alone, rank=0, world_size=1)
    deepspeed.init_distributed(
        dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False
    )


def check_version() -> None:
    """Whether the DeepSpeed that is installed is the one whose private names are read.

    Raises:
        UserError: it is another, or there is none.
    """
    try:
        found = importlib.metadata.version("deepspeed")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            "engine.name=deepspeed needs DeepSpeed, which is not installed: "
            "pip install 'xylem[deepspeed]', or set engine.name=torch"
        ) from None
    if found != VERSION:
        raise UserError(
            f"engine.name=deepspeed reads private names of DeepSpeed {VERSION}, and {found} is "
            f"installed: pip install deepspeed=={VERSION}, or set engine.name=torch"
        )
