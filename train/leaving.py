"""How a run is asked to leave: signals of the scheduler or the user, files in `triggers/`."""

import signal
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from .engines.processes import Processes

SAVE, EXIT = "triggers/save", "triggers/exit"


class Leaving:
    """Listens for SIGUSR1, SIGTERM, SIGINT and for files in triggers/."""

    SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)

    def __init__(self, folder: Path, engine: Processes) -> None:
        self.folder, self.engine = folder, engine
        self.received: signal.Signals | None = None
        self._interrupts = 0
        if engine.leader:
            for trigger in (SAVE, EXIT):  # one left from before is not meant for this start
                (folder / trigger).unlink(missing_ok=True)
        self._before: Mapping[int, Any] = {
            number: signal.signal(number, self._take) for number in self.SIGNALS
        }

    def _take(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            raise KeyboardInterrupt  # the second Ctrl-C does not wait for the step
        self.received = signal.Signals(number)

    def request(self) -> str | None:
        """What any process was asked: a signal's name, EXIT, SAVE, or None; equal on all."""
        causes = [*(number.name for number in self.SIGNALS), EXIT, SAVE]
        mine = [number == self.received for number in self.SIGNALS]
        mine += [self._consume(trigger) for trigger in (EXIT, SAVE)]
        votes = self.engine.sum(torch.tensor(mine, device=self.engine.device).float()).tolist()
        return next((cause for cause, vote in zip(causes, votes, strict=True) if vote), None)

    def _consume(self, trigger: str) -> bool:
        path = self.folder / trigger
        if not self.engine.leader or not path.exists():
            return False
        path.unlink()
        return True

    def restore(self) -> None:
        """Gives the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
