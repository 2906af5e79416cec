"""Where processes that share a folder wait for each other, without a collective.

A save runs behind the training loop's back, where a collective would cross with the loop's own. So
each process leaves a small file for each thing that it has done; the leader reads them all, and
leaves one file that all others read: whatever their number, a process reads a few files.
Read next: `checkpoint_writer.py`.
"""

import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.01
"""Between two looks."""


class Relayed(OSError):
    """Another process gave up, and said why."""


class Meeting:
    """A meeting of all processes; the one of rank 0 leads it."""

    def __init__(self, folder: Path, *, rank: int, world: int, seconds: float) -> None:
        """
        Args:
            folder: of this meeting alone, and of this start of the run alone.
            seconds: how long one waits for the others, at each step.
        """
        self.folder, self.rank, self.world, self.seconds = folder, rank, world, seconds
        self.latest = float("inf")

    def hurry(self, seconds: float) -> None:
        """From now on nothing is waited for longer than this; another thread may say so."""
        self.latest = time.monotonic() + seconds

    def open(self) -> None:
        """The leader makes the place; the others wait for it."""
        if self.world == 1:
            return
        if self.rank == 0:
            self.folder.mkdir(exist_ok=True)  # where another gave up before it began
        else:
            self._wait(self.folder.exists, lambda: "process 0 did not begin")

    def gather(self, what: str, told: Any = None) -> list[Any]:
        """Says something to the leader, who waits until all have.

        Returns:
            What they said, by rank, on the leader; nothing elsewhere.
        Raises:
            OSError: one gave up (Relayed), or did not come in time.
        """
        if self.world == 1:
            return [told]
        if self.rank:
            self._leave(f"{what}-{self.rank}", json.dumps(told))
            return []
        missing = {f"{what}-{rank}" for rank in range(1, self.world)}

        def all_here() -> bool:
            missing.difference_update(os.listdir(self.folder))
            return not missing

        self._wait(all_here, lambda: f"{_processes(missing)} did not answer ({what})")
        others = range(1, self.world)
        return [told, *(json.loads((self.folder / f"{what}-{r}").read_text()) for r in others)]

    def announce(self, what: str, told: Any = None) -> Any:
        """What the leader says, on every process.

        Raises:
            OSError: one gave up, or the leader did not come in time.
        """
        if self.world == 1:
            return told
        path = self.folder / what
        if self.rank == 0:
            self._leave(what, json.dumps(told))
            return told
        self._wait(path.exists, lambda: f"process 0 did not answer ({what})")
        return json.loads(path.read_text(encoding="utf-8"))

    def give_up(self, why: str) -> None:
        """Tells the others not to wait; they end with the same cause."""
        if self.world > 1:
            with suppress(OSError):  # no room even for this: the others wait their time
                self.folder.mkdir(parents=True, exist_ok=True)
                self._leave(f"failed-{self.rank}", why)

    def listen(self) -> None:
        """Hears whether another gave up.

        Raises:
            Relayed: one did.
        """
        for failed in sorted(self.folder.glob("failed-*[0-9]")):
            rank = failed.name.removeprefix("failed-")
            raise Relayed(f"process {rank}: {failed.read_text(encoding='utf-8')}")

    def close(self) -> None:
        """Parts; the leader is the last to go, and takes the place away."""
        with suppress(OSError):  # all is done: who is missing now is missed elsewhere
            self.gather("gone")
        if self.world > 1 and self.rank == 0:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _leave(self, name: str, text: str) -> None:
        partial = self.folder / f"{name}.partial"
        partial.write_text(text, encoding="utf-8")
        partial.rename(self.folder / name)  # there whole or not at all

    def _wait(self, done: Callable[[], bool], otherwise: Callable[[], str]) -> None:
        until = time.monotonic() + self.seconds
        while not done():
            self.listen()
            if time.monotonic() > min(until, self.latest):
                raise OSError(f"{otherwise()} within {self.seconds / 60:g} minutes")
            time.sleep(POLL_SECONDS)


def _processes(files: set[str]) -> str:
    """`process 3`, or how many of which the first are named."""
    ranks = sorted(int(name.rpartition("-")[2]) for name in files)
    shown = ", ".join(map(str, ranks[:4])) + (", …" if len(ranks) > 4 else "")
    return f"process{'es' if len(ranks) > 1 else ''} {shown}"
