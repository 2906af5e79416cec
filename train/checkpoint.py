"""Checkpoints: one canonical thing, whatever ran the step.

A folder `step-N` holds the trunk and each family in safetensors files of their own, weights and
optimiser state apart, `state.json` (step, ledger, stream, what was seen) and the RNG. Every file
has its sha256 beside it, so that a family's files can be added or taken out without touching
another byte, and a flipped bit is found on load. Written to `step-N.tmp` by a thread, fsynced,
renamed; then `latest` moves; then old ones go. Read next: `run_folder.py`.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..data.ledger import Ledger, ledger_from_json
from ..data.shards import sync_folder, write_atomically
from ..model.decoder import parameter_family, saved_tensors
from ..model.part import View
from .errors import UserError
from .pieces import WEIGHTS, Piece, whole_piece
from .tensor_files import NAMES, Entry, make_file, read_header, read_piece, write_pieces

FORMAT = 1
"""Version of the checkpoint's layout."""


class DamagedCheckpoint(RuntimeError):
    """A checkpoint's file is missing or is not what was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """What a run needs beside weights and optimiser state."""

    step: int
    """Steps made."""
    ledger: Ledger
    """The mixture's decisions."""
    stream: dict[str, Any]
    """The order's integers."""
    order_fingerprint: str
    """sha256 over the first sequence ids of the run."""
    tokens_seen: int
    """Tokens trained on."""
    seconds: float
    """Time spent training."""
    origin: str = "auto"
    """What `checkpoint.resume` said when the run was begun."""
    files: tuple[str, ...] = ()
    """The tensor files written beside this state."""


class CheckpointWriter:
    """Saves in the background, each process its own pieces; one save at a time.

    Processes meet in the staging folder, not in collectives: each lists its pieces there, the
    leader makes the files, all write, each seals some, and the leader renames.
    """

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
        """
        self.root = run / "checkpoints"
        self.keep, self.keep_every = keep, keep_every
        self.rank, self.world, self.timeout = rank, world, 60 * timeout_minutes
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        if rank:
            return
        for leftover in self.root.glob("step-*.tmp"):
            shutil.rmtree(leftover)  # a killed writer's; never a whole checkpoint
        for step in self._steps():
            if step > resumed_at:
                aside = self.root / f"abandoned-step-{step}"
                shutil.rmtree(aside, ignore_errors=True)
                (self.root / f"step-{step}").rename(aside)

    def save(self, pieces: Iterable[Piece], state: RunState) -> None:
        """Copies this process's pieces now and writes them behind the run's back."""
        self.wait()
        copies = [
            replace(piece, tensor=piece.tensor.detach().to("cpu", copy=True)) for piece in pieces
        ]
        if self.rank == 0:
            copies.append(whole_piece("rng", "torch_cpu", torch.get_rng_state()))
        self._pending = self._thread.submit(self._write, copies, state)

    def wait(self) -> None:
        """Waits for the save under way.

        Raises:
            OSError: it failed; no `step-N` of it exists then.
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

    def _write(self, pieces: Sequence[Piece], state: RunState) -> None:
        final = self.root / f"step-{state.step}"
        staging = self.root / f"step-{state.step}.tmp"
        meeting = Meeting(staging / "meeting", self.rank, self.world, self.timeout)
        try:
            self._write_together(pieces, state, staging, meeting)
        except (OSError, SafetensorError) as error:
            meeting.give_up(str(error))
            if self.rank == 0:
                shutil.rmtree(staging, ignore_errors=True)
            raise OSError(
                f"{final} could not be written ({error}): those written before stand; make "
                "room, and start the same command again"
            ) from error
        if self.rank:
            return
        if final.exists():
            shutil.rmtree(final)
        staging.rename(final)
        write_atomically(self.root / "latest", f"{final.name}\n".encode())
        self._prune()

    def _write_together(
        self, pieces: Sequence[Piece], state: RunState, staging: Path, meeting: "Meeting"
    ) -> None:
        if self.rank == 0:
            shutil.rmtree(staging, ignore_errors=True)
            meeting.open()
        mine: dict[str, list[Piece]] = {}
        for piece in pieces:
            mine.setdefault(piece_file(piece), []).append(piece)
        listed = {
            file: {p.name: (NAMES[p.tensor.dtype], p.shape) for p in held}
            for file, held in mine.items()
        }
        told = meeting.tell("pieces", listed)
        files: dict[str, dict[str, Any]] = {}
        for of_rank in told:
            for file, tensors in of_rank.items():
                files.setdefault(file, {}).update(tensors)
        if self.rank == 0:
            for file, tensors in files.items():
                made = {name: (dtype, tuple(shape)) for name, (dtype, shape) in tensors.items()}
                make_file(staging / file, made)
            state = replace(state, files=tuple(sorted(files)))
            (staging / "state.json").write_text(_state_json(state), encoding="utf-8")
        meeting.tell("files")
        for file, held in mine.items():
            write_pieces(staging / file, held)
        meeting.tell("written")
        for number, file in enumerate([*sorted(files), "state.json"]):
            if number % self.world == self.rank:
                _seal(staging / file)
        meeting.tell("sealed")
        if self.rank == 0:
            meeting.close()
            sync_folder(staging)

    def _steps(self) -> list[int]:
        return sorted(int(p.name[5:]) for p in self.root.glob("step-*") if p.name[5:].isdigit())

    def _prune(self) -> None:
        for step in self._steps()[: -self.keep]:
            if not (self.keep_every and step % self.keep_every == 0):
                shutil.rmtree(self.root / f"step-{step}")


