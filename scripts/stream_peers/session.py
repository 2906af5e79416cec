"""A running adapter: started once, asked for jobs, ended with the session.

`protocol.py` is the other side. A job that its peer could not do is an answer with an `error`,
never an exception here: what a peer cannot do is a result.
"""

import json
import os
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .environments import adapter_of, title_of

Job = dict[str, Any]
Answer = dict[str, Any]

TIMEOUT = 60.0


class Session:
    """One peer's adapter; a context manager."""

    def __init__(self, peer: str, python: Path, work: Path) -> None:
        """
        Args:
            peer: its name in `environments.py`, or `xylem`.
            python: the Python of its environment.
            work: a folder for this peer alone; what it prints goes to `log.txt` there.
        """
        self.peer, self.title, self.work = peer, title_of(peer), work
        work.mkdir(parents=True, exist_ok=True)
        self._log = open(work / "log.txt", "w")  # noqa: SIM115 closed by __exit__
        scripts = Path(__file__).resolve().parents[1]
        paths = [str(scripts)]
        if peer == "xylem":
            paths += [os.environ.get("PYTHONPATH", ""), str(scripts.parent / ".typing")]
        self._process = subprocess.Popen(
            [str(python), "-m", f"{__package__.rpartition('.')[2]}.{adapter_of(peer)}"],
            cwd=work,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(path for path in paths if path),
                "OMP_NUM_THREADS": "1",
                "TOKENIZERS_PARALLELISM": "false",
                "HF_HUB_OFFLINE": "1",
                "HF_HOME": str(work / "hf"),
                "PYTHONWARNINGS": "ignore",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.broken = ""
        self._ready = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def ask(self, job: Job) -> Answer:
        """One job's answer."""
        return self.ask_together([job])[0]

    def ask_together(self, jobs: list[Job]) -> list[Answer]:
        """The answers of jobs that run at the same time, as the ranks of one run do."""
        if not self._ready:
            self._line()  # imports are done
            self._ready = True
        if not self.broken:
            assert self._process.stdin is not None
            timed = [{"timeout": TIMEOUT, **job} for job in jobs]
            try:
                self._process.stdin.write(json.dumps(timed) + "\n")
                self._process.stdin.flush()
            except BrokenPipeError:
                pass
            answers = self._line()
        if self.broken:
            return [{"ids": [], "error": self.broken} for _ in jobs]
        return answers

    def _line(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            time.sleep(0.1)
            last = (self.work / "log.txt").read_text(errors="replace").strip().splitlines()
            self.broken = f"its adapter ended: {last[-1] if last else 'without a word'}"
            return None
        return json.loads(line)


def rank_environment(rank: int, world: int, port: int) -> dict[str, str]:
    """What torchrun would tell a process, for libraries that look there."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
