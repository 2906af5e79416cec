"""Saves checkpoints in the background, by all processes at once, whole or not at all.

Each process copies its pieces of the state, and a thread of it writes them to their places in the
files, which the leader made: nothing is gathered, and every byte is written once. The files take
shape in `step-N.tmp`, are sealed and fsynced; then the folder is renamed, then `latest` moves, then
old ones go. Read next: `meeting.py`, `tensor_files.py`.
"""

import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import torch

from ..data.shards import sync_folder, write_atomically
from .checkpoint_files import RunState, piece_file, seal, state_json, steps_kept
from .meeting import Meeting, Relayed
from .pieces import Piece, whole_piece
from .tensor_files import NAMES, make_file, write_pieces

Listed = dict[str, dict[str, list[Any]]]
"""File -> tensor -> its dtype, shape, and how many elements are going to be written."""


LAST_SECONDS = 10.0
"""How long a process that ends by a failure still waits for the others of a save."""


class CheckpointWriter:
    """Saves in the background, each process its own pieces; one save at a time."""

    def __init__(
        self,
        run: Path,
        *,
        keep: int,
        keep_every: int,
        resumed_at: int = 0,
        rank: int = 0,
        world: int = 1,
        timeout_minutes: float = 10.0,
        nonce: str = "",
    ) -> None:
        """
        Args:
            run: the run folder.
            keep: how many of the newest to keep; at least 1.
            keep_every: steps whose multiples are kept for ever; 0 keeps none beyond the newest.
            resumed_at: the step the run goes on from; newer checkpoints are of a course that was
                left, and are set aside under another name.
            rank, world: this process among those that save.
            timeout_minutes: how long one waits for the others' writing.
            nonce: the same on all processes of this start and on no others, so that what a killed
                start left behind is never taken for this one's.
        """
        self.root = run / "checkpoints"
        self.keep, self.keep_every = keep, keep_every
        self.rank, self.world, self.seconds = rank, world, 60 * timeout_minutes
        self.nonce = nonce
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._meeting: Meeting | None = None
        if rank:
            return
        for pattern in ("step-*.tmp", "meeting-*"):
            for leftover in self.root.glob(pattern):
                shutil.rmtree(leftover)  # a killed writer's; never a whole checkpoint
        for step in steps_kept(self.root):
            if step > resumed_at:
                aside = self.root / f"abandoned-step-{step}"
                shutil.rmtree(aside, ignore_errors=True)
                (self.root / f"step-{step}").rename(aside)

    def save(self, pieces: Iterable[Piece], state: RunState) -> None:
        """Copies this process's pieces now and writes them behind the run's back.

        Raises:
            OSError: the save before this one failed.
        """
        self.wait()
        copies = [
            replace(piece, tensor=piece.tensor.detach().to("cpu", copy=True)) for piece in pieces
        ]
        if self.rank == 0:
            copies.append(whole_piece("rng", "torch_cpu", torch.get_rng_state()))
        self._pending = self._thread.submit(self._write, copies, state)

    def wait(self) -> None:
        """Waits for the save under way; the checkpoint is whole then.

        Raises:
            OSError: it failed, on this process or another; no `step-N` of it exists then.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        """Waits, and ends the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Closes; where a failure ends the run it is that which is told, and others are hardly
        waited for: one of them may be why."""
        if error is None or self.world == 1:
            self.close()
            return
        if self._meeting is not None:
            self._meeting.hurry(LAST_SECONDS)
        with suppress(OSError, RuntimeError):
            self.close()

    def _write(self, pieces: Sequence[Piece], state: RunState) -> None:
        final = self.root / f"step-{state.step}"
        staging = self.root / f"step-{state.step}.tmp"
        place = self.root / f"meeting-{state.step}{self.nonce and '-'}{self.nonce}"
        meeting = Meeting(place, rank=self.rank, world=self.world, seconds=self.seconds)
        self._meeting = meeting
        try:
            self._write_together(pieces, state, staging, meeting)
            if self.rank == 0:
                if final.exists():
                    shutil.rmtree(final)
                staging.rename(final)
                write_atomically(self.root / "latest", f"{final.name}\n".encode())
            meeting.announce("stands")
        except Exception as error:
            cause = self._cause(error, meeting)
            if self.rank == 0:
                shutil.rmtree(staging, ignore_errors=True)
            told = f"{final} could not be written ({cause}): those written before stand"
            if not isinstance(error, OSError):
                raise RuntimeError(told) from error
            raise OSError(f"{told}; make room, and start the same command again") from error
        if self.rank == 0:
            self._prune()
        meeting.close()

    def _cause(self, error: Exception, meeting: Meeting) -> str:
        """Why a save failed, on all processes alike: what the first to fail has told."""
        if not isinstance(error, Relayed):
            try:
                meeting.listen()
            except Relayed as first:
                return str(first)
            meeting.give_up(str(error))
            if self.world > 1:
                return f"process {self.rank}: {error}"
        return str(error)

    def _prune(self) -> None:
        for step in steps_kept(self.root)[: -self.keep]:
            if not (self.keep_every and step % self.keep_every == 0):
                shutil.rmtree(self.root / f"step-{step}")

    def _write_together(
        self, pieces: Sequence[Piece], state: RunState, staging: Path, meeting: Meeting
    ) -> None:
        if self.rank == 0:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
        meeting.open()
        mine: dict[str, list[Piece]] = {}
        for piece in pieces:
            mine.setdefault(piece_file(piece), []).append(piece)
        told = meeting.gather("pieces", {file: listed(held) for file, held in mine.items()})
        files: list[str] = []
        if self.rank == 0:
            tensors = joined(told)
            files = sorted(tensors)
            for file, held in tensors.items():
                make_file(staging / file, held)
            state = replace(state, files=tuple(files))
            (staging / "state.json").write_text(state_json(state), encoding="utf-8")
        files = meeting.announce("files", files)
        for file, held_here in mine.items():
            write_pieces(staging / file, held_here)
        meeting.gather("written")
        meeting.announce("sealing")
        for number, file in enumerate([*files, "state.json"]):
            if number % self.world == self.rank:
                seal(staging / file)
        meeting.gather("sealed")
        if self.rank == 0:
            sync_folder(staging)


def listed(pieces: Iterable[Piece]) -> dict[str, list[Any]]:
    """Tensor -> its dtype, its shape, and how many elements these pieces hold."""
    result: dict[str, list[Any]] = {}
    for piece in pieces:
        name = result.setdefault(piece.name, [NAMES[piece.tensor.dtype], list(piece.shape), 0])
        name[2] += piece.stop - piece.start
    return result


def joined(told: Iterable[Listed]) -> dict[str, dict[str, tuple[str, tuple[int, ...]]]]:
    """File -> tensor -> its dtype and shape, of all processes.

    Raises:
        RuntimeError: their pieces are not the whole of each tensor, once.
    """
    files: dict[str, dict[str, list[Any]]] = {}
    for of_rank in told:
        for file, tensors in of_rank.items():
            held = files.setdefault(file, {})
            for name, (dtype, shape, count) in tensors.items():
                before = held.setdefault(name, [dtype, shape, 0])
                if before[:2] != [dtype, shape]:
                    raise RuntimeError(
                        f"processes hold {name} as {before[:2]} and as {[dtype, shape]}"
                    )
                before[2] += count
    for tensors in files.values():
        for name, (_, shape, count) in tensors.items():
            if count != prod(shape):
                raise RuntimeError(
                    f"the engine's pieces hold {count} elements of {name}, which has {prod(shape)}"
                )
    return {
        file: {name: (dtype, tuple(shape)) for name, (dtype, shape, _) in tensors.items()}
        for file, tensors in files.items()
    }
