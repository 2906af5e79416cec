"""Run by test_agreement.py on each of two processes: PART FOLDER; writes what the part returns."""

import os
import signal
import sys
from pathlib import Path

from xylem.train.config import EngineConfig
from xylem.train.engines.processes import Processes
from xylem.train.errors import UserError
from xylem.train.leaving import EXIT, SAVE, Leaving


def signal_one(engine: Processes, folder: Path) -> str:
    leave = Leaving(folder, engine)
    first = leave.request()
    if engine.rank == 1:
        os.kill(os.getpid(), signal.SIGUSR1)
    asked = [str(first), str(leave.request())]
    leave.restore()
    return " ".join(asked)


def triggers(engine: Processes, folder: Path) -> str:
    leave = Leaving(folder, engine)
    engine.barrier()
    asked = []
    for trigger in (SAVE, EXIT):
        if engine.leader:
            (folder / trigger).touch()
        engine.barrier()
        asked += [str(leave.request()), str(leave.request())]
    leave.restore()
    return " ".join(asked)


def differ(engine: Processes, folder: Path) -> str:
    engine.same_everywhere("config", "equal")
    try:
        engine.same_everywhere("config", f"of {engine.rank}")
    except UserError as refusal:
        return str(refusal)
    return ""


if __name__ == "__main__":
    part, folder = sys.argv[1], Path(sys.argv[2])
    engine = Processes(EngineConfig(threads=1, timeout_minutes=1.0))
    parts = {"signal_one": signal_one, "triggers": triggers, "differ": differ}
    (folder / f"rank-{engine.rank}").write_text(parts[part](engine, folder))
    engine.barrier()
    engine.close()