class Meeting:
    """Where processes that share a folder wait for each other, without a collective."""

    POLL_SECONDS = 0.01

    def __init__(self, folder: Path, rank: int, world: int, timeout: float) -> None:
        self.folder, self.rank, self.world, self.timeout = folder, rank, world, timeout

    def open(self) -> None:
        """Makes the place; others wait for it."""
        if self.world > 1:
            self.folder.mkdir(parents=True)
        else:
            self.folder.parent.mkdir(parents=True)

    def tell(self, what: str, told: Any = None) -> list[Any]:
        """Says something and waits until all have said theirs; what they said, by rank.

        Raises:
            OSError: one gave up, or did not come in time.
        """
        if self.world == 1:
            return [told]
        until = time.monotonic() + self.timeout
        self._wait(self.folder, until)
        write_atomically(self.folder / f"{what}-{self.rank}", json.dumps(told).encode())
        heard = []
        for rank in range(self.world):
            path = self.folder / f"{what}-{rank}"
            self._wait(path, until)
            heard.append(json.loads(path.read_bytes()))
        return heard

    def give_up(self, why: str) -> None:
        """Tells the others not to wait."""
        if self.world > 1:
            with suppress(OSError):  # the disk may be full, or the leader gone with the folder
                write_atomically(self.folder / f"failed-{self.rank}", why.encode())

    def close(self) -> None:
        """Takes the place away."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _wait(self, path: Path, until: float) -> None:
        while not path.exists():
            for failed in self.folder.glob("failed-*"):
                rank = failed.name.removeprefix("failed-")
                raise OSError(f"process {rank}: {failed.read_text(encoding='utf-8')}")
            if time.monotonic() > until:
                raise OSError(f"another process did not write {path.name} in time")
            time.sleep(self.POLL_SECONDS)


class CheckpointReader:
    """A checkpoint's tensors, read piece by piece."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = read_state(folder).files
        self._headers: dict[str, dict[str, Entry]] = {}

    def verify(self, *, rank: int = 0, world: int = 1) -> None:
        """Checks files against their sha256; each process some.

        Raises:
            DamagedCheckpoint: a file is missing or is not what was written.
        """
        for number, file in enumerate(sorted(self.files)):
            if number % world == rank:
                check_seal(self.folder / file)

    def entries(self, file: str) -> dict[str, Entry]:
        """What a file holds; nothing where it was not written."""
        if file not in self._headers:
            present = file in self.files
            self._headers[file] = read_header(self.folder / file) if present else {}
        return self._headers[file]

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Whether the weights are those of a model.

        Args:
            shapes: of the model, by canonical name.
        Raises:
            UserError: they are not; names what differs.
        """
        saved: dict[str, tuple[int, ...]] = {}
        for file in {file_name(WEIGHTS, parameter_family(name)) for name in shapes}:
            if file not in self.files:
                raise DamagedCheckpoint(
                    f"{self.folder / file} is missing; resume from an older checkpoint"
                )
            saved |= {name: entry.shape for name, entry in self.entries(file).items()}
        missing, unknown = shapes.keys() - saved.keys(), saved.keys() - shapes.keys()
        told = [f"missing {name}" for name in sorted(missing)]
        told += [f"unknown {name}" for name in sorted(unknown)]
        told += [
            f"{name} is {saved[name]}, the model has {shapes[name]}"
            for name in sorted(shapes.keys() & saved.keys())
            if saved[name] != shapes[name]
        ]
        if told:
            raise UserError(
                f"{self.folder} is a checkpoint of another model ({len(told)} differences): "
                f"{'; '.join(told[:3])}; use the config it was trained with"
            )

    def read(
        self, kind: str, name: str, shape: tuple[int, ...], view: View, start: int, stop: int
    ) -> Tensor | None:
        """A piece's values, flat; None where there is no such tensor."""
        file = file_name(kind, parameter_family(name.partition("/")[0]))
        entry = self.entries(file).get(name)
        if entry is None:
            return None
        if entry.shape != shape:
            raise UserError(
                f"{self.folder / file} holds {name} of shape {entry.shape}, the model needs {shape}"
            )
        return read_piece(self.folder / file, entry, view, start, stop)


