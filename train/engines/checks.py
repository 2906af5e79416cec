"""Whether an engine can run a config in a layout, before anything is built.

Plans, searches and engines ask the same, so that what is planned or proposed is never refused by
the run. Nothing of an engine's packages is imported, nor asked whether it is installed.
Read next: `deepspeed/settings.py`, `megatron/checks.py`, what those engines cannot do.
"""

from collections.abc import Sequence

from ...model.layout import Layout, check_layout
from ..config import RunConfig
from ..errors import UserError
from .deepspeed.settings import check_settings
from .megatron.checks import check_model, check_run


def check_engine(config: RunConfig, layout: Layout, families: Sequence[str]) -> None:
    """Whether the engine that `engine.name` names can run it.

    Args:
        layout: resolved.
        families: of the model.
    Raises:
        ModelError: the layout cannot cut this model.
        UserError: the engine cannot do what is asked; names the way out.
    """
    check_layout(config.model, families, layout, config.data.sequence_length)
    if config.engine.name == "deepspeed":
        check_settings(config, layout)
    elif config.engine.name == "megatron":
        check_model(config.model, layout, config.engine.megatron, config.engine.optimizer)
        check_run(config, layout)
    else:
        check_optimizer(config, layout)
        check_pipeline(config, layout)


def check_optimizer(config: RunConfig, layout: Layout) -> None:
    """Whether the optimiser can work on what a process holds.

    Raises:
        UserError: Muon, which orthogonalises whole matrices, would see parts of them.
    """
    if config.optim.name != "muon":
        return
    for setting, cuts, way_out in (
        (f"engine.layout.tensor={layout.tensor}", layout.tensor > 1, "engine.layout.tensor=1"),
        (f"engine.shard={config.engine.shard}", config.engine.shard == "full", "engine.shard=none"),
    ):
        if cuts:
            raise UserError(
                f"optim.name=muon orthogonalises whole matrices, which {setting} cuts: set "
                f"{way_out}, or optim.name=adamw"
            )


def check_pipeline(config: RunConfig, layout: Layout) -> None:
    """Whether a step's micro-batches fit the schedule.

    Raises:
        UserError: the interleaved one is filled by as many at a time as there are stages.
    """
    slots, micro, stages = config.data.slots_per_step, config.engine.micro_slots, layout.pipeline
    count = slots // (layout.readers * micro)
    if layout.virtual == 1 or count % stages == 0:
        return
    unit = layout.readers * micro * stages
    fits = [n for n in (slots // unit * unit, -(-slots // unit) * unit) if n]
    raise UserError(
        f"engine.layout.virtual={layout.virtual} runs micro-batches {stages} at a time, as many as "
        f"engine.layout.pipeline, and data.slots_per_step={slots} gives each process {count} "
        f"({layout.readers} processes read different slots, engine.micro_slots={micro}): take "
        f"data.slots_per_step={' or '.join(map(str, fits))}, or engine.layout.virtual=1"
    )
