"""What `engine=megatron` refuses, before anything is built.

Read next: `engine.py`.
"""

import importlib.metadata
import importlib.util
from typing import Literal

from ....model.config import ModelConfig
from ....model.layout import Layout
from ...config import RunConfig
from ...errors import UserError
from .config import MegatronConfig


def check_model(
    model: ModelConfig,
    layout: Layout,
    settings: MegatronConfig,
    optimizer: Literal["distributed", "zero"],
) -> None:
    """Whether Megatron-core's layers can be this model in this layout.

    Args:
        layout: resolved, and legal for the model (`check_layout`).
    Raises:
        UserError: they cannot; names the way out.
    """
    if model.routes_tokens:
        router = next(layer.router for layer in model.layers if layer.router != "family")
        raise UserError(
            f"engine=megatron has no router={router}: its layers hold family experts only; set "
            "router=family in model.layer_plan, or engine=torch"
        )
    for name in ("gate", "expert_masking", "output_masking"):
        if getattr(model.routing, name):
            raise UserError(
                f"engine=megatron cannot do model.routing.{name}={getattr(model.routing, name)}: "
                "leave it out, or set engine=torch"
            )
    if layout.family > 1 or layout.expert > 1:
        name = "family" if layout.family > 1 else "expert"
        raise UserError(
            f"engine=megatron holds every family's experts on every data rank, so that "
            f"engine.layout.{name}={getattr(layout, name)} has no meaning there: set it to 1, or "
            "engine=torch"
        )
    if model.vocab_size % layout.tensor:
        above = -(-model.vocab_size // layout.tensor) * layout.tensor
        raise UserError(
            f"engine.layout.tensor={layout.tensor} cuts the vocabulary into equal parts in "
            f"engine=megatron, and model.vocab_size={model.vocab_size} is no multiple of it: the "
            f"next is {above}"
        )
    if optimizer == "zero":
        for name in ("overlap_grad_reduce", "overlap_param_gather"):
            if getattr(settings, name):
                raise UserError(
                    f"engine.megatron.{name}=true belongs to Megatron's own optimiser: set "
                    "engine.optimizer=distributed, or leave it out"
                )
    if settings.tp_comm_overlap and layout.tensor == 1:
        raise UserError(
            "engine.megatron.tp_comm_overlap=true has no effect with engine.layout.tensor=1: leave "
            "it out"
        )
    if settings.overlap_p2p_comm and layout.virtual == 1:
        raise UserError(
            "engine.megatron.overlap_p2p_comm=true needs the interleaved schedule: set "
            "engine.layout.virtual=2 or more, or leave it out"
        )


def check_run(config: RunConfig, layout: Layout) -> None:
    """Whether Megatron-core can run what the other parts of the config ask for.

    Raises:
        UserError: it cannot; names the way out.
    """
    engine = config.engine
    if config.optim.name != "adamw":
        raise UserError(
            f"optim.name={config.optim.name} cannot run with engine=megatron, whose optimisers cut "
            "matrices across: set optim.name=adamw, or engine=torch"
        )
    if engine.compile:
        raise UserError(
            "engine.compile=true cannot run with engine=megatron, whose layers compile their own "
            "parts: set engine.compile=false"
        )
    if engine.recompute > 1:
        raise UserError(
            f"engine.recompute={engine.recompute} cannot run with engine=megatron, which computes "
            "every layer again (1) or none (0)"
        )
    data = config.data
    each = data.slots_per_step // layout.readers
    count = -(-each // engine.micro_slots)
    if layout.virtual > 1 and count % layout.pipeline:
        raise UserError(
            f"engine.layout.virtual={layout.virtual} takes micro-batches in groups of "
            f"engine.layout.pipeline={layout.pipeline}, and a process has {count}: choose "
            "data.slots_per_step or engine.micro_slots so that they are a multiple"
        )


def check_packages(config: RunConfig) -> None:
    """Whether what the config needs beside Megatron-core is installed here.

    Raises:
        UserError: it is not.
    """
    for name, package in (
        ("tp_comm_overlap", "transformer_engine"),
        ("gradient_accumulation_fusion", "fused_weight_gradient_mlp_cuda"),
    ):
        if getattr(config.engine.megatron, name) and importlib.util.find_spec(package) is None:
            raise UserError(f"engine.megatron.{name}=true needs {package}, not here: leave it out")
    if config.engine.optimizer != "zero":
        return
    try:
        importlib.metadata.version("deepspeed")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            "engine.optimizer=zero needs DeepSpeed, which is not installed: pip install "
            "'xylem[deepspeed]', or set engine.optimizer=distributed"
        ) from None
