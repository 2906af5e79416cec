"""The knobs of ZeRO. Read next: `settings.py`, what DeepSpeed is told of a run."""

from dataclasses import dataclass, fields
from typing import Literal

from ....data.errors import check_minimums
from ...errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroConfig:
    """What ZeRO cuts over the processes, and where it keeps it."""

    stage: Literal[1, 2, 3] = 1
    """What is cut: 1 the optimiser's state, 2 also the gradients, 3 also the weights."""
    offload: Literal["none", "cpu", "nvme"] = "none"
    """Where the optimiser's state and the weights it moves lie: on the device, in the host's
    memory, or on a local disk (stage 3), which DeepSpeed is told but no run does yet."""
    nvme_path: str | None = None
    """Folder on a local disk, for offload=nvme."""
    bucket_elements: int = 50_000_000
    """Elements of gradients or weights that one collective carries."""
    persistent_elements: int = 100_000
    """Stage 3: parameters up to this size stay whole on every process."""
    prefetch_elements: int = 50_000_000
    """Stage 3: elements of the next layers' weights that are fetched ahead."""

    def __post_init__(self) -> None:
        check_minimums(
            self, "engine.zero", bucket_elements=2, persistent_elements=0, prefetch_elements=0
        )
        if self.bucket_elements % 2:
            raise UserError(
                f"engine.zero.bucket_elements={self.bucket_elements} must be even: take "
                f"{self.bucket_elements + 1}"
            )
        if self.stage < 3:
            for field in fields(self):
                value, late = getattr(self, field.name), ("persistent", "prefetch")
                if field.name.startswith(late) and value != field.default:
                    raise UserError(
                        f"engine.zero.{field.name}={value} has no effect with engine.zero.stage="
                        f"{self.stage}: set engine.zero.stage=3, or leave it out"
                    )
            if self.offload == "nvme":
                raise UserError(
                    f"engine.zero.offload=nvme needs engine.zero.stage=3, not {self.stage}: set "
                    "that, or engine.zero.offload=cpu"
                )
        if (self.offload == "nvme") != (self.nvme_path is not None):
            raise UserError(
                "engine.zero.offload=nvme needs engine.zero.nvme_path: name a folder on a local "
                "disk"
                if self.nvme_path is None
                else f"engine.zero.nvme_path={self.nvme_path} has no effect with "
                f"engine.zero.offload={self.offload}: set engine.zero.offload=nvme"
            )