def latest_checkpoint(run: Path) -> Path | None:
    """The checkpoint that `latest` names, or the newest where that file is lost; None without any.

    Raises:
        DamagedCheckpoint: `latest` names a folder that is gone.
    """
    pointer = run / "checkpoints" / "latest"
    if not pointer.exists():
        steps = [int(p.name[5:]) for p in pointer.parent.glob("step-*") if p.name[5:].isdigit()]
        return pointer.parent / f"step-{max(steps)}" if steps else None
    name = pointer.read_text(encoding="utf-8").strip()
    folder = pointer.parent / name
    if not name or not folder.is_dir():
        raise DamagedCheckpoint(
            f"{pointer} names {name or 'nothing'}, which does not exist: resume another with "
            "checkpoint.resume=PATH"
        )
    return folder


def nearest_state(run: Path, step: int) -> RunState | None:
    """The state of a run's last checkpoint at or before a step; None without any."""
    folders = [p for p in (run / "checkpoints").glob("step-*") if p.name[5:].isdigit()]
    before = [p for p in folders if int(p.name[5:]) <= step]
    return read_state(max(before, key=lambda p: int(p.name[5:]))) if before else None


def load_weights(folder: Path, model: nn.Module) -> None:
    """Fills a whole model from a checkpoint.

    Raises:
        DamagedCheckpoint: a file is missing or damaged.
        UserError: the checkpoint is of another model.
    """
    tensors = saved_tensors(model)
    reader = CheckpointReader(folder)
    reader.verify()
    reader.check({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    with torch.no_grad():
        for name, tensor in tensors.items():
            piece = whole_piece(WEIGHTS, name, tensor)
            values = reader.read(WEIGHTS, name, piece.shape, piece.view, 0, piece.stop)
            assert values is not None
            tensor.copy_(values.view_as(tensor))


def read_state(folder: Path) -> RunState:
    """A checkpoint's run state.

    Raises:
        UserError: written in another format.
        DamagedCheckpoint: the file is damaged.
    """
    check_seal(folder / "state.json")
    fields = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    if fields.pop("format") != FORMAT:
        raise UserError(f"{folder} was written in another checkpoint format than {FORMAT}")
    ledger = ledger_from_json(json.dumps(fields.pop("ledger")))
    return RunState(ledger=ledger, files=tuple(fields.pop("files")), **fields)


def load_rng(folder: Path) -> None:
    """Restores PyTorch's random state."""
    torch.set_rng_state(read_tensors(folder / "rng.safetensors")["torch_cpu"])


def read_tensors(file: Path) -> dict[str, Tensor]:
    """A safetensors file, checked against the sha256 beside it."""
    check_seal(file)
    return load_file(file)


def file_name(kind: str, family: str | None) -> str:
    """The file of some kind of tensors of a family, or of the trunk."""
    return f"{kind}{'trunk' if family is None else f'family-{family}'}.safetensors"


def piece_file(piece: Piece) -> str:
    """The file that a piece belongs into."""
    if piece.kind == "rng":
        return "rng.safetensors"
    return file_name(piece.kind, parameter_family(piece.name.partition("/")[0]))


def _state_json(state: RunState) -> str:
    return json.dumps(
        {
            "format": FORMAT,
            "step": state.step,
            "ledger": json.loads(state.ledger.to_json()),
            "stream": state.stream,
            "order_fingerprint": state.order_fingerprint,
            "tokens_seen": state.tokens_seen,
            "seconds": state.seconds,
            "origin": state.origin,
            "files": sorted(state.files),
        },
        indent=1,
    )


def _seal(file: Path) -> None:
    file.chmod(0o666 & ~_umask())  # safetensors makes files that only their owner can read
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        os.fsync(stream.fileno())
    seal = file.with_name(file.name + ".sha256")
    with seal.open("w", encoding="utf-8") as stream_out:
        stream_out.write(digest + "\n")
        stream_out.flush()
        os.fsync(stream_out.fileno())


def check_seal(file: Path) -> None:
    """Compares a file with the sha256 beside it.

    Raises:
        DamagedCheckpoint: one of the two is missing, or they differ.
    """
    seal = file.with_name(file.name + ".sha256")
    if not file.exists() or not seal.exists():
        raise DamagedCheckpoint(
            f"{file} or its .sha256 is missing; resume from an older checkpoint"
        )
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != seal.read_text(encoding="utf-8").strip():
        raise DamagedCheckpoint(
            f"{file} is not what was written (sha256 differs): resume from another checkpoint "
            "with checkpoint.resume=PATH, evaluate or export another with --step"
        )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
