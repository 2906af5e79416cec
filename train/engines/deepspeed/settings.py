"""What DeepSpeed is told of a run: its own config made from ours, and what it cannot do.

Read next: `engine.py`, which runs a step with it.
"""

from typing import Any

from ....model.layout import Layout
from ...config import RunConfig
from ...errors import UserError


def deepspeed_config(config: RunConfig, readers: int, *, pinned: bool = False) -> dict[str, Any]:
    """DeepSpeed's config of a run, as it stands in the run folder's deepspeed.json.

    Losses are divided by the global batch's tokens, so gradients are to be added up. Stages 1 and 2
    can be told so; stage 3 only averages, and `zero.py` multiplies what it gives by the processes.
    Matrix products in bf16 are autocast over float32 weights as in every engine, so DeepSpeed's own
    half precisions stay off.

    Args:
        readers: processes that read different slots, data x family.
        pinned: whether offloaded memory is locked for copies to a GPU.
    """
    data, zero = config.data, config.engine.zero
    together = config.engine.micro_slots
    stage: dict[str, Any] = {
        "stage": zero.stage,
        "contiguous_gradients": True,
        "overlap_comm": False,
        "reduce_scatter": True,
        "reduce_bucket_size": zero.bucket_elements,
        "allgather_bucket_size": zero.bucket_elements,
    }
    if zero.stage == 3:
        stage |= {
            "stage3_param_persistence_threshold": zero.persistent_elements,
            "stage3_prefetch_bucket_size": zero.prefetch_elements,
            "leaf_module": {"classes": [], "names": [], "name_suffixes": []},
        }
    if zero.offload != "none":
        stage["offload_optimizer"] = {"device": zero.offload, "pin_memory": pinned}
        if zero.offload == "nvme":
            stage["offload_optimizer"]["nvme_path"] = zero.nvme_path
    return {
        "train_batch_size": data.slots_per_step * data.slot_sequences,
        "train_micro_batch_size_per_gpu": together * data.slot_sequences,
        "gradient_accumulation_steps": data.slots_per_step // (readers * together),
        "gradient_clipping": config.optim.clip_norm,
        "gradient_allreduce_op": "sum" if zero.stage < 3 else "mean",
        "communication_data_type": "fp32",
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
        "zero_optimization": stage,
        # The optimiser is ours: it leaves alone what a step does not move.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "wall_clock_breakdown": False,
    }


def check_settings(config: RunConfig, layout: Layout) -> None:
    """Whether DeepSpeed can run it.

    Args:
        layout: resolved.
    Raises:
        UserError: it cannot; says what can.
    """
    engine, zero = config.engine, config.engine.zero
    for name in ("tensor", "context", "pipeline", "expert"):
        size = getattr(layout, name)
        if size > 1:
            raise UserError(
                f"engine.layout.{name}={size} cannot run with engine.name=deepspeed, which cuts "
                f"data and family only: set engine.layout.{name}=1, or engine.name=torch or "
                "megatron"
            )
    if zero.stage == 3 and layout.family > 1:
        raise UserError(
            f"engine.layout.family={layout.family} cannot run with engine.zero.stage=3, which "
            "gathers every weight from all processes: set engine.layout.family=1, or "
            "engine.zero.stage=1 or 2"
        )
    if zero.offload == "nvme":
        raise UserError(
            "engine.zero.offload=nvme cannot run yet: norms and checkpoints are not read from the "
            "disk; set engine.zero.offload=cpu"
        )
    if config.optim.name != "adamw":
        raise UserError(
            f"optim.name={config.optim.name} cannot run with engine.name=deepspeed, whose ZeRO "
            "cuts matrices across: set optim.name=adamw, or engine.name=torch"
        )
    if engine.compile and zero.stage == 3:
        raise UserError(
            "engine.compile=true cannot run with engine.zero.stage=3, whose weights come and go "
            "between the layers: set engine.compile=false, or engine.zero.stage=1 or 2"
        )
    if config.model.routing.domain_rows and zero.stage == 3:
        raise UserError(
            f"model.routing.domain_rows={config.model.routing.domain_rows} cannot be read with "
            "engine.zero.stage=3, which has cut the rows up: set engine.zero.stage=1 or 2"
        )
