"""Tensors added up over processes, many at once. Read next: `torch.py`, the gradients."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET = 1 << 24
"""Elements that one all-reduce adds up at most."""


def sum_together(tensors: Sequence[Tensor], group: dist.ProcessGroup) -> None:
    """Adds tensors up over a group, many at once: latency is paid once a bucket."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in (*tensors, None):
        if bucket and (tensor is None or size + tensor.numel() > BUCKET):
            flat = torch.cat([each.reshape(-1) for each in bucket])
            dist.all_reduce(flat, group=group)
            parts = flat.split([each.numel() for each in bucket])
            torch._foreach_copy_(bucket, [p.view_as(t) for t, p in zip(bucket, parts, strict=True)])
            bucket, size = [], 0
        if tensor is not None:
            bucket.append(tensor)
            size += tensor.numel()
