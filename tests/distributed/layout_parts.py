"""Run by test_layouts.py on each of several processes: trains the runs of a JSON file, in turn.

[[name, settings], …]; the processes are started once, which takes longer than a run.
"""

import json
import sys
from pathlib import Path

from xylem.train.assembly import start
from xylem.train.compose import compose_config
from xylem.train.engines.choice import open_engine
from xylem.train.loop import fit

if __name__ == "__main__":
    processes = None
    for name, settings in json.loads(Path(sys.argv[1]).read_text()):
        config = compose_config([*settings, f"run.name={name}"])
        engine = open_engine(config)
        fit(start(config, engine))
        processes = engine.processes
    assert processes is not None
    processes.close()
