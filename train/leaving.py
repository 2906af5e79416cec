"""How a run is asked to leave: signals of the scheduler or the user, files in `triggers/`."""

import signal
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from .engines.torch import TorchEngine


class Leaving:
    """Listens for SIGUSR1, SIGTERM, SIGINT and for files in triggers/."""

    SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)

    def __init__(self, folder: Path) -> None:
        self.triggers = folder / "triggers"
        self.received: str | None = None
        self._before: Mapping[int, Any] = {
            number: signal.signal(number, self._take) for number in self.SIGNALS
        }

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second Ctrl-C does not wait for the step
        self.received = signal.Signals(number).name

    def request(self, engine: TorchEngine) -> str | None:
        """What any process was asked: a signal's name, `exit`, `save`, or None; equal on all."""
        found = {name: self._consume(name) for name in ("exit", "save")} if engine.leader else {}
        code = 2.0 if self.received or found.get("exit") else 1.0 if found.get("save") else 0.0
        votes = engine.sum(torch.tensor([code >= 2.0, code >= 1.0], device=engine.device).float())
        if votes[0] > 0:
            return self.received or "triggers/exit"
        return "save" if votes[1] > 0 else None

    def _consume(self, name: str) -> bool:
        trigger = self.triggers / name
        if not trigger.exists():
            return False
        trigger.unlink()
        return True

    def restore(self) -> None:
        """Gives the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
