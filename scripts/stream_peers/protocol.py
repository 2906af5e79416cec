"""What every adapter speaks: jobs come in as lines of JSON, each runs in a process of its own.

An adapter is run as `python -m stream_peers.NAME` by the Python of its peer's environment, so this
file and the adapters import neither Xylem (but for Xylem's own) nor each other. A peer is three
functions; `serve` does the rest. Imports are paid once: a job is a fork of the server, so that its
times are those of the loader. Read next: one adapter, `webdataset.py`; the other side is
`session.py`.
"""

import contextlib
import hashlib
import json
import os
import pickle
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, int64

MEASURED_BATCHES_AT_A_TIME = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Loader:
    """Which batches are asked for."""

    sequence_length: int
    """Tokens a sequence, T."""
    batch: int
    """Sequences a batch of one process, B."""
    weights: dict[str, float]
    """Language -> share of the sequences; sums to 1."""
    seed: int = 0
    """Of the order."""
    workers: int = 0
    """Processes that read ahead; 0 reads in the process itself."""
    rank: int = 0
    """This process among `world`."""
    world: int = 1
    """Processes that share the global batch of B x world sequences."""
    state: Any = None
    """What `Stream.state` gave before, or None to begin."""
    batches_a_step: int = 1
    """Batches between two states, as with gradient accumulation: a peer may read them at once."""
    buffer: int = 1000
    """Sequences a language's shuffle buffer, of a peer that has one."""
    cache: str | None = None
    """An empty folder: the dataset is then read as a remote one, where a peer can do so."""


@dataclass(frozen=True, slots=True)
class Stream:
    """An endless loader, opened."""

    batches: Iterator[Tensor]
    """Token ids [B, T], int64."""
    state: Callable[[], Any]
    """What a checkpoint would keep after the last batch: anything that pickles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """What an adapter says of its library."""

    load: Callable[[], object]
    """Imports everything that a job needs."""
    write: Callable[["Source", Path], object]
    """Writes the library's own dataset from the neutral one."""
    open: Callable[[Path, Loader], Stream]
    """Opens what `write` wrote."""
    clean: Callable[[], object] = field(default=lambda: None)
    """Removes what a killed process left behind, as the library's manual asks."""


