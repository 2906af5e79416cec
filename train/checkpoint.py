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
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..data.ledger import Ledger, ledger_from_json
from ..data.shards import sync_folder, write_atomically
from ..model.decoder import parameter_family
from .errors import UserError
from .optimizer import Optimizers

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
    """Saves in the background; one save at a time."""

    def __init__(self, run: Path, *, keep: int, keep_every: int, resumed_at: int = 0) -> None:
        """
        Args:
            run: the run folder.
            keep: how many of the newest to keep; at least 1.
            keep_every: steps whose multiples are kept for ever; 0 keeps none beyond the newest.
            resumed_at: the step the run goes on from; newer checkpoints are of a course that was
                left, and are set aside under another name.
        """
        self.root = run / "checkpoints"
        self.keep, self.keep_every = keep, keep_every
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        for leftover in self.root.glob("step-*.tmp"):
            shutil.rmtree(leftover)  # a killed writer's; never a whole checkpoint
        for step in self._steps():
            if step > resumed_at:
                aside = self.root / f"abandoned-step-{step}"
                shutil.rmtree(aside, ignore_errors=True)
                (self.root / f"step-{step}").rename(aside)

    def save(self, model: nn.Module, optimizers: Optimizers, state: RunState) -> None:
        """Copies the state now and writes it behind the run's back."""
        self.wait()
        files = snapshot(model, optimizers)
        files["rng.safetensors"] = {"torch_cpu": torch.get_rng_state()}
        state = replace(state, files=tuple(files))
        self._pending = self._thread.submit(self._write, files, state)

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

    def _write(self, files: Mapping[str, dict[str, Tensor]], state: RunState) -> None:
        final = self.root / f"step-{state.step}"
        staging = self.root / f"step-{state.step}.tmp"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        try:
            for name, tensors in files.items():
                save_file(tensors, staging / name)
                _seal(staging / name)
            (staging / "state.json").write_text(_state_json(state), encoding="utf-8")
            _seal(staging / "state.json")
            sync_folder(staging)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(staging, ignore_errors=True)
            raise OSError(
                f"{final} could not be written ({error}): those written before stand; make "
                "room, and start the same command again"
            ) from error
        if final.exists():
            shutil.rmtree(final)
        staging.rename(final)
        write_atomically(self.root / "latest", f"{final.name}\n".encode())
        self._prune()

    def _steps(self) -> list[int]:
        return sorted(int(p.name[5:]) for p in self.root.glob("step-*") if p.name[5:].isdigit())

    def _prune(self) -> None:
        for step in self._steps()[: -self.keep]:
            if not (self.keep_every and step % self.keep_every == 0):
                shutil.rmtree(self.root / f"step-{step}")


def snapshot(model: nn.Module, optimizers: Optimizers) -> dict[str, dict[str, Tensor]]:
    """File name -> tensors, copied to the CPU: weights and optimiser state by trunk and family."""
    files: dict[str, dict[str, Tensor]] = {}

    def put(kind: str, parameter: str, key: str, value: Tensor) -> None:
        file = files.setdefault(_file_name(kind, parameter_family(parameter)), {})
        file[key] = value.detach().to("cpu", copy=True).contiguous()

    for name, tensor in saved_tensors(model).items():
        put("", name, name, tensor)
    for name, key, value in optimizers.state():
        put("optimizer-", name, f"{name}/{key}", value)
    return files


def saved_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Canonical name -> tensor: parameters, and the state of routers that no gradient moves."""
    transient = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        for name in module._non_persistent_buffers_set
    }
    buffers = {name: b for name, b in model.named_buffers() if name not in transient}
    return dict(model.named_parameters()) | buffers


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
    """Fills a model from a checkpoint.

    Raises:
        DamagedCheckpoint: a file is missing or damaged.
        UserError: the checkpoint is of another model.
    """
    parameters = saved_tensors(model)
    saved: dict[str, Tensor] = {}
    for file in sorted({_file_name("", parameter_family(name)) for name in parameters}):
        saved |= read_tensors(folder / file)
    missing, unknown = parameters.keys() - saved.keys(), saved.keys() - parameters.keys()
    shapes = [
        f"{name} is {tuple(saved[name].shape)}, the model has {tuple(parameters[name].shape)}"
        for name in sorted(parameters.keys() & saved.keys())
        if saved[name].shape != parameters[name].shape
    ]
    if missing or unknown or shapes:
        told = [f"missing {name}" for name in sorted(missing)]
        told += [f"unknown {name}" for name in sorted(unknown)] + shapes
        raise UserError(
            f"{folder} is a checkpoint of another model ({len(told)} differences): "
            f"{'; '.join(told[:3])}; use the config it was trained with"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved[name])


def load_optimizers(folder: Path, model: nn.Module, optimizers: Optimizers) -> None:
    """Fills the optimisers' state from a checkpoint; a family never trained has no file.

    Raises:
        DamagedCheckpoint: a file that was written is missing or damaged.
    """
    hosted = {
        _file_name("optimizer-", parameter_family(name)) for name, _ in model.named_parameters()
    }
    state: dict[str, dict[str, Tensor]] = {}
    for file in sorted(hosted.intersection(read_state(folder).files)):
        for key, value in read_tensors(folder / file).items():
            name, _, part = key.rpartition("/")
            state.setdefault(name, {})[part] = value
    optimizers.load(state)


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


def _file_name(kind: str, family: str | None) -> str:
    return f"{kind}{'trunk' if family is None else f'family-{family}'}.safetensors"


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
