"""Which engine a config names, with its processes and its layout. Read next: `engine.py`."""

from ..config import RunConfig
from .engine import Engine
from .processes import Processes


def open_engine(config: RunConfig) -> Engine:
    """The engine that `engine.name` names, with its processes and its layout.

    Raises:
        UserError: it is not installed, or cannot run here.
        ModelError: the layout does not fit the processes.
    """
    processes = Processes(config.engine)
    try:
        layout = config.engine.layout.resolved(processes.world)
        if config.engine.name == "torch":
            from .torch import TorchEngine

            return TorchEngine(processes, layout)
        if config.engine.name == "deepspeed":
            from .deepspeed.engine import DeepSpeedEngine

            return DeepSpeedEngine(processes, layout)
        from .megatron.engine import MegatronEngine

        return MegatronEngine(processes, layout)
    except BaseException:
        processes.close()
        raise