@dataclass(frozen=True, slots=True)
class Source:
    """The neutral dataset: `source.json`, and the tokens of each language as `<code>.npy`."""

    folder: Path
    sequence_length: int
    """Tokens a sequence, T."""
    shard_sequences: int
    """Sequences a shard; a language with less than four such shards is cut into four."""

    @property
    def languages(self) -> list[str]:
        """Codes, sorted."""
        return sorted(path.name.removesuffix(".npy") for path in self.folder.glob("*.npy"))

    def sequences(self, language: str) -> NDArray[np.unsignedinteger]:
        """All sequences [n, T]; the token after the last one is left for its last target."""
        tokens = np.load(self.folder / f"{language}.npy", mmap_mode="r")
        T = self.sequence_length
        count = (len(tokens) - 1) // T
        return np.asarray(tokens[: count * T]).reshape(count, T)

    def shards(self, language: str) -> Iterator[tuple[int, NDArray[np.unsignedinteger]]]:
        """(number of its first sequence, sequences [n, T]) of each shard."""
        sequences = self.sequences(language)
        size = max(1, min(self.shard_sequences, -(-len(sequences) // 4)))
        for start in range(0, len(sequences), size):
            yield start, sequences[start : start + size]


def sequence_id(tokens: NDArray[np.integer]) -> str:
    """What a sequence is known by: a hash of its tokens [T], whatever library read them."""
    data = np.ascontiguousarray(tokens, dtype="<i8").tobytes()
    return hashlib.blake2b(data, digest_size=8).hexdigest()


# Jobs: each is a dictionary with `do`, and gives a dictionary


def write(peer: Peer, job: dict[str, Any]) -> dict[str, Any]:
    """`write`: the dataset; seconds and bytes."""
    source = Source(Path(job["source"]), job["sequence_length"], job["shard_sequences"])
    folder = Path(job["folder"])
    folder.mkdir(parents=True)
    started = time.perf_counter()
    peer.write(source, folder)
    seconds = time.perf_counter() - started
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {"seconds": seconds, "bytes": size}


def read(peer: Peer, job: dict[str, Any]) -> dict[str, Any]:
    """`read`: some batches and their ids; then the state to `save`; then `more` batches, unsaved.

    With `ids` false the batches are only counted. What was read before an error is given with it.
    """
    ids: list[list[str]] = []
    try:
        started = time.perf_counter()
        stream = peer.open(Path(job["folder"]), _loader(job))
        first = 0.0
        for number in range(job["batches"]):
            tokens_BT = next(stream.batches)
            if number == 0:
                first = time.perf_counter() - started
                _check(tokens_BT, job)
            if job.get("ids", True):
                ids.append([sequence_id(row) for row in tokens_BT.numpy()])
        if "save" in job:
            Path(job["save"]).write_bytes(pickle.dumps(stream.state()))
        for _ in range(job.get("more", 0)):
            next(stream.batches)
    except Exception as error:
        traceback.print_exc()
        told = " ".join(f"{type(error).__name__}: {error}".split())
        return {"ids": ids, "error": told[:300]}
    return {"ids": ids, "first_batch_seconds": first}


def measure(peer: Peer, job: dict[str, Any]) -> dict[str, Any]:
    """`measure`: tokens a second over `seconds` after the first batch, and peak memory."""
    started = time.perf_counter()
    stream = peer.open(Path(job["folder"]), _loader(job))
    _check(next(stream.batches), job)
    first = time.perf_counter() - started
    tokens, started = 0, time.perf_counter()
    while (seconds := time.perf_counter() - started) < job["seconds"]:
        for _ in range(MEASURED_BATCHES_AT_A_TIME):
            tokens += next(stream.batches).numel()
    return {
        "tokens_per_second": tokens / seconds,
        "first_batch_seconds": first,
        "peak_bytes": sum(map(_peak_bytes, _process_tree(os.getpid()))),
    }


JOBS = {"write": write, "read": read, "measure": measure}


def _loader(job: dict[str, Any]) -> Loader:
    settings = dict(job["loader"])
    if settings.get("state") is not None:
        settings["state"] = pickle.loads(Path(settings["state"]).read_bytes())
    return Loader(**settings)


def _check(tokens_BT: Tensor, job: dict[str, Any]) -> None:
    B, T = job["loader"]["batch"], job["loader"]["sequence_length"]
    # A short batch is no error: it shows in what is counted and compared.
    rows, length = tokens_BT.shape
    if not 0 < rows <= B or length != T or tokens_BT.dtype != int64:
        raise TypeError(f"a batch of {tokens_BT.dtype}{list(tokens_BT.shape)}, not int64[{B}, {T}]")


def _process_tree(process: int) -> list[int]:
    tree = [process]
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        for child in children.read_text().split():
            tree += _process_tree(int(child))
    return tree


def _peak_bytes(process: int) -> int:
    """Peak resident memory, where the system tells it of other processes; else this one's."""
    status = Path(f"/proc/{process}/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    (line,) = [x for x in status.read_text().splitlines() if x.startswith("VmHWM")] or ["VmHWM 0"]
    return int(line.split()[1]) * 1024


# The server


def serve(peer: Peer) -> None:
    """Answers each line of jobs, a JSON list, with a line of as many answers.

    The jobs of a line run at the same time, each in a process of its own (and its own group). One
    that is silent for longer than its `timeout` is killed; one with `kill` kills itself as soon as
    it has answered, as a pre-empted process would end.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    peer.load()
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        if _fork(peer.clean) != 0:
            print("cleaning failed", file=sys.stderr)
        running = [(_start(peer, job), job["timeout"]) for job in json.loads(line)]
        done = [_finish(process, pipe, timeout) for (process, pipe), timeout in running]
        print(json.dumps(done), file=answers, flush=True)


def _fork(act: Callable[[], object]) -> int:
    process = os.fork()
    if process == 0:
        code = 1
        try:
            act()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _start(peer: Peer, job: dict[str, Any]) -> tuple[int, int]:
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        return process, reading
    try:
        os.setsid()
        os.environ.update(job.get("environment", {}))
        answer = JOBS[job["do"]](peer, job)
        with os.fdopen(writing, "w") as pipe:
            pipe.write(json.dumps(answer) + "\n")
        if job.get("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def _finish(process: int, pipe: int, timeout: float) -> dict[str, Any]:
    """Waits for a job's line, then ends its process and whatever workers it has left."""
    received, deadline = b"", time.monotonic() + timeout
    while not received.endswith(b"\n"):
        ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
        part = os.read(pipe, 1 << 20) if ready else b""
        if not part:
            break
        received += part
    late = time.monotonic() >= deadline
    os.close(pipe)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    if received.endswith(b"\n"):
        answer: dict[str, Any] = json.loads(received)
        return answer
    return {"ids": [], "error": f"no answer in {timeout:g} s" if late else "died", "late": late}
